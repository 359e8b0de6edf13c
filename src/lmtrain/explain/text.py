"""A graph as text: forward in topological order, backward in reverse, the gradients; and the Jacobians, on request."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lmtrain.explain.gates import Array, describe, short
from lmtrain.explain.graph import Graph, Node
from lmtrain.explain.values import number, show
from lmtrain.shell import num_columns, padded

MAX_JACOBIAN = 400  # entries of a Jacobian that are shown


def iter_lines(graph: Graph, jacobian: bool = False) -> Iterator[str]:
    """The whole explanation of a graph that ran forward and backward."""
    yield from iter_forward(graph)
    yield ""
    yield from iter_backward(graph)
    if jacobian:
        yield ""
        yield from iter_jacobians(graph)
    yield ""
    yield from iter_gradients(graph)


def iter_forward(graph: Graph) -> Iterator[str]:
    """Every node with what it computes, its shape and its value."""
    yield "Forward: every node after its inputs (topological order)"
    nodes = [node for node in graph.nodes_topologically_sorted() if node.gate is not None or not node.is_constant]
    formulas = ["given" if node.gate is None else f"= {node.written()}" for node in nodes]
    shapes = [short(node.named.shape) for node in nodes]
    yield from _columns([node.name for node in nodes], formulas, shapes, [show(_value(node)) for node in nodes])


def iter_backward(graph: Graph) -> Iterator[str]:
    """Every gate with its upstream gradient, and for each input the local and the downstream gradient."""
    output = graph.output
    yield "Backward: every node before its inputs; downstream gradient = upstream gradient times local gradient"
    if not output.needs_gradient:
        yield "  Nothing here depends on a name, so nothing has a gradient."
        return
    if output.named.shape:
        yield f"  {output.name} is {describe(output.named.shape)}: its upstream gradient is 1 everywhere, as for its sum."
    for node in reversed(graph.nodes_topologically_sorted()):
        if not node.needs_gradient or node.gradient is None:
            continue
        if len(node.branches) > 1:
            yield f"  {node.name}  sum at a branch: {_sum(node.branches)} = {show(node.gradient)}"
        if node.gate is not None:
            yield from _iter_gate(node)


def iter_gradients(graph: Graph) -> Iterator[str]:
    """The final value, and its gradient with respect to every name."""
    output = graph.output
    yield f"{output.name} = {show(_value(output))}"
    for node in graph.inputs:
        assert node.gradient is not None
        shape = f"   ({short(node.gradient.shape)}, as {node.name})" if node.gradient.shape else ""
        yield f"d{output.name}/d{node.name} = {show(node.gradient)}{shape}"


def iter_jacobians(graph: Graph) -> Iterator[str]:
    """For every gate the matrix of d output_i / d input_j, entries of matrices counted row by row."""
    yield "Jacobians: row i, column j holds d output_i / d input_j; the entries of a matrix are counted row by row"
    for node in graph.gates:
        for which, parent in enumerate(node.inputs):
            if not parent.needs_gradient or parent in node.inputs[:which]:
                continue
            rows, columns = _value(node).size, _value(parent).size
            if not node.named.shape and not parent.named.shape:
                yield f"  d{node.name}/d{parent.name} = {number(float(jacobian_of(node, which)[0, 0]))}"
                continue
            head = f"  d{node.name}/d{parent.name}  {rows} x {columns}  {_form(node, which)}".rstrip()
            if rows * columns > MAX_JACOBIAN:
                yield f"{head}  (too large to be shown)"
                continue
            yield head
            for row in jacobian_of(node, which):
                yield "    [" + "  ".join(f"{number(float(x), 4):>9}" for x in row) + " ]"
    yield "  The chain rule multiplies them. The shape convention then gives each gradient the shape of its value."


def jacobian_of(node: Node, which: int) -> Array:
    """d output_i / d input_j of a gate with respect to its input number `which` (and to the same node elsewhere among them)."""
    value, parent = _value(node), node.inputs[which]
    rows = []
    for index in range(value.size):
        unit = np.zeros(value.size)
        unit[index] = 1
        made = node.backward(unit.reshape(value.shape))
        rows.append(sum(d.ravel() for d, other in zip(made, node.inputs, strict=True) if other is parent))
    return np.stack(rows)


def _form(node: Node, which: int) -> str:
    """What a Jacobian is called in the lectures."""
    assert node.gate is not None
    kind, local = type(node.gate).__name__, node.gate.local(node.named, *(n.named for n in node.inputs))[which]
    same = node.named.shape == node.inputs[which].named.shape
    if kind == "MatrixProduct":
        other, ours = node.inputs[1 - which], node.inputs[which]
        if len(ours.named.shape) == 1:
            return f"{other.name}^T" if which == 0 or len(other.named.shape) == 1 else other.name
        return f"one copy of {other.name}^T for every row" if len(other.named.shape) == 1 and which == 0 else ""
    if node.gate.elementwise and same:
        return {"1": "I", "-1": "-I"}.get(local, f"diag({local})")
    return ""


def _iter_gate(node: Node) -> Iterator[str]:
    assert node.gate is not None
    assert node.gradient is not None
    with_shape = (parent.named for parent in node.inputs)
    formulas = node.gate.local(node.named, *with_shape)
    notes = [text for text in (node.gate.rule, node.gate.note(*node.input_values)) if text]
    said = f"   [{'; '.join(notes)}]" if notes else ""
    yield f"  {node.name} = {node.written()}   upstream {show(node.gradient)}{said}"
    names, locals_, sent = [], [], []
    for which, (parent, downstream) in enumerate(zip(node.inputs, node.downstream, strict=True)):
        if downstream is not None:
            names.append(f"  to {parent.name}")
            locals_.append("local " + _local(node, which, formulas[which]))
            sent.append(f"downstream {show(downstream)}")
    yield from _columns(names, locals_, sent)


def _local(node: Node, which: int, formula: str) -> str:
    """A local gradient as formula and value; of a product of matrices the formula says how it acts."""
    assert node.gate is not None
    value, parent = _value(node), node.inputs[which]
    if "upstream" in formula:
        return f"({formula})"
    if formula in ("1", "-1") or not node.gate.elementwise or parent.named.shape != value.shape:
        return formula
    slope = show(local_values(node)[which])
    return formula if formula == slope else f"{formula} = {slope}"


def local_values(node: Node) -> tuple[Array, ...]:
    """The local gradients of an elementwise gate, entry by entry."""
    return node.backward(np.ones(_value(node).shape))


def _sum(parts: list[Array]) -> str:
    shown = [show(part) for part in parts[:8]]
    return " + ".join(text if not text.startswith("-") else f"({text})" for text in shown) + " + ..." * (len(parts) > 8)


def _value(node: Node) -> Array:
    assert node.value is not None, "a graph runs forward first"
    return node.value


def _columns(*columns: list[str]) -> Iterator[str]:
    """Lines whose columns stand under each other, where none is very wide."""
    widths = [min(max(map(num_columns, column), default=0), 44) for column in columns]
    for row in zip(*columns, strict=True):
        yield "  " + "   ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True) if width).rstrip()
