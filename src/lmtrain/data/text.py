"""Reads text files in UTF-8, block by block, so that neither a large file nor a long line has to fit into memory.

Two things are normalised, and nothing else: a byte order mark at the very start is dropped, and "\\r\\n" becomes "\\n". Only
"\\n" ends a line; a carriage return alone, U+2028, U+0085, \\x1c and NUL are characters like any other.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import logging
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from lmtrain.errors import DataError
from lmtrain.progress import amount, watched
from lmtrain.shell import one_line, quoted_for_shell

log = logging.getLogger("lmtrain")

BLOCK_BYTES = 1 << 20
LONG_BYTES = 64_000_000  # of a text that takes seconds to read, which is said beforehand
STANDARD_INPUT = Path("standard input")  # its name in errors

NOT_TEXT = (  # what a file begins with -> what it is, what to type
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8 {path} > text.txt"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 {path} > text.txt"),
    (rb"\x1f\x8b", "gzip", "gzip -dc {path} > text.txt"),
    (rb"PK\x03\x04", "a zip archive", "unzip {path}"),
    (rb"BZh[1-9]1AY&", "bzip2", "bzip2 -dc {path} > text.txt"),
    (rb"\x28\xb5\x2f\xfd", "zstandard", "zstd -dc {path} > text.txt"),
    (rb"\xfd7zXZ\x00", "xz", "xz -dc {path} > text.txt"),
)

CONTROL = bytes([*range(9), 11, *range(14, 32), 127])  # C0 without tab, line feed, form feed and carriage return; and DEL


@dataclass(frozen=True)
class TextFacts:
    """What is known of a file after it has been read once."""

    path: Path
    sha256: str  # of the normalised text
    num_chars: int
    num_bytes: int
    is_blank: bool  # empty, or nothing but whitespace
    has_eos: bool  # holds the literal `<eos>`


def iter_text(path: Path) -> Iterator[str]:
    """Yields the normalised text of a regular file in blocks of about BLOCK_BYTES, cut anywhere between two characters.

    Raises DataError if the file is missing, is not a regular file, cannot be read, or is not UTF-8 (and says where).
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            yield from iter_decoded(file, path)
    except OSError as error:
        raise unreadable(path, error) from None


def iter_decoded(file: BufferedIOBase, path: Path, *, at_once: bool = False) -> Iterator[str]:
    """The same of an open file or pipe; `path` is its name in errors. `at_once`: what is there, without waiting for a block."""
    read = file.read1 if at_once else file.read
    position = line = 0
    held = b""  # the beginning of a character, or a "\r" whose "\n" may follow
    while True:
        try:
            block = read(BLOCK_BYTES)
        except OSError as error:
            raise unreadable(path, error) from error
        data = held + block
        if position == 0:
            check_beginning(path, data[:8])
            if data.startswith(codecs.BOM_UTF8):
                data, position = data[3:], 3
        try:
            text, used = codecs.utf_8_decode(data, "strict", not block)
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            raise _invalid(path, data, error.start, position + error.start, line + 1) from None
        if block and text.endswith("\r"):
            text, used = text[:-1], used - 1
        held = data[used:]
        position += used
        line += data.count(b"\n", 0, used)
        if text:
            yield text.replace("\r\n", "\n") if "\r" in text else text
        if not block:
            return


def iter_checked(facts: TextFacts, what: str = "Reading") -> Iterator[str]:
    """Yields the text that `scan` read, in blocks. Raises DataError at the end if the text has changed since then.

    `what` is done with it, in words for the bar of a long text.

    So a caller that reads to the end knows that it has read the text of that hash; size and time of a file cannot show it.
    """
    digest = hashlib.sha256()
    with watched(f"{what} {one_line(facts.path.name)}", facts.num_bytes, "B") as advance:
        for block in iter_text(facts.path):
            data = block.encode()
            digest.update(data)
            advance(len(data))
            yield block
    if digest.hexdigest() != facts.sha256:
        raise DataError(
            f"{facts.path} was changed while it was being read.",
            "A text must stay as it is until it is tokenised.",
            "Start again once nothing writes to it; or copy it first, and give the copy.",
        )


