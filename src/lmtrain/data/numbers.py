"""Texts of characters or words as numbers, in one reading: their vocabulary is known when the training text has been read.

    "to be or not to be\n"  ->  numbers as words come    1 2 3 4 1 2 0     to a file without a name in the cache
                            ->  how often each occurs    1 2 2 1 1         those of the training text make the vocabulary
                            ->  ids, looked up in a table of all numbers   2 1 4 3 2 1 0

A character's number is its code point. A shard that is kept in the cache has numbers too: the ids of its own vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.characters import iter_normalized, spaced
from lmtrain.data.kinds import Kind
from lmtrain.data.lookup import WordLookup
from lmtrain.data.overlap import merged
from lmtrain.data.passages import Passage, Tally, read_passages
from lmtrain.data.text import Block
from lmtrain.data.token_cache import SIZES, CachedSplit, CacheWriter, hash_json, ids_dtype
from lmtrain.data.tokenizer import Tokenizer, reversed_blocks
from lmtrain.data.vocabulary import EOS, UNK, check_types, code_points, utf8, whole_words
from lmtrain.errors import ResourceError

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Numbered:
    """A passage by numbers of its own."""

    split: CachedSplit  # of which the ids are not used
    counts: NDArray[np.int64]  # how often each number occurs
    name: Callable[[int], str]  # the token of a number
    blocks: Callable[[], Iterator[Numbers]]

    def tokens(self) -> dict[int, str]:
        """Returns the tokens of the numbers that occur."""
        return {number: self.name(number) for number in np.flatnonzero(self.counts).tolist()}


def count_tokens(passages: Iterable[Numbered]) -> dict[str, int]:
    """Says how often each character or word occurs in these passages together."""
    totals: dict[str, int] = {}
    for passage in passages:
        for number, token in passage.tokens().items():
            totals[token] = totals.get(token, 0) + int(passage.counts[number])
    return totals


def write_numbered(cache: CacheWriter, found: Numbered | Iterable[Numbered], tokenizer: Tokenizer) -> CachedSplit:
    """Writes the ids of a passage, or of several one after the other, and returns what was written."""
    ids = {token: token_id for token_id, token in enumerate(tokenizer.tokens)}
    if isinstance(found, Numbered):
        return _write(cache, found, tokenizer, ids)
    splits = [_write(cache, passage, tokenizer, ids) for passage in found]
    sizes = {name: sum(split.sizes[name] for split in splits) for name in SIZES}
    sha256 = hash_json([split.sha256 for split in splits])
    return CachedSplit(np.empty(0), merged([split.lines for split in splits]), sizes, sha256)


def _write(cache: CacheWriter, passage: Numbered, tokenizer: Tokenizer, ids: dict[str, int]) -> CachedSplit:
    """Returns the same of one passage. Tokenizers without a list of tokens have numbered it themselves."""
    if not ids:
        for block in passage.blocks():
            cache.write_ids(block)
        return passage.split
    unk, tokens = ids[UNK], passage.tokens()
    table = np.full(len(passage.counts), unk, ids_dtype(tokenizer))
    table[list(tokens)] = [ids.get(token, unk) for token in tokens.values()]
    for block in passage.blocks():
        cache.write_ids(np.take(table, block, mode="clip"))
    is_unknown = table == unk
    sizes = {**passage.split.sizes, "num_unk": int(passage.counts[is_unknown].sum()), "spelling_micronats": 0}
    if tokenizer.rare is not None:
        unknown = np.flatnonzero(is_unknown & (passage.counts > 0)).tolist()
        sizes["spelling_micronats"] = sum(
            tokenizer.spelling_of(tokens[number]) * int(passage.counts[number]) for number in unknown
        )
    return replace(passage.split, sizes=sizes)


def add_counts(totals: NDArray[np.int64], numbers: Numbers) -> NDArray[np.int64]:
    """`totals` and how often each number occurs, in as many entries as that takes."""
    highest = int(numbers.max(initial=0))
    if highest >= len(totals):
        totals = np.concatenate([totals, np.zeros(max(highest + 1 - len(totals), len(totals)), np.int64)])
    if highest < 4 * len(numbers):
        counts = np.bincount(numbers)
        totals[: len(counts)] += counts
    else:
        found, counts = np.unique(numbers, return_counts=True)
        totals[found] += counts
    return totals


# ---- numbering


class _Spool:
    """Arrays in a file without a name, between two readings of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0

    def add(self, array: Numbers) -> tuple[int, np.dtype[Any], int]:
        """Where the array is."""
        place = (self._size, array.dtype, len(array))
        self._file.write(np.ascontiguousarray(array).data)
        self._size += array.nbytes
        return place

    def read(self, places: Sequence[tuple[int, np.dtype[Any], int]]) -> Iterator[Numbers]:
        self._file.flush()
        for start, dtype, length in places:
            self._file.seek(start)
            yield np.frombuffer(self._file.read(length * dtype.itemsize), dtype)


