"""What a training step does with gradients on a CPU (`gradients.h`): it limits their norm, and adds up those of a look-up.

Sums have one order, whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lmtrain.ops.native.build import library, why_no_library


def can_clip(gradients: Sequence[Tensor]) -> bool:
    """Whether `clip` can serve these tensors: float32 on a CPU, each in one piece."""
    return all(
        x.dtype is torch.float32 and x.is_cpu and x.layout is torch.strided and x.is_contiguous() and not x.is_neg()
        for x in gradients
    ) and (why_no_library() is None)


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
