"""A text of many shards, tokenised shard by shard in parallel; each is kept, so that a changed one is redone alone.

    shard  ->  ids by the shard's own vocabulary, with how often each occurs  ->  <cache_dir>/<key>.ids, <key>.json
    the counts of the training shards together  ->  the vocabulary  ->  the ids of each shard renumbered

So what is kept of a shard of characters or words depends on that shard alone. Bytes, `bpe` and `file` have one vocabulary for
all shards; where it changes, all of them are redone. Memory holds the vocabularies and a few megabytes for each process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.kinds import Kind
from lmtrain.data.overlap import LineHashes, merged
from lmtrain.data.text import TextFacts, iter_passage
from lmtrain.data.token_cache import PART, SIZES, CachedSplit, CacheWriter, hash_json, read_cache, write_cache
from lmtrain.data.tokenizer import FORMAT as TOKENIZER_FORMAT
from lmtrain.data.tokenizer import Ids, Tokenizer, learn_tokenizer
from lmtrain.data.vocabulary import UNK
from lmtrain.data.workers import Call, run_all

FORMAT = 1  # of a part; a change makes what was cached stale
BLOCK = 1 << 20  # ids that are renumbered at a time


@dataclass(frozen=True)
class Passage:
    """The characters `start` to `end` of a file: the text of one split."""

    facts: TextFacts
    start: int
    end: int
    ends_line: bool = False  # whether another file follows, so that a last line ends for every tokenizer

    def blocks(self, kind: Kind, what: str = "Tokenising") -> Iterator[str]:
        """The text, with which `what` is done, with "\\n" at its end where a last line must end."""
        block = ""
        for block in iter_passage(self.facts, self.start, self.end, what):
            yield block
        if (kind.ends_last_line or self.ends_line) and block and not block.endswith("\n"):
            yield "\n"


class Tally:
    """Encodes a passage and keeps its sizes, its hash and those of its lines on the way."""

    def __init__(self) -> None:
        self.num_tokens = self.num_chars = self.num_bytes = self.num_lines = self.num_unk = self.spelling_micronats = 0
        self._digest, self._lines = hashlib.sha256(), LineHashes()

    def encode(self, passage: Passage, tokenizer: Tokenizer) -> Iterator[Ids]:
        for ids, micronats in tokenizer.encode_spelt(self._measured(tokenizer.read(passage.blocks(tokenizer.kind)))):
            self.spelling_micronats += micronats
            self.num_tokens += len(ids)
            self.num_unk += 0 if tokenizer.unk_id is None else int(np.count_nonzero(ids == tokenizer.unk_id))
            yield ids

    def _measured(self, blocks: Iterator[str]) -> Iterator[str]:
        block = "\n"
        for block in blocks:
            data = block.encode()
            self._digest.update(data)
            self._lines.add(block)
            self.num_chars += len(block)
            self.num_bytes += len(data)
            self.num_lines += block.count("\n")
            yield block
        self.num_lines += not block.endswith("\n")

    def cached(self, ids: NDArray[Any]) -> CachedSplit:
        """The whole passage, whose ids are `ids`."""
        lines = self._lines.finish()
        sizes = {name: getattr(self if hasattr(self, name) else self._lines, name) for name in SIZES}
        return CachedSplit(ids, lines, sizes, self._digest.hexdigest())


@dataclass(frozen=True)
class Reading:
    """How parts are tokenised: each by a vocabulary of its own, or all by one `tokenizer`."""

    kind: Kind
    normalize: str
    reverse: bool
    separators: str
    tokenizer: Tokenizer | None

    def key(self) -> list[Any]:
        own = [self.kind.name, self.normalize, self.reverse, self.separators]
        return own if self.tokenizer is None else [*own, self.tokenizer.fingerprint()]


@dataclass(frozen=True)
class Part:
    """One tokenised passage in the cache."""

    base: Path
    recipe: list[Any]

    def open(self) -> tuple[Tokenizer, CachedSplit]:
        tokenizer, splits = read_cache(self.base, self.recipe)
        return tokenizer, splits[PART]


def tokenise_all(passages: Sequence[Passage], reading: Reading, cache_dir: Path, workers: int) -> list[Part]:
    """Each passage in the cache; those that are not yet there are tokenised in so many processes."""
    parts: list[Part] = []
    calls: dict[Path, Call] = {}
    for passage in passages:
        facts = passage.facts
        place = [facts.sha256, passage.start, passage.end, passage.ends_line]
        recipe = ["part", FORMAT, TOKENIZER_FORMAT, reading.key(), place]
        part = Part(cache_dir / hash_json(recipe)[:32], recipe)
        parts.append(part)
        if part.base not in calls and not _is_usable(part):
            size = facts.num_bytes * (passage.end - passage.start) // max(1, facts.num_chars)
            calls[part.base] = Call(tokenise_part, (part, passage, reading), size)
    run_all(list(calls.values()), "Tokenising shards", workers)
    return parts


def _is_usable(part: Part) -> bool:
    try:
        part.open()
    except (OSError, ValueError):
        return False
    return True


def tokenise_part(part: Part, passage: Passage, reading: Reading) -> None:
    """Writes one passage to the cache."""
    tokenizer = reading.tokenizer
    if tokenizer is None:
        ways: dict[str, Any] = {"separators": reading.separators} if reading.kind.has_words else {}
        blocks = passage.blocks(reading.kind, "Counting")
        tokenizer = learn_tokenizer(reading.kind.name, blocks, normalize=reading.normalize, reverse=reading.reverse, **ways)

    def fill(cache: CacheWriter) -> None:
        tally = Tally()
        for ids in tally.encode(passage, tokenizer):
            cache.write_ids(ids)
        cache.end_split(PART, tally.cached(np.empty(0)))

    write_cache(part.base, part.recipe, tokenizer, fill)


def count_parts(parts: Sequence[Part]) -> dict[str, int]:
    """How often each character or word occurs in these parts together."""
    counts: dict[str, int] = {}
    for part in parts:
        tokenizer, split = part.open()
        for token, count in zip(tokenizer.tokens, _counts(split, tokenizer).tolist(), strict=True):
            if count:
                counts[token] = counts.get(token, 0) + count
    return counts


def _counts(split: CachedSplit, tokenizer: Tokenizer) -> NDArray[np.int64]:
    totals = np.zeros(tokenizer.vocab_size, np.int64)
    for start in range(0, len(split.ids), BLOCK):
        totals += np.bincount(split.ids[start : start + BLOCK], minlength=len(totals))
    return totals


def write_parts(cache: CacheWriter, parts: Sequence[Part], tokenizer: Tokenizer) -> CachedSplit:
    """Writes the ids of all parts, one after the other, and returns what they are together."""
    found: list[tuple[CachedSplit, int, int]] = []
    numbers = {token: number for number, token in enumerate(tokenizer.tokens)}
    for part in parts:
        own, split = part.open()
        table = np.arange(own.vocab_size, dtype=np.int32)
        num_unk = micronats = 0
        if numbers:
            unk = numbers[UNK]
            table[:] = [numbers.get(token, unk) for token in own.tokens]
            counts = _counts(split, own)
            num_unk = int(counts[table == unk].sum())
            if tokenizer.rare is not None:
                unknown = [int(number) for number in np.flatnonzero((table == unk) & (counts > 0))]
                micronats = sum(tokenizer.spelling_of(own.tokens[number]) * int(counts[number]) for number in unknown)
        for start in range(0, len(split.ids), BLOCK):
            cache.write_ids(table[split.ids[start : start + BLOCK]])
        found.append((split, num_unk, micronats))
    sizes = {name: sum(split.sizes[name] for split, _, _ in found) for name in SIZES}
    sizes |= {"num_unk": sum(num for _, num, _ in found), "spelling_micronats": sum(cost for _, _, cost in found)}
    sha256 = hash_json([split.sha256 for split, _, _ in found])
    return CachedSplit(np.empty(0), merged([split.lines for split, _, _ in found]), sizes, sha256)
