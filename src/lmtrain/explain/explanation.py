"""`explain`: an expression with its values, run forward and backward, and everything that can be shown of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lmtrain.arguments import checked, checked_methods
from lmtrain.explain.cost import count, iter_count
from lmtrain.explain.drawing import draw
from lmtrain.explain.element import iter_derivation
from lmtrain.explain.gates import Array
from lmtrain.explain.graph import Graph, Node
from lmtrain.explain.nudge import iter_nudges
from lmtrain.explain.parser import parse
from lmtrain.explain.text import iter_lines, local_values
from lmtrain.explain.values import bind


@checked_methods
class Explanation:
    """A graph that has run forward and backward.

    graph       its nodes with their values and gradients
    value       the final value, as all values a NumPy array (of no axis for a scalar)
    gradients   by name the gradient of the final value, each with the shape of its input
    introduction, remarks   paragraphs before and behind the explanation
    """

    def __init__(self, graph: Graph, introduction: Iterable[str] = (), remarks: Iterable[str] = ()) -> None:
        self.graph = graph
        self.value: Array = graph.forward()
        self.gradients: dict[str, Array] = graph.backward()
        self.introduction, self.remarks = list(introduction), list(remarks)
        self.facts: dict[str, object] = {}  # what `to_json` holds besides

    def text(
        self, *, jacobian: bool = False, element: str | None = None, nudge: float | None = None, counted: bool = False
    ) -> str:
        """Everything in order, as text.

        jacobian   the Jacobian matrix of every gate as well
        element    the scalar derivation of the gradient of one entry, such as "W[2,3]" (counted from 1)
        nudge      the final value after each entry (or `element` alone) has been nudged by so much
        counted    the cost of both passes, against each gradient by itself
        """
        sections = [self.introduction, list(iter_lines(self.graph, jacobian))]
        if element is not None:
            sections.append(list(iter_derivation(self.graph, element)))
        if nudge is not None:
            sections.append(list(iter_nudges(self.graph, nudge, element)))
        if counted:
            sections.append(list(iter_count(self.graph)))
        sections.append(self.remarks)
        return "\n\n".join("\n".join(lines) for lines in sections if lines)

    def svg(self) -> str:
        """The drawing of the lectures: values above, gradients below the edges. Raises UserError for too many nodes."""
        return draw(self.graph)

    def to_json(self) -> dict[str, object]:
        """Value, gradients, and every node with its upstream, local and downstream gradients; lists for vectors."""
        source = self.graph.source
        return {
            **({"expression": source.text} if source else {}),
            "value": self.value.tolist(),
            "gradients": {name: gradient.tolist() for name, gradient in self.gradients.items()},
            "nodes": [_node_to_json(node) for node in self.graph.nodes_topologically_sorted()],
            "multiplications": count(self.graph),
            **self.facts,
        }


@checked
def explain(expression: str, values: Mapping[str, object] | None = None, /, **more: object) -> Explanation:
    """Runs an expression forward and backward. Raises UserError, with a caret under the mistake where there is one.

    expression   see `lmtrain.explain.parser`
    values       by name a number, a vector or a matrix (lists, NumPy arrays or tensors); also as keywords

    >>> explanation = explain("(x + y) * max(y, z)", x=1, y=2, z=0)
    >>> float(explanation.value)
    6.0
    >>> {name: float(gradient) for name, gradient in explanation.gradients.items()}
    {'x': 2.0, 'y': 5.0, 'z': 0.0}
    """
    graph = parse(expression)
    bind(graph, {**(values or {}), **more})
    return Explanation(graph)


def _node_to_json(node: Node) -> dict[str, object]:
    assert node.value is not None
    made: dict[str, object] = {"name": node.name, "value": node.value.tolist()}
    if node.gate is None:
        made["kind"] = "constant" if node.is_constant else "input"
    else:
        named = [parent.named for parent in node.inputs]
        locals_ = local_values(node) if node.gate.elementwise else None
        made |= {
            "kind": node.gate.symbol, "inputs": [parent.name for parent in node.inputs], "formula": node.written(),
            "rule": node.gate.rule, "local_formulas": list(node.gate.local(node.named, *named)),
            "locals": None if locals_ is None else [_finite(value) for value in locals_],
            "downstream": [None if d is None else d.tolist() for d in node.downstream] or None,
        }  # fmt: skip
        if note := node.gate.note(*node.input_values):
            made["note"] = note
    return {**made, "upstream": None if node.gradient is None else node.gradient.tolist()}


def _finite(value: Array) -> object:
    return value.tolist() if np.isfinite(value).all() else None
