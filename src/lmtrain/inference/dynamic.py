"""Models that adapt to the text while they predict it: dynamic evaluation and the continuous cache.

Each is a `Method` of `evaluate` and `score_text`. They may be combined, and the result names them with their numbers. A token
is predicted before anything is learnt from it, and every distribution is normalised.

Dynamic evaluation (Krause, Kahembwe, Murray and Renals 2018). After each segment, with W0 the trained weights and g the
gradient of the segment's mean nats per token,

    sgd    W  <-  W + decay (W0 - W)  -  rate g
    rms    W  <-  W + min(1, decay RMS/mean(RMS)) (W0 - W)  -  rate g / (RMS + epsilon)

where RMS is the root mean square of each weight's gradient over training segments (`gradient_rms`), and mean(RMS) is the mean
over weight tensors of their means. When the text ends, the trained weights are restored bit for bit.

The text must be one stream: with several, the later ones would teach the weights what the earlier ones have yet to predict.

Continuous cache (Grave, Joulin and Usunier 2017). With h_t the last hidden layer, which predicts token t+1, and a window of
past tokens,

    p(w) = (1 - weight) p_model(w) + weight p_cache(w)
    p_cache(w) is proportional to  sum_{t-window <= i < t} exp(theta h_t.h_i) [w_{i+1} = w]

Where nothing has been read yet, the model predicts alone. The result does not depend on how the text is cut.

    legend   T steps in a segment · B streams · D features · M remembered steps · S those and the steps of the segment
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lmtrain.errors import SettingsError
from lmtrain.inference.evaluate import (
    STATIC,
    Method,
    ScoreChunk,
    check_temperature,
    iter_positions,
    make_tokens,
    next_inputs,
    previous_tokens,
    tempered,
)
from lmtrain.machine import freed_memory_kept
from lmtrain.models.base import LanguageModel, NeuralLanguageModel, detach, evaluating
from lmtrain.models.mixture import Mixture
from lmtrain.ops.transforms import multiply, without_autocast


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Predicts tokens that followed similar hidden layers among the last `window`; `theta` sharpens, `weight` is its part."""

    window: int = 2000
    theta: float = 0.66
    weight: float = 0.13

    def __post_init__(self) -> None:
        _check(self.window >= 1, "window", self.window, "whole numbers of at least 1", "2000")
        _check(0 <= self.theta < math.inf, "theta", self.theta, "finite numbers of at least 0", "0.66")
        _check(0 <= self.weight < 1, "weight", self.weight, "numbers from 0 to below 1", "0.13")

    def __str__(self) -> str:
        return f"cache (window {self.window}, theta {self.theta:g}, weight {self.weight:g})"


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Gradient steps after each segment, by the rule `rms` if `rms` (from `gradient_rms`) is given, else by `sgd`.

    `rate` matters most. Start at 0.1 for sgd and at 1e-4 for rms, with a `decay` from 0.001 to 0.02, and choose all of them on
    the validation split.
    """

    rate: float
    decay: float = 0.0
    segment_length: int = 20
    epsilon: float = 1e-3
    rms: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        usual = "0.1" if self.rms is None else "0.0001"
        _check(0 <= self.rate < math.inf, "rate", self.rate, "finite numbers of at least 0", usual)
        _check(0 <= self.decay <= 1, "decay", self.decay, "numbers from 0 to 1", "0.008")
        _check(self.segment_length >= 1, "segment_length", self.segment_length, "whole numbers of at least 1", "20")
        _check(0 < self.epsilon < math.inf, "epsilon", self.epsilon, "finite numbers above 0", "0.001")

    def __str__(self) -> str:
        rule = "sgd" if self.rms is None else f"rms, epsilon {self.epsilon:g}"
        return f"dynamic evaluation ({rule}, rate {self.rate:g}, decay {self.decay:g}, segments of {self.segment_length})"


def _check(fine: bool, name: str, value: object, allowed: str, example: str) -> None:
    if not fine:
        raise SettingsError(f"{name} is {value}.", f"Allowed are {allowed}.", f"Type for example {name}={example}.")


@dataclass(frozen=True, kw_only=True)
class Adaptive(Method):
    """Dynamic evaluation, the cache, or both; `temperature` is applied to the model before the cache is mixed in.

    In a mixture, every neural model adapts on its own, and the other models predict as usual.
    """

    dynamic: Dynamic | None = None
    cache: Cache | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def segment_length(self) -> int | None:
        return self.dynamic.segment_length if self.dynamic else None

    @property
    def adapts(self) -> bool:
        return self.dynamic is not None

    @property
    def label(self) -> str:
        parts = [str(part) for part in (self.dynamic, self.cache) if part is not None] or ["static"]
        return " + ".join(parts + [f"temperature {self.temperature:g}"] * (self.temperature != 1))

    @contextmanager
    def scoring(self, model: LanguageModel, previous_B: Tensor) -> Iterator[ScoreChunk]:
        if isinstance(model, Mixture):
            with ExitStack() as stack:
                parts = [self if neural_models(part) else STATIC for part in model.models]
                scores = [stack.enter_context(m.scoring(p, previous_B)) for m, p in zip(parts, model.models, strict=True)]
                yield lambda targets_TB: model.mix([score(targets_TB) for score in scores])
            return
        neural = _neural(model)
        if self.dynamic and len(previous_B) > 1:
            raise SettingsError(
                f"Dynamic evaluation was given {len(previous_B)} streams.",
                "It takes 1, since a stream must not learn from text that comes later.",
                "Type num_streams=1.",
            )
        memory = _Memory(self.cache) if self.cache else None
        with _adapting(neural, self.dynamic) as learn:
            yield _make_score(neural, previous_B, learn=learn, memory=memory, temperature=self.temperature)


Learn = Callable[[Tensor], None]
"""Called with a segment's mean nats per token, a scalar with its graph, after the segment has been predicted."""


