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
from torch.autograd.function import once_differentiable


def softmax_loss(scores_NC: Tensor, targets_N: Tensor) -> Tensor:
    """Total nats of the classes `targets_N` (int64), a scalar."""
    loss: Tensor = SoftmaxLoss.apply(scores_NC, targets_N)
    return loss


class SoftmaxLoss(torch.autograd.Function):
    """Cross-entropy of a softmax."""

    @staticmethod
    def forward(ctx: Any, scores_NC: Tensor, targets_N: Tensor) -> Tensor:
        log_probs_NC = scores_NC.log_softmax(-1, dtype=torch.promote_types(scores_NC.dtype, torch.float32))
        ctx.save_for_backward(log_probs_NC, targets_N)
        ctx.dtype = scores_NC.dtype
        return -log_probs_NC.gather(-1, targets_N[:, None]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None]:
        log_probs_NC, targets_N = ctx.saved_tensors
        d_NC = log_probs_NC.exp()
        d_NC.scatter_add_(-1, targets_N[:, None], d_NC.new_full((len(d_NC), 1), -1))
        return (d_NC * d_loss).to(ctx.dtype), None


def logistic_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Total nats of yes (1) and no (0) answers `targets` (bool, of the shape of the scores), a scalar."""
    loss: Tensor = LogisticLoss.apply(scores, targets)
    return loss


class LogisticLoss(torch.autograd.Function):
    """Cross-entropy of a sigmoid, by softplus, which is exact for large scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor) -> Tensor:
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        ctx.save_for_backward(wide, targets)
        ctx.dtype = scores.dtype
        signed = torch.where(targets, -wide, wide)
        return (signed.clamp(min=0) + signed.abs().neg().exp().log1p()).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None]:
        wide, targets = ctx.saved_tensors
        return ((wide.sigmoid() - targets.to(wide.dtype)) * d_loss).to(ctx.dtype), None


def max_margin_loss(scores_N: Tensor, corrupted_N: Tensor) -> Tensor:
    """sum over n of max(0, 1 - s_n + s_c,n), a scalar."""
    loss: Tensor = MaxMarginLoss.apply(scores_N, corrupted_N)
    return loss


class MaxMarginLoss(torch.autograd.Function):
    """The hinge. Where it is exactly 0, its gradient is 0."""

    @staticmethod
    def forward(ctx: Any, scores_N: Tensor, corrupted_N: Tensor) -> Tensor:
        margins_N = 1 - scores_N + corrupted_N
        ctx.save_for_backward(margins_N > 0)
        ctx.dtype = scores_N.dtype
        return torch.where(margins_N.isnan(), margins_N, margins_N.clamp(min=0)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor]:
        (counts_N,) = ctx.saved_tensors
        d_N = counts_N.to(ctx.dtype) * d_loss
        return -d_N, d_N


def affine(x_ND: Tensor, weight_CD: Tensor, bias_C: Tensor) -> Tensor:
    """x W^T + b, [N, C]."""
    y_NC: Tensor = Affine.apply(x_ND, weight_CD, bias_C)
    return y_NC


class Affine(torch.autograd.Function):
    """dx = d W,  dW = d^T x,  db = the sum of d: the error signal times the local input."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_CD: Tensor, bias_C: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_CD)
        return torch.addmm(bias_C, x_ND, weight_CD.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_ND, weight_CD = ctx.saved_tensors
        return d_NC @ weight_CD, d_NC.T @ x_ND, d_NC.sum(0)


def window_vectors(table_VE: Tensor, ids_NW: Tensor) -> Tensor:
    """The concatenated vectors [N, W E] of the words of windows; ids are int64.

    A word that stands in several places gets the sum of their gradients.
    """
    x_ND: Tensor = WindowVectors.apply(table_VE, ids_NW)
    return x_ND


class WindowVectors(torch.autograd.Function):
    """The look-up of a window: backward, each part of the error signal goes to the row of the word that stood there."""

    @staticmethod
    def forward(ctx: Any, table_VE: Tensor, ids_NW: Tensor) -> Tensor:
        ctx.save_for_backward(ids_NW)
        ctx.shape = table_VE.shape
        return table_VE.index_select(0, ids_NW.reshape(-1)).view(len(ids_NW), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_ND: Tensor) -> tuple[Tensor, None]:
        (ids_NW,) = ctx.saved_tensors
        d_VE = d_ND.new_zeros(ctx.shape)
        return d_VE.index_add_(0, ids_NW.reshape(-1), d_ND.reshape(-1, ctx.shape[1])), None
