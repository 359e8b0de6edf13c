"""AR and TAR against their formulas, element by element."""

import pytest
import torch

from lmtrain.models.penalties import activation_penalty, temporal_activation_penalty


def test_activation_penalty_is_alpha_times_the_mean_square():
    features_TBD = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]])
    assert activation_penalty(features_TBD, 2.0).item() == 2.0 * (1 + 4 + 9 + 0) / 4


def test_temporal_penalty_is_beta_times_the_mean_square_change():
    raw_TBD = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]], [[3.0, 1.0]]])
    assert temporal_activation_penalty(raw_TBD, 0.5).item() == 0.5 * (4 + 4 + 0 + 1) / 4


def test_temporal_penalty_of_a_single_step_is_zero_and_not_nan():
    assert temporal_activation_penalty(torch.ones(1, 3, 2), 1.0).item() == 0


@pytest.mark.parametrize("penalty", [activation_penalty, temporal_activation_penalty])
def test_penalties_have_the_gradient_of_their_formula(penalty):
    x_TBD = torch.rand(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: penalty(x, 1.5), x_TBD)


@pytest.mark.parametrize("penalty", [activation_penalty, temporal_activation_penalty])
def test_penalties_of_bfloat16_activations_are_summed_in_float32(penalty, generator):
    x_TBD = torch.rand(40, 20, 30, generator=generator).bfloat16()
    penalised = penalty(x_TBD, 1.0)
    assert penalised.dtype == torch.float32
    torch.testing.assert_close(penalised, penalty(x_TBD.double(), 1.0).float(), rtol=1e-5, atol=0)
