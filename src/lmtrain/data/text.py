"""Reads text files in UTF-8, block by block, so that neither a large file nor a long line has to fit into memory.

Two things are normalised, and nothing else: a byte order mark at the very start is dropped, and "\\r\\n" becomes "\\n". Only
"\\n" ends a line; a carriage return alone, U+2028, U+0085, \\x1c and NUL are characters like any other.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from lmtrain.data.files import check_file, listing, typed, unreadable
from lmtrain.data.packed import open_unpacked
from lmtrain.errors import DataError, EncodingError
from lmtrain.progress import amount, watched
from lmtrain.quantity import counted
from lmtrain.shell import one_line, quoted_for_shell

log = logging.getLogger("lmtrain")

BLOCK_BYTES = 1 << 20
PACKED_NAME = re.compile(r"\.(gz|bz2|xz|zst)\Z")
IS_JSONL = re.compile(r"\.jsonl(\.(gz|bz2|xz|zst))?\Z")
MAX_RECORD = 1 << 26  # characters of a line of JSON
LONG_BYTES = 64_000_000  # of a text that takes seconds to read, which is said beforehand

NOT_TEXT = (  # what a file begins with -> what it is, what to type
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8 {path} > text.txt"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 {path} > text.txt"),
    (rb"\x1f\x8b", "gzip", "gzip -dc {path} > text.txt"),
    (rb"PK\x03\x04", "a zip archive", "unzip {path}"),
    (rb"BZh[1-9]1AY&", "bzip2", "bzip2 -dc {path} > text.txt"),
    (rb"\x28\xb5\x2f\xfd", "zstandard", "zstd -dc {path} > text.txt"),
    (rb"\xfd7zXZ\x00", "xz", "xz -dc {path} > text.txt"),
    (rb"(?=[\s\S]{0,256}\x00)[\s\S]{257}ustar[\x00 ]", "a tar archive", "tar -xf {path}"),
    (rb"(?:[^\x00]\x00){16}", "UTF-16", "iconv -f UTF-16LE -t UTF-8 {path} > text.txt"),  # without a byte order mark
    (rb"(?:\x00[^\x00]){16}", "UTF-16", "iconv -f UTF-16BE -t UTF-8 {path} > text.txt"),
)
BEGINNING = 264  # bytes of a file that tell what it is

CONTROL = bytes([*range(9), 11, *range(14, 32), 127])  # C0 without tab, line feed, form feed and carriage return; and DEL


class Block(NamedTuple):
    """A stretch of a text, and the same in UTF-8."""

    text: str
    data: bytes

    @staticmethod
    def of(text: str) -> Block:
        return Block(text, text.encode())

    def between(self, start: int, end: int) -> Block | None:
        """Returns the characters `start` to `end` (exclusive); None if there are none."""
        if start == 0 and end >= len(self.text):
            return self
        return Block.of(text) if (text := self.text[start:end]) else None


@dataclass(frozen=True)
class TextFacts:
    """What is known of a file after it has been read once."""

    path: Path
    sha256: str  # of the normalised text
    num_chars: int
    num_bytes: int
    is_blank: bool  # empty, or nothing but whitespace
    has_eos: bool  # holds the literal `<eos>`
    field: str = "text"  # of each record of a .jsonl, which is its text
    notes: tuple[str, ...] = ()  # what is odd about it


def iter_text(path: Path, field: str = "text") -> Iterator[str]:
    """Yields the normalised text of a regular file, as `iter_blocks` does."""
    return (block.text for block in iter_blocks(path, field))


def iter_blocks(path: Path, field: str = "text") -> Iterator[Block]:
    """Yields the normalised text of a regular file in blocks of about BLOCK_BYTES, cut anywhere between two characters.

    A file whose name says so (.gz, .bz2, .xz, .zst) is unpacked. Of a .jsonl, the text is what each record has as `field`,
    with a line end behind it where it has none. Raises DataError if the file is missing, is not a regular file, cannot be
    read or unpacked, or is not UTF-8 (and says where).
    """
    if not IS_JSONL.search(path.name):
        yield from _iter_file(path)
        return
    texts: list[str] = []
    size = 0
    for text in iter_records(path, field):
        texts += [text] if text.endswith("\n") else [text, "\n"]
        size += len(text)
        if size >= BLOCK_BYTES:
            yield Block.of("".join(texts))
            texts, size = [], 0
    if texts:
        yield Block.of("".join(texts))


def iter_records(path: Path, field: str) -> Iterator[str]:
    """Yields the texts of the records of a .jsonl, one by one."""
    for number, line in enumerate(_lines((block.text for block in _iter_file(path)), path), 1):
        if line.strip():
            yield _text_of(line, path, number, field).replace("\r\n", "\n")


def _iter_file(path: Path) -> Iterator[Block]:
    check_file(path)
    if PACKED_NAME.search(path.name):
        with open_unpacked(path) as (packed, packer):
            if packer is None and path.stat().st_size:
                raise DataError(
                    f"{path} is not packed, though its name ends in {path.suffix}.", "Allowed is what that packer wrote.",
                    f"Type  mv {typed(path)} {typed(path.with_suffix(''))}  if it is plain text.",
                )  # fmt: skip
            yield from _iter_decoded(cast(BufferedIOBase, packed), path)
        return
    try:
        with path.open("rb") as file:
            yield from _iter_decoded(file, path)
    except OSError as error:
        raise unreadable(path, error) from None


def _lines(blocks: Iterator[str], path: Path) -> Iterator[str]:
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from lines
        if len(rest) > MAX_RECORD:
            raise DataError(
                f"{path} has a line of more than {MAX_RECORD:,} characters.", "A record of a .jsonl is one line.",
                "Write a record per line; of a JSON array, for example, with  jq -c '.[]'.",
            )  # fmt: skip
    yield rest


def _text_of(line: str, path: Path, number: int, field: str) -> str:
    """Returns the text of one record. DataError names the line and what the record has instead."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number:,}, is not JSON: {str(error)[:200]}.", "Each line of a .jsonl is a JSON object.",
            "Mend or remove the line, or rename the file to .txt if it is plain text.",
        ) from None  # fmt: skip
    text = record.get(field) if isinstance(record, dict) else None
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}, line {number:,}, holds U+{ord(text[error.start]):04X}, half a surrogate pair.",
                "Allowed is text that UTF-8 can write.", "Mend or remove the line.",
            ) from None  # fmt: skip
        return text
    if not isinstance(record, dict):
        found, remedy = f"is {one_line(line[:40])}, no object", f'Write {{"{field}": "..."}} in each line.'
    else:
        found = f"has no {field!r}" if field not in record else f"has {one_line(str(record[field])[:40])} as {field!r}, no text"
        found += f"; it has {listing(list(map(str, record)))}"
        renamed = f"jq -c {quoted_for_shell(f'{{{json.dumps(field)}: .NAME}}')} {typed(path)} > renamed.jsonl"
        remedy = (
            "Type data.field=NAME to train on another field. A trained model reads the one that it was trained on: for it, type"
            f"  {renamed}  and give that."
        )
    raise DataError(f"{path}, line {number:,}, {found}.", "Each record needs its text in the same field.", remedy)


