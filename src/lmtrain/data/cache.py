"""Files that appear whole or not at all: written beside their place, flushed to the disk, then renamed.

What is cached is named by a hash of all that determines it, so two processes that write the same name write the same bytes,
and whichever rename comes last changes nothing. A reader that has the file mapped keeps what it has.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lmtrain.errors import ResourceError


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when the block ends without an exception and vanishes otherwise.

    Raises ResourceError where the directory cannot be made or written, or the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}.",
            "The cache needs a directory that can be written, and about two bytes a token.",
            "Type data.cache_dir=DIRECTORY with one that has room.",
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
