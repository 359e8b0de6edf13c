"""A text of many shards, tokenised shard by shard in parallel; each is kept, so that a changed one is redone alone.

    shard  ->  ids by the shard's own vocabulary, with how often each occurs  ->  <cache_dir>/<key>.ids, <key>.json
    the counts of the training shards together  ->  the vocabulary  ->  the ids of each shard renumbered

So what is kept of a shard of characters or words depends on that shard alone. Bytes, `bpe` and `file` have one vocabulary for
all shards; where it changes, all of them are redone. Memory holds the vocabularies and a few megabytes for each process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.kinds import Kind
from lmtrain.data.numbers import Numbered, Numbering, count_tokens, numbered, write_numbered
from lmtrain.data.passages import Passage, Tally, read_passages
from lmtrain.data.token_cache import PART, CachedSplit, CacheWriter, hash_json, read_cache, write_cache
from lmtrain.data.tokenizer import FORMAT as TOKENIZER_FORMAT
from lmtrain.data.tokenizer import Tokenizer, learn_from_counts
from lmtrain.data.workers import Call, run_all
from lmtrain.errors import DataError
from lmtrain.quantity import counted

FORMAT = 1  # of a part; a change makes what was cached stale
BLOCK = 1 << 20  # ids that are renumbered at a time


@dataclass(frozen=True)
class Reading:
    """How parts are tokenised: each by a vocabulary of its own, or all by one `tokenizer`."""

    kind: Kind
    normalize: str
    reverse: bool
    separators: str
    tokenizer: Tokenizer | None

    def numbering(self) -> Numbering:
        return Numbering(self.kind, self.normalize, self.reverse, self.separators)

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
    """Returns each passage in the cache; those that are not yet there are tokenised in so many processes."""
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
    if tokenizer is not None:
        write_cache(part.base, part.recipe, tokenizer, lambda cache: write_passages(cache, [PART], [passage], tokenizer))
        return
    with numbered([passage], reading.numbering(), part.base.parent) as found:
        ways: dict[str, Any] = {"separators": reading.separators} if reading.kind.has_words else {}
        own = learn_from_counts(reading.kind.name, count_tokens(found), **ways)
        own.normalize, own.reverse = reading.normalize, reading.reverse
        write_cache(part.base, part.recipe, own, lambda cache: cache.end_split(PART, write_numbered(cache, found[0], own)))


def write_passages(cache: CacheWriter, names: Iterable[str], passages: Sequence[Passage], tokenizer: Tokenizer) -> None:
    """Writes the ids of passages, each as the split of its name."""
    for name, (passage, blocks) in zip(names, read_passages(passages, tokenizer.kind), strict=False):
        tally = Tally()
        for ids in tally.encode(blocks, tokenizer):
            cache.write_ids(ids)
        if name != PART:
            check_size(name, passage, tally.num_tokens)
        cache.end_split(name, tally.cached())


def check_size(split: str, passage: Passage, num_tokens: int) -> None:
    """Raises DataError for a split that is too small to train or to be judged by."""
    if num_tokens < 2:
        whole = passage.facts.path.stem == split
        raise DataError(
            f"The {split} split of {passage.facts.path} has {counted(num_tokens, 'token')}.",
            "Every split needs at least 2.",
            "Give more text." if whole else "Give more text, or other shares: data.valid_fraction and data.test_fraction.",
        )


class Parts:
    """Parts that are read one after the other, as often as they are asked for; no more than one is in memory."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Numbered]:
        for part in self._parts:
            tokenizer, split = part.open()
            yield Numbered(split, _counts(split, tokenizer), tokenizer.tokens.__getitem__, partial(_blocks, split.ids))


def _counts(split: CachedSplit, tokenizer: Tokenizer) -> NDArray[np.int64]:
    totals = np.zeros(tokenizer.vocab_size, np.int64)
    for block in _blocks(split.ids):
        totals += np.bincount(block, minlength=len(totals))
    return totals


def _blocks(ids: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK))
