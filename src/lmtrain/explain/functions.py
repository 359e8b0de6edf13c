"""Gates of one input, and the products and sums of vectors and matrices."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from lmtrain.explain.gates import Array, Gate, GateError, Named, Shape, at, describe


class Pointwise(Gate):
    """A function of every entry by itself. Its Jacobian is diagonal."""

    def written(self, *inputs: str) -> str:
        return f"{self.symbol}({inputs[0]})"

    def forward(self, *inputs: Array) -> Array:
        return self.point(inputs[0])

    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        return (upstream * self.slope(output, inputs[0]),)

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        return (self.formula(output.name, inputs[0].name),)

    @abstractmethod
    def point(self, x: Array) -> Array: ...

    @abstractmethod
    def slope(self, y: Array, x: Array) -> Array: ...

    @abstractmethod
    def formula(self, y: str, x: str) -> str: ...


class Negate(Pointwise):
    symbol = "-"

    def written(self, *inputs: str) -> str:
        return f"-{inputs[0]}"

    def point(self, x: Array) -> Array:
        return -x

    def slope(self, y: Array, x: Array) -> Array:
        return -np.ones_like(x)

    def formula(self, y: str, x: str) -> str:
        return "-1"


class Exp(Pointwise):
    symbol = "exp"

    def point(self, x: Array) -> Array:
        return np.exp(x)

    def slope(self, y: Array, x: Array) -> Array:
        return y

    def formula(self, y: str, x: str) -> str:
        return y


class Log(Pointwise):
    symbol = "log"

    def point(self, x: Array) -> Array:
        if (x <= 0).any():
            worst = x.min()
            raise GateError(
                f"The logarithm of {worst:.6g} was asked for.",
                "log takes numbers above 0.",
                "Change the values, or write for example log(max(x, 1e-9)).",
            )
        return np.log(x)

    def slope(self, y: Array, x: Array) -> Array:
        return 1 / x

    def formula(self, y: str, x: str) -> str:
        return f"1 / {x}"


class Sigmoid(Pointwise):
    symbol = "sigmoid"

    def point(self, x: Array) -> Array:
        return 1 / (1 + np.exp(-x))

    def slope(self, y: Array, x: Array) -> Array:
        return y * (1 - y)

    def formula(self, y: str, x: str) -> str:
        return f"{y} * (1 - {y})"


class Tanh(Pointwise):
    symbol = "tanh"

    def point(self, x: Array) -> Array:
        return np.tanh(x)

    def slope(self, y: Array, x: Array) -> Array:
        return 1 - y * y

    def formula(self, y: str, x: str) -> str:
        return f"1 - {y}**2"


class Relu(Pointwise):
    symbol, rule = "relu", "relu routes: all of it where its input is above 0, nothing elsewhere"

    def point(self, x: Array) -> Array:
        return np.maximum(x, 0.0)

    def slope(self, y: Array, x: Array) -> Array:
        return (x > 0).astype(np.float64)

    def formula(self, y: str, x: str) -> str:
        return f"1({x} > 0)"


class MatrixProduct(Gate):
    """Of two matrices, a matrix and a vector, or two vectors. * switches here too, with a transpose that makes shapes fit."""

    symbol, rule, elementwise = "@", "@ switches, as * does", False

    def written(self, *inputs: str) -> str:
        return f"{inputs[0]} @ {inputs[1]}"

    def forward(self, *inputs: Array) -> Array:
        a, b = inputs
        if not (a.ndim and b.ndim):
            raise GateError(
                f'The shapes do not fit: "@" was given {describe(a.shape)} and {describe(b.shape)}.',
                "It multiplies vectors and matrices.",
                "Multiply by a scalar with *.",
            )
        if a.shape[-1] != b.shape[0]:
            raise GateError(
                f'The shapes do not fit: "@" was given {describe(a.shape)} and {describe(b.shape)}.',
                f"The last size of the first, {a.shape[-1]}, must be the first size of the second, {b.shape[0]}.",
                "Transpose with .T, or change a value.",
            )
        return np.asarray(a @ b, dtype=np.float64)

    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        a, b = inputs
        d_a = upstream * b if b.ndim == a.ndim == 1 else np.outer(upstream, b) if b.ndim == 1 else upstream @ b.T
        d_b = upstream * a if b.ndim == a.ndim == 1 else np.outer(a, upstream) if a.ndim == 1 else a.T @ upstream
        return d_a, d_b

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        a, b = inputs
        if len(a.shape) == len(b.shape) == 1:
            return b.name, a.name
        return f"upstream {b.name}^T", f"{a.name} upstream^T" if len(a.shape) == 1 else f"{a.name}^T upstream"

    def entry(self, which: int, output_index: Shape, input_index: Shape, output: Named, *inputs: Named) -> str:
        a, b = inputs
        inner = input_index[-1] if which == 0 else input_index[0]
        if which == 0:
            return at(b, (inner, *output_index[len(a.shape) - 1 :]))
        return at(a, (*output_index[: len(a.shape) - 1], inner))

    def cost(self, output: Array, *inputs: Array) -> int:
        return output.size * inputs[0].shape[-1]


class Transpose(Gate):
    symbol, elementwise = ".T", False

    def written(self, *inputs: str) -> str:
        return f"{inputs[0]}.T"

    def forward(self, *inputs: Array) -> Array:
        return inputs[0].T

    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        return (upstream.T,)

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        return ("upstream^T",) if len(inputs[0].shape) == 2 else ("1",)

    def entry(self, which: int, output_index: Shape, input_index: Shape, output: Named, *inputs: Named) -> str:
        return "1"

    def cost(self, output: Array, *inputs: Array) -> int:
        return 0


class Sum(Gate):
    symbol, rule, elementwise = "sum", "sum distributes, as + does", False

    def written(self, *inputs: str) -> str:
        return f"sum({inputs[0]})"

    def forward(self, *inputs: Array) -> Array:
        return np.asarray(inputs[0].sum(), dtype=np.float64)

    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        return (np.full(inputs[0].shape, upstream),)

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        return ("1",)

    def cost(self, output: Array, *inputs: Array) -> int:
        return inputs[0].size


class Largest(Sum):
    """The largest entry; where several tie, they share the gradient evenly, as `torch.amax` has it."""

    symbol, rule = "max", "max routes"

    def written(self, *inputs: str) -> str:
        return f"{self.symbol}({inputs[0]})"

    def forward(self, *inputs: Array) -> Array:
        return np.asarray(inputs[0].max(), dtype=np.float64)

    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        chosen = inputs[0] == output
        return (upstream * chosen / chosen.sum(),)

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        return (f"1({inputs[0].name} = {output.name})",)

    def entry(self, which: int, output_index: Shape, input_index: Shape, output: Named, *inputs: Named) -> str:
        return f"1({at(inputs[0], input_index)} = {output.name})"

    def note(self, *inputs: Array) -> str:
        tied = int((inputs[0] == self.forward(*inputs)).sum())
        return f"{self.symbol} at a tie of {tied} entries: each gets 1/{tied} of the gradient, as torch.amax has it" * (
            tied > 1
        )


class Smallest(Largest):
    symbol, rule = "min", "min routes"

    def forward(self, *inputs: Array) -> Array:
        return np.asarray(inputs[0].min(), dtype=np.float64)


class Softmax(Gate):
    """Of a vector, or of every row of a matrix: p = exp(z) / sum(exp(z));  dp_i/dz_j = p_i (1(i = j) - p_j)."""

    symbol, elementwise = "softmax", False

    def written(self, *inputs: str) -> str:
        return f"softmax({inputs[0]})"

    def forward(self, *inputs: Array) -> Array:
        (z,) = inputs
        if not z.ndim:
            raise GateError(
                "The shapes do not fit: softmax was given a scalar.",
                "It takes a vector, or a matrix row by row.",
                "Give a vector such as z=[1,2,3], or use sigmoid.",
            )
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        likeliest = output.argmax(axis=-1, keepdims=True)
        about = upstream - np.take_along_axis(upstream, likeliest, axis=-1)  # all the same, as p sums to 1: it rounds less
        upstream = about if np.isfinite(about).all() else upstream
        return (output * (upstream - (upstream * output).sum(axis=-1, keepdims=True)),)

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        p = output.name
        return (f"{p}_i (1(i = j) - {p}_j)",)

    def entry(self, which: int, output_index: Shape, input_index: Shape, output: Named, *inputs: Named) -> str:
        p_i, p_j = at(output, output_index), at(output, input_index)
        return f"{p_i} * (1 - {p_j})" if output_index == input_index else f"-{p_i} * {p_j}"

    def cost(self, output: Array, *inputs: Array) -> int:
        return 3 * output.size  # exponentials, their sum, the division
