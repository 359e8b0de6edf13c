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
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lmtrain.models.ngram_counts import Ints, Order

Floats = NDArray[np.float64]
Method = Callable[[Order, bool, int], tuple[Floats, Floats]]
"""(an order, whether it is the highest, number of contexts) -> share of every n-gram, rest of every context."""

logger = logging.getLogger("lmtrain")

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # those of KenLM's --discount_fallback


def estimate(
    orders: list[Order], *, vocab_size: int, method: Method, interpolate: bool = True
) -> tuple[list[Floats], list[Floats]]:
    """log p(w | h) of every n-gram hw of every order, and log rest(h) of every n-gram h of all orders but the highest.

    One list entry per order, in the order of its keys; -inf where a probability is zero. `interpolate` with the order
    below; else every order stands on the uniform distribution.
    """
    log_probs, log_rests = [], []
    uniform = 1 / vocab_size
    below = np.full(1, uniform)  # order 0
    for order in orders:
        share, rest = method(order, order is orders[-1], len(below))
        lower = below[order.suffixes] if interpolate else uniform
        below = np.minimum(share + rest[order.contexts] * lower, 1)  # rounding may exceed one
        with np.errstate(divide="ignore"):
            log_probs.append(np.log(below))
            log_rests.append(np.log(rest))
    return log_probs, log_rests[1:]


def kneser_ney(order: Order, is_highest: bool, num_contexts: int) -> tuple[Floats, Floats]:
    """Interpolated modified Kneser-Ney."""
    counts = order.occurrences if is_highest else order.left_words + order.starts
    totals = np.bincount(order.contexts, counts, minlength=num_contexts)
    discount = np.append(0, discounts(counts))[np.minimum(counts, 3)]
    divisor = np.maximum(totals, 1)
    rest = np.bincount(order.contexts, discount, minlength=num_contexts) / divisor
    return (counts - discount) / divisor[order.contexts], np.where(totals > 0, rest, 1.0)


def discounts(counts: Ints) -> Floats:
    """What is taken from counts of 1, 2, and 3 or more; FALLBACK_DISCOUNTS, with a word of warning, for odd counts."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    if n[1:5].all():
        c = np.arange(1, 4)
        amounts: Floats = c - (c + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:5] / n[1:4]
        if ((amounts > 0) & (amounts <= c)).all():
            return amounts
    if n[1:].any():
        logger.warning(
            "Kneser-Ney: the numbers %s of n-grams with counts 1, 2, 3, 4 give no discounts; taking %s instead.",
            n[1:5].tolist(),
            FALLBACK_DISCOUNTS,
        )
    return np.array(FALLBACK_DISCOUNTS)


def add_k_method(k: float, vocab_size: int) -> Method:
    """Lidstone's method: p(w | h) = (c(hw) + k) / (c(h) + kV) in the highest order, and at starts in the others."""
    prior = np.float64(k * vocab_size)

    def method(order: Order, is_highest: bool, num_contexts: int) -> tuple[Floats, Floats]:
        counts = order.occurrences if is_highest else order.starts
        totals = np.bincount(order.contexts, counts, minlength=num_contexts) + prior
        return counts / totals[order.contexts], prior / totals

    return method


def maximum_likelihood(order: Order, is_highest: bool, num_contexts: int) -> tuple[Floats, Floats]:
    """Relative frequencies in the longest context that has been seen; words never seen behind it get nothing."""
    totals = np.bincount(order.contexts, order.occurrences, minlength=num_contexts)
    return order.occurrences / np.maximum(totals, 1)[order.contexts], np.where(totals > 0, 0.0, 1.0)
