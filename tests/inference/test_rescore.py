"""Weights for n-best lists: word errors exactly, and the weights that make fewest of them."""

import importlib.util
import itertools
import math
import random

import pytest

from lmtrain.errors import DataError
from lmtrain.inference.rescore import Hypothesis, envelope, pick, tune, word_errors


def plain_distance(one: list[str], other: list[str]) -> int:
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, given in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != given))
    return row[-1]


def test_word_errors_are_the_edit_distance() -> None:
    assert word_errors(["the", "cat", "sat"], ["the", "mat", "sat", "down"]) == 2
    assert word_errors([], []) == 0
    assert word_errors(["a"], []) == word_errors([], ["a"]) == 1
    drawn = random.Random(1)
    for _ in range(300):
        one, other = (drawn.choices("abcd", k=drawn.randrange(12)) for _ in range(2))
        assert word_errors(one, other) == plain_distance(one, other) == word_errors(other, one)


@pytest.mark.skipif(importlib.util.find_spec("jiwer") is None, reason="jiwer is not installed")
def test_word_errors_are_those_of_jiwer() -> None:
    import jiwer

    drawn = random.Random(2)
    for _ in range(50):
        one, other = (" ".join(drawn.choices(["a", "b", "cat", "dog"], k=drawn.randrange(1, 12))) for _ in range(2))
        found = jiwer.process_words(one, other)
        assert word_errors(one.split(), other.split()) == found.substitutions + found.deletions + found.insertions


def test_the_best_total_is_picked_and_ties_are_counted() -> None:
    a, b, c = Hypothesis("a", -10, -4, 2), Hypothesis("b", -11, -3, 2), Hypothesis("c", -11, -3, 3)
    assert pick([a, b, c], (0.0, 0.0)) == (0, 0)
    assert pick([a, b, c], (2.0, 0.0)) == (1, 1)
    assert pick([a, b, c], (2.0, 1.0)) == (2, 0)
    assert pick([a, b, b], (1.0, 0.0)) == (0, 1), "the first stands; the same text twice is no tie"
    impossible = Hypothesis("d", 0, -math.inf, 1)
    assert pick([a, impossible], (0.0, 0.0)) == (1, 0), "a weight of 0 makes nothing of the logarithm of zero"
    assert pick([impossible, a], (1.0, 0.0)) == (1, 0)


def test_envelope_is_the_highest_line_everywhere() -> None:
    drawn = random.Random(3)
    for _ in range(200):
        lines = [(float(drawn.randrange(-4, 5)), float(drawn.randrange(-6, 7))) for _ in range(drawn.randrange(1, 9))]
        corners = envelope(lines)
        bounds = [corner for corner, _ in corners] + [math.inf]
        assert bounds[0] == -math.inf
        assert bounds == sorted(set(bounds))
        for (start, number), end in zip(corners, bounds[1:], strict=True):
            x = max(start, -100.0) / 2 + min(end, 100.0) / 2
            slope, height = lines[number]
            assert slope * x + height == pytest.approx(max(s * x + h for s, h in lines))


def test_tuning_finds_as_few_errors_as_a_fine_grid() -> None:
    drawn = random.Random(4)
    gained = 0
    for _ in range(15):
        lists = [
            [Hypothesis(str(n), drawn.gauss(-50, 5), drawn.gauss(-20, 6), drawn.randrange(3, 9)) for n in range(6)]
            for _ in range(8)
        ]
        errors = [[drawn.randrange(5) for _ in own] for own in lists]
        weights, count = tune(lists, errors)
        assert weights[0] >= 0
        assert count == sum(e[pick(own, weights)[0]] for own, e in zip(lists, errors, strict=True))
        grid = itertools.product([n / 10 for n in range(31)], [n / 2 for n in range(-10, 11)])
        best = min(sum(e[pick(own, pair)[0]] for own, e in zip(lists, errors, strict=True)) for pair in grid)
        assert count <= best + 1
        gained += best - count
    assert gained >= 0, "on the whole no worse than a grid of 651 pairs"


def test_tuning_knows_a_single_hypothesis_and_impossible_ones() -> None:
    only = Hypothesis("a", 0.0, -math.inf, 0)
    weights, count = tune([[only]], [[3]])
    assert all(map(math.isfinite, weights))
    assert count == 3
    weights, count = tune([[only, Hypothesis("b", -1.0, -5.0, 1)]], [[1, 0]])
    assert count == 0


@pytest.mark.parametrize("scores", [(math.nan, -1.0), (-1.0, math.nan)])
def test_a_score_that_is_not_a_number_is_refused(scores: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="'alpha' has a score that is not a number"):
        Hypothesis("alpha", *scores, 1)
