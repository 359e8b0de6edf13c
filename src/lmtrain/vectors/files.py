r"""Files of word vectors: word2vec as text or binary, GloVe's text, npz. What a file holds tells its format, not its name.

    word2vec          "V E\n", then a line for each word: word, blank, E numbers; blanks between them
    word2vec-binary   "V E\n", then for each word: word, blank, E float32 (little end first), and with some programs "\n"
    glove             the lines of word2vec without the first one
    npz               arrays `words` [V] (text) and `matrix` [V, E] (numbers), as numpy.savez writes them

Read as well: what gzip, bzip2 or xz packed, a byte order mark, \r\n, tabs, blanks at the ends of lines, blank lines, and words
with blanks in them where it can be told which blank ends the word. Only "\n" ends a line and only blanks and tabs separate, as
words hold all else. A word that is there twice counts once, and is said. What is read was written by others: a count that is
claimed takes no memory, and every line is bounded in length.
"""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.files import typed
from lmtrain.data.packed import PACKERS, open_unpacked, packing, read_to_end
from lmtrain.data.text import BEGINNING, check_beginning
from lmtrain.errors import DataError, unwritable
from lmtrain.files.unfinished import new_file
from lmtrain.progress import Advance, watched
from lmtrain.quantity import counted
from lmtrain.shell import one_line
from lmtrain.vectors.binary import iter_binary
from lmtrain.vectors.table import Vectors

log = logging.getLogger("lmtrain")

FORMATS = ("word2vec", "word2vec-binary", "glove", "npz")
HEADER = re.compile(rb"[ \t]*(\d{1,15})[ \t]+(\d{1,15})[ \t\r]*\n?")
BOM = b"\xef\xbb\xbf"
MAX_LINE = 1 << 24  # bytes
ZIP = b"PK\x03\x04"
ALLOWED = "Allowed are files of word vectors: word2vec (text or binary), GloVe (text), or npz as lmtrain writes it."


class Row(NamedTuple):
    """A word with its vector, and where it stands ("line 7", "offset 1,234") for messages."""

    word: bytes
    numbers: Sequence[float] | NDArray[np.float32]
    place: str
    offset: int  # in bytes, of the word


def is_of_run(path: Path) -> bool:
    """Tells whether a path is that of a run or a checkpoint, also by `checkpoints/best`, and not that of a file of vectors."""
    return path.is_dir() or (path.name in ("best", "last") and path.absolute().parent.name == "checkpoints")


def read_vectors(path: Path, format: str | None = None) -> Vectors:
    """The vectors in a file of one of FORMATS; None: what its content says. See `lmtrain.Vectors.load`."""
    if format not in (None, *FORMATS):
        raise ValueError(f"format={format!r}; expected one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise DataError(
            f"{path} is a directory.", ALLOWED, f"Give a file; or, of a run, take lmtrain.load_vectors({str(path)!r})."
        )
    with watched(f"Reading {one_line(path.name)}", unit="vectors") as advance, open_unpacked(path) as (file, packer):
        found = format or _recognise(file, path)
        file.seek(0)
        if found == "npz":
            vectors = _read_npz(file, path)
        else:
            vectors = _collect(_counted(_iter_rows(file, path, found), advance), path)
        if packer:
            read_to_end(file)
    if num_zeros := int((~vectors.matrix.any(axis=1)).sum()):
        log.warning(
            "%s: %s zero, without a direction, and left out of comparisons.", path,
            "1 vector is" if num_zeros == 1 else f"{num_zeros:,} vectors are",
        )  # fmt: skip
    return vectors


def is_file_of_vectors(path: Path) -> bool:
    """Whether a file begins with a word and its vector, in one of FORMATS."""
    try:
        with open_unpacked(path) as (file, _):
            found = _recognise(file, path)
            file.seek(0)
            if found == "npz":
                return len(_read_npz(file, path)) > 0
            return len(next(_iter_rows(file, path, found)).numbers) > 1
    except (DataError, StopIteration):
        return False


