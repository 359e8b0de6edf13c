"""What a training step does with gradients on a CPU (`gradients.h`, `adam.h`): it limits their norm, adds up those of a
look-up, and takes a step of Adam.

Sums have one order, whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmtrain.ops.native.build import library, why_no_library


def can_clip(gradients: Sequence[Tensor]) -> bool:
    """Whether `clip` can serve these tensors: float32 on a CPU, each in one piece."""
    return all(map(_is_plain, gradients)) and why_no_library() is None


def _is_plain(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_cpu and x.layout is torch.strided and x.is_contiguous() and not x.is_neg()


def clip(gradients: Sequence[Tensor], max_norm: float) -> float:
    """Returns the L2 norm of all gradients together, which are then scaled down to `max_norm` if it is larger (0: never).

    Squares are added up in float64. A norm that is not finite changes nothing. Raises ValueError unless `can_clip`.
    """
    if not can_clip(gradients):
        raise ValueError("gradients are clipped here in float32, on a CPU, each in one piece.")
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
    return norm


class AdamWeight(NamedTuple):
    """A weight, its gradient (sparse ones coalesced, of whole rows), the moving averages of the gradient and of its square, and
    the number of steps taken, a scalar."""

    weight: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor

    def tensors(self) -> list[Tensor | None]:
        """In the order of `lmtrain_adam`; the last are the rows of a sparse gradient. One without rows is none."""
        memory = [self.weight, self.mean, self.square, self.step]
        if not self.gradient.is_sparse:
            return [*memory, self.gradient, None]
        return (
            [*memory, self.gradient._values(), self.gradient._indices()[0]] if self.gradient._nnz() else [*memory, None, None]
        )


class AdamRule(NamedTuple):
    """`decay` adds to the gradient, or shrinks the weight beforehand if it `is_decoupled`."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    decay: float = 0.0
    is_decoupled: bool = False


def adam(groups: Sequence[tuple[AdamRule, Sequence[AdamWeight]]]) -> bool:
    """Takes a step of Adam, in place: all numbers of each weight move, those without a gradient as if it were 0.

    Returns False, and changes nothing, where it cannot: it takes float32 on a CPU, each tensor in one piece.
    """
    if not all(_can_step(each) for _, weights in groups for each in weights) or why_no_library() is not None:
        return False
    for rule, weights in groups:
        tensors = [x for each in weights for x in each.tensors()]
        sizes = [size for each in weights for size in (*_rows(each.gradient), each.weight.numel())]
        library()["lmtrain_adam"](
            ctypes.c_long(len(weights)),
            (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors)),
            (ctypes.c_long * len(sizes))(*sizes),
            (ctypes.c_double * 5)(*rule[:5]),
            ctypes.c_int(rule.is_decoupled),
            ctypes.c_long(torch.get_num_threads()),
        )
    return True


def _can_step(each: AdamWeight) -> bool:
    weight, gradient, mean, square, step = each
    if gradient.is_sparse:
        fits = gradient.is_coalesced() and gradient.sparse_dim() == 1 and _is_plain(gradient._values())
    else:
        fits = _is_plain(gradient)
    return (
        fits
        and _is_plain(weight) and _is_plain(mean) and _is_plain(square) and _is_plain(step)
        and weight.shape == mean.shape == square.shape == gradient.shape and step.numel() == 1
    )  # fmt: skip


def _rows(gradient: Tensor) -> tuple[int, int]:
    """How many rows a sparse gradient has, and how wide they are; nothing of a dense one."""
    return (gradient._nnz(), gradient.shape[1:].numel()) if gradient.is_sparse else (0, 0)


def can_sum_rows(d: Tensor) -> bool:
    """Whether `sum_rows` can serve such a tensor here."""
    return d.dtype in (torch.float32, torch.bfloat16) and d.is_cpu and d.layout is torch.strided and why_no_library() is None


def sum_rows(d_NZ: Tensor, ids_N: Tensor, num_rows: int) -> Tensor:
    """Returns [num_rows, Z]: row v is the sum of those rows of d whose id is v, in their order, in float32 and rounded once.

    Raises ValueError for types and shapes that do not fit, IndexError for an id that is no row.
    """
    if not can_sum_rows(d_NZ) or d_NZ.dim() != 2:
        raise ValueError(f"rows of {d_NZ.dtype} on {d_NZ.device}; expected a matrix of float32 or bfloat16 on a CPU.")
    if ids_N.dtype is not torch.int64 or ids_N.shape != d_NZ.shape[:1] or not ids_N.is_cpu or ids_N.layout is not torch.strided:
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
