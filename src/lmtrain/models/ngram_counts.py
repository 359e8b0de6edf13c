"""Counting n-grams: for each order, the sorted list of all n-grams of a text, linked to the order below.

The n-grams of all orders form a trie. An n-gram w_1..w_k is one 64-bit number,

    key = (index of w_1..w_{k-1} in the order below) * V + w_k

so counting an order is sorting one array of numbers, n-grams that share a context lie side by side, and looking one up is
a binary search. The history of a token ends where the model forgets (see `history_lengths`): an n-gram never
reaches back behind that point, and one whose history is cut short there is counted in its short form as well.

A text takes much more memory than the work on it: everything goes over it in pieces of `PIECE` tokens or n-grams. What lasts
is, per token, the place of the n-gram that ends there and, while an order is sorted, its key: 12 bytes (20 beyond 2^31 tokens);
and per distinct n-gram a key and up to four counts, 12 to 24 bytes.

    legend   P positions in a text · B streams · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.models.base import StatePolicy
from lmtrain.ops.native.ngrams import MAX_NGRAMS, NgramIndex, why_no_library

Ints = NDArray[np.int64]
Counts = NDArray[np.signedinteger[Any]]  # int32, or int64 where there are too many

PIECE = 1 << 18  # tokens or n-grams at a time


@dataclass(frozen=True)
class Order:
    """All distinct n-grams of one order, ascending by (context, last word); of order 1 every word, seen or not."""

    vocab_size: int
    keys: Ints  # context * V + word
    suffixes: Counts  # where the order below lists this n-gram without its first word; 0 in order 1
    occurrences: Counts  # how often it occurs
    starts: Counts  # how often with nothing before it: at the start of a line, document or text
    left_words: Counts  # how many different words occur before it; 0 in the highest order, where it is not known

    @property
    def contexts(self) -> Ints:
        """Where the order below lists each n-gram without its last word; 0 in order 1."""
        return self.keys // self.vocab_size


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
    """The n-grams of all orders 1 to `order` that end in a token of the text `ids` [P], which `eos_id` precedes."""
    small: np.dtype[np.signedinteger[Any]] = np.dtype(np.int32 if len(ids) < 1 << 31 else np.int64)
    occurrences = np.zeros(vocab_size, small)
    for piece in pieces(len(ids)):
        occurrences += np.bincount(ids[piece], minlength=vocab_size).astype(small)
    nothing = np.zeros(vocab_size, small)
    orders = [Order(vocab_size, np.arange(vocab_size), nothing, occurrences, nothing, nothing)]
    text = _Text(ids, np.append(eos_id, ids[:-1]).astype(small), order, eos_id, policy)
    find: Find = lambda contexts, words: words  # noqa: E731  # in order 1, where every word is listed
    for length in range(2, order + 1):
        keys, starts = text.keys(length, vocab_size)
        keys, occurrences = _distinct(keys, small)
        suffixes, counts = np.zeros_like(occurrences), np.zeros_like(occurrences)  # no memory until they are written
        places, number = np.unique(starts, return_counts=True)
        counts[np.searchsorted(keys, places)] = number
        counted = Order(vocab_size, keys, suffixes, occurrences, counts, np.zeros_like(occurrences))
        orders[-1] = replace(orders[-1], left_words=_link(counted, orders[-1], find))
        if length < order:
            find = _finder(counted, len(orders[-1].keys))
            text.lengthen(length, find)
        orders.append(counted)
    return orders


def pieces(size: int) -> Iterator[slice]:
    """Slices that make up a row of this size."""
    return (slice(begin, min(begin + PIECE, size)) for begin in range(0, size, PIECE))


@dataclass
class _Text:
    """The text with, for each token, where the n-gram that ends just before it is listed in the order that was counted last."""

    ids: NDArray[Any]
    contexts: Counts  # [P]; -1 where there is none
    order: int
    eos_id: int
    policy: StatePolicy

    def history(self, piece: slice) -> Ints:
        """How many tokens before each are remembered, at most `order`."""
        begin = max(0, piece.start - self.order)
        before = self.ids[max(0, begin - 1) : piece.stop - 1]
        before = before if begin else np.append(self.eos_id, before)
        lengths = history_lengths(before[:, None], eos_id=self.eos_id, policy=self.policy)[:, 0]
        return np.minimum(lengths[piece.start - begin :], self.order)

    def keys(self, length: int, vocab_size: int) -> tuple[Ints, Ints]:
        """The keys of all n-grams of this length, and of those with nothing before them."""
        keys, starts, size = np.empty(len(self.ids), np.int64), list[Ints](), 0
        for piece in pieces(len(self.ids)):
            history = self.history(piece)
            of_piece = self.contexts[piece].astype(np.int64) * vocab_size + self.ids[piece]
            found = of_piece[history >= length - 1]
            keys[size : size + len(found)] = found
            starts.append(of_piece[history == length - 1])
            size += len(found)
        return keys[:size], np.concatenate([np.empty(0, np.int64), *starts])

    def lengthen(self, length: int, find: Find) -> None:
        """Looks up the n-grams of this length: contexts of the next one."""
        last = -1
        for piece in pieces(len(self.ids)):
            found = find(self.contexts[piece].astype(np.int64), self.ids[piece].astype(np.int64))
            places = np.where(self.history(piece) >= length - 1, found, -1)
            self.contexts[piece] = np.append(last, places[:-1])
            last = places[-1]


Find = Callable[[Ints, Ints], Ints]
"""(places of contexts in the order below, words) -> where the n-grams are listed; -1 where they are not."""


def _finder(order: Order, num_below: int) -> Find:
    """Looks up the n-grams of an order (of 2 or more)."""
    if why_no_library() is None and len(order.keys) <= MAX_NGRAMS:
        return NgramIndex(order.keys, num_below=num_below, vocab_size=order.vocab_size).find

    def find(contexts: Ints, words: Ints) -> Ints:
        wanted = contexts * order.vocab_size + words
        places = np.minimum(np.searchsorted(order.keys, wanted), max(0, len(order.keys) - 1))
        return np.where((contexts >= 0) & (order.keys[places] == wanted), places, -1) if len(order.keys) else wanted * 0 - 1

    return find


def _distinct(keys: Ints, small: np.dtype[np.signedinteger[Any]]) -> tuple[Ints, Counts]:
    """The distinct keys, ascending, and how often each is there; `keys` are sorted in their place."""
    keys.sort()
    num_distinct = len(keys) and 1 + sum(int(np.count_nonzero(_changes(keys, piece))) for piece in pieces(len(keys) - 1))
    firsts, distinct, size = np.zeros(num_distinct, small), np.empty(num_distinct, np.int64), min(1, len(keys))
    distinct[:1] = keys[:1]
    for piece in pieces(len(keys) - 1):
        places = np.flatnonzero(_changes(keys, piece)) + piece.start + 1
        firsts[size : size + len(places)] = places
        distinct[size : size + len(places)] = keys[places]
        size += len(places)
    return distinct, np.diff(firsts, append=np.array([len(keys)][: len(firsts)], small))


def _changes(keys: Ints, piece: slice) -> NDArray[np.bool_]:
    """Whether the key behind each of a piece is another one."""
    changes: NDArray[np.bool_] = keys[piece] != keys[piece.start + 1 : piece.stop + 1]
    return changes


def _link(order: Order, below: Order, find: Find) -> Counts:
    """Fills in where the order below lists the suffixes; returns how many different words stand before each n-gram there."""
    left_words = np.zeros_like(below.occurrences)
    for piece in pieces(len(order.keys)):
        contexts, words = np.divmod(order.keys[piece], order.vocab_size)
        suffixes = find(below.suffixes[contexts].astype(np.int64), words)
        order.suffixes[piece] = suffixes
        places, number = np.unique(suffixes, return_counts=True)
        left_words[places] += number.astype(left_words.dtype)
    return left_words