def iter_decoded(file: BufferedIOBase, path: Path, *, at_once: bool = False) -> Iterator[str]:
    """Returns the same of an open file or pipe; `path` is its name in errors. `at_once`: what is there, without waiting for
    a block."""
    return (block.text for block in _iter_decoded(file, path, at_once=at_once))


def _iter_decoded(file: BufferedIOBase, path: Path, *, at_once: bool = False) -> Iterator[Block]:
    read = file.read1 if at_once else file.read
    position = line = 0
    held = b""  # the beginning of a character, or a "\r" whose "\n" may follow
    while True:
        try:
            block = read(BLOCK_BYTES)
        except OSError as error:
            if not error.strerror and PACKED_NAME.search(path.name):
                raise  # of the packer, which is named where the file was opened
            raise unreadable(path, error) from error
        data = held + block
        if position == 0:
            check_beginning(path, data[:BEGINNING])
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
        line += int(np.count_nonzero(np.frombuffer(data, np.uint8, used) == ord("\n"))) if used else 0
        if "\r" in text:
            yield Block(text.replace("\r\n", "\n"), data[:used].replace(b"\r\n", b"\n"))
        elif text:
            yield Block(text, data[:used])
        if not block:
            return


def with_line_ends(blocks: Iterable[str]) -> Iterator[str]:
    r"""Yields the same text in blocks whose lines end in "\n", where "\r\n" may have stood: as a file of it is read.

    For strings of a caller. Doing it twice would take a carriage return that belongs to the text: "\r\r\n" is read as "\r\n".
    """
    held = ""
    for block in blocks:
        text = held + block
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r" if held else "").replace("\r\n", "\n")
    if held:
        yield held


def iter_checked(facts: TextFacts, what: str = "Reading") -> Iterator[str]:
    """Returns the text of `iter_checked_blocks`."""
    return (block.text for block in iter_checked_blocks(facts, what))


