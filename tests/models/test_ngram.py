"""The n-gram model against the definition of its probabilities, its state against the text as a whole, its tensors."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmtrain.errors import CheckpointError, SettingsError
from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram import SMOOTHINGS, NgramModel
from lmtrain.models.smoothing import discounts

EOS, V = 0, 4
BROWN = Path(__file__).parents[3] / "shared" / "data" / "brown"

corpora = st.lists(st.integers(0, V - 1), max_size=60)
orders = st.integers(1, 6)
smoothings = st.sampled_from(SMOOTHINGS)
policies = st.sampled_from(StatePolicy)


def trained(ids: Sequence[int], **settings: Any) -> NgramModel:
    model = NgramModel(vocab_size=V, eos_id=EOS, **settings)
    model.count(np.array(ids, np.int64))
    return model


def inputs_and_targets(ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A text as one stream: what the model reads, and what it predicts, each [T, 1]."""
    return torch.tensor([EOS, *ids[:-1]])[:, None], torch.tensor(ids)[:, None]


# ---- against the definition


def remembered(text: Sequence[int], policy: StatePolicy) -> tuple[int, ...]:
    """What of a text a model still remembers when it has read all of it."""
    begin = 0
    for place, token in enumerate(text):
        if token == EOS and (
            policy is StatePolicy.line or (policy is StatePolicy.document and place > 0 and text[place - 1] == EOS)
        ):
            begin = place
    return tuple(text[begin:])


def definition(
    ids: Sequence[int], order: int, smoothing: str, k: float, policy: StatePolicy
) -> Callable[[tuple[int, ...], int], float]:
    """p(w | h) by dictionaries and recursion, as the formulas in `smoothing` say."""
    if smoothing == "add_k":
        return add_k_definition(ids, order, k, policy)
    occurrences: dict[tuple[int, ...], int] = {}
    starts: dict[tuple[int, ...], int] = {}
    left_words: dict[tuple[int, ...], set[int]] = {}
    for place, word in enumerate(ids):
        history = remembered([EOS, *ids[:place]], policy)
        for length in range(min(order, len(history) + 1)):
            ngram = (*history[len(history) - length :], word)
            occurrences[ngram] = occurrences.get(ngram, 0) + 1
            if len(history) == length:
                starts[ngram] = starts.get(ngram, 0) + 1
            else:
                left_words.setdefault(ngram, set()).add(history[-length - 1])

    def count(ngram: tuple[int, ...]) -> int:
        if len(ngram) == order or smoothing == "maximum_likelihood":
            return occurrences.get(ngram, 0)
        return len(left_words.get(ngram, ())) + starts.get(ngram, 0)

    of_order = {n: np.array([count(g) for g in occurrences if len(g) == n] + [0]) for n in range(1, order + 1)}
    discount = {n: [0, *discounts(counts)] for n, counts in of_order.items()}

    def p(history: tuple[int, ...], word: int) -> float:
        counts = [count((*history, other)) for other in range(V)]
        total = sum(counts)
        below = p(history[1:], word) if history else 1 / V
        if total == 0:
            return below
        if smoothing == "maximum_likelihood":
            return counts[word] / total
        taken = [discount[len(history) + 1][min(c, 3)] for c in counts]
        return (counts[word] - taken[word] + sum(taken) * below) / total

    return lambda history, word: p(history[max(0, len(history) - order + 1) :], word)


def add_k_definition(
    ids: Sequence[int], order: int, k: float, policy: StatePolicy, vocab_size: int = V
) -> Callable[[tuple[int, ...], int], float]:
    """(c(hw) + k) / (c(h) + kV), h being all that the model remembers, and a shorter history another than its words."""

    def known(history: Sequence[int]) -> tuple[int, ...]:
        return tuple(history[max(0, len(history) - order + 1) :])

    counted = Counter((known(remembered([EOS, *ids[:place]], policy)), word) for place, word in enumerate(ids))

    def p(history: tuple[int, ...], word: int) -> float:
        counts = [counted[known(history), other] for other in range(vocab_size)]
        return (counts[word] + k) / (sum(counts) + k * vocab_size)

    return p