def iter_passage(facts: TextFacts, start: int, end: int, what: str = "Reading") -> Iterator[str]:
    """Yields the characters `start` to `end` (exclusive) of the text, in blocks. The whole text is read and checked."""
    position = 0
    for block in iter_checked(facts, what):
        if part := block[max(start - position, 0) : max(end - position, 0)]:
            yield part
        position += len(block)


def scan(path: Path) -> TextFacts:
    """Reads a file once for its hash and size. Warns of control characters, and of carriage returns that end no line."""
    digest = hashlib.sha256()
    num_chars = num_bytes = num_controls = num_returns = 0
    is_blank, has_eos = True, False
    if (size := check_file(path)) >= LONG_BYTES:
        log.info("Reading %s, %sB, once to hash and count it.", one_line(str(path)), amount(size))
    with watched(f"Hashing and counting {one_line(path.name)}", size, "B") as advance:
        for block in iter_text(path):
            data = block.encode()
            is_blank = is_blank and block.isspace()
            has_eos = has_eos or b"<eos>" in data
            digest.update(data)
            num_chars, num_bytes = num_chars + len(block), num_bytes + len(data)
            num_controls += len(data) - len(data.translate(None, CONTROL))
            num_returns += data.count(b"\r")
            advance(len(data))
    if num_controls:
        controls = _counted(num_controls, "control character")
        log.warning("%s contains %s (NUL and the like), kept like any other character. Is it text?", path, controls)
    if num_returns:
        returns = _counted(num_returns, "carriage return")
        log.warning("%s contains %s without a line feed, where no line ends.", path, returns)
    return TextFacts(path, digest.hexdigest(), num_chars, num_bytes, is_blank, has_eos)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def check_file(path: Path) -> int:
    """The size of the regular file `path` in bytes. Raises DataError where it is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(mode := found.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise DataError(
            f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}.",
            "Text is read from regular files, because it is read more than once.",
            "Write the text to a file first and name that file.",
        )
    return found.st_size


def missing(path: Path) -> DataError:
    """Returns the error for a path that does not exist, which says where it was looked for and what is there instead."""
    absolute = Path.cwd() / path
    parent = next(parent for parent in absolute.parents if parent.is_dir())
    try:
        names = sorted(entry.name for entry in parent.iterdir())
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
        f"Relative paths start at the current directory, {Path.cwd()}. Give a path that exists.",
    )


def unreadable(path: Path, error: OSError | ValueError) -> DataError:
    """Returns the error for a path that the operating system refuses to read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    remedy = f"Type  chmod u+r {_typed(path)}" if isinstance(error, PermissionError) else "Check the path and the disk"
    return DataError(f"{path} cannot be read: {reason}.", "A text file must be readable.", f"{remedy}, or give another file.")


def check_beginning(path: Path, beginning: bytes) -> None:
    """Raises DataError if a file begins like an archive or like text in another encoding."""
    for magic, kind, command in NOT_TEXT:
        if re.match(magic, beginning):
            raise DataError(
                f"{path} is {kind}, not plain text.",
                "Allowed is text in UTF-8.",
                f"Type  {command.format(path=_typed(path))}  and give the result.",
            )


def is_binary(data: bytes) -> bool:
    """Whether so many of the bytes are control characters (NUL and the like) that this is hardly text in any encoding."""
    return len(data) - len(data.translate(None, CONTROL)) > len(data) / 50


def _invalid(path: Path, data: bytes, place: int, offset: int, line: int) -> DataError:
    """The error for the byte `data[place]`, which lies at `offset` of the file."""
    found = f"{path} is not UTF-8: byte 0x{data[place]:02X} at offset {offset:,}, in line {line:,}."
    if is_binary(data):
        return DataError(
            found, "Allowed is text in UTF-8, and this is hardly text: it is full of control characters.", "Give a text file."
        )
    return DataError(
        found,
        "Allowed is text in UTF-8.",
        f"Type  iconv -f LATIN1 -t UTF-8 {_typed(path)} > text.txt  (or the encoding that it has) and give the result.",
    )


def _typed(path: Path) -> str:
    """Returns a path as one types it after a command."""
    name = str(path)
    return "-" if path == STANDARD_INPUT else quoted_for_shell(f"./{name}" if name.startswith("-") else name)


def listing(names: list[str], most: int = 8) -> str:
    """Lists the first few names of a directory, and says how many more there are."""
    return (", ".join(map(one_line, names[:most])) or "nothing") + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
