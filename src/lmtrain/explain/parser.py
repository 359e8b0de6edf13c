"""Expressions as text: read by a parser of precedences (Pratt 1973), never by `eval`.

    program      definition ; ... ; expression              a = x + y; b = max(y, z); a * b
    definition   NAME = expression
    expression   + and -   below   * / @   below   unary -   below   ** (from the right)   below   .T
    operand      NUMBER, NAME, FUNCTION(expression, ...), (expression), [numbers] or [[numbers], ...]

Functions are those of FUNCTIONS. All else that stands where an operand may stand is an input, whose value is given apart.
"""

from __future__ import annotations

import difflib
import math

from lmtrain.arguments import checked
from lmtrain.explain.functions import (
    Exp,
    Largest,
    Log,
    MatrixProduct,
    Negate,
    Relu,
    Sigmoid,
    Smallest,
    Softmax,
    Sum,
    Tanh,
    Transpose,
)
from lmtrain.explain.gates import Add, Divide, Gate, Maximum, Minimum, Multiply, Power, Subtract, apply_all
from lmtrain.explain.graph import Graph, Node
from lmtrain.explain.reader import Reader, Token, shape_problem

MAX_DEPTH = 100  # brackets, signs and powers within one another

OPERATORS: dict[str, tuple[int, type[Gate]]] = {
    "+": (1, Add), "-": (1, Subtract), "*": (2, Multiply), "/": (2, Divide), "@": (2, MatrixProduct), "**": (4, Power),
}  # fmt: skip
SIGN = 3  # the precedence of unary minus
FUNCTIONS: dict[str, type[Gate]] = {
    "max": Maximum, "min": Minimum, "exp": Exp, "log": Log, "sigmoid": Sigmoid, "tanh": Tanh, "relu": Relu,
    "softmax": Softmax, "sum": Sum,
}  # fmt: skip
OF_ONE: dict[type[Gate], type[Gate]] = {Maximum: Largest, Minimum: Smallest}
"""What those that take two or more arguments are of one: the largest and the smallest entry."""
INSTEAD = {
    "sqrt": "x ** 0.5", "square": "x ** 2", "pow": "x ** y", "abs": "max(x, -x)", "ln": "log(x)", "logistic": "sigmoid(x)",
    "maximum": "max(x, y)", "minimum": "min(x, y)", "dot": "x @ y", "matmul": "x @ y", "norm": "sum(x * x) ** 0.5",
}  # fmt: skip
"""How well-known functions that are not among FUNCTIONS are written with them."""


@checked
def parse(expression: str) -> Graph:
    """The graph of an expression, whose inputs have no values yet. Raises ExpressionError with a caret under the mistake.

    >>> [node.written() for node in parse("(x + y) * max(y, z)").gates]
    ['x + y', 'max(y, z)', 'a * b']
    """
    return _Parser(expression).program()


