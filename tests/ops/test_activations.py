"""The non-linearities against PyTorch's own or their formula; their hand-written gradients against differences."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from lmtrain.config import Activation
from lmtrain.ops import activations
from lmtrain.ops.activations import ACTIVATIONS, GATED, LEARNT

FORMULAS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
    "hard_tanh": F.hardtanh,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "parametric_relu": lambda x, slope: torch.where(x > 0, x, slope * x),
    "silu": F.silu,
    "swish": lambda x, beta: x * torch.sigmoid(beta * x),
    "gelu": lambda x: F.gelu(x, approximate="none"),
    "gelu_logistic": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "glu": F.glu,
    "swiglu": lambda x: F.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :],
    "identity": lambda x: 1.0 * x,
}


def arguments(name: str, generator: Generator, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """An input [3, 4] on both sides of every kink and away from them, and the parameter where there is one."""
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 1.5
    for kink in (-1.0, 0.0, 1.0):
        x = torch.where((x - kink).abs() < 0.05, x + 0.1, x)
    assert (x < -1).any()
    assert (x > 1).any()
    inputs = [x, torch.tensor(LEARNT[name], dtype=torch.float64)] if name in LEARNT else [x]
    return tuple(tensor.to(dtype).requires_grad_() for tensor in inputs)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_its_formula(name: str, generator: Generator) -> None:
    inputs = arguments(name, generator)
    torch.testing.assert_close(ACTIVATIONS[name](*inputs), FORMULAS[name](*inputs), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_handwritten_gradient_equals_differences(name: str, generator: Generator) -> None:
    assert torch.autograd.gradcheck(ACTIVATIONS[name], arguments(name, generator))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_second_derivative_equals_differences_of_the_first(name: str, generator: Generator) -> None:
    assert torch.autograd.gradgradcheck(ACTIVATIONS[name], arguments(name, generator))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_equals_that_of_the_formula_far_out_and_at_zero(name: str) -> None:
    x = torch.tensor([[-60.0, -8.0, -0.5, 0.0], [0.5, 8.0, 60.0, -3.0]], dtype=torch.float64)
    parameter = [torch.tensor(LEARNT[name], dtype=torch.float64)] if name in LEARNT else []
    gradients = []
    for function in (ACTIVATIONS[name], FORMULAS[name]):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameter)]
        function(*leaves).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("shape", [(), (4,), (3, 1)])
def test_gradient_of_a_broadcast_parameter_sums_over_where_it_is_used(name: str, shape: tuple[int, ...]) -> None:
    generator = Generator().manual_seed(2)
    x, _ = arguments(name, generator)
    parameter = torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ACTIVATIONS[name], (x, parameter))
    assert torch.autograd.gradgradcheck(ACTIVATIONS[name], (x, parameter))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_the_input_is_kept_and_errors_stay_within_a_few_roundings(
    name: str, dtype: torch.dtype, generator: Generator
) -> None:
    inputs = arguments(name, generator, dtype)
    output = ACTIVATIONS[name](*inputs)
    assert output.dtype is dtype
    exact = FORMULAS[name](*(tensor.double() for tensor in inputs))
    rounding = torch.finfo(dtype).eps * (inputs[0].double().abs().amax() + exact.abs())
    assert ((output.double() - exact).abs() <= 4 * rounding).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_exactly_the_gated_ones_halve_the_last_axis(name: str) -> None:
    x = torch.zeros(5, 3, 6)
    parameter = [torch.tensor(LEARNT[name])] if name in LEARNT else []
    assert ACTIVATIONS[name](x, *parameter).shape == (5, 3, 3 if name in GATED else 6)


@pytest.mark.parametrize("name", sorted(GATED))
def test_gated_activation_refuses_an_odd_axis_and_says_the_shape(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} halves the last axis.*\(2, 5\)"):
        ACTIVATIONS[name](torch.zeros(2, 5))


def test_logistic_approximation_is_within_two_hundredths_of_gelu() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    difference = (activations.gelu_logistic(x) - activations.gelu(x)).abs().max()
    assert 0.01 < difference < 0.021


def test_swish_runs_from_half_the_identity_to_relu() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(activations.swish(x, x.new_tensor(0.0)), x / 2)
    torch.testing.assert_close(activations.swish(x, x.new_tensor(1e3)), activations.relu(x))


def test_table_names_what_the_settings_name() -> None:
    assert list(ACTIVATIONS) == list(Activation.__members__)


def test_gelu_at_one_is_the_normal_distribution_there() -> None:
    assert math.isclose(activations.gelu(torch.tensor(1.0, dtype=torch.float64)).item(), 0.8413447460685429)


# --- far out ----------------------------------------------------------------------------------------------------------

FAR_OUT = [0.5, 4.0, 12.0, 90.0, 300.0, 1e3, 1e4, 6e4]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_far_out_are_those_of_float64_and_finite_where_these_are(name: str, dtype: torch.dtype) -> None:
    """With parameters that make a product overflow in float16 on its way to a gradient of 0."""
    largest = torch.finfo(dtype).max
    points = torch.tensor([sign * x for x in FAR_OUT for sign in (1, -1)] + [0.0] * 2, dtype=dtype)
    x = torch.cat([torch.cartesian_prod(points, points), *([torch.full((1, 2), s * largest) for s in (1, -1)])]).to(dtype)
    for parameter in [0.01, 0.25, 1.0, 30.0] if name in LEARNT else [0.0]:
        gradients = []
        for kind in (dtype, torch.float64):
            leaves = [x.to(kind).requires_grad_()]
            leaves += [torch.full((len(x), 1), parameter, dtype=dtype).to(kind).requires_grad_()] if name in LEARNT else []
            function, own = ACTIVATIONS[name], FORMULAS[name]
            y = function(*leaves) if kind is dtype or name == "gelu_logistic" else own(*leaves)
            gradients.append(torch.autograd.grad(y.sum(), leaves))
        for made, exact in zip(*gradients, strict=True):
            fits = exact.abs() < largest / 4
            assert fits.any()
            assert made[fits].isfinite().all(), (name, parameter, x[(fits & ~made.isfinite()).any(-1)])
            error = (made[fits].double() - exact[fits]).abs()
            assert (error <= 0.02 + 0.2 * exact[fits].abs()).all() or dtype is not torch.float32


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "hard_tanh", "relu", "leaky_relu", "identity"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_at_infinity_are_finite_where_the_function_has_one_there(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([math.inf, -math.inf], dtype=dtype, requires_grad=True)
    ACTIVATIONS[name](x).backward(torch.ones(2, dtype=dtype))
    expected = {"relu": [1.0, 0.0], "leaky_relu": [1.0, 0.01], "identity": [1.0, 1.0]}.get(name, [0.0, 0.0])
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=dtype))


def test_swish_in_float16_at_1000_has_the_gradient_0_for_beta() -> None:
    x = torch.tensor([1000.0, -1000.0], dtype=torch.float16, requires_grad=True)
    beta = torch.tensor(1.0, dtype=torch.float16, requires_grad=True)
    activations.swish(x, beta).sum().backward()
    assert x.grad is not None
    assert (x.grad.tolist(), beta.grad) == ([1.0, 0.0], torch.tensor(0.0, dtype=torch.float16))


# --- torch.func -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_torch_func_gives_what_autograd_gives(name: str, generator: Generator) -> None:
    function, (x, *parameter) = ACTIVATIONS[name], (y.detach() for y in arguments(name, generator))
    batched = torch.func.vmap(lambda row: function(row, *parameter))(x)
    torch.testing.assert_close(batched, function(x, *parameter))
    per_row = torch.func.vmap(torch.func.grad(lambda row: function(row, *parameter).sum()))(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(per_row, torch.autograd.grad(function(leaf, *parameter).sum(), leaf)[0])
    for index, argument in enumerate((x[0], *parameter)):
        rest = [x[0], *parameter]

        def of_one(argument: Tensor, index: int = index, rest: list[Tensor] = rest) -> Tensor:
            return function(*[*rest[:index], argument, *rest[index + 1 :]])

        torch.testing.assert_close(torch.func.jacfwd(of_one)(argument), torch.func.jacrev(of_one)(argument))
        second = torch.func.hessian(lambda a, f=of_one: f(a).sum())(argument)
        by_autograd = torch.autograd.functional.hessian(lambda a, f=of_one: f(a).sum(), argument)
        torch.testing.assert_close(second, by_autograd)
