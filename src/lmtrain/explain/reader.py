"""The words of an expression one by one, and the numbers, vectors and matrices that they spell."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from lmtrain.explain.source import ExpressionError, Source
from lmtrain.shell import one_line

MAX_LENGTH = 10_000  # characters of an expression
MAX_VALUE = 1_000_000  # characters of the value of a name
EXAMPLES = "Write for example 1.5 or [1, 2] or [[1, 2], [3, 4]]."

TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.(?!T\b)[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)|(?P<mark>\*\*|\.T\b|[-+*/@(),;=\[\]])"
)
MEANT = {
    "^": "**", "×": "*", "·": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "—": "-", "σ": "sigmoid", "²": "**2", "ᵀ": ".T",
    "{": "(", "}": ")",
}  # fmt: skip


class Token(NamedTuple):
    kind: str  # number, name, mark or end
    text: str
    position: int


def parse_value(name: str, text: str) -> NDArray[np.float64]:
    """A number, a vector or a matrix as it is typed behind `name=`."""
    if not text.strip():
        raise ExpressionError(f"{name} was given no value.", "", f"Type for example  {name}=1  or  {name}=[1,2]  .")
    try:
        reader = Reader(text, MAX_VALUE)
        value = reader.numbers()
        if reader.peek.kind != "end":
            reader.fail(
                f"{reader.found()} cannot stand in a value.",
                "A value is a decimal number, a vector or a matrix; nothing is computed in it.",
                _remedy(text.strip()),
            )
        if problem := shape_problem(value):
            raise reader.source.error(*problem, 0)
    except ExpressionError as error:
        raise ExpressionError(f"The value of {name} cannot be read. {error.given}", error.allowed, error.remedy) from None
    return np.asarray(value, dtype=np.float64)


def _remedy(text: str) -> str:
    """What to type for a number with something behind it that no value has."""
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+", text):
        return f"Write {text.replace(',', '.')} for a number, or [{text}] for a vector."
    if re.fullmatch(r"[^,\s]*[*/+-].*", text):
        return "Write the decimal number that it comes to, such as 0.333."
    return EXAMPLES


class Reader:
    """A text as words, of which `peek` is the next."""

    def __init__(self, text: str, most: int = MAX_LENGTH) -> None:
        self.source = Source(unicodedata.normalize("NFC", text).strip())
        text = self.source.text
        if len(text) > most:
            raise self.source.error(f"It has {len(text):,} characters.", f"It may have {most:,}.", "Shorten it.", most)
        self.tokens, self.next = tokens(self.source), 0

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
        elif ends and self.peek.text == ",":
            remedy = "Write decimal numbers with a point, such as 1.5; commas separate the arguments of a function."
        else:
            remedy = "Leave it out." if ends else "Write a name, a number or a bracket here."
        self.fail(f"{self.found()} cannot stand here.", "", remedy)

    def fail(self, given: str, allowed: str, remedy: str) -> NoReturn:
        raise self.source.error(given, allowed, remedy, self.peek.position)

    def number(self, token: Token) -> float:
        value = float(token.text)
        if value == float("inf"):
            raise self.source.error(
                f"{token.text[:20]} is too large for a number of 64 bits.",
                "Numbers reach to about 1.8e308.",
                "Write a smaller one.",
                token.position,
            )
        return value

    def numbers(self, depth: int = 0) -> object:
        """A number, or a list of such in brackets."""
        factor, start = 1.0, self.next
        while self.peek.text in ("-", "+"):
            factor = -factor if self.take().text == "-" else factor
        if self.peek.kind == "number":
            return factor * self.number(self.take())
        if self.peek.text != "[" or depth == 2 or self.next > start:
            self.fail(
                f"{self.found()} stands where a number should.",
                "A value is a finite number, a vector of such, or a matrix of rows of one length.",
                EXAMPLES,
            )
        opened = self.take()
        values = [] if self.peek.text == "]" else [self.numbers(depth + 1)]
        while self.peek.text == ",":
            self.take()
            values.append(self.numbers(depth + 1))
        if self.peek.text != "]" and self.peek.kind != "end":
            self.fail(
                f"{self.found()} cannot stand here.",
                "Commas separate the numbers of a vector, and the rows of a matrix, which have brackets of their own; "
                "nothing is computed in them.",
                EXAMPLES,
            )
        self.close("]", opened)
        return values


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
