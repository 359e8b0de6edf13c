"""Cache files. Each appears complete or not at all: it is written beside its place, flushed to the disk, and then renamed.

The name of a cached file is a hash of everything that determines its contents. So two processes that write the same name
write the same bytes, and the order of their renames does not matter. A reader that has mapped the old file keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lmtrain.errors import ResourceError
from lmtrain.files.unfinished import remove_unfinished, unfinished_file

HASHED = r"[0-9a-f]{32}\.(?:ids|json)"  # the names of cached texts


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write. It becomes `path` if the block ends without an exception, and is removed otherwise.

    Before that, unfinished files of killed processes are removed from the cache, for this or any other text: they may
    take gigabytes. Raises ResourceError if the directory cannot be made or written, or if the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, HASHED)
        with unfinished_file(path) as file:
            yield file
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}.",
            "The cache needs a directory that can be written, and about two bytes per token.",
            "Type data.cache_dir=DIRECTORY with one that has room.",
        ) from None
