"""Look-ups of n-grams and the probabilities of texts in C++ (`ngrams.h`), for the back-off tables of `lmtrain.models.backoff`.

    log p(w | h) = log p(hw) where hw is listed, else log_rest(h) + log p(w | h without its first word)

The arrays are read where they lie, so they must not change while they are in use here. Only `begins`, which says where the
n-grams behind each context lie, is made here: four bytes per n-gram below the highest order.

    legend   T steps · B streams · N = order - 1 · P = N + T · V vocabulary
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmtrain.choices import StatePolicy, names
from lmtrain.ops.native.build import library, why_no_library

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

POLICIES = names(StatePolicy)  # in the order of Policy in ngrams.h
MAX_ORDERS = 16  # which a context in ngrams.h has room for
MAX_NGRAMS = (1 << 32) - 1  # of one order: `begins` are 32 bits
SMALL = 1 << 13  # look-ups; below, threads cost more than they save

__all__ = ["NgramIndex", "NgramScorer", "why_no_library"]


class NgramIndex:
    """The n-grams of one order (of 2 or more): finds the places of many at once.

    keys       context * V + word, ascending, int64
    num_below  how many n-grams the order below has: contexts are places among them

    Raises ValueError for arrays that C++ cannot read.
    """

    def __init__(self, keys: Ints, *, num_below: int, vocab_size: int) -> None:
        self.keys = _checked("keys", keys, np.int64)
        if not 0 <= num_below < 1 << 62 or not 0 < vocab_size < 1 << 32 or len(keys) > MAX_NGRAMS:
            raise ValueError(f"{len(keys)} n-grams behind {num_below} contexts with V={vocab_size}; expected fewer.")
        if len(keys) and not 0 <= int(keys[0]) <= int(keys[-1]) < num_below * vocab_size:
            raise ValueError(f"keys from {keys[0]} to {keys[-1]}; expected 0 to {num_below * vocab_size - 1}.")
        self.num_below, self.vocab_size = num_below, vocab_size
        self.begins = np.empty(num_below + 1, np.uint32)
        _call("ngram_index", None, self.keys, len(keys), num_below, vocab_size, self.begins)

    def find(self, contexts: Ints, words: Ints) -> Ints:
        """Where each word is listed behind its context, shaped alike; -1 where it is not, or where the context is -1."""
        shape = contexts.shape
        if shape != words.shape:
            raise ValueError(f"contexts of shape {shape} and words of {words.shape}; expected one shape.")
        contexts, words = (
            _checked(name, np.ascontiguousarray(array).reshape(-1), np.int64)
            for name, array in (("contexts", contexts), ("words", words))
        )
        places = np.empty(len(contexts), np.int64)
        _call(
            "ngram_find", None, self.keys, self.begins, len(self.keys), self.num_below, self.vocab_size, len(places), contexts,
            words, places, _threads(len(places)),
        )  # fmt: skip
        return places.reshape(shape)


class NgramScorer:
    """A whole table: the log-probabilities of texts in it.

    log_probs, log_rests  float64, as in `BackoffTable`: one array per order, and one per order below the highest

    Raises ValueError where arrays do not fit together: C++ trusts their sizes.
    """

    def __init__(self, indexes: Sequence[NgramIndex], log_probs: Sequence[Floats], log_rests: Sequence[Floats]) -> None:
        order, self.vocab_size = len(log_probs), len(log_probs[0])
        sizes = [self.vocab_size, *(len(index.keys) for index in indexes)]
        if not (1 <= order <= MAX_ORDERS and len(sizes) == order and len(log_rests) == order - 1):
            given = f"{len(sizes)}, {order} and {len(log_rests)} arrays"
            raise ValueError(f"{given}; expected n, n and n - 1, with n up to {MAX_ORDERS}.")
        for index, below in zip(indexes, sizes, strict=False):
            if index.num_below != below or index.vocab_size != self.vocab_size:
                raise ValueError(f"an index behind {index.num_below} contexts; the order below has {below} n-grams.")
        self.num_context = order - 1
        self._kept = [*indexes, *log_probs, *log_rests]  # C++ reads where they lie
        self._orders = (_Order * order)()
        for number, size in enumerate(sizes):
            places = [indexes[number - 1].keys, indexes[number - 1].begins] if number else [None, None]
            probs = _checked("log_probs", log_probs[number], np.float64, size)
            rests = _checked("log_rests", log_rests[number], np.float64, size) if number < order - 1 else None
            self._orders[number] = _Order(*(_address(array) for array in (*places, probs, rests)), size)

    def log_probs(
        self, tokens_PB: Ints, targets_TB: Ints, *, eos_id: int, policy: str, whole_histories: bool = False
    ) -> tuple[Floats, Ints]:
        """The log-probability of each target (nats, [T, B]) and the last N tokens, as far as they are remembered, [B, N].

        tokens_PB        the N tokens before the text, -1 for nothing, then those that the targets follow
        policy           when the model forgets: one of POLICIES
        whole_histories  only all that is remembered (of N tokens) counts as a context, not a part of it

        Raises IndexError where a token or a target is no word.
        """
        T, B = targets_TB.shape
        if tokens_PB.shape != (self.num_context + T, B):
            raise ValueError(f"tokens_PB has shape {tokens_PB.shape}; expected {(self.num_context + T, B)}.")
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy}; expected {', '.join(POLICIES)}.")
        tokens, targets = (
            _checked(name, np.ascontiguousarray(array).reshape(-1), np.int64)
            for name, array in (("tokens_PB", tokens_PB), ("targets_TB", targets_TB))
        )
        log_probs_TB, next_BN = np.empty((T, B)), np.full((B, self.num_context), -1)
        are_words = _call(
            "ngram_log_probs", ctypes.c_int, self._orders, self.num_context, self.vocab_size, eos_id, POLICIES.index(policy),
            int(whole_histories), T, B, tokens, targets, log_probs_TB, next_BN, _threads(T * B),
        )  # fmt: skip
        if not are_words:
            V = self.vocab_size
            raise IndexError(f"a token or a target is no word: with V={V} they lie in 0 to {V - 1}.")
        return log_probs_TB, next_BN


class _Order(ctypes.Structure):
    """`NgramOrder` of ngrams.h."""

    _fields_ = (*((name, ctypes.c_void_p) for name in ("keys", "begins", "log_probs", "log_rests")), ("size", ctypes.c_long))


def _checked(name: str, array: NDArray[Any], dtype: type, size: int | None = None) -> NDArray[Any]:
    """The array, if C++ can read it: numbers of this type in this machine's memory, one after the other."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {getattr(array, 'dtype', type(array))}; expected a plain row of {np.dtype(dtype)}.")
    if size is not None and len(array) != size:
        raise ValueError(f"{name} has {len(array)} values; expected {size}.")
    return array


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _threads(lookups: int) -> int:
    return torch.get_num_threads() if lookups > SMALL else 1


def _call(function: str, returns: Any, *arguments: Any) -> Any:
    """Calls a C function: an address for each array, longs for all other numbers."""
    entry = library()[f"lmtrain_{function}"]
    entry.restype = returns
    return entry(
        *(
            ctypes.c_void_p(argument.ctypes.data) if isinstance(argument, np.ndarray)
            else ctypes.c_long(argument) if isinstance(argument, int)
            else argument
            for argument in arguments
        )
    )  # fmt: skip