def _make_score(
    model: NeuralLanguageModel,
    previous_B: Tensor,
    *,
    learn: Learn | None,
    memory: _Memory | None = None,
    temperature: float = 1.0,
) -> ScoreChunk:
    state = model.initial_state(len(previous_B))

    def score(targets_TB: Tensor) -> Tensor:
        nonlocal state, previous_B
        inputs_TB, state = next_inputs(previous_B, targets_TB, state)
        previous_B = targets_TB[-1]
        with evaluating(model, autograd=learn is not None):
            features_TBD, state = model.features(inputs_TB, detach(state))
            own_TB = model.head.target_log_probs(features_TBD, targets_TB)
            log_probs_TB, features_TBD = own_TB.detach(), features_TBD.detach()
            if temperature != 1:
                with torch.no_grad():
                    log_probs_TB = tempered(model.head.log_probs(features_TBD), targets_TB, temperature)
            if memory is not None:
                log_probs_TB = memory.mix(log_probs_TB, model.hidden(features_TBD), targets_TB)
        if learn is not None:
            learn(-own_TB.mean())
        return log_probs_TB

    return score


def neural_models(model: LanguageModel) -> list[NeuralLanguageModel]:
    """Returns the models that can adapt: the model itself, or the neural models of a mixture."""
    if isinstance(model, Mixture):
        return [neural for part in model.models for neural in neural_models(part)]
    return [model] if isinstance(model, NeuralLanguageModel) else []


def _neural(model: LanguageModel) -> NeuralLanguageModel:
    if not isinstance(model, NeuralLanguageModel):
        raise SettingsError(
            "Dynamic evaluation and the cache need features and gradients, which a model of counted n-grams does not have.",
            "They work with every neural model.",
            "Leave out dynamic evaluation and the cache, or name a run of such a model.",
        )
    return model


# ---- the cache


