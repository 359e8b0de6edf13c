"""Discounts and the three methods against figures worked out by hand."""

import logging

import numpy as np
import pytest

from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram_counts import count_ngrams
from lmtrain.models.smoothing import (
    FALLBACK_DISCOUNTS,
    SmoothingRule,
    add_k_method,
    discounts,
    estimate,
    kneser_ney,
    maximum_likelihood,
)

# Two words, 1 and 2, and <eos> = 0. Lines: "1 2", "1 2", "2". Bigrams in the order of their keys, with counts:
#   <s> 1: 2    <s> 2: 1    1 2: 2    2 </s>: 3
TEXT = np.array([1, 2, 0, 1, 2, 0, 2, 0])


def probabilities(method: SmoothingRule) -> tuple[list[list[float]], list[list[float]]]:
    """p of the unigrams </s>, 1, 2 and of the four bigrams; the rests of <s>, 1 and 2."""
    orders = count_ngrams(TEXT, order=2, vocab_size=3, eos_id=0, policy=StatePolicy.line)
    log_probs, log_rests = estimate(orders, vocab_size=3, method=method)
    return [np.exp(values).tolist() for values in log_probs], [np.exp(values).tolist() for values in log_rests]


def test_kneser_ney_equals_the_figures_worked_out_by_hand() -> None:
    # Different words before </s>, 1, 2: 1, 1, 2, of 4 in all. No count of 3 among them: discounts 0.5, 1, 1.5.
    # p(</s>) = p(1) = (1 - 0.5)/4 + rest/3 and p(2) = (2 - 1)/4 + rest/3 with rest = (0.5 + 0.5 + 1)/4 = 1/2.
    # Bigrams have no count of 4: the same discounts. rest(<s>) = (1 + 0.5)/3, rest(1) = 1/2, rest(2) = 1.5/3.
    (unigrams, bigrams), (rests,) = probabilities(kneser_ney)
    p_end, p_1, p_2 = 1 / 8 + 1 / 6, 1 / 8 + 1 / 6, 1 / 4 + 1 / 6
    assert unigrams == pytest.approx([p_end, p_1, p_2], rel=1e-14)
    assert bigrams == pytest.approx(
        [(2 - 1) / 3 + p_1 / 2, (1 - 0.5) / 3 + p_2 / 2, (2 - 1) / 2 + p_2 / 2, (3 - 1.5) / 3 + p_end / 2], rel=1e-14
    )
    assert rests == pytest.approx([1 / 2, 1 / 2, 1 / 2], rel=1e-14)


def test_add_k_equals_the_figures_worked_out_by_hand() -> None:
    # c(<s>) = 3, c(1) = 2, c(2) = 3, each plus kV = 3/2; what was never seen behind a context gets k over that.
    (unigrams, bigrams), (rests,) = probabilities(add_k_method(0.5, 3))
    assert bigrams == pytest.approx([2.5 / 4.5, 1.5 / 4.5, 2.5 / 3.5, 3.5 / 4.5], rel=1e-14)
    assert [rest * unigrams[0] for rest in rests] == pytest.approx([0.5 / 4.5, 0.5 / 3.5, 0.5 / 4.5], rel=1e-14)


def test_maximum_likelihood_is_the_relative_frequency() -> None:
    (unigrams, bigrams), (rests,) = probabilities(maximum_likelihood)
    assert unigrams == pytest.approx([3 / 8, 2 / 8, 3 / 8], rel=1e-14)
    assert bigrams == pytest.approx([2 / 3, 1 / 3, 1, 1], rel=1e-14)
    assert rests == [0, 0, 0]


def test_discounts_are_those_of_chen_and_goodman() -> None:
    # n1..n4 = 10, 6, 4, 3 and two of higher count: Y = 10/22
    counts = np.repeat([0, 1, 2, 3, 4, 5, 9], [7, 10, 6, 4, 3, 1, 1])
    y = 10 / 22
    expected = [1 - 2 * y * 6 / 10, 2 - 3 * y * 4 / 6, 3 - 4 * y * 3 / 4]
    np.testing.assert_allclose(discounts(counts), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 6, 4, 3],  # n1 = 0
        [10, 0, 4, 3],
        [10, 6, 0, 3],
        [10, 6, 4, 0],
        [5, 1, 9, 1],  # D(2) = 2 - 3 * 5/7 * 9 is below zero
        [4, 1, 1, 90],  # D(3) is below zero
    ],
)
def test_odd_counts_take_the_fallback_discounts_and_say_so(numbers: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lmtrain"):
        amounts = discounts(np.repeat([1, 2, 3, 4], numbers))
    assert tuple(amounts) == FALLBACK_DISCOUNTS
    assert str(numbers) in caplog.text
