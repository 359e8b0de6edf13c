"""Expressions as text: read by a parser of precedences (Pratt 1973), never by `eval`.

    program      definition ; ... ; expression              a = x + y; b = max(y, z); a * b
    definition   NAME = expression
    expression   + and -   below   * / @   below   unary -   below   ** (from the right)   below   .T
    operand      NUMBER, NAME, FUNCTION(expression, ...), (expression), [numbers] or [[numbers], ...]

Functions are those of FUNCTIONS. All else that stands where an operand may stand is an input, whose value is given apart.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

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
from lmtrain.explain.source import ExpressionError, Source
from lmtrain.shell import one_line

MAX_LENGTH = 10_000  # characters
MAX_VALUE = 1_000_000  # characters of the value of a name
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

TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.(?!T\b)[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[^\W\d]\w*)|(?P<mark>\*\*|\.T\b|[-+*/@(),;=\[\]])"
)
MEANT = {
    "^": "**", "×": "*", "·": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "—": "-", "σ": "sigmoid", "²": "**2", "ᵀ": ".T",
    "{": "(", "}": ")", "&": ";", "\n": ";",
}  # fmt: skip


class Token(NamedTuple):
    kind: str  # number, name, mark or end
    text: str
    position: int


def parse(expression: str) -> Graph:
    """The graph of an expression, whose inputs have no values yet. Raises ExpressionError with a caret under the mistake.

    >>> [node.written() for node in parse("(x + y) * max(y, z)").gates]
    ['x + y', 'max(y, z)', 'a * b']
    """
    return _Parser(expression).program()


def parse_value(name: str, text: str) -> NDArray[np.float64]:
    """A number, a vector or a matrix as it is typed behind `name=`."""
    if not text.strip():
        raise ExpressionError(f"{name} was given no value.", "", f"Type for example  {name}=1  or  {name}=[1,2]  .")
    try:
        reader = _Parser(text, MAX_VALUE)
        value = reader.numbers()
        if reader.peek.kind != "end":
            reader.fail(
                f"{reader.found()} cannot stand in a value.", "A value is a number, a vector or a matrix.", "Leave it out."
            )
        if problem := shape_problem(value):
            raise reader.source.error(*problem, 0)
    except ExpressionError as error:
        raise ExpressionError(f"The value of {name} cannot be read. {error.given}", error.allowed, error.remedy) from None
    return np.asarray(value, dtype=np.float64)


def tokens(source: Source) -> list[Token]:
    """The words of a text, with an end behind the last of them."""
    found: list[Token] = []
    position = 0
    while position < len(source.text):
        if source.text[position].isspace():
            position += 1
            continue
        match = TOKEN.match(source.text, position)
        if match is None:
            character = source.text[position]
            meant = MEANT.get(character)
            raise source.error(
                f'The character "{one_line(character)}" means nothing in an expression.',
                "Allowed are numbers, names, + - * / @ ** .T, brackets, commas and functions.",
                f'Write "{meant}" in its place.' if meant else "Leave it out.",
                position,
            )
        assert match.lastgroup is not None
        found.append(Token(match.lastgroup, match[0], position))
        position = match.end()
    return [*found, Token("end", "", len(source.text))]


class _Parser:
    def __init__(self, expression: str, most: int = MAX_LENGTH) -> None:
        self.source = Source(unicodedata.normalize("NFC", expression).strip())
        text = self.source.text
        if len(text) > most:
            raise self.source.error(f"It has {len(text):,} characters.", f"It may have {most:,}.", "Shorten it.", most)
        self.tokens, self.next = tokens(self.source), 0
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
        if node.gate is None or node.name:  # an input, a constant or another definition by a second name
            self.defined[name.text] = node
        else:
            node.name = name.text
            self.defined[name.text] = node
        return node

    def graph(self, output: Node) -> Graph:
        """The graph, if every definition and every input is a part of it."""
        graph = Graph(output, self.source)
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
            return self.number(token)
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
        text = unicodedata.normalize("NFC", token.text)
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
                f"To multiply, write {token.text} * (...).",
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

    def number(self, token: Token) -> Node:
        value = float(token.text)
        if value == float("inf"):
            raise self.source.error(
                f"{token.text[:20]} is too large for a number of 64 bits.",
                "Numbers reach to about 1.8e308.",
                "Write a smaller one.",
                token.position,
            )
        return Node.constant(value, token.text if len(token.text) <= 12 else f"{value:.6g}")

    def literal(self) -> Node:
        """A vector or a matrix of numbers within the expression."""
        start = self.peek.position
        value = self.numbers()
        problem = shape_problem(value)
        if problem:
            raise self.source.error(*problem, start)
        return Node.constant(value, self.source.text[start : self.tokens[self.next - 1].position + 1])

    def numbers(self, depth: int = 0) -> object:
        """A number, or a list of such in brackets."""
        factor, start = 1.0, self.next
        while self.peek.text in ("-", "+"):
            factor = -factor if self.take().text == "-" else factor
        if self.peek.kind == "number":
            value = self.number(self.take()).value
            assert value is not None
            return factor * float(value)
        if self.peek.text != "[" or depth == 2 or self.next > start:
            self.fail(
                f"{self.found()} stands where a number should.",
                "A value is a finite number, a vector of such, or a matrix of rows of one length.",
                "Write for example 1.5 or [1, 2] or [[1, 2], [3, 4]].",
            )
        opened = self.take()
        values = [] if self.peek.text == "]" else [self.numbers(depth + 1)]
        while self.peek.text == ",":
            self.take()
            values.append(self.numbers(depth + 1))
        self.close("]", opened)
        return values

    # ---- tokens

    @property
    def peek(self) -> Token:
        return self.tokens[self.next]

    def take(self) -> Token:
        token = self.tokens[self.next]
        self.next = min(self.next + 1, len(self.tokens) - 1)
        return token

    def close(self, bracket: str, opened: Token) -> None:
        if self.peek.text == bracket:
            self.take()
        elif self.peek.kind == "end":
            raise self.source.error(
                f'The "{opened.text}" here is never closed.', f'Every "{opened.text}" needs a "{bracket}".',
                f'Write the "{bracket}".', opened.position,
            )  # fmt: skip
        else:
            self.unexpected()

    def found(self) -> str:
        return "The end" if self.peek.kind == "end" else f'"{self.peek.text[:40]}"'

    def unexpected(self) -> NoReturn:
        if self.peek.kind == "end":
            self.fail("The expression ends too early.", "", "Write a name, a number or a bracket here.")
        before = self.tokens[self.next - 1] if self.next else None
        ends = before is not None and (before.kind in ("number", "name") or before.text in (")", "]", ".T"))
        if ends and (self.peek.kind in ("number", "name") or self.peek.text in ("(", "[")):
            remedy = "To multiply, write * between them, or @ for matrices."
        elif self.peek.text == "=":
            remedy = "To define a name, write it alone before the =, and a semicolon behind the definition."
        else:
            remedy = "Leave it out." if ends else "Write a name, a number or a bracket here."
        self.fail(f"{self.found()} cannot stand here.", "", remedy)

    def fail(self, given: str, allowed: str, remedy: str) -> NoReturn:
        raise self.source.error(given, allowed, remedy, self.peek.position)


def shape_problem(value: object) -> tuple[str, str, str] | None:
    """What is wrong with lists as a vector or a matrix: empty, or of rows that differ."""
    allowed, remedy = "A vector is [1, 2], a matrix has rows of one length.", "Write for example [[1, 2], [3, 4]]."
    if not isinstance(value, list):
        return None
    if not value or [] in value:
        return "An empty vector was given.", allowed, remedy
    lengths = [len(row) if isinstance(row, list) else None for row in value]
    if len(set(lengths)) > 1:
        if None in lengths:
            return "Numbers and rows are mixed.", allowed, remedy
        odd = next(i for i, n in enumerate(lengths) if n != lengths[0])
        return f"Row 1 is of length {lengths[0]}, but row {odd + 1} of length {lengths[odd]}.", allowed, remedy
    return None
