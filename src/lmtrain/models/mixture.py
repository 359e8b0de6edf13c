"""Linear interpolation of language models: p(w | h) = sum over m of weight_m p_m(w | h)  (Jelinek and Mercer 1980).

Any models over the same vocabulary can be mixed, n-gram with neural, several neural. Each keeps its own state and its own
policy of forgetting; the mixture's state is theirs, one after the other. The weights are fitted on validation text, which
needs nothing but the probabilities that each model gave to its tokens.

    legend   M models · N tokens · T steps · B streams · V vocabulary
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lmtrain.errors import DataError, SettingsError
from lmtrain.models.base import LanguageModel, Reader, State, StatePolicy

log = logging.getLogger("lmtrain")


class Mixture(LanguageModel):
    """A fixed mixture. It reports the state policy that all its models share, `carry` where they differ."""

    def __init__(self, models: Sequence[LanguageModel], weights: Sequence[float]) -> None:
        """weights  one a model, at least 0, sum 1 (to 1e-6). Raises SettingsError where models or weights do not fit."""
        super().__init__()
        _check_mixture(models, weights)
        self.parts = nn.ModuleList(models)
        self.weights = [weight / math.fsum(weights) for weight in weights]
        self.vocab_size = models[0].vocab_size
        policies = {model.state_policy for model in models}
        self.state_policy = policies.pop() if len(policies) == 1 else StatePolicy.carry
        self._state_sizes = [len(model.initial_state(1)) for model in models]

    @property
    def models(self) -> list[LanguageModel]:
        """The models that are mixed."""
        return list(self.parts)  # type: ignore[arg-type]

    def forget_at(self, policy: StatePolicy) -> None:
        super().forget_at(policy)
        for model in self.models:
            model.forget_at(policy)

    def initial_state(self, batch_size: int) -> State:
        return tuple(tensor for model in self.models for tensor in model.initial_state(batch_size))

    def log_probs(self, tokens_TB: Tensor, state: State) -> tuple[Tensor, State]:
        """Exact, normalised log-probabilities of every next token, [T, B, V], in the widest dtype of the models."""
        next_state = list[Tensor]()

        def of_each() -> Iterator[Tensor]:
            for model, part in self._parts(state):
                log_probs_TBV, part = model.log_probs(tokens_TB, part)
                next_state.extend(part)
                yield log_probs_TBV

        return self.mix(of_each()), tuple(next_state)

    def target_log_probs(self, tokens_TB: Tensor, targets_TB: Tensor, state: State) -> tuple[Tensor, State]:
        return self._of_targets(state, lambda model, part: model.target_log_probs(tokens_TB, targets_TB, part))

    def target_log_probs_where(
        self, tokens_TB: Tensor, targets_TB: Tensor, where_TB: Tensor, state: State
    ) -> tuple[Tensor, State]:
        return self._of_targets(
            state, lambda model, part: model.target_log_probs_where(tokens_TB, targets_TB, where_TB, part)
        )  # fmt: skip

    def _of_targets(self, state: State, score: Callable[[LanguageModel, State], tuple[Tensor, State]]) -> tuple[Tensor, State]:
        next_state = list[Tensor]()

        def of_each() -> Iterator[Tensor]:
            for model, part in self._parts(state):
                log_probs, part = score(model, part)
                next_state.extend(part)
                yield log_probs

        return self.mix(of_each()), tuple(next_state)

    def advance(self, tokens_TB: Tensor, state: State) -> State:
        return tuple(tensor for model, part in self._parts(state) for tensor in model.advance(tokens_TB, part))

    def reader_factory(self, device: torch.device | str = "cpu", *, int8: bool = False) -> Callable[[State], Reader]:
        """Every model reads in its own fastest way."""
        makers = [model.reader_factory(device, int8=int8) for model in self.models]

        def reader(state: State) -> Reader:
            each = [make_reader(part) for make_reader, (_, part) in zip(makers, self._parts(state), strict=True)]
            return lambda tokens, texts: self.mix(read(tokens, texts) for read in each)

        return reader

    def mix(self, log_probs: Iterable[Tensor]) -> Tensor:
        """log sum_m w_m exp(log p_m) of what each model says, of any shape; only two such tensors are held at a time."""
        mixed: Tensor | None = None
        for weight, own in zip(self.weights, log_probs, strict=True):
            weighted = own + (math.log(weight) if weight else -math.inf)
            mixed = weighted if mixed is None else torch.logaddexp(mixed, weighted)
        assert mixed is not None
        return mixed

    def _parts(self, state: State) -> Iterator[tuple[LanguageModel, State]]:
        """Every model with its part of the state."""
        begin = 0
        for model, size in zip(self.models, self._state_sizes, strict=True):
            yield model, state[begin : begin + size]
            begin += size


def _check_mixture(models: Sequence[LanguageModel], weights: Sequence[float]) -> None:
    sizes = [model.vocab_size for model in models]
    if len(set(sizes)) != 1:
        raise SettingsError(
            f"The models to mix have vocabularies of {', '.join(map(str, sizes)) or 'nothing'}.",
            "Allowed are one or more models with the same vocabulary.",
            "Train them on the same data with the same tokenizer.",
        )
    if len(weights) != len(models) or not all(weight >= 0 for weight in weights) or abs(math.fsum(weights) - 1) > 1e-6:
        raise SettingsError(
            f"The weights {', '.join(f'{weight:g}' for weight in weights)} were given for {len(models)} models.",
            "Allowed is one weight a model, none below 0, with a sum of 1.",
            "Give such weights, or none to have them fitted on validation text.",
        )


def fit_weights(
    log_probs_MN: Tensor,
    name_token: Callable[[int], str] = "Token {} of the text".format,
    *,
    tolerance: float = 1e-9,
    max_iterations: int = 200,
) -> list[float]:
    """The weights under which a mixture of M models gives N tokens the highest likelihood.

    The mean log-likelihood f is concave in the weights w, and its gradient is g_m = mean over tokens of p_m / p. So no
    other weights v can gain more than the gap of w (Cover 1984; Boyd and Vandenberghe 2004, section 3.1.3):

        f(v) - f(w)  <=  g (v - w)  =  sum over m of v_m g_m - 1  <=  max over m of g_m - 1

    At the best weights the gap is zero: g_m = 1 where w_m > 0, and g_m <= 1 elsewhere. Expectation maximisation sets w_m
    to w_m g_m and needs thousands of steps where models are alike. The primal-dual interior-point method (Boyd and
    Vandenberghe, section 11.7) needs a few dozen: each step solves M linear equations, and the gap says when to stop.

    log_probs_MN  log-probability that each model gave to each token
    name_token    how an error names the token with a number (from 0)
    tolerance     ends the fit once the gap is at most so many nats per token

    Raises DataError where no model gives a token any probability.
    """
    log_probs_MN = log_probs_MN.double()
    highest_N = log_probs_MN.amax(0)
    if (impossible_N := highest_N == -math.inf).any():
        raise DataError(
            f"{name_token(int(impossible_N.int().argmax()))} has probability zero in every model.",
            "Allowed are mixtures in which every token has some probability in some model.",
            "Add a model that is smoothed, such as an n-gram model with model.smoothing=kneser_ney.",
        )
    probs_MN = log_probs_MN.sub(highest_N).exp_()  # a factor for each token leaves every p_m / p as it is
    num_models = len(probs_MN)
    weights_M = probs_MN.new_full((num_models,), 1 / num_models)
    slack_M = torch.ones_like(weights_M)  # goes to 1 - g, the multipliers of w >= 0
    for _ in range(max_iterations):
        gradient_M, curvature_MM = likelihood_derivatives(probs_MN, weights_M)
        gap = float(gradient_M.amax()) - 1
        if gap <= tolerance:
            return _without_idle(probs_MN, weights_M, gradient_M, tolerance).tolist()
        barrier = float(weights_M @ slack_M) / num_models / 10
        # Newton's step for  1 - g(w) = slack,  w slack = barrier
        system_MM = curvature_MM + torch.diag(slack_M / weights_M)
        step_M = torch.linalg.solve(system_MM, gradient_M - 1 + barrier / weights_M)
        slack_step_M = (barrier - slack_M * step_M) / weights_M - slack_M
        weights_M = weights_M + _share(weights_M, step_M) * step_M
        slack_M = slack_M + _share(slack_M, slack_step_M) * slack_step_M
        weights_M = weights_M / weights_M.sum()
    log.warning("Mixture weights: better ones may gain up to %.1e nats per token; stopped here.", gap)
    return weights_M.tolist()


def likelihood_derivatives(probs_MN: Tensor, weights_M: Tensor, chunk: int = 1 << 14) -> tuple[Tensor, Tensor]:
    """Gradient [M] and minus the Hessian [M, M] of the tokens' mean log-likelihood: means of p_m / p, and of its products."""
    gradient_M = torch.zeros_like(weights_M)
    curvature_MM = torch.zeros_like(weights_M).repeat(len(weights_M), 1)
    for probs_MC in probs_MN.split(chunk, 1):
        ratios_MC = probs_MC / (weights_M @ probs_MC)
        gradient_M += ratios_MC.sum(1)
        curvature_MM += ratios_MC @ ratios_MC.T
    num_tokens = probs_MN.shape[1]
    return gradient_M / num_tokens, curvature_MM / num_tokens


def _share(values_M: Tensor, step_M: Tensor) -> float:
    """How much of a step can be taken with all values staying above zero; 1 at most."""
    falling = step_M < 0
    return min(1.0, 0.99 * float((-values_M / step_M)[falling].min())) if falling.any() else 1.0


def _without_idle(probs_MN: Tensor, weights_M: Tensor, gradient_M: Tensor, tolerance: float) -> Tensor:
    """The weights with exact zeros for models that gain nothing, where the gap allows it."""
    kept_M = torch.where((gradient_M < 1) & (weights_M < 1e-6), 0.0, weights_M)
    kept_M = kept_M / kept_M.sum()
    gap = float(likelihood_derivatives(probs_MN, kept_M)[0].amax()) - 1
    return kept_M if gap <= tolerance else weights_M  # the gap is not a number where a token has lost its only model
