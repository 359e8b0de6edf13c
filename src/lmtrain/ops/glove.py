"""GloVe: weighted least squares on the logarithms of co-occurrence counts (Pennington, Socher and Manning 2014, equation 8).

    e_n  = w_i c_j + b_i + d_j - log x_n           for the pair n of word i and context j, seen x_n times
    f_n  = min((x_n / x_max)^power, 1)
    loss = sum over n of f_n e_n^2

With g_n = 2 f_n e_n:    d_w_i = sum of g_n c_j    d_c_j = sum of g_n w_i    d_b_i = sum of g_n    d_d_j = sum of g_n

The forward pass keeps g [N].

    legend   N pairs · V words · E numbers of a vector
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lmtrain.ops.recurrence import reference_gradients
from lmtrain.ops.shapes import check_dtype, check_shape
from lmtrain.ops.transforms import Looped, call, is_for_reference, without_autocast


def glove_loss(
    word_VE: Tensor, context_VE: Tensor, word_bias_V: Tensor, context_bias_V: Tensor, words_N: Tensor, contexts_N: Tensor,
    counts_N: Tensor, *, x_max: float = 100.0, power: float = 0.75,
) -> Tensor:  # fmt: skip
    """The total weighted squared error: a scalar of the vectors' type.

    words_N, contexts_N  int64 ids of the pairs
    counts_N             how often each was seen, above 0

    Raises ValueError for shapes and types that do not fit.
    """
    sizes = check_shape("word_VE", word_VE, "V E")
    check_shape("context_VE", context_VE, "V E", sizes)
    check_shape("word_bias_V", word_bias_V, "V", sizes)
    check_shape("context_bias_V", context_bias_V, "V", sizes)
    for name, ids in (("words_N", words_N), ("contexts_N", contexts_N), ("counts_N", counts_N)):
        check_shape(name, ids, "N", sizes)
    check_dtype("word_VE", word_VE.dtype, torch.float32, torch.float64)
    with without_autocast(word_VE.device):
        total, _ = call(
            GloveFunction, word_VE, context_VE, word_bias_V, context_bias_V, words_N, contexts_N, counts_N, x_max, power
        )
    return total


def glove_loss_reference(
    word_VE: Tensor, context_VE: Tensor, word_bias_V: Tensor, context_bias_V: Tensor, words_N: Tensor, contexts_N: Tensor,
    counts_N: Tensor, x_max: float, power: float,
) -> Tensor:  # fmt: skip
    """The definition, in plain differentiable PyTorch."""
    product_N = (embedding(words_N, word_VE) * embedding(contexts_N, context_VE)).sum(-1)
    error_N = product_N + word_bias_V[words_N] + context_bias_V[contexts_N] - counts_N.log()
    return ((counts_N / x_max).pow(power).clamp(max=1) * error_N.square()).sum()


class GloveFunction(Looped):
    """`glove_loss_reference` with gradients by hand; takes its arguments."""

    @staticmethod
    def forward(
        word_VE: Tensor, context_VE: Tensor, word_bias_V: Tensor, context_bias_V: Tensor, words_N: Tensor,
        contexts_N: Tensor, counts_N: Tensor, x_max: float, power: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        product_N = torch.linalg.vecdot(embedding(words_N, word_VE), embedding(contexts_N, context_VE))
        error_N = product_N + word_bias_V[words_N] + context_bias_V[contexts_N] - counts_N.log()
        weight_N = (counts_N / x_max).pow(power).clamp(max=1)
        return (weight_N * error_N.square()).sum(), 2 * weight_N * error_N

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.x_max, ctx.power = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, d_product_N = ctx.saved_tensors
        d_total = d_outputs[0]
        if d_total is None:
            return (None,) * 9
        if is_for_reference(d_outputs):
            arguments = (*inputs, ctx.x_max, ctx.power)
            return tuple(reference_gradients(_reference_tuple, arguments, ctx.needs_input_grad, (d_total,)))
        word_VE, context_VE, word_bias_V, context_bias_V, words_N, contexts_N, _ = inputs
        d_N = d_product_N * d_total
        return (
            torch.zeros_like(word_VE).index_add_(0, words_N, d_N[:, None] * embedding(contexts_N, context_VE)),
            torch.zeros_like(context_VE).index_add_(0, contexts_N, d_N[:, None] * embedding(words_N, word_VE)),
            torch.zeros_like(word_bias_V).index_add_(0, words_N, d_N),
            torch.zeros_like(context_bias_V).index_add_(0, contexts_N, d_N),
            *[None] * 5,
        )


def _reference_tuple(*arguments: Any) -> tuple[Tensor]:
    return (glove_loss_reference(*arguments),)
