"""Passages of files: which of them make up a split, one reading for all that are in one file, what is measured on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.kinds import Kind
from lmtrain.data.overlap import LineHashes
from lmtrain.data.text import Block, TextFacts, iter_checked_blocks
from lmtrain.data.token_cache import SIZES, CachedSplit
from lmtrain.data.vocabulary import WHITESPACE

WINDOW = 1 << 16  # characters before and after a cut among which a line end is looked for

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Passage:
    """The characters `start` to `end` of a file: the text of one split, or what of it is in this file."""

    facts: TextFacts
    start: int
    end: int
    ends_line: bool = False  # whether another file follows, so that a last line ends for every tokenizer


def whole(facts: Sequence[TextFacts]) -> list[Passage]:
    """Returns the passages of a split that consists of these files."""
    return [Passage(fact, 0, fact.num_chars, number < len(facts)) for number, fact in enumerate(facts, 1)]


# ---- cutting a text into splits


def cut(facts: Sequence[TextFacts], kind: Kind, fractions: Sequence[str]) -> list[list[Passage]]:
    """Returns the passages of each split of one text, which may be in several files."""
    valid, test = map(Fraction, fractions)
    sizes = [fact.num_bytes if kind.cut_at == "byte" else fact.num_chars for fact in facts]
    cuts = []
    for share in (1 - valid - test, 1 - test):
        place, number = int(sum(sizes) * share), 0
        while number < len(facts) - 1 and place >= sizes[number]:
            place, number = place - sizes[number], number + 1
        cuts.append((number, place))
    found = [
        (number, place)
        for number, group in groupby(cuts, key=lambda cut: cut[0])
        for place in _cuts_near(facts[number], [place for _, place in group], kind)
    ]
    ends = [*found, (len(facts) - 1, facts[-1].num_chars)] if test else found
    splits, begin = [], (0, 0)
    for end in ends:
        split = []
        for number in range(begin[0], end[0] + 1):
            start = begin[1] if number == begin[0] else 0
            stop = end[1] if number == end[0] else facts[number].num_chars
            if stop > start or len(facts) == 1:
                split.append(Passage(facts[number], start, stop))
        splits.append([replace(passage, ends_line=passage is not split[-1]) for passage in split])
        begin = end
    return splits


def _cuts_near(fact: TextFacts, places: list[int], kind: Kind) -> list[int]:
    """Where the text is cut instead of these places: in characters, at what `kind` may be cut at. One reading for all."""
    if kind.cut_at == "char":
        return places
    if kind.cut_at == "byte":
        return _chars_in(fact, places)
    windows: list[list[str]] = [[] for _ in places]
    position = 0
    for block in iter_checked_blocks(fact):
        for place, window in zip(places, windows, strict=True):
            window.append(block.text[max(place - WINDOW - position, 0) : max(place + WINDOW - position, 0)])
        position += len(block.text)
    return [
        place if place == fact.num_chars else _line_end_near(place, "".join(window), max(place - WINDOW, 0))
        for place, window in zip(places, windows, strict=True)
    ]


def _chars_in(fact: TextFacts, places: list[int]) -> list[int]:
    """Says how many whole characters the first `place` bytes of the text hold."""
    found, num_bytes = [0 for _ in places], 0
    for block in iter_checked_blocks(fact):
        for number, place in enumerate(places):
            if num_bytes + len(block.data) <= place:
                found[number] += len(block.text)
            elif num_bytes < place:
                found[number] += len(block.data[: place - num_bytes].decode("utf-8", "ignore"))
        num_bytes += len(block.data)
    return found


def _line_end_near(place: int, window: str, start: int) -> int:
    """Returns the place behind the nearest "\\n" in the window, which begins at `start`, else behind whitespace, else
    `place`."""
    for marks in ("\n", WHITESPACE):
        before = [window.rfind(mark, 0, place - start) for mark in marks]
        after = [window.find(mark, place - start) for mark in marks]
        ends = [start + found + 1 for found in before + after if found >= 0]
        if ends:
            return min(ends, key=lambda end: abs(end - place))
    return place


# ---- reading


def read_passages(
    passages: Iterable[Passage], kind: Kind, what: str = "Tokenising"
) -> Iterator[tuple[Passage, Iterator[Block]]]:
    """Yields each passage with its text, with which `what` is done. A text must be read to its end before the next one.

    Passages that follow each other in one file are read in one go. A text has "\\n" at its end where its last line must end.
    """
    for facts, group in groupby(passages, key=lambda passage: passage.facts):
        reading, ordered = _Reading(iter_checked_blocks(facts, what)), list(group)
        for passage in ordered:
            blocks = reading.between(passage.start, passage.end, to_end=passage is ordered[-1])
            yield passage, _ended(blocks, ends_line=kind.ends_last_line or passage.ends_line)


class _Reading:
    """A text that is read once, passage by passage."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._held: Block | None = None  # what was read and is not done with
        self._position = 0  # of its beginning

    def between(self, start: int, end: int, *, to_end: bool) -> Iterator[Block]:
        """Yields the text from `start` to `end`; `to_end`: what is behind is read as well, which checks that the text is
        the same."""
        while to_end or self._position < end:
            if self._held is None and (found := next(self._blocks, None)) is not None:
                self._held = found
            if (held := self._held) is None:
                return
            position, size = self._position, len(held.text)
            if part := held.between(max(start - position, 0), max(end - position, 0)):
                yield part
            if position + size > end and not to_end:
                return
            self._position, self._held = position + size, None


