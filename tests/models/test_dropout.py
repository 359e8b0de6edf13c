"""What each kind of dropout computes: its values, its shape of noise, its expectation, its gradient."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lmtrain.models.dropout import (
    dropout,
    dropped_rows,
    embedding_dropout,
    locked_dropout,
    quantised_keep,
    weight_drop,
    zoneout_weights,
)

DROPS = [dropout, locked_dropout, embedding_dropout, weight_drop]


def _kept(x, p, generator, drop=dropout):
    return drop(x, p, generator) != 0


@pytest.mark.parametrize("drop", DROPS)
def test_every_value_is_zero_or_scaled_by_one_over_the_probability_of_keeping(drop, generator):
    x = torch.rand(40, 30, dtype=torch.float64) + 0.5
    y = drop(x, 0.25, generator)
    kept = y != 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(y, torch.where(kept, x * (1 / 0.75), 0))


@pytest.mark.parametrize("drop", DROPS)
def test_probability_zero_returns_the_input_itself_and_leaves_the_generator_alone(drop, generator):
    x, before = torch.rand(3, 2, 2), generator.get_state()
    assert drop(x, 0.0, generator) is x
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_an_impossible_probability_is_refused(drop, p, generator):
    with pytest.raises(ValueError, match=r"at least 0 and below 1"):
        drop(torch.rand(3, 2), p, generator)


@pytest.mark.parametrize("drop", DROPS)
def test_the_seed_alone_decides_what_is_dropped(drop):
    x = torch.ones(50, 7)
    torch.manual_seed(5)
    first = drop(x, 0.5, torch.Generator().manual_seed(3))
    torch.manual_seed(6)
    again = drop(x, 0.5, torch.Generator().manual_seed(3))
    other = drop(x, 0.5, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_locked_dropout_drops_the_same_units_at_every_step_and_others_in_every_stream(generator):
    kept_TBD = _kept(torch.ones(9, 4, 50), 0.5, generator, locked_dropout)
    assert torch.equal(kept_TBD, kept_TBD[:1].expand_as(kept_TBD))
    assert not torch.equal(kept_TBD[0, 0], kept_TBD[0, 1])


def test_plain_dropout_drops_other_units_at_every_step(generator):
    kept_TBD = _kept(torch.ones(9, 4, 50), 0.5, generator)
    assert not torch.equal(kept_TBD[0], kept_TBD[1])


def test_embedding_dropout_drops_whole_rows(generator):
    kept_VE = _kept(torch.ones(200, 5), 0.5, generator, embedding_dropout)
    assert torch.equal(kept_VE, kept_VE[:, :1].expand_as(kept_VE))
    assert 60 < kept_VE[:, 0].sum() < 140


def test_dropped_rows_is_the_look_up_in_the_dropped_matrix_and_keeps_gradients_sparse():
    weight_VE, ids = torch.rand(9, 3, requires_grad=True), torch.randint(0, 9, (6, 4))
    expected = F.embedding(ids, embedding_dropout(weight_VE, 0.5, torch.Generator().manual_seed(3)))
    embedded = F.embedding(ids, weight_VE, sparse=True)
    dropped = dropped_rows(embedded, ids, 9, 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(dropped, expected)
    (dense,) = torch.autograd.grad(expected.square().sum(), weight_VE)
    (sparse,) = torch.autograd.grad(dropped.square().sum(), weight_VE)
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)
    assert dropped_rows(embedded, ids, 9, 0.0, torch.Generator()) is embedded


@pytest.mark.parametrize("p", [0.1, 0.35, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_probability(p, generator):
    num = 400_000
    share = 1 - _kept(torch.ones(num), p, generator).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / num) ** 0.5 + 1 / 65536


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.35, 0.5, 0.99])
def test_the_scale_in_the_tensors_own_type_times_the_probability_of_keeping_is_one(dtype, p, generator):
    count, scale = quantised_keep(p, dtype)
    assert torch.tensor(scale, dtype=dtype).item() * count / 65536 == pytest.approx(1, rel=2e-5 / (1 - p))
    assert dropout(torch.ones(4000, dtype=dtype), p, generator).max() == torch.tensor(scale, dtype=dtype)


def test_all_four_coins_of_a_word_are_fair_and_independent(generator):
    kept = _kept(torch.ones(1 << 18), 0.5, generator).view(-1, 4).double()
    assert ((kept.mean(0) - 0.5).abs() < 0.01).all()
    assert (torch.corrcoef(kept.T) - torch.eye(4)).abs().max() < 0.02


@pytest.mark.parametrize("drop", DROPS)
def test_gradient_is_the_mask(drop, generator):
    x = torch.rand(4, 3, 5, dtype=torch.float64)[: 4 if drop in DROPS[:2] else 1].squeeze(0) + 0.5
    x.requires_grad_()
    y = drop(x, 0.5, generator)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, (y / x).detach().round())


def test_zoneout_weighs_the_previous_state_zero_or_one_in_training_and_by_its_mean_in_evaluation(generator):
    drawn = zoneout_weights((30, 20, 50), 0.125, generator, training=True)
    assert drawn.shape == (30, 20, 50)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.125, abs=0.01)
    mean = zoneout_weights((30, 20, 50), 0.125, None, training=False)
    assert mean.expand(30, 20, 50).unique().tolist() == [0.125]
    assert zoneout_weights((2, 1, 1), 0.0, generator, training=True).tolist() == [[[0.0]], [[0.0]]]
