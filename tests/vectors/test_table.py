"""`Vectors`: what is nearest, what is left out, and that blocks and rankings agree with the plain definition."""

import doctest
from pathlib import Path

import numpy as np
import pytest

import lmtrain
import lmtrain.vectors.similarity
import lmtrain.vectors.table
from lmtrain.errors import DataError
from lmtrain.vectors.table import METHODS, Vectors


@pytest.fixture
def random() -> Vectors:
    """Forty words, of which w5 has no direction and w7 is the same as w6."""
    matrix = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    matrix[5], matrix[7] = 0, matrix[6]
    return Vectors(tuple(f"w{i}" for i in range(40)), matrix)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first.astype(np.float64), second.astype(np.float64)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_the_examples_in_the_docstrings_are_true(animals: Path) -> None:
    for module, least in ((lmtrain.vectors.table, 13), (lmtrain.vectors.similarity, 2)):
        failed, tried = doctest.testmod(module)
        assert tried >= least
        assert failed == 0


def test_the_class_is_the_one_that_a_model_gives() -> None:
    assert lmtrain.Vectors is Vectors


def test_neighbours_are_those_of_the_definition_without_the_word_and_without_zeros(random: Vectors) -> None:
    found = random.neighbours("w3", 100)
    expected = {word: cosine(random["w3"], random[word]) for word in random.words if word not in ("w3", "w5")}
    assert dict(found) == pytest.approx(expected, abs=1e-6)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert random.neighbours(random["w3"], 1)[0][0] == "w3"
    assert dict(random.neighbours(2 * random["w3"], 5)) == pytest.approx(dict(random.neighbours(random["w3"], 5)))
    assert random.neighbours("w6", 1)[0][0] == "w7"
    order = [word for word, _ in random.neighbours("w3", 100)]
    assert order.index("w7") == order.index("w6") + 1, "of equal ones the first comes first"


def test_lists_make_vectors_too() -> None:
    vectors = Vectors(["a", "b"], [[1, 2], [3, 4]])  # type: ignore[arg-type]
    assert (vectors.words, vectors["b"].tolist(), vectors.matrix.dtype) == (("a", "b"), [3, 4], np.float32)
    assert vectors.neighbours([3, 4], 1)[0][0] == "b"  # type: ignore[arg-type]


def test_a_vector_of_another_size_and_an_unknown_method_are_said(random: Vectors) -> None:
    with pytest.raises(DataError, match=r"A vector of shape \(3,\) was given\. The vectors of these words have 6 numbers each"):
        random.neighbours(random["w0"][:3])
    for ask in (lambda: random.analogy("w0", "w1", "w2", method="foo"), lambda: random.evaluate_analogies("no", method="foo")):
        with pytest.raises(ValueError, match="method='foo'; expected 'add' or 'mul'"):
            ask()


@pytest.mark.parametrize(("there", "asked", "form"), [("café", "cafe\u0301", "NFC"), ("cafe\u0301", "café", "NFD")])
def test_a_word_that_is_there_in_another_unicode_form_is_said(there: str, asked: str, form: str) -> None:
    vectors = Vectors((there, "tea"), np.ones((2, 2), np.float32))
    with pytest.raises(DataError, match=rf"is there in another Unicode form, .*normalize\('{form}', word\)"):
        vectors.neighbours(asked)


@pytest.mark.parametrize("method", METHODS)
def test_analogies_are_those_of_the_definition(random: Vectors, method: str) -> None:
    a, b, c = (random[word].astype(np.float64) for word in ("w1", "w2", "w3"))
    a, b, c = (vector / np.linalg.norm(vector) for vector in (a, b, c))

    def score(word: str) -> float:
        d = random[word]
        if method == "add":
            return cosine(d, b - a + c)
        return (1 + cosine(d, b)) / 2 * (1 + cosine(d, c)) / 2 / ((1 + cosine(d, a)) / 2 + 1e-3)

    expected = {word: score(word) for word in random.words if word not in ("w1", "w2", "w3", "w5")}
    found = random.analogy("w1", "w2", "w3", 100, method=method)
    assert dict(found) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert found[0][0] == max(expected, key=expected.__getitem__)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["w1", "nowhere"], r"'nowhere' is not among these words\. Allowed are words with a vector other than zero, 39 of "),
        (["W1", "w1"], r"'W1' is not among .* Did you mean w1"),
        (["x", "y\n"], r"'x', 'y\\n' are not among these words"),
        (["w5", "w1"], r"'w5' has a vector of zeros"),
    ],
)
def test_a_word_that_cannot_be_compared_is_named(random: Vectors, words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        random.similarity(*words)
    with pytest.raises(DataError, match=message):
        random.analogy(*words, "w2")
    with pytest.raises(DataError, match="no direction"):
        random.neighbours(np.zeros(6, np.float32))


def test_capitals_are_those_of_words_and_not_of_special_tokens() -> None:
    ones = np.ones((2, 1), np.float32)
    assert not Vectors(("the", "<UNK>"), ones).has_capitals
    assert Vectors(("the", "Athens"), ones).has_capitals


def test_sizes_that_do_not_fit_are_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match=r"2 words were given with a matrix of shape \(3, 1\)"):
        Vectors(("a", "b"), np.ones((3, 1), np.float32))


@pytest.mark.parametrize("number", [0, -1])
def test_no_word_at_all_is_refused(number: int) -> None:
    vectors = Vectors(("a", "b", "c"), np.eye(3, dtype=np.float32))
    for ask in (lambda: vectors.neighbours("a", number), lambda: vectors.analogy("a", "b", "c", number)):
        with pytest.raises(ValueError, match=rf"number={number}; expected at least 1"):
            ask()


def test_neighbours_of_the_same_vector_have_the_cosine_one_and_stand_in_their_order() -> None:
    matrix = np.random.default_rng(3).normal(size=(7, 300)).astype(np.float32)[np.arange(49) % 7]
    vectors = Vectors(tuple(f"w{i}" for i in range(49)), matrix)
    for row in range(7):
        assert vectors.neighbours(f"w{row}", 6) == [(f"w{row + 7 * i}", 1.0) for i in range(1, 7)]


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e18, 1e37])
def test_neighbours_are_those_of_vectors_of_any_length(scale: float) -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    words = tuple("abcdefghi")
    found, expected = Vectors(words, matrix * np.float32(scale)), Vectors(words, matrix).neighbours("a", 8)
    for ask in ("a", found["a"]):
        ranked = [(word, cosine) for word, cosine in found.neighbours(ask, 9) if word != "a"]
        assert [word for word, _ in ranked] == [word for word, _ in expected]
        np.testing.assert_allclose([cosine for _, cosine in ranked], [cosine for _, cosine in expected], rtol=1e-5)


def test_a_table_is_shown_by_its_size_and_its_first_words() -> None:
    vectors = Vectors(tuple(f"word{number}" for number in range(1000)), np.zeros((1000, 2), np.float32))
    assert repr(vectors) == "<lmtrain.Vectors 1,000 words x 2 numbers: word0, word1, word2, word3, word4, ...>"
    assert repr(Vectors(("a\n",), np.zeros((1, 1), np.float32))) == r"<lmtrain.Vectors 1 word x 1 number: a\n>"
