"""How much of a text is copied from another: the longest stretch of tokens that both have, and the share of n-grams.

    training   the cat sat on the mat        longest copy   "the cat sat" (3 tokens)
    text       the cat sat near the dog      2-grams seen   the cat, cat sat: 2 of 5

If a stretch of n tokens is found in the training text, all shorter stretches in it are, so the longest one is found by halving.
Stretches of one length are compared by a polynomial over their tokens, mod 2^64 (Karp and Rabin 1987), whose value for all
places of the training text is a difference of one sum; what is found is compared token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.overlap import RATIO
from lmtrain.data.tokenizer import Ids, Tokenizer
from lmtrain.quantity import counted

LONGEST_NGRAM = 5
BLOCK = 1 << 20  # places of the training text that are looked at together


@dataclass(frozen=True)
class Novelty:
    """What a text shares with the training text.

    num_tokens     of the text
    copied         the longest stretch that the training text has, as text; `num_copied` tokens long
    place          where the training text has it: the number of its first token, from 0; None where nothing is shared
    seen           for n = 1, 2, ... the share of its different n-grams that the training text has; None where it has none
    """

    num_tokens: int
    num_copied: int
    copied: str
    place: int | None
    seen: tuple[float | None, ...]

    def format(self) -> str:
        """A line to read."""
        shares = ", ".join(f"{n}: {'-' if share is None else f'{share:.1%}'}" for n, share in enumerate(self.seen, 1))
        return (
            f"longest copy {self.num_copied:,} of {counted(self.num_tokens, 'token')} {self.copied[:200]!r} · "
            f"n-grams seen in training {shares}"
        )

    def to_json(self) -> dict[str, Any]:
        """The same by name."""
        return asdict(self)


def novelty_of(texts: Sequence[str], tokenizer: Tokenizer, training: NDArray[Any]) -> list[Novelty]:
    """What each text shares with a training text, given by its ids [N]."""
    encoded = [tokenizer.encode(text) for text in texts]
    seen = [_seen(encoded, training, length) for length in range(1, LONGEST_NGRAM + 1)]
    results = []
    for number, ids in enumerate(encoded):
        start, size, place = longest_copy(ids, training)
        copied = tokenizer.decode(ids[start : start + size].tolist())
        results.append(Novelty(len(ids), size, copied, place, tuple(shares[number] for shares in seen)))
    return results


def longest_copy(ids: Ids, training: NDArray[Any]) -> tuple[int, int, int | None]:
    """Where the longest stretch of `ids` that `training` has begins, its length, and where `training` has it first."""
    best: tuple[int, int, int | None] = (0, 0, None)
    least, most = 1, min(len(ids), len(training))
    while least <= most:
        length = (least + most) // 2
        found = _find(ids, training, length)
        if found is None:
            most = length - 1
        else:
            best, least = (found[0], length, found[1]), length + 1
    return best


def _find(ids: Ids, training: NDArray[Any], length: int) -> tuple[int, int] | None:
    """A stretch of so many tokens that both have: where it begins in each; the first in `training`."""
    wanted = _hashes(ids, length)
    for start, hashes in _iter_hashes(training, length):
        for place in np.flatnonzero(np.isin(hashes, wanted)).tolist():
            for own in np.flatnonzero(wanted == hashes[place]).tolist():
                if np.array_equal(training[start + place : start + place + length], ids[own : own + length]):
                    return own, start + place
    return None


def _seen(texts: Sequence[Ids], training: NDArray[Any], length: int) -> list[float | None]:
    """The share of the different n-grams of each text that `training` has."""
    own = [np.unique(_hashes(ids, length)) for ids in texts]
    everything = np.unique(np.concatenate([np.empty(0, np.uint64), *own]))
    found = np.zeros(len(everything), bool)
    for _, hashes in _iter_hashes(training, length):
        found |= np.isin(everything, hashes)
    known = everything[found]
    return [float(np.isin(hashes, known).mean()) if len(hashes) else None for hashes in own]


def _iter_hashes(training: NDArray[Any], length: int) -> Any:
    for start in range(0, max(0, len(training) - length + 1), BLOCK):
        yield start, _hashes(training[start : start + BLOCK + length - 1], length)


def _hashes(ids: NDArray[Any], length: int) -> NDArray[np.uint64]:
    """A number for each stretch of `length` tokens."""
    if len(ids) < length:
        return np.empty(0, np.uint64)
    values = ids.astype(np.uint64) + np.uint64(1)
    powers, inverse = _powers(RATIO, len(ids)), _powers(pow(RATIO, -1, 1 << 64), len(ids))
    sums = np.append(np.uint64(0), np.cumsum(values * powers))
    return (sums[length:] - sums[: len(ids) - length + 1]) * inverse[: len(ids) - length + 1]


def _powers(base: int, length: int) -> NDArray[np.uint64]:
    factors = np.full(length, base % (1 << 64), np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
