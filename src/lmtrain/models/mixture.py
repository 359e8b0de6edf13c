"""Linear interpolation of language models: p(w | h) = sum over m of weight_m p_m(w | h)  (Jelinek and Mercer 1980).

Any models over the same vocabulary can be mixed, n-gram with neural, several neural. Each keeps its own state and its own
policy of forgetting; the mixture's state is theirs, one after the other. The weights are fitted on validation text by
expectation maximisation, which needs nothing but the probabilities that each model gave to its tokens.

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

logger = logging.getLogger("lmtrain")


class Mixture(LanguageModel, nn.Module):
    """A fixed mixture. It reports the state policy that all its models share, `carry` where they differ."""

    def __init__(self, models: Sequence[LanguageModel], weights: Sequence[float]) -> None:
        """weights  one a model, at least 0, sum 1 (to 1e-6). Raises SettingsError where models or weights do not fit."""
        nn.Module.__init__(self)
        _check_mixture(models, weights)
        self.models = list(models)
        self.neural = nn.ModuleList(model for model in models if isinstance(model, nn.Module))  # for eval() and to()
        self.weights = [weight / math.fsum(weights) for weight in weights]
        self.vocab_size = models[0].vocab_size
        policies = {model.state_policy for model in models}
        self.state_policy = policies.pop() if len(policies) == 1 else StatePolicy.carry
        self._state_sizes = [len(model.initial_state(1)) for model in models]

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
        next_state = list[Tensor]()

        def of_each() -> Iterator[Tensor]:
            for model, part in self._parts(state):
                log_probs_TB, part = model.target_log_probs(tokens_TB, targets_TB, part)
                next_state.extend(part)
                yield log_probs_TB

        return self.mix(of_each()), tuple(next_state)

    def advance(self, tokens_TB: Tensor, state: State) -> State:
        return tuple(tensor for model, part in self._parts(state) for tensor in model.advance(tokens_TB, part))

    def readers(self, device: torch.device | str = "cpu") -> Callable[[State], Reader]:
        """Every model reads in its own fastest way."""
        readers_of_each = [model.readers(device) for model in self.models]

        def reader(state: State) -> Reader:
            each = [readers(part) for readers, (_, part) in zip(readers_of_each, self._parts(state), strict=True)]
            return lambda token: self.mix(read(token) for read in each)

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


def fit_weights(log_probs_MN: Tensor, *, tolerance: float = 1e-6, max_iterations: int = 1000) -> list[float]:
    """The weights under which a mixture of M models gives N tokens the highest likelihood, by EM from equal weights.

    log_probs_MN  log-probability that each model gave to each token
    tolerance     ends the fit once no other weights could gain more than this many nats a token

    Raises DataError where no model gives a token any probability.
    """
    log_probs_MN = log_probs_MN.double()
    impossible_N = (log_probs_MN == -math.inf).all(0)
    if impossible_N.any():
        raise DataError(
            f"Token {int(impossible_N.int().argmax())} of the text has probability zero in every model.",
            "Allowed are mixtures in which every token has some probability in some model.",
            "Add a model that is smoothed, such as an n-gram model with model.smoothing=kneser_ney.",
        )
    weights_M = log_probs_MN.new_full(log_probs_MN.shape[:1], 1 / len(log_probs_MN))
    for _ in range(max_iterations):
        gradient_M = likelihood_gradient(log_probs_MN, weights_M)
        # the likelihood is concave in the weights, so its gradient bounds what the best weights gain: at most this
        gain = float(gradient_M.amax()) - 1
        if gain < tolerance:
            return weights_M.tolist()
        weights_M = weights_M * gradient_M
    logger.warning("Mixture weights: better ones may gain up to %.1e nats a token; stopped here.", gain)
    return weights_M.tolist()


def likelihood_gradient(log_probs_MN: Tensor, weights_M: Tensor) -> Tensor:
    """Gradient [M] of the mean log-likelihood of the tokens in the weights: the mean over tokens of p_m / p.

    Weight times gradient is the mean share of model m in the tokens' probability, which is what EM sets the weight to.
    """
    mixture_N = torch.logsumexp(log_probs_MN + weights_M.log()[:, None], 0)
    return (log_probs_MN - mixture_N).exp().mean(1)
