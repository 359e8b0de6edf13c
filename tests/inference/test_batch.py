"""Texts scored side by side: the numbers that each has alone, in the order given, in bounded memory."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.tokenizer import ByteTokenizer, WordTokenizer
from lmtrain.errors import CheckpointError
from lmtrain.inference import batch
from lmtrain.inference.batch import score_batches, score_lines
from lmtrain.inference.evaluate import Static
from lmtrain.inference.score import score_text, score_texts
from lmtrain.models.base import LanguageModel, NeuralLanguageModel, StatePolicy
from lmtrain.models.mixture import Mixture

V = 23
WORDS = WordTokenizer(["<eos>", *(f"w{number}" for number in range(V - 2)), "<unk>"])
SMALL = {"embed_size": 5, "hidden_size": 7, "num_layers": 2}
CELLS = {
    f"{cell} {name}": config.RecurrentConfig(cell=config.Cell[cell], **SMALL | settings)
    for cell in ("elman", "gru", "lstm")
    for name, settings in {
        "full": {},
        "sampled": {"head": config.HeadName.sampled, "num_samples": 4},
        "adaptive": {"head": config.HeadName.adaptive, "cutoffs": [6, 12]},
        "tied": {"embed_size": 7, "tie_weights": True},
        "direct": {"maxent_order": 3, "maxent_table": 128},
        "normalised": {"layer_norm": True, "zoneout": 0.1, "residual": True},
    }.items()
}
OTHERS = {
    "window": config.WindowConfig(context=3, hidden_size=6, num_averages=1, average_span=4),
    "window direct": config.WindowConfig(context=2, hidden_size=6, direct=True, maxent_order=3, maxent_table=128),
    "kneser_ney": config.NgramConfig(order=4),
    "add_k": config.NgramConfig(order=3, smoothing=config.Smoothing.add_k, state_policy=config.StatePolicy.carry),
}


def make(kind: str, policy: StatePolicy | None = None) -> LanguageModel:
    if kind == "mixture":
        parts = [make(part, policy) for part in ("lstm full", "window", "kneser_ney")]
        return Mixture(parts, [0.5, 0.2, 0.3])
    model = build_model((CELLS | OTHERS)[kind], vocab_size=V, eos_id=0, seed=1)
    if isinstance(model, NeuralLanguageModel):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if "normalised" in kind:  # layer normalisation of seven units blows rounding up
            model.double()
        model.eval()
    else:
        model.count(np.concatenate(texts_of(100, most=12)))  # type: ignore[attr-defined]
        model.finish()  # type: ignore[attr-defined]
    if policy is not None:
        model.forget_at(policy)
    return model


def texts_of(count: int, *, most: int, seed: int = 0) -> list[np.ndarray]:
    """Texts of 1 to `most` tokens; line ends within some of them and at the end of most."""
    random = np.random.default_rng(seed)
    texts = [random.integers(0, V, length).astype(np.int32) for length in random.integers(1, most + 1, count)]
    for ids in texts[::2]:
        ids[:-1][ids[:-1] == 0] = 1
    for ids in texts[1:]:
        ids[-1] = 0
    return texts


def alone(model: LanguageModel, ids: np.ndarray, method: Static = batch.STATIC) -> np.ndarray:
    with method.scoring(model, torch.tensor([0])) as score:
        return score(torch.from_numpy(ids.astype(np.int64))[:, None])[:, 0].double().numpy()


@pytest.mark.parametrize("policy", StatePolicy)
@pytest.mark.parametrize("kind", [*CELLS, *OTHERS, "mixture"])
def test_texts_have_the_numbers_that_each_has_alone(kind: str, policy: StatePolicy) -> None:
    model, texts = make(kind, policy), texts_of(9, most=20)
    expected = [alone(model, ids) for ids in texts]
    for batch_tokens in (1, 37, 4096):
        scored = list(score_batches(model, WORDS, iter(texts), batch_tokens=batch_tokens))
        for text, own, (ids, log_probs) in zip(texts, expected, scored, strict=True):
            assert ids is text
            np.testing.assert_allclose(log_probs, own, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["window", "window direct", "kneser_ney", "add_k"])
def test_models_without_a_recurrence_score_a_batch_in_one_call(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the length of the texts: no step of them waits for the one before."""
    model, sizes = make(kind), list[tuple[int, ...]]()
    method = "activations" if isinstance(model, NeuralLanguageModel) else "target_log_probs"
    original = getattr(model, method)
    monkeypatch.setattr(
        model,
        method,
        lambda tokens_TB, *rest, **more: sizes.append(tuple(tokens_TB.shape)) or original(tokens_TB, *rest, **more),
    )
    texts = [np.arange(length, dtype=np.int32) % V for length in (50, 49, 40, 30)]
    assert len(list(score_batches(model, WORDS, texts))) == 4
    assert sizes == [(50, 4)]


