"""Files that may be packed: gzip, bzip2, xz and zstandard are told by what a file begins with, and unpacked on the way."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

from lmtrain.data.files import check_file, unreadable
from lmtrain.errors import DataError, SettingsError
from lmtrain.shell import quoted_for_shell


def _open_zstandard(path: Path, mode: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{path} is packed with zstandard, and reading it needs the package zstandard, which is not installed.",
            "It comes with lmtrain's extra `zstd`.",
            f"Type  pip install zstandard  and try again, or  zstd -dc {quoted_for_shell(str(path))} > text.txt  without it.",
        ) from None
    return _Zstandard(path, zstandard)


class _Zstandard:
    """A file of any number of frames. Raises EOFError if the last one is not whole, which the library takes for an end."""

    def __init__(self, path: Path, library: Any) -> None:
        self._library, self._file = library, open(path, "rb")  # noqa: SIM115  # closed by __exit__
        self._frame: Any = None  # of the file, the one that is being read
        self._held = self._unpacked = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        while not self._unpacked:
            data = self._held or self._file.read(1 << 17)
            self._held = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a frame")
                return b""
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            try:
                self._unpacked = self._frame.decompress(data)
            except self._library.ZstdError as error:
                raise EOFError(str(error)) from None
            if self._frame.eof:
                self._held, self._frame = self._frame.unused_data, None
        found, self._unpacked = self._unpacked[:size], self._unpacked[size:]
        return found

    def __enter__(self) -> _Zstandard:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


PACKED = (  # what a packed file begins with, how it is read, what unpacks it
    (rb"\x1f\x8b", gzip.open, "gzip"),
    (rb"BZh[1-9]1AY&SY", bz2.open, "bzip2"),
    (rb"\xfd7zXZ\x00", lzma.open, "xz"),
    (rb"\x28\xb5\x2f\xfd", _open_zstandard, "zstd"),
)


@contextmanager
def open_unpacked(path: Path) -> Iterator[tuple[BinaryIO, str | None]]:
    """A regular file as it reads unpacked, and the name of its packer; None if it is not packed.

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


PACKERS: dict[str, Callable[[BinaryIO], Any]] = {  # without the time, so that the same text is the same file
    ".gz": lambda file: gzip.GzipFile("", "wb", fileobj=file, mtime=0),
    ".bz2": lambda file: bz2.BZ2File(file, "wb"),
    ".xz": lambda file: lzma.LZMAFile(file, "wb"),  # noqa: SIM115  # closed by `packing`
}


@contextmanager
def packing(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """What to write to instead of `file`, so that it is packed if its `name` ends in .gz, .bz2 or .xz.

    Raises SettingsError for .zst.
    """
    suffix = Path(name).suffix.lower()
    if suffix == ".zst":
        raise SettingsError(f"{name} ends in .zst.", "Allowed are .gz, .bz2 and .xz for a packed file.", "Give another name.")
    with PACKERS[suffix](file) if suffix in PACKERS else nullcontext(file) as packed:
        yield packed


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
