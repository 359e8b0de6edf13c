"""The sampler: its distribution, its settings, its text, and what it refuses."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch

from lmtrain.data.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer
from lmtrain.errors import CheckpointError, DataError, SettingsError
from lmtrain.inference import sample as sampler
from lmtrain.inference.drawing import SampleSettings, draw, truncate
from lmtrain.inference.sample import read, sample, sample_text
from lmtrain.inference.writing import release
from lmtrain.models.base import LanguageModel

CHARS = CharTokenizer(["\n", "a", "b", "c", "<unk>"])
WORDS = WordTokenizer(["<eos>", "to", "be", "or", "<unk>"])


class Script(LanguageModel):
    """Expects exactly the given ids, one after the other, whatever it reads; the state counts what has been read."""

    def __init__(self, ids, vocab_size=5):
        super().__init__()
        self.ids, self.vocab_size = ids, vocab_size
        self.lengths_read = []

    def initial_state(self, batch_size):
        return (torch.full((batch_size,), -1),)

    def log_probs(self, tokens_TB, state):
        self.lengths_read.append(len(tokens_TB))
        counts_TB = state[0] + torch.arange(1, len(tokens_TB) + 1)[:, None]
        next_TB = torch.tensor(self.ids)[counts_TB % len(self.ids)]
        log_probs_TBV = torch.nn.functional.one_hot(next_TB, self.vocab_size) * 40.0 - 20.0
        return log_probs_TBV.log_softmax(-1), (counts_TB[-1],)


def log_probs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


# ---- the distribution


def test_draws_follow_the_distribution(generator):
    probabilities, count = [0.5, 0.3, 0.15, 0.0, 0.05], 20_000
    uniforms = itertools.islice(sampler.iter_uniforms(generator), count)
    drawn = [draw(log_probs(*probabilities), SampleSettings(), uniform) for uniform in uniforms]
    observed = np.bincount(drawn, minlength=5)
    assert observed[3] == 0, "a token of probability 0 was drawn"
    expected = count * np.array(probabilities)
    chi_squared = ((observed - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    # Three degrees of freedom: P(chi-squared > 21.1) = 1e-4.
    assert chi_squared < 21.1, (
        f"counts {observed} for probabilities {probabilities}: chi-squared {chi_squared:.1f} on 3 degrees of freedom. "
        "A right sampler exceeds 21.1 for one seed in 10,000; the seed is fixed, so either it is that seed or it is wrong."
    )


def test_whole_texts_follow_the_model(table):
    """The second token's marginal distribution depends on the first one drawn and on the carried state."""
    count = 3000
    settings = SampleSettings(max_tokens=2, allow_unk=True)
    texts = sample(table, CHARS, "", settings, num_samples=count, seed=1)
    pairs = np.array([[d.token for d in draws] for draws in texts])
    observed = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
    first = table.log_probs_VVV[0, 0]
    expected = count * (first[:, None] + table.log_probs_VVV[0]).exp().numpy().ravel()
    chi_squared = ((observed - expected) ** 2 / expected).sum()
    # 24 degrees of freedom: P(chi-squared > 58.6) = 1e-4.
    assert chi_squared < 58.6, (
        f"chi-squared {chi_squared:.1f} on 24 degrees of freedom; a right sampler exceeds 58.6 for one seed in 10,000."
    )


def test_temperature_1_is_the_model_itself():
    given = log_probs(0.5, 0.3, 0.2)
    torch.testing.assert_close(truncate(given, SampleSettings()), given, rtol=1e-14, atol=0)


def test_temperature_raises_probabilities_to_a_power():
    expected = torch.tensor([0.25, 0.09, 0.04], dtype=torch.float64) / 0.38
    settings = SampleSettings(temperature=0.5)
    torch.testing.assert_close(truncate(log_probs(0.5, 0.3, 0.2), settings).exp(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-12, 1e-300, 5e-324])
def test_tiny_temperatures_are_greedy_and_do_not_underflow(temperature):
    result = truncate(log_probs(0.3, 0.4, 0.0, 0.3), SampleSettings(temperature=temperature))
    assert result.exp().tolist() == pytest.approx([0, 1, 0, 0], abs=1e-100)


