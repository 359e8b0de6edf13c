"""From a distribution to a token: how it is drawn, and what may not be.

Truncation, in this order: temperature, the `top_k` likeliest, the smallest set of probability `top_p` (nucleus sampling,
Holtzman et al. 2020), those at least `min_p` as likely as the likeliest (Nguyen et al. 2024).

    legend   N texts · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmtrain.errors import CheckpointError, SettingsError, UserError
from lmtrain.ops.draw import draw_token, draw_tokens


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How to draw. `temperature` 0 always takes the likeliest token; `stop` strings end a text and are not part of it.

    `<unk>` is never drawn unless `allow_unk`. Raises SettingsError for values out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int = 200
    stop: Sequence[str] = ()
    allow_unk: bool = False
    no_repeat_ngram: int | None = None  # see `constraints`, as of the next one
    words: Sequence[str] | None = None
    statistics: bool = True  # False saves the time for a draw's rank (then 0) and entropy (then not a number)

    @property
    def truncates(self) -> bool:
        """Whether some tokens may not be drawn, whatever the temperature."""
        return not (self.top_k is self.top_p is self.min_p is None)

    def __post_init__(self) -> None:
        check_setting(0 <= self.temperature < math.inf, "temperature", self.temperature,
              "0 (always the likeliest token) and finite numbers above 0", "0.8")  # fmt: skip
        check_setting(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "whole numbers of at least 1", "40")
        check_setting(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "numbers above 0 and at most 1", "0.9")
        check_setting(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "numbers from 0 to 1", "0.05")
        check_setting(self.max_tokens >= 1, "max_tokens", self.max_tokens, "whole numbers of at least 1", "200")
        check_setting(self.no_repeat_ngram is None or self.no_repeat_ngram >= 1, "no_repeat_ngram", self.no_repeat_ngram,
              "whole numbers of at least 1", "3")  # fmt: skip
        check_setting("" not in self.stop, "stop", "an empty string", "strings of at least one character", "'\\n'")


def check_setting(fine: bool, name: str, value: object, allowed: str, example: str) -> None:
    if not fine:
        raise SettingsError(f"{name} is {value}.", f"Allowed are {allowed}.", f"Type for example {name}={example}.")


USUAL = SampleSettings()


class OnlyUnknownError(SettingsError):
    """Nothing but `<unk>` has a probability, and it must not be drawn."""

    def __init__(self) -> None:
        super().__init__(
            "The model expects <unk> and nothing else.", "It is not drawn by default.", "Type allow_unk=True to draw it."
        )


def exclude(log_probs: Tensor, token: int | None) -> Tensor:
    """The same log-probabilities [..., V] without `token`, if there is one; not normalised."""
    return log_probs if token is None else log_probs.index_fill(-1, torch.tensor([token]), -math.inf)


def nothing_to_draw(log_probs_V: Tensor, excluded: int | None) -> UserError:
    """Says why nothing can be drawn from these without `excluded` and what constraints forbid."""
    if log_probs_V.amax() == -math.inf:
        return CheckpointError(
            "The model gives probability zero to every token that could come next.",
            "Sampling needs a model whose probabilities sum to one.",
            "Name another model, such as an n-gram model with model.smoothing=kneser_ney.",
        )
    if exclude(log_probs_V, excluded).amax() == -math.inf:
        return OnlyUnknownError()
    return SettingsError(
        "The constraints leave nothing to go on with.",
        "At the first place, some token must be allowed that the model gives a probability.",
        "Give a larger no_repeat_ngram, more words, or another prompt.",
    )


def truncate(log_probs_V: Tensor, settings: SampleSettings) -> Tensor:
    """Log-probabilities of what may be drawn, normalised, -inf for the rest; of equals, lower ids come first.

    Raises ValueError where no token has a probability.
    """
    if log_probs_V.amax() == -math.inf:
        raise ValueError("no token has a probability.")
    if settings.temperature == 0:
        return torch.full_like(log_probs_V, -math.inf).index_fill(0, log_probs_V.argmax(), 0.0)
    # In log space and relative to the maximum: however small the temperature, the likeliest token keeps its probability.
    # Beyond 1e30 either way nothing changes, and float32 has no numbers.
    temperature = min(max(settings.temperature, 1e-30), 1e30)
    log_probs_V = (log_probs_V - log_probs_V.amax()).div_(temperature).log_softmax(-1)
    if not settings.truncates:
        return log_probs_V
    candidates = torch.arange(len(log_probs_V))
    if settings.top_k is not None:  # only these, and equals of the last one, need to be sorted
        least = log_probs_V.topk(min(settings.top_k, len(log_probs_V))).values[-1]
        candidates = (log_probs_V >= least).nonzero()[:, 0]
    kept, order = log_probs_V[candidates].double().sort(descending=True, stable=True)
    kept, order = kept[: settings.top_k].log_softmax(-1), candidates[order]
    if settings.top_p is not None:
        probability_before = kept.exp().cumsum(-1) - kept.exp()
        kept = kept[probability_before < settings.top_p].log_softmax(-1)
    if settings.min_p:
        kept = kept[kept >= kept[0] + math.log(settings.min_p)].log_softmax(-1)
    return torch.full_like(log_probs_V, -math.inf).index_copy(0, order[: len(kept)], kept.to(log_probs_V.dtype))


def draw(log_probs_V: Tensor, settings: SampleSettings, uniform: float, *, excluded: int | None = None) -> int:
    """The token that a number from 0 to 1 picks from what may be drawn. Raises what `nothing_to_draw` says."""
    (token,) = draw_each(log_probs_V[None], settings, [uniform], excluded=excluded)
    if token is None:
        raise nothing_to_draw(log_probs_V, excluded)
    return token


def draw_each(
    log_probs_NV: Tensor, settings: SampleSettings, uniforms: Sequence[float], *, excluded: int | None = None
) -> list[int | None]:
    """`draw` from each of N distributions with a number of its own; None where nothing may be drawn."""
    try:  # a temperature alone needs no truncation, and then the vocabulary is gone through only once
        if not settings.truncates and settings.temperature > 0:
            return [*draw_tokens(log_probs_NV, uniforms, temperature=settings.temperature, excluded=excluded)]
        allowed_NV = exclude(log_probs_NV, excluded)
        return [draw_token(truncate(of, settings), number) for of, number in zip(allowed_NV, uniforms, strict=True)]
    except ValueError:
        is_possible = (exclude(log_probs_NV, excluded).amax(1) > -math.inf).tolist()
        check_probabilities(not (log_probs_NV.isnan().any() or all(is_possible)))
        kept = [number for number, possible in enumerate(is_possible) if possible]
        others = [uniforms[number] for number in kept]
        drawn = iter(draw_each(log_probs_NV[kept], settings, others, excluded=excluded) if kept else [])
        return [next(drawn) if possible else None for possible in is_possible]


def check_probabilities(fine: bool) -> None:
    if not fine:
        raise CheckpointError(
            "The model contains non-finite weights: its probabilities are not numbers.",
            "Sampling needs a model whose training did not diverge.",
            "Name an earlier checkpoint, or train again with a lower learning rate or stronger clipping.",
        )
