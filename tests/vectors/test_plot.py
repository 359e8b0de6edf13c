"""The drawing of words: principal axes as defined, every word and pair there, names of others escaped."""

from xml.etree import ElementTree

import numpy as np
import pytest

from lmtrain.errors import DataError
from lmtrain.vectors.plot import HEIGHT, WIDTH, draw_words, principal_plane
from lmtrain.vectors.table import Vectors

SVG = "{http://www.w3.org/2000/svg}"


def words(*names: str, size: int = 4) -> Vectors:
    return Vectors(names, np.random.default_rng(1).normal(size=(len(names), size)).astype(np.float32))


def test_the_axes_are_those_of_the_largest_variance() -> None:
    matrix = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    plane = principal_plane(matrix)
    values = np.linalg.eigvalsh(np.cov(matrix.T.astype(np.float64)))[::-1]
    assert plane.points.var(axis=0, ddof=1) == pytest.approx(values[:2])
    assert plane.shares == pytest.approx(values[:2] / values.sum())
    assert (plane.points[np.abs(plane.points).argmax(axis=0), [0, 1]] > 0).all()


def test_every_word_is_drawn_once_and_pairs_are_joined() -> None:
    root = ElementTree.fromstring(draw_words(words("a", "b", "c", "d"), ["a", "b", "a"], [("a", "c"), ("c", "d")]))
    labels = [element.text for element in root.iter(f"{SVG}text")]
    assert labels[:4] == ["a", "b", "c", "d"]
    assert "of the variance" in labels[4]
    assert (len([*root.iter(f"{SVG}circle")]), len([*root.iter(f"{SVG}line")])) == (4, 2)
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < WIDTH
        assert 0 < float(circle.attrib["cy"]) < HEIGHT


@pytest.mark.parametrize("size", [1, 2, 5])
def test_two_words_alone_and_words_in_one_place_are_drawn(size: int) -> None:
    ElementTree.fromstring(draw_words(words("a", "b", size=size), ["a", "b"]))
    same = Vectors(("a", "b"), np.ones((2, size), np.float32))
    assert "nan" not in draw_words(same, ["a", "b"])


def test_names_of_others_are_escaped() -> None:
    names = ("<script>", "a&b", "x\x1b[31m\x00y", "\ud800")
    root = ElementTree.fromstring(draw_words(words(*names), names))
    assert [element.text for element in root.iter(f"{SVG}text")][:3] == ["<script>", "a&b", "x\\x1b[31m\\x00y"]


def test_one_word_and_unknown_words_are_refused() -> None:
    with pytest.raises(DataError, match="1 word was given"):
        draw_words(words("a", "b"), ["a", "a"])
    with pytest.raises(DataError, match="'x', 'y' are not among"):
        draw_words(words("a", "b"), ["a", "x"], [("y", "b")])
