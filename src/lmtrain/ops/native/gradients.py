"""What a training step does with gradients on a CPU (`gradients.h`, `adam.h`): it limits their norm, adds up those of a
look-up, and takes a step of Adam.

Sums have one order, whatever the number of threads.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmtrain.ops.native.build import library, why_no_library
from lmtrain.ops.transforms import lies_here


def _is_plain(x: Tensor) -> bool:
    return x.dtype is torch.float32 and lies_here(x) and x.is_contiguous() and not x.is_neg()


def clip(gradients: Sequence[Tensor], max_norm: float) -> float | None:
    """Returns the L2 norm of all gradients together, which are then scaled down to `max_norm` if it is larger (0: never).

    Squares are added up in float64. A norm that is not finite changes nothing. Returns None, and changes nothing, where it
    cannot: it takes float32 on a CPU, each tensor in one piece.
    """
    if not all(map(_is_plain, gradients)) or why_no_library() is not None:
        return None
    count = len(gradients)
    entry = library()["lmtrain_clip_gradients"]
    entry.restype = ctypes.c_double
    norm: float = entry(
        ctypes.c_long(count),
        (ctypes.c_void_p * count)(*(x.data_ptr() for x in gradients)),
        (ctypes.c_long * count)(*(x.numel() for x in gradients)),
        ctypes.c_double(max_norm),
        ctypes.c_long(torch.get_num_threads()),
    )
    if max_norm:
        torch.autograd.graph.increment_version(gradients)
    return norm


class AdamWeight:
    """A weight with its memory: the moving averages of the gradient and of its square, and the number of steps taken, a scalar.

    What there is to look at before a step is looked at once.
    """

    def __init__(self, weight: Tensor, mean: Tensor, square: Tensor, step: Tensor) -> None:
        self.tensors = weight, mean, square, step
        self.shape, self.count = weight.shape, weight.numel()
        self.pointers = [x.data_ptr() for x in self.tensors]
        self.is_plain = all(map(_is_plain, self.tensors)) and self.shape == mean.shape == square.shape and step.numel() == 1
        self._layout = weight.dtype, weight.stride()

    def holds(self, *tensors: Tensor) -> bool:
        """Whether it is made of these tensors, as they are now. `weight.data` may have become another tensor."""
        same = all(map(operator.is_, self.tensors, tensors)) and [x.data_ptr() for x in tensors] == self.pointers
        weight = tensors[0]
        return same and weight.shape == self.shape and (weight.dtype, weight.stride()) == self._layout


class AdamRule(NamedTuple):
    """`decay` adds to the gradient, or shrinks the weight beforehand if it `is_decoupled`."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    decay: float = 0.0
    is_decoupled: bool = False


def adam(groups: Sequence[tuple[AdamRule, Sequence[tuple[AdamWeight, Tensor]]]]) -> bool:
    """Takes a step of Adam, in place: all numbers of each weight move, those without a gradient as if it were 0.

    Each weight comes with its gradient; sparse ones are coalesced, of whole rows. Returns False, and changes nothing, where it
    cannot: it takes float32 on a CPU, each tensor in one piece.
    """
    if not all(_can_step(*each) for _, weights in groups for each in weights) or why_no_library() is not None:
        return False
    for rule, weights in groups:
        pointers: list[int | None] = []
        sizes: list[int] = []
        for weight, gradient in weights:
            numbers, rows, num_rows, width = gradient, None, 0, 0
            if gradient.is_sparse:
                numbers, num_rows, width = gradient._values(), gradient._nnz(), gradient.shape[1:].numel()
                rows = gradient._indices().data_ptr()
            is_none = gradient.is_sparse and not num_rows  # the gradient is 0 everywhere
            pointers += *weight.pointers, *((None, None) if is_none else (numbers.data_ptr(), rows))
            sizes += num_rows, width, weight.count
        library()["lmtrain_adam"](
            ctypes.c_long(len(weights)),
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_long * len(sizes))(*sizes),
            (ctypes.c_double * 5)(*rule[:5]),
            ctypes.c_int(rule.is_decoupled),
            ctypes.c_long(torch.get_num_threads()),
        )
        torch.autograd.graph.increment_version([weight.tensors[0] for weight, _ in weights])  # so that a graph of them knows
    return True


def _can_step(weight: AdamWeight, gradient: Tensor) -> bool:
    if gradient.is_sparse:
        fits = gradient.is_coalesced() and gradient.sparse_dim() == 1 and _is_plain(gradient._values())
    else:
        fits = _is_plain(gradient)
    return fits and weight.is_plain and weight.shape == gradient.shape


def can_sum_rows(d: Tensor) -> bool:
    """Whether `sum_rows` can serve such a tensor here."""
    return d.dtype in (torch.float32, torch.bfloat16) and lies_here(d) and why_no_library() is None


def sum_rows(d_NZ: Tensor, ids_N: Tensor, num_rows: int) -> Tensor:
    """Returns [num_rows, Z]: row v is the sum of those rows of d whose id is v, in their order, in float32 and rounded once.

    Raises ValueError for types and shapes that do not fit, IndexError for an id that is no row.
    """
    if not can_sum_rows(d_NZ) or d_NZ.dim() != 2:
        raise ValueError(f"rows of {d_NZ.dtype} on {d_NZ.device}; expected a matrix of float32 or bfloat16 on a CPU.")
    if ids_N.dtype is not torch.int64 or ids_N.shape != d_NZ.shape[:1] or not lies_here(ids_N):
        raise ValueError(f"ids are {ids_N.dtype} of shape {tuple(ids_N.shape)}; expected int64 of {len(d_NZ)}, one a row.")
    d_NZ, ids_N = d_NZ.contiguous().resolve_neg(), ids_N.contiguous()
    sums_VZ = d_NZ.new_empty(num_rows, d_NZ.shape[1])
    problem = library()["lmtrain_sum_rows"](
        ctypes.c_int(d_NZ.dtype == torch.bfloat16),
        *(ctypes.c_long(size) for size in (len(d_NZ), *sums_VZ.shape)),
        *(ctypes.c_void_p(x.data_ptr()) for x in (ids_N, d_NZ, sums_VZ)),
        ctypes.c_long(torch.get_num_threads()),
    )
    if problem:
        raise IndexError(f"ids_N holds an id outside 0 to {num_rows - 1}.")
    return sums_VZ