@pytest.mark.parametrize("policy", [StatePolicy.carry, StatePolicy.document])
def test_add_k_gives_every_word_the_same_probability_behind_a_context_never_seen(policy: StatePolicy) -> None:
    model = NgramModel(vocab_size=10, eos_id=0, order=3, smoothing="add_k", add_k=0.1, state_policy=policy)
    model.count(np.array([1, 2, 3, 4, 0, 5, 6, 0]))
    for context in ((7, 0), (0, 0), (9, 1), (4, 1)):
        if policy is StatePolicy.document and context == (0, 0):
            continue  # there a document begins
        log_probs_TBV, _ = model.log_probs(torch.tensor(context)[:, None], (torch.tensor([[8, 8]]),))
        assert log_probs_TBV[-1, 0].exp().tolist() == pytest.approx([0.1] * 10, rel=1e-14)
    log_probs_TBV, _ = model.log_probs(torch.tensor([[0]]), model.initial_state(1))  # at the start of a text one was seen
    assert log_probs_TBV[0, 0].exp().tolist() == pytest.approx([0.1 / 2, 1.1 / 2, *[0.1 / 2] * 8], rel=1e-14)


@given(corpora, st.lists(st.integers(0, V - 1), min_size=1, max_size=12), st.integers(1, 10), smoothings, policies)
def test_probabilities_equal_the_definition(
    ids: list[int], text: list[int], order: int, smoothing: str, policy: StatePolicy
) -> None:
    model = trained(ids, order=order, smoothing=smoothing, add_k=0.3, state_policy=policy)
    p = definition(ids, order, smoothing, 0.3, policy)
    tokens_TB, targets_TB = inputs_and_targets(text)
    log_probs_TB, _ = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(1))
    expected = [p(remembered([EOS, *text[:place]], policy), word) for place, word in enumerate(text)]
    assert log_probs_TB[:, 0].exp().tolist() == pytest.approx(expected, rel=1e-12)


@given(corpora, st.lists(st.integers(0, V - 1), min_size=1, max_size=12), orders, smoothings, policies)
def test_distributions_sum_to_one_and_hold_the_probability_of_each_target(
    ids: list[int], text: list[int], order: int, smoothing: str, policy: StatePolicy
) -> None:
    model = trained(ids, order=order, smoothing=smoothing, state_policy=policy)
    tokens_TB, targets_TB = inputs_and_targets(text)
    log_probs_TBV, state = model.log_probs(tokens_TB, model.initial_state(1))
    target_log_probs_TB, target_state = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(1))
    assert log_probs_TBV.shape == (len(text), 1, V)
    torch.testing.assert_close(log_probs_TBV.exp().sum(-1), torch.ones(len(text), 1).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_probs_TBV.gather(-1, targets_TB[..., None])[..., 0], target_log_probs_TB)
    assert torch.equal(state[0], target_state[0])
    if smoothing != "maximum_likelihood":
        assert log_probs_TBV.isfinite().all()


def test_maximum_likelihood_gives_minus_infinity_to_what_was_never_seen_in_a_context_that_was() -> None:
    model = trained([1, 2, EOS], order=2, smoothing="maximum_likelihood")
    log_probs_TBV, _ = model.log_probs(torch.tensor([[1]]), model.initial_state(1))
    assert log_probs_TBV[0, 0].tolist() == [-math.inf, -math.inf, 0.0, -math.inf]


def test_model_that_has_counted_nothing_is_uniform() -> None:
    for smoothing in SMOOTHINGS:
        model = NgramModel(vocab_size=V, eos_id=EOS, smoothing=smoothing)
        log_probs_TBV, _ = model.log_probs(torch.tensor([[EOS], [2]]), model.initial_state(1))
        torch.testing.assert_close(log_probs_TBV, torch.full((2, 1, V), -math.log(V)).double())


# ---- the state


