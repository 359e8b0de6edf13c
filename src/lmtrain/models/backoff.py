"""A back-off table: what every n-gram model comes down to, however it was estimated.

    log p(w | h) = log p(hw), as listed,               where the n-gram hw is listed;
                 = log_rest(h) + log p(w | h')         else, with h' = h without its first word, log_rest(h) = 0 where the
                                                       n-gram h is not listed; every single word is listed

Each order is a sorted array of 64-bit keys (see `ngram_counts`) with one log-probability and one rest a key, so a lookup
is a binary search, and a whole text is looked up at once. An ARPA file holds the same (Katz 1987; Stolcke 2002). What is
written here in NumPy is the reference of `scorer`, which does the same in C++.

    legend   P positions in a text · B streams · R contexts · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmtrain.expected import ANY_LENGTH, Like, agree, compare
from lmtrain.models.ngram_counts import Ints
from lmtrain.ops.native.ngrams import MAX_NGRAMS, NgramIndex, NgramScorer, why_no_library

Floats = NDArray[np.float64]

MAX_LOG_REST = 1000.0  # nats; more is nonsense, and finite sums must stay finite


@dataclass(frozen=True)
class BackoffTable:
    """Sorted n-grams of orders 1 to `order`, in nats; item k-1 of each list is about order k."""

    vocab_size: int
    keys: list[Ints]  # where order k-1 lists the context, times V, plus the word; ascending; in order 1 simply 0 to V-1
    log_probs: list[Floats]  # log p(hw); -inf where it is zero
    log_rests: list[Floats]  # log_rest of the n-gram as a context; of all orders but the highest

    @property
    def order(self) -> int:
        return len(self.keys)

    def find(self, order: int, contexts: Ints, words: Ints) -> Ints:
        """Where `order` lists each word behind its context (which the order below lists there); -1 where it does not.

        Nothing is listed behind a context of -1.
        """
        keys = self.keys[order - 1]
        if order == 1 or not len(keys):
            return words if order == 1 else np.full_like(words, -1)
        wanted = contexts * self.vocab_size + words
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[places] == wanted, places, -1)

    def find_contexts(self, tokens_PB: Ints, history_PB: Ints) -> list[Ints]:
        """Where the last 1, 2, ..., order-1 tokens at each position are listed; -1 where not, or where forgotten."""
        contexts: list[Ints] = []
        context_PB = np.zeros_like(tokens_PB)
        for order in range(1, self.order):
            before_PB = np.concatenate([np.full_like(tokens_PB[:1], -1), context_PB[:-1]])
            context_PB = np.where(history_PB >= order, self.find(order, before_PB, tokens_PB), -1)
            contexts.append(context_PB)
        return contexts

    def target_log_probs(self, contexts: list[Ints], targets: Ints) -> Floats:
        """Log-probability of each target behind the contexts (of lengths 1, 2, ...) at its place; shaped as `targets`."""
        log_probs: Floats = self.log_probs[0][targets]
        for order, context in enumerate(contexts, 2):
            known = context >= 0
            log_probs[known] += self.log_rests[order - 2][context[known]]
            places = self.find(order, context, targets)
            listed = places >= 0
            log_probs[listed] = self.log_probs[order - 1][places[listed]]
        return log_probs

    def distributions(self, contexts: list[Ints], num_contexts: int) -> Floats:
        """Log-probabilities [R, V] of every word behind each of R contexts, given by where their suffixes are listed."""
        log_probs_RV = np.repeat(self.log_probs[0][None], num_contexts, axis=0)
        for order, context_R in enumerate(contexts, 2):
            known_R = context_R >= 0
            log_probs_RV[known_R] += self.log_rests[order - 2][context_R[known_R], None]
            keys, first_key_R = self.keys[order - 1], context_R * self.vocab_size
            begin_R, end_R = np.searchsorted(keys, first_key_R), np.searchsorted(keys, first_key_R + self.vocab_size)
            rows = np.repeat(np.arange(num_contexts), end_R - begin_R)  # one for every word listed behind a context
            places = np.arange(len(rows)) + (end_R - np.cumsum(end_R - begin_R))[rows]
            log_probs_RV[rows, keys[places] - first_key_R[rows]] = self.log_probs[order - 1][places]
        return log_probs_RV

    @cached_property
    def scorer(self) -> NgramScorer | None:
        """What computes `target_log_probs` in C++; None on a machine without it. From now on the table must not change."""
        sizes = [len(keys) for keys in self.keys]
        if why_no_library() is not None or max(sizes) > MAX_NGRAMS:
            return None
        indexes = [
            NgramIndex(np.ascontiguousarray(keys), num_below=below, vocab_size=self.vocab_size)
            for keys, below in zip(self.keys[1:], sizes, strict=False)
        ]
        log_probs, log_rests = (list(map(np.ascontiguousarray, rows)) for rows in (self.log_probs, self.log_rests))
        return NgramScorer(indexes, log_probs, log_rests)

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses: a copy, or another process, makes its own `scorer`."""
        return {name: value for name, value in vars(self).items() if name != "scorer"}

    def tensors(self) -> dict[str, Tensor]:
        """The table as named tensors; they share its memory."""
        arrays: dict[str, NDArray[Any]] = {}
        for order in range(1, self.order + 1):
            if order > 1:
                arrays[f"order_{order}.keys"] = self.keys[order - 1]
            arrays[f"order_{order}.log_probs"] = self.log_probs[order - 1]
            if order < self.order:
                arrays[f"order_{order}.log_rests"] = self.log_rests[order - 1]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @staticmethod
    def expected(vocab_size: int, order: int) -> dict[str, Like]:
        """What `tensors()` gives of a table of these sizes; how the arrays must fit together besides is said by `check`."""
        tensors: dict[str, Like] = {}
        for number in range(1, order + 1):
            length = vocab_size if number == 1 else ANY_LENGTH
            if number > 1:
                tensors[f"order_{number}.keys"] = Like((length,), torch.int64, least=0)
            tensors[f"order_{number}.log_probs"] = Like((length,), torch.float64, least=-math.inf, most=0)
            if number < order:
                tensors[f"order_{number}.log_rests"] = Like((length,), torch.float64, least=-math.inf, most=MAX_LOG_REST)
        return tensors

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], *, vocab_size: int, order: int) -> BackoffTable:
        """The table that `tensors()` gave. Raises UnfitError for anything else."""
        compare(BackoffTable.expected(vocab_size, order), tensors)
        keys, log_probs, log_rests = (
            [tensors[f"order_{number}.{name}"].numpy(force=True) for number in numbers]
            for name, numbers in (
                ("keys", range(2, order + 1)), ("log_probs", range(1, order + 1)), ("log_rests", range(1, order)),
            )
        )  # fmt: skip
        table = BackoffTable(vocab_size, [np.arange(vocab_size), *keys], log_probs, log_rests)
        table.check()
        return table

    def check(self) -> None:
        """Raises UnfitError where the arrays do not fit together, so that no lookup can leave them."""
        for number, keys in enumerate(self.keys[1:], 2):
            name, number_below = f"order_{number}", len(self.keys[number - 2])
            one_each = f"one for each of the {len(keys)} n-grams"
            for array in self.log_probs[number - 1 : number]:
                agree(len(array) == len(keys), f"{name}.log_probs", f"has {len(array)} values", one_each)
            for array in self.log_rests[number - 1 : number]:
                agree(len(array) == len(keys), f"{name}.log_rests", f"has {len(array)} values", one_each)
            descents = np.flatnonzero(keys[1:] <= keys[:-1]).tolist()
            agree(not descents, f"{name}.keys", f"does not ascend behind {descents[:1]}", "ascending order")
            last, most = int(keys.max(initial=0)), number_below * self.vocab_size - 1
            agree(not len(keys) or last <= most, f"{name}.keys", f"holds {last}", f"at most {most}: the context must be listed")