def iter_checked_blocks(facts: TextFacts, what: str = "Reading") -> Iterator[Block]:
    """Yields the text that `scan` read, in blocks. Raises DataError at the end if the text has changed since then.

    `what` is done with it, in words for the bar of a long text.

    So a caller that reads to the end knows that it has read the text of that hash; size and time of a file cannot show it.
    """
    digest = hashlib.sha256()
    with watched(f"{what} {one_line(facts.path.name)}", facts.num_bytes, "B") as advance:
        for block in iter_blocks(facts.path, facts.field):
            digest.update(block.data)
            advance(len(block.data))
            yield block
    if digest.hexdigest() != facts.sha256:
        raise DataError(
            f"{facts.path} was changed while it was being read.",
            "A text must stay as it is until it is tokenised.",
            "Start again once nothing writes to it; or copy it first, and give the copy.",
        )


def scan(path: Path, field: str = "text") -> TextFacts:
    """Reads a file once for its hash and size. Notes control characters, and carriage returns that end no line."""
    digest = hashlib.sha256()
    num_chars = num_bytes = num_controls = num_returns = 0
    is_blank, has_eos, has_lines = True, False, False
    if (size := check_file(path)) >= LONG_BYTES:
        log.info("Reading %s, %sB, once to hash and count it.", one_line(str(path)), amount(size))
    with watched(f"Hashing and counting {one_line(path.name)}", size, "B") as advance:
        for text, data in iter_blocks(path, field):
            is_blank = is_blank and text.isspace()
            has_eos = has_eos or b"<eos>" in data
            has_lines = has_lines or b"\n" in data
            digest.update(data)
            num_chars, num_bytes = num_chars + len(text), num_bytes + len(data)
            if _has_controls(data):
                num_controls += len(data) - len(data.translate(None, CONTROL))
                num_returns += data.count(b"\r")
            advance(len(data))
    notes = []
    if num_controls:
        controls = counted(num_controls, "control character")
        notes.append(f"{path} contains {controls} (NUL and the like), kept like any other character. Is it text?")
    if num_returns:
        notes.append(note_on_returns(path, num_returns, has_lines=has_lines))
    return TextFacts(path, digest.hexdigest(), num_chars, num_bytes, is_blank, has_eos, field, tuple(notes))


def warned(facts: TextFacts) -> TextFacts:
    """Returns the same, and warns of what is odd about a file: one that is not trained on, whose notes nobody else says."""
    for note in facts.notes:
        log.warning("%s", note)
    return facts


def note_on_returns(path: Path, number: int, *, has_lines: bool) -> str:
    """Says that so many carriage returns of a file end no line. `has_lines` says whether it has a line feed at all."""
    note = f"{path} contains {counted(number, 'carriage return')} without a line feed, where no line ends."
    convert = f"tr '\\r' '\\n' < {typed(path)} > lines.txt"
    return note if has_lines else f"{note} So all of it is one line. To end lines there, type  {convert}  and give the result."


def _has_controls(data: bytes) -> bool:
    """Tells whether there are control characters, carriage returns or form feeds; that takes less time than counting them."""
    seen = np.frombuffer(data, np.uint8)
    num_usual = np.count_nonzero(seen == ord("\n")) + np.count_nonzero(seen == ord("\t"))
    return bool(np.count_nonzero(seen < ord(" ")) + np.count_nonzero(seen == 127) > num_usual)


def check_beginning(path: Path, beginning: bytes, encoding: str = "utf-8") -> None:
    """Raises DataError if a file begins like an archive or like text in another encoding."""
    is_of_two_bytes = codecs.lookup(encoding).name.startswith("utf-16")
    for magic, kind, command in NOT_TEXT:
        if re.match(magic, beginning) and not (is_of_two_bytes and kind == "UTF-16"):
            raise DataError(
                f"{path} is {kind}, not plain text.",
                "Allowed is text in UTF-8.",
                f"Type  {command.format(path=typed(path))}  and give the result.",
            )


def is_binary(data: bytes) -> bool:
    """Tells whether so many of the bytes are control characters (NUL and the like) that this is hardly text in any encoding."""
    return len(data) - len(data.translate(None, CONTROL)) > len(data) / 50


def _invalid(path: Path, data: bytes, place: int, offset: int, line: int) -> DataError:
    """Returns the error for the byte `data[place]`, which lies at `offset` of the file."""
    found = f"{path} is not UTF-8: byte 0x{data[place]:02X} at offset {offset:,}, in line {line:,}."
    if is_binary(data):
        return DataError(
            found, "Allowed is text in UTF-8, and this is hardly text: it is full of control characters.", "Give a text file."
        )
    return EncodingError(
        found,
        "Allowed is text in UTF-8.",
        f"Type  iconv -f LATIN1 -t UTF-8 {typed(path)} > text.txt  (or the encoding that it has) and give the result.",
    )
