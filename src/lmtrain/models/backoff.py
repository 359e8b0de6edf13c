"""A back-off table: what every n-gram model comes down to, however it was estimated.

    log p(w | h) = log p(hw), as listed,               where the n-gram hw is listed;
                 = log_rest(h) + log p(w | h')         else, with h' = h without its first word, log_rest(h) = 0 where the
                                                       n-gram h is not listed; every single word is listed

Each order is a sorted array of 64-bit keys (see `ngram_counts`) with one log-probability and one rest a key, so a lookup
is a binary search, and a whole text is looked up at once. An ARPA file holds the same (Katz 1987; Stolcke 2002).

    legend   P positions in a text · B streams · R contexts · V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmtrain.errors import CheckpointError
from lmtrain.models.ngram_counts import Ints

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
    def from_tensors(tensors: Mapping[str, Tensor], *, vocab_size: int, order: int) -> BackoffTable:
        """The table that `tensors()` gave. Raises CheckpointError for anything else."""
        keys, log_probs, log_rests = [np.arange(vocab_size)], list[Floats](), list[Floats]()
        left = dict(tensors)
        for number in range(1, order + 1):
            if number > 1:
                keys.append(_take(left, f"order_{number}.keys", torch.int64))
            log_probs.append(_take(left, f"order_{number}.log_probs", torch.float64))
            if number < order:
                log_rests.append(_take(left, f"order_{number}.log_rests", torch.float64))
        if left:
            raise _damaged(f"the tensor {min(left)} is not part of an n-gram model of order {order}")
        table = BackoffTable(vocab_size, keys, log_probs, log_rests)
        table.check()
        return table

    def check(self) -> None:
        """Raises CheckpointError where the arrays do not fit together, so that no lookup can leave them."""
        num_contexts = 1
        for number in range(1, self.order + 1):
            keys, log_probs = self.keys[number - 1], self.log_probs[number - 1]
            if len(log_probs) != len(keys):
                raise _damaged(f"order {number} has {len(keys)} n-grams and {len(log_probs)} log-probabilities")
            if len(keys) and (keys[0] < 0 or int(keys[-1]) >= num_contexts * self.vocab_size):
                raise _damaged(f"order {number} lists an n-gram whose context is not listed")
            if not (keys[1:] > keys[:-1]).all():
                raise _damaged(f"the n-grams of order {number} are not in ascending order")
            if not (log_probs <= 0).all():
                raise _damaged(f"order {number} has a log-probability that is above zero or not a number")
            if number < self.order:
                log_rests = self.log_rests[number - 1]
                if len(log_rests) != len(keys):
                    raise _damaged(f"order {number} has {len(keys)} n-grams and {len(log_rests)} back-off weights")
                if not (log_rests <= MAX_LOG_REST).all():
                    raise _damaged(f"order {number} has a back-off weight above {MAX_LOG_REST:g} or not a number")
            num_contexts = len(keys)


def _take(tensors: dict[str, Tensor], name: str, dtype: torch.dtype) -> NDArray[Any]:
    """Removes one tensor, which must be there, flat, and of the given type."""
    if name not in tensors:
        raise _damaged(f"the tensor {name} is missing")
    tensor = tensors.pop(name)
    if tensor.dim() != 1 or tensor.dtype != dtype:
        raise _damaged(f"{name} is {tensor.dtype} {list(tensor.shape)} instead of {dtype} with one axis")
    array: NDArray[Any] = tensor.numpy(force=True)
    return array


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(
        f"These are not the tensors of an n-gram model: {what}.",
        "Allowed are exactly the tensors that the model saved, with the same vocabulary and order.",
        "Use the checkpoint as it was written, or train again.",
    )
