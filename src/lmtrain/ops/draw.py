"""Draws a token from a distribution: the first whose cumulated probability exceeds a uniform number (inversion).

    token = min { v : p_0 + ... + p_v > u (p_0 + ... + p_{V-1}) },     p_v = exp(log p_v / temperature), 0 for one excluded

One number decides one token, so the same numbers give the same text. A token with probability 0 is never drawn.

    legend   N distributions · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from lmtrain.ops.backends import Call, kernels, why_not


def draw_token(log_probs_V: Tensor, uniform: float, *, temperature: float = 1.0, excluded: int | None = None) -> int:
    """The token that `uniform`, at least 0 and below 1, picks from these log-probabilities, normalised or not.

    temperature  above 0; sums are float64
    excluded     a token that is not drawn

    Raises ValueError where there is no probability at all, or one that is not a number, and for a `uniform` or a
    temperature outside these ranges; IndexError for an excluded token outside the vocabulary.
    """
    return draw_tokens(log_probs_V[None], [uniform], temperature=temperature, excluded=excluded)[0]


def draw_tokens(
    log_probs_NV: Tensor, uniforms: Sequence[float], *, temperature: float = 1.0, excluded: int | None = None
) -> list[int]:
    """`draw_token` from each of N distributions with a number of its own; what it draws depends on no other."""
    # Beyond 1e30 either way nothing changes, and float32 has no numbers.
    temperature = min(max(temperature, 1e-30), 1e30)
    native_draw = _native_draw(log_probs_NV.device.type, log_probs_NV.dtype)
    tokens = [-1] * len(uniforms) if native_draw is None else native_draw(log_probs_NV, uniforms, temperature, excluded)
    return [
        token if token >= 0 else reference_draw(log_probs_V, uniform, temperature, excluded)
        for token, log_probs_V, uniform in zip(tokens, log_probs_NV, uniforms, strict=True)
    ]


def reference_draw(log_probs_V: Tensor, uniform: float, temperature: float = 1.0, excluded: int | None = None) -> int:
    """The definition, relative to the likeliest token, so that it is exact however unlikely that is."""
    (V,) = log_probs_V.shape
    if not (0 <= uniform < 1 and temperature > 0):
        raise ValueError(f"uniform={uniform}, temperature={temperature}; expected 0 <= uniform < 1 and a temperature above 0.")
    if excluded is not None and not 0 <= excluded < V:
        raise IndexError(f"excluded={excluded}; with V={V} tokens lie in 0 to {V - 1}.")
    if excluded is not None:
        log_probs_V = log_probs_V.index_fill(0, torch.tensor([excluded], device=log_probs_V.device), -math.inf)
    likeliest = log_probs_V.amax()
    if not likeliest > -math.inf:
        raise ValueError("no token has a probability, or one that is not a number.")
    probabilities_V = ((log_probs_V - likeliest).double() / temperature).exp()
    cumulated_V = probabilities_V.cumsum(-1)
    position = int(torch.searchsorted(cumulated_V, uniform * cumulated_V[-1], right=True))
    return position if position < len(cumulated_V) else int(probabilities_V.nonzero()[-1])  # rounding at the very end


@cache  # asked at every token, from cold caches
def _native_draw(device: str, dtype: torch.dtype) -> Callable[[Tensor, Sequence[float], float, int | None], list[int]] | None:
    """The native kernel where there is one."""
    if dtype != torch.float32 or why_not("native", Call("draw", device, dtype, {})) is not None:
        return None
    made: Callable[[Tensor, Sequence[float], float, int | None], list[int]] = kernels("native", "draw").forward_draw()
    return made
