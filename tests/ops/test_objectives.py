"""The losses and layers of window classifiers: values by their formulas, gradients by central differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F  # noqa: N812

from lmtrain.ops.objectives import affine, logistic_loss, max_margin_loss, softmax_loss, window_vectors

SIZES = [(1, 1), (2, 3), (17, 5), (130, 2)]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(("n", "c"), SIZES)
def test_softmax_loss(n: int, c: int) -> None:
    scores, targets = drawn(n, c), torch.arange(n) % c
    assert softmax_loss(scores, targets).item() == pytest.approx(F.cross_entropy(scores, targets, reduction="sum").item())
    assert gradcheck(lambda s: softmax_loss(s, targets), scores)


@pytest.mark.parametrize(("n", "c"), SIZES)
def test_logistic_loss(n: int, c: int) -> None:
    scores, targets = drawn(n, c), torch.arange(n * c).view(n, c) % 3 == 0
    expected = F.binary_cross_entropy_with_logits(scores, targets.double(), reduction="sum")
    assert logistic_loss(scores, targets).item() == pytest.approx(expected.item())
    assert gradcheck(lambda s: logistic_loss(s, targets), scores)


@pytest.mark.parametrize("n", [1, 2, 17, 130])
def test_max_margin_loss(n: int) -> None:
    scores, corrupted = drawn(n), drawn(n, seed=2)
    expected = sum(max(0.0, 1 - s + c) for s, c in zip(scores.tolist(), corrupted.tolist(), strict=True))
    assert max_margin_loss(scores, corrupted).item() == pytest.approx(expected)
    assert gradcheck(max_margin_loss, (scores, corrupted))


def test_the_hinge_is_flat_beyond_the_margin_and_at_it() -> None:
    scores, corrupted = torch.tensor([1.0, 3.0, 0.0], requires_grad=True), torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    max_margin_loss(scores, corrupted).backward()
    assert scores.grad is not None
    assert corrupted.grad is not None
    assert scores.grad.tolist() == [0, 0, -1]
    assert corrupted.grad.tolist() == [0, 0, 1]


@given(st.floats(-1e4, 1e4), st.booleans())
def test_large_scores_overflow_nowhere(score: float, there: bool) -> None:
    scores = torch.tensor([score], requires_grad=True)
    loss = logistic_loss(scores, torch.tensor([there]))
    loss.backward()
    assert torch.isfinite(loss)
    assert loss >= 0
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    two = torch.tensor([[score, -score]], requires_grad=True)
    softmax_loss(two, torch.tensor([int(there)])).backward()
    assert two.grad is not None
    assert torch.isfinite(two.grad).all()


def test_what_is_not_a_number_is_seen_in_the_loss() -> None:
    nan = torch.tensor([float("nan")])
    assert softmax_loss(nan[None], torch.tensor([0])).isnan()
    assert logistic_loss(nan, torch.tensor([True])).isnan()
    assert max_margin_loss(nan, torch.zeros(1)).isnan()


@pytest.mark.parametrize(("n", "c", "d"), [(1, 1, 1), (3, 2, 5), (17, 4, 1)])
def test_affine(n: int, c: int, d: int) -> None:
    x, weight, bias = drawn(n, d), drawn(c, d, seed=2), drawn(c, seed=3)
    assert torch.allclose(affine(x, weight, bias), F.linear(x, weight, bias))
    assert gradcheck(affine, (x, weight, bias))


def test_a_word_in_several_places_gets_the_sum_of_their_gradients() -> None:
    table, ids = drawn(4, 3), torch.tensor([[0, 2, 2], [2, 1, 0]])
    assert window_vectors(table, ids).equal(F.embedding(ids, table).flatten(1))
    assert gradcheck(lambda t: window_vectors(t, ids), table)
    window_vectors(table, ids).sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_type_of_the_scores(dtype: torch.dtype) -> None:
    scores = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    (softmax_loss(scores, torch.tensor([0, 1, 1])) + logistic_loss(scores, scores.detach() >= 0)).backward()
    assert scores.grad is not None
    assert scores.grad.dtype is dtype
