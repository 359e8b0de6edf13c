"""Non-linearities. Each is a pair: the function, and beside it its local gradient, written by hand.

Every backward pass uses only differentiable operations, so second derivatives work too. Either the input or the output is kept
for it, whichever gives the shorter derivative, and nothing else. Factors are multiplied in such an order that a small one meets
a large one early: no square overflows on its way to zero.

`torch.func` (vmap, jvp, and what is built on them) works on all of them. The Jacobian of a function of one input is diagonal,
so its `jvp`, which multiplies by it from the other side, is its `backward`.

In the formulas, σ is the logistic function, Φ and φ are the distribution and the density of the standard normal, and
d denotes the gradient that arrives from above. All work element by element in the dtype of x, except the gated ones,
which split the last axis into halves [a; b] and so return half as many features (x [..., 2H] -> [..., H]).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lmtrain.ops.transforms import call


class Pointwise(Function):
    """A function that acts on every element separately, so that `torch.vmap` can derive its rule."""

    generate_vmap_rule = True


def identity(x: Tensor) -> Tensor:
    """y = x;  dy/dx = 1, which needs no function of its own. Layers with it collapse into one linear layer."""
    return x


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function: y = σ(x) = 1 / (1 + e^-x);  dy/dx = y (1 - y).  Verhulst 1845; Rumelhart et al. 1986."""
    return _apply(Sigmoid, x)


class Sigmoid(Pointwise):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, output)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        (d_y,), (y,) = d_outputs, ctx.saved_tensors
        return d_y * y * (1 - y)

    jvp = backward


def tanh(x: Tensor) -> Tensor:
    """y = tanh(x);  dy/dx = 1 - y^2.  LeCun et al. 1998, "Efficient BackProp", section 4.4."""
    return _apply(Tanh, x)


class Tanh(Pointwise):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, output)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        (d_y,), (y,) = d_outputs, ctx.saved_tensors
        return d_y * (1 - y * y)

    jvp = backward


def hard_tanh(x: Tensor) -> Tensor:
    """y = min(max(x, -1), 1);  dy/dx = 1 where -1 < x < 1, else 0.  Collobert 2004, "Large Scale Machine Learning"."""
    return _apply(HardTanh, x)


class HardTanh(Pointwise):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, output)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        (d_y,), (y,) = d_outputs, ctx.saved_tensors
        return d_y * (y.abs() < 1)

    jvp = backward


def relu(x: Tensor) -> Tensor:
    """y = max(x, 0);  dy/dx = 1 where x > 0, else 0.  Nair and Hinton 2010; Glorot et al. 2011."""
    return _apply(ReLU, x)


class ReLU(Pointwise):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, output)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        (d_y,), (y,) = d_outputs, ctx.saved_tensors
        return d_y * (y > 0)

    jvp = backward


def leaky_relu(x: Tensor) -> Tensor:
    """y = x where x > 0, else 0.01 x;  dy/dx = 1 where x > 0, else 0.01.  Maas et al. 2013, equation 2."""
    return parametric_relu(x, x.new_full((), 0.01))


def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    """y = x where x > 0, else s x;  dy/dx = 1 where x > 0, else s;  dy/ds = min(x, 0).  He et al. 2015, equation 1.

    slope  s, learnt, usually from 0.25: any shape that broadcasts against x, such as [] or [H]
    """
    return _apply(ParametricReLU, x, slope)


class ParametricReLU(Pointwise):
    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x > 0, x, slope * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (d_y,), (x, slope) = d_outputs, ctx.saved_tensors
        d_x = torch.where(x > 0, d_y, slope * d_y)
        return d_x, (d_y * x.clamp(max=0)).sum_to_size(slope.shape)

    @staticmethod
    def jvp(ctx: Any, *d_inputs: Tensor) -> Tensor:
        (d_x, d_slope), (x, slope) = d_inputs, ctx.saved_tensors
        return torch.where(x > 0, d_x, slope * d_x) + d_slope * x.clamp(max=0)


def silu(x: Tensor) -> Tensor:
    """y = x σ(x);  dy/dx = σ (1 + x (1 - σ)).  Elfwing et al. 2017, equations 3 and 4."""
    return _apply(SiLU, x)


class SiLU(Pointwise):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        (d_y,), (x,) = d_outputs, ctx.saved_tensors
        s = torch.sigmoid(x)
        return d_y * s * (1 + x * (1 - s))

    jvp = backward


def swish(x: Tensor, beta: Tensor) -> Tensor:
    """y = x σ(βx);  dy/dx = σ (1 + βx (1 - σ));  dy/dβ = x^2 σ (1 - σ).  Ramachandran et al. 2017, equation 1.

    beta  β, learnt, usually from 1 (where it is SiLU): any shape that broadcasts against x, such as [] or [H]
    """
    return _apply(Swish, x, beta)


