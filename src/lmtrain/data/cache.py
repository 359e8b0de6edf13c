"""Files that appear whole or not at all: written beside their place, flushed to the disk, then renamed.

What is cached is named by a hash of all that determines it, so two processes that write the same name write the same bytes,
and whichever rename comes last changes nothing. A reader that has the file mapped keeps what it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lmtrain.errors import ResourceError
from lmtrain.unfinished import remove_unfinished, unfinished_file

HASHED = r"[0-9a-f]{32}\.(?:ids|json)"  # what is cached of texts, by name


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when the block ends without an exception and vanishes otherwise.

    Raises ResourceError where the directory cannot be made or written, or the disk is full. What processes that were
    killed left unfinished in the cache, of this or another text, is removed first: it may be gigabytes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, HASHED)
        with unfinished_file(path) as file:
            yield file
        _sync_directory(path.parent)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}.",
            "The cache needs a directory that can be written, and about two bytes a token.",
            "Type data.cache_dir=DIRECTORY with one that has room.",
        ) from None


def _sync_directory(path: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
