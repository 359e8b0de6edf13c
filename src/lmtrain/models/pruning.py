"""Leaving out n-grams that are rare, by the rule of KenLM's `lmplz --prune` (Heafield et al. 2013).

    prune = [0, 0, 1]      of order 1 and 2 all n-grams stay; of order 3 and above those that occur more than once

What counts is how often an n-gram occurs, in every order. Discounts, and the counts that lower orders are estimated from, are
those of all n-grams; the probability of those left out goes to the shorter contexts (`smoothing`). A beginning or an end of an
n-gram occurs at least as often as the n-gram itself, and numbers do not fall from order to order: so all contexts of an n-gram
that stays, and all that it backs off to, stay too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import refuse
from lmtrain.models.ngram_counts import Ints, Order, pieces
from lmtrain.rules import of_pruning

Floats = NDArray[np.float64]


def thresholds(prune: Sequence[int], order: int) -> list[int]:
    """A number for each order, the last one given for all above it; none where nothing is pruned.

    Raises SettingsError for numbers that fall, for a first one above 0, and for more numbers than orders.
    """
    refuse(of_pruning(prune, order))
    return [*prune, *[max(prune)] * (order - len(prune))] if any(prune) else []


def prune_ngrams(
    orders: Sequence[Order], least: Sequence[int], log_probs: list[Floats], log_rests: list[Floats]
) -> tuple[list[Ints], list[Floats], list[Floats]]:
    """Keys, log-probabilities and log-rests of those n-grams of each order that occur more often than its number says."""
    keys, probs, rests = [orders[0].keys], [log_probs[0]], log_rests[:1]
    moved = np.arange(len(orders[0].keys))  # where an n-gram of the order below is listed now
    for number, order in enumerate(orders[1:], 1):
        stays = order.occurrences > least[number]
        kept = order.keys[stays]
        for piece in pieces(len(kept)):
            contexts, words = np.divmod(kept[piece], order.vocab_size)
            kept[piece] = moved[contexts] * order.vocab_size + words
        moved = np.cumsum(stays) - 1
        keys.append(kept)
        probs.append(log_probs[number][stays])
        rests += [row[stays] for row in log_rests[number : number + 1]]
    return keys, probs, rests
