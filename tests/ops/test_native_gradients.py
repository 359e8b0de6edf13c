"""The native norm and limit of gradients, and the native sum of rows: on odd sizes, with any number of threads."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.native import gradients

BLOCK = 1 << 14


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if reason := why_not("native", Call("lstm", "cpu", torch.float32, {})):
        pytest.skip(reason)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(*shapes: tuple[int, ...], size: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) * size for shape in shapes]


def exact_norm(tensors: list[Tensor]) -> float:
    return torch.cat([x.double().flatten() for x in tensors]).norm().item()


SHAPES = [(1,), (7, 9), (0, 3), (BLOCK,), (BLOCK - 1,), (3, BLOCK + 17), ()]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.001, 5.0])
def test_gradients_larger_than_the_limit_are_scaled_down_to_it_and_others_keep_their_bits(share: float) -> None:
    tensors = drawn(*SHAPES)
    before, norm = [x.clone() for x in tensors], exact_norm(tensors)
    assert gradients.clip(tensors, share * norm) == pytest.approx(norm, rel=1e-12)
    if share == 0 or share > 1:
        assert all(map(torch.equal, tensors, before))
    else:
        assert exact_norm(tensors) == pytest.approx(share * norm, rel=1e-6)
        torch.testing.assert_close(torch.cat([x.flatten() for x in tensors]), share * torch.cat([x.flatten() for x in before]))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_vanish_nor_overflow(size: float) -> None:
    tensors = drawn((50, 3), size=size)
    assert gradients.clip(tensors, 0.0) == pytest.approx(exact_norm(tensors), rel=1e-12)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_told_and_changes_nothing(bad: float) -> None:
    tensors = drawn((40, 3), (5,))
    tensors[0][17, 1] = bad
    before = [x.clone() for x in tensors]
    assert not math.isfinite(gradients.clip(tensors, 0.1))
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(tensors, before, strict=True))


def test_no_gradients_have_the_norm_zero() -> None:
    assert gradients.clip([], 0.1) == 0


@pytest.mark.usefixtures("threads")
def test_norms_and_what_is_scaled_have_the_same_bits_with_any_number_of_threads() -> None:
    results = []
    for number in (1, 2, 3, 7):
        torch.set_num_threads(number)
        tensors = drawn((37, BLOCK), (5, 11))
        results.append((gradients.clip(tensors, 0.5), torch.cat([x.flatten() for x in tensors])))
    assert all(norm == results[0][0] and torch.equal(x, results[0][1]) for norm, x in results)


@pytest.mark.parametrize(
    "x",
    [torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.bfloat16), torch.ones(3, 2).T, torch.ones(3, device="meta"),
     torch.eye(3).to_sparse()],
)  # fmt: skip
def test_what_is_clipped_is_looked_at_first(x: Tensor) -> None:
    with pytest.raises(ValueError, match="float32, on a CPU"):
        gradients.clip([torch.ones(2), x], 1.0)


ROWS = [(1, 1, 1), (5, 3, 2), (70, 7, 33), (700, 301, 50), (64, 2, 600), (4096, 65, 16), (900, 40, 130)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "V", "Z"), ROWS)
def test_rows_of_one_id_are_added_up(N: int, V: int, Z: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    d_NZ = torch.randn(N, Z, generator=generator).to(dtype)
    ids_N = torch.randint(V, (N,), generator=generator) // 2  # the upper half has none
    sums_VZ = gradients.sum_rows(d_NZ, ids_N, V)
    expected_VZ = torch.zeros(V, Z, dtype=torch.float64).index_add_(0, ids_N, d_NZ.double())
    assert sums_VZ.dtype is dtype
    tolerance = 2**-8 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(sums_VZ.double(), expected_VZ, rtol=tolerance, atol=tolerance * 1e-2 + 1e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_rows_are_those_of_a_loop_over_the_tokens_with_any_number_of_threads(dtype: torch.dtype) -> None:
    d_NZ, ids_N = drawn((400, 333))[0].to(dtype), torch.randint(9, (400,), generator=torch.Generator().manual_seed(1))
    expected_VZ = torch.zeros(9, 333)
    for d_Z, row in zip(d_NZ.float(), ids_N.tolist(), strict=True):
        expected_VZ[row] += d_Z
    for number in (1, 2, 3, 7):
        torch.set_num_threads(number)
        assert torch.equal(gradients.sum_rows(d_NZ, ids_N, 9), expected_VZ.to(dtype))
        assert torch.equal(gradients.sum_rows(d_NZ.T.contiguous().T, ids_N, 9), expected_VZ.to(dtype))


def test_without_tokens_all_sums_are_zero() -> None:
    assert not gradients.sum_rows(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), 3).any()


def test_what_is_added_up_is_looked_at_first() -> None:
    d_NZ, ids_N = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
    for wrong in (torch.tensor([0, 1, 2, 0]), torch.tensor([0, -1, 1, 0]), torch.tensor([0, 2**40, 1, 0])):
        with pytest.raises(IndexError):
            gradients.sum_rows(d_NZ, wrong, 2)
    for d, ids in ((d_NZ.double(), ids_N), (d_NZ[0], ids_N), (d_NZ, ids_N.int()), (d_NZ, ids_N[:3]), (d_NZ.to("meta"), ids_N)):
        with pytest.raises(ValueError, match="expected"):
            gradients.sum_rows(d, ids, 2)