@given(corpora, st.lists(st.integers(0, V - 1), min_size=2, max_size=16), st.data(), orders, policies)
def test_chunks_with_carried_state_equal_the_whole_text(
    ids: list[int], text: list[int], data: st.DataObject, order: int, policy: StatePolicy
) -> None:
    model = trained(ids, order=order, state_policy=policy)
    tokens_TB, targets_TB = inputs_and_targets(text)
    whole_TB, whole_state = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(1))
    state, parts, begin = model.initial_state(1), [], 0
    while begin < len(text):
        end = data.draw(st.integers(begin + 1, len(text)))
        part_TB, state = model.target_log_probs(tokens_TB[begin:end], targets_TB[begin:end], state)
        parts.append(part_TB)
        begin = end
    assert torch.equal(torch.cat(parts), whole_TB)
    assert torch.equal(state[0], whole_state[0])


def test_streams_do_not_see_each_other() -> None:
    model = trained([1, 2, 3, EOS, 2, 1, EOS, 3, 3, EOS], order=3)
    tokens_TB = torch.tensor([[EOS, EOS], [1, 2], [2, EOS], [3, 3]])
    both_TBV, (both_BN,) = model.log_probs(tokens_TB, model.initial_state(2))
    for stream in (0, 1):
        alone_TBV, (alone_BN,) = model.log_probs(tokens_TB[:, stream : stream + 1], model.initial_state(1))
        assert torch.equal(both_TBV[:, stream], alone_TBV[:, 0])
        assert torch.equal(both_BN[stream], alone_BN[0])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (StatePolicy.carry, [EOS, EOS, 3]),
        (StatePolicy.line, [-1, EOS, 3]),
        (StatePolicy.document, [-1, EOS, 3]),
    ],
)
def test_state_holds_what_the_policy_remembers(policy: StatePolicy, expected: list[int]) -> None:
    model = trained([1, 2, EOS], order=4, state_policy=policy)
    _, (context_BN,) = model.log_probs(torch.tensor([[EOS], [2], [EOS], [EOS], [3]]), model.initial_state(1))
    assert context_BN.dtype is torch.int64
    assert context_BN.tolist() == [expected]


def test_document_policy_forgets_at_an_empty_line_and_only_there() -> None:
    model = trained([1, 2, EOS, 1, 2, EOS, EOS, 3, EOS], order=4, state_policy=StatePolicy.document)
    _, (context_BN,) = model.log_probs(torch.tensor([[1, 1], [EOS, EOS], [2, EOS]]), model.initial_state(2))
    assert context_BN.tolist() == [[1, EOS, 2], [-1, -1, EOS]]


# ---- counting, saving


@given(corpora, st.data(), policies)
def test_where_a_text_is_cut_into_pieces_makes_no_difference(ids: list[int], data: st.DataObject, policy: StatePolicy) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    model = NgramModel(vocab_size=V, eos_id=EOS, order=3, state_policy=policy)
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        model.count(np.array(ids[begin:end], np.int64))
        if data.draw(st.booleans()):
            model.finish()  # estimating early does no harm either
    whole = trained(ids, order=3, state_policy=policy)
    whole.finish()
    model.finish()
    assert_same_tensors(everything(model), everything(whole))


def everything(model: NgramModel) -> dict[str, Tensor]:
    """All that training saves of a model."""
    return model.tensors() | model.counted()


