import math

import pytest
import torch

from lmtrain.training.state import Spikes


def follow(values, **options):
    spikes = Spikes(**options)
    for value in values:
        spikes = spikes.with_value(value)
    return spikes


def test_mean_and_variance_of_the_first_values_are_the_plain_ones(generator):
    values = torch.randn(50, generator=generator, dtype=torch.float64)
    spikes = follow(values.tolist())
    assert spikes.mean == pytest.approx(values.mean().item(), rel=1e-12)
    assert spikes.variance == pytest.approx(values.var(correction=0).item(), rel=1e-12)


def test_a_jump_is_a_spike_and_noise_is_not(generator):
    values = (3 + 0.1 * torch.randn(1000, generator=generator)).tolist()
    spikes = Spikes()
    for value in values:
        assert not spikes.is_spike(value)
        spikes = spikes.with_value(value)
    assert spikes.is_spike(4.0)
    assert not spikes.is_spike(2.0), "a drop is good news"


def test_the_past_is_forgotten():
    assert follow([100.0] * 10 + [1.0] * 3000).mean == pytest.approx(1.0)


def test_nothing_is_a_spike_during_the_warm_up():
    assert not follow([1.0] * 9, warm_up=10).is_spike(1e9)
    assert follow([1.0] * 10, warm_up=10).is_spike(1e9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_does_not_spoil_the_mean(value):
    assert follow([1.0, 2.0, value]) == follow([1.0, 2.0])
