"""Counting against a plain loop, and how far back a history reaches under each policy."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtrain.models import ngram_counts, smoothing
from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram_counts import Order, count_ngrams, history_lengths
from lmtrain.models.smoothing import estimate, kneser_ney

EOS = 0


def spelled(orders: list[Order], vocab_size: int) -> list[list[tuple[int, ...]]]:
    """The n-grams of every order as tuples of words."""
    ngrams: list[list[tuple[int, ...]]] = []
    for order in orders:
        contexts = [()] if not ngrams else ngrams[-1]
        ngrams.append([(*contexts[key // vocab_size], key % vocab_size) for key in order.keys.tolist()])
    return ngrams


def histories(ids: list[int], policy: StatePolicy) -> list[tuple[int, ...]]:
    """All that is remembered before each token of a text, oldest first."""
    text, begin, found = [EOS, *ids], 0, []
    for place, token in enumerate(text[:-1]):
        ends_line = token == EOS
        ends_document = ends_line and place > 0 and text[place - 1] == EOS
        if (policy is StatePolicy.line and ends_line) or (policy is StatePolicy.document and ends_document):
            begin = place
        found.append(tuple(text[begin : place + 1]))
    return found


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [
        (StatePolicy.carry, [1, 2, 3, 4, 5, 6, 7, 8]),
        (StatePolicy.line, [1, 2, 1, 1, 2, 1, 1, 1]),
        (StatePolicy.document, [1, 2, 3, 1, 2, 3, 1, 1]),
    ],
)
def test_history_ends_where_the_policy_forgets(policy: StatePolicy, lengths: list[int]) -> None:
    tokens = np.array([[EOS, 5, EOS, EOS, 5, EOS, EOS, EOS]]).T
    assert history_lengths(tokens, eos_id=EOS, policy=policy)[:, 0].tolist() == lengths


def test_history_does_not_reach_back_behind_nothing() -> None:
    tokens = np.array([[-1, -1, 5, 6], [-1, 4, 5, 6]]).T
    lengths = history_lengths(tokens, eos_id=EOS, policy=StatePolicy.carry)
    assert lengths.T.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]


def test_ngram_at_a_line_start_counts_its_occurrences_and_others_their_left_words() -> None:
    # lines: "1 2", "1 2", "2"
    orders = count_ngrams(np.array([1, 2, EOS, 1, 2, EOS, 2, EOS]), order=2, vocab_size=3, eos_id=EOS, policy=StatePolicy.line)
    assert orders[0].left_words.tolist() == [1, 1, 2]  # </s> after 2; 1 after <s>; 2 after <s> and 1
    assert spelled(orders, 3)[1] == [(0, 1), (0, 2), (1, 2), (2, 0)]
    assert orders[1].occurrences.tolist() == [2, 1, 2, 3]
    assert orders[1].starts.tolist() == [2, 1, 0, 0]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6), st.sampled_from(StatePolicy))
def test_counts_equal_those_of_a_plain_loop(ids: list[int], order: int, policy: StatePolicy) -> None:
    orders = count_ngrams(np.array(ids, np.int32), order=order, vocab_size=4, eos_id=EOS, policy=policy)
    for length, (ngrams, counted) in enumerate(zip(spelled(orders, 4), orders, strict=True), 1):
        occurrences: Counter[tuple[int, ...]] = Counter()
        starts: Counter[tuple[int, ...]] = Counter()
        left_words: dict[tuple[int, ...], set[int]] = {}
        for history, word in zip(histories(ids, policy), ids, strict=True):
            if len(history) >= length - 1:
                ngram = (*history[len(history) - length + 1 :], word)
                occurrences[ngram] += 1
                starts[ngram] += len(history) == length - 1
                if len(history) >= length:
                    left_words.setdefault(ngram, set()).add(history[-length])
        if length > 1:
            assert ngrams == sorted(occurrences, key=ngrams.index)  # the same set, each once
            assert (np.diff(counted.keys) > 0).all()
            shorter = spelled(orders, 4)[length - 2]
            assert [shorter[place] for place in counted.suffixes] == [ngram[1:] for ngram in ngrams]
            assert [shorter[place] for place in counted.contexts] == [ngram[:-1] for ngram in ngrams]
        assert counted.occurrences.tolist() == [occurrences[ngram] for ngram in ngrams]
        assert counted.starts.tolist() == [starts[ngram] for ngram in ngrams]
        if length < order:
            assert counted.left_words.tolist() == [len(left_words.get(ngram, ())) for ngram in ngrams]


@pytest.mark.parametrize("eos_id", [0, 2])
def test_an_order_below_that_lists_a_single_n_gram_is_searched_like_any_other(eos_id: int) -> None:
    text = np.full(5, eos_id)
    orders = count_ngrams(text, order=4, vocab_size=3, eos_id=eos_id, policy=StatePolicy.carry)
    assert spelled(orders, 3)[1:] == [[(eos_id,) * length] for length in (2, 3, 4)]
    assert [order.occurrences.tolist() for order in orders[1:]] == [[5], [4], [3]]
    assert [order.suffixes.tolist() for order in orders[1:]] == [[eos_id], [0], [0]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5), st.sampled_from(StatePolicy), st.integers(1, 7), st.booleans()
)
def test_pieces_and_the_plain_search_make_no_difference(
    ids: list[int], order: int, policy: StatePolicy, piece: int, is_native: bool
) -> None:
    text = np.array(ids, np.int32)
    whole = count_ngrams(text, order=order, vocab_size=4, eos_id=EOS, policy=policy)
    expected = estimate(whole, vocab_size=4, method=kneser_ney)
    with pytest.MonkeyPatch.context() as patch:
        for module in (ngram_counts, smoothing):
            patch.setattr(module, "PIECE", piece)
        if not is_native:
            patch.setattr(ngram_counts, "why_no_library", lambda: "there is no C++ compiler")
        cut = count_ngrams(text, order=order, vocab_size=4, eos_id=EOS, policy=policy)
        made = estimate(cut, vocab_size=4, method=kneser_ney)
    for one, other in zip(cut, whole, strict=True):
        for name in ("keys", "contexts", "suffixes", "occurrences", "starts", "left_words"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for rows, wanted in zip(made, expected, strict=True):
        assert all(np.array_equal(row, other) for row, other in zip(rows, wanted, strict=True))


def test_the_memory_of_counting_is_bounded_by_what_the_module_says() -> None:
    """Beside its results: 12 bytes per token, and the pieces."""
    ids = np.random.RandomState(1).randint(0, 1000, 3_000_000).astype(np.int32) ** 2 // 1000  # few words are frequent
    tracemalloc.start()
    orders = count_ngrams(ids, order=3, vocab_size=1000, eos_id=EOS, policy=StatePolicy.line)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    results = sum(
        getattr(order, name).nbytes for order in orders for name in ("keys", "occurrences", "suffixes", "starts", "left_words")
    )
    assert kept < 1.01 * results + 1e6
    assert peak < results + 12 * len(ids) + 100 * ngram_counts.PIECE