def _counted(rows: Iterator[Row], advance: Advance) -> Iterator[Row]:
    for row in rows:
        yield row
        advance(1)


def _recognise(file: BinaryIO, path: Path) -> str:
    """The format by the first two lines."""
    first = file.readline(MAX_LINE)
    if first.startswith(ZIP):
        return "npz"
    check_beginning(path, first[:BEGINNING])
    if not HEADER.fullmatch(first.removeprefix(BOM)):
        return "glove"
    second = next(filter(bytes.strip, iter(lambda: file.readline(MAX_LINE), b"")), b"")
    fields = second.split()
    size = int(first.split()[-1])
    if not second or (len(fields) > size and all(map(_is_number, fields[-size:]))):
        return "word2vec"
    looks_like_text = min(second.strip(), default=0) >= 9 and any(map(_is_number, fields[1:]))  # a line with a mistake
    return "word2vec" if looks_like_text else "word2vec-binary"


def _iter_rows(file: BinaryIO, path: Path, format: str) -> Iterator[Row]:
    """The rows of a file, checked one by one and against the header."""
    if format == "glove":
        yield from _iter_text(file, path, None)
        return
    header = file.readline(MAX_LINE)
    sizes = HEADER.fullmatch(header.removeprefix(BOM))
    if not sizes:
        raise DataError(
            f"{path} does not begin with the two numbers of {format}, words and size of a vector, but with "
            f"{_shown(header)}.", ALLOWED, "Type --format glove for a text without them, or leave --format out.",
        )  # fmt: skip
    claimed, size = int(sizes[1]), int(sizes[2])
    if not size:
        raise DataError(f"The first line of {path} gives vectors of size 0.", ALLOWED, "Write the file again.")
    if format == "word2vec":
        rows = _iter_text(file, path, size, len(header))
    else:
        rows = (Row(*row) for row in iter_binary(file, path, claimed, size, len(header)))
    number = 0
    for number, row in enumerate(rows, 1):  # noqa: B007
        yield row
    if number not in (0, claimed):
        raise DataError(
            f"The first line of {path} announces {counted(claimed, 'word')}, and {number:,} are there.",
            "Both must be the same, since rows may have been lost.",
            f"Copy or write the file again; or, if all are there, put  {number} {size}  into its first line"
            + ("." if format == "word2vec-binary" else ", or take that line out and type --format glove."),
        )


def _iter_text(file: BinaryIO, path: Path, size: int | None, offset: int = 0) -> Iterator[Row]:
    """Rows of text; their size is that of the first one where it is not given."""
    line_number = 1 if size else 0
    while line := file.readline(MAX_LINE):
        line_number += 1
        start, offset = offset, offset + len(line)
        if len(line) == MAX_LINE:
            raise DataError(f"Line {line_number} of {path} has {MAX_LINE:,} bytes or more.", ALLOWED, "Give another file.")
        if start == 0:
            line = line.removeprefix(BOM)
        body = line.rstrip(b" \t\r\n")
        if not body:
            continue
        fields = body.replace(b"\t", b" ").split(b" ")
        place = f"line {line_number}"
        if size is None:
            size = _size_of_first(fields, path, place)
        word, numbers = _split(fields, size)
        try:
            values = [*map(float, numbers)]
            if b"_" in body and any(b"_" in number for number in numbers):  # which Python allows in a number
                raise ValueError
        except ValueError:
            wrong = next(field for field in numbers if not _is_number(field))
            raise DataError(
                f"{place.capitalize()} of {path} has {_shown(wrong)} where a number is needed.", ALLOWED,
                "Give a file of vectors, or mend the line.",
            ) from None  # fmt: skip
        if len(values) != size or (len(word) > 1 and _is_number(word[-1])):
            there = counted(len(values) + sum(map(_is_number, word[1:])), "number")
            raise DataError(
                f"{place.capitalize()} of {path} has {there} behind its word, instead of {size}.",
                "All vectors of a file have the same size.",
                f"Look at it with  sed -n {line_number}p {typed(path)}  , and copy or write the file again.",
            )
        yield Row(b" ".join(word), values, place, start + (len(line) - len(line.lstrip(b" \t"))))


