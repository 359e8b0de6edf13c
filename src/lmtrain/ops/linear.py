"""A linear layer, `torch.nn.functional.linear`, whose float32 products are ours where those are faster.

    y_n = W x_n + b        d_x_n = W^T d_y_n        d_W = sum over n of d_y_n x_n^T        d_b = sum over n of d_y_n

PyTorch's float32 products use AVX-512 on Intel's processors alone (see `lmtrain.ops.native.products`). Everywhere else, in
other types and under autocast this is PyTorch's own function, in bfloat16 by `lmtrain.ops.transforms.matmul`.

    legend   N rows · E inputs · Z outputs
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lmtrain.ops.native import products
from lmtrain.ops.recurrence import reference_gradients
from lmtrain.ops.transforms import Looped, are_in_plain_loops, call, is_for_reference, matmul


def linear(x: Tensor, weight_ZE: Tensor, bias_Z: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Returns x W^T + b for x [..., E]. With the backends reference and eager it is PyTorch's own in any case."""
    if are_in_plain_loops(x, weight_ZE):
        return matmul(x, weight_ZE.T, bias_Z)
    if backend in ("reference", "eager") or not _is_ours(x, weight_ZE, bias_Z):
        return F.linear(x, weight_ZE, bias_Z)
    y_NZ: Tensor = call(LinearFunction, x.flatten(0, -2), weight_ZE, bias_Z)
    return y_NZ.unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """`torch.nn.Linear`, whose bfloat16 is never multiplied in plain loops."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, backend="eager")


def _is_ours(x: Tensor, weight_ZE: Tensor, bias_Z: Tensor | None) -> bool:
    if x.dim() < 2 or weight_ZE.dim() != 2 or x.shape[-1] != weight_ZE.shape[1] or torch.compiler.is_compiling():
        return False
    if not products.are_plain(x, weight_ZE, bias_Z) or torch.is_autocast_enabled("cpu"):
        return False
    return products.is_fast(x.shape[:-1].numel(), *weight_ZE.shape)


class LinearFunction(Looped):
    """`F.linear` of a matrix, with its gradients by hand."""

    @staticmethod
    def forward(x_NE: Tensor, weight_ZE: Tensor, bias_Z: Tensor | None) -> Tensor:
        if not products.can_serve(x_NE, weight_ZE, bias_Z):
            return F.linear(x_NE, weight_ZE, bias_Z)
        return products.product(x_NE, weight_ZE.T, bias_Z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_NE, weight_ZE, bias_Z = inputs = ctx.saved_tensors
        (d_y_NZ,), needed = d_outputs, ctx.needs_input_grad
        if is_for_reference(d_outputs):
            return tuple(reference_gradients(_reference, inputs, needed, (d_y_NZ,)))
        return (
            products.matmul(d_y_NZ, weight_ZE) if needed[0] else None,
            products.matmul(d_y_NZ.T, x_NE) if needed[1] else None,
            d_y_NZ.sum(0) if bias_Z is not None and needed[2] else None,
        )


def _reference(x_NE: Tensor, weight_ZE: Tensor, bias_Z: Tensor | None) -> tuple[Tensor]:
    return (F.linear(x_NE, weight_ZE, bias_Z),)
