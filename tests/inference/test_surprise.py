"""Where a model is surprised: the numbers against whole distributions, and units that a reader would cut."""

import numpy as np
import pytest
import torch

from lmtrain.data.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer
from lmtrain.errors import DataError
from lmtrain.inference.described import ROWS as CHUNK
from lmtrain.inference.evaluate import Static
from lmtrain.inference.graphemes import belong_together
from lmtrain.inference.score import score_text
from lmtrain.inference.surprise import score_units
from lmtrain.models.base import LanguageModel, StatePolicy

WORDS = WordTokenizer(["<eos>", "to", "be", "or", "<unk>"])
CHARS = CharTokenizer(["\n", " ", "a", "b", "\u0301", "\u0915", "\u094d", "\u0937", "\u093f", "<unk>"])


class Rounding(LanguageModel):
    """Scores which depend on everything read so far."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size, dtype=torch.float64),)

    def log_probs(self, tokens_TB, state):
        sums_TB = state[0] + ((tokens_TB.double() + 1) / 3).cumsum(0)
        logits_TBV = 3 * torch.sin(sums_TB[..., None] * torch.arange(1, self.vocab_size + 1))
        return logits_TBV.log_softmax(-1), (sums_TB[-1],)


def units_of(model, tokenizer, text, unit, cut=1000, **options):
    units = []
    blocks = [text[start : start + cut] for start in range(0, len(text), cut)]
    bill = score_units(model, tokenizer, blocks, unit, units.append, **options)
    return units, bill


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_every_token_has_its_surprisal_entropy_rank_and_alternatives(cut):
    model, text = Rounding(5), "to be or\n\nnot to " + "be or " * CHUNK + "\nto\n"
    units, bill = units_of(model, WORDS, text, "token", cut)
    ids = WORDS.encode(text)
    inputs = torch.tensor([0, *ids[:-1].tolist()])[:, None]
    rows = model.log_probs(inputs, model.initial_state(1))[0][:, 0]
    assert len(units) == len(ids)
    for found, token, row in zip(units, ids.tolist(), rows, strict=True):
        assert found.surprisal == pytest.approx(-row[token].item())
        assert found.entropy == pytest.approx(-(row.exp() * row).sum().item())
        assert found.rank == sorted(row.tolist(), reverse=True).index(row[token].item()) + 1
        others = sorted(((row[v].exp().item(), WORDS.token_text(v)) for v in range(5) if v != token), reverse=True)[:3]
        assert [(pytest.approx(p), text) for p, text in others] == [(a.probability, a.text) for a in found.instead]
    expected = score_text(model, WORDS, [text])
    assert bill.total_nats == pytest.approx(expected.total_nats)
    assert (bill.num_tokens, bill.num_unk, bill.num_chars, bill.method) == (
        expected.num_tokens, expected.num_unk, expected.num_chars, expected.method,
    )  # fmt: skip
    lines, _ = units_of(model, WORDS, text, "line", cut)
    for line in lines:
        own = [u for u in units if u.line == line.line]
        assert line.entropy == pytest.approx(np.mean([u.entropy for u in own]))
        assert line.surprisal == pytest.approx(sum(u.surprisal for u in own))
    assert [(u.line, u.position, u.text, u.num_unk) for u in units[:7]] == [
        (1, 1, "to", 0), (1, 2, "be", 0), (1, 3, "or", 0), (1, 4, "<eos>", 0), (2, 1, "<eos>", 0), (3, 1, "not", 1),
        (3, 2, "to", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("tokenizer", [CHARS, ByteTokenizer()], ids=["char", "byte"])
def test_words_take_the_whitespace_behind_them_and_add_up_to_the_text(tokenizer):
    text = "ab a\u0301b  b\n\n a\u0915\u094d\u0937\u093f b"
    model = Rounding(tokenizer.vocab_size)
    words, bill = units_of(model, tokenizer, text, "word", 3)
    assert [(u.line, u.text) for u in words] == [
        (1, "ab"), (1, "a\u0301b"), (1, "b"), (2, "<eos>"), (3, " "), (3, "a\u0915\u094d\u0937\u093f"), (3, "b"),
    ]  # fmt: skip
    tokens, _ = units_of(model, tokenizer, text, "token")
    lines, _ = units_of(model, tokenizer, text, "line")
    for units in (words, tokens, lines):
        assert sum(u.surprisal for u in units) == pytest.approx(bill.total_nats)
        assert sum(u.num_tokens for u in units) == bill.num_tokens
    assert [u.line for u in lines] == [1, 2, 3]
    assert words[0].surprisal == pytest.approx(sum(u.surprisal for u in tokens[:3]))
    assert words[0].entropy == tokens[0].entropy
    assert (words[1].rank, words[1].instead) == (tokens[3].rank, tokens[3].instead)
    assert (lines[0].rank, lines[0].instead, lines[0].text) == (None, (), "")


@pytest.mark.parametrize("tokenizer", [CHARS, ByteTokenizer()], ids=["char", "byte"])
def test_what_a_reader_takes_for_one_character_is_one_token(tokenizer):
    text = "a\u0301b\u0915\u094d\u0937\u093f \n"
    units, _ = units_of(Rounding(tokenizer.vocab_size), tokenizer, text, "token", 2)
    assert [u.text for u in units] == ["a\u0301", "b", "\u0915\u094d\u0937\u093f", " ", "\n"]
    if tokenizer is CHARS:
        assert [u.num_tokens for u in units] == [2, 1, 4, 1, 1]


@pytest.mark.parametrize(
    "clusters",
    [
        "a b", "e\u0301|e", "\r\n|\n", "\u0995\u09cd\u09b7|\u0995", "\U0001f469\u200d\U0001f469\u200d\U0001f467|!",
        "\U0001f44d\U0001f3fd|\U0001f44d", "\U0001f1ec\U0001f1f7|\U0001f1ee\U0001f1f3",
        "\u1112\u1161\u11ab|\ud55c|\ud558\u11ab",
        "\u05e9\u05c1|\u05dc", "\u263a\ufe0f|x", "\u65e5|\u672c|\u8a9e", "\u03b1\u0313\u0342|\u03b2", "\n|\u0301",
    ],
)  # fmt: skip
def test_grapheme_clusters(clusters):
    expected = clusters.split("|") if "|" in clusters else list(clusters)
    found = [""]
    for character in "".join(expected):
        if found[-1] and not belong_together(found[-1], character):
            found.append("")
        found[-1] += character
    assert found == expected


def test_a_byte_that_is_never_completed_is_not_lost():
    class Broken(ByteTokenizer):
        def _encode(self, text):
            return super()._encode(text)[:-1]

    units, bill = units_of(Rounding(256), Broken(), "aé", "token")
    assert [u.text for u in units] == ["a", "\ufffd"]
    assert sum(u.num_tokens for u in units) == bill.num_tokens == 2


def test_each_line_is_told_before_the_next_is_asked_for():
    for unit in ("token", "word", "line"):
        told = []

        def blocks(told=told):
            for number in range(1, 4):
                yield "ab ba\n"
                assert told, "the last unit of the line has come"
                assert told[-1].line == number
                assert told[-1].ends_line

        score_units(Rounding(10), CHARS, blocks(), unit, told.append, at_once=True)


def test_temperature_the_cost_of_unknown_words_and_forgetting(table):
    text, options = "to nobody\nto be\n", {"method": Static(2.0), "unknown_cost": 1.5}
    units, bill = units_of(table, WORDS, text, "token", **options)
    expected = score_text(table, WORDS, [text], **options)
    assert bill.total_nats == pytest.approx(expected.total_nats)
    assert bill.method == expected.method
    assert sum(u.surprisal for u in units) == pytest.approx(bill.total_nats)
    table.forget_at(StatePolicy.line)
    forgetful, _ = units_of(table, WORDS, text, "token")
    assert [u.surprisal for u in forgetful[3:]] == pytest.approx(
        [u.surprisal for u in units_of(table, WORDS, "to be\n", "token")[0]]
    )


def test_a_word_without_end_is_cut_where_it_is_shown_and_an_empty_text_is_refused():
    model = Rounding(256)
    (word,), bill = units_of(model, ByteTokenizer(), "x" * 30_000, "word", 5000)
    assert word.num_tokens == bill.num_tokens == 30_000
    assert len(word.text) == 10_000
    with pytest.raises(DataError, match="text to score is empty"):
        units_of(model, ByteTokenizer(), "", "word")