class _Parser(Reader):
    def __init__(self, expression: str) -> None:
        super().__init__(expression)
        self.inputs: dict[str, Node] = {}
        self.defined: dict[str, Node] = {}

    def program(self) -> Graph:
        """Definitions, each with a semicolon behind it, and the expression."""
        if self.peek.kind == "end":
            self.fail("The expression is empty.", "", 'Type one, for example "(x + y) * max(y, z)".')
        while True:
            name = self.peek
            if name.kind == "name" and self.tokens[self.next + 1].text == "=":
                output = self.definition(name)
            else:
                output = self.expression(0, 0)
            if self.peek.text == ";":
                self.take()
                if self.peek.kind != "end" and output not in self.defined.values():
                    raise self.source.error(
                        "What stands before this semicolon has no name, so nothing behind it can use it.",
                        "Only the last part may be without a name.", "Write for example  a = x + y; a * a  .",
                        self.tokens[self.next - 1].position,
                    )  # fmt: skip
                if self.peek.kind != "end":
                    continue
            if self.peek.kind != "end":
                self.unexpected()
            return self.graph(output)

    def definition(self, name: Token) -> Node:
        if name.text in FUNCTIONS:
            self.fail(f"{name.text} is a function.", "It cannot be defined anew.", "Choose another name.")
        if name.text in self.defined or name.text in self.inputs:
            known = "is defined twice" if name.text in self.defined else "is used before it is defined"
            self.fail(f"{name.text} {known}.", "A name has one definition, before it is used.", "Choose another name.")
        self.take(), self.take()
        node = self.expression(0, 0)
        if node.gate is not None:
            node.name = node.name or name.text  # it may be another definition, which then has two names
        self.defined[name.text] = node
        return node

    def graph(self, output: Node) -> Graph:
        """The graph, if every definition and every input is a part of it."""
        graph = Graph(output, self.source, self.defined)
        used = set(graph.nodes_topologically_sorted())
        for name, node in self.defined.items():
            if node not in used:
                at = next(token.position for token in self.tokens if token.text == name)
                raise self.source.error(
                    f"{name} is defined, but what stands at the end does not use it.",
                    "Only what the last expression is made of has a gradient.",
                    "Use it, or leave it out.",
                    at,
                )
        return graph

    def expression(self, least: int, depth: int) -> Node:
        """All that binds at least as strongly as `least`."""
        left = self.operand(depth)
        while self.peek.text in OPERATORS or self.peek.text == ".T":
            token = self.peek
            if token.text == ".T":
                self.take()
                left = Node(Transpose(), [left], position=token.position)
                continue
            strength, gate = OPERATORS[token.text]
            if strength < least:
                break
            self.take()
            right = self.expression(strength if gate is Power else strength + 1, depth + 1)
            left = Node(gate(), [left, right], position=token.position)
        return left

    def operand(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            self.fail(
                "The expression is nested too deeply.",
                f"Brackets, signs and powers may stand {MAX_DEPTH} deep within one another.",
                'Define parts of it: "a = x + y; a * a".',
            )
        token = self.peek
        if token.kind == "end" or (token.kind == "mark" and token.text not in ("-", "+", "(", "[")):
            self.unexpected()
        if token.text == "[":
            return self.literal()
        self.take()
        if token.kind == "number":
            value = self.number(token)
            return Node.constant(value, token.text if len(token.text) <= 12 else f"{value:.6g}")
        if token.kind == "name":
            return self.call(token, depth) if self.peek.text == "(" else self.name(token)
        if token.text == "-":
            node = self.expression(SIGN, depth + 1)
            if node.is_constant and node.gate is None and node.value is not None and node.value.ndim == 0:
                return Node.constant(-node.value, f"-{node.name}" if node.name[0] != "-" else node.name[1:])
            return Node(Negate(), [node], position=token.position)
        if token.text == "+":
            return self.expression(SIGN, depth + 1)
        node = self.expression(0, depth + 1)
        self.close(")", token)
        return node

    def name(self, token: Token) -> Node:
        text = token.text
        if text in FUNCTIONS:
            self.next -= 1
            self.fail(f"{text} is a function without its arguments.", "", f"Write {text}(...).")
        if text in self.defined:
            return self.defined[text]
        if text not in self.inputs:
            self.inputs[text] = Node(None, [], text, token.position)
        return self.inputs[text]

    def call(self, token: Token, depth: int) -> Node:
        if token.text not in FUNCTIONS:
            self.next -= 1
            self.fail(
                f'"{token.text}" is not a function.',
                f"Functions are {', '.join(FUNCTIONS)}.",
                _instead_of(token.text),
            )
        gate, opened = FUNCTIONS[token.text], self.take()
        arguments = [self.expression(0, depth + 1)]
        while self.peek.text == ",":
            self.take()
            arguments.append(self.expression(0, depth + 1))
        self.close(")", opened)
        if len(arguments) == 1:
            return Node(OF_ONE.get(gate, gate)(), arguments, position=token.position)
        if gate not in OF_ONE:
            raise self.source.error(
                f"{token.text} was given {len(arguments)} arguments.", "It takes one.", "Leave the others out.", token.position
            )
        node = apply_all(gate, arguments)
        inner = node
        while inner.position is None and isinstance(inner.gate, gate):
            inner.position = token.position
            inner = inner.inputs[0]
        return node

    def literal(self) -> Node:
        """A vector or a matrix of numbers within the expression."""
        start = self.peek.position
        value = self.numbers()
        problem = shape_problem(value)
        if problem:
            raise self.source.error(*problem, start)
        text = self.source.text[start : self.tokens[self.next - 1].position + 1]
        return Node.constant(value, text if len(text) <= 30 else "[...]")


def _instead_of(name: str) -> str:
    """What to write for a word before a bracket that is none of the functions."""
    close = difflib.get_close_matches(name.lower(), FUNCTIONS, n=1, cutoff=0.75)
    if name.lower() in INSTEAD:
        return f"Write for example {INSTEAD[name.lower()]}."
    if close:
        return f"Did you mean {close[0]}?"
    return "There are no others." if callable(getattr(math, name, None)) else f"To multiply, write {name} * (...)."
