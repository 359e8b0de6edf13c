"""Counting n-grams: for each order, the sorted list of all n-grams of a text, linked to the order below.

The n-grams of all orders form a trie. An n-gram w_1..w_k is one 64-bit number,

    key = (index of w_1..w_{k-1} in the order below) * V + w_k

so one `np.unique` an order does all the counting, n-grams that share a context lie side by side, and looking one up is
a binary search. The history of a token ends where the model forgets (see `history_lengths`): an n-gram never
reaches back behind that point, and one whose history is cut short there is counted in its short form as well.

    legend   P positions in a text · B streams · V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.models.base import StatePolicy

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """All distinct n-grams of one order, ascending by (context, last word); of order 1 every word, seen or not."""

    keys: Ints  # context * V + word
    contexts: Ints  # where the order below lists this n-gram without its last word; 0 in order 1
    suffixes: Ints  # where the order below lists this n-gram without its first word; 0 in order 1
    occurrences: Ints  # how often it occurs
    starts: Ints  # how often with nothing before it: at the start of a line, document or text
    left_words: Ints  # how many different words occur before it; 0 in the highest order, where it is not known


def history_lengths(tokens_PB: NDArray[Any], *, eos_id: int, policy: StatePolicy) -> Ints:
    """How many tokens, itself included, the model remembers once it has consumed each one; int64 [P, B].

    A token of -1 is nothing: it and all before it are forgotten already.
    """
    position_P1 = np.arange(len(tokens_PB))[:, None]
    forgets_PB = np.zeros(tokens_PB.shape, bool)
    if policy is not StatePolicy.carry:
        forgets_PB = tokens_PB == eos_id
    if policy is StatePolicy.document:
        forgets_PB[1:] &= tokens_PB[:-1] == eos_id
    first_PB = np.where(tokens_PB < 0, position_P1 + 1, np.where(forgets_PB, position_P1, 0))
    return position_P1 + 1 - np.maximum.accumulate(first_PB, axis=0)


def count_ngrams(ids: NDArray[Any], *, order: int, vocab_size: int, eos_id: int, policy: StatePolicy) -> list[Order]:
    """The n-grams of all orders 1 to `order` that end in a token of the text `ids` [P], which `eos_id` precedes.

    Takes about 100 bytes of memory a token.
    """
    history_P = history_lengths(np.append(eos_id, ids)[:-1, None], eos_id=eos_id, policy=policy)[:, 0]
    words_P = ids.astype(np.int64)
    occurrences = np.bincount(words_P, minlength=vocab_size)
    zeros = np.zeros(vocab_size, np.int64)
    orders = [Order(np.arange(vocab_size), zeros, zeros, occurrences, zeros, zeros)]
    ngram_P = words_P  # where the order below lists the n-gram that ends at each position
    context_P = np.append(eos_id, words_P)[:-1]  # and the one that ends just before it
    for length in range(2, order + 1):
        fits_P = history_P >= length - 1
        keys, first, inverse, occurrences = np.unique(
            context_P[fits_P] * vocab_size + words_P[fits_P], return_index=True, return_inverse=True, return_counts=True
        )
        starts = np.bincount(inverse[history_P[fits_P] == length - 1], minlength=len(keys))
        suffixes = ngram_P[fits_P][first]
        left_words = np.bincount(suffixes, minlength=len(orders[-1].keys))
        orders[-1] = replace(orders[-1], left_words=left_words)
        orders.append(Order(keys, keys // vocab_size, suffixes, occurrences, starts, np.zeros_like(keys)))
        ngram_P = np.full(len(ids), -1)
        ngram_P[fits_P] = inverse
        context_P = np.append(-1, ngram_P)[:-1]
    return orders
