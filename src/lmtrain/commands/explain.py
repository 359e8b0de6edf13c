"""`python -m lmtrain explain EXPRESSION name=value ...` runs an expression forward and backward, gate by gate.

It prints for every node its value, the upstream gradient, every local gradient and every downstream gradient, and the sums
at branches. Or it shows a lesson of the lectures by its name, with its sizes as name=value: chain, softmax (C=3 y=1), window,
collapse, elman, gru, lstm. Expressions hold numbers, names, + - * / ** @ .T, max, min, exp, log, sigmoid, tanh, relu, softmax
and sum. A value is a number, a vector [1,2] or a matrix [[1,2],[3,4]]. Definitions come before the expression:
"a = x + y; a * a".
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
from collections.abc import Iterable

from lmtrain.commands.drawing import new_drawing, write_drawing
from lmtrain.commands.options import Parser, parse
from lmtrain.errors import SettingsError

EXAMPLES = """examples:
  explain "(x + y) * max(y, z)" x=1 y=2 z=0 --svg graph.svg
  explain "u @ sigmoid(W @ x + b)" "W=[[1,2],[3,4]]" x=[1,0] b=[0,1] u=[1,1] --element W[2,1] --jacobian
  explain "x ** 3" x=4 --nudge 0.01
  explain softmax C=3 y=1        explain lstm --svg lstm.svg        explain collapse"""


def main(arguments: list[str]) -> None:
    """Prints the explanation."""
    parser = Parser("explain", __doc__, EXAMPLES)
    parser.add_argument("expression", metavar="EXPRESSION", nargs="?", help="what is explained, or the name of a lesson")
    parser.add_argument("values", metavar="name=value", nargs="*", help="a value for every name in it")
    parser.add_argument("--svg", metavar="FILE", help="draws the graph: values above, gradients below the edges")
    parser.add_argument("--json", action="store_true", help="value, gradients and every node as JSON")
    parser.add_argument("--jacobian", action="store_true", help="the Jacobian matrix of every gate as well")
    parser.add_argument("--element", metavar="W[2,3]", help="the scalar derivation for one entry, counted from 1")
    parser.add_argument("--nudge", metavar="0.01", type=step, help="the value after every entry is nudged by so much")
    parser.add_argument("--count", action="store_true", help="what both passes cost, and every gradient by itself")
    options = parse_expression(parser, arguments)
    if options.expression is None:
        raise SettingsError("No expression was given.", "", f'Type for example  {parser.prog} "x * y + x" x=2 y=3  .')
    drawing = None if options.svg is None else new_drawing("--svg", options.svg)

    from lmtrain.explain.explanation import explain
    from lmtrain.explain.lessons import LESSONS
    from lmtrain.explain.values import read_assignments

    if (name := options.expression.strip()) in LESSONS:
        explanation = LESSONS[name](options.values)
    else:
        _check_lesson(name, options.values, LESSONS)
        explanation = explain(options.expression, read_assignments(options.values))
    if options.json:
        shown = json.dumps(explanation.to_json(), allow_nan=False)
        chosen = [name for name in ("jacobian", "element", "nudge", "count") if getattr(options, name) not in (None, False)]
        if chosen:
            raise SettingsError(f"--{chosen[0]} was given with --json.", "It is shown as text alone.", "Leave one of them out.")
    else:
        shown = explanation.text(jacobian=options.jacobian, element=options.element, nudge=options.nudge, counted=options.count)
    if drawing is not None:
        write_drawing("--svg", drawing, explanation.svg())
    print(shown)


def _check_lesson(expression: str, words: Iterable[str], lessons: Iterable[str]) -> None:
    """Raises SettingsError for the name of a lesson with a typing error: a single name that has no value."""
    from lmtrain.explain.parser import FUNCTIONS

    named = {word.partition("=")[0].strip() for word in words}
    if not expression.isidentifier() or expression in named or expression in FUNCTIONS:
        return
    if close := difflib.get_close_matches(expression.lower(), lessons, n=1):
        raise SettingsError(
            f"{expression} is no lesson, and as an expression it has no value.", f"Lessons are {', '.join(lessons)}.",
            f"Did you mean  explain {close[0]}  ?",
        )  # fmt: skip


def parse_expression(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Reads the options. An expression may begin with a minus."""
    known = parser._option_string_actions
    is_signed = [re.match(r"-(?!-[a-z]|-?$)", word) and word not in known for word in arguments]
    signed = [f" {word}" if signs else word for word, signs in zip(arguments, is_signed, strict=True)]
    return parse(parser, signed)


def step(text: str) -> float:
    """Reads the value of --nudge, a number that is not 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value == 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number other than 0")
    return value
