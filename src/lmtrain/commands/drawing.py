"""The drawings of commands, each in a new file, which appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from lmtrain.errors import SettingsError
from lmtrain.files.unfinished import new_file
from lmtrain.shell import one_line
from lmtrain.targets import new_path


def new_drawing(option: str, path: str) -> Path:
    """Returns where `option` writes its drawing. Raises SettingsError if something is there already."""
    return new_path(path, option=option)


def write_drawing(option: str, path: Path, svg: str) -> None:
    """Writes the drawing. Raises SettingsError if that cannot be done."""
    try:
        with new_file(path) as file:
            new_drawing(option, str(path))  # somebody may have made it in the meantime
            file.write(svg.encode("utf-8", "xmlcharrefreplace"))
    except OSError as error:
        raise SettingsError(
            f"{option} {one_line(str(path))} cannot be written: {error.strerror or error}.",
            "It must be a new file in a directory that you may write in.",
            "Give another path.",
        ) from error