def test_huge_temperature_is_uniform_over_what_is_possible():
    result = truncate(log_probs(0.1, 0.9, 0.0), SampleSettings(temperature=1e308))
    assert result.exp().tolist() == pytest.approx([0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 2}, [0.4, 0.3, 0, 0]),
        ({"top_k": 1}, [0.4, 0, 0, 0]),
        ({"top_k": 4}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 99}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.39}, [0.4, 0, 0, 0]),
        ({"top_p": 0.41}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.89}, [0.4, 0.3, 0.2, 0]),
        ({"top_p": 1e-9}, [0.4, 0, 0, 0]),
        ({"top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"min_p": 0.6}, [0.4, 0.3, 0, 0]),
        ({"min_p": 0.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"min_p": 1.0}, [0.4, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.56}, [0.4, 0, 0, 0]),  # of the two that top-k keeps, the first has 0.571
        ({"top_k": 3, "min_p": 0.6}, [0.4, 0.3, 0, 0]),
    ],
)
def test_truncation_keeps_the_likeliest_and_normalises_them(settings, expected):
    result = truncate(log_probs(0.4, 0.3, 0.2, 0.1)[[2, 0, 3, 1]], SampleSettings(**settings))
    shuffled = np.array(expected)[[2, 0, 3, 1]]
    np.testing.assert_allclose(result.exp(), shuffled / shuffled.sum(), rtol=1e-12)


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.5}])
def test_of_equal_tokens_those_with_lower_ids_are_kept(settings):
    result = truncate(log_probs(0.25, 0.25, 0.25, 0.25), SampleSettings(**settings))
    assert result.exp().tolist() == pytest.approx([0.5, 0.5, 0, 0])


# ---- the settings


@pytest.mark.parametrize(
    ("settings", "given", "remedy"),
    [
        ({"temperature": -0.5}, "temperature is -0.5", "temperature=0.8"),
        ({"temperature": math.nan}, "temperature is nan", "temperature=0.8"),
        ({"temperature": math.inf}, "temperature is inf", "temperature=0.8"),
        ({"top_k": 0}, "top_k is 0", "top_k=40"),
        ({"top_p": 0.0}, "top_p is 0.0", "top_p=0.9"),
        ({"top_p": 1.1}, "top_p is 1.1", "top_p=0.9"),
        ({"top_p": math.nan}, "top_p is nan", "top_p=0.9"),
        ({"min_p": -0.1}, "min_p is -0.1", "min_p=0.05"),
        ({"max_tokens": 0}, "max_tokens is 0", "max_tokens=200"),
        ({"stop": ["a", ""]}, "stop is an empty string", "stop"),
    ],
)
def test_settings_out_of_range_are_refused_with_what_to_type(settings, given, remedy):
    with pytest.raises(SettingsError) as caught:
        SampleSettings(**settings)
    assert caught.value.given == given + "."
    assert remedy in caught.value.remedy


def test_no_samples_at_all_are_refused(table):
    with pytest.raises(SettingsError, match="num_samples is 0"):
        sample(table, CHARS, num_samples=0)


def test_top_k_beyond_the_vocabulary_is_noted(table, caplog):
    sample(table, CHARS, settings=SampleSettings(top_k=6))
    assert "The likeliest 6 tokens were asked for; all 5 that there are are kept" in caplog.text


def test_the_same_seed_gives_the_same_text_and_another_seed_another(table):
    settings = SampleSettings(max_tokens=50)
    assert sample_text(table, CHARS, "ab", settings, seed=1) == sample_text(table, CHARS, "ab", settings, seed=1)
    assert sample_text(table, CHARS, "ab", settings, seed=1) != sample_text(table, CHARS, "ab", settings, seed=2)


def test_several_samples_differ_and_the_first_is_the_single_one(table):
    settings = SampleSettings(max_tokens=50)
    texts = ["".join(d.text for d in draws) for draws in sample(table, CHARS, "", settings, num_samples=3, seed=1)]
    assert len(set(texts)) == 3
    assert texts[0] == sample_text(table, CHARS, "", settings, seed=1)


def test_sampling_leaves_the_global_generator_alone(table):
    before = torch.get_rng_state()
    sample_text(table, CHARS)
    assert torch.equal(before, torch.get_rng_state())


# ---- the model is read once


