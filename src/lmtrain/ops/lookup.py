"""A look-up in a small table whose rows are used many times: `torch.nn.functional.embedding` with another backward pass.

    y_n = table[ids_n]        d_table = sum over n of onehot(ids_n) d_y_n^T = onehot^T d_y

On a CPU the rows of each id are added in the order of the tokens, in float32, and rounded once (`native/gradients.h`).
Elsewhere the sum is the matrix product; in bfloat16 that is accumulated in float32, too. PyTorch's own backward pass adds row
by row and rounds each time.

    legend   T steps · B streams · V rows of the table · Z their size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lmtrain.ops.native import gradients
from lmtrain.ops.transforms import call, is_batched, matmul


def lookup(table_VZ: Tensor, ids_TB: Tensor) -> Tensor:
    """Returns the rows [T, B, Z] of `table_VZ` for int64 `ids_TB`. Raises IndexError for an id outside the table (on a CPU)."""
    y_TBZ: Tensor = call(Lookup, table_VZ, ids_TB)
    return y_TBZ


def sparse_rows(rows_R: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """A sparse tensor of that shape with `values` in these rows, of which the same may come again."""
    with torch.sparse.check_sparse_tensor_invariants(False):  # PyTorch 2.11 warns where the argument of that name says so
        return torch.sparse_coo_tensor(rows_R[None], values, shape)


class Lookup(torch.autograd.Function):
    """A look-up whose gradient is a sum of rows, or a matrix product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(table_VZ: Tensor, ids_TB: Tensor) -> Tensor:
        return embedding(ids_TB, table_VZ)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        table_VZ, ids_TB = inputs
        ctx.num_rows = len(table_VZ)
        ctx.save_for_backward(ids_TB)
        ctx.save_for_forward(ids_TB)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, None]:
        (ids_TB,), (d_TBZ,) = ctx.saved_tensors, d_outputs
        d_NZ = d_TBZ.reshape(ids_TB.numel(), d_TBZ.shape[-1])
        if not (torch.is_grad_enabled() or is_batched(d_NZ)) and gradients.can_sum_rows(d_NZ):
            return gradients.sum_rows(d_NZ, ids_TB.flatten(), ctx.num_rows), None
        zeros_NV = d_TBZ.new_zeros(ids_TB.numel(), ctx.num_rows)
        return matmul(zeros_NV.scatter(1, ids_TB.reshape(-1, 1), 1).T, d_NZ), None

    @staticmethod
    def jvp(ctx: Any, *d_inputs: Tensor) -> Tensor:
        (ids_TB,) = ctx.saved_tensors
        return embedding(ids_TB, d_inputs[0])
