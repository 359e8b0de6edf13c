"""What a text may not go on with, against the whole text."""

import re
from importlib.util import find_spec

import pytest
import torch

from lmtrain.data.tokenizer import CharTokenizer, WordTokenizer, learn_tokenizer
from lmtrain.errors import SettingsError
from lmtrain.inference.constraints import Constraint, WordList
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.sample import sample
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


def test_parts_of_words_from_their_end_are_on_no_list():
    with pytest.raises(SettingsError, match="backward model of parts of words"):
        WordList(("abc",), learn_tokenizer("char", ["abc\n"], reverse=True))
    assert WordList(("to",), learn_tokenizer("word", ["to be\n"], reverse=True))