def _size_of_first(fields: list[bytes], path: Path, place: str) -> int:
    """How many numbers end the first row of a file without a header."""
    filled = [field for field in fields if field]
    size = next((back for back, field in enumerate(reversed(filled[1:])) if not _is_number(field)), len(filled) - 1)
    if size < 1:
        problem = "has no number behind its word" if len(filled) == 1 else f"ends with {_shown(filled[-1])}, which is no number"
        raise DataError(f"{place.capitalize()} of {path} {problem}.", ALLOWED, "Give a file of vectors.")
    return size


def _split(fields: list[bytes], size: int) -> tuple[list[bytes], list[bytes]]:
    """The pieces of the word, and the numbers behind it; blanks more than one at a time separate numbers as one does."""
    numbers: list[bytes] = []
    end = len(fields)
    while end > 1 and len(numbers) < size:
        end -= 1
        if fields[end]:
            numbers.append(fields[end])
    while end > 1 and not fields[end - 1]:
        end -= 1
    word = fields[:end]
    while len(word) > 1 and not word[0]:
        word = word[1:]
    return word, numbers[::-1]


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def _collect(rows: Iterator[Row], path: Path) -> Vectors:
    """A table of the rows, each word once."""
    words: dict[str, None] = {}
    numbers, size, num_twice, twice = array("f"), 0, 0, ""
    for row in rows:
        try:
            word = row.word.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"The word in {row.place} of {path} is not UTF-8: byte 0x{row.word[error.start]:02X} at offset "
                f"{row.offset + error.start:,}.",
                "Allowed are words in UTF-8.",
                "Write the file again in UTF-8; a text can be converted with  iconv -f LATIN1 -t UTF-8.",
            ) from None
        with np.errstate(over="ignore"):
            values = np.asarray(row.numbers, np.float64).astype(np.float32)
        if not np.isfinite(values).all():
            wrong = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(
                f"The vector of {_shown(row.word)} in {row.place} of {path} holds {values[wrong]} (its number {wrong + 1}).",
                "Every number of a vector must be finite, in float32.",
                "Take the word out, or train the vectors again: a NaN spreads to whatever is computed with them.",
            )
        if word in words:
            num_twice, twice = num_twice + 1, twice or word
            continue
        words[word] = None
        numbers.frombytes(values.tobytes())
        size = len(values)
    if not words:
        raise DataError(f"{path} holds no word.", ALLOWED, "Give a file with at least one vector.")
    if num_twice:
        log.warning(
            "%s: %s; the first one is taken.", path,
            f"{one_line(repr(twice))} is there twice" if num_twice == 1
            else f"{num_twice:,} rows are of words that were there before, such as {one_line(repr(twice))}",
        )  # fmt: skip
    return Vectors(tuple(words), np.frombuffer(numbers, np.float32).reshape(len(words), size))


def _read_npz(file: BinaryIO, path: Path) -> Vectors:
    if (beginning := file.read(4)) != ZIP:
        raise DataError(
            f"{path} is no npz: it begins with {_shown(beginning)}.", ALLOWED, "Leave --format out: the content tells it."
        )
    file.seek(0)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = sorted(arrays.files)
            if not {"words", "matrix"} <= set(names):
                raise DataError(
                    f"{path} holds the arrays {', '.join(map(one_line, names[:8])) or '(none)'}.",
                    "An npz of vectors holds words [V] (text) and matrix [V, E] (numbers).",
                    "Write it with  numpy.savez(FILE, words=..., matrix=...).",
                )
            words, matrix = arrays["words"], arrays["matrix"]
    except (ValueError, KeyError, EOFError, OSError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as npz: {one_line(str(error))[:200] or type(error).__name__}.", ALLOWED,
            "Copy or write the file again.",
        ) from None  # fmt: skip
    if words.ndim != 1 or words.dtype.kind not in "US" or matrix.dtype.kind not in "fiu" or matrix.shape[:1] != words.shape:
        raise DataError(
            f"{path} holds words of shape {words.shape} ({words.dtype}) and a matrix of shape {matrix.shape} ({matrix.dtype}).",
            "Allowed are words [V], which are text, and a matrix [V, E] of numbers.",
            "Write it with  numpy.savez(FILE, words=numpy.array(words), matrix=matrix).",
        )
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise DataError(f"{path} holds a matrix of shape {matrix.shape}.", "Allowed is [V, E].", "Write the file again.")
    texts = words.tolist() if words.dtype.kind == "S" else [word.encode("utf-8", "surrogatepass") for word in words.tolist()]
    return _collect((Row(*row, f"row {n + 1}", 0) for n, row in enumerate(zip(texts, matrix, strict=True))), path)


