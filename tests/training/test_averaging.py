"""Averages of weights against their formulas, exact swapping, exact resumption."""

import json
import math

import pytest
import torch
from torch import nn

from lmtrain.errors import UnfitError
from lmtrain.training.averaging import ExponentialAverage, LastWeights, NonMonotonicAverage


def walk(parameters, averaging, steps):
    """Random steps; returns the weights after each."""
    path = []
    for step in steps:
        noise = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in parameters:
                parameter += torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
        averaging.update()
        path.append([parameter.detach().clone() for parameter in parameters])
    return path


def make(kind, option, dtype=torch.float64):
    torch.manual_seed(3)
    model = nn.Linear(3, 2, dtype=dtype)
    return model, kind(model.named_parameters(), option)


def start(averaging):
    for nats in [4.0, *[5.0] * (averaging.patience + 1)]:
        averaging.after_evaluation(nats)
    assert averaging.started


def trigger(losses, patience):
    """The evaluation that starts averaging, by the words of Algorithm 1 of the paper."""
    for t, value in enumerate(losses):
        if t > patience and value > min(losses[: t - patience]):
            return t
    return None


@pytest.mark.parametrize(
    "losses",
    [
        [5, 4, 3, 2, 1, 0.5, 0.4, 0.3],
        [5, 4, 3, 3.1, 3.2, 3.3, 3.4, 3.5],
        [5, 4, 3, 2, 3, 2.5, 1.9, 2.0, 2.1, 2.2, 2.3],
        [3, 3, 3, 3, 3, 3, 3],
        [3, 4, 5, 6],
    ],
)
@pytest.mark.parametrize("patience", [1, 2, 5])
def test_averaging_starts_when_algorithm_one_of_the_paper_says(losses, patience):
    _, averaging = make(NonMonotonicAverage, patience)
    started_at = None
    for t, nats in enumerate(losses):
        averaging.after_evaluation(nats)
        if averaging.started and started_at is None:
            started_at = t
    assert started_at == trigger(losses, patience)


def test_after_the_trigger_the_average_is_the_mean_of_all_later_weights():
    model, averaging = make(NonMonotonicAverage, 2)
    parameters = list(model.parameters())
    walk(parameters, averaging, range(5))
    assert not averaging.differs
    start(averaging)
    path = walk(parameters, averaging, range(5, 12))
    with averaging.averaged():
        for index, parameter in enumerate(parameters):
            mean = torch.stack([weights[index] for weights in path]).mean(0)
            torch.testing.assert_close(parameter.detach(), mean, rtol=1e-12, atol=1e-12)


def test_exponential_average_follows_its_recursion():
    model, averaging = make(ExponentialAverage, 0.5)
    parameters = list(model.parameters())
    path = walk(parameters, averaging, range(20))
    expected = path[0][0]
    for n, (weight, _) in enumerate(path[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    with averaging.averaged():
        torch.testing.assert_close(parameters[0].detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "option"), [(ExponentialAverage, 0.9), (NonMonotonicAverage, 1)])
def test_the_weights_are_the_same_bits_after_the_average_was_taken_out_even_after_an_error(kind, option):
    model, averaging = make(kind, option, torch.float32)
    if kind is NonMonotonicAverage:
        start(averaging)
    last = walk(list(model.parameters()), averaging, range(4))[-1]

    def evaluate_and_fail():
        with averaging.averaged():
            assert not torch.equal(model.weight, last[0])
            raise KeyError

    with pytest.raises(KeyError):
        evaluate_and_fail()
    assert torch.equal(model.weight, last[0])
    assert torch.equal(model.bias, last[1])


@pytest.mark.parametrize(("kind", "option"), [(ExponentialAverage, 0.9), (NonMonotonicAverage, 2)])
@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_an_average_goes_on_from_its_saved_state_bit_by_bit(kind, option, stop):
    losses = [3.0, math.nan, 4.0, 5.0, 2.0, 6.0, 6.0, 6.0]

    def live(model, averaging, steps):
        for step in steps:
            walk(list(model.parameters()), averaging, [step])
            averaging.after_evaluation(losses[step])

    whole, averaging = make(kind, option, torch.float32)
    live(whole, averaging, range(8))

    first, saved = make(kind, option, torch.float32)
    live(first, saved, range(stop))
    tensors = {name: tensor.clone() for name, tensor in saved.tensors().items()}
    document = json.loads(json.dumps(saved.document(), allow_nan=False))
    second, resumed = make(kind, option, torch.float32)
    second.load_state_dict(first.state_dict())
    resumed.load(tensors, document)
    live(second, resumed, range(stop, 8))
    assert resumed.document() == averaging.document()
    for name, tensor in averaging.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


def test_without_averaging_nothing_differs_and_nothing_is_saved():
    model, averaging = nn.Linear(2, 2), LastWeights()
    walk(list(model.parameters()), averaging, range(2))
    before = model.weight.detach().clone()
    averaging.after_evaluation(1.0)
    with averaging.averaged():
        assert torch.equal(model.weight, before)
    assert (averaging.differs, averaging.tensors()) == (False, {})


def test_averages_of_another_model_are_refused():
    _, averaging = make(ExponentialAverage, 0.9)
    weight = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(UnfitError, match=r"bias has shape \(3,\) instead of \(2,\)"):
        averaging.load({"weight": weight, "bias": torch.zeros(3)}, {"num_averaged": 1})
    with pytest.raises(UnfitError, match=r"bias is of type torch\.float32"):
        averaging.load({"weight": weight, "bias": torch.zeros(2)}, {"num_averaged": 1})
    with pytest.raises(UnfitError, match="bias is missing"):
        averaging.load({"weight": weight}, {"num_averaged": 1})
