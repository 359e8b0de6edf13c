"""The output layer with its loss: every backend against the definition in float64."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cross_entropy, embedding, linear
from torch.testing import assert_close

from lmtrain.errors import ResourceError
from lmtrain.ops import linear_cross_entropy as module
from lmtrain.ops import native
from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy, linear_nats

CALL = Call("linear_cross_entropy", "cpu", torch.float32, {"N": 1, "V": 1, "D": 1})
SIZES = [(1, 1, 1), (3, 2, 5), (2, 130, 17), (17, 35, 3), (35, 1000, 130), (130, 257, 35), (300, 70, 33)]
TYPES = [
    pytest.param(backend, dtype, id=f"{backend} {str(dtype).removeprefix('torch.')}")
    for backend in ("eager", "native")
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    if (backend, dtype) != ("native", torch.float64)
]
NAMES = ("total", "d_features_ND", "d_weight_VD", "d_bias_V")


def make(N: int, V: int, D: int, bias: bool = True, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Features, weight, bias and targets, with logits of a few units."""
    generator = torch.Generator().manual_seed(N + 10 * V + 100 * D + 1000_000 * seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    targets_N = torch.randint(V, (N,), generator=generator)
    return draw(N, D), 2 * draw(V, D) / D**0.5, draw(V) if bias else None, targets_N


def run(inputs: tuple[Tensor | None, ...], dtype: torch.dtype, **options: object) -> dict[str, Tensor]:
    """The total and the gradients of half of it, from parameters of the accumulating type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    *parameters, targets_N = inputs
    leaves = [None if x is None else x.to(wide).requires_grad_() for x in parameters]
    total = linear_cross_entropy(*leaves, targets_N, compute_dtype=dtype, **options)
    gradients = torch.autograd.grad(total / 2, [x for x in leaves if x is not None])
    return {name: y.detach().double() for name, y in zip(NAMES, (total, *gradients), strict=False)}


def relative_error(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).norm() / expected.norm().clamp(min=1e-9))


@pytest.fixture(autouse=True)
def _compiled(request: pytest.FixtureRequest) -> None:
    if "native" in request.node.name and (reason := why_not("native", CALL)):
        pytest.skip(reason)


@pytest.mark.parametrize(
    ("bias", "max_bytes"),
    [
        (True, 1),
        (True, 10_000),
        (True, 64 << 20),
        (False, 10_000),
        *(pytest.param(False, n, marks=pytest.mark.slow) for n in (1, 64 << 20)),
    ],
)
@pytest.mark.parametrize(("N", "V", "D"), SIZES)
@pytest.mark.parametrize(("backend", "dtype"), TYPES)
def test_loss_and_gradients_equal_the_definition(
    backend: str, dtype: torch.dtype, N: int, V: int, D: int, bias: bool, max_bytes: int
) -> None:
    limit = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-6}[dtype]
    made, own, exact = [], [], []
    for seed in range(10 if dtype == torch.bfloat16 else 1):  # judged together: two single roundings have no ratio
        inputs = make(N, V, D, bias, seed)
        made.append(run(inputs, dtype, backend=backend, max_bytes=max_bytes))
        own.append(run(inputs, dtype, backend="reference"))
        exact.append(run(inputs, torch.float64, backend="reference"))
    for name in exact[0]:
        y, y_own, y_exact = (torch.stack([run[name] for run in runs]) for runs in (made, own, exact))
        error, own_error = relative_error(y, y_exact), relative_error(y_own, y_exact)
        assert error <= max(limit, 2 * own_error), f"{name}: {error:.1e}, the reference's own {own_error:.1e}"


def test_the_definition_is_the_sum_of_torchs_cross_entropies() -> None:
    features_ND, weight_VD, bias_V, targets_N = make(5, 7, 3)
    total = linear_cross_entropy(features_ND, weight_VD, bias_V, targets_N, backend="reference")
    expected = cross_entropy(linear(features_ND, weight_VD, bias_V), targets_N, reduction="sum")
    assert_close(total, expected, rtol=0, atol=1e-12)


def test_gradients_equal_central_differences() -> None:
    *parameters, targets_N = make(4, 5, 3)
    leaves = [x.requires_grad_() for x in parameters if x is not None]
    assert gradcheck(lambda *xs: linear_cross_entropy(*xs, targets_N, backend="eager"), leaves)


def test_second_derivatives_equal_central_differences() -> None:
    *parameters, targets_N = make(3, 4, 2)
    leaves = [x.requires_grad_() for x in parameters if x is not None]
    assert gradgradcheck(lambda *xs: linear_cross_entropy(*xs, targets_N, backend="eager"), leaves)


@pytest.mark.parametrize(("backend", "dtype"), TYPES)
def test_only_wanted_gradients_are_made_and_they_are_the_same(backend: str, dtype: torch.dtype) -> None:
    inputs = make(20, 65, 7)
    everything = run(inputs, dtype, backend=backend)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for wanted in range(3):
        leaves = [x.to(wide).requires_grad_(index == wanted) for index, x in enumerate(inputs[:3]) if x is not None]
        total = linear_cross_entropy(*leaves, inputs[3], compute_dtype=dtype, backend=backend)
        (gradient,) = torch.autograd.grad(total / 2, leaves[wanted])
        assert_close(gradient.double(), everything[NAMES[1 + wanted]], rtol=0, atol=0)
    with torch.no_grad():
        total = linear_cross_entropy(*leaves, inputs[3], compute_dtype=dtype, backend=backend)
    assert not total.requires_grad
    assert_close(total.double(), everything["total"], rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_second_backward_pass_gives_the_same_gradients(backend: str) -> None:
    *parameters, targets_N = make(9, 30, 5)
    leaves = [x.float().requires_grad_() for x in parameters if x is not None]
    total = linear_cross_entropy(*leaves, targets_N, backend=backend)
    first = torch.autograd.grad(total * 3, leaves, retain_graph=True)
    for d, d_first in zip(torch.autograd.grad(total, leaves), first, strict=True):
        assert_close(3 * d, d_first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("N", "V", "D"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_native_makes_gradients_of_the_mean_which_are_not_multiplied_again(dtype: torch.dtype, N: int, V: int, D: int) -> None:
    features_ND, weight_VD, bias_V, targets_N = make(N, V, D)
    leaves = [x.float().requires_grad_() for x in (features_ND, weight_VD, bias_V) if x is not None]
    total = linear_cross_entropy(*leaves, targets_N, compute_dtype=dtype, backend="native", max_bytes=1 << 20)
    made = torch.autograd.grad(total / N, leaves)
    features, weight, bias = (x.detach() for x in leaves)
    _, *expected = native.forward_linear_cross_entropy(features.to(dtype), weight, bias, targets_N, 1 << 20, (True,) * 3, N)
    for d, d_expected in zip(made, expected, strict=True):
        assert torch.equal(d, d_expected)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_weight_tied_to_the_embedding_gets_both_gradients(backend: str) -> None:
    _, weight_VD, bias_V, targets_N = make(12, 40, 6)
    assert bias_V is not None
    inputs_N = targets_N.roll(1)

    def gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        weight = weight_VD.float().requires_grad_()
        (d_weight,) = torch.autograd.grad(loss(embedding(inputs_N, weight).tanh(), weight), weight)
        return d_weight

    bias = bias_V.float()
    made = gradient(lambda x, w: linear_cross_entropy(x, w, bias, targets_N, backend=backend))
    expected = gradient(lambda x, w: cross_entropy(linear(x, w, bias), targets_N, reduction="sum"))
    assert_close(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steepness", [-1.0, 0.03, 0.3, 1.0, 3.0])  # nats from word to word, so up to 900 over all
@pytest.mark.parametrize(("backend", "dtype"), TYPES)
def test_likelier_words_may_come_later_or_earlier(backend: str, dtype: torch.dtype, steepness: float) -> None:
    features_ND, weight_VD, _, targets_N = make(70, 300, 9)
    bias_V = steepness * torch.arange(300, dtype=torch.float64)
    inputs = features_ND, weight_VD, bias_V, targets_N
    made, own, exact = (
        run(inputs, kind, backend=name) for name, kind in ((backend, dtype), ("reference", dtype), ("reference", torch.float64))
    )
    for name in NAMES:
        own_error = relative_error(own[name], exact[name])
        limit = 3e-4 if dtype == torch.bfloat16 else 3e-5  # of logits of up to 900
        assert relative_error(made[name], exact[name]) <= max(limit, 2 * own_error), name


@pytest.mark.parametrize(("backend", "dtype"), TYPES)
def test_logits_of_a_hundred_and_confident_rows_stay_finite(backend: str, dtype: torch.dtype) -> None:
    features_ND = torch.tensor([[100.0, 0.0], [-100.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    weight_VD = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    made = run((features_ND, weight_VD, None, torch.tensor([0, 0, 2])), dtype, backend=backend)
    assert_close(made["total"], torch.tensor(200 + torch.tensor(3.0).log().item()).double(), rtol=1e-6, atol=0)
    assert all(y.isfinite().all() for y in made.values())


@pytest.mark.parametrize(("backend", "dtype"), TYPES)
def test_not_a_number_in_the_features_makes_the_loss_not_a_number(backend: str, dtype: torch.dtype) -> None:
    features_ND, weight_VD, bias_V, targets_N = make(20, 70, 5)
    features_ND[3, 2] = torch.nan
    made = run((features_ND, weight_VD, bias_V, targets_N), dtype, backend=backend)
    assert made["total"].isnan()
    assert made["d_features_ND"][3].isnan().all()
    assert made["d_features_ND"][4].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("N", "V"), [(40, 2000), (300, 65)], ids=["many words", "few words"])
def test_two_native_runs_are_bit_identical(N: int, V: int, threads: int) -> None:
    inputs = make(N, V, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = run(inputs, torch.bfloat16, backend="native")
        for _ in range(3):
            for name, y in run(inputs, torch.bfloat16, backend="native").items():
                assert torch.equal(y, first[name]), name
        exact = run(inputs, torch.float64, backend="reference")
        for name, y in run(inputs, torch.float32, backend="native").items():
            assert relative_error(y, exact[name]) < 1e-5, name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_tensors_of_any_strides_are_taken(backend: str) -> None:
    features_ND, weight_VD, bias_V, targets_N = make(10, 30, 6)
    assert bias_V is not None
    plain = run((features_ND, weight_VD, bias_V, targets_N), torch.float32, backend=backend)
    strided = (
        features_ND.T.contiguous().T,
        weight_VD.repeat_interleave(2, 0)[::2],
        bias_V.repeat_interleave(3)[::3],
        targets_N.repeat_interleave(2)[::2],
    )
    for name, y in run(strided, torch.float32, backend=backend).items():
        assert_close(y, plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "native"])
def test_working_memory_stays_below_max_bytes(backend: str) -> None:
    """In a process of its own: how far its peak rises beyond gradients, for logits of 320 MB and 16 MB of max_bytes."""
    N, V, D, limit = 2000, 40_000, 16, 16 << 20
    code = f"""
import resource, torch
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy
def run(N, V):
    features, weight = torch.randn(N, {D}, requires_grad=True), torch.randn(V, {D}, requires_grad=True)
    targets = torch.randint(V, (N,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    linear_cross_entropy(features, weight, None, targets, max_bytes={limit}, backend="{backend}").backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
run(8, 8)
print(run({N}, {V}))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    gradients = 4 * D * (N + V)
    assert 1024 * int(done.stdout) < limit + 3 * gradients + (4 << 20)


def test_eager_takes_as_many_rows_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND = torch.zeros(10, 2)
    assert len(module._chunks(features_ND, 100, 1)) == 10
    assert len(module._chunks(features_ND, 100, 100 * 8 * 5)) == 2
    assert module._chunks(features_ND, 100, 1 << 20) == [slice(0, module.CACHED_ROWS)]


def test_bfloat16_features_and_weights_get_gradients_of_their_type() -> None:
    *parameters, targets_N = make(4, 9, 3)
    leaves = [x.bfloat16().requires_grad_() for x in parameters if x is not None]
    for backend in ("eager", "reference"):
        total = linear_cross_entropy(*leaves, targets_N, backend=backend)
        assert total.dtype == torch.float32
        assert {d.dtype for d in torch.autograd.grad(total, leaves)} == {torch.bfloat16}


def test_a_parameter_of_the_loss_that_goes_unused_gets_no_gradient() -> None:
    features_ND, weight_VD, _, targets_N = make(4, 9, 3, bias=False)
    weight_VD.requires_grad_()
    total = linear_cross_entropy(features_ND, weight_VD, None, targets_N, backend="eager")
    assert features_ND.grad is None
    total.backward()
    assert weight_VD.grad is not None
    assert features_ND.grad is None


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 9])
def test_a_target_outside_the_vocabulary_is_refused(bad: int) -> None:
    features_ND, weight_VD, bias_V, targets_N = make(4, 9, 3)
    targets_N[2] = bad
    with pytest.raises(IndexError, match=rf"targets_N holds {bad}; with V=9 they lie in 0 to 8\."):
        linear_cross_entropy(features_ND, weight_VD, bias_V, targets_N)


def test_a_weight_of_another_size_is_refused_with_who_said_which_size() -> None:
    message = r"weight_VD has shape \(9, 4\); expected \(V, D\) = \(V, 3\), because features_ND says D=3\."
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.zeros(2, 3), torch.zeros(9, 4), None, torch.zeros(2, dtype=torch.int64))


