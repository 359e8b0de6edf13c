"""The GRU recurrence against `torch.nn.GRU`; what it shares with the other cells is in test_recurrence.py."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from lmtrain.ops.gru import gru


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize(("T", "B", "E", "H"), [(1, 1, 1, 1), (7, 3, 4, 5)])
def test_gru_equals_torch_nn_gru_in_values_and_gradients(
    T: int, B: int, E: int, H: int, backend: str, generator: torch.Generator
) -> None:
    rnn = nn.GRU(E, H, dtype=torch.float64)
    inputs_TBE = torch.randn(T, B, E, generator=generator, dtype=torch.float64).requires_grad_()
    h0_BH = torch.randn(B, H, generator=generator, dtype=torch.float64).requires_grad_()
    parameters = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
    weight_ih, weight_hh, bias_ih, bias_hh = parameters

    bias_Z = bias_ih + torch.cat([bias_hh[: 2 * H], torch.zeros(H, dtype=torch.float64)])
    projected_TBZ = functional.linear(inputs_TBE, weight_ih, bias_Z)
    states_TBH, h_BH = gru(projected_TBZ, h0_BH, weight_hh, bias_hh[2 * H :], backend=backend)
    expected_TBH, final_1BH = rnn(inputs_TBE, h0_BH[None])

    assert_close(states_TBH, expected_TBH, rtol=0, atol=1e-10)
    assert_close(h_BH, final_1BH[0], rtol=0, atol=1e-10)
    sources = [inputs_TBE, h0_BH, *parameters]
    got = torch.autograd.grad(states_TBH.square().sum() + h_BH.sin().sum(), sources)
    expected = torch.autograd.grad(expected_TBH.square().sum() + final_1BH.sin().sum(), sources)
    for d, d_expected in zip(got, expected, strict=True):
        assert_close(d, d_expected, rtol=0, atol=1e-10)


def test_reset_gate_multiplies_the_bias_of_the_candidate() -> None:
    """A closed reset gate hides b_hn, so that it cannot be added to the other biases."""
    open_then_closed = torch.tensor([100.0, -100.0, 0.0])  # r, z, n: reset open, update closed
    zero = torch.zeros(1, 1)
    states, _ = gru(open_then_closed.view(1, 1, 3), zero, torch.zeros(3, 1), torch.ones(1), backend="eager")
    assert states.item() == pytest.approx(torch.tanh(torch.ones(())).item())
    states, _ = gru(-open_then_closed.abs().view(1, 1, 3), zero, torch.zeros(3, 1), torch.ones(1), backend="eager")
    assert states.item() == 0.0


def test_a_projection_of_four_gates_is_refused() -> None:
    message = r"projected_TBZ has shape \(2, 5, 12\); expected \(T, B, 3H\) = \(T, 5, 9\), because h0_BH says B=5, H=3\."
    with pytest.raises(ValueError, match=message):
        gru(torch.zeros(2, 5, 12), torch.zeros(5, 3), torch.zeros(9, 3), torch.zeros(3))