@pytest.mark.parametrize("prompt_length", [0, 1, 255, 256, 600])
def test_the_prompt_is_read_once_in_chunks_and_then_token_by_token(prompt_length):
    model = Script([1])
    texts = sample(model, CHARS, "a" * prompt_length, SampleSettings(max_tokens=3), num_samples=2)
    assert [len(list(draws)) for draws in texts] == [3, 3]
    prompt, tokens = model.lengths_read[:-2], model.lengths_read[-2:]
    assert sum(prompt) == 1 + prompt_length
    assert max(prompt) <= sampler.PROMPT_CHUNK
    assert tokens == [1, 1], "both texts are read at once"


# ---- many texts


def test_each_text_is_the_one_that_its_own_seed_draws_alone(table):
    settings = SampleSettings(max_tokens=12, stop=("b",))  # so they end one after the other
    alone = [sample_text(table, CHARS, "a", settings, seed=7 + number) for number in range(11)]
    assert len({len(text) for text in alone}) > 3
    for side_by_side in (1, 4, 64):
        for num_samples in (2, 11):
            texts = sample(table, CHARS, "a", settings, num_samples=num_samples, side_by_side=side_by_side, seed=7)
            assert ["".join(drawn.text for drawn in draws) for draws in texts] == alone[:num_samples]


def test_texts_may_be_read_in_any_order_and_some_not_at_all(table):
    settings = SampleSettings(max_tokens=5)
    expected = [[drawn.token for drawn in draws] for draws in sample(table, CHARS, "", settings, num_samples=4)]
    texts = list(sample(table, CHARS, "", settings, num_samples=4))
    assert [drawn.token for drawn in texts[3]] == expected[3]
    assert [drawn.token for drawn in texts[1]] == expected[1]


def test_a_text_is_shown_while_others_are_still_to_be_drawn(table, monkeypatch):
    drawn_tokens = []
    draw_each = sampler.draw_each
    monkeypatch.setattr(sampler, "draw_each", lambda *a, **k: drawn_tokens.append(1) or draw_each(*a, **k))
    first = next(sample(table, CHARS, "", SampleSettings(max_tokens=100), num_samples=3))
    next(first)
    assert len(drawn_tokens) == 1


def test_with_a_model_without_probabilities_among_many_texts_the_error_is_that_of_one():
    class Empty(Script):
        def log_probs(self, tokens_TB, state):
            log_probs_TBV, state = super().log_probs(tokens_TB, state)
            return torch.full_like(log_probs_TBV, -math.inf), state

    with pytest.raises(CheckpointError, match="probability zero to every token"):
        [list(draws) for draws in sample(Empty([1]), CHARS, num_samples=3)]


@pytest.mark.parametrize("length", [1, 2, 300])
def test_reading_in_pieces_equals_scoring_the_whole(table, length, generator):
    ids = torch.randint(5, (length,), generator=generator).numpy()
    expected_TBV, _ = table.log_probs(torch.from_numpy(ids)[:, None], table.initial_state(1))
    assert torch.equal(read(table, ids, table.initial_state(1), "cpu")[0], expected_TBV[-1, 0])


def test_draws_say_how_surprising_they_were_before_truncation(table):
    settings = SampleSettings(temperature=0.1, top_k=2, max_tokens=20)
    context = [0, 0]
    for drawn in next(sample(table, CHARS, "", settings)):
        seen_V = table.log_probs_VVV[*context]
        assert drawn.nats == -seen_V[drawn.token].item()
        assert seen_V.sort(descending=True).indices[drawn.rank - 1] == drawn.token
        assert drawn.entropy == pytest.approx(-(seen_V * seen_V.exp()).sum().item())
        context = [context[1], drawn.token]


# ---- unknown text and models that cannot be sampled


def test_unknown_characters_of_a_prompt_are_listed_and_read_as_unk(table, caplog):
    with caplog.at_level(logging.WARNING, "lmtrain"):
        with_unknown = sample_text(table, CHARS, "aßbß!", seed=3)
    assert "The prompt contains 'ß', '!', unknown to this model and read as <unk>" in caplog.text
    ids = np.array([0, 1, 4, 2, 4, 4])
    log_probs_V, state = read(table, ids, table.initial_state(1), "cpu")
    generator = torch.Generator().manual_seed(3)
    writer = sampler.Writer(CHARS, "", ())
    draws = sampler.generate(table.reader_factory()(state), log_probs_V, SampleSettings(), [generator], [writer], excluded=4)
    assert with_unknown == CHARS.decode(drawn.token for _, drawn, _ in draws)


