"""The scalar derivation: how one entry, W[2,3], acts on every node on its way to the final value."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from lmtrain.explain.gates import Array, Shape, at, describe
from lmtrain.explain.graph import Graph, Node
from lmtrain.explain.source import ExpressionError
from lmtrain.explain.text import jacobian_of
from lmtrain.explain.values import number
from lmtrain.shell import one_line

MAX_ENTRIES = 4_000_000  # of a Jacobian that is computed
SHOWN = 8  # entries of a node, and terms of a sum, that are written out


def find_entry(graph: Graph, element: str) -> tuple[Node, Shape]:
    """The input and the index (from 0) that `W[2,3]` (from 1) names. Raises ExpressionError for an entry that there is not."""
    match = re.fullmatch(r"\s*([^\W\d]\w*)\s*(?:\[([0-9,\s]*)\])?\s*", element)
    nodes = {node.name: node for node in graph.inputs}
    if match is None or match[1] not in nodes:
        raise ExpressionError(
            f'"{one_line(element)[:60]}" names no entry of an input.',
            f"Inputs are {', '.join(list(nodes)[:20]) or 'none'}.",
            "Type for example  --element W[2,3]  , counted from 1, or  --element x  for a scalar.",
        )
    node = nodes[match[1]]
    shape = node.named.shape
    numbers = [int(part) if part.strip().isdigit() and len(part) < 10 else 0 for part in (match[2] or "").split(",")]
    index = tuple(n - 1 for n in numbers) if match[2] is not None else ()
    if len(index) != len(shape) or not all(0 <= i < size for i, size in zip(index, shape, strict=True)):
        last = f"{node.name}[{','.join(map(str, shape))}]"
        raise ExpressionError(
            f"{one_line(element.strip())[:60]} is no entry of {node.name}, which is {describe(shape)}.",
            f"Its entries are {at(node.named, tuple(0 for _ in shape))} to {last}, counted from 1." if shape else "",
            f"Type for example  --element {at(node.named, tuple(0 for _ in shape))}  .",
        )
    return node, index


def iter_derivation(graph: Graph, element: str) -> Iterator[str]:
    """Forward along all paths: the derivative of every entry that depends on the one that was named."""
    source, index = find_entry(graph, element)
    name, output = at(source.named, index), graph.output
    yield f"The scalar derivation for {name}: what it acts on, node by node (entries that it does not reach are left out)"
    start = np.zeros(source.named.shape)
    start[index] = 1
    slopes: dict[Node, Array] = {source: start}
    for node in graph.gates:
        parents = [parent for parent in dict.fromkeys(node.inputs) if parent in slopes and slopes[parent].any()]
        if not parents:
            continue
        if _size(node) * max(map(_size, parents)) > MAX_ENTRIES:
            raise ExpressionError(
                f"The Jacobian of {node.name} has too many entries.", f"A derivation takes {MAX_ENTRIES:,}.",
                "Take smaller matrices, or leave --element out.",
            )  # fmt: skip
        whole = sum(jacobian_of(node, node.inputs.index(parent)) @ slopes[parent].ravel() for parent in parents)
        slopes[node] = np.asarray(whole).reshape(node.named.shape)
        reached = [tuple(map(int, i)) for i in np.argwhere(slopes[node])] if node.named.shape else [()]
        yield f"  {node.name} = {node.written()}"
        for entry in reached[:SHOWN]:
            made = f"{_terms(node, entry, slopes, name)} = {number(float(slopes[node][entry]))}"
            yield f"    d {at(node.named, entry)} / d {name} = {made}"
        if len(reached) > SHOWN:
            yield f"    ... and {len(reached) - SHOWN} more"
    total = float(np.asarray(slopes.get(output, np.zeros(()))).sum())
    assert source.gradient is not None
    summed = " (summed over its entries)" if output.named.shape else ""
    by_backward = number(float(source.gradient[index]))
    yield f"  So d {output.name}{summed} / d {name} = {number(total)}; the backward pass gave {by_backward}."


def _terms(node: Node, entry: Shape, slopes: dict[Node, Array], name: str) -> str:
    """The local gradients that one entry of a node is reached through, each times the slope of the entry before."""
    assert node.gate is not None
    terms: list[str] = []
    names = [parent.named for parent in node.inputs]
    for which, parent in enumerate(node.inputs):
        if parent not in slopes:
            continue
        row = _local_row(node, which, entry)
        for flat in np.flatnonzero((row != 0) & (slopes[parent].ravel() != 0)):
            index = tuple(int(i) for i in np.unravel_index(int(flat), parent.named.shape)) if parent.named.shape else ()
            local = node.gate.entry(which, entry, index, node.named, *names)
            before = "" if parent.gate is None else f"d {at(parent.named, index)} / d {name}"
            if before:
                local = before if local == "1" else f"-{before}" if local == "-1" else f"{_bracketed(local)} * {before}"
            terms.append(local)
    shown = " + ".join(terms[:SHOWN]) or "0"
    return shown + (f" + {len(terms) - SHOWN} more" if len(terms) > SHOWN else "")


def _local_row(node: Node, which: int, entry: Shape) -> Array:
    """d output[entry] / d input number `which`, that input alone."""
    unit = np.zeros(node.named.shape)
    unit[entry] = 1
    return node.backward(unit)[which].ravel()


def _bracketed(formula: str) -> str:
    return f"({formula})" if re.search(r"(?<!\*) [-+] |^-", formula) and not re.fullmatch(r"\([^()]*\)", formula) else formula


def _size(node: Node) -> int:
    assert node.value is not None
    return node.value.size
