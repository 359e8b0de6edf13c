"""One step of each recurrent cell: the graph of its equations, and beside it what our hand-written function keeps and returns.

The graph differentiates the equations gate by gate. The function in `lmtrain.ops` keeps a few tensors in its forward pass and
computes the same gradients from them in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmtrain.explain.explanation import Explanation
from lmtrain.explain.gates import Array
from lmtrain.explain.lessons import draw_value, made
from lmtrain.explain.values import show
from lmtrain.ops.activations import ACTIVATIONS
from lmtrain.ops.elman import elman
from lmtrain.ops.gru import gru
from lmtrain.ops.lstm import lstm


@dataclass(frozen=True)
class Cell:
    """A cell's equations as an expression, and how its function lays out what the expression holds apart.

    gates   the letters of its gates, in the order in which the rows of projected and of the weight hold them
    kept    what the function keeps besides its inputs, by name the nodes of the graph, one behind the other
    """

    equations: str
    gates: str
    kept: Mapping[str, tuple[str, ...]]


CELLS = {
    "elman": Cell("h_new = tanh(p_h + R_h @ h); u @ h_new", "h", {"states (the new h)": ("h_new",)}),
    "gru": Cell(
        "r = sigmoid(p_r + R_r @ h); z = sigmoid(p_z + R_z @ h); q = R_n @ h + b_n; n = tanh(p_n + r * q); "
        "h_new = (1 - z) * n + z * h; u @ h_new",
        "rzn",
        {"states (the new h)": ("h_new",), "gates (r, z, n, q)": ("r", "z", "n", "q")},
    ),
    "lstm": Cell(
        "i = sigmoid(p_i + R_i @ h); f = sigmoid(p_f + R_f @ h); g = tanh(p_g + R_g @ h); o = sigmoid(p_o + R_o @ h); "
        "c_new = f * c + i * g; h_new = o * tanh(c_new); u @ h_new + v @ c_new",
        "ifgo",
        {"states (the new h)": ("h_new",), "cells (the new c)": ("c_new",), "gates (i, f, g, o)": ("i", "f", "g", "o")},
    ),
}

FUNCTIONS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"elman": elman, "gru": gru, "lstm": lstm}


def step(name: str, hidden: int, seed: int) -> Explanation:
    """One step of a cell with `hidden` units and weights drawn from a seed."""
    cell, generator = CELLS[name], np.random.default_rng(seed)
    values: dict[str, Array] = {}
    for gate in cell.gates:
        values[f"p_{gate}"] = draw_value(generator, hidden)
        values[f"R_{gate}"] = draw_value(generator, hidden, hidden)
    values["h"], values["u"] = draw_value(generator, hidden), draw_value(generator, hidden)
    if name == "gru":
        values["b_n"] = draw_value(generator, hidden)
    if name == "lstm":
        values["c"], values["v"] = draw_value(generator, hidden), draw_value(generator, hidden)
    explanation = Explanation(
        made(cell.equations, values),
        [
            f"One step of the cell {name}, {hidden} hidden units: p_ is the input product W x + b of each gate, R_ its",
            "recurrent weight, h and c the state before the step; u and v are the gradients that arrive from above."
            if name == "lstm"
            else "recurrent weight, h the state before the step; u is the gradient that arrives from above.",
        ],
    )  # fmt: skip
    explanation.remarks = list(_iter_function(name, cell, values, explanation))
    return explanation


def _iter_function(name: str, cell: Cell, values: Mapping[str, Array], explanation: Explanation) -> Iterator[str]:
    """The same step through the function of `lmtrain.ops`, compared with the graph."""
    inputs = _inputs(cell, values)
    leaves = {key: torch.from_numpy(value.copy()).requires_grad_() for key, value in inputs.items()}
    states_TBH, *finals = FUNCTIONS[name](**leaves, backend="eager")
    node = states_TBH.grad_fn
    while node is not None and not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    assert node is not None
    saved = [tensor for tensor in node.saved_tensors if tensor is not None]
    kept = saved[len(leaves) :]
    yield f"The same step through our function lmtrain.ops.{name}.{name}, which has its gradient written by hand"
    yield f"  It is given {', '.join(_shaped(key, x) for key, x in leaves.items())}."
    yield "  For its backward pass it keeps its inputs and"
    differences = []
    for (what, names), tensor in zip(cell.kept.items(), kept, strict=True):
        nodes = {n.name: n.value for n in explanation.graph.nodes_topologically_sorted()}
        expected = np.concatenate([np.asarray(nodes[key]) for key in names])
        differences.append(_difference(tensor, expected))
        yield f"    {what:20} {show(tensor.detach().numpy().ravel(), 40)}"
    upstream = [torch.from_numpy(values["u"])[None]] + ([torch.from_numpy(values["v"])[None]] if name == "lstm" else [])
    gradients = torch.autograd.grad(finals, list(leaves.values()), upstream)
    yield "  Its backward pass returns"
    expected_gradients = _inputs(cell, {key: explanation.gradients.get(key, value) for key, value in values.items()})
    for key, gradient in zip(leaves, gradients, strict=True):
        differences.append(_difference(gradient, expected_gradients[key]))
        yield f"    {_shaped('d_' + key, gradient):24} {show(gradient.numpy().ravel(), 40)}"
    yield f"  Largest difference from the graph above, kept values and gradients: {max(differences):.1e}"
    explanation.facts["largest_difference"] = max(differences)


def _inputs(cell: Cell, values: Mapping[str, Array]) -> dict[str, Array]:
    """What a function takes, in its layout: one step, one stream, the gates one behind the other."""
    letter, size = ("H", "H") if len(cell.gates) == 1 else ("Z", "Z")
    made = {
        f"projected_TB{size}": np.concatenate([values[f"p_{gate}"] for gate in cell.gates])[None, None],
        "h0_BH": values["h"][None],
    }
    if "c" in values:
        made["c0_BH"] = values["c"][None]
    made[f"weight_{letter}H"] = np.concatenate([values[f"R_{gate}"] for gate in cell.gates])
    if "b_n" in values:
        made["candidate_bias_H"] = values["b_n"]
    return made


def through_activation(explanation: Explanation, activation: str) -> Iterator[str]:
    """A window's non-linearity through the function of `lmtrain.ops.activations`, compared with the graph."""
    nodes = {node.name: node for node in explanation.graph.nodes_topologically_sorted()}
    z, u, gradient = nodes["z"].value, nodes["u"].value, explanation.gradients["b"]
    assert z is not None
    assert u is not None
    leaf = torch.from_numpy(z.copy()).requires_grad_()
    output = ACTIVATIONS[activation](leaf)
    saved = getattr(output.grad_fn, "saved_tensors", ())
    (made,) = torch.autograd.grad(output, leaf, torch.from_numpy(u.copy()))
    yield f"The same through our function lmtrain.ops.activations.{activation}, which has its gradient written by hand"
    for tensor in saved:
        what = "its input z" if torch.equal(tensor, leaf) and activation != "identity" else "its output h"
        yield f"  For its backward pass it keeps {what}: {show(tensor.detach().numpy(), 40)}"
    if not saved:
        yield "  For its backward pass it keeps nothing: its gradient is 1 everywhere."
    yield f"  Its backward pass returns delta:  {show(made.numpy(), 40)}"
    difference = _difference(made, gradient)
    explanation.facts["largest_difference"] = difference
    yield f"  Largest difference from the graph above: {difference:.1e}"


def _shaped(name: str, tensor: Tensor) -> str:
    return f"{name} {list(tensor.shape)}"


def _difference(tensor: Tensor, expected: Array) -> float:
    return float(np.abs(tensor.detach().numpy().ravel() - expected.ravel()).max())