class Numbering:
    """Numbers the characters or words of passages, in the order in which they come."""

    unk_id: int | None = None

    def __init__(self, kind: Kind, normalize: str, reverse: bool, separators: str) -> None:
        self.kind, self.normalize, self.reverse = kind, normalize, reverse
        self._units: _Words | _Chars = _Words(separators) if kind.has_words else _Chars()

    def read(self, blocks: Iterable[str]) -> Iterator[str]:
        """Returns the text in the form in which it is to be read."""
        return iter_normalized(blocks, self.normalize)

    def encode_spelt(self, blocks: Iterable[str]) -> Iterator[tuple[Numbers, int]]:
        """Returns the numbers of one text that comes in blocks cut anywhere; nothing costs anything."""
        numbers = ((found, 0) for found in self._units.numbers(blocks))
        return reversed_blocks(numbers, self._units.end) if self.reverse else numbers

    def number(self, blocks: Iterator[Block], spool: _Spool) -> Numbered:
        """One passage, whose numbers go to the spool."""
        tally, counts = Tally(), np.zeros(1, np.int64)
        places = []
        for numbers in tally.encode(blocks, self):
            counts = add_counts(counts, numbers)
            places.append(spool.add(numbers))
        return Numbered(tally.cached(), counts, self._units.name, lambda: spool.read(places))


@contextmanager
def numbered(passages: Sequence[Passage], numbering: Numbering, directory: Path) -> Iterator[list[Numbered]]:
    """Yields the passages by numbers, which are kept in `directory` meanwhile. Raises ResourceError if it has no room for
    them."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            spool = _Spool(file)
            yield [numbering.number(blocks, spool) for _, blocks in read_passages(passages, numbering.kind)]
    except OSError as error:
        raise ResourceError(
            f"{directory} cannot be written: {error.strerror or error}.",
            "The cache needs a directory that can be written, and while a text is read up to six bytes per token.",
            "Type data.cache_dir=DIRECTORY with one that has room.",
        ) from None


class _Chars:
    """Code points, in the smallest type that holds those of a block."""

    end = ord("\n")

    def name(self, number: int) -> str:
        return chr(number)

    def numbers(self, blocks: Iterable[str]) -> Iterator[Numbers]:
        for block in blocks:
            try:
                yield np.frombuffer(block.encode("latin-1"), np.uint8)
            except UnicodeEncodeError:
                codes = code_points(block)
                yield codes.astype(np.uint16) if codes.max() < 1 << 16 else codes


class _Words:
    """Words in the order in which they come, behind the end of a line."""

    end = 0

    def __init__(self, separators: str) -> None:
        self._separators = separators
        self._found = _Found({EOS.encode(): self.end})
        self._names: list[bytes] = []
        self._lookup = WordLookup(self._found)

    def name(self, number: int) -> str:
        if len(self._names) < len(self._found):
            self._names = list(self._found)
        return self._names[number].decode()

    def numbers(self, blocks: Iterable[str]) -> Iterator[Numbers]:
        for block in whole_words(spaced(block, self._separators) for block in blocks):
            yield self._lookup.of(utf8(block))
            check_types(self._found)


class _Found(dict[bytes, int]):
    """Numbers words in the order in which they are first asked for."""

    def __missing__(self, word: bytes) -> int:
        self[word] = number = len(self)
        return number
