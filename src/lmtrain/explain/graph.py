"""A graph of gates that sorts itself topologically, runs forward, and then backward.

    forward    every node after its inputs
    backward   every node before its inputs: first what all its branches send back is summed, then its gate passes it on

This is all that backpropagation is: `Graph.forward` and `Graph.backward` are a few lines each. The cost of the backward pass
is that of the forward pass, up to a small factor, because every node is visited once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from lmtrain.errors import UserError
from lmtrain.explain.gates import Array, Gate, GateError, Named
from lmtrain.explain.source import Source


class Node:
    """An input, a constant, or a gate that is applied to other nodes.

    gate        None for inputs and constants
    inputs      the nodes that the gate is applied to
    name        what formulas call it
    value       of inputs and constants from the start; of others after `Graph.forward`
    gradient    after `Graph.backward` the upstream gradient, summed over all branches; None where none is needed
    downstream  after `Graph.backward` what the gate sends to each of its inputs; None where none is needed
    """

    def __init__(self, gate: Gate | None, inputs: Sequence[Node], name: str = "", position: int | None = None) -> None:
        self.gate, self.inputs, self.name, self.position = gate, list(inputs), name, position
        self.is_constant = False
        self.needs_gradient = False
        self.value: Array | None = None
        self.gradient: Array | None = None
        self.downstream: list[Array | None] = []
        self.branches: list[Array] = []  # what each of its consumers sent back, which the gradient is the sum of

    @classmethod
    def input(cls, name: str, value: object = None) -> Node:
        """A named input, with its value: a number, or a vector or matrix as lists of numbers."""
        node = cls(None, [], name)
        node.value = None if value is None else np.asarray(value, dtype=np.float64)
        return node

    @classmethod
    def constant(cls, value: object, name: str = "") -> Node:
        """A number, a vector or a matrix that needs no gradient."""
        node = cls.input(name or f"{value}", value)
        node.is_constant = True
        return node

    @property
    def named(self) -> Named:
        assert self.value is not None, "a graph runs forward first"
        return Named(self.name, self.value.shape)

    @property
    def input_values(self) -> list[Array]:
        return [node.value for node in self.inputs if node.value is not None]

    def backward(self, upstream: Array) -> tuple[Array, ...]:
        """What the gate sends to each of its inputs for an upstream gradient; not finite where it has no slope."""
        if self.gate is None:
            return ()
        assert self.value is not None, "a graph runs forward first"
        with np.errstate(all="ignore"):
            return self.gate.backward(upstream, self.value, *self.input_values)

    def written(self) -> str:
        """What the node computes, with its inputs by their names."""
        return self.name if self.gate is None else self.gate.written(*(node.name for node in self.inputs))


class Graph:
    """All that a final node is computed from.

    >>> from lmtrain.explain import Add, Maximum, Multiply
    >>> x, y, z = Node.input("x", 1), Node.input("y", 2), Node.input("z", 0)
    >>> graph = Graph(Multiply()(Add()(x, y), Maximum()(y, z)))
    >>> float(graph.forward())
    6.0
    >>> {name: float(gradient) for name, gradient in graph.backward().items()}
    {'x': 2.0, 'y': 5.0, 'z': 0.0}
    """

    LETTERS: ClassVar[str] = "abcghijklmnopqrstuvwxyz"  # without d, e and f: a differential, a number, and the final value
    FINAL: ClassVar[str] = "fsJL"

    def __init__(self, output: Node, source: Source | None = None, reserved: Iterable[str] = ()) -> None:
        """`source`: what the graph was written as; `reserved`: names that it defines, which no nameless node is given."""
        self.output, self.source, self.reserved = output, source, frozenset(reserved)
        self._order = list(self._sort())
        self._name({*self.reserved, *(node.name for node in self._order)})

    def nodes_topologically_sorted(self) -> list[Node]:
        """All nodes, each behind its inputs; inputs and constants first."""
        return list(self._order)

    @property
    def inputs(self) -> list[Node]:
        """The named inputs, in the order in which they are first used."""
        return [node for node in self._order if node.gate is None and not node.is_constant]

    @property
    def gates(self) -> list[Node]:
        """The nodes with a gate, each behind its inputs."""
        return [node for node in self._order if node.gate is not None]

    def forward(self) -> Array:
        """Computes every node's value and returns the last. Raises UserError where a gate or an input has none."""
        for node in self._order:
            if node.gate is None and (node.value is None or not np.isfinite(node.value).all()):
                has = "has no value" if node.value is None else "holds a value that is infinite or not a number (NaN)"
                raise self.error(f"{node.name} {has}.", "Every input needs finite numbers.", "Give it some.", node)
        for node in self.gates:
            assert node.gate is not None
            with np.errstate(all="ignore"):
                try:
                    node.value = np.asarray(node.gate.forward(*node.input_values), dtype=np.float64)
                except GateError as error:
                    raise self.error(*error.parts, node) from None
            if not np.isfinite(node.value).all():
                raise self.error(
                    f"{node.name} = {node.written()} is too large for a number of 64 bits (overflow).",
                    "Numbers reach to about 1.8e308.",
                    "Take smaller values.",
                    node,
                )
        assert self.output.value is not None, "every input has a value"
        return self.output.value

    def backward(self, upstream: object = 1.0) -> dict[str, Array]:
        """The gradient of the final value with respect to every named input, after `forward`.

        upstream   the gradient of the final value itself. Where that is a vector or a matrix, 1 for each of its entries is
                   meant, which gives the gradient of the entries' sum.
        """
        for node in self._order:
            node.needs_gradient = any(parent.needs_gradient for parent in node.inputs) or (
                node.gate is None and not node.is_constant
            )
            node.gradient, node.downstream, node.branches = None, [], []
        assert self.output.value is not None, "a graph runs forward first"
        self.output.branches.append(np.broadcast_to(np.asarray(upstream, dtype=np.float64), self.output.value.shape))
        for node in reversed(self._order):
            if node.needs_gradient:
                self._send_back(node)
        return {node.name: node.gradient for node in self.inputs if node.gradient is not None}

    def _send_back(self, node: Node) -> None:
        """Sums what a node's branches sent, and sends on what its gate makes of it."""
        with np.errstate(all="ignore"):
            node.gradient = np.array(sum(node.branches[1:], start=node.branches[0]), dtype=np.float64)
        for parent, downstream in zip(node.inputs, node.backward(node.gradient), strict=True):
            node.downstream.append(downstream if parent.needs_gradient else None)
            if not parent.needs_gradient:
                continue
            if not np.isfinite(downstream).all():
                raise self.error(
                    f"{node.name} = {node.written()} has no finite gradient with respect to {parent.name} at these values.",
                    "A gradient must be a number of 64 bits: a slope that is infinite, or the slope of a power of a negative "
                    "number in its exponent, is none.",
                    "Take other values, or write an exponent that needs no gradient as a number.",
                    node,
                )
            parent.branches.append(downstream)
        if node.gate is None and not np.isfinite(node.gradient).all():
            raise self.error(
                f"The gradient of {node.name} is too large for a number of 64 bits (overflow).",
                "Numbers reach to about 1.8e308.",
                "Take smaller values.",
                node,
            )

    def error(self, given: str, allowed: str, remedy: str, node: Node) -> UserError:
        """A mistake at a node, with a caret under its place where the graph was written as an expression."""
        if self.source is not None and node.position is not None:
            return self.source.error(given, allowed, remedy, node.position)
        return UserError(given, allowed, remedy)

    def _sort(self) -> Iterator[Node]:
        """Kahn's algorithm: a node is next as soon as all its inputs have been. Raises UserError for a cycle."""
        found = self._reachable()
        waits = {node: len(node.inputs) for node in found}
        consumers: dict[Node, list[Node]] = {node: [] for node in found}
        for node in found:
            for parent in node.inputs:
                consumers[parent].append(node)
        ready = deque(node for node in found if not waits[node])
        num_sorted = 0
        while ready:
            node = ready.popleft()
            num_sorted += 1
            yield node
            for consumer in consumers[node]:
                waits[consumer] -= 1
                if not waits[consumer]:
                    ready.append(consumer)
        if num_sorted < len(found):
            kinds = [node.name or type(node.gate).__name__ for node in found if waits[node]]
            raise UserError(
                f"The graph has a cycle: {', '.join(kinds[:10])} depend on themselves.",
                "Every node must be computable from nodes before it.",
                "Remove one of the connections.",
            )

    def _reachable(self) -> list[Node]:
        """All nodes that the final one is computed from, as they are written from left to right."""
        found: dict[Node, None] = {}
        left = [self.output]
        while left:
            node = left.pop()
            if node not in found:
                found[node] = None
                left += reversed(node.inputs)
        return list(found)

    def _name(self, taken: set[str]) -> None:
        """Gives letters to the nodes that have no name, and f to the final one."""
        final = [name for name in self.FINAL if name not in taken]
        if not self.output.name and final:
            self.output.name = final[0]
            taken.add(final[0])
        fresh = (name for name in self._iter_names() if name not in taken)
        for node in self._order:
            node.name = node.name or next(fresh)

    def _iter_names(self) -> Iterator[str]:
        yield from self.LETTERS
        number = 1
        while True:
            yield from (f"{letter}{number}" for letter in self.LETTERS)
            number += 1
