"""Paths: checks that there is a regular file that can be read, and says what is there instead."""

from __future__ import annotations

import difflib
import stat
from pathlib import Path

from lmtrain.errors import DataError, current_directory
from lmtrain.shell import one_line, quoted_for_shell

STANDARD_INPUT = Path("standard input")  # its name in errors


def check_file(path: Path) -> int:
    """Returns the size of the regular file `path` in bytes. Raises DataError if it is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if stat.S_ISDIR(mode := found.st_mode):
        raise unreadable(path, IsADirectoryError())
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise DataError(
            f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}.",
            "Text is read from regular files, because it is read more than once.",
            "Write the text to a file first and name that file.",
        )
    return found.st_size


def is_pipe(path: Path) -> bool:
    """Tells whether a path names a pipe or a device such as a terminal, which can be read once."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def missing(path: Path) -> DataError:
    """Returns the error for a path that does not exist, which says where it was looked for and what is there instead."""
    if str(path) == "-":
        return DataError(
            "- was given, and there is no file of this name.", "Standard input is not read here.", "Give the path of a file."
        )
    here = current_directory()
    absolute = here / path
    parent = next(parent for parent in absolute.parents if parent.is_dir())
    try:
        names = sorted(entry.name for entry in parent.iterdir() if entry != absolute)  # which a link to nothing is among
    except OSError:
        names = []
    # Names are compared without their suffix, because every text.txt looks like any other. Of equals, the same suffix wins.
    stems = {Path(name).stem: name for name in sorted(names, key=lambda name: Path(name).suffix == absolute.suffix)}
    close = difflib.get_close_matches(absolute.stem, stems, n=1) if parent == absolute.parent else []
    there = f"Did you mean {parent / stems[close[0]]}?" if close else f"It holds {listing(names)}."
    link = " (a symbolic link to nothing)" if path.is_symlink() else ""
    return DataError(
        f"There is no file or directory {absolute}{link}.",
        f"The nearest directory that exists is {parent}. {there}",
        f"Relative paths start at the current directory, {here}. Give a path that exists.",
    )


def unreadable(path: Path, error: OSError | ValueError) -> DataError:
    """Returns the error for a path that the operating system refuses to read."""
    if isinstance(error, FileNotFoundError):
        return missing(path)
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path} is a directory.", "A text file is needed.", "Give a file.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    remedy = f"Type  chmod u+r {typed(path)}" if isinstance(error, PermissionError) else "Check the path and the disk"
    return DataError(f"{path} cannot be read: {reason}.", "A text file must be readable.", f"{remedy}, or give another file.")


def typed(path: Path) -> str:
    """Returns a path as one types it after a command."""
    name = str(path)
    return "-" if path == STANDARD_INPUT else quoted_for_shell(f"./{name}" if name.startswith("-") else name)


def listing(names: list[str], most: int = 8) -> str:
    """Lists the first few names of a directory, and says how many more there are."""
    return (", ".join(map(one_line, names[:most])) or "nothing") + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
