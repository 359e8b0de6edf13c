"""Three losses of the lectures on window classification, with gradients by hand. Each is summed over its items.

    softmax      -log softmax(s)_y                        d/ds = softmax(s) - onehot(y)
    logistic     log(1 + exp(-s)) where y = 1,            d/ds = sigmoid(s) - y
                 log(1 + exp(s)) where y = 0
    max margin   max(0, 1 - s + s_c)                      d/ds = -1 and d/ds_c = 1 where it is above 0, else 0

s is the score of a window and s_c that of a corrupted one (Collobert and Weston 2008): the score is to be larger by a margin
of 1. And `affine`, the layer s = x W^T + b, whose gradients are the upstream one times what each was multiplied by.

    legend   N windows · C classes · D inputs
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmtrain.ops.transforms import Looped, call


class KeepsInputs:
    """What a function has of which both inputs are kept for the backward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


def softmax_loss(scores_NC: Tensor, targets_N: Tensor) -> Tensor:
    """Total nats of the classes `targets_N` (int64), a scalar."""
    loss: Tensor = call(SoftmaxLossFunction, scores_NC, targets_N)
    return loss


class SoftmaxLossFunction(KeepsInputs, Looped):
    """Cross-entropy of a softmax."""

    @staticmethod
    def forward(scores_NC: Tensor, targets_N: Tensor) -> Tensor:
        return -_wide(scores_NC).log_softmax(-1).gather(-1, targets_N[:, None]).sum()

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, None]:
        scores_NC, targets_N = ctx.saved_tensors
        probs_NC = _wide(scores_NC).softmax(-1)
        right_NC = targets_N[:, None] == torch.arange(scores_NC.shape[-1], device=scores_NC.device)
        return ((probs_NC - right_NC.to(probs_NC.dtype)) * d_outputs[0]).to(scores_NC.dtype), None


def logistic_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Total nats of yes (1) and no (0) answers `targets` (bool, of the shape of the scores), a scalar."""
    loss: Tensor = call(LogisticLossFunction, scores, targets)
    return loss


class LogisticLossFunction(KeepsInputs, Looped):
    """Cross-entropy of a sigmoid, by softplus, which is exact for large scores."""

    @staticmethod
    def forward(scores: Tensor, targets: Tensor) -> Tensor:
        wide = _wide(scores)
        signed = torch.where(targets, -wide, wide)
        return (signed.clamp(min=0) + signed.abs().neg().exp().log1p()).sum()

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, None]:
        scores, targets = ctx.saved_tensors
        wide = _wide(scores)
        return ((wide.sigmoid() - targets.to(wide.dtype)) * d_outputs[0]).to(scores.dtype), None


def max_margin_loss(scores_N: Tensor, corrupted_N: Tensor) -> Tensor:
    """sum over n of max(0, 1 - s_n + s_c,n), a scalar."""
    loss: Tensor = call(MaxMarginLossFunction, scores_N, corrupted_N)
    return loss


class MaxMarginLossFunction(KeepsInputs, Looped):
    """The hinge. Where it is exactly 0, its gradient is 0."""

    @staticmethod
    def forward(scores_N: Tensor, corrupted_N: Tensor) -> Tensor:
        margins_N = 1 - scores_N + corrupted_N
        return torch.where(margins_N.isnan(), margins_N, margins_N.clamp(min=0)).sum()

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor]:
        scores_N, corrupted_N = ctx.saved_tensors
        d_N = (1 - scores_N + corrupted_N > 0).to(scores_N.dtype) * d_outputs[0]
        return -d_N, d_N


def affine(x_ND: Tensor, weight_CD: Tensor, bias_C: Tensor) -> Tensor:
    """x W^T + b, [N, C]."""
    y_NC: Tensor = call(AffineFunction, x_ND, weight_CD, bias_C)
    return y_NC


class AffineFunction(Looped):
    """dx = d W,  dW = d^T x,  db = the sum of d: the error signal times the local input."""

    @staticmethod
    def forward(x_ND: Tensor, weight_CD: Tensor, bias_C: Tensor) -> Tensor:
        return torch.addmm(bias_C, x_ND, weight_CD.T)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x_ND, weight_CD), (d_NC,) = ctx.saved_tensors, d_outputs
        return d_NC @ weight_CD, d_NC.T @ x_ND, d_NC.sum(0)


def window_vectors(table_VE: Tensor, ids_NW: Tensor) -> Tensor:
    """The concatenated vectors [N, W E] of the words of windows; ids are int64.

    A word that stands in several places gets the sum of their gradients.
    """
    x_ND: Tensor = call(WindowVectorsFunction, table_VE, ids_NW)
    return x_ND


class WindowVectorsFunction(Looped):
    """The look-up of a window: backward, each part of the error signal goes to the row of the word that stood there."""

    @staticmethod
    def forward(table_VE: Tensor, ids_NW: Tensor) -> Tensor:
        return table_VE.index_select(0, ids_NW.reshape(-1)).view(len(ids_NW), -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        table_VE, ids_NW = inputs
        ctx.shape = table_VE.shape
        ctx.save_for_backward(ids_NW)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, None]:
        (ids_NW,), (d_ND,) = ctx.saved_tensors, d_outputs
        return d_ND.new_zeros(ctx.shape).index_add(0, ids_NW.reshape(-1), d_ND.reshape(-1, ctx.shape[1])), None


def _wide(scores: Tensor) -> Tensor:
    """In float32 at least."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
