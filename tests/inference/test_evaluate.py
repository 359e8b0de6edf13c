"""Perplexity: by hand, however the text is cut; what the bill counts; what happens at the edges."""

import json
import logging
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import WordTokenizer
from lmtrain.distributed.group import Group
from lmtrain.errors import DataError, SettingsError
from lmtrain.inference.evaluate import Evaluation, Static, evaluate, iter_target_log_probs
from lmtrain.models.base import LanguageModel, StatePolicy, evaluating

TEXT = np.array([1, 2, 0, 0, 3, 4, 1, 1, 2, 0, 4], dtype=np.uint16)
WORDS = WordTokenizer(["<eos>", "to", "be", "or", "<unk>"])


def judged(model, ids, **options):
    return evaluate(model, EncodedText(ids, 20, 25), WORDS, **options)


def by_hand(model, text, *, start=0):
    """Minus log-probabilities of a trigram table, token by token in plain Python; the text begins after position `start`."""
    padded = [0, 0, *text.tolist()] if start == 0 else [0, *text[start - 1 :].tolist()]
    return [-model.log_probs_VVV[padded[i - 2], padded[i - 1], padded[i]].item() for i in range(2, len(padded))]


def test_perplexity_is_the_one_computed_by_hand(table):
    nats = by_hand(table, TEXT)
    bill = judged(table, TEXT)
    assert bill.total_nats == pytest.approx(math.fsum(nats), rel=1e-15)
    assert bill.perplexity == pytest.approx(math.exp(math.fsum(nats) / 11), rel=1e-15)
    known = [n for n, token in zip(nats, TEXT, strict=True) if token != 4]
    assert bill.perplexity_without_unk == pytest.approx(math.exp(math.fsum(known) / 9), rel=1e-14)
    assert (bill.num_tokens, bill.num_eos, bill.num_unk) == (11, 3, 2)
    assert bill.bits_per_character == pytest.approx(math.fsum(nats) / math.log(2) / 20, rel=1e-15)
    assert bill.bits_per_byte == pytest.approx(math.fsum(nats) / math.log(2) / 25, rel=1e-15)


@pytest.mark.parametrize("chunk_length", [1, 2, 3, 10, 11, 12, None])
@pytest.mark.parametrize("policy", StatePolicy)
def test_with_one_stream_the_number_is_the_same_to_the_bit_for_every_chunk_length(table, policy, chunk_length):
    table.state_policy = policy
    whole = judged(table, TEXT, chunk_length=len(TEXT))
    assert judged(table, TEXT, chunk_length=chunk_length) == whole


class Share(Group):
    """One of several processes, whose tallies lie in `tallies`."""

    def __init__(self, rank, tallies):
        self.rank, self.size, self.tallies = rank, len(tallies), tallies

    def everyones(self, own):
        self.tallies[self.rank] = own
        if None in self.tallies:
            raise InterruptedError
        return self.tallies


