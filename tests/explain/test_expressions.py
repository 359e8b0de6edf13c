"""Expressions against PyTorch's autograd: the examples of the lectures, and expressions that nobody thought of."""

import doctest
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lmtrain
from lmtrain.errors import UserError
from lmtrain.explain import Add, ExpressionError, Graph, Multiply, Node, explain, parse
from lmtrain.explain.values import show

TORCH: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp, "log": torch.log, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu,
    "softmax": lambda z: torch.softmax(z, -1), "sum": torch.sum,
    "max": lambda x, *more: largest(torch.maximum, torch.amax, x, *more),
    "min": lambda x, *more: largest(torch.minimum, torch.amin, x, *more),
}  # fmt: skip


def largest(of_two: Callable[..., Tensor], of_all: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Tensor:
    for y in more:
        x = of_two(*torch.broadcast_tensors(x, y))
    return x if more else of_all(x)


def by_autograd(expression: str, values: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Python's own reading of an expression, over tensors: here `eval` is the oracle."""
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
    tensors = re.sub(r"\[[\d., ]+\]|(?<![\w.])\d+(?:\.\d+)?", lambda number: f"tensor({number[0]})", expression)
    value = eval(tensors, {"__builtins__": {}}, {**TORCH, "tensor": partial(torch.tensor, dtype=torch.float64), **leaves})
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    made = {name: torch.zeros_like(leaf) if d is None else d for (name, leaf), d in zip(leaves.items(), gradients, strict=True)}
    return value.detach(), made


def agree(expression: str, **values: Any) -> None:
    explanation = explain(expression, values)
    value, gradients = by_autograd(expression, values)
    torch.testing.assert_close(torch.as_tensor(explanation.value), value, rtol=1e-12, atol=1e-12)
    assert set(explanation.gradients) == set(values)
    for name, gradient in gradients.items():
        torch.testing.assert_close(torch.as_tensor(explanation.gradients[name]), gradient, rtol=1e-9, atol=1e-12)


def test_the_example_of_the_lectures_is_6_with_gradients_2_5_and_0() -> None:
    explanation = explain("(x + y) * max(y, z)", x=1, y=2, z=0)
    assert explanation.value == 6
    assert explanation.gradients == {"x": 2, "y": 5, "z": 0}
    text = explanation.text()
    assert "y  sum at a branch: 3 + 2 = 5" in text
    for rule in ("+ distributes", "max routes", "* switches"):
        assert rule in text


@pytest.mark.parametrize(
    ("expression", "x", "value", "slope"), [("x ** 3", 1, 1, 3), ("x ** 3", 4, 64, 48), ("3 * x ** 2", 2, 12, 12)]
)
def test_the_powers_of_the_lectures(expression: str, x: float, value: float, slope: float) -> None:
    explanation = explain(expression, x=x)
    assert (explanation.value, explanation.gradients["x"]) == (value, slope)
    assert "local 3 * x**2 = " in explanation.text() or "local 2 * x = 4" in explanation.text()


def test_a_nudge_shows_the_values_of_the_lectures() -> None:
    assert "f = 1.030301 " in explain("x ** 3", x=1).text(nudge=0.01)
    assert "f = 64.481201 " in explain("x ** 3", x=4).text(nudge=0.01)


W, X = [[1.0, -2.0, 0.5], [0.3, 0.4, -1.0]], [0.2, -0.7, 1.1]


@pytest.mark.parametrize(
    ("expression", "values"),
    [
        ("u @ sigmoid(W @ x + b)", {"u": [1.0, -2.0], "W": W, "x": X, "b": [0.1, 0.2]}),
        ("x @ W.T @ W @ x", {"W": W, "x": X}),
        ("W.T @ W", {"W": W}),
        ("A @ A - 2 * A", {"A": [[1.0, 2.0], [3.0, 4.0]]}),
        ("sum(X @ W.T + b)", {"X": [X, X, X], "W": W, "b": [1.0, 2.0]}),
        ("log(softmax(z) @ [0, 1, 0])", {"z": X}),
        ("softmax(W) * W", {"W": W}),
        ("c * W + r + k", {"c": 2.0, "W": W, "r": X, "k": [[1.0], [2.0]]}),
        ("k - W / c", {"c": 2.0, "W": W, "k": [[1.0], [2.0]]}),
        ("max(x) - min(x) + max(x, 0.1, y)", {"x": X, "y": [0.1, 0.2, 0.3]}),
        ("x ** y + 2 ** x", {"x": 1.5, "y": -2.5}),
        ("-x ** 2 - -x", {"x": 3.0}),
        ("2 ** -x ** 2", {"x": 0.5}),
        ("x - y - x / y / x", {"x": 3.0, "y": 2.0}),
        ("x ** 2 ** y", {"x": 1.5, "y": 0.3}),
        ("x * x * x + x", {"x": 1.3}),
        ("x ** 0", {"x": 0.0}),
        ("x ** 2", {"x": -3.0}),
        ("min(x, y) * max(x, y)", {"x": 2.0, "y": 2.0}),  # ties: halves on both sides
        ("max(v) + min(w)", {"v": [1.0, 1.0, 0.0], "w": [2.0, 2.0, 2.0]}),
        ("relu(x)", {"x": [0.0, -1.0, 1.0]}),
    ],
)  # fmt: skip
def test_values_and_gradients_are_those_of_autograd(expression: str, values: dict[str, Any]) -> None:
    agree(expression, **values)


# ---- expressions that nobody thought of

NUMBERS = st.integers(-24, 24).map(lambda n: n / 8)  # whose products are exact: rounding moves nothing across a kink
SHAPES: dict[str, tuple[int, ...]] = {"s": (), "t": (), "u": (2,), "v": (3,), "A": (2, 3), "B": (3, 3)}
PRODUCTS: dict[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    (): [((2,), (2,)), ((3,), (3,))], (2,): [((2, 3), (3,))], (3,): [((2,), (2, 3)), ((3, 3), (3,))],
    (2, 3): [((2, 3), (3, 3))], (3, 3): [((3, 3), (3, 3))],
}  # fmt: skip


@st.composite
def expressions(draw: st.DrawFn, shape: tuple[int, ...] | None = None, depth: int = 4) -> str:
    """An expression of a shape whose parts mostly fit; now and then one that does not."""
    if shape is None or draw(st.integers(0, 99)) == 99:
        shape = draw(st.sampled_from(sorted(PRODUCTS)))
    names = [name for name, its in SHAPES.items() if its == shape] + ["2.0", "0.5", "3.0"] * (shape == ())
    kind = draw(st.sampled_from(["leaf", "pair", "scaled", "call", "log", "of two", "sign", "turned", "product", "reduced"]))
    if depth == 0 or kind == "leaf":
        return draw(st.sampled_from(names))

    def part(shape: tuple[int, ...] | None) -> str:
        return draw(expressions(shape, depth - 1))

    match kind:
        case "pair":
            return f"({part(shape)} {draw(st.sampled_from(['+', '-', '*', '/', '**']))} {part(shape)})"
        case "scaled":
            return f"{part(())} {draw(st.sampled_from(['+', '-', '*']))} {part(shape)}"
        case "call":
            return f"{draw(st.sampled_from(['exp', 'sigmoid', 'tanh', 'relu']))}({part(shape)})"
        case "log":
            return f"log(sigmoid({part(shape)}))"
        case "of two":
            return f"{draw(st.sampled_from(['max', 'min']))}({part(shape)}, {part(shape)})"
        case "sign":
            return f"-{draw(st.sampled_from(names))} ** 2.0"
        case "turned" if shape:
            return f"softmax({part(shape)})" if len(shape) == 1 or shape == (2, 3) else f"({part(shape)}).T"
        case "product":
            left, right = draw(st.sampled_from(PRODUCTS[shape]))
            return f"({part(left)}) @ ({part(right)})"
    return f"({draw(st.sampled_from(['sum', 'max', 'min']))}({part(None)}) * {part(shape)})"


@st.composite
def assignments(draw: st.DrawFn) -> dict[str, Any]:
    return {name: np.array(draw(st.lists(NUMBERS, min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))))
            .reshape(shape).tolist() for name, shape in SHAPES.items()}  # fmt: skip


agreed: list[str] = []


@given(expressions(), assignments())
def check_random(expression: str, values: dict[str, Any]) -> None:
    used = {node.name: values[node.name] for node in parse(expression).inputs}
    try:
        explanation = explain(expression, used)
        explanation.text(jacobian=True, nudge=0.01, counted=True)
        json.dumps(explanation.to_json(), allow_nan=False)
    except UserError:
        return
    if not used:
        return
    value, gradients = by_autograd(expression, used)
    agreed.append(expression)
    torch.testing.assert_close(torch.as_tensor(explanation.value), value, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(torch.as_tensor(explanation.gradients[name]), gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*[.]T. on tensors of dimension other than 2", "ignore:Tensor.T is deprecated on 0-D")
def test_random_expressions_have_the_gradients_of_autograd_or_are_refused_in_words() -> None:
    agreed.clear()
    check_random()
    assert len(agreed) >= 25
    assert any("@" in expression for expression in agreed)


# ---- the graph


def test_a_graph_sorts_itself_whatever_the_order_in_which_it_was_built() -> None:
    x = Node.input("x", 2.0)
    product = Multiply()(x, x)
    graph = Graph(Add()(product, x))
    order = graph.nodes_topologically_sorted()
    assert all(order.index(parent) < order.index(node) for node in order for parent in node.inputs)
    assert (graph.forward(), graph.backward()) == (6, {"x": 5})


def test_a_cycle_is_refused_with_the_nodes_in_it() -> None:
    x = Node.input("x", 2.0)
    inner = Add()(x, x)
    outer = Multiply()(inner, x)
    inner.name = "inner"
    inner.inputs[1] = outer
    with pytest.raises(UserError, match=r"cycle: .*inner"):
        Graph(outer)


@pytest.mark.parametrize("value", [None, float("nan"), [1.0, float("inf")]])
def test_a_graph_whose_input_has_no_numbers_does_not_run(value: object) -> None:
    with pytest.raises(UserError, match=r"x (has no value|holds a value that is infinite)"):
        Graph(Add()(Node.input("x", value), Node.input("y", 1.0))).forward()


def test_a_graph_of_thousands_of_nodes_needs_no_recursion() -> None:
    explanation = explain("+".join(["x"] * 4000), x=1)
    assert (explanation.value, explanation.gradients["x"]) == (4000, 4000)


def test_a_shared_node_is_visited_once_however_many_paths_lead_to_it() -> None:
    doubled = "; ".join(["a0 = x + x", *(f"a{i + 1} = a{i} + a{i}" for i in range(200))])
    explanation = explain(f"{doubled}; a200 * 1", x=1)
    assert explanation.gradients["x"] == 2.0**201


def test_running_twice_gives_the_same() -> None:
    graph = explain("x * y + x", x=2, y=3).graph
    first = graph.backward()
    graph.forward()
    assert graph.backward() == first


# ---- what is shown


def test_the_derivation_of_an_entry_ends_in_its_gradient() -> None:
    values = {"u": [1.0, -2.0], "W": W, "x": X, "b": [0.1, 0.2]}
    explanation = explain("z = W @ x + b; h = sigmoid(z); s = u @ h", values)
    text = explanation.text(element="W[2,3]")
    assert "d z[2] / d W[2,3] = d a[2] / d W[2,3]" in text
    assert "d a[2] / d W[2,3] = x[3] = 1.1" in text
    assert "(h[2] * (1 - h[2])) * d z[2] / d W[2,3]" in text
    gradient = explanation.gradients["W"][1, 2]
    assert f"So d s / d W[2,3] = {gradient:.6g}; the backward pass gave {gradient:.6g}." in text


@pytest.mark.parametrize("element", ["W", "W[0,1]", "W[3,1]", "W[1]", "y[1]", "x[1,1]", "W[1,a]", "", "W[²,1]", "a[1]"])
def test_an_entry_that_there_is_not_is_refused(element: str) -> None:
    with pytest.raises(ExpressionError, match=r"entry|Inputs are"):
        explain("a = W @ x; a + 1", W=W, x=X).text(element=element)


def test_jacobians_are_those_of_autograd_and_called_as_in_the_lectures() -> None:
    text = explain("h = tanh(z); s = u @ h; z2 = W @ h; s * sum(z2)", u=X, z=X, W=W).text(jacobian=True)
    assert "dh/dz  3 x 3  diag(1 - h**2)" in text
    assert "dz2/dh  2 x 3  W" in text
    assert "ds/dh  1 x 3  u^T" in text
    assert "dc/da  2 x 2  I" in explain("u @ sigmoid(W @ x + b)", u=[1, 2], W=W, x=X, b=[1, 2]).text(jacobian=True)


def test_forward_and_backward_together_cost_less_than_every_gradient_by_itself() -> None:
    chain = "; ".join(["a1 = W @ x", *(f"a{i + 1} = tanh(W @ a{i} + b)" for i in range(1, 6)), "sum(a6)"])
    square = np.eye(4)
    counts = explain(chain, W=square, x=np.ones(4), b=np.ones(4)).to_json()["multiplications"]
    assert isinstance(counts, dict)
    assert counts["backward"] <= 3 * counts["forward"]
    assert counts["separately"] > counts["backward"]


def test_a_tie_is_said() -> None:
    text = explain("max(x, y)", x=1, y=1).text()
    assert "each side gets half of the gradient, as in PyTorch" in text
    assert "tie" not in explain("max(x, y)", x=1, y=2).text()


def test_the_gradient_of_the_sum_of_a_softmax_is_0_and_of_unlikely_entries_no_rounding() -> None:
    assert explain("softmax(x)", x=[1, 2, 3]).gradients["x"].tolist() == [0, 0, 0]
    unlikely = explain("[1, 0, 0] @ softmax(x)", x=[-50, 0, 0]).gradients["x"]
    assert unlikely[1] == pytest.approx(-np.exp(-50) / 4)


def test_a_tensor_that_requires_a_gradient_is_given_for_its_numbers() -> None:
    x = torch.tensor([1, 2], dtype=torch.bfloat16, requires_grad=True)
    assert explain("x @ x", x=x).gradients["x"].tolist() == [2, 4]


def test_values_are_shown_whole_or_with_their_shape() -> None:
    assert show(np.array([[1.0, -0.0], [2.5, 1e-9]])) == "[[1, 0], [2.5, 1e-09]]"
    assert show(np.zeros((5, 10))) == "(5 x 10) 0, 0, 0, ..."


def test_the_docstrings_are_true() -> None:
    def modules() -> Iterator[Any]:
        for name in ("", ".explanation", ".gates", ".graph", ".parser"):
            yield import_module(f"lmtrain.explain{name}")

    results = [doctest.testmod(module) for module in modules()]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) >= 10


def test_python_sees_it_from_the_package() -> None:
    assert lmtrain.explain.explain("x * x", x=3).gradients["x"] == 6
    assert lmtrain.explain.Gate
    assert lmtrain.explain.Graph
