"""The drawings of commands, each in a new file, which appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from lmtrain.errors import SettingsError
from lmtrain.files.unfinished import unfinished_file
from lmtrain.shell import expanded, one_line


def new_drawing(option: str, path: str) -> Path:
    """Returns where `option` writes its drawing. Raises SettingsError if something is there already."""
    if not path:
        raise SettingsError(
            f"{option} names no file.", "It takes the file to write.", f"Type for example  {option} graph.svg  ."
        )
    if os.path.lexists(expanded(path)):
        raise SettingsError(
            f"{option} {one_line(path)} is there already.", "Nothing is overwritten.", "Give another path, or remove it."
        )
    return expanded(path)


def write_drawing(option: str, path: Path, svg: str) -> None:
    """Writes the drawing. Raises SettingsError if that cannot be done."""
    try:
        with unfinished_file(path) as file:
            new_drawing(option, str(path))  # somebody may have made it in the meantime
            file.write(svg.encode("utf-8", "xmlcharrefreplace"))
    except OSError as error:
        raise SettingsError(
            f"{option} {one_line(str(path))} cannot be written: {error.strerror or error}.",
            "It must be a new file in a directory that you may write in.",
            "Give another path.",
        ) from error
