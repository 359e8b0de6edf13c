"""Values for the names of an expression, as they are typed and as they are shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np

from lmtrain.explain.gates import Array, short
from lmtrain.explain.graph import Graph
from lmtrain.explain.parser import FUNCTIONS
from lmtrain.explain.reader import parse_value, shape_problem
from lmtrain.explain.source import ExpressionError
from lmtrain.shell import one_line, printable

SHOWN = 24  # entries of a value that a text shows


def read_assignments(words: Iterable[str]) -> dict[str, Array]:
    """The values of `x=1`, `W=[[1, 2], [3, 4]]`. Raises ExpressionError for what is none."""
    values: dict[str, Array] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = unicodedata.normalize("NFC", name.strip())
        if not equals or not name.isidentifier():
            raise ExpressionError(
                f'"{printable(one_line(word.strip()), 80)}" gives no value to a name.',
                "Behind the expression stand names with their values.",
                "Type for example  x=1  or  W=[[1,2],[3,4]]  ; an expression that contains spaces needs quotation marks.",
            )
        if name in FUNCTIONS:
            raise ExpressionError(
                f"{name} is a function, so it cannot be given a value.", f"Functions are {', '.join(FUNCTIONS)}.",
                "Choose another name.",
            )  # fmt: skip
        if name in values:
            raise ExpressionError(f"{name} was given twice.", "Every name has one value.", "Leave one of them out.")
        values[name] = parse_value(name, text)
    return values


def as_value(name: str, value: object) -> Array:
    """A number or nested lists (or anything that NumPy takes) as float64. Raises ExpressionError for what has no place here."""
    problem = shape_problem(value)
    if hasattr(value, "detach"):  # a tensor of PyTorch, of any type and on any device
        value = value.detach().tolist()
    try:
        array = np.asarray(0.0 if problem else value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        problem, array = ("It is neither a number nor made of numbers.", "", ""), np.zeros(())
    if not problem and (array.ndim > 2 or not array.size):
        problem = f"It has the shape {array.shape}.", "", ""
    if not problem and not np.isfinite(array).all():
        problem = "It holds a value that is infinite or not a number (NaN).", "", ""
    if problem:
        raise ExpressionError(
            f"The value of {name} cannot be used: {problem[0]}",
            problem[1] or "A value is a finite number, a vector or a matrix of such.",
            problem[2] or f"Type for example  {name}=1.5  or  {name}=[1,2]  or  {name}=[[1,2],[3,4]]  .",
        )
    return array


def bind(graph: Graph, values: Mapping[str, object]) -> None:
    """Gives the graph's inputs their values. Raises ExpressionError for a name without a value and a value without a name."""
    names = {node.name: node for node in graph.inputs}
    missing = [node for name, node in names.items() if name not in values]
    unused = [name for name in values if name not in names]
    if missing:
        node, listed = missing[0], ", ".join(node.name for node in missing[:10])
        example = " ".join(f"{node.name}=1" for node in missing[:10])
        given = f"{listed} {'has' if len(missing) == 1 else 'have'} no value."
        if len(missing) > 10:
            given = f"{listed} and {len(missing) - 10} more have no value."
        raise graph.error(given, "Every name needs one.", f"Type behind the expression for example  {example}  .", node)
    if defined := [name for name in unused if name in graph.reserved]:
        raise ExpressionError(
            f"{defined[0]} is defined in the expression, so it cannot be given a value.",
            "A name has the value of its definition.", "Leave the value out, or the definition.",
        )  # fmt: skip
    if unused:
        listed = ", ".join(one_line(name)[:40] for name in unused[:10])
        raise ExpressionError(
            f"{listed} {'is' if len(unused) == 1 else 'are'} not in the expression.",
            f"Its names are {', '.join(list(names)[:20])}." if names else "It has no names.",
            f"Leave {'it' if len(unused) == 1 else 'them'} out, or use {'it' if len(unused) == 1 else 'them'}.",
        )
    for name, node in names.items():
        node.value = as_value(name, values[name])


def number(value: float, digits: int = 6) -> str:
    """A number in few digits; a zero has no sign."""
    return f"{value + 0.0:.{digits}g}" if value else "0"


def show(value: Array, most: int = SHOWN, digits: int = 6) -> str:
    """A value in one line: all of it, or where it has many entries its shape and the first ones."""
    if value.ndim == 0:
        return number(float(value), digits)
    if value.size > most:
        start = ", ".join(number(float(entry), digits) for entry in value.ravel()[:3])
        return f"({short(value.shape)}) {start}, ..."
    if value.ndim == 1:
        return f"[{', '.join(number(float(entry), digits) for entry in value)}]"
    return f"[{', '.join(show(row, most, digits) for row in value)}]"
