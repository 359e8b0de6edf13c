"""The LSTM recurrence against `torch.nn.LSTM`; what it shares with the other cells is in test_recurrence.py."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from lmtrain.ops.lstm import lstm


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize(("T", "B", "E", "H"), [(1, 1, 1, 1), (7, 3, 4, 5)])
def test_lstm_equals_torch_nn_lstm_in_values_and_gradients(
    T: int, B: int, E: int, H: int, backend: str, generator: torch.Generator
) -> None:
    rnn = nn.LSTM(E, H, dtype=torch.float64)
    inputs_TBE = torch.randn(T, B, E, generator=generator, dtype=torch.float64).requires_grad_()
    h0_BH = torch.randn(B, H, generator=generator, dtype=torch.float64).requires_grad_()
    c0_BH = torch.randn(B, H, generator=generator, dtype=torch.float64).requires_grad_()
    parameters = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
    weight_ih, weight_hh, bias_ih, bias_hh = parameters

    projected_TBZ = functional.linear(inputs_TBE, weight_ih, bias_ih + bias_hh)
    outputs = lstm(projected_TBZ, h0_BH, c0_BH, weight_hh, backend=backend)
    states_TBH, (h_1BH, c_1BH) = rnn(inputs_TBE, (h0_BH[None], c0_BH[None]))
    expected = states_TBH, h_1BH[0], c_1BH[0]

    for y, y_expected in zip(outputs, expected, strict=True):
        assert_close(y, y_expected, rtol=0, atol=1e-10)

    def loss(states_TBH: Tensor, h_BH: Tensor, c_BH: Tensor) -> Tensor:
        return states_TBH.square().sum() + h_BH.sin().sum() + c_BH.exp().sum()

    sources = [inputs_TBE, h0_BH, c0_BH, *parameters]
    gradients = torch.autograd.grad(loss(*outputs), sources)
    for d, d_expected in zip(gradients, torch.autograd.grad(loss(*expected), sources), strict=True):
        assert_close(d, d_expected, rtol=0, atol=1e-10)


def test_open_forget_gate_carries_the_cell_over_many_steps() -> None:
    """Forget gate 1, input gate 0, output gate 1: the cell neither changes nor loses its gradient."""
    T, H = 1000, 2
    projected = torch.tensor([-100.0, 100.0, 0.0, 100.0]).repeat_interleave(H).expand(T, 1, 4 * H)
    c0 = torch.tensor([[0.3, -2.0]], requires_grad=True)
    states, _, c = lstm(projected, torch.zeros(1, H), c0, torch.zeros(4 * H, H), backend="eager")
    assert_close(c, c0)
    assert_close(states[-1], c0.tanh())
    assert_close(torch.autograd.grad(c.sum(), c0)[0], torch.ones(1, H))


def test_cell_zoneout_happens_behind_the_cell_that_the_output_reads() -> None:
    """Krueger et al. 2017: h reads f c + i g itself, not its mixture with the previous cell."""
    generator = torch.Generator().manual_seed(1)
    projected, h0, c0, weight = (torch.randn(*shape, generator=generator) for shape in [(1, 2, 12), (2, 3), (2, 3), (12, 3)])
    plain = lstm(projected, h0, c0, weight, backend="eager")
    zoned = lstm(projected, h0, c0, weight, cell_zoneout_TBH=torch.ones(3), backend="eager")
    assert_close(zoned[0], plain[0], rtol=0, atol=0)
    assert_close(zoned[2], c0, rtol=0, atol=0)


def test_bfloat16_keeps_14_bytes_for_every_hidden_unit() -> None:
    T, B, H = 4, 2, 3
    kept: dict[int, int] = {}
    projected = torch.zeros(T, B, 4 * H, dtype=torch.bfloat16, requires_grad=True)
    given = [projected, *(torch.zeros(B, H, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))]
    given.append(torch.zeros(4 * H, H, dtype=torch.bfloat16))
    own = {x.data_ptr() for x in given}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = lstm(*given, backend="eager")
    assert outputs[0].requires_grad
    assert sum(kept.values()) == T * B * 14 * H


def test_a_weight_of_another_size_is_refused_with_who_said_which_size() -> None:
    message = r"weight_ZH has shape \(12, 4\); expected \(4H, H\) = \(12, 3\), because h0_BH says H=3\."
    with pytest.raises(ValueError, match=message):
        lstm(torch.zeros(2, 5, 12), torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(12, 4))
