"""The Elman recurrence against `torch.nn.RNN`; what it shares with the other cells is in test_recurrence.py."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional
from torch.testing import assert_close

from lmtrain.ops.elman import elman


def tensors(T: int, B: int, H: int, generator: torch.Generator) -> list[Tensor]:
    shapes = [(T, B, H), (B, H), (H, H)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(("T", "B", "E", "H"), [(1, 1, 1, 1), (7, 3, 4, 5)])
def test_elman_equals_torch_nn_rnn_in_values_and_gradients(
    T: int, B: int, E: int, H: int, nonlinearity: str, backend: str, generator: torch.Generator
) -> None:
    rnn = nn.RNN(E, H, nonlinearity=nonlinearity, dtype=torch.float64)
    inputs_TBE = torch.randn(T, B, E, generator=generator, dtype=torch.float64).requires_grad_()
    h0_BH = torch.randn(B, H, generator=generator, dtype=torch.float64).requires_grad_()
    parameters = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
    weight_ih, weight_hh, bias_ih, bias_hh = parameters

    projected_TBH = functional.linear(inputs_TBE, weight_ih, bias_ih + bias_hh)
    states_TBH, h_BH = elman(projected_TBH, h0_BH, weight_hh, nonlinearity=nonlinearity, backend=backend)
    expected_TBH, final_1BH = rnn(inputs_TBE, h0_BH[None])

    assert_close(states_TBH, expected_TBH, rtol=0, atol=1e-10)
    assert_close(h_BH, final_1BH[0], rtol=0, atol=1e-10)
    sources = [inputs_TBE, h0_BH, *parameters]
    got = torch.autograd.grad(states_TBH.square().sum() + h_BH.sin().sum(), sources)
    expected = torch.autograd.grad(expected_TBH.square().sum() + final_1BH.sin().sum(), sources)
    for d, d_expected in zip(got, expected, strict=True):
        assert_close(d, d_expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid", "identity"])
@pytest.mark.parametrize("norm", [False, True])
def test_gradients_of_every_nonlinearity_equal_central_differences(
    nonlinearity: str, norm: bool, generator: torch.Generator
) -> None:
    gain_H = torch.rand(3, generator=generator, dtype=torch.float64).requires_grad_()

    def run(projected: Tensor, h0: Tensor, weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        return elman(projected, h0, weight, nonlinearity=nonlinearity, norm_gain_H=gain if norm else None, backend="eager")

    inputs = (*tensors(3, 2, 3, generator), gain_H)
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_one_unit_can_be_computed_by_hand() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    states, final = elman(one.expand(2, 1, 1), 0 * one, 2 * one, nonlinearity="relu", backend="eager")
    assert states.flatten().tolist() == [1.0, 3.0]  # 1 + 2 * 0, then 1 + 2 * 1
    assert final.item() == 3.0


def test_unknown_nonlinearity_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r'nonlinearity is "gelu"; expected tanh, relu, sigmoid, identity\.'):
        elman(torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 1), nonlinearity="gelu")


def test_a_weight_of_another_size_is_refused_with_who_said_which_size() -> None:
    with pytest.raises(
        ValueError, match=r"weight_HH has shape \(4, 3\); expected \(H, H\) = \(3, 3\), because h0_BH says H=3\."
    ):
        elman(torch.zeros(2, 5, 3), torch.zeros(5, 3), torch.zeros(4, 3))
