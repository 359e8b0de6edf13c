"""Skip-gram and CBOW with negative sampling (Mikolov et al. 2013), in nats.

    h_n  = mean over the contexts c of row n of v_c       skip-gram: one context, the word in the centre; CBOW: its neighbours
    s_nj = h_n u_j                                        for the target y_n and the K words drawn as noise
    loss = sum over n of -log sigmoid(s_ny) - sum over k of log sigmoid(-s_nk)

A drawn word that is the row's target counts nothing. With a_nj = sigmoid(s_nj) - [j is the target], which is the gradient of s,

    d_h_n = sum over j of a_nj u_j      d_u_j = sum over n of a_nj h_n      d_v_c = sum over the rows n with c of d_h_n / C_n

The forward pass keeps h [N, E] and a [N, K + 1]; rows of words that occur twice are added.

    legend   N rows (predictions) · C contexts of a row at the most · K noise words · J = K + 1, the target first
             V words · E numbers of a vector
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, logsigmoid

from lmtrain.ops.recurrence import reference_gradients
from lmtrain.ops.shapes import check_dtype, check_shape
from lmtrain.ops.transforms import Looped, call, is_for_reference, without_autocast


def negative_sampling(
    input_VE: Tensor, output_VE: Tensor, contexts_NC: Tensor, targets_N: Tensor, samples_NK: Tensor
) -> Tensor:
    """The total loss in nats: a scalar of the vectors' type.

    input_VE     vectors v of words as contexts: those that are used afterwards
    output_VE    vectors u of words as targets
    contexts_NC  int64 ids of each row's contexts; -1 where it has fewer, at least one
    targets_N    int64 ids
    samples_NK   int64 ids drawn as noise

    Raises ValueError for shapes and types that do not fit.
    """
    sizes = check_shape("input_VE", input_VE, "V E")
    check_shape("output_VE", output_VE, "V E", sizes)
    check_shape("contexts_NC", contexts_NC, "N C", sizes)
    check_shape("targets_N", targets_N, "N", sizes)
    check_shape("samples_NK", samples_NK, "N K", sizes)
    for name, vectors in (("input_VE", input_VE), ("output_VE", output_VE)):
        check_dtype(name, vectors.dtype, torch.float32, torch.float64)
    with without_autocast(input_VE.device):
        total, *_ = call(NegativeSamplingFunction, input_VE, output_VE, contexts_NC, targets_N, samples_NK)
    return total


def negative_sampling_reference(
    input_VE: Tensor, output_VE: Tensor, contexts_NC: Tensor, targets_N: Tensor, samples_NK: Tensor
) -> Tensor:
    """The definition, in plain differentiable PyTorch."""
    there_NC1 = (contexts_NC >= 0)[:, :, None]
    hidden_NE = (embedding(contexts_NC.clamp(min=0), input_VE) * there_NC1).sum(1) / there_NC1.sum(1)
    positive_N = (hidden_NE * embedding(targets_N, output_VE)).sum(-1)
    negative_NK = (hidden_NE[:, None] * embedding(samples_NK, output_VE)).sum(-1)
    noise_NK = logsigmoid(-negative_NK).masked_fill(samples_NK == targets_N[:, None], 0)
    return -logsigmoid(positive_N).sum() - noise_NK.sum()


class NegativeSamplingFunction(Looped):
    """`negative_sampling_reference` with gradients by hand; takes its arguments."""

    @staticmethod
    def forward(
        input_VE: Tensor, output_VE: Tensor, contexts_NC: Tensor, targets_N: Tensor, samples_NK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        there_NC = contexts_NC >= 0
        context_NCE = embedding(contexts_NC.clamp(min=0), input_VE)
        hidden_NE = torch.einsum("nc,nce->ne", _shares(there_NC, input_VE.dtype), context_NCE)
        words_NJ = torch.cat([targets_N[:, None], samples_NK], dim=1)
        scores_NJ = torch.einsum("ne,nje->nj", hidden_NE, embedding(words_NJ, output_VE))
        signs_NJ = torch.full_like(scores_NJ, -1)
        signs_NJ[:, 0] = 1
        is_counted_NJ = words_NJ != targets_N[:, None]
        is_counted_NJ[:, 0] = True
        total = -logsigmoid(signs_NJ * scores_NJ).mul(is_counted_NJ).sum()
        d_scores_NJ = (torch.sigmoid(scores_NJ) - (signs_NJ > 0).to(scores_NJ.dtype)) * is_counted_NJ
        return total, d_scores_NJ, hidden_NE

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, d_scores_NJ, hidden_NE = ctx.saved_tensors
        d_total = d_outputs[0]
        if d_total is None:
            return (None,) * 5
        if is_for_reference(d_outputs):
            return tuple(reference_gradients(_reference_tuple, inputs, ctx.needs_input_grad, (d_total,)))
        input_VE, output_VE, contexts_NC, targets_N, samples_NK = inputs
        d_scores_NJ = d_scores_NJ * d_total
        words_NJ = torch.cat([targets_N[:, None], samples_NK], dim=1)
        d_hidden_NE = torch.einsum("nj,nje->ne", d_scores_NJ, embedding(words_NJ, output_VE))
        d_rows_NJE = d_scores_NJ[:, :, None] * hidden_NE[:, None]
        d_context_NCE = _shares(contexts_NC >= 0, input_VE.dtype)[:, :, None] * d_hidden_NE[:, None]
        return (
            _added(contexts_NC.clamp(min=0), d_context_NCE, input_VE), _added(words_NJ, d_rows_NJE, output_VE),
            None, None, None,
        )  # fmt: skip


def _shares(there_NC: Tensor, dtype: torch.dtype) -> Tensor:
    """What each context has of the mean; 0 where there is none."""
    return there_NC.to(dtype) / there_NC.sum(1, keepdim=True)


def _added(ids: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Zeros like `like`, with each row of `rows` added to the one that its id names."""
    return torch.zeros_like(like).index_add_(0, ids.flatten(), rows.flatten(0, -2))


def _reference_tuple(*inputs: Tensor) -> tuple[Tensor]:
    return (negative_sampling_reference(*inputs),)
