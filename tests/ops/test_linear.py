"""The linear layer and the float32 product behind it, against PyTorch in float64, in every build and on odd sizes."""

import itertools
import platform

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.linear import LinearFunction, linear
from lmtrain.ops.lstm import lstm
from lmtrain.ops.native import build, products
from lmtrain.ops.native.products import matmul, product

ODD = (1, 2, 3, 17, 20, 130, 257)
SIZES = [*itertools.product((1, 3, 130), (1, 17, 257), (2, 20, 257)), (193, 385, 65), (7, 769, 4113)]
BUILDS = ["native", "avx2" if platform.machine() == "x86_64" else "portable"]
OTHER_BUILDS = ["portable", "avx512", "avx512_bf16"]


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param.startswith("avx512") and "avx512bw" not in build._instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", request.param)
    if reason := why_not("native", Call("lstm", "cpu", torch.float32, {})):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def always_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products too, on every processor."""
    if reason := why_not("native", Call("lstm", "cpu", torch.float32, {})):
        pytest.skip(reason)
    monkeypatch.setattr(products, "SMALL", 1)
    monkeypatch.setattr(products, "_is_fast", lambda library: True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def check_product(M: int, K: int, N: int) -> None:
    """Both matrices by rows and by columns, with and without a bias; at most K + 1 roundings of the sum of what is added."""
    a_MK, b_KN, bias_N = draw(M, K), draw(K, N, seed=1), draw(N, seed=2)
    largest_MN = a_MK.abs().double() @ b_KN.abs().double() + bias_N.abs()
    for a, b, bias in itertools.product((a_MK, a_MK.T.contiguous().T), (b_KN, b_KN.T.contiguous().T), (None, bias_N)):
        exact = a.double() @ b.double() + (0 if bias is None else bias.double())
        assert ((product(a, b, bias).double() - exact).abs() <= (K + 1) * 2**-24 * largest_MN).all()


@pytest.mark.parametrize("isa", BUILDS, indirect=True)
@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_a_product_is_that_of_float64_but_for_rounding(isa: str, M: int, K: int, N: int) -> None:
    check_product(M, K, N)


@pytest.mark.slow
@pytest.mark.parametrize("isa", [*BUILDS, *OTHER_BUILDS], indirect=True)
def test_every_build_multiplies_every_odd_size(isa: str) -> None:
    for M, K, N in itertools.product(ODD, ODD, ODD):
        check_product(M, K, N)


@pytest.mark.parametrize("isa", BUILDS, indirect=True)
def test_a_sum_depends_neither_on_threads_nor_on_other_rows_and_columns(isa: str) -> None:
    a_MK, b_KN, before = draw(230, 400), draw(400, 210, seed=1), torch.get_num_threads()
    whole_MN = product(a_MK, b_KN)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(product(a_MK, b_KN), whole_MN)
            assert torch.equal(product(a_MK[5:8], b_KN), whole_MN[5:8])
            assert torch.equal(product(a_MK, b_KN[:, 3:20].contiguous()), whole_MN[:, 3:20])
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("always_ours")
def test_a_nan_and_an_infinity_reach_their_row_and_no_other() -> None:
    a_MK = torch.ones(20, 17)
    a_MK[3, 16], a_MK[5, 0] = torch.nan, torch.inf
    c_MN = product(a_MK, torch.ones(17, 33))
    assert c_MN[3].isnan().all()
    assert c_MN[5].isinf().all()
    assert (c_MN[[0, 1, 2, 4, *range(6, 20)]] == 17).all()


@pytest.mark.usefixtures("always_ours")
def test_values_and_gradients_are_those_of_pytorch() -> None:
    for bias in (True, False):
        leaves = [draw(5, 3, 17), draw(130, 17, seed=1), *([draw(130, seed=2)] if bias else [])]
        made, exact = ([x.to(dtype).requires_grad_() for x in leaves] for dtype in (torch.float32, torch.float64))
        d_y = draw(3, 130)  # expands: a stride of 0
        y, expected = linear(*made), F.linear(*exact)
        assert y.grad_fn is not None
        assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad(y, made, d_y.expand(5, 3, 130))
        for got, want in zip(gradients, torch.autograd.grad(expected, exact, d_y.double().expand(5, 3, 130)), strict=True):
            assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("always_ours")
def test_a_layer_trains_alike_with_either_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        leaves = [
            x.requires_grad_() for x in (draw(3, 5, 17), draw(80, 17, seed=1), draw(80, seed=2), draw(80, 20, seed=3) / 5)
        ]
        x_TBE, weight_ZE, bias_Z, recurrent_ZH = leaves
        zeros = torch.zeros(5, 20)
        states_TBH, _, _ = lstm(linear(x_TBE, weight_ZE, bias_Z), zeros, zeros, recurrent_ZH, backend="native")
        return list(torch.autograd.grad(states_TBH.sin().sum(), leaves))

    ours = gradients()
    monkeypatch.setattr(products, "_is_fast", lambda library: False)
    for made, expected in zip(ours, gradients(), strict=True):
        assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_derivatives_equal_central_differences() -> None:
    leaves = [x.double().requires_grad_() for x in (draw(3, 2), draw(5, 2), draw(5))]
    assert gradcheck(LinearFunction.apply, leaves)
    assert gradgradcheck(LinearFunction.apply, leaves)


@pytest.mark.usefixtures("always_ours")
def test_what_is_not_float32_on_a_cpu_is_pytorchs() -> None:
    x, weight = draw(4, 3), draw(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
    assert torch.equal(matmul(x.bfloat16(), weight.T.bfloat16()), x.bfloat16() @ weight.T.bfloat16())
    for backend in ("reference", "eager"):
        assert torch.equal(linear(x, weight, backend=backend), F.linear(x, weight))
    with pytest.raises(RuntimeError):
        linear(x, draw(5, 4))


@pytest.mark.parametrize(
    ("a", "b", "bias"),
    [
        (torch.ones(2, 3), torch.ones(4, 5), None),
        (torch.ones(2, 3), torch.ones(3, 5), torch.ones(4)),
        (torch.ones(2, 0), torch.ones(0, 5), None),
        (torch.ones(2, 3).double(), torch.ones(3, 5).double(), None),
        (torch.ones(2, 3), torch.ones(3, 5).to_sparse(), None),
        (torch.ones(2, 3), torch.ones(3, 5, device="meta"), None),
    ],
)
def test_a_product_that_does_not_fit_is_refused(a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    with pytest.raises(ValueError, match="a product of"):
        product(a, b, bias)
