"""The lectures' gradient check: a scorer of two hidden layers, every gradient in three ways.

z1 = W1 x + b1    h1 = f(z1)    z2 = W2 h1 + b2    h2 = f(z2)    s = u^T h2        x 20, h1 8, h2 4, f the logistic function

numeric   (s(p + h) - s(p - h)) / 2h for every entry p, h = 1e-4
graph     backpropagation through the gates of `lmtrain.explain`
delta     the recursion in matrix form:  delta2 = u o f'(z2)    delta1 = (W2^T delta2) o f'(z1)
          ds/dW2 = delta2 h1^T    ds/db2 = delta2    ds/dW1 = delta1 x^T    ds/db1 = delta1    ds/dx = W1^T delta1    ds/du = h2
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmtrain.explain.gates import Array
from lmtrain.explain.graph import Graph
from lmtrain.explain.lessons import made

STEP = 1e-4
SIZES = 20, 8, 4
SCORER = "z1 = W1 @ x + b1; h1 = sigmoid(z1); z2 = W2 @ h1 + b2; h2 = sigmoid(z2); s = u @ h2"

Gradients = dict[str, Array]


class Gradient(NamedTuple):
    """The gradient of one parameter in three ways."""

    numeric: Array
    graph: Array
    delta: Array


def scorer_gradients(seed: int = 1) -> dict[str, Gradient]:
    """By parameter (the input x is one of them) its gradients."""
    generator, (n0, n1, n2) = np.random.default_rng(seed), SIZES
    shapes = {"W1": (n1, n0), "b1": (n1,), "W2": (n2, n1), "b2": (n2,), "u": (n2,), "x": (n0,)}
    values = {name: generator.standard_normal(shape) / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    graph = made(SCORER, values)
    graph.forward()
    by_graph, by_delta = graph.backward(), delta_form(values)
    by_differences = {name: numeric_gradient(graph, name) for name in shapes}
    return {name: Gradient(by_differences[name], by_graph[name], by_delta[name]) for name in shapes}


def delta_form(p: Gradients) -> Gradients:
    """All gradients by the recursion of the error signals."""
    h1 = 1 / (1 + np.exp(-(p["W1"] @ p["x"] + p["b1"])))
    h2 = 1 / (1 + np.exp(-(p["W2"] @ h1 + p["b2"])))
    delta2 = p["u"] * h2 * (1 - h2)
    delta1 = (p["W2"].T @ delta2) * h1 * (1 - h1)
    return {
        "W1": np.outer(delta1, p["x"]), "b1": delta1, "W2": np.outer(delta2, h1), "b2": delta2, "u": h2,
        "x": p["W1"].T @ delta1,
    }  # fmt: skip


def numeric_gradient(graph: Graph, name: str, step: float = STEP) -> Array:
    """Central differences of the graph's final scalar in every entry of one input; the graph is left as it was."""
    node = next(node for node in graph.inputs if node.name == name)
    assert node.value is not None
    kept, made = node.value, np.empty_like(node.value)
    for index in np.ndindex(kept.shape):
        ends = []
        for sign in (1, -1):
            node.value = kept.copy()
            node.value[index] += sign * step
            ends.append(float(graph.forward()))
        made[index] = (ends[0] - ends[1]) / (2 * step)
    node.value = kept
    graph.forward()
    return made


def format_gradients(gradients: dict[str, Gradient]) -> str:
    """For every parameter the entry at which numeric and analytic gradient differ most, both values, and the differences."""
    head = ("parameter", "shape", "entry", "numeric", "analytic", "difference", "delta form - analytic")
    rows = []
    for name, (numeric, graph, delta) in gradients.items():
        worst = tuple(int(i) for i in np.unravel_index(int(np.abs(numeric - graph).argmax()), graph.shape))
        entry = f"[{','.join(str(i + 1) for i in worst)}]"
        rows.append(
            (
                name, " x ".join(map(str, graph.shape)), entry, f"{numeric[worst]:.10f}", f"{graph[worst]:.10f}",
                f"{abs(numeric[worst] - graph[worst]):.1e}", f"{np.abs(delta - graph).max():.1e}",
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows])
    return "\n".join(
        [
            "The lectures' check: s = u^T f(W2 f(W1 x + b1) + b2), x 20, hidden 8 and 4; numeric (h = 1e-4) beside analytic,",
            "for every parameter the entry at which they differ most (counted from 1)",
            *lines,
        ]
    )
