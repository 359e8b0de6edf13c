"""What a text may not go on with, against the whole text."""

import itertools
import re
from importlib.util import find_spec

import pytest
import torch

from lmtrain.data.tokenizer import CharTokenizer, WordTokenizer, learn_tokenizer
from lmtrain.errors import SettingsError, UserError
from lmtrain.inference.beam import beam_search
from lmtrain.inference.constraints import Constraint, WordList
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.sample import sample
from lmtrain.inference.writing import make_writer
from lmtrain.models.base import LanguageModel

CHARS = CharTokenizer(["\n", "a", "b", "c", "<unk>", " "])
WORDS = WordTokenizer(["<eos>", "to", "be", "or", "<unk>"])


class Uniform(LanguageModel):
    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size),)

    def log_probs(self, tokens_TB, state):
        return torch.full((*tokens_TB.shape, self.vocab_size), 1 / self.vocab_size).log(), state


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_no_ngram_occurs_twice_in_prompt_and_text(length):
    settings = SampleSettings(max_tokens=2 if length == 1 else 12, no_repeat_ngram=length, allow_unk=True)
    for draws in sample(Uniform(5), WORDS, "to be", settings, num_samples=20):
        tokens = [1, 2, *(drawn.token for drawn in draws)]
        grams = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
        assert len(grams) == len(set(grams))


def test_what_was_drawn_is_as_likely_to_the_model_as_ever():
    settings = SampleSettings(max_tokens=6, no_repeat_ngram=2, temperature=0)
    (draws,) = sample(Uniform(5), WORDS, "", settings)
    assert all(drawn.nats == pytest.approx(1.6094379) for drawn in draws)


def test_a_text_without_constraints_is_drawn_as_before():
    one, other = (
        ["".join(d.text for d in draws) for draws in sample(Uniform(5), WORDS, "", settings, num_samples=3)]
        for settings in (SampleSettings(max_tokens=9), SampleSettings(max_tokens=9, no_repeat_ngram=99))
    )
    assert one == other


@pytest.mark.parametrize("name", ["char", "byte", "word", *["bpe", "unigram"] * (find_spec("tokenizers") is not None)])
def test_every_word_is_on_the_list_whatever_tokens_are(name):
    text = "abba abc cab ba\nκαι abc\n" * 9
    words = ("abba", "ba", "και", "abc")
    tokenizer = learn_tokenizer(name, [text], vocab_size=262 if name in ("bpe", "unigram") else 0)
    settings = SampleSettings(max_tokens=60, words=words)
    for draws in sample(Uniform(tokenizer.vocab_size), tokenizer, "abc ", settings, num_samples=4):
        *written, begun = re.split("[ \\t\\n\\v\\f\\r]", "".join(drawn.text for drawn in draws))
        assert {*written} <= {*words, ""}
        assert any(word.startswith(begun.rstrip("\ufffd")) for word in words) or not begun


def test_a_word_that_the_prompt_has_begun_is_completed():
    found = WordList(("abc", "ab", "ca"), CHARS)
    assert found.forbidden(b"ab").tolist() == [False, True, True, False, True, False]
    assert found.forbidden(b"c").tolist() == [True, False, True, True, True, True]
    constraint = Constraint(CHARS, "x\nab", [], no_repeat_ngram=None, words=("abc", "ab"))
    assert constraint.beginning.begun == b"ab"


def test_words_that_the_model_cannot_write_are_left_out_and_said(caplog):
    WordList(("to", "zebra"), WORDS)
    assert "1 of 2 words of the list are left out: the model cannot write them" in caplog.text
    with pytest.raises(SettingsError, match="no word that the model can write"):
        WordList(("zebra",), WORDS)


def test_a_text_ends_where_nothing_is_left():
    settings = SampleSettings(max_tokens=9, no_repeat_ngram=1, words=("to",))
    for draws in sample(Uniform(5), WORDS, "", settings, num_samples=5):
        assert sorted(drawn.token for drawn in draws) == [0, 1]
    (draws,) = sample(Uniform(5), WORDS, "", SampleSettings(max_tokens=9, no_repeat_ngram=1))
    assert sorted(drawn.token for drawn in draws) == [0, 1, 2, 3]
    with pytest.raises(SettingsError, match="The constraints leave nothing to go on with"):
        list(next(sample(Uniform(5), WORDS, "to\n", settings)))
    with pytest.raises(SettingsError, match="no_repeat_ngram is 0"):
        SampleSettings(no_repeat_ngram=0)


class Chain(LanguageModel):
    """Every token depends on the one before it, and some have no probability."""

    def __init__(self, *rows):
        super().__init__()
        self.log_probs_VV, self.vocab_size = torch.tensor(rows).log(), len(rows)

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size),)

    def log_probs(self, tokens_TB, state):
        return self.log_probs_VV[tokens_TB], state


EVEN = [0.25, 0.25, 0.25, 0.25, 0.0]
TO_BE_TO = ([0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0], EVEN, EVEN)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}])
def test_a_text_ends_where_the_model_gives_the_rest_no_probability_and_its_neighbours_go_on(temperature, truncation):
    settings = SampleSettings(max_tokens=9, no_repeat_ngram=2, temperature=temperature, **truncation)
    for model, prompt in ((Chain(*TO_BE_TO), ""), (Chain(*TO_BE_TO), "or")):
        together, alone = (
            [
                [drawn.token for drawn in draws]
                for draws in sample(model, WORDS, prompt, settings, num_samples=12, side_by_side=n)
            ]
            for n in (12, 1)
        )
        assert together == alone
        for tokens in together:
            pairs = [*itertools.pairwise([*([3] if prompt else []), *tokens])]
            going_on = [token for token in range(4) if model.log_probs_VV[tokens[-1], token] > -torch.inf]
            assert len(tokens) == 9 or all((tokens[-1], token) in pairs for token in going_on)
        assert any(len(tokens) < 9 for tokens in together)
    assert temperature == 0 or len({len(tokens) for tokens in together}) > 1
    with pytest.raises(SettingsError, match="The constraints leave nothing to go on with"):
        list(next(sample(Chain(*TO_BE_TO), WORDS, "to be to", settings)))