@pytest.mark.parametrize("num_streams", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("zero", [False, True])
def test_streams_that_are_dealt_out_give_what_one_process_gives(table, size, num_streams, zero):
    if zero:
        table.log_probs_VVV[:, :, 4] = -math.inf
    whole, tallies = judged(table, TEXT, num_streams=num_streams).to_json(), [None] * size
    for rank in range(size - 1):
        with pytest.raises(InterruptedError):
            judged(table, TEXT, num_streams=num_streams, group=Share(rank, tallies))
    shared = judged(table, TEXT, num_streams=num_streams, group=Share(size - 1, tallies)).to_json()
    assert bool(whole["num_impossible"]) == zero
    assert shared == {name: pytest.approx(value, rel=1e-14) if isinstance(value, float) else value
                      for name, value in whole.items()}  # fmt: skip


@pytest.mark.parametrize("chunk_length", [1, 2, 100])
@pytest.mark.parametrize("num_streams", [1, 2, 3, 4, 5, 10, 11])
def test_every_token_is_scored_once_by_the_stream_that_it_stands_in(table, num_streams, chunk_length):
    log_probs = np.full(len(TEXT), np.nan)
    scored = iter_target_log_probs(table, TEXT, eos_id=0, num_streams=num_streams, chunk_length=chunk_length)
    for positions, targets, values in scored:
        assert np.isnan(log_probs[positions]).all()
        assert (TEXT[positions] == targets).all()
        log_probs[positions] = values
    # A stream begins in the initial state: its first token sees one token of context, the others both.
    expected = np.array(by_hand(table, TEXT))
    sizes = [len(part) for part in np.array_split(TEXT, num_streams)]
    for start in np.cumsum([0, *sizes[:-1]]):
        expected[start] = by_hand(table, TEXT, start=start)[0]
    np.testing.assert_allclose(-log_probs, expected, rtol=1e-15)


@pytest.mark.parametrize("chunk_length", [1, 4, None])
def test_a_neural_model_scores_a_stream_the_same_alone_and_beside_others(recurrent, chunk_length):
    together = np.zeros(len(TEXT))
    for scored in iter_target_log_probs(recurrent, TEXT, eos_id=0, num_streams=3, chunk_length=chunk_length):
        together[scored.positions] = scored.log_probs
    for start, end in ((0, 4), (4, 8), (8, 11)):
        before = 0 if start == 0 else int(TEXT[start - 1])
        alone = iter_target_log_probs(recurrent, TEXT[start:end], eos_id=before, chunk_length=100)
        np.testing.assert_allclose(next(alone).log_probs[:, 0], together[start:end], rtol=1e-13)


def test_streams_cost_a_little_and_the_bill_says_how_many(table):
    one, three = (judged(table, TEXT, num_streams=n) for n in (1, 3))
    assert one.total_nats != three.total_nats
    assert (one.num_streams, three.num_streams) == (1, 3)
    assert one.num_tokens == three.num_tokens == len(TEXT)


def test_more_streams_than_tokens_are_fewer_streams_with_a_warning(table, caplog):
    with caplog.at_level(logging.WARNING, "lmtrain"):
        bill = judged(table, TEXT[:2], num_streams=5)
    assert (bill.num_tokens, bill.num_streams) == (2, 2)
    assert "2 tokens are too few for 5 streams; using 2" in caplog.text


def test_empty_text_is_refused(table):
    with pytest.raises(DataError, match="is empty"):
        judged(table, TEXT[:0])


def test_token_that_the_model_does_not_know_is_refused(table):
    with pytest.raises(DataError, match=r"token number 7\. This model knows the tokens 0 to 4"):
        judged(table, np.array([1, 7]))


def test_unlikely_text_has_infinite_perplexity_and_no_overflow():
    bill = Evaluation(1000.0, 1, 0, 0, 0.0, 1, 1, 1, "carry")
    assert bill.perplexity == math.inf
    assert math.isnan(Evaluation(math.nan, 1, 0, 0, 0.0, 1, 1, 1, "carry").perplexity)
    assert json.loads(json.dumps(bill.to_json(), allow_nan=False))["perplexity"] is None


def test_bill_reads_well_and_is_json(table):
    bill = Evaluation(math.log(8) * 1234, 1234, 100, 10, 30.0, 5678, 5700, 2, "line")
    assert bill.format() == (
        "perplexity 8.00 · 7.94 without <unk> · 2.0794 nats per token · 0.6520 bits per character · 0.6495 bits per byte\n"
        "1,234 tokens scored, 100 of them <eos>, 10 <unk> (not spelt, so bits per character are no match for a "
        "character model's) · 5,678 characters · 5,700 bytes\n"
        "static · 2 streams · state forgotten at each line"
    )
    written = json.loads(json.dumps(bill.to_json()))
    assert written["perplexity"] == bill.perplexity
    assert written["num_streams"] == 2
    assert written["perplexity_per_word"] is None


def test_perplexity_per_word_is_named_where_tokens_are_no_words():
    bill = Evaluation(math.log(8) * 1234, 1234, 100, 0, 0.0, 5678, 5700, 2, "line", num_words=617)
    assert bill.format().startswith("perplexity 8.00 · 64.00 per word · 2.0794 nats per token · ")
    assert bill.to_json()["perplexity_per_word"] == pytest.approx(64)
    words = Evaluation(math.log(8) * 1234, 1234, 100, 0, 0.0, 5678, 5700, 2, "line", num_words=1234)
    assert words.perplexity_per_word == words.perplexity
    assert "per word" not in words.format()
    assert Evaluation(1.0, 1, 0, 0, 0.0, 1, 1, 1, "carry", num_words=0).perplexity_per_word is None


def test_progress_adds_up_to_the_text(table):
    done = []
    judged(table, TEXT, num_streams=2, chunk_length=2, progress=done.append)
    assert sum(done) == len(TEXT)
    for size, num_streams in ((3, 7), (2, 5), (3, 2), (2, 11)):  # streams that are dealt out unevenly
        done.clear()
        with suppress(InterruptedError):
            judged(table, TEXT, num_streams=num_streams, chunk_length=2, progress=done.append,
                   group=Share(size - 1, [None] * size))  # fmt: skip
        assert sum(done) == len(TEXT)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_the_same_distribution_and_is_named(table, temperature):
    bill = judged(table, TEXT, method=Static(temperature))
    table.log_probs_VVV = (table.log_probs_VVV / temperature).log_softmax(-1)
    assert bill.total_nats == pytest.approx(math.fsum(by_hand(table, TEXT)), rel=1e-14)
    assert bill.method == f"static + temperature {temperature:g}"


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_temperature_that_cannot_divide_is_refused(temperature):
    with pytest.raises(SettingsError, match=rf"temperature is {temperature}.*temperature=0\.95"):
        Static(temperature)


class Nested(LanguageModel):
    vocab_size = 5

    def __init__(self) -> None:
        super().__init__()
        self.on, self.off = nn.Dropout(), nn.Dropout().eval()

    def initial_state(self, batch_size):
        return ()

    def log_probs(self, tokens_TB, state):
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        return torch.zeros(*tokens_TB.shape, 5).log_softmax(-1), state


def test_model_is_in_evaluation_mode_without_autograd_and_gets_each_mode_back():
    model = Nested()
    for _ in iter_target_log_probs(model, TEXT, eos_id=0, chunk_length=4):
        assert (model.training, model.on.training, model.off.training) == (True, True, False)
        assert torch.is_grad_enabled()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert (model.training, model.on.training, model.off.training) == (True, True, False)
