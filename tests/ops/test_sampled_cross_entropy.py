"""The sampled softmax with its loss: the function with gradients by hand against its definition in float64."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lmtrain.ops import native
from lmtrain.ops.backends import Call
from lmtrain.ops.sampled_cross_entropy import sampled_cross_entropy

SIZES = [(1, 1, 1, 1), (3, 2, 2, 5), (17, 35, 1, 3), (35, 1000, 64, 130), (130, 257, 65, 35), (70, 300, 127, 33)]
NAMES = ("total", "d_features_ND", "d_weight_VD", "d_bias_V")


def make(N: int, V: int, K: int, D: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Features, weight, bias, targets (some among the samples), samples, and the logs of what is expected of them."""
    generator = torch.Generator().manual_seed(N + 10 * V + 100 * D + 1000 * K + 1000_000 * seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    samples_K = torch.randperm(V, generator=generator)[:K].sort().values
    targets_N = torch.randint(V, (N,), generator=generator)
    targets_N[::3] = samples_K[torch.randint(K, targets_N[::3].shape, generator=generator)]
    log_expected_K = torch.rand(K, generator=generator, dtype=torch.float64).log()
    return draw(N, D), 2 * draw(V, D) / D**0.5, draw(V), targets_N, samples_K, log_expected_K


def run(inputs: tuple[Tensor, ...], dtype: torch.dtype, backend: str = "reference", sparse: bool = False) -> dict[str, Tensor]:
    """The total and the gradients of half of it, from parameters of the accumulating type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x.to(wide).requires_grad_() for x in inputs[:3]]
    total = sampled_cross_entropy(*leaves, *inputs[3:], compute_dtype=dtype, sparse=sparse, backend=backend)
    gradients = torch.autograd.grad(total / 2, leaves)
    assert gradients[1].is_sparse == sparse
    return {name: y.detach().double().to_dense() for name, y in zip(NAMES, (total, *gradients), strict=True)}


def relative_error(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).norm() / expected.norm().clamp(min=1e-9))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(("N", "V", "K", "D"), SIZES)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("eager", torch.float64),
        *((name, dtype) for name in ("eager", "native", "native avx2") for dtype in (torch.float32, torch.bfloat16)),
    ],
    ids=str,
)
def test_loss_and_gradients_equal_the_definition(
    backend: str, dtype: torch.dtype, N: int, V: int, K: int, D: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, *isa = backend.split()
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", *isa or ["native"])
    if backend == "native" and (reason := native.why_not(Call("sampled_cross_entropy", "cpu", dtype, {}))):
        pytest.skip(reason)
    limit = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-6}[dtype]
    made, own, exact = [], [], []
    for seed in range(10 if dtype == torch.bfloat16 else 1):  # judged together: two single roundings have no ratio
        inputs = make(N, V, K, D, seed)
        made.append(run(inputs, dtype, backend, sparse))
        own.append(run(inputs, dtype))
        exact.append(run(inputs, torch.float64))
    for name in NAMES:
        y, y_own, y_exact = (torch.stack([run[name] for run in runs]) for runs in (made, own, exact))
        error, own_error = relative_error(y, y_exact), relative_error(y_own, y_exact)
        assert error <= max(limit, 2 * own_error), f"{name}: {error:.1e}, the reference's own {own_error:.1e}"


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("N", "V", "K", "D"), [(300, 500, 64, 128), (300, 5000, 1300, 127)])
def test_threads_share_the_native_loss_and_its_rows(num_threads: int, N: int, V: int, K: int, D: int) -> None:
    if reason := native.why_not(Call("sampled_cross_entropy", "cpu", torch.float32, {})):
        pytest.skip(reason)
    inputs, before = make(N, V, K, D), torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        made = run(inputs, torch.float32, "native", sparse=True)
    finally:
        torch.set_num_threads(before)
    exact = run(inputs, torch.float64)
    assert {name: y for name, y in made.items() if relative_error(y, exact[name]) > 1e-5} == {}


def test_gradients_and_second_derivatives_equal_central_differences() -> None:
    *parameters, targets_N, samples_K, log_expected_K = make(4, 6, 3, 2)
    leaves = [x.requires_grad_() for x in parameters]
    function = lambda *xs: sampled_cross_entropy(*xs, targets_N, samples_K, log_expected_K)  # noqa: E731
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    inputs = make(9, 30, 8, 5)
    leaves = [x.requires_grad_() for x in inputs[:3]]
    total = sampled_cross_entropy(*leaves, *inputs[3:])
    first = torch.autograd.grad(total * 3, leaves, retain_graph=True)
    for d, d_first in zip(torch.autograd.grad(total, leaves), first, strict=True):
        assert_close(3 * d, d_first)


def test_a_hopeless_target_has_a_finite_loss_and_gradient() -> None:
    features_ND, weight_VD = torch.tensor([[1.0]]), torch.tensor([[200.0], [-200.0]], requires_grad=True)
    total = sampled_cross_entropy(features_ND, weight_VD, torch.zeros(2), torch.tensor([1]), torch.tensor([0]), torch.zeros(1))
    total.backward()
    assert_close(total.item(), 400.0)
    assert_close(weight_VD.grad, torch.tensor([[1.0], [-1.0]]))


def test_shapes_that_do_not_fit_are_named() -> None:
    inputs = make(4, 6, 3, 2)
    with pytest.raises(ValueError, match=r"log_expected_K has shape \(2,\)"):
        sampled_cross_entropy(*inputs[:5], inputs[5][:2])