def _shown(text: bytes) -> str:
    return one_line(repr(text[:60].decode("utf-8", "replace").rstrip("\r\n")))


# ---- writing


def format_of(name: str) -> str:
    """The format that the name of a new file asks for: .npz and .bin (also packed) have one, all others are word2vec's text."""
    path = Path(name.lower())
    suffix = Path(path.stem).suffix if path.suffix in PACKERS else path.suffix
    return {".npz": "npz", ".bin": "word2vec-binary"}.get(suffix, "word2vec")


def write_vectors(vectors: Vectors, path: Path, format: str) -> None:
    """Writes `vectors` so that the file appears whole or not at all; text is packed where the name ends in .gz, .bz2 or .xz.

    See `lmtrain.Vectors.save`.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}; expected one of {', '.join(FORMATS)}")
    _check(vectors, format)
    try:
        with new_file(path) as file, packing(file, "" if format == "npz" else path.name) as packed:
            if format == "npz":
                np.savez_compressed(packed, words=np.array(vectors.words, np.str_), matrix=vectors.matrix)
            else:
                packed.writelines(_iter_written(vectors, format))
    except OSError as error:
        raise unwritable(str(path), error) from error


def _iter_written(vectors: Vectors, format: str) -> Iterator[bytes]:
    if format != "glove":
        yield f"{len(vectors)} {vectors.matrix.shape[1]}\n".encode()
    for word, values in zip(vectors.words, vectors.matrix, strict=True):
        if format == "word2vec-binary":
            yield word.encode() + b" " + values.astype("<f4").tobytes() + b"\n"
        else:
            yield f"{word} {' '.join(values.astype(np.str_))}\n".encode()


def _check(vectors: Vectors, format: str) -> None:
    """Raises DataError for what would not come back as it is."""
    if not len(vectors) or not vectors.matrix.shape[1]:
        raise DataError("There is no vector to write.", "A file holds at least one word.", "Give vectors with a word.")
    if len(set(vectors.words)) < len(vectors):
        raise DataError("A word is there twice.", "A file holds each word once.", "Leave one of the two out.")
    if not np.isfinite(vectors.matrix).all():
        row = int(np.flatnonzero(~np.isfinite(vectors.matrix).all(axis=1))[0])
        raise DataError(
            f"The vector of {one_line(repr(vectors.words[row]))} holds a number that is not finite.",
            "Every number of a vector must be finite.", "Train the vectors again.",
        )  # fmt: skip
    for number, word in enumerate(vectors.words):
        whole = word.encode("utf-8", "replace").decode() == word and "\0" not in word[-1:]
        cut = format != "npz" and (not word or any(blank in word for blank in " \t\n\r"))
        if not whole or cut or (number == 0 and format == "glove" and word.startswith("\ufeff")):
            raise DataError(
                f"The word {one_line(repr(word[:60]))} (number {number + 1}) cannot stand in a file of {format}.",
                "There a word is text without spaces and line ends." if whole else "A word is text that UTF-8 can write.",
                "Type --format npz, which holds every text." if cut and whole else "Give another text for it.",
            )
