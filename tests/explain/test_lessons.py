"""The lectures' examples, and what our hand-written functions keep and return beside them."""

import numpy as np
import pytest

from lmtrain.explain import ExpressionError
from lmtrain.explain.lessons import LESSONS, SENTENCE
from lmtrain.explain.scorer import SIZES, format_gradients, scorer_gradients


def lesson(name: str, *words: str) -> str:
    return LESSONS[name](words).text()


def test_the_chain_rule_gives_12_at_2_and_multiplies_jacobians() -> None:
    explanation = LESSONS["chain"]([])
    assert (explanation.value, explanation.gradients["x"]) == (12, 12)
    assert "dz/dx = W                   = [[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]]" in explanation.text()
    assert LESSONS["chain"](["x=4"]).gradients["x"] == 24


@pytest.mark.parametrize(("classes", "target"), [(3, 1), (2, 2), (7, 4)])
def test_softmax_has_both_cases(classes: int, target: int) -> None:
    explanation = LESSONS["softmax"]([f"C={classes}", f"y={target}"])
    p = next(n.value for n in explanation.graph.nodes_topologically_sorted() if n.name == "p")
    assert p is not None
    np.testing.assert_allclose(explanation.gradients["z"], p - np.eye(classes)[target - 1], atol=1e-12)
    rows = [line.split() for line in explanation.remarks[1:]]
    assert sum("!=" in row for row in rows) == classes - 1
    for row in rows:
        by_case, by_graph, numeric = map(float, row[-3:])
        assert by_case == pytest.approx(by_graph, abs=1e-6) == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "identity"])
def test_a_window_goes_through_our_own_function(activation: str) -> None:
    explanation = LESSONS["window"]([f"activation={activation}"])
    assert explanation.facts["largest_difference"] == pytest.approx(0, abs=1e-14)
    text = explanation.text()
    assert f"lmtrain.ops.activations.{activation}" in text
    assert all(word in text for word in SENTENCE)
    keeps = {"identity": "it keeps nothing", "relu": "it keeps its output h"}.get(activation, "it keeps its output h")
    assert keeps in text


@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("hidden", [1, 2, 5])
def test_a_cell_keeps_and_returns_what_its_equations_say(name: str, hidden: int) -> None:
    explanation = LESSONS[name]([f"hidden={hidden}", "seed=3"])
    assert explanation.facts["largest_difference"] == pytest.approx(0, abs=1e-14)
    text = explanation.text()
    assert f"lmtrain.ops.{name}.{name}" in text
    for tensor in {"elman": ["d_weight_HH"], "gru": ["d_candidate_bias_H"], "lstm": ["d_c0_BH", "cells (the new c)"]}[name]:
        assert tensor in text


def test_layers_without_a_non_linearity_collapse_and_with_one_they_do_not() -> None:
    facts = LESSONS["collapse"](["hidden=7", "input=5"]).facts
    assert isinstance(facts["largest_difference"], float)
    assert isinstance(facts["missed_with_tanh"], float)
    assert facts["largest_difference"] < 1e-13
    assert facts["missed_with_tanh"] > 0.01


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("chain", ["y=1"], "explain chain takes x"), ("chain", ["x=[1,2]"], "not a scalar"), ("chain", ["x=1", "x=2"], "twice"),
        ("softmax", ["C=1"], "from 2 to 40"), ("softmax", ["y=4"], "from 1 to 3"), ("softmax", ["z=[1,2]"], "vector of 3"),
        ("window", ["words=4"], "no word in the middle"), ("window", ["activation=gelu"], "tanh, sigmoid, relu, identity"),
        ("lstm", ["hidden=0"], "from 1 to 20"), ("gru", ["hidden=²"], "from 1 to 20"), ("collapse", ["5"], "cannot be used"),
    ],
)  # fmt: skip
def test_what_a_lesson_does_not_take_is_refused(name: str, words: list[str], said: str) -> None:
    with pytest.raises(ExpressionError, match=said):
        LESSONS[name](words)


def test_the_scorer_of_two_layers_has_the_same_gradients_in_three_ways() -> None:
    gradients = scorer_gradients()
    assert gradients["W1"].graph.shape == (SIZES[1], SIZES[0])
    assert gradients["W2"].graph.shape == (SIZES[2], SIZES[1])
    for numeric, graph, delta in gradients.values():
        np.testing.assert_allclose(delta, graph, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(numeric, graph, rtol=1e-6, atol=1e-9)
    lines = format_gradients(gradients).splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["W1", "b1", "W2", "b2", "u", "x"]
