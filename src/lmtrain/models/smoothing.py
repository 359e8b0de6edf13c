"""From counts to probabilities: how n-grams that were never seen get their share.

With h a context, h' the same without its first word, and c(h) the sum of c(hw) over all words w,

    p(w | h) = share(hw) + rest(h) p(w | h')            sum over w of share(hw), plus rest(h), is one

                        share(hw)                  rest(h)                           c(hw) below the highest order
    kneser_ney          (c(hw) - D(c(hw))) / c(h)  sum over w of D(c(hw)) / c(h)     different words before hw
    maximum_likelihood  c(hw) / c(h)               0                                 occurrences
    add_k               c(hw) / (c(h) + kV)        kV / (c(h) + kV)                  (see below)

and rest(h) = 1 where c(h) = 0. In the highest order c is always the number of occurrences. An n-gram at a start (of a
line, say) has nothing before it and is part of no longer one: there kneser_ney counts occurrences in all orders.

The first two interpolate an order with the one below, down to the uniform distribution 1/V. add_k does not: it knows
whole histories only, p(w | h) = (c(hw) + k) / (c(h) + kV), and 1/V stands in the place of p(w | h'). A history that is
shorter than the order allows begins at a start, and is another one than the same words with something before them. So
its c counts the occurrences at starts alone, and a longer history never falls back on it.

Modified Kneser-Ney (Chen and Goodman 1998, equation 26; as in KenLM, Heafield et al. 2013) computes the discounts of an
order from n_c, how many of its n-grams have count c:   Y = n_1 / (n_1 + 2 n_2),   D(c) = c - (c+1) Y n_{c+1} / n_c
for c = 1, 2, and 3 or more.

An n-gram that is pruned gives all that it has to the rest of its context: D = c(hw). Discounts and the counts c(h) are those
of all n-grams, pruned ones included (as in KenLM's lmplz --prune).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmtrain.models.ngram_counts import PIECE, Counts, Order, pieces

Floats = NDArray[np.float64]


class SmoothingRule(NamedTuple):
    """share(hw) = (c - D(c)) / (c(h) + prior), rest(h) = (sum of D(c) + prior) / (c(h) + prior)."""

    counts: Callable[[Order, bool], Counts]  # c of every n-gram of an order, which may be the highest
    discounts: Callable[[Counts], Sequence[float] | Floats] = lambda counts: (0.0, 0.0, 0.0)  # D(1), D(2), D(3 and more)
    prior: float = 0.0


log = logging.getLogger("lmtrain")

ODD_COUNTS = "Kneser-Ney: the numbers "

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # those of KenLM's --discount_fallback


def estimate(
    orders: Sequence[Order], *, vocab_size: int, method: SmoothingRule, interpolate: bool = True, prune: Sequence[int] = ()
) -> tuple[list[Floats], list[Floats]]:
    """log p(w | h) of every n-gram hw of every order, and log rest(h) of every n-gram h of all orders but the highest.

    One list entry per order, in the order of its keys; -inf where a probability is zero. `interpolate` with the order
    below; else every order stands on the uniform distribution. `prune`: n-grams of each order that occur so often or less
    are pruned (none where there is no number); what is said of a pruned one means nothing.
    """
    probs, rests = [], []
    uniform = 1 / vocab_size
    below = np.full(1, uniform)  # order 0
    for number, order in enumerate(orders):
        threshold = prune[number] if number < len(prune) else 0
        shares, rest = _shares(order, order is orders[-1], len(below), method, threshold)
        for piece in pieces(len(shares)):
            lower = below[order.suffixes[piece]] if interpolate else uniform
            shares[piece] += rest[order.keys[piece] // vocab_size] * lower
            np.minimum(shares[piece], 1, out=shares[piece])  # rounding may exceed one
        below = shares
        probs.append(below)
        rests.append(rest)
    with np.errstate(divide="ignore"):
        for row in (*probs, *rests):
            np.log(row, out=row)
    return probs, rests[1:]


def _shares(order: Order, is_highest: bool, num_contexts: int, method: SmoothingRule, threshold: int) -> tuple[Floats, Floats]:
    """share(hw) of every n-gram, and rest(h) of each of the contexts."""
    counts = method.counts(order, is_highest)
    taken_of = np.append(0, method.discounts(counts))
    shares, rests = np.empty(len(counts)), np.ones(num_contexts)
    for piece in _whole_contexts(order):
        contexts = order.keys[piece] // order.vocab_size
        first, count = int(contexts[0]), counts[piece]
        contexts -= first
        taken = taken_of[np.minimum(count, 3)]
        if threshold:
            taken = np.where(order.occurrences[piece] > threshold, taken, count)
        totals = np.bincount(contexts, count) + method.prior
        divisors = totals if method.prior else np.maximum(totals, 1)
        shares[piece] = (count - taken) / divisors[contexts]
        rest = (np.bincount(contexts, taken) + method.prior) / divisors
        rests[first : first + len(rest)] = np.where(totals > 0, rest, 1.0)
    return shares, rests


def _whole_contexts(order: Order) -> Iterator[slice]:
    """Pieces of the n-grams of an order, each with all that stand behind its contexts."""
    begin, size, vocab_size = 0, len(order.keys), order.vocab_size
    while begin < size:
        last = int(order.keys[min(begin + PIECE, size) - 1]) // vocab_size
        end = int(np.searchsorted(order.keys, (last + 1) * vocab_size))
        yield slice(begin, end)
        begin = end


@contextmanager
def without_warnings() -> Iterator[None]:
    """While it lasts, odd counts are taken in silence."""

    def is_else(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(ODD_COUNTS)  # the command line has put the numbers in already

    log.addFilter(is_else)
    try:
        yield
    finally:
        log.removeFilter(is_else)


def discounts(counts: Counts) -> Floats:
    """What is taken from counts of 1, 2, and 3 or more; FALLBACK_DISCOUNTS, with a word of warning, for odd counts."""
    n = np.zeros(6, np.int64)
    for piece in pieces(len(counts)):
        n += np.bincount(np.minimum(counts[piece], 5), minlength=6)
    if n[1:5].all():
        c = np.arange(1, 4)
        amounts: Floats = c - (c + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:5] / n[1:4]
        if ((amounts > 0) & (amounts <= c)).all():
            return amounts
    if n[1:].any():
        log.warning(
            ODD_COUNTS + "%s of n-grams with counts 1, 2, 3, 4 give no discounts; taking %s instead.",
            n[1:5].tolist(),
            FALLBACK_DISCOUNTS,
        )
    return np.array(FALLBACK_DISCOUNTS)


kneser_ney = SmoothingRule(
    lambda order, is_highest: order.occurrences if is_highest else order.left_words + order.starts, discounts
)
"""Interpolated modified Kneser-Ney."""

maximum_likelihood = SmoothingRule(lambda order, is_highest: order.occurrences)
"""Relative frequencies in the longest context that has been seen; words never seen behind it get nothing."""


def add_k_method(k: float, vocab_size: int) -> SmoothingRule:
    """Lidstone's method: p(w | h) = (c(hw) + k) / (c(h) + kV) in the highest order, and at starts in the others."""
    return SmoothingRule(lambda order, is_highest: order.occurrences if is_highest else order.starts, prior=k * vocab_size)
