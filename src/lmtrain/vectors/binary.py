"""The rows of word2vec's binary format, whose words end where their first blank is; except that some words have blanks.

A row is a word, a blank and E float32. Programs write them with a line end behind each (word2vec) or without (gensim), and
phrases such as "new york" with a blank that looks like the end of the word. So of the blanks behind a row's beginning the first
one is taken behind which E usable numbers follow, and behind those the end of the file or the beginning of another word.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import DataError

MAX_WORD = 1 << 16  # bytes
SMALLEST, LARGEST = 1e-12, 1e12  # a number beyond them is text that was read as one, if there is another way to read it

Data = bytes | mmap.mmap


def iter_binary(
    file: BinaryIO, path: Path, claimed: int, size: int, start: int
) -> Iterator[tuple[bytes, NDArray[np.float32], str, int]]:
    """Words, numbers, places for messages and offsets of the rows from the offset `start` on, to the end of the file.

    Raises DataError where the file ends within one of the `claimed` rows, or holds no word where one must begin.
    """
    data = _map(file)
    ends_lines: bool | None = None  # whether a line end stands behind each row
    place, number = start, 0
    while place < len(data):
        if number and ends_lines is None:
            ends_lines = data[place : place + 1] == b"\n"
        if ends_lines or number == 0:
            place += data[place : place + 1] == b"\n"
        if place >= len(data) or (number >= claimed and not data[place : place + MAX_WORD].strip()):
            return
        number += 1
        blank = _end_of_word(data, place, size, ends_lines)
        if blank is None or blank + 1 + 4 * size > len(data):
            raise _truncated(path, number, claimed, place, size, data, blank)
        numbers = np.frombuffer(data[blank + 1 : blank + 1 + 4 * size], "<f4")
        yield data[place:blank], numbers, f"row {number:,} (offset {place:,})", place
        place = blank + 1 + 4 * size


def _truncated(path: Path, number: int, claimed: int, place: int, size: int, data: Data, blank: int | None) -> DataError:
    if blank is None and len(data) - place > MAX_WORD:
        problem = f"{path} holds no word at offset {place:,}, where row {number:,} must begin."
    elif number > claimed:
        problem = f"{path} goes on behind the last of its {claimed:,} rows: {len(data) - place:,} bytes at offset {place:,}."
    else:
        there = len(data) - place
        problem = f"{path} ends within row {number:,} of {claimed:,}: at offset {place:,} there are {there:,} bytes more."
    return DataError(
        problem, f"In word2vec's binary format, a row is a word, a blank and {size} numbers of 4 bytes.",
        "Copy or write the file again: it was cut off or changed; or, if it is text, type --format word2vec.",
    )  # fmt: skip


def _map(file: BinaryIO) -> Data:
    """The whole file: mapped where it is one on the disk, so that it takes no memory; else (unpacked on the way) read."""
    if isinstance(file, io.BufferedReader):
        with suppress(OSError, ValueError):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.seek(0)
    return file.read()


def _end_of_word(data: Data, place: int, size: int, ends_lines: bool | None) -> int | None:
    """Where the blank behind the word at `place` is; the first one where none is better; None where there is none at all."""
    first = blank = data.find(b" ", place, place + MAX_WORD)
    if first < 0:
        return None
    while blank >= 0 and (blank == first or _is_text(data[place:blank])):
        end = blank + 1 + 4 * size
        if end <= len(data):
            numbers = np.frombuffer(data[blank + 1 : end], "<f4")
            sizes = np.abs(numbers)
            usable = ((sizes >= SMALLEST) & (sizes <= LARGEST)) | (sizes == 0)
            if usable.all() and _may_begin(data, end, ends_lines):
                return blank
        blank = data.find(b" ", blank + 1, place + MAX_WORD)
    return first


def _may_begin(data: Data, place: int, ends_lines: bool | None) -> bool:
    """Whether the file ends at `place`, or another row may begin there."""
    if place == len(data):
        return True
    line_end = data[place : place + 1] == b"\n"
    if ends_lines is not None and line_end != ends_lines:
        return False
    place += line_end
    blank = data.find(b" ", place, place + MAX_WORD)
    return place == len(data) or (blank > place and _is_text(data[place:blank]))


def _is_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return min(word, default=0) >= 32 and 127 not in word