def _ended(blocks: Iterator[Block], *, ends_line: bool) -> Iterator[Block]:
    block = None
    for block in blocks:
        yield block
    if ends_line and block is not None and not block.data.endswith(b"\n"):
        yield Block("\n", b"\n")


class Encoder(Protocol):
    """What turns a text into numbers: a tokenizer, or what numbers its characters or words."""

    unk_id: int | None

    @property
    def kind(self) -> Kind: ...

    @property
    def normalize(self) -> str: ...

    @property
    def reverse(self) -> bool: ...

    def read(self, blocks: Iterable[str]) -> Iterator[str]: ...

    def encode_spelt(self, blocks: Iterable[str]) -> Iterator[tuple[NDArray[Any], int]]: ...


class Tally:
    """Encodes a passage and keeps its sizes, its hash and those of its lines on the way."""

    def __init__(self) -> None:
        self.num_tokens = self.num_chars = self.num_bytes = self.num_lines = self.num_unk = self.spelling_micronats = 0
        self._digest, self._lines = hashlib.sha256(), LineHashes()

    def encode(self, blocks: Iterator[Block], encoder: Encoder) -> Iterator[NDArray[Any]]:
        if encoder.normalize != "none":
            blocks = map(Block.of, encoder.read(block.text for block in blocks))
        if encoder.kind.is_unit and encoder.kind.unit == "byte" and not encoder.reverse:  # whose ids are here already
            for _, data in self._measured(blocks):
                self.num_tokens += len(data)
                yield np.frombuffer(data, np.uint8)
            return
        for ids, micronats in encoder.encode_spelt(block.text for block in self._measured(blocks)):
            self.spelling_micronats += micronats
            self.num_tokens += len(ids)
            self.num_unk += 0 if encoder.unk_id is None else int(np.count_nonzero(ids == encoder.unk_id))
            yield ids

    def _measured(self, blocks: Iterator[Block]) -> Iterator[Block]:
        ends_line = True
        for text, data in blocks:
            self._digest.update(data)
            self._lines.add(data)
            self.num_chars += len(text)
            self.num_bytes += len(data)
            self.num_lines += data.count(b"\n")
            ends_line = data.endswith(b"\n")
            yield Block(text, data)
        self.num_lines += not ends_line

    def cached(self, ids: NDArray[Any] | None = None) -> CachedSplit:
        """Returns the whole passage, whose ids are `ids`, or are kept elsewhere."""
        lines = self._lines.finish()
        sizes = {name: getattr(self if hasattr(self, name) else self._lines, name) for name in SIZES}
        return CachedSplit(np.empty(0) if ids is None else ids, lines, sizes, self._digest.hexdigest())
