"""Drawings: documents that parse, whose labels never overlap, with every value and gradient at its edge."""

import math
import unicodedata
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.errors import UserError
from lmtrain.explain import Explanation, explain
from lmtrain.explain.drawing import GRADIENT, MAX_NODES, VALUE
from lmtrain.explain.lessons import LESSONS
from lmtrain.explain.plot import plot

SVG = "{http://www.w3.org/2000/svg}"
ADVANCE = 0.602  # of DejaVu Sans Mono, in which labels are set
ASCENT, DESCENT = 0.76, 0.24


class Label(NamedTuple):
    text: str
    colour: str
    left: float
    top: float
    right: float
    bottom: float


def labels(svg: str) -> list[Label]:
    """Every text of a drawing with the box that it fills."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        text, size, x, y = element.text or "", *(float(element.attrib[name]) for name in ("font-size", "x", "y"))
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
        width = (len(text) + wide) * ADVANCE * size
        left = {"start": x, "middle": x - width / 2, "end": x - width}[element.attrib["text-anchor"]]
        found.append(Label(text, element.attrib["fill"], left, y - ASCENT * size, left + width, y + DESCENT * size))
    return found


def overlaps(a: Label, b: Label) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def check(svg: str) -> list[Label]:
    """Labels stand apart, within the document, and clear of the circles of the gates that they do not name."""
    root, found = ElementTree.fromstring(svg), labels(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for label in found:
        assert label.left >= 0, label
        assert label.top >= 0, label
        assert label.right <= width, label
        assert label.bottom <= height, label
    for a, b in combinations(found, 2):
        assert not overlaps(a, b), (a, b)
    circles = [tuple(float(circle.attrib[name]) for name in ("cx", "cy", "r")) for circle in root.iter(f"{SVG}circle")]
    for (x1, y1, r1), (x2, y2, r2) in combinations(circles, 2):
        assert math.hypot(x1 - x2, y1 - y2) > r1 + r2
    for x, y, r in circles:
        for label in found:
            nearest = math.hypot(max(label.left - x, 0, x - label.right), max(label.top - y, 0, y - label.bottom))
            inside = label.left > x - r and label.right < x + r and label.top > y - r and label.bottom < y + r
            assert inside or nearest >= r, label
    return found


def drawn(expression: str, **values: object) -> list[Label]:
    return check(explain(expression, values).svg())


def test_values_stand_above_and_gradients_below_every_edge() -> None:
    found = drawn("(x + y) * max(y, z)", x=1, y=2, z=0)
    values = [(float(label.text), label) for label in found if label.colour == VALUE and label.text.isdigit()]
    gradients = [(float(label.text), label) for label in found if label.colour == GRADIENT and label.text.isdigit()]
    pairs = []
    for value, upper in values:
        below = [(lower.top - upper.bottom, gradient) for gradient, lower in gradients
                 if abs(lower.left + lower.right - upper.left - upper.right) < 1 and lower.top > upper.top]  # fmt: skip
        pairs.append((value, min(below)[1]))
    assert sorted(pairs) == [(0, 0), (1, 2), (2, 2), (2, 3), (2, 3), (3, 2), (6, 1)]
    texts = [label.text for label in found]
    assert "df/dy = 3 + 2 = 5" in texts
    assert {"distributes", "routes", "switches"} <= set(texts)


@pytest.mark.parametrize("name", LESSONS)
def test_every_lesson_can_be_drawn(name: str) -> None:
    explanation = LESSONS[name]([])
    assert isinstance(explanation, Explanation)
    assert len(check(explanation.svg())) > 5


@pytest.mark.parametrize(
    ("expression", "values"),
    [
        ("x", {"x": 1}),
        ("2 * 3", {}),
        ("x * x * x * x", {"x": -1.23456789}),
        ("max(x, min(y, 2 * x), 3) + -x", {"x": 1, "y": 2}),
        ("+".join(["x", "y"] * 20), {"x": 1, "y": 2}),
        ("W @ W.T @ W", {"W": [[1e-9, -2.123456e7], [3, 4]]}),
        ("a_very_long_name_that_somebody_gave * x + 日本 / x", {"a_very_long_name_that_somebody_gave": 1, "日本": 2, "x": 3}),
        ("log(exp(u @ [1, 2, 3]) + sum(u) ** 2) / max(u)", {"u": [1, 2, 0.5]}),
        ("softmax(z) @ relu(z) - tanh(z) @ sigmoid(z)", {"z": [1.5, -2.25, 0.125]}),
    ],
)
def test_labels_never_overlap(expression: str, values: dict[str, object]) -> None:
    drawn(expression, **values)


def trees(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(children, st.sampled_from("+-*"), children).map(lambda p: f"({p[0]} {p[1]} {p[2]})")
    calls = st.tuples(st.sampled_from(["tanh", "sigmoid", "exp", "-"]), children).map(lambda p: f"{p[0]}({p[1]})")
    return st.one_of(pairs, pairs, calls, st.tuples(children, children).map(lambda p: f"max({p[0]}, {p[1]})"))


@given(st.recursive(st.sampled_from(["x", "y", "v", "w", "2"]), trees, max_leaves=14))
def test_labels_of_random_graphs_never_overlap(expression: str) -> None:
    values: dict[str, object] = {"x": 0.31, "y": -1.7, "v": [0.25, -0.5], "w": [1.125, 3]}
    used = {name: value for name, value in values.items() if name in expression.replace("exp", "")}
    try:
        explanation = explain(expression, used)
    except UserError:
        return  # an overflow
    check(explanation.svg())


def test_a_graph_that_cannot_be_read_is_not_drawn() -> None:
    explanation = explain("+".join(["x"] * (MAX_NODES + 1)), x=1)
    with pytest.raises(UserError, match=f"A drawing holds {MAX_NODES}"):
        explanation.svg()


def test_the_same_graph_is_drawn_the_same() -> None:
    draw: Callable[[], str] = lambda: explain("(x + y) * max(y, z) - x / y", x=1, y=2, z=0).svg()  # noqa: E731
    assert draw() == draw()


@pytest.mark.parametrize(
    "curves",
    [
        {"one": [1.0, 0.1, 0.01]},
        {"zero": [0.0, 0.0]},
        {"gap": [1.0, 0.0, 1e-3], "nan": [math.nan, 1.0, math.inf]},
        {f"curve {i}, all of which end together": [1.0] * 60 for i in range(7)},
        {"alone": [1e-5]},
    ],
)
def test_curves_are_named_without_overlaps(curves: dict[str, list[float]]) -> None:
    found = check(plot("a title", "lag k", curves))
    assert {*curves} <= {label.text for label in found}