class Swish(Pointwise):
    @staticmethod
    def forward(x: Tensor, beta: Tensor) -> Tensor:
        return x * torch.sigmoid(beta * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (d_y,), (x, beta) = d_outputs, ctx.saved_tensors
        s = torch.sigmoid(beta * x)
        slope = x * (s * (1 - s))  # of the logistic function, times x: at most x / 4
        return d_y * (s + beta * slope), (d_y * x * slope).sum_to_size(beta.shape)

    @staticmethod
    def jvp(ctx: Any, *d_inputs: Tensor) -> Tensor:
        (d_x, d_beta), (x, beta) = d_inputs, ctx.saved_tensors
        s = torch.sigmoid(beta * x)
        slope = x * (s * (1 - s))
        return d_x * (s + beta * slope) + d_beta * x * slope


def gelu(x: Tensor) -> Tensor:
    """y = x Φ(x), computed exactly with the error function;  dy/dx = Φ + x φ.  Hendrycks and Gimpel 2016, section 2."""
    return _apply(GELU, x)


class GELU(Pointwise):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * _normal_distribution(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        (d_y,), (x,) = d_outputs, ctx.saved_tensors
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return d_y * (_normal_distribution(x) + x * density)

    jvp = backward


def _normal_distribution(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_logistic(x: Tensor) -> Tensor:
    """y = x σ(1.702 x), the logistic approximation of GELU: Swish with β = 1.702.  Hendrycks and Gimpel 2016, section 2."""
    return swish(x, x.new_full((), 1.702))


def glu(x: Tensor) -> Tensor:
    """Gated linear unit, halves the last axis [a; b]:  y = a σ(b);  dy/da = σ(b);  dy/db = a σ(b) (1 - σ(b)).

    Dauphin et al. 2016, equation 1; the gate is the second half, as in torch.nn.functional.glu.
    """
    return _apply(GLU, *_halves("glu", x))


class GLU(Pointwise):
    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a * torch.sigmoid(b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (d_y,), (a, b) = d_outputs, ctx.saved_tensors
        gate = torch.sigmoid(b)
        d_a = d_y * gate
        return d_a, d_a * a * (1 - gate)

    @staticmethod
    def jvp(ctx: Any, *d_inputs: Tensor) -> Tensor:
        (d_a, d_b), (a, b) = d_inputs, ctx.saved_tensors
        gate = torch.sigmoid(b)
        return (d_a + d_b * a * (1 - gate)) * gate


def swiglu(x: Tensor) -> Tensor:
    """SiLU-gated linear unit, halves the last axis [a; b]:  y = SiLU(a) b;  dy/da = SiLU'(a) b;  dy/db = SiLU(a).

    Shazeer 2020, equation 5 with β = 1: the gate is the first half.
    """
    return _apply(SwiGLU, *_halves("swiglu", x))


class SwiGLU(Pointwise):
    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a * torch.sigmoid(a) * b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (d_y,), (a, b) = d_outputs, ctx.saved_tensors
        s = torch.sigmoid(a)
        return d_y * b * s * (1 + a * (1 - s)), d_y * a * s

    @staticmethod
    def jvp(ctx: Any, *d_inputs: Tensor) -> Tensor:
        (d_a, d_b), (a, b) = d_inputs, ctx.saved_tensors
        s = torch.sigmoid(a)
        return d_a * b * s * (1 + a * (1 - s)) + d_b * a * s


def _halves(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two halves of the last axis."""
    if x.shape[-1] % 2:
        raise ValueError(f"{name} halves the last axis, which must be even, but x has shape {tuple(x.shape)}.")
    a, b = x.chunk(2, dim=-1)
    return a, b


def _save(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _apply(function: type[Function], *inputs: Tensor) -> Tensor:
    """Calls a function, whose result has no type of its own."""
    output: Tensor = call(function, *inputs)
    return output


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": sigmoid,
    "tanh": tanh,
    "hard_tanh": hard_tanh,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "parametric_relu": parametric_relu,
    "silu": silu,
    "swish": swish,
    "gelu": gelu,
    "gelu_logistic": gelu_logistic,
    "glu": glu,
    "swiglu": swiglu,
    "identity": identity,
}
"""Every non-linearity by its name in the settings; those in LEARNT take their parameter as a second argument."""

LEARNT: dict[str, float] = {"parametric_relu": 0.25, "swish": 1.0}
"""Non-linearities with a learnt parameter, and the value at which its authors start it."""

GATED: frozenset[str] = frozenset({"glu", "swiglu"})
"""Non-linearities that halve the last axis: the layer before them needs twice the units."""
