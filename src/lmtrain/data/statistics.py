"""What is to be known of texts before anything is learnt from them: sizes, the growth of the vocabulary, Zipf's law, sparsity.

A text is an array of token ids in which the id `end` ends every line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[Any]
MAX_TOKENS = 20_000_000  # tokens of training whose n-grams are counted, at about 50 bytes each


class Sizes(NamedTuple):
    """Tokens and types without line ends; hapaxes are types that occur once."""

    lines: int
    tokens: int
    types: int
    hapaxes: int


def sizes_of(ids: Ids, end: int) -> Sizes:
    """Returns the sizes of a text; a last line that is not ended counts as one."""
    counts = counts_of(ids, end)
    num_lines = int((ids == end).sum()) + int(len(ids) > 0 and ids[-1] != end)
    return Sizes(num_lines, int(counts.sum()), int((counts > 0).sum()), int((counts == 1).sum()))


def counts_of(ids: Ids, end: int) -> NDArray[np.int64]:
    """Counts how often each id occurs; 0 of line ends."""
    counts = np.bincount(ids, minlength=end + 1)
    counts[end] = 0
    return counts


def growth(ids: Ids, end: int) -> list[tuple[int, int]]:
    """Returns the type-token curve: (tokens read, types among them) at 10, 20, 50, 100, 200, ... tokens and at the end."""
    words = ids[ids != end]
    _, first = np.unique(words, return_index=True)
    places = [digit * 10**power for power in range(1, 12) for digit in (1, 2, 5)]
    chosen = [place for place in places if place < len(words)] + [len(words)]
    return [(place, int(np.searchsorted(np.sort(first), place))) for place in chosen]


class Lengths(NamedTuple):
    """Of lines in tokens. Half of the lines are no longer than `median`, a hundredth is longer than `p99`."""

    shortest: int
    median: float
    mean: float
    p90: float
    p99: float
    longest: int


def lengths_of(ids: Ids, end: int) -> Lengths:
    """Returns the lengths of the lines of a text, without their ends."""
    ends = np.flatnonzero(np.append(ids, end) == end)
    lengths = np.diff(ends, prepend=-1) - 1
    if len(lengths) > 1 and len(ids) and ids[-1] == end:
        lengths = lengths[:-1]
    median, p90, p99 = (float(np.percentile(lengths, share)) for share in (50, 90, 99))
    return Lengths(int(lengths.min()), median, float(lengths.mean()), p90, p99, int(lengths.max()))


def zipf_exponent(frequencies: Ids) -> float | None:
    """s of frequency ~ rank^-s (Zipf 1935): least squares on the logarithms of ranks 10 to 1000, at frequencies of 5 or more.

    None where there are fewer than 20 such ranks.
    """
    ordered = np.sort(frequencies[frequencies >= 5])[::-1][9:1000]
    if len(ordered) < 20:
        return None
    ranks = np.log(np.arange(10, 10 + len(ordered)))
    return -float(np.polyfit(ranks, np.log(ordered), 1)[0])


class Sparsity(NamedTuple):
    """Of the n-grams of one order in a text, how many are never seen in training; occurrences, and different ones."""

    order: int
    num: int
    num_unseen: int
    num_types: int
    num_unseen_types: int


def sparsity(train: Ids, other: Ids, end: int, orders: int = 5) -> list[Sparsity]:
    """For the orders from 1. An n-gram lies within a line; its first token may be the end before the line, its last that of it.

    An n-gram is numbered by what it is without its last token, and by that token.
    """
    train = train[:MAX_TOKENS]
    tokens = np.concatenate([[end], train, [end], other]).astype(np.int64)
    place = np.arange(len(tokens))
    is_train, is_other = (place > 0) & (place <= len(train)), place > len(train) + 1  # the two ends between them are ours
    last_end = np.maximum.accumulate(np.where(tokens == end, place, 0))
    before = np.append(0, last_end[:-1])  # the last line end before each token
    size, grams, found = int(tokens.max()) + 1, tokens, []
    for order in range(1, orders + 1):
        fits = place - order + 1 >= before
        if order > 1:
            grams = np.append(0, grams[:-1]) * size + tokens
        keys, inverse = np.unique(grams[fits], return_inverse=True)
        in_train = np.bincount(inverse[is_train[fits]], minlength=len(keys)) > 0
        of_other = np.bincount(inverse[is_other[fits]], minlength=len(keys))
        unseen = of_other[~in_train]
        found.append(
            Sparsity(order, int(of_other.sum()), int(unseen.sum()), int((of_other > 0).sum()), int((unseen > 0).sum()))
        )
        grams = np.zeros(len(tokens), np.int64)  # one that does not fit is part of none that does
        grams[fits] = inverse
    return found
