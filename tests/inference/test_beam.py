"""Beam search against all continuations there are, and what it refuses."""

import itertools
import math

import pytest
import torch

from lmtrain.data.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer
from lmtrain.errors import SettingsError
from lmtrain.inference.beam import beam_search
from lmtrain.inference.drawing import SampleSettings
from lmtrain.models.base import LanguageModel
from lmtrain.models.mixture import Mixture

CHARS = CharTokenizer(["\n", "a", "b", "c", "<unk>"])
WORDS = WordTokenizer(["<eos>", "to", "be", "or", "<unk>"])


def all_continuations(table, prompt_ids, max_tokens, *, excluded):
    """Every sequence that ends with token 0, or has `max_tokens`: with its log-probability."""
    found = {}
    for length in range(1, max_tokens + 1):
        for tokens in itertools.product(range(5), repeat=length):
            ends = tokens[-1] == 0
            if excluded in tokens or 0 in tokens[:-1] or not (ends or length == max_tokens):
                continue
            before, total = [0, 0, *prompt_ids], 0.0
            for token in tokens:
                total += float(table.log_probs_VVV[before[-2], before[-1], token])
                before.append(token)
            found[tokens] = total
    return found


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("unk", [False, True])
def test_a_wide_beam_finds_the_best_of_all_continuations(table, power, unk):
    expected = all_continuations(table, [1, 2], 3, excluded=None if unk else 4)
    ranked = sorted(expected, key=lambda tokens: -expected[tokens] / len(tokens) ** power)
    settings = SampleSettings(max_tokens=3, stop=("\n",), allow_unk=unk)
    found = beam_search(table, CHARS, "ab", settings, beam=200, length_power=power, num_best=10)
    assert [each.tokens for each in found] == ranked[:10]
    for each in found:
        assert each.log_prob == pytest.approx(expected[each.tokens], rel=1e-9)
        assert each.score == pytest.approx(each.log_prob / len(each.tokens) ** power)
        assert each.text == CHARS.decode(each.tokens).removesuffix("\n")


def test_a_beam_of_one_is_greedy(table):
    settings = SampleSettings(max_tokens=6)
    (found,) = beam_search(table, CHARS, "a", settings, beam=1)
    before = [0, 1]
    for token in found.tokens:
        row = table.log_probs_VVV[before[-2], before[-1]].clone()
        row[4] = -math.inf
        assert token == int(row.argmax())
        before.append(token)
    assert len(found.tokens) == 6


def test_a_search_that_may_end_early_loses_nothing(table):
    """The bound on what goes on: with a large max_tokens the best are those of a search to the end."""
    settings = SampleSettings(max_tokens=40, stop=("\n",))
    short = beam_search(table, CHARS, "", settings, beam=30, length_power=0.0)
    assert len(short) == 30
    exact = all_continuations(table, [0], 4, excluded=4)
    best = max(exact[tokens] for tokens in exact if tokens[-1] == 0)
    assert short[0].log_prob >= best - 1e-9


def test_a_mixture_and_models_without_a_state_are_searched(table):
    class Stateless(LanguageModel):
        vocab_size = 5

        def initial_state(self, batch_size):
            return ()

        def log_probs(self, tokens_TB, state):
            return torch.full((*tokens_TB.shape, 5), 0.2).log(), ()

    mixture = Mixture([table, table], [0.5, 0.5])
    settings = SampleSettings(max_tokens=4)
    one, other = (beam_search(model, WORDS, "to", settings, beam=3) for model in (table, mixture))
    assert [each.tokens for each in one] == [each.tokens for each in other]
    assert all(
        each.log_prob == pytest.approx(4 * math.log(0.2)) for each in beam_search(Stateless(), WORDS, "", settings, beam=3)
    )


def test_texts_are_those_of_words_behind_a_prompt(table):
    (found,) = beam_search(table, WORDS, "to", SampleSettings(max_tokens=3, stop=("\n",)), beam=1)
    assert not found.text or found.text.startswith(" ")


def test_constraints_hold_in_every_hypothesis(table):
    settings = SampleSettings(max_tokens=5, no_repeat_ngram=2, words=("to", "be"))
    for each in beam_search(table, WORDS, "to be", settings, beam=20):
        tokens = [1, 2, *each.tokens]
        pairs = [*itertools.pairwise(tokens)]
        assert len(pairs) == len(set(pairs))
        assert 3 not in each.tokens
        assert 4 not in each.tokens


def test_a_character_that_was_never_completed_is_replaced_at_the_end():
    class OneByte(LanguageModel):
        vocab_size = 256

        def initial_state(self, batch_size):
            return (torch.zeros(batch_size),)

        def log_probs(self, tokens_TB, state):
            rows = torch.full((*tokens_TB.shape, 256), -20.0)
            rows[..., 0xC3] = 0.0
            return rows.log_softmax(-1), state

    (found,) = beam_search(OneByte(), ByteTokenizer(), "", SampleSettings(max_tokens=1), beam=1)
    assert found.text == "\ufffd"


@pytest.mark.parametrize(
    ("values", "message"),
    [({"beam": 0}, "beam is 0"), ({"num_best": 0}, "num_best is 0"), ({"length_power": -1.0}, "length_power is -1.0"),
     ({"length_power": math.nan}, "length_power is nan")],
)  # fmt: skip
def test_values_out_of_range_are_refused(table, values, message):
    with pytest.raises(SettingsError, match=message):
        beam_search(table, CHARS, "", SampleSettings(max_tokens=1), **values)


def test_where_the_constraints_leave_nothing_it_is_said(table):
    with pytest.raises(SettingsError, match="The constraints leave nothing to go on with"):
        beam_search(table, WORDS, "to\n", SampleSettings(max_tokens=9, no_repeat_ngram=1, words=("to",)), beam=2)
    found = beam_search(table, WORDS, "to", SampleSettings(max_tokens=9, no_repeat_ngram=1, words=("to", "be")), beam=4)
    assert sorted(each.tokens for each in found) == [(0, 2), (2, 0)]