@pytest.mark.parametrize(("kind", "cut"), [("lstm adaptive", 7), ("window", 1000), ("kneser_ney", 1)])
@pytest.mark.parametrize("batch_tokens", [1, 3, 4096])  # windows of 32 tokens and of 96, which long lines exceed
@pytest.mark.parametrize("at_once", [False, True])
def test_lines_have_the_numbers_that_each_has_alone_however_the_text_is_cut(
    kind: str, batch_tokens: int, cut: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "CHUNK_TOKENS", 20)
    model = make(kind, StatePolicy.line)
    random = np.random.default_rng(3)
    lengths = [*random.integers(0, 12, 20).tolist(), 200, 0, 0, 33, 70, 5]
    lines = [np.append(random.integers(1, V, length), 0).astype(np.int32) for length in lengths]
    lines[-1] = lines[-1][:-1]  # the last one has no end
    text = np.concatenate(lines)
    pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
    scored = list(score_lines(model, WORDS, pieces, batch_tokens=batch_tokens, at_once=at_once))
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in scored]), text)
    expected = np.concatenate([alone(model, ids) for ids in lines])
    np.testing.assert_allclose(np.concatenate([log_probs for _, log_probs in scored]), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["lstm full", "window", "kneser_ney", "mixture"])
def test_temperature_is_that_of_one_at_a_time(kind: str) -> None:
    model, texts, method = make(kind), texts_of(12, most=20), Static(0.7)
    for ids, log_probs in score_batches(model, WORDS, texts, method=method, batch_tokens=64):
        np.testing.assert_allclose(log_probs, alone(model, ids, method), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["elman tied", "gru full", "lstm full", "lstm adaptive", "window"])
def test_in_bfloat16_the_numbers_are_near(kind: str) -> None:
    model, texts = make(kind), texts_of(20, most=20)
    exact = np.concatenate([log_probs for _, log_probs in score_batches(model, WORDS, texts)])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = np.concatenate([log_probs for _, log_probs in score_batches(model, WORDS, texts)])
    assert 0 < np.abs(rounded - exact).mean() < 0.02


def test_score_text_says_the_same_of_independent_lines_and_of_the_whole() -> None:
    model = make("lstm full", StatePolicy.line)
    text = "w1 w2 w3\n\nw4 nobody\n" + "w5 " * 50 + "\nw6"
    results = []
    for independent in (False, True):
        lines: list[object] = []
        bill = score_text(model, WORDS, [text[:9], text[9:]], on_line=lines.append, independent=independent, per_token=True)
        results.append((bill, lines))
    (slow, slow_lines), (fast, fast_lines) = results
    assert fast.total_nats == pytest.approx(slow.total_nats, rel=1e-6)
    assert (fast.num_tokens, fast.num_unk, fast.num_chars) == (slow.num_tokens, slow.num_unk, slow.num_chars)
    assert [line.number for line in fast_lines] == [1, 2, 3, 4, 5]  # type: ignore[attr-defined]
    for one, other in zip(slow_lines, fast_lines, strict=True):
        assert other.total_nats == pytest.approx(one.total_nats, rel=1e-6)  # type: ignore[attr-defined]
        assert [token.text for token in other.tokens] == [token.text for token in one.tokens]  # type: ignore[attr-defined]