class _Memory:
    """The last `window` hidden layers and, with each, the token that followed it."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.keys_MBD: Tensor | None = None
        self.words_MB: Tensor | None = None

    def mix(self, log_probs_TB: Tensor, hidden_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        """Mixes the model's log-probabilities of the targets with the cache's, then remembers the segment."""
        keys_SBD, words_SB = self._with(hidden_TBD, targets_TB)
        num_steps, num_keys = len(hidden_TBD), len(keys_SBD)
        step_T = torch.arange(num_keys - num_steps, num_keys, device=keys_SBD.device)
        age_TS = step_T[:, None] - torch.arange(num_keys, device=keys_SBD.device)
        seen_TBS = ((age_TS >= 1) & (age_TS <= self.cache.window))[:, None]
        same_TBS = targets_TB[..., None] == words_SB.T
        scores_TBS = multiply(partial(torch.einsum, "tbd,sbd->tbs"), keys_SBD[-num_steps:], keys_SBD)
        largest = torch.finfo(scores_TBS.dtype).max
        scores_TBS = scores_TBS.clamp_(-largest, largest)
        peak_TB1 = scores_TBS.masked_fill(~seen_TBS, -largest).amax(-1, keepdim=True)
        scores_TBS = min(self.cache.theta, largest) * (scores_TBS - peak_TB1)  # at most 0: a large theta overflows nothing
        all_TB = scores_TBS.masked_fill(~seen_TBS, -math.inf).logsumexp(-1)
        matching_TB = scores_TBS.masked_fill(~(seen_TBS & same_TBS), -math.inf).logsumexp(-1)
        mixed_TB = torch.logaddexp(
            log_probs_TB + math.log1p(-self.cache.weight),
            matching_TB - all_TB + (math.log(self.cache.weight) if self.cache.weight else -math.inf),
        )
        self.keys_MBD, self.words_MB = keys_SBD[-self.cache.window :], words_SB[-self.cache.window :]
        return torch.where(all_TB > -math.inf, mixed_TB, log_probs_TB)  # nothing has been seen at the very start

    def _with(self, hidden_TBD: Tensor, targets_TB: Tensor) -> tuple[Tensor, Tensor]:
        hidden_TBD = hidden_TBD.to(torch.promote_types(hidden_TBD.dtype, torch.float32))
        if self.keys_MBD is None or self.words_MB is None:
            return hidden_TBD, targets_TB
        streams = targets_TB.shape[1]
        keys_SBD = torch.cat([self.keys_MBD[:, :streams], hidden_TBD])
        return keys_SBD, torch.cat([self.words_MB[:, :streams], targets_TB])


# ---- dynamic evaluation


@contextmanager
def _adapting(model: NeuralLanguageModel, dynamic: Dynamic | None) -> Iterator[Learn | None]:
    """Yields a function that takes one step down a loss, or None without `dynamic`. On exit, all weights are restored."""
    if dynamic is None:
        yield None
        return
    names, weights = _weights(model)
    trained = [weight.detach().clone() for weight in weights]
    pulls, divisors = _step_sizes(dynamic, names, weights)

    def learn(loss: Tensor) -> None:
        gradients = _gradients(loss, weights)
        with torch.no_grad():
            for weight, origin, pull, gradient, divisor in zip(weights, trained, pulls, gradients, divisors, strict=True):
                if dynamic.decay:
                    weight.lerp_(origin, pull)
                rate = min(dynamic.rate, torch.finfo(weight.dtype).max)
                if divisor is None:
                    weight.add_(gradient.to_dense(), alpha=-rate)
                else:
                    weight.addcdiv_(gradient.to_dense(), divisor, value=-rate)
        torch.clear_autocast_cache()  # it has copies of the weights as they were

    torch.clear_autocast_cache()  # copies that were made in inference mode cannot be learnt through (PyTorch 2.10)
    try:
        with freed_memory_kept():  # each segment makes gradients of all weights
            yield learn
    finally:
        with torch.no_grad():
            for weight, origin in zip(weights, trained, strict=True):
                weight.copy_(origin)
        torch.clear_autocast_cache()


def _gradients(loss: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Those of each weight, by products of the types that the forward pass had."""
    with without_autocast(loss.device):
        return torch.autograd.grad(loss, weights, materialize_grads=True)


def _weights(model: NeuralLanguageModel) -> tuple[list[str], list[Tensor]]:
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not named:
        raise ValueError("dynamic evaluation changes weights, and all of this model are frozen; call requires_grad_(True)")
    return [name for name, _ in named], [weight for _, weight in named]


def _step_sizes(dynamic: Dynamic, names: list[str], weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Returns, for every weight, how strongly it is pulled back and what divides its gradient (None: nothing)."""
    if dynamic.rms is None:
        return [weight.new_tensor(dynamic.decay) for weight in weights], [None] * len(weights)
    assert set(dynamic.rms) == set(names), "gradient_rms was gathered from another model"
    rms = [dynamic.rms[name].to(weight) for name, weight in zip(names, weights, strict=True)]
    mean = torch.stack([tensor.mean() for tensor in rms]).mean().clamp(min=torch.finfo(rms[0].dtype).tiny)
    return [(dynamic.decay / mean * tensor).clamp(max=1) for tensor in rms], [tensor + dynamic.epsilon for tensor in rms]


def gradient_rms(
    model: LanguageModel,
    ids: np.ndarray,
    *,
    eos_id: int,
    num_streams: int = 20,
    segment_length: int = 20,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> dict[str, Tensor]:
    """Returns the root mean square of each weight's gradient over the segments of a training text, by parameter name.

    A segment has `num_streams` x `segment_length` tokens, and its gradient is that of their mean nats. A part of the training
    text is enough (`ids[:100_000]`). `progress` is called with the number of tokens of each segment.
    """
    neural = _neural(model)
    names, weights = _weights(neural)
    squares = [torch.zeros_like(weight) for weight in weights]
    num_segments = 0

    def gather(loss: Tensor) -> None:
        nonlocal num_segments
        num_segments += 1
        gradients = _gradients(loss, weights)
        for square, gradient in zip(squares, gradients, strict=True):
            square += gradient.to_dense().square()

    previous_B = make_tokens(previous_tokens(ids, num_streams, eos_id), neural, device)
    score = _make_score(neural, previous_B, learn=gather)
    with freed_memory_kept():
        for positions_TB in iter_positions(len(ids), num_streams, segment_length):
            score(make_tokens(ids[positions_TB], neural, device))
            if progress is not None:
                progress(positions_TB.size)
    return {name: (square / num_segments).sqrt() for name, square in zip(names, squares, strict=True)}
