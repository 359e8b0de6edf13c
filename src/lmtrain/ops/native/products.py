"""Large matrix products in float32 (`matrix_product.h`), where they are faster than PyTorch's own.

PyTorch multiplies float32 matrices with MKL, which uses AVX-512 on Intel's processors alone. On others that have it, this
product is twice as fast. Which one computes follows from processor, build and sizes, and never from a measurement while
the program runs: so results are the same at every start. Each sum depends on K alone, not on the other rows and columns.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lmtrain.ops import transforms
from lmtrain.ops.native.build import library, why_no_library
from lmtrain.ops.transforms import lies_here

SMALL = 1 << 23  # multiplications; below, the call from Python costs more than it gains


def is_fast(rows: int, columns: int, depth: int) -> bool:
    """Whether `product` is to compute a product of these sizes on this machine. The first call compiles the library."""
    return rows * columns * depth >= SMALL and why_no_library() is None and _is_fast(library())


@cache
def _is_fast(library: ctypes.CDLL) -> bool:
    return bool(library["lmtrain_product_is_fast"]())


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether `product` takes tensors of these types."""
    return all(x is None or (x.dtype is torch.float32 and lies_here(x)) for x in tensors)


def can_serve(*tensors: Tensor | None) -> bool:
    """Whether `product` can compute with these tensors here, be it faster or not."""
    return are_plain(*tensors) and why_no_library() is None


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b by the fastest way. For kernels: it is not differentiable."""
    ours = are_plain(a_MK, b_KN) and is_fast(len(a_MK), b_KN.shape[1], len(b_KN))
    return product(a_MK, b_KN) if ours else transforms.matmul(a_MK, b_KN)


def product(a_MK: Tensor, b_KN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """a @ b + bias, [M, N], of float32 matrices on a CPU, by rows or by columns; others are copied first.

    Raises ValueError for shapes, types and devices that do not fit: C++ trusts them.
    """
    (M, K), N = a_MK.shape, b_KN.shape[-1]
    if b_KN.shape != (K, N) or (bias_N is not None and bias_N.shape != (N,)) or 0 in (M, N, K):
        bias = "" if bias_N is None else f" + {tuple(bias_N.shape)}"
        raise ValueError(f"a product of shapes {tuple(a_MK.shape)} x {tuple(b_KN.shape)}{bias}; expected M, K x K, N + N.")
    if not are_plain(a_MK, b_KN, bias_N):
        given = ", ".join(f"{x.dtype} on {x.device}" for x in (a_MK, b_KN, bias_N) if x is not None)
        raise ValueError(f"a product of {given}; expected float32 on a CPU.")
    a_MK, b_KN = _by_rows_or_columns(a_MK), _by_rows_or_columns(b_KN)
    bias_N = None if bias_N is None else bias_N.contiguous().resolve_neg()
    c_MN = a_MK.new_empty(M, N)
    library()["lmtrain_product"](
        *(ctypes.c_long(size) for size in (M, N, K, *a_MK.stride(), *b_KN.stride())),
        *(ctypes.c_void_p(None if x is None else x.data_ptr()) for x in (a_MK, b_KN, bias_N, c_MN)),
        ctypes.c_long(torch.get_num_threads()),
    )
    return c_MN


def _by_rows_or_columns(x: Tensor) -> Tensor:
    x = x.resolve_neg()
    return x if 1 in x.stride() else x.contiguous()
