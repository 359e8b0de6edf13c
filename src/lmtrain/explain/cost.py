"""What both passes cost, counted in multiplications and additions: backpropagation against each gradient by itself."""

from __future__ import annotations

from collections.abc import Iterator

from lmtrain.explain.graph import Graph, Node


def count(graph: Graph) -> dict[str, int]:
    """Multiplications and additions, after `forward` and `backward`.

    forward      of the forward pass
    backward     of the backward pass, all gradients at once
    separately   of a backward pass for every name by itself, which computes again what the paths have in common
    """
    return {
        "forward": sum(
            node.gate.cost(node.value, *node.input_values) for node in graph.gates if node.gate and node.value is not None
        ),
        "backward": _backward_cost(graph, {node for node in graph.nodes_topologically_sorted() if node.needs_gradient}),
        "separately": sum(_backward_cost(graph, _behind(graph, node)) for node in graph.inputs),
    }


def iter_count(graph: Graph) -> Iterator[str]:
    """The counts as lines of text."""
    counts = count(graph)
    yield "Cost in multiplications and additions of single numbers"
    yield f"  forward pass                              {counts['forward']:>10,}"
    yield f"  backward pass, all gradients at once      {counts['backward']:>10,}"
    for node in graph.inputs:
        cost = _backward_cost(graph, _behind(graph, node))
        yield f"  {f'gradient of {node.name} by itself':40}  {cost:>10,}"
    yield f"  every gradient by itself, together        {counts['separately']:>10,}"
    together = counts["forward"] + counts["backward"]
    ratio = f", {together / counts['forward']:.2f} times the forward pass alone" if counts["forward"] else ""
    yield f"  forward and backward together             {together:>10,}{ratio}"


def _behind(graph: Graph, node: Node) -> set[Node]:
    """A node and all that is computed from it."""
    found = {node}
    for other in graph.nodes_topologically_sorted():
        if not found.isdisjoint(other.inputs):
            found.add(other)
    return found


def _backward_cost(graph: Graph, wanted: set[Node]) -> int:
    """Of sending gradients along every edge between wanted nodes, and of the sums where edges meet."""
    total = 0
    consumed: dict[Node, int] = {}
    for node in graph.gates:
        if node in wanted and node.gate is not None and node.value is not None:
            for parent in node.inputs:
                if parent in wanted and parent.value is not None:
                    total += node.gate.cost(node.value, *node.input_values)
                    total += parent.value.size if parent in consumed else 0
                    consumed[parent] = 1
    return total