def test_each_line_is_answered_before_the_next_one_is_asked_for() -> None:
    model = make("gru full", StatePolicy.line)
    for independent in (False, True):
        answered: list[object] = []

        def blocks(answered: list[object] = answered) -> object:
            for number in range(5):
                assert len(answered) == number
                yield f"w{number} w3\n"

        score_text(model, WORDS, blocks(), on_line=answered.append, independent=independent, at_once=True)  # type: ignore[arg-type]


class Uniform(LanguageModel):
    vocab_size, state_policy, longest, widest = 256, StatePolicy.line, 0, 0

    def initial_state(self, batch_size):
        return ()

    def log_probs(self, tokens_TB, state):
        raise AssertionError("scoring needs the targets alone")

    def target_log_probs(self, tokens_TB, targets_TB, state):
        self.longest, self.widest = max(self.longest, tokens_TB.numel()), max(self.widest, tokens_TB.shape[1])
        return torch.full(tokens_TB.shape, -math.log(256)), state


def test_neither_a_long_line_nor_many_lines_are_read_at_once() -> None:
    model, numbers = Uniform(), []
    blocks = ["x" * 99_999 + "\n" * (part % 10 == 9) for part in range(20)]  # two lines of a million characters
    blocks += ["ab\n" * 5_000, "\n" * 20_000]
    bill = score_text(
        model, ByteTokenizer(), blocks, on_line=lambda line: numbers.append(line.num_tokens), independent=True
    )  # fmt: skip
    assert numbers == [999_991, 999_991, *[3] * 5_000, *[1] * 20_000]
    assert bill.bits_per_byte == pytest.approx(8)
    assert model.longest <= batch.BATCH_TOKENS
    assert model.widest == batch.BATCH_TOKENS


def test_texts_may_be_empty_and_hold_several_lines() -> None:
    model = make("lstm full")
    texts = ["w1 w2\nw3", "", "\n\n", "w4 nobody", ""]
    scored = list(score_texts(model, WORDS, iter(texts), per_token=True))
    assert [(text.number, text.num_tokens, text.num_unk) for text in scored] == [
        (1, 5, 0), (2, 1, 0), (3, 2, 0), (4, 3, 1), (5, 1, 0),
    ]  # fmt: skip
    assert [token.text for token in scored[0].tokens or ()] == ["w1", "w2", "<eos>", "w3", "<eos>"]
    (empty, other) = score_texts(Uniform(), ByteTokenizer(), ["", "ab"])
    assert (empty.total_nats, empty.num_tokens, other.num_tokens) == (0.0, 0, 2)
    assert list(score_texts(model, WORDS, [])) == []
    literal, ended = score_texts(model, WORDS, ["w2 <eos> w3", "w2\nw3"])
    assert (literal.total_nats, literal.num_tokens) == (ended.total_nats, 4)


def test_a_model_that_has_diverged_is_refused() -> None:
    model = make("lstm full")
    with torch.no_grad():
        model.head.bias_V[3] = math.nan  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="non-finite weights"):
        list(score_batches(model, WORDS, texts_of(4, most=5)))


def test_a_batch_is_as_wide_as_its_longest_text_allows() -> None:
    seen = []

    class Recorder(Uniform):
        vocab_size = V

        def target_log_probs(self, tokens_TB, targets_TB, state):
            seen.append(tuple(tokens_TB.shape))
            return super().target_log_probs(tokens_TB, targets_TB, state)

    texts = [np.ones(length, np.int32) for length in (3, 9, 4, 3, 3, 8)]
    list(score_batches(Recorder(), WORDS, texts, batch_tokens=20))
    assert seen == [(9, 2), (4, 4)], "sorted by length, filled up to the longest of a batch"
    assert all(before[0] >= after[0] for before, after in pairwise(seen))