def assert_same_tensors(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(given) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("finished", [True, False])
def test_model_comes_back_from_its_tensors_and_counts_on(order: int, finished: bool) -> None:
    settings: dict[str, Any] = {"order": order, "smoothing": "add_k", "add_k": 0.2, "state_policy": StatePolicy.document}
    model = trained([1, 2, 3, EOS, 1, 1], **settings)
    if finished:
        model.finish()
    again = NgramModel(vocab_size=V, eos_id=EOS, **settings)
    again.load({name: tensor.clone() for name, tensor in everything(model).items()})
    assert_same_tensors(everything(again), everything(model))
    for one in (model, again):
        one.count(np.array([EOS, EOS, 2]))
        one.finish()
    assert_same_tensors(everything(again), everything(model))


def hostile(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors that do not fit together, each with a word that the error must say."""

    def changed(name: str, place: int, value: float) -> dict[str, Tensor]:
        tensor = tensors[name].clone()
        tensor[place] = value
        return {**tensors, name: tensor}

    keys, log_probs, log_rests = "order_2.keys", "order_2.log_probs", "order_2.log_rests"
    yield "missing", {name: tensor for name, tensor in tensors.items() if name != keys}
    yield "order_4.keys", {**tensors, "order_4.keys": tensors[keys]}
    yield "torch.float32 instead of torch.float64", {**tensors, log_probs: tensors[log_probs].float()}
    yield "order_2.keys has shape", {**tensors, keys: tensors[keys][None]}
    yield "order_2.log_probs has .* one for each of the", {**tensors, log_probs: tensors[log_probs][1:]}
    yield "order_2.log_rests has .* one for each of the", {**tensors, log_rests: tensors[log_rests][1:]}
    yield "does not ascend", {**tensors, keys: tensors[keys].flip(0)}
    yield "does not ascend", changed(keys, 1, int(tensors[keys][0]))
    yield "order_2.keys holds -1", changed(keys, 0, -1)
    yield "the context must be listed", changed(keys, -1, 2**62)
    yield "order_2.log_probs holds nan", changed(log_probs, 0, math.nan)
    yield "order_2.log_probs holds 0.1", changed(log_probs, 0, 0.1)
    yield "order_2.log_rests holds nan", changed(log_rests, 0, math.nan)
    yield "order_2.log_rests holds inf", changed(log_rests, 0, math.inf)
    yield "order_1.log_probs has shape", {**tensors, "order_1.log_probs": torch.zeros(V + 1).double()}
    yield "counted_ids", {**tensors, "counted_ids": torch.tensor([V], dtype=torch.int32)}
    yield "counted_ids", {**tensors, "counted_ids": torch.tensor([-1], dtype=torch.int32)}
    yield "counted_ids", {**tensors, "counted_ids": torch.tensor([1.5])}
    yield "missing", {}


def test_tensors_that_do_not_fit_together_are_refused_and_change_nothing() -> None:
    model = trained([1, 2, 3, EOS, 1, 1, EOS], order=3)
    model.finish()
    before = {name: tensor.clone() for name, tensor in everything(model).items()}
    for word, tensors in hostile(before):
        with pytest.raises(CheckpointError, match=word):
            model.load(tensors)
        assert_same_tensors(everything(model), before)


def test_model_without_its_counts_holds_no_text_and_refuses_to_count_on() -> None:
    model = trained([1, 2, EOS], order=2)
    model.finish()
    model.load(model.tensors())
    assert (model.counted(), "counted_ids" in model.tensors()) == ({}, False)
    with pytest.raises(AssertionError, match="cannot count on"):
        model.count(np.array([1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": 0}, r"^order=0 .*1 to 10.*Type order=5"),
        ({"order": 11}, r"^order=11 "),
        ({"smoothing": "kneser"}, r"^smoothing=kneser .*kneser_ney, add_k, maximum_likelihood"),
        ({"add_k": 0.0}, r"^add_k=0.0 .*above 0"),
    ],
)
def test_settings_out_of_range_name_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        NgramModel(vocab_size=V, eos_id=EOS, **settings)


# ---- KenLM's figures


@pytest.mark.skipif(not BROWN.is_dir(), reason="the Brown corpus is not there (../shared/data/brown)")
def test_brown_perplexities_are_those_of_kenlm() -> None:
    vocabulary: dict[str, int] = {"<eos>": EOS}
    ids = {}
    for split in ("train", "valid", "test"):
        text = (BROWN / f"{split}.txt").read_text(encoding="utf-8")
        words = text.replace("\n", " <eos> ").split()
        ids[split] = torch.tensor([vocabulary.setdefault(word, len(vocabulary)) for word in words])
    assert {split: len(text) for split, text in ids.items()} == {"train": 800047, "valid": 199979, "test": 177333}
    for order, valid, test in ((3, 280.2, 263.9), (5, 278.0, 261.6)):
        model = NgramModel(vocab_size=len(vocabulary), eos_id=EOS, order=order)
        model.count(ids["train"].numpy())
        for split, kenlm in (("valid", valid), ("test", test)):
            tokens_TB = torch.cat([torch.tensor([EOS]), ids[split][:-1]])[:, None]
            log_probs_TB, _ = model.target_log_probs(tokens_TB, ids[split][:, None], model.initial_state(1))
            assert math.exp(-log_probs_TB.mean()) == pytest.approx(kenlm, abs=0.06), (order, split)
