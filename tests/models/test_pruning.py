"""Pruned n-gram models against dictionaries and recursion, and which n-grams stay against a plain count."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.errors import SettingsError
from lmtrain.models.arpa import read_arpa, write_arpa
from lmtrain.models.ngram import NgramModel
from lmtrain.models.smoothing import discounts

EOS, V = 0, 4
Ngram = tuple[int, ...]

corpora = st.lists(st.integers(0, V - 1), max_size=80)
numbers = st.lists(st.integers(0, 4), max_size=3).map(lambda rest: [0, *sorted(rest)])


def trained(ids: list[int], order: int, prune: list[int]) -> NgramModel:
    model = NgramModel(vocab_size=V, eos_id=EOS, order=order, prune=prune)
    model.count(np.array(ids, np.int64))
    return model


def listed(model: NgramModel) -> list[list[Ngram]]:
    """The n-grams of every order as the table lists them."""
    found: list[list[Ngram]] = []
    for keys in model.table.keys:
        contexts = found[-1] if found else [()]
        found.append([(*contexts[key // V], key % V) for key in keys.tolist()])
    return found


def occurrences(ids: list[int], order: int) -> list[Counter[Ngram]]:
    """How often each n-gram stands in a line, of which <eos> is the beginning as well as the end."""
    counted: list[Counter[Ngram]] = [Counter() for _ in range(order)]
    line = [EOS]
    for word in ids:
        line.append(word)
        for length in range(1, min(order + 1, len(line) + 1)):
            if length < len(line) or length > 1:
                counted[length - 1][tuple(line[-length:])] += 1
        line = [EOS] if word == EOS else line
    return counted


def threshold(prune: list[int], length: int) -> int:
    return ([*prune, *[prune[-1]] * 10])[length - 1]


@given(corpora, st.integers(1, 5), numbers)
def test_n_grams_that_stay_are_those_that_occur_more_often_and_with_them_all_their_parts(
    ids: list[int], order: int, prune: list[int]
) -> None:
    prune = prune[:order]
    found = listed(trained(ids, order, prune))
    for length, counted in enumerate(occurrences(ids, order)[1:], 2):
        assert sorted(found[length - 1]) == sorted(ngram for ngram, n in counted.items() if n > threshold(prune, length))
        assert {ngram[:-1] for ngram in found[length - 1]} <= {*found[length - 2]}
        assert {ngram[1:] for ngram in found[length - 1]} <= {*found[length - 2]}
    assert len(found[0]) == V


@given(corpora, st.integers(1, 4), numbers, st.lists(st.integers(0, V - 1), min_size=1, max_size=12))
def test_probabilities_equal_the_definition_and_sum_to_one(
    ids: list[int], order: int, prune: list[int], text: list[int]
) -> None:
    prune = prune[:order]
    counted = occurrences(ids, order)

    def count(ngram: Ngram) -> int:
        if len(ngram) == order or (ngram[0] == EOS and len(ngram) > 1):
            return counted[len(ngram) - 1][ngram]
        return sum((word, *ngram) in counted[len(ngram)] for word in range(V))

    discount = [discounts(np.array([count(g) for g in of_order] + [0])) for of_order in counted]

    def p(history: Ngram, word: int) -> float:
        length = len(history) + 1
        counts = [count((*history, other)) for other in range(V)]
        stays = [length == 1 or counted[length - 1][(*history, other)] > threshold(prune, length) for other in range(V)]
        below = p(history[1:], word) if history else 1 / V
        if not sum(counts):
            return below
        taken = [([0, *discount[length - 1]][min(c, 3)] if kept else c) for c, kept in zip(counts, stays, strict=True)]
        return (counts[word] - taken[word] + sum(taken) * below) / sum(counts)

    model, history, state = trained(ids, order, prune), [EOS], None
    state = model.initial_state(1)
    for word in text:
        log_probs_TBV, state = model.log_probs(torch.tensor([[history[-1]]]), state)
        context = tuple(history[max(0, len(history) - order + 1) :])
        expected = [p(context if order > 1 else (), other) for other in range(V)]
        assert log_probs_TBV[0, 0].exp().tolist() == pytest.approx(expected, rel=1e-12)
        assert sum(expected) == pytest.approx(1)
        history = [EOS] if word == EOS else [*history, word]


def test_pruning_nothing_is_the_model_as_it_was() -> None:
    ids = np.random.RandomState(1).randint(0, V, 500).tolist()
    whole = trained(ids, 3, []).tensors()
    for prune in ([0], [0, 0], [0, 0, 0]):
        assert all(torch.equal(tensor, whole[name]) for name, tensor in trained(ids, 3, prune).tensors().items())


def test_the_last_number_holds_for_all_longer_n_grams_and_everything_can_go() -> None:
    ids = np.random.RandomState(1).randint(0, V, 500).tolist()
    one, other = (trained(ids, 4, prune).tensors() for prune in ([0, 1], [0, 1, 1, 1]))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert [len(ngrams) for ngrams in listed(trained(ids, 3, [0, 10**6]))] == [V, 0, 0]


def test_a_pruned_model_goes_to_an_arpa_file_and_back(tmp_path: Path) -> None:
    model = trained(np.random.RandomState(2).randint(0, V, 300).tolist(), 3, [0, 0, 2])
    write_arpa(model, ["<eos>", "a", "b", "<unk>"], tmp_path / "pruned.arpa")
    again, _ = read_arpa(tmp_path / "pruned.arpa", ["<eos>", "a", "b", "<unk>"])
    tokens = torch.randint(V, (60, 2), generator=torch.Generator().manual_seed(1))
    made, expected = (one.log_probs(tokens, one.initial_state(2))[0] for one in (again, model))
    torch.testing.assert_close(made, expected, rtol=1e-8, atol=1e-8)
    assert len(model.table.keys[2]) < len(trained(np.random.RandomState(2).randint(0, V, 300).tolist(), 3, []).table.keys[2])


def test_a_pruned_model_comes_back_from_its_tensors_and_counts_on() -> None:
    model = trained([1, 2, 3, EOS, 1, 2, EOS], 3, [0, 1])
    model.finish()
    again = NgramModel(vocab_size=V, eos_id=EOS, order=3, prune=[0, 1])
    again.load(model.tensors() | model.counted())
    for one in (model, again):
        one.count(np.array([1, 2, 3, EOS]))
    assert all(torch.equal(tensor, again.table.tensors()[name]) for name, tensor in model.table.tensors().items())
    assert math.isfinite(float(model.table.log_probs[2].sum()))


@pytest.mark.parametrize(
    ("prune", "more", "message"),
    [
        ([1], {}, r"^prune=\[1\] was given\. The first number is 0, .*prune=\[0,0,1\]"),
        ([0, 2, 1], {}, r"^prune=\[0,2,1\] .*do not fall"),
        ([0, -1], {}, r"^prune=\[0,-1\] .*at least 0"),
        ([0, 0, 0, 1], {"order": 3}, r"^prune=\[0,0,0,1\] was given with order=3\. .*one number for each order"),
        ([0, 1], {"smoothing": "add_k"}, r"^prune=\[0,1\] was given with smoothing=add_k\. .*kneser_ney"),
    ],
)
def test_numbers_that_cannot_be_pruned_by_are_refused(prune: list[int], more: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        NgramModel(vocab_size=V, eos_id=EOS, prune=prune, **more)
