"""Gates: every operation that an expression can hold, each with its forward and its backward step.

    forward    output = gate(inputs)
    backward   downstream_i = (d output / d input_i)^T upstream

A gradient always has the shape of the value that it belongs to (the lectures' shape convention). The upstream gradient is
that of the final value with respect to the gate's output; a downstream gradient is that with respect to one of its inputs.
Values are NumPy arrays of float64: scalars (), vectors (n,), matrices (m, n).

Three gates have a rule of their own in the lectures: + distributes the upstream gradient, max routes it, * switches it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lmtrain.explain.graph import Node

Array = NDArray[np.float64]
Shape = tuple[int, ...]


class GateError(ValueError):
    """A gate that has no value, or no gradient, for its inputs. Its three parts are those of a `UserError`."""

    def __init__(self, given: str, allowed: str, remedy: str) -> None:
        super().__init__(f"{given} {allowed} {remedy}")
        self.parts = given, allowed, remedy


class Named(NamedTuple):
    """What a formula needs to know of a value: what to call it, and its shape."""

    name: str
    shape: Shape


class Gate(ABC):
    """One operation with its local gradients.

    >>> add = Add()
    >>> x, y = np.array(1.0), np.array(2.0)
    >>> float(add.forward(x, y))
    3.0
    >>> [float(d) for d in add.backward(np.array(5.0), np.array(3.0), x, y)]
    [5.0, 5.0]

    symbol       what a drawing shows
    rule         what it does with the upstream gradient, where the lectures have a word for it
    elementwise  whether every entry of the output depends on the same entry of each input alone
    """

    symbol: str
    rule = ""
    elementwise = True

    @abstractmethod
    def forward(self, *inputs: Array) -> Array:
        """The output. Raises GateError where there is none: shapes that do not fit, the logarithm of a negative number."""

    @abstractmethod
    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        """The downstream gradient of every input, each with the shape of its input; not finite where there is none."""

    @abstractmethod
    def written(self, *inputs: str) -> str:
        """The operation as one types it, with these words for its inputs."""

    @abstractmethod
    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        """The local gradient with respect to every input, as a formula."""

    def entry(self, which: int, output_index: Shape, input_index: Shape, output: Named, *inputs: Named) -> str:
        """The derivative of one entry of the output with respect to one of input number `which`, as a formula."""
        entries = [Named(at(x, _within(output_index, x.shape, output.shape)), ()) for x in inputs]
        return self.local(Named(at(output, output_index), ()), *entries)[which]

    def cost(self, output: Array, *inputs: Array) -> int:
        """Multiplications or additions of the forward step; the backward step costs as much for each input."""
        return output.size

    def note(self, *inputs: Array) -> str:
        """What is to be said about these inputs in particular; empty for most."""
        return ""

    def __call__(self, *inputs: Node) -> Node:
        """A node that applies this gate to others."""
        from lmtrain.explain.graph import Node

        return Node(self, list(inputs))


def at(value: Named, index: Shape) -> str:
    """An entry by its name, counted from 1 as the lectures do: `W[2,3]`; a scalar by its own."""
    return f"{value.name}[{','.join(str(i + 1) for i in index)}]" if value.shape else value.name


def describe(shape: Shape) -> str:
    """A shape in words: a scalar, a vector of 3, a matrix of 2 x 3."""
    return ("a scalar", f"a vector of {short(shape)}", f"a matrix of {short(shape)}")[len(shape)]


def short(shape: Shape) -> str:
    """A shape in few characters: 3, or 2 x 3."""
    return " x ".join(map(str, shape))


def _within(index: Shape, shape: Shape, output_shape: Shape) -> Shape:
    """The entry of an input, possibly copied to the output's shape, that an entry of the output is made from."""
    kept = index[len(index) - len(shape) :] if shape else ()
    return tuple(0 if size == 1 else i for i, size in zip(kept, shape, strict=True))


def _sum_to(gradient: Array, shape: Shape) -> Array:
    """The gradient of a value that was copied to a larger shape: the sum over its copies."""
    extra = tuple(range(gradient.ndim - len(shape)))
    summed = gradient.sum(axis=extra) if extra else gradient
    copied = tuple(axis for axis, size in enumerate(shape) if size == 1 and summed.shape[axis] != 1)
    return np.asarray(summed.sum(axis=copied, keepdims=True) if copied else summed, dtype=np.float64)


class Pair(Gate):
    """Two inputs, entry by entry. A scalar, a row or a column is copied to the shape of the other input."""

    def written(self, *inputs: str) -> str:
        return f"{inputs[0]} {self.symbol} {inputs[1]}"

    def forward(self, *inputs: Array) -> Array:
        a, b = inputs
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            shape = ()
        if shape not in (a.shape, b.shape) or (shape == () and a.shape != b.shape):
            raise GateError(
                f'The shapes do not fit: "{self.symbol}" was given {describe(a.shape)} and {describe(b.shape)}.',
                "It takes two values of one shape, or one that can be copied to the other's: a scalar, or a vector as long "
                "as the rows of a matrix.",
                "Transpose with .T, multiply matrices with @, or change a value.",
            )
        return self.pair(a, b)

    def backward(self, upstream: Array, output: Array, *inputs: Array) -> tuple[Array, ...]:
        a, b = inputs
        d_a, d_b = self.pair_backward(upstream, output, a, b)
        return _sum_to(np.broadcast_to(d_a, output.shape), a.shape), _sum_to(np.broadcast_to(d_b, output.shape), b.shape)

    @abstractmethod
    def pair(self, a: Array, b: Array) -> Array: ...

    @abstractmethod
    def pair_backward(self, upstream: Array, output: Array, a: Array, b: Array) -> tuple[Array, Array]: ...


