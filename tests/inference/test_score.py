"""Scoring a stream of text: line by line what `evaluate` says of the whole."""

import json
import math

import numpy as np
import pytest
import torch

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer, learn_tokenizer
from lmtrain.errors import DataError
from lmtrain.inference.evaluate import evaluate
from lmtrain.inference.score import ScoredLine, ScoredToken, format_line, line_to_json, score_text
from lmtrain.models.base import LanguageModel, StatePolicy
from lmtrain.models.mixture import Mixture

WORDS = WordTokenizer(["<eos>", "to", "be", "or", "<unk>"])
TEXT = "to be or\n\nnot to be\nto\n"


class Rounding(LanguageModel):
    """Float32 scores which depend on everything read so far, so that the slightest difference would show."""

    vocab_size = 5

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size),)

    def log_probs(self, tokens_TB, state):
        sums_TB = state[0] + ((tokens_TB + 1) / 3).cumsum(0)
        logits_TBV = torch.sin(sums_TB[..., None] * torch.arange(1, 6))
        return logits_TBV.log_softmax(-1), (sums_TB[-1],)


@pytest.mark.parametrize("chunk_length", [1, 3, 4, 7, None])
@pytest.mark.parametrize("policy", StatePolicy)
@pytest.mark.parametrize("cut", [1, 5, 100])
def test_score_and_evaluate_give_the_same_bill_to_the_last_bit(table, cut, policy, chunk_length):
    table.state_policy = policy
    for model in (table, Rounding()):
        blocks = [TEXT[start : start + cut] for start in range(0, len(TEXT), cut)]
        bill = score_text(model, WORDS, blocks, chunk_length=chunk_length)
        text = EncodedText(WORDS.encode(TEXT), len(TEXT), len(TEXT))
        assert bill == evaluate(model, text, WORDS, chunk_length=chunk_length)


@pytest.mark.parametrize("chunk_length", [1, 4, None])
def test_every_line_has_its_share(table, chunk_length):
    lines = []
    bill = score_text(table, WORDS, [TEXT], on_line=lines.append, per_token=True, chunk_length=chunk_length)
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert [line.num_tokens for line in lines] == [4, 1, 4, 2]
    assert [line.num_unk for line in lines] == [0, 0, 1, 0]
    assert [[token.text for token in line.tokens] for line in lines] == [
        ["to", "be", "or", "<eos>"], ["<eos>"], ["not", "to", "be", "<eos>"], ["to", "<eos>"],
    ]  # fmt: skip
    assert [token.is_unk for token in lines[2].tokens] == [True, False, False, False]
    context, nats = [0, 0], []
    for token in WORDS.encode(TEXT).tolist():
        nats.append(-table.log_probs_VVV[*context, token].item())
        context = [context[1], token]
    assert [token.nats for line in lines for token in line.tokens] == nats
    assert [line.total_nats for line in lines] == pytest.approx([sum(nats[i:j]) for i, j in [(0, 4), (4, 5), (5, 9), (9, 11)]])
    assert bill.total_nats == pytest.approx(sum(nats))


def test_tokens_are_kept_only_where_they_are_asked_for(table):
    lines = []
    score_text(table, WORDS, [TEXT], on_line=lines.append)
    assert all(line.tokens is None for line in lines)


def test_last_line_of_words_is_ended_and_of_characters_is_left_as_it_is(table):
    bill = score_text(table, WORDS, ["to ", "be"])
    assert (bill.num_tokens, bill.num_eos, bill.num_chars, bill.num_bytes) == (3, 1, 6, 6)
    lines = []
    chars = CharTokenizer(["\n", "a", "b", "é", "<unk>"])
    bill = score_text(table, chars, ["ab\n", "", "é"], on_line=lines.append)
    assert (bill.num_tokens, bill.num_eos, bill.num_chars, bill.num_bytes) == (4, 1, 4, 5)
    assert [line.num_tokens for line in lines] == [3, 1]


@pytest.mark.parametrize("blocks", [[], [""], ["", ""]])
def test_empty_text_is_refused(table, blocks):
    with pytest.raises(DataError, match="text to score is empty"):
        score_text(table, WORDS, blocks)


class Uniform(LanguageModel):
    vocab_size = 256
    longest = 0

    def initial_state(self, batch_size):
        return ()

    def log_probs(self, tokens_TB, state):
        raise AssertionError("scoring needs the targets alone")

    def target_log_probs(self, tokens_TB, targets_TB, state):
        self.longest = max(self.longest, len(tokens_TB))
        return torch.full(tokens_TB.shape, -math.log(256)), state


def test_one_line_of_ten_million_characters_is_read_in_chunks():
    model, lines = Uniform(), []
    blocks = ("x" * 100_000 for _ in range(100))
    bill = score_text(model, ByteTokenizer(), blocks, on_line=lines.append, chunk_length=4096)
    assert model.longest == 4096
    assert lines == [ScoredLine(1, bill.total_nats, 10_000_000, 0)]
    assert bill.bits_per_byte == pytest.approx(8)
    assert bill.num_words == 1


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_words_are_counted_wherever_the_text_is_cut(cut):
    text = " to  be\n\nor not\tto be"
    blocks = [text[start : start + cut] for start in range(0, len(text), cut)]
    bill = score_text(Uniform(), ByteTokenizer(), blocks, chunk_length=cut)
    assert bill.num_words == 8  # with two ends of lines
    assert bill.perplexity_per_word == pytest.approx(256 ** (len(text) / 8))


