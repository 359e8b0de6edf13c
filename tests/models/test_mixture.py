"""Mixtures against the plain formula, and their weights against what made the data."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from lmtrain.errors import DataError, SettingsError
from lmtrain.models.base import LanguageModel, State, StatePolicy
from lmtrain.models.mixture import Mixture, fit_weights, likelihood_derivatives
from lmtrain.models.ngram import NgramModel

V, EOS = 4, 0


class Running(LanguageModel):
    """Scores by the running sums of all tokens so far, in float32: a stand-in for a neural model, two tensors of state."""

    vocab_size = V

    def initial_state(self, batch_size: int) -> State:
        return torch.zeros(batch_size, V), torch.zeros(batch_size, 1)

    def log_probs(self, tokens_TB: Tensor, state: State) -> tuple[Tensor, State]:
        sums_BV, steps_B1 = state
        sums_TBV = sums_BV + torch.nn.functional.one_hot(tokens_TB, V).float().cumsum(0)
        return torch.log_softmax(sums_TBV, -1), (sums_TBV[-1], steps_B1 + len(tokens_TB))


def ngram(order: int, policy: StatePolicy = StatePolicy.line) -> NgramModel:
    model = NgramModel(vocab_size=V, eos_id=EOS, order=order, state_policy=policy)
    model.count(np.array([1, 2, EOS, 1, 3, 2, EOS, 2, 2, EOS]))
    return model


def tokens(generator: Generator, length: int = 9, streams: int = 2) -> Tensor:
    return torch.randint(V, (length, streams), generator=generator)


def test_mixture_is_the_weighted_sum_of_probabilities(generator: Generator) -> None:
    models, weights = [ngram(3), Running(), ngram(1)], [0.5, 0.3, 0.2]
    tokens_TB, targets_TB = tokens(generator), tokens(generator)
    mixture = Mixture(models, weights)
    log_probs_TBV, _ = mixture.log_probs(tokens_TB, mixture.initial_state(2))
    expected_TBV = sum(
        weight * model.log_probs(tokens_TB, model.initial_state(2))[0].double().exp()
        for model, weight in zip(models, weights, strict=True)
    )
    assert log_probs_TBV.dtype is torch.float64
    # one model is float32: a rounding of its own log-probability and one of its weight
    torch.testing.assert_close(log_probs_TBV.exp(), expected_TBV, rtol=3e-7, atol=0)
    torch.testing.assert_close(log_probs_TBV.exp().sum(-1), torch.ones(9, 2).double(), rtol=0, atol=1e-6)
    target_log_probs_TB, _ = mixture.target_log_probs(tokens_TB, targets_TB, mixture.initial_state(2))
    torch.testing.assert_close(target_log_probs_TB, log_probs_TBV.gather(-1, targets_TB[..., None])[..., 0])


def test_mixture_of_float32_models_stays_float32(generator: Generator) -> None:
    mixture = Mixture([Running(), Running()], [0.25, 0.75])
    log_probs_TBV, _ = mixture.log_probs(tokens(generator), mixture.initial_state(2))
    assert log_probs_TBV.dtype is torch.float32


def test_state_is_that_of_all_models_one_after_the_other_and_is_carried(generator: Generator) -> None:
    mixture = Mixture([ngram(3), Running(), ngram(2, StatePolicy.carry)], [0.5, 0.3, 0.2])
    tokens_TB, targets_TB = tokens(generator), tokens(generator)
    whole_TB, whole_state = mixture.target_log_probs(tokens_TB, targets_TB, mixture.initial_state(2))
    assert [tuple(tensor.shape) for tensor in whole_state] == [(2, 2), (2, V), (2, 1), (2, 1)]
    first_TB, state = mixture.target_log_probs(tokens_TB[:4], targets_TB[:4], mixture.initial_state(2))
    rest_TB, state = mixture.target_log_probs(tokens_TB[4:], targets_TB[4:], state)
    torch.testing.assert_close(torch.cat([first_TB, rest_TB]), whole_TB, rtol=1e-14, atol=0)
    for part, expected in zip(state, whole_state, strict=True):
        assert torch.equal(part, expected)


def test_model_of_weight_zero_changes_nothing_even_where_it_alone_is_possible() -> None:
    certain = NgramModel(vocab_size=V, eos_id=EOS, order=2, smoothing="maximum_likelihood")
    certain.count(np.array([1, EOS]))
    other = NgramModel(vocab_size=V, eos_id=EOS, order=2, smoothing="maximum_likelihood")
    other.count(np.array([2, EOS]))
    tokens_TB = torch.tensor([[EOS]])
    for models, weights in (([certain, other], [1.0, 0.0]), ([other, certain], [0.0, 1.0])):
        mixture = Mixture(models, weights)
        log_probs_TBV, _ = mixture.log_probs(tokens_TB, mixture.initial_state(1))
        assert log_probs_TBV[0, 0].tolist() == [-math.inf, 0.0, -math.inf, -math.inf]


def test_mixture_of_mixtures_is_a_mixture(generator: Generator) -> None:
    a, b, c = ngram(1), Running(), ngram(3)
    nested = Mixture([Mixture([a, b], [0.5, 0.5]), c], [0.4, 0.6])
    flat = Mixture([a, b, c], [0.2, 0.2, 0.6])
    tokens_TB = tokens(generator)
    torch.testing.assert_close(
        nested.log_probs(tokens_TB, nested.initial_state(2))[0], flat.log_probs(tokens_TB, flat.initial_state(2))[0]
    )


def test_mixture_reports_the_policy_that_all_share_and_carry_where_they_differ() -> None:
    assert Mixture([ngram(1), ngram(2)], [0.5, 0.5]).state_policy is StatePolicy.line
    assert Mixture([ngram(1), Running()], [0.5, 0.5]).state_policy is StatePolicy.carry


def test_models_of_different_vocabularies_are_refused_with_their_sizes() -> None:
    with pytest.raises(SettingsError, match=r"vocabularies of 4, 7\..*same tokenizer"):
        Mixture([ngram(2), NgramModel(vocab_size=7, eos_id=EOS)], [0.5, 0.5])
    with pytest.raises(SettingsError, match="vocabularies of nothing"):
        Mixture([], [])


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], [0.2, 0.3, 0.5]])
def test_weights_that_are_no_distribution_are_refused(weights: list[float]) -> None:
    with pytest.raises(SettingsError, match=r"weights .* for 2 models\. Allowed is one weight a model"):
        Mixture([ngram(1), ngram(2)], weights)


# ---- fitting


def drawn_from_a_mixture(weights: list[float], num_tokens: int, generator: Generator) -> Tensor:
    """log p [M, N] that M random distributions give to tokens drawn from their mixture."""
    log_probs_MV = torch.randn(len(weights), 50, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    mixed_V = torch.tensor(weights, dtype=torch.float64) @ log_probs_MV.exp()
    tokens_N = torch.multinomial(mixed_V, num_tokens, replacement=True, generator=generator)
    return log_probs_MV[:, tokens_N]


def log_likelihood(log_probs_MN: Tensor, weights_M: Tensor) -> float:
    return float(torch.logsumexp(log_probs_MN + weights_M.log()[:, None], 0).mean())


@pytest.mark.parametrize("weights", [[0.3, 0.7], [0.6, 0.1, 0.3], [0.05, 0.95]])
def test_weights_that_made_the_data_are_found(weights: list[float], generator: Generator) -> None:
    # the standard error of a weight from 50,000 tokens is about 0.003
    log_probs_MN = drawn_from_a_mixture(weights, 50_000, generator)
    assert fit_weights(log_probs_MN) == pytest.approx(weights, abs=0.015)


def most_to_gain(log_probs_MN: Tensor, weights: list[float]) -> float:
    """A bound of the nats per token that better weights gain: the largest p_m / p in the mean, less one."""
    weights_M = torch.tensor(weights, dtype=torch.float64)
    mixed_N = torch.logsumexp(log_probs_MN + weights_M.log()[:, None], 0)
    return float((log_probs_MN - mixed_N).exp().mean(1).max()) - 1


def test_fitted_weights_are_the_best_to_within_the_tolerance(generator: Generator) -> None:
    log_probs_MN = drawn_from_a_mixture([0.3, 0.7], 2000, generator)
    found = log_likelihood(log_probs_MN, torch.tensor(fit_weights(log_probs_MN), dtype=torch.float64))
    grid = torch.linspace(0.001, 0.999, 999).double()
    best = max(log_likelihood(log_probs_MN, torch.stack([weight, 1 - weight])) for weight in grid)
    assert found >= best - 1e-9


@pytest.mark.parametrize("difference", [1e-1, 1e-3, 1e-6, 1e-9, 0.0])
def test_models_that_are_nearly_alike_are_told_apart_to_a_billionth(difference: float, generator: Generator) -> None:
    alike_1N = drawn_from_a_mixture([1.0], 3000, generator)
    noise_MN = torch.randn(4, 3000, generator=generator, dtype=torch.float64)
    log_probs_MN = torch.cat([alike_1N + difference * noise_MN, drawn_from_a_mixture([0.6, 0.4], 3000, generator)])
    assert most_to_gain(log_probs_MN, fit_weights(log_probs_MN)) <= 1e-9


def test_256_models_are_weighed_and_most_of_them_get_nothing(generator: Generator) -> None:
    log_probs_MN = drawn_from_a_mixture([1 / 256] * 256, 300, generator)
    weights = fit_weights(log_probs_MN)
    assert most_to_gain(log_probs_MN, weights) <= 1e-9
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)
    assert min(weights) >= 0


def scores(num_models: int, num_tokens: int, spread: float, zeros: float, seed: int) -> Tensor:
    """Random log-probabilities [M, N], a share of them minus infinity; the first model always gives some where none does."""
    generator = torch.Generator().manual_seed(seed)
    log_probs_MN = spread * torch.randn(num_models, num_tokens, generator=generator, dtype=torch.float64)
    log_probs_MN[torch.rand(num_models, num_tokens, generator=generator) < zeros] = -math.inf
    log_probs_MN[0] = torch.where((log_probs_MN == -math.inf).all(0), -3.0, log_probs_MN[0])
    return log_probs_MN


@given(
    st.integers(1, 12), st.integers(1, 60), st.sampled_from([1e-9, 1e-3, 0.1, 1, 10, 1000]), st.floats(0, 0.9),
    st.integers(0, 10**6),
)  # fmt: skip
def test_no_other_weights_gain_more_than_a_billionth(
    num_models: int, num_tokens: int, spread: float, zeros: float, seed: int
) -> None:
    log_probs_MN = scores(num_models, num_tokens, spread, zeros, seed)
    weights = fit_weights(log_probs_MN)
    assert most_to_gain(log_probs_MN, weights) <= 1.0001e-9
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)
    assert min(weights) >= 0


def test_derivatives_of_the_likelihood_equal_those_of_autograd(generator: Generator) -> None:
    probs_MN = drawn_from_a_mixture([0.6, 0.4], 100, generator).exp()
    weights_M = torch.tensor([0.2, 0.8], dtype=torch.float64)

    def likelihood(weights_M: Tensor) -> Tensor:
        return (weights_M @ probs_MN).log().mean()

    gradient_M, curvature_MM = likelihood_derivatives(probs_MN, weights_M, chunk=7)
    torch.testing.assert_close(gradient_M, torch.autograd.functional.jacobian(likelihood, weights_M))
    torch.testing.assert_close(-curvature_MM, torch.autograd.functional.hessian(likelihood, weights_M))


def test_model_that_gives_every_token_probability_zero_gets_no_weight() -> None:
    log_probs_MN = torch.log(torch.tensor([[0.5, 0.25, 0.5], [0.0, 0.0, 0.0]]))
    assert fit_weights(log_probs_MN) == [1.0, 0.0]


def test_single_model_gets_all_the_weight() -> None:
    assert fit_weights(torch.log(torch.tensor([[0.5, 0.25]]))) == [1.0]


def test_token_that_no_model_can_produce_is_refused_with_its_number() -> None:
    log_probs_MN = torch.log(torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    with pytest.raises(DataError, match=r"Token 2 of the text has probability zero in every model\..*kneser_ney"):
        fit_weights(log_probs_MN)
    with pytest.raises(DataError, match=r"^'zz' has probability zero in every model"):
        fit_weights(log_probs_MN, name_token={2: "'zz'"}.__getitem__)


def test_fit_that_is_cut_short_says_so(generator: Generator, caplog: pytest.LogCaptureFixture) -> None:
    log_probs_MN = drawn_from_a_mixture([0.05, 0.95], 500, generator)
    with caplog.at_level(logging.WARNING, "lmtrain"):
        weights = fit_weights(log_probs_MN, max_iterations=2)
    assert "stopped here" in caplog.text
    assert sum(weights) == pytest.approx(1)
