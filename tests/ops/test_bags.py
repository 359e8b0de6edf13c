"""Averages over bags: values bag by bag, gradients by central differences and by PyTorch's own, and bags that are empty."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lmtrain.ops.bags import average, average_reference, total


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).requires_grad_()


def bags(sizes: list[int], num_rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_rows, (sum(sizes),), generator=generator), torch.tensor([0, *sizes]).cumsum(0)[:-1]


SIZES = [[1], [0], [3, 0, 2], [0, 0], [5, 1, 1, 0, 40], [0, 2, 0]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_averages_and_their_gradient_are_those_of_a_loop(sizes: list[int], has_mask: bool, sparse: bool) -> None:
    table_VE, (ids_M, offsets_N) = drawn(7, 3), bags(sizes, 7)
    keep_M = torch.rand(len(ids_M), generator=torch.Generator().manual_seed(2)) < 0.5 if has_mask else None
    made_NE = average(table_VE, ids_M, offsets_N, keep_M, sparse=sparse)
    expected_NE = average_reference(table_VE, ids_M, offsets_N, keep_M) + 0 * table_VE.sum()  # it may read no row
    assert_close(made_NE, expected_NE, rtol=1e-12, atol=1e-14)
    d_NE = drawn(len(sizes), 3).detach()
    (made,) = torch.autograd.grad(made_NE, table_VE, d_NE)
    (expected,) = torch.autograd.grad(expected_NE, table_VE, d_NE)
    assert made.is_sparse == sparse
    assert_close(made.to_dense(), expected, rtol=1e-12, atol=1e-14)


def test_derivatives_equal_central_differences() -> None:
    table_VE, (ids_M, offsets_N) = drawn(4, 2), bags([3, 0, 1, 6], 4)
    keep_M = torch.tensor([1, 0, 1, 0, 1, 1, 0, 0, 1, 1], dtype=torch.bool)
    assert gradcheck(lambda table: average(table, ids_M, offsets_N, keep_M), table_VE)
    assert gradcheck(lambda table: total(table, ids_M, offsets_N), table_VE)
    assert gradgradcheck(lambda table: average(table, ids_M, offsets_N).square(), table_VE)


def test_an_empty_bag_and_one_of_which_nothing_is_kept_give_zeros_and_no_gradient() -> None:
    table_VE = drawn(2, 3)
    y_NE = average(table_VE, torch.tensor([1, 1]), torch.tensor([0, 0]), torch.tensor([False, False]))
    y_NE.sum().backward()
    assert not y_NE.any()
    assert table_VE.grad is not None
    assert not table_VE.grad.any()


def test_a_sparse_gradient_names_only_the_rows_that_were_read() -> None:
    table_VE = drawn(100, 2)
    average(table_VE, torch.tensor([7, 3, 7]), torch.tensor([0, 2]), sparse=True).sum().backward()
    assert table_VE.grad is not None
    assert table_VE.grad.coalesce().indices().tolist() == [[3, 7]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 100))
def test_each_average_depends_on_its_own_bag_alone(sizes: list[int], seed: int) -> None:
    table_VE, (ids_M, offsets_N) = drawn(5, 2).detach(), bags(sizes, 5, seed)
    together_NE = average(table_VE, ids_M, offsets_N)
    for n, size in enumerate(sizes):
        start = int(offsets_N[n])
        alone_1E = average(table_VE, ids_M[start : start + size], torch.tensor([0]))
        assert_close(together_NE[n : n + 1], alone_1E)


@pytest.mark.parametrize("offsets", [[1], [0, 3], [0, 2, 1], []], ids=str)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets of bags begin at 0"):
        average(torch.zeros(3, 2), torch.tensor([0, 1]), torch.tensor(offsets, dtype=torch.int64))


def test_ids_of_another_type_and_outside_the_table_are_refused() -> None:
    with pytest.raises(ValueError, match="ids_M is int32; expected int64"):
        average(torch.zeros(3, 2), torch.tensor([0], dtype=torch.int32), torch.tensor([0]))
    with pytest.raises((IndexError, RuntimeError)):
        average(torch.zeros(3, 2), torch.tensor([3]), torch.tensor([0]))
