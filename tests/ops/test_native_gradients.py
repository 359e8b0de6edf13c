"""The native norm and limit of gradients, and the native sum of rows: on odd sizes, with any number of threads."""

import math
from collections.abc import Iterator
from typing import Any

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
    norm = gradients.clip(tensors, 0.1)
    assert norm is not None
    assert not math.isfinite(norm)
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
    first = torch.ones(2)
    assert gradients.clip([first, x], 1.0) is None
    assert first.tolist() == [1, 1]


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


# --- Adam -------------------------------------------------------------------------------------------------------------


ADAM_SHAPES = {  # of a weight, and the rows of its gradient; None for a dense one
    "one number": ((1,), None),
    "scalar": ((), None),
    "odd": ((7, 9), None),
    "empty": ((0, 3), None),
    "blocks": ((3, BLOCK + 17), None),
    "sparse": ((50, 13), [0, 3, 4, 49]),
    "sparse, no row": ((500, 200), []),
    "sparse, all rows": ((4, 3), [0, 1, 2, 3]),
    "sparse, blocks": ((1000, 33), [5, 495, 496, 497, 999]),
    "sparse, wide rows": ((3, BLOCK + 5), [1]),
    "sparse, three dimensions": ((6, 2, 5), [2, 5]),
}
RULES = {
    "adam": {"decay": 0.0, "is_decoupled": False},
    "l2": {"decay": 0.1, "is_decoupled": False},
    "adamw": {"decay": 0.1, "is_decoupled": True},
}


def adam_steps(kind: str, steps: int, dtype: torch.dtype, *, native: bool) -> list[Tensor]:
    """All weights and their memory after some steps."""
    generator = torch.Generator().manual_seed(5)
    rule = RULES[kind]
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape, _ in ADAM_SHAPES.values()]
    mine = [gradients.AdamWeight(w.data, torch.zeros_like(w), torch.zeros_like(w), torch.zeros(())) for w in weights]
    made = [w.data for w in weights]
    make_one = torch.optim.AdamW if rule["is_decoupled"] else torch.optim.Adam
    theirs = make_one(weights, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=rule["decay"])
    for _ in range(steps):
        for number, (weight, (shape, rows)) in enumerate(zip(weights, ADAM_SHAPES.values(), strict=True)):
            values = torch.randn(shape if rows is None else (len(rows), *shape[1:]), generator=generator).to(dtype)
            gradient = values
            if rows is not None:
                index = torch.tensor([rows], dtype=torch.int64)
                gradient = torch.sparse_coo_tensor(index, values, shape, is_coalesced=True, check_invariants=True)
            weight.grad = gradient.to_dense()
            made[number] = gradient
        if native:
            pairs = [*zip(mine, made, strict=True)]
            assert gradients.adam([(gradients.AdamRule(0.01, 0.8, 0.95, 1e-6, **rule), pairs)])  # type: ignore[arg-type]
        else:
            theirs.step()
    if native:
        return [x for each in mine for x in each.tensors]
    return [x for w in weights for x in (w.detach(), *(theirs.state[w][key] for key in ("exp_avg", "exp_avg_sq", "step")))]


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("isa", ["native", "avx2", pytest.param("portable", marks=pytest.mark.slow)])
def test_a_native_step_of_adam_is_pytorchs(isa: str, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", isa)
    made, exact = adam_steps(kind, steps, torch.float32, native=True), adam_steps(kind, steps, torch.float64, native=False)
    for x, x_exact in zip(made, exact, strict=True):
        torch.testing.assert_close(x.double(), x_exact.double(), rtol=1e-5, atol=1e-6)


def test_a_step_of_adam_has_the_same_bits_with_any_number_of_threads(threads: None) -> None:
    results = []
    for number in (1, 2, 3, 7):
        torch.set_num_threads(number)
        results.append(adam_steps("l2", 3, torch.float32, native=True))
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


def test_adam_takes_what_it_can_step_alone() -> None:
    weight, gradient = drawn((6, 4), (6, 4))
    zeros = torch.zeros(6, 4)
    fitting = {"weight": weight, "mean": zeros, "square": zeros.clone(), "step": torch.zeros(()), "gradient": gradient}

    def pair(weight: Tensor, mean: Tensor, square: Tensor, step: Tensor, gradient: Tensor) -> tuple[Any, Tensor]:
        return gradients.AdamWeight(weight, mean, square, step), gradient

    rule = gradients.AdamRule(0.1, 0.9, 0.99, 1e-8)
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), gradient[:2], (6, 4), check_invariants=True)
    numbers = torch.sparse_coo_tensor(torch.tensor([[1], [2]]), gradient[0, :1], (6, 4), check_invariants=True).coalesce()
    for name, value in (
        ("weight", weight.double()), ("gradient", gradient.T.contiguous()), ("gradient", gradient.T.contiguous().T),
        ("gradient", twice), ("gradient", numbers), ("mean", zeros[:5]), ("square", zeros.to(torch.bfloat16)),
        ("step", torch.zeros(2)), ("weight", weight.to("meta")),
    ):  # fmt: skip
        assert not gradients.adam([(rule, [pair(**fitting)]), (rule, [pair(**fitting | {name: value})])])
    assert torch.equal(zeros, torch.zeros(6, 4))
    assert gradients.adam([(rule, [pair(**fitting)])])
    assert not torch.equal(zeros, torch.zeros(6, 4))


def test_what_adam_knows_of_a_weight_is_of_its_data_as_they_were() -> None:
    weight, mean, square, step = torch.nn.Parameter(torch.ones(4, 4)), torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(())
    known = gradients.AdamWeight(weight, mean, square, step)
    assert known.is_plain
    assert known.holds(weight, mean, square, step)
    assert not known.holds(weight, mean, mean, step)
    for data in (weight.data.t(), weight.data[:2], weight.data.clone()):
        before, weight.data = weight.data, data
        assert not known.holds(weight, mean, square, step)
        weight.data = before
    assert known.holds(weight, mean, square, step)
