"""Where a command or a call was told to write: something new, which appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lmtrain.errors import ResourceError, SettingsError, unwritable
from lmtrain.files.unfinished import parents_of, unfinished_directory
from lmtrain.shell import expanded, shown


def new_path(path: str, *, option: str = "--output") -> Path:
    """Where a command writes; SettingsError where something is already, also in the place of a directory above it, and for an
    empty path or "-"."""
    if not path:
        raise SettingsError(f"{option} is empty.", "It must be a new path.", f"Type for example {option} out.")
    if path == "-":
        raise SettingsError(
            f"{option} is -.", "It must be a new path: nothing is written to standard output here.",
            f"Type for example {option} out, or {option} ./- for a file of this name.",
        )  # fmt: skip
    if os.path.lexists(file := expanded(path)):
        raise SettingsError(f"{option} {path} is there already.", "Nothing is overwritten.", "Give another path, or remove it.")
    above = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise SettingsError(
            f"{option} {path} is below {shown(above)}, which is no directory.",
            "A file is in a directory.",
            "Give another path.",
        )
    return file


@contextmanager
def new_directory(path: str, *, option: str = "--output") -> Iterator[Path]:
    """A directory for a command to fill, made before any work is done. It becomes `path` when the command has succeeded.

    Where the command fails or is stopped, nothing is left of it; what a killed one left goes when the same is done again.
    """
    directory = new_path(path, option=option)
    with ExitStack() as undo:
        try:
            undo.enter_context(parents_of(directory))
            with suppress(FileNotFoundError):
                directory.lstat()  # which tells of a name that is too long; the one that is filled first is a shorter one
            unfinished = undo.enter_context(unfinished_directory(directory))
        except OSError as error:
            raise unwritable(f"{option} {path}", error) from error
        try:
            yield unfinished
        except ResourceError as error:
            if isinstance(error.__cause__, OSError) and str(unfinished) in error.given:  # which nobody typed, and which goes
                raise unwritable(f"{option} {path}", error.__cause__) from error
            raise
        new_path(path, option=option)  # somebody may have made it meanwhile
        try:
            os.rename(unfinished, directory)
        except OSError as error:
            raise unwritable(f"{option} {path}", error) from error