class Add(Pair):
    symbol, rule = "+", "+ distributes"

    def pair(self, a: Array, b: Array) -> Array:
        return a + b

    def pair_backward(self, upstream: Array, output: Array, a: Array, b: Array) -> tuple[Array, Array]:
        return upstream, upstream

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        return "1", "1"


class Subtract(Pair):
    symbol, rule = "-", "- distributes, with its sign turned for what is subtracted"

    def pair(self, a: Array, b: Array) -> Array:
        return a - b

    def pair_backward(self, upstream: Array, output: Array, a: Array, b: Array) -> tuple[Array, Array]:
        return upstream, -upstream

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        return "1", "-1"


class Multiply(Pair):
    symbol, rule = "*", "* switches"

    def pair(self, a: Array, b: Array) -> Array:
        return a * b

    def pair_backward(self, upstream: Array, output: Array, a: Array, b: Array) -> tuple[Array, Array]:
        return upstream * b, upstream * a

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        return inputs[1].name, inputs[0].name


class Divide(Pair):
    symbol = "/"

    def pair(self, a: Array, b: Array) -> Array:
        if (b == 0).any():
            raise GateError(
                f"A division by zero: what divides is {'0' if b.ndim == 0 else f'{describe(b.shape)} that holds a 0'}.",
                "Every number but 0 can divide.",
                "Change the values, or add a small number to it.",
            )
        return a / b

    def pair_backward(self, upstream: Array, output: Array, a: Array, b: Array) -> tuple[Array, Array]:
        return upstream / b, -upstream * output / b

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        a, b = inputs
        return f"1 / {b.name}", f"-{a.name} / {b.name}**2"


class Power(Pair):
    symbol = "**"

    def pair(self, a: Array, b: Array) -> Array:
        if ((a == 0) & (b < 0)).any():
            raise GateError(
                "A division by zero: 0 was raised to a negative power.",
                "0 has only powers of at least 0.",
                "Change the base or the exponent.",
            )
        if ((a < 0) & (b != np.round(b))).any():
            raise GateError(
                "A negative number was raised to a power that is not a whole number.",
                "A negative number has only whole powers among the real numbers.",
                "Change the base or the exponent.",
            )
        return a**b

    def pair_backward(self, upstream: Array, output: Array, a: Array, b: Array) -> tuple[Array, Array]:
        d_a = np.where(b == 0, 0.0, upstream * b * a ** np.where(b == 0, 1.0, b - 1))
        return d_a, np.where(a == 0, 0.0, upstream * output * np.log(a))

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        a, b = inputs
        slope = f"{b.name} * {a.name}**({b.name} - 1)"
        if re.fullmatch(r"[0-9]{1,6}", b.name):  # an exponent that was written as a number
            n = int(b.name)
            slope = ("0", "1", f"2 * {a.name}")[n] if n < 3 else f"{n} * {a.name}**{n - 1}"
        return slope, f"{output.name} * log({a.name})"


class Maximum(Pair):
    """The larger of two. At a tie each gets half of the gradient, as in PyTorch; the lectures' indicators give 0 to both."""

    symbol, rule = "max", "max routes"
    larger = ">"

    def written(self, *inputs: str) -> str:
        return f"{self.symbol}({', '.join(inputs)})"

    def pair(self, a: Array, b: Array) -> Array:
        return np.maximum(a, b)

    def pair_backward(self, upstream: Array, output: Array, a: Array, b: Array) -> tuple[Array, Array]:
        share = np.where(a == b, 0.5, a == output)
        return upstream * share, upstream * (1 - share)

    def local(self, output: Named, *inputs: Named) -> tuple[str, ...]:
        a, b = (x.name for x in inputs)
        return f"1({a} {self.larger} {b})", f"1({b} {self.larger} {a})"

    def note(self, *inputs: Array) -> str:
        if not (inputs[0] == inputs[1]).any():
            return ""
        return (
            f"{self.symbol} at a tie: each side gets half of the gradient, as in PyTorch; the lectures' indicators, "
            f"1(y {self.larger} z) and 1(z {self.larger} y), would both be 0"
        )


class Minimum(Maximum):
    symbol, rule = "min", "min routes"
    larger = "<"

    def pair(self, a: Array, b: Array) -> Array:
        return np.minimum(a, b)


def apply_all(gate: type[Gate], nodes: Sequence[Node]) -> Node:
    """A gate of two inputs over any number of them, from the left."""
    first, *rest = nodes
    for other in rest:
        first = gate()(first, other)
    return first
