"""Files that may be packed: gzip, bzip2 and xz are told by what a file begins with, and unpacked on the way."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from lmtrain.data.text import check_file, unreadable
from lmtrain.errors import DataError
from lmtrain.shell import quoted_for_shell

PACKED = (  # what a packed file begins with, how it is read, what unpacks it
    (rb"\x1f\x8b", gzip.open, "gzip"),
    (rb"BZh[1-9]1AY&SY", bz2.open, "bzip2"),
    (rb"\xfd7zXZ\x00", lzma.open, "xz"),
)


@contextmanager
def open_unpacked(path: Path) -> Iterator[tuple[BinaryIO, str | None]]:
    """A regular file as it reads unpacked, and the name of its packer; None where it is not packed.

    A packed file should be read to its end (`read_to_end`), where packers write a checksum. Raises DataError for what is
    missing, no regular file, not readable, or damaged; also while the file is read within the block.
    """
    check_file(path)
    packer = None
    try:
        with open(path, "rb") as file:
            beginning = file.read(16)
        opener, packer = next(((opener, name) for magic, opener, name in PACKED if re.match(magic, beginning)), (open, None))
        with opener(path, "rb") as file:
            yield cast(BinaryIO, file), packer
    except OSError as error:
        if packer and not error.strerror:
            raise _damaged(path, packer, error) from None
        raise unreadable(path, error) from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, packer, error) from None


def read_to_end(file: BinaryIO) -> None:
    """Reads what is left, so that its checksum is compared."""
    while file.read(1 << 20):
        pass


def _damaged(path: Path, packer: str | None, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be unpacked: {error}.",
        f"It begins as {packer} writes, and must be whole.",
        f"Type  {packer} -t {quoted_for_shell(str(path))}  to test it, and copy or write it again.",
    )
