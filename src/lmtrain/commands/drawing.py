"""The drawings of commands, each in a new file, which appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from lmtrain.errors import unwritable
from lmtrain.files.unfinished import new_file
from lmtrain.shell import one_line
from lmtrain.targets import new_path


def new_drawing(option: str, path: str) -> Path:
    """Returns where `option` writes its drawing. Raises SettingsError if something is there already."""
    return new_path(path, option=option)


def write_drawing(option: str, path: Path, svg: str) -> None:
    """Writes the drawing. Raises SettingsError if that cannot be done, and ResourceError where the disk is full."""
    try:
        with new_file(path) as file:
            new_drawing(option, str(path))  # somebody may have made it in the meantime
            file.write(svg.encode("utf-8", "xmlcharrefreplace"))
    except OSError as error:
        raise unwritable(f"{option} {one_line(str(path))}", error) from error
