"""What a training step does with gradients on a CPU (`gradients.h`): it limits their norm.

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