def test_unknown_characters_are_refused_where_there_is_no_unk(table):
    class Strict(ByteTokenizer):
        def unknown_pieces(self, text):
            return [piece for piece in text if not piece.isascii()]

    with pytest.raises(DataError, match=r"'é'.*256 tokens lacks\. It has no <unk>.*Leave that out"):
        sample(table, Strict(), "café")


def test_unk_is_drawn_only_where_it_is_allowed(table):
    draws = next(sample(table, CHARS, "", SampleSettings(max_tokens=300)))
    assert all(drawn.token != 4 for drawn in draws)
    draws = next(sample(table, CHARS, "", SampleSettings(max_tokens=300, allow_unk=True)))
    assert any(drawn.token == 4 for drawn in draws)


def test_model_that_knows_only_unk_is_explained():
    with pytest.raises(SettingsError, match="allow_unk=True"):
        draw(log_probs(0.0, 0.0, 1.0), SampleSettings(), 0.5, excluded=2)


def test_weights_that_are_not_finite_are_named(table):
    table.log_probs_VVV = table.log_probs_VVV * math.nan
    with pytest.raises(CheckpointError, match="model contains non-finite weights") as caught:
        sample(table, CHARS)
    assert caught.value.exit_code == 4


# ---- the text


def script_text(tokenizer, text, **settings):
    ids = tokenizer.encode(text).tolist()
    model = Script(ids, tokenizer.vocab_size)
    settings = SampleSettings(temperature=0, **{"max_tokens": len(ids), **settings})
    return [drawn.text for drawn in next(sample(model, tokenizer, "", settings))]


def test_words_are_separated_from_the_prompt_and_from_each_other():
    model = Script([2, 0, 1])
    settings = SampleSettings(temperature=0, max_tokens=3)
    # The script has been read from its start by `<eos>` and "to", so it goes on with its second token.
    assert [d.text for d in next(sample(model, WORDS, "to", settings))] == ["\n", "to", " be"]
    model = Script([2, 0, 1])
    assert [d.text for d in next(sample(model, WORDS, "to be or", settings))] == [" be", "\n", "to"]


def test_characters_of_several_bytes_appear_when_they_are_complete():
    assert script_text(ByteTokenizer(), "aé€") == ["a", "", "é", "", "", "€"]


def test_character_that_is_never_completed_is_marked_at_the_end():
    assert script_text(ByteTokenizer(), "a€", max_tokens=3) == ["a", "", "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["ca"], ["a", "b", "", ""]),
        (["cb"], ["a", "b", "", "ca", "", "c", ""]),
        (["cb", "cc"], ["a", "b", "", "ca", "", ""]),
        (["a"], [""]),
        (["abca", "bc"], ["", "", "a"]),
        (["ccb"], ["a", "b", "", "ca", "", "", ""]),
        (["zz"], ["a", "b", "c", "a", "c", "c", "b"]),
        (["bz"], ["a", "", "bc", "a", "c", "c", "b"]),  # what was held back appears at the end at the latest
    ],
)
def test_stop_strings_end_the_text_and_are_no_part_of_it(stop, expected):
    assert script_text(CHARS, "abcaccb", stop=stop) == expected


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    assert script_text(CHARS, "abcabb", stop=["bb"]) == ["a", "", "bc", "a", "", ""]
    assert script_text(CHARS, "aab", stop=["bc"]) == ["a", "a", "b"]


def test_stop_string_in_the_prompt_does_not_end_the_text(table):
    assert len(list(next(sample(table, CHARS, "abc", SampleSettings(stop=["abc"], max_tokens=1))))) == 1


def test_release_agrees_with_searching_the_whole_text_for_every_way_of_cutting_it():
    for text in map("".join, itertools.product("ab", repeat=5)):
        for stops in (["ab"], ["aab", "ba"], ["bb", "abb"]):
            shown, held, stopped = "", "", False
            for char in text:
                released, held, stopped = release(held + char, stops)
                shown += released
                if stopped:
                    break
            # The first stop string to be complete ends the text; of several complete at once the longest is removed.
            ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
            assert stopped == bool(ends)
            assert shown + held == (text[: min(ends)[1]] if ends else text)