def test_float64_by_name_is_refused_by_native() -> None:
    with pytest.raises(ResourceError, match="cannot compute linear_cross_entropy in float64 on cpu"):
        linear_cross_entropy(*make(2, 3, 2), backend="native")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("N", "V", "D"), SIZES)
@pytest.mark.parametrize("max_bytes", [1, None])
@pytest.mark.parametrize(("backend", "dtype"), TYPES)
def test_each_target_has_its_nats(
    backend: str, dtype: torch.dtype, max_bytes: int | None, N: int, V: int, D: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "eager":
        monkeypatch.setattr(module, "why_not", lambda backend, call: "not now")
    *parameters, targets_N = make(N, V, D, bias)
    features_ND, weight_VD, bias_V = parameters
    assert features_ND is not None
    assert weight_VD is not None
    expected_N = cross_entropy(linear(features_ND, weight_VD, bias_V), targets_N, reduction="none")
    wide = [None if x is None else x.to(torch.float64 if dtype == torch.float64 else torch.float32) for x in parameters]
    made_N = linear_nats(*wide, targets_N, compute_dtype=dtype, max_bytes=max_bytes)  # type: ignore[arg-type]
    assert made_N.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    bound = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2}[dtype]
    assert relative_error(made_N.double(), expected_N) < bound


@pytest.mark.parametrize("threads", [1, 3])
def test_nats_of_a_small_vocabulary_are_those_of_their_rows_for_any_number_of_threads(threads: int) -> None:
    features_ND, weight_VD, bias_V, targets_N = make(700, 90, 33)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made_N = linear_nats(features_ND.float(), weight_VD.float(), bias_V.float(), targets_N)  # type: ignore[union-attr]
    finally:
        torch.set_num_threads(before)
    expected_N = cross_entropy(linear(features_ND, weight_VD, bias_V), targets_N, reduction="none")
    assert_close(made_N.double(), expected_N, rtol=1e-5, atol=1e-5)
    with pytest.raises(IndexError, match="targets_N holds 90"):
        linear_nats(features_ND, weight_VD, bias_V, targets_N + 90 - targets_N)
