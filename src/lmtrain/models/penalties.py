"""Penalties on activations, added to the mean loss of a chunk (Merity, McCann and Socher 2017, "Revisiting activation
regularization for language RNNs").

    AR   alpha * mean (m * h_t)^2           activations as the head sees them, behind dropout
    TAR  beta * mean (h_{t+1} - h_t)^2      activations of the last layer before dropout

Means run over all elements (as in the authors' program), not over the squared L2 norms of the paper's text.
"""

from __future__ import annotations

from torch import Tensor


def activation_penalty(features_TBD: Tensor, alpha: float) -> Tensor:
    """AR: `alpha` times the mean square of the features; a scalar, float32 or wider."""
    return alpha * _wide(features_TBD).square().mean()


def temporal_activation_penalty(raw_TBD: Tensor, beta: float) -> Tensor:
    """TAR: `beta` times the mean square change from step to step; 0 for a chunk of one step."""
    if len(raw_TBD) == 1:
        return _wide(raw_TBD).new_zeros(())
    return beta * _wide(raw_TBD).diff(dim=0).square().mean()


def _wide(x: Tensor) -> Tensor:
    return x if x.element_size() >= 4 else x.float()