@pytest.mark.parametrize("last", [[0.0, 0.0, 0.0, 0.0, 1.0], [0.0] * 5])
def test_a_text_ends_where_a_model_knows_no_more_and_what_was_held_back_is_written(last, caplog):
    """Behind "a", "b" and "c", either <unk> alone comes next, or nothing has a probability."""
    chars = CharTokenizer(["\n", "a", "b", "c", "<unk>"])
    model = Chain([0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], last, last)
    settings = SampleSettings(max_tokens=9, stop=("bcc",))
    for draws in sample(model, chars, "", settings, num_samples=2):
        assert [drawn.text for drawn in draws] == ["a", "", "bc"]
    assert "A text ends before its time. The model" in caplog.text
    (best,) = beam_search(model, chars, "", settings, beam=3)
    assert (best.text, best.tokens, best.log_prob) == ("abc", (1, 2, 3), 0.0)
    with pytest.raises(UserError, match="<unk> and nothing else" if any(last) else "probability zero to every token"):
        list(next(sample(model, chars, "abc", settings)))
    with pytest.raises(UserError, match="<unk> and nothing else" if any(last) else "probability zero to every token"):
        beam_search(model, chars, "abc", settings)


@pytest.mark.parametrize(("stop", "read"), [((), [0, 1, 2]), (("bcc",), [0, 2, 3])])
def test_a_draw_is_given_at_once_unless_text_behind_it_is_held_back(stop, read):
    """Before "a", "b" and "c" are given, so many of them have been read by the model."""
    chars, num_read = CharTokenizer(["\n", "a", "b", "c", "<unk>"]), -1

    class Counted(Chain):
        def log_probs(self, tokens_TB, state):
            nonlocal num_read
            num_read += 1
            return super().log_probs(tokens_TB, state)

    model = Counted([0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 5, [0.0] * 5)
    draws = next(sample(model, chars, "", SampleSettings(max_tokens=9, stop=stop)))
    assert [(drawn.token, num_read) for drawn in draws] == [*zip((1, 2, 3), read, strict=True)]
    assert num_read == 3


def test_a_beam_warns_once_of_continuations_that_end_before_their_time(caplog):
    """Behind "a" and "b" only <unk> comes, behind "c" either "b" or an end."""
    chars, unk = CharTokenizer(["\n", "a", "b", "c", "<unk>"]), [0.0, 0.0, 0.0, 0.0, 1.0]
    model = Chain([0.0, 0.5, 0.0, 0.5, 0.0], unk, unk, [0.5, 0.0, 0.5, 0.0, 0.0], unk)
    settings = SampleSettings(max_tokens=9, stop=("\n",))
    found = beam_search(model, chars, "", settings, beam=3, length_power=0.0)
    assert [each.tokens for each in found] == [(1,), (3, 0), (3, 2)]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["A continuation ends before its time. The model expects <unk> and nothing else."]
    caplog.clear()
    beam_search(Chain(*[[0.5, 0.5, 0.0, 0.0, 0.0]] * 5), chars, "", settings, beam=3)
    beam_search(Uniform(5), WORDS, "", SampleSettings(max_tokens=9, no_repeat_ngram=1, words=("to",)), beam=3)
    assert not caplog.records


def test_a_beam_keeps_beginnings_that_cannot_go_on():
    settings = SampleSettings(max_tokens=9, no_repeat_ngram=2)
    found = beam_search(Chain(*TO_BE_TO), WORDS, "", settings, beam=50, length_power=0.0)
    assert (1, 2, 1) in [each.tokens for each in found]


@pytest.mark.parametrize("name", ["char", "word", "byte"])
def test_words_stops_and_the_word_that_a_prompt_has_begun_are_read_in_the_form_of_the_model(name):
    tokenizer = learn_tokenizer(name, ["the king\n"] * 2, normalize="nfc_lower")
    model, settings = Uniform(tokenizer.vocab_size), SampleSettings(max_tokens=40, words=("The", "KING"))
    for draws in sample(model, tokenizer, "The ", settings, num_samples=3):
        *written, _ = re.split("[ \\t\\n\\v\\f\\r]", "".join(drawn.text for drawn in draws))
        assert {*written} <= {"the", "king", ""}
    if not tokenizer.kind.has_words:
        constraint = Constraint(tokenizer, "the KI", [], no_repeat_ngram=None, words=("King",))
        assert constraint.beginning.begun == b"ki"
    writer = make_writer(tokenizer, "", ("KING",))
    ids = tokenizer.encode("the king")
    assert [writer.write(int(token))[1] for token in ids] == [*[False] * (len(ids) - 1), True]


def test_parts_of_words_from_their_end_are_on_no_list():
    with pytest.raises(SettingsError, match="backward model of parts of words"):
        WordList(("abc",), learn_tokenizer("char", ["abc\n"], reverse=True))
    assert WordList(("to",), learn_tokenizer("word", ["to be\n"], reverse=True))
