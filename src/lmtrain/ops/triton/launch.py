"""How kernels are launched: options, types, the matrix product of a step, and which variant is taken.

    (a) steps        one matrix product and one pointwise kernel per step: any size, any device
    (b) persistent   one launch for all steps, `lmtrain.ops.triton.persistent`

Nothing here allocates or synchronises inside a loop over steps, so a CUDA graph can capture it all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on tensors of the CPU (TRITON_INTERPRET=1 when Python starts)."""

BLOCK = 128  # hidden units of one pointwise program, one per thread
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16}

_variants = ["auto"]


@contextmanager
def variant(name: str) -> Iterator[None]:
    """Inside, recurrences run as "steps" or "persistent" only: for measurements and tests. "auto": by the rule."""
    assert name in ("auto", "steps", "persistent"), name
    _variants.append(name)
    try:
        yield
    finally:
        _variants.pop()


def chosen_variant() -> str:
    return _variants[-1]


def pointwise_grid(B: int, H: int) -> tuple[int, int]:
    """One program for BLOCK units of a stream."""
    return B, -(-H // BLOCK)


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left right; factors in bfloat16 are summed, and the result kept, in float32."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:  # the interpreter
        torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def gradient_before(product_BH: Tensor, direct_BH: Tensor | None, keep_TB: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient of the state before the first step, from what reaches it through the weight and directly."""
    d_h_BH = product_BH if direct_BH is None else product_BH + direct_BH
    if keep_TB is not None:
        d_h_BH = d_h_BH * keep_TB[0, :, None]
    return d_h_BH.to(dtype)
