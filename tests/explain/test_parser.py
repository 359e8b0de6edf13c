"""What is typed wrong gets one paragraph with a caret under the mistake, never a traceback."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.errors import UserError
from lmtrain.explain import ExpressionError, explain, parse
from lmtrain.explain.parser import FUNCTIONS, MAX_DEPTH
from lmtrain.explain.reader import parse_value
from lmtrain.explain.values import read_assignments


def message(expression: str, *values: str) -> str:
    with pytest.raises(UserError) as caught:
        explain(expression, read_assignments(values))
    return str(caught.value)


@pytest.mark.parametrize(
    ("expression", "values", "words", "caret"),
    [
        ("", [], "empty", 0),
        ("x +", ["x=1"], "ends too early", 3),
        ("x + * y", [], '"*" cannot stand here', 4),
        ("(x + y", [], '"(" here is never closed', 0),
        ("x)", [], '")" cannot stand here', 1),
        ("2x", [], "To multiply, write *", 1),
        ("x y", [], "To multiply, write *", 2),
        ("x^2", [], 'Write "**"', 1),
        ("x × y", [], r'Write "*"', 2),
        ("sin(x)", [], "There are no others.", 0),
        ("1 + sqrt(x)", [], "Write for example x ** 0.5.", 4),
        ("Sigmod(x)", [], "Did you mean sigmoid?", 0),
        ("w(x)", [], "To multiply, write w *", 0),
        ("x * 0,5", [], "with a point, such as 1.5", 5),
        ("[1 2]", [], "Commas separate the numbers", 3),
        ("exp", [], "without its arguments", 0),
        ("exp(x, y)", [], "exp was given 2 arguments", 0),
        ("max()", [], '")" cannot stand here', 4),
        ("[1, x]", [], "stands where a number should", 4),
        ("[[1], [1, 2]]", [], "Row 1 is of length 1, but row 2 of length 2", 0),
        ("[[1, 2], 3]", [], "Numbers and rows are mixed", 0),
        ("[]", [], "empty vector", 0),
        ("1e999", [], "too large", 0),
        ("x + y", ["x=1"], "y has no value", 4),
        ("x; y", ["x=1"], "has no name", 1),
        ("a = x; b = 2 * a; x", ["x=1"], "b is defined, but", 7),
        ("a = 2 * x; a = 3; a", ["x=1"], "a is defined twice", 11),
        ("y = a + 1; a = x * 2; a * y", ["x=1"], "a is used before it is defined", 11),
        ("exp = x", [], "exp is a function", 0),
        ("1 + log(x)", ["x=-2"], "The logarithm of -2", 4),
        ("log(x)", ["x=0"], "The logarithm of 0", 0),
        ("x / y", ["x=1", "y=0"], "division by zero", 2),
        ("x / v", ["x=1", "v=[1,0]"], "a vector of 2 that holds a 0", 2),
        ("x ** y", ["x=0", "y=-1"], "0 was raised to a negative power", 2),
        ("x ** y", ["x=-1", "y=0.5"], "not a whole number", 2),
        ("x ** n", ["x=-2", "n=2"], "no finite gradient with respect to n", 2),
        ("x ** 0.5", ["x=0"], "no finite gradient with respect to x", 2),
        ("exp(x)", ["x=1e3"], "overflow", 0),
        ("x * x", ["x=1e200"], "overflow", 2),
        ("W @ x", ["W=[[1,2]]", "x=[1,2,3]"], "a matrix of 1 x 2 and a vector of 3", 2),
        ("x @ y", ["x=1", "y=2"], "Multiply by a scalar with *", 2),
        ("a + b", ["a=[1,2]", "b=[1,2,3]"], "a vector of 2 and a vector of 3", 2),
        ("a + b", ["a=[1,2]", "b=[[1],[2]]"], "a vector of 2 and a matrix of 2 x 1", 2),
        ("softmax(x)", ["x=1"], "softmax was given a scalar", 0),
        ("日本 + $", ["日本=1"], '"$" means nothing', 5),
    ],
)
def test_a_mistake_is_said_with_a_caret_under_it(expression: str, values: list[str], words: str, caret: int) -> None:
    said = message(expression, *values)
    assert words in said
    lines = said.split("\n")
    assert lines[2] == " " * (2 + caret + 2 * expression[:caret].count("日本")) + "^", said
    assert not lines[3].startswith(" ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x"], "gives no value to a name"), (["5=1"], "gives no value to a name"), (["x=1", "x=2"], "x was given twice"),
        (["x=1", "y=2"], "y is not in the expression"), (["exp=1"], "exp is a function"), (["x="], "x was given no value"),
        (["x=nan"], "value of x cannot be read"), (["x=inf"], "value of x cannot be read"), (["x=[[[1]]]"], "cannot be read"),
        (["x=1 2"], "[1, 2]"), (["x=1/2"], "Write the decimal number that it comes to"), (["x=[1,,2]"], "cannot be read"),
        (["x=1,5"], "Write 1.5 for a number, or [1,5] for a vector."), (["x=[1 2]"], "Commas separate"),
        (["x=[1 -2]"], "Commas separate"), (["x=[[1 2]\n [3 4]]"], "Commas separate"), (["x=[1/3,2]"], "nothing is computed"),
        (["x=--"], "cannot be read"), (["x=[1,2"], "never closed"), (["x=1e400"], "too large"), (["x==1"], "cannot be read"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_refused(words: list[str], said: str) -> None:
    assert said in message("x", *words)


@pytest.mark.parametrize(
    ("expression", "words", "said"),
    [
        ("a = 2; a*x", ["a=2", "x=1"], "a is defined in the expression, so it cannot be given a value"),
        ("2*3", ["x=1"], "x is not in the expression. It has no names. Leave it out"),
    ],
)
def test_a_value_that_an_expression_has_no_use_for_is_refused(expression: str, words: list[str], said: str) -> None:
    assert said in message(expression, *words)


@pytest.mark.parametrize(
    "value", [float("nan"), [1, float("inf")], "text", None, [[1], [2, 3]], np.zeros((2, 2, 2)), [], 10**400]
)
def test_a_value_from_python_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ExpressionError, match="The value of x cannot be used"):
        explain("x", {"x": value})


@pytest.mark.parametrize(
    ("text", "value"),
    [("-1.5e-3", -0.0015), ("+2", 2), ("--2", 2), (" [1, -2] ", [1, -2]), ("[[1,2],[3,4]]", [[1, 2], [3, 4]]), (".5", 0.5)],
)
def test_values_are_read(text: str, value: object) -> None:
    assert parse_value("x", text).tolist() == value


@pytest.mark.parametrize(
    "expression", ["(" * 5000 + "x" + ")" * 4000, "-" * 5000 + "x", "x" + "**x" * 3000, "exp(" * 2000 + "x", "[" * 9000]
)
def test_deep_nesting_is_refused(expression: str) -> None:
    assert "^" in message(expression, "x=1")


def test_nesting_up_to_the_limit_works() -> None:
    depth = MAX_DEPTH - 1
    assert explain("(" * depth + "x" + ")" * depth, x=2).value == 2
    with pytest.raises(ExpressionError, match=f"may stand {MAX_DEPTH} deep"):
        parse("(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1))


def test_a_very_long_expression_is_refused_and_shown_in_part() -> None:
    said = message("x+" * 50_000 + "x", "x=1")
    assert "100,001 characters" in said
    assert len(said) < 400


def test_composed_and_decomposed_letters_are_the_same_name() -> None:
    assert explain("e\u0301 * 2", {"\xe9": 3}).value == 6
    assert "means nothing" in message("e\u200b", "e=1")


ALPHABET = string.printable + "日é²ᵀ\u202e\x00\x1b"
WORDS = st.sampled_from([*"xyab+-*/@()[],;= .123", "**", ".T", "1e9", "=", *FUNCTIONS])


@given(st.one_of(st.text(ALPHABET, max_size=40), st.lists(WORDS, max_size=30).map("".join)))
def test_no_string_is_answered_with_a_traceback(text: str) -> None:
    try:
        graph = parse(text)
        explain(text, {node.name: 1.5 for node in graph.inputs}).text()
    except UserError as refused:
        said, exit_code = str(refused), refused.exit_code
    else:
        return
    assert "\x1b" not in said
    assert exit_code == 2


@given(st.one_of(st.text(ALPHABET, max_size=20), st.lists(st.sampled_from("[],-+.0123e "), max_size=20).map("".join)))
def test_no_value_is_answered_with_a_traceback(text: str) -> None:
    try:
        value = parse_value("x", text)
    except UserError:
        return
    assert np.isfinite(value).all()
    assert value.size