@pytest.mark.parametrize(("text", "num_words"), [("to be\n", 3), ("to\tbe\n", None)])
def test_words_are_not_counted_where_an_unknown_character_may_be_a_blank(text, num_words):
    tokenizer = CharTokenizer(["\n", "<unk>", " ", "b", "e", "o", "t"])
    bill = score_text(Uniform(), tokenizer, [text])
    saved = evaluate(Uniform(), EncodedText(tokenizer.encode(text), len(text), len(text)), tokenizer)
    assert (bill.num_words, saved.num_words) == (num_words, num_words)
    assert (bill.to_json()["perplexity_per_word"] is None) == (num_words is None)


def test_lines_are_written_for_people_and_for_programs():
    tokens = (ScoredToken("to", 1.5, False), ScoredToken("<unk>", math.inf, True), ScoredToken("\n", 0.25, False))
    line = ScoredLine(7, math.inf, 3, 1, tokens)
    assert format_line(line) == "7\t-inf\t3\t1\n\tto\t-1.500000\n\t<unk>\t-inf\tunknown\n\t\\n\t-0.250000"
    written = json.loads(json.dumps(line_to_json(line), allow_nan=False))
    assert written == {
        "line": 7, "log_prob": None, "num_tokens": 3, "num_unk": 1,
        "tokens": [
            {"text": "to", "log_prob": -1.5, "is_unk": False},
            {"text": "<unk>", "log_prob": None, "is_unk": True},
            {"text": "\n", "log_prob": -0.25, "is_unk": False},
        ],
    }  # fmt: skip
    assert "tokens" not in line_to_json(ScoredLine(1, 2.0, 1, 0))


def test_ids_are_those_of_the_whole_text_wherever_the_blocks_are_cut(table):
    seen = []

    class Recorder(Uniform):
        vocab_size = 5

        def target_log_probs(self, tokens_TB, targets_TB, state):
            seen.extend(targets_TB[:, 0].tolist())
            return super().target_log_probs(tokens_TB, targets_TB, state)

    score_text(Recorder(), WORDS, list(TEXT), chunk_length=2)
    np.testing.assert_array_equal(seen, WORDS.encode(TEXT))


@pytest.mark.parametrize("cut", [1, 2, 4, 5, 6, 7, 100])
@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("text", [
    "to be\nor <eos> to\n", "<eos>", "to\n\nbe <eos>", "or\n<eos>\n", "<eos> <eos> <eos>\n\n<eos> to",
    "to <eos>\tbe\n<eos>\nor",
])  # fmt: skip
def test_the_word_eos_ends_a_line_for_the_model_and_no_row(table, text, cut, independent, caplog):
    rows = []
    if independent:
        table.forget_at(StatePolicy.line)
    blocks = [text[start : start + cut] for start in range(0, len(text), cut)]
    bill = score_text(table, WORDS, blocks, on_line=rows.append, independent=independent)
    ended = text.replace("<eos>", "\n") + "\n" * (not text.endswith("\n"))
    assert (bill.num_tokens, bill.num_eos) == (len(WORDS.encode(ended)), ended.count("\n"))
    assert bill.total_nats == pytest.approx(score_text(table, WORDS, [ended]).total_nats, rel=1e-12)
    lines = text.removesuffix("\n").split("\n")
    assert [(row.number, row.num_tokens) for row in rows] == [(n, len(line.split()) + 1) for n, line in enumerate(lines, 1)]
    assert caplog.text.count("contains the word <eos>, which is read as an end of line") == 1


def test_reserved_words_are_escaped_by_a_backslash_in_training_scoring_and_prompts():
    text = r"<s> \<eos> a \<unk> </s>" + "\n"
    words = learn_tokenizer("word", [text])
    assert {r"\<eos>", r"\<unk>", "<s>", "</s>"} <= {*words.tokens}
    assert words.decode(words.encode(text)) == text
    assert words.unknown_pieces(text) == []
    assert words.encode(text).tolist().count(words.eos_id) == 1


def test_what_only_looks_like_the_end_of_a_line_is_a_word(table):
    assert score_text(table, WORDS, ["to<eos> <eos>. \xa0<eos> be\n"]).num_eos == 1


MODELS = {
    "elman": config.RecurrentConfig(cell=config.Cell.elman, hidden_size=4),
    "gru, direct": config.RecurrentConfig(cell=config.Cell.gru, hidden_size=4, maxent_order=3, maxent_table=64),
    "lstm": config.RecurrentConfig(cell=config.Cell.lstm, hidden_size=4, num_layers=2),
    "window": config.WindowConfig(context=3, hidden_size=4, num_averages=1, average_span=3),
    "ngram": config.NgramConfig(order=3, state_policy=config.StatePolicy.carry),
}


@pytest.mark.parametrize("kind", [*MODELS, "mixture"])
def test_where_a_model_forgets_at_lines_their_order_does_not_matter(kind):
    def make(name):
        model = build_model(MODELS[name], vocab_size=5, eos_id=0, seed=1)
        if name == "ngram":
            model.count(WORDS.encode(TEXT * 3))
            model.finish()
        return model

    def score(lines):
        scored = []
        score_text(model, WORDS, ["".join(lines)], on_line=scored.append)
        return {line: result.total_nats for line, result in zip(lines, scored, strict=True)}

    model = Mixture([make("lstm"), make("ngram")], [0.5, 0.5]) if kind == "mixture" else make(kind)
    lines = ["be or to\n", "or\n", "to be\n", "\n"]
    assert score(lines) != pytest.approx(score(lines[::-1]), rel=1e-6)
    model.forget_at(StatePolicy.line)
    together = score(lines)
    assert together == pytest.approx(score(lines[::-1]), rel=1e-6)
    assert together == pytest.approx({line: score([line])[line] for line in lines}, rel=1e-6)
