"""Adaptation while predicting: the formulas, no peeking, normalised, and the weights back afterwards."""

import copy
import math

import numpy as np
import pytest
import torch

from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import WordTokenizer
from lmtrain.errors import SettingsError
from lmtrain.inference.dynamic import Adaptive, Cache, Dynamic, gradient_rms
from lmtrain.inference.evaluate import STATIC, Static, evaluate, iter_target_log_probs
from lmtrain.inference.score import score_text
from lmtrain.models.direct import DirectNgramModel
from lmtrain.models.heads import FullSoftmax
from lmtrain.models.mixture import Mixture
from lmtrain.models.window import WindowLanguageModel

TEXT = np.array([1, 2, 0, 3, 1, 2, 4, 1, 2, 0, 3, 3, 1])
CACHE = Cache(window=4, theta=0.7, weight=0.3)
RMS = {
    "head.linear.weight": 0.5, "head.linear.bias": 0.1, "embedding.weight": 0.3, "recurrent.weight": 0.2,
    "recurrent.bias": 0.05, "unused": 0.01,
}  # fmt: skip


WORDS = WordTokenizer(["<eos>", "to", "be", "or", "<unk>"])


def judged(model, ids, **options):
    return evaluate(model, EncodedText(ids, 20, 25), WORDS, **options)


def rms_of(model):
    generator = torch.Generator().manual_seed(5)
    return {
        name: RMS[name] * torch.rand(weight.shape, generator=generator, dtype=weight.dtype)
        for name, weight in model.named_parameters()
    }


def methods(model):
    sgd = Dynamic(rate=0.5, decay=0.1, segment_length=3)
    rms = Dynamic(rate=0.05, decay=0.1, segment_length=3, rms=rms_of(model))
    return {
        "sgd": Adaptive(dynamic=sgd),
        "rms": Adaptive(dynamic=rms),
        "cache": Adaptive(cache=CACHE),
        "all": Adaptive(dynamic=rms, cache=CACHE, temperature=1.3),
        "temperature": Adaptive(temperature=0.7),
    }


NAMES = ["sgd", "rms", "cache", "all", "temperature"]


def log_probs(model, text, method, num_streams=1, chunk_length=None):
    result = np.full(len(text), np.nan)
    chunks = iter_target_log_probs(model, text, eos_id=0, method=method, num_streams=num_streams, chunk_length=chunk_length)
    for scored in chunks:
        assert np.isnan(result[scored.positions]).all()
        result[scored.positions] = scored.log_probs
    return result


@pytest.mark.parametrize(("name", "num_streams"), [*((name, 1) for name in NAMES), ("cache", 3), ("temperature", 3)])
def test_what_each_token_could_have_been_sums_to_one_so_nothing_peeks(recurrent, name, num_streams):
    method = methods(recurrent)[name]
    for position in range(len(TEXT)):
        alternatives = np.tile(TEXT, (5, 1))
        alternatives[:, position] = range(5)
        total = sum(math.exp(log_probs(recurrent, text, method, num_streams)[position]) for text in alternatives)
        assert total == pytest.approx(1, rel=1e-12), f"position {position}"


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_is_scored_the_same_whatever_follows(recurrent, name):
    method = methods(recurrent)[name]
    whole = log_probs(recurrent, TEXT, method)
    for length in range(1, len(TEXT)):
        np.testing.assert_allclose(log_probs(recurrent, TEXT[:length], method), whole[:length], rtol=1e-12)


def reference_dynamic(model, text, dynamic, rms=None):
    """Krause et al. 2018, segment by segment, on a copy of the model."""
    model = copy.deepcopy(model).eval()
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    state, previous, result = model.initial_state(1), 0, []
    for start in range(0, len(text), dynamic.segment_length):
        targets = torch.tensor(text[start : start + dynamic.segment_length])[:, None]
        inputs = torch.cat([torch.tensor([[previous]]), targets[:-1]])
        previous = int(targets[-1, 0])
        values, state = model.target_log_probs(inputs, targets, tuple(tensor.detach() for tensor in state))
        result += values[:, 0].tolist()
        model.zero_grad()
        (-values).mean().backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                if rms is None:
                    weight += dynamic.decay * (trained[name] - weight) - dynamic.rate * gradient
                else:
                    mean = sum(tensor.mean() for tensor in rms.values()) / len(rms)
                    pull = torch.minimum(dynamic.decay * rms[name] / mean, torch.ones(()))
                    weight += pull * (trained[name] - weight) - dynamic.rate * gradient / (rms[name] + dynamic.epsilon)
    return result


@pytest.mark.parametrize("segment_length", [1, 3, 5, 100])
@pytest.mark.parametrize("rule", ["sgd", "rms"])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.9])
def test_dynamic_evaluation_follows_the_published_rule(recurrent, rule, segment_length, decay):
    rms = rms_of(recurrent) if rule == "rms" else None
    dynamic = Dynamic(rate=0.05, decay=decay, segment_length=segment_length, rms=rms)
    expected = reference_dynamic(recurrent, TEXT, dynamic, rms)
    np.testing.assert_allclose(log_probs(recurrent, TEXT, Adaptive(dynamic=dynamic)), expected, rtol=1e-11)


def test_gradient_rms_is_the_root_mean_square_over_segments(recurrent):
    found = gradient_rms(recurrent, TEXT, eos_id=0, num_streams=2, segment_length=4)
    # Two streams of 7 and 6 tokens: segments of 2x4, 2x2 and the last token of the first stream.
    targets_TB = torch.tensor([[*TEXT[:6]], [*TEXT[7:13]]]).T
    inputs_TB = torch.tensor([[0, *TEXT[:5]], [*TEXT[6:12]]]).T
    pieces = [(inputs_TB[:4], targets_TB[:4]), (inputs_TB[4:], targets_TB[4:])]
    pieces.append((targets_TB[5:, :1], torch.tensor([[TEXT[6]]])))
    model, squares = copy.deepcopy(recurrent).eval(), dict.fromkeys(found, 0.0)
    state = model.initial_state(2)
    for tokens, targets in pieces:
        state = tuple(tensor[: tokens.shape[1]].detach() for tensor in state)
        values, state = model.target_log_probs(tokens, targets, state)
        model.zero_grad()
        values.mean().backward()
        for name, weight in model.named_parameters():
            squares[name] = squares[name] + (0 if weight.grad is None else weight.grad**2)
    for name, value in found.items():
        expected = (torch.as_tensor(squares[name]) / 3).sqrt().expand_as(value)
        torch.testing.assert_close(value, expected.to(value), rtol=1e-12, atol=1e-15, msg=name)


def with_cache(own, hidden, text, cache):
    """Grave et al. 2017 with loops: of the model's own probabilities [T, V] those of the text, with the cache mixed in."""
    result = []
    for t, target in enumerate(text):
        looked_at = range(max(0, t - cache.window), t)
        mass = [math.exp(cache.theta * (hidden[t] @ hidden[i]).item()) for i in looked_at]
        matching = sum(m for m, i in zip(mass, looked_at, strict=True) if text[i] == target)
        mixed = (1 - cache.weight) * own[t, target].item() + cache.weight * matching / sum(mass) if mass else own[t, target]
        result.append(float(mixed))
    return result


def reference_cache(model, text, cache):
    model = copy.deepcopy(model).eval()
    inputs = torch.tensor([0, *text[:-1]])[:, None]
    with torch.no_grad():
        features, _ = model.features(inputs, model.initial_state(1))
        own = model.head.log_probs(features)[:, 0].exp()
    return np.log(with_cache(own, features[:, 0], text, cache))


@pytest.mark.parametrize("chunk_length", [1, 2, 5, 100])
@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("theta", [0.0, 0.7])
def test_cache_follows_the_published_formula_however_the_text_is_cut(recurrent, window, theta, chunk_length):
    cache = Cache(window=window, theta=theta, weight=0.3)
    found = log_probs(recurrent, TEXT, Adaptive(cache=cache), chunk_length=chunk_length)
    np.testing.assert_allclose(found, reference_cache(recurrent, TEXT, cache), rtol=1e-11)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_cache_looks_at_the_hidden_layer_alone_where_ngrams_are_hashed(is_mixed):
    torch.manual_seed(4)
    inner = WindowLanguageModel(
        head=FullSoftmax(3, 5), embedding=torch.nn.Embedding(5, 4), context=2, hidden_size=3, num_layers=1, activation="tanh",
        eos_id=0,
    )  # fmt: skip
    model = DirectNgramModel(inner, order=3, table_size=50).double().eval()
    torch.nn.init.normal_(model.head.table)
    cache, inputs = Cache(window=4, theta=0.7, weight=0.3), torch.tensor([0, *TEXT[:-1]])[:, None]
    with torch.no_grad():
        hidden = inner.features(inputs, inner.initial_state(1))[0][:, 0]
        own = model.log_probs(inputs, model.initial_state(1))[0][:, 0].exp()
    expected = np.log(with_cache(own, hidden, TEXT, cache))
    whole = Mixture([model, model], [0.5, 0.5]) if is_mixed else model
    np.testing.assert_allclose(log_probs(whole, TEXT, Adaptive(cache=cache), chunk_length=5), expected, rtol=1e-11)


def test_cache_of_weight_zero_and_steps_of_size_zero_change_nothing(recurrent):
    static = log_probs(recurrent, TEXT, Static())
    for method in (Adaptive(cache=Cache(weight=0.0)), Adaptive(dynamic=Dynamic(rate=0.0, segment_length=4)), Adaptive()):
        np.testing.assert_allclose(log_probs(recurrent, TEXT, method), static, rtol=1e-12)


def test_each_stream_has_a_cache_of_its_own(recurrent):
    method = Adaptive(cache=CACHE)
    together = log_probs(recurrent, TEXT, method, num_streams=2)
    np.testing.assert_allclose(together[:7], log_probs(recurrent, TEXT[:7], method), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_weights_modes_and_gradients_are_afterwards_as_they_were(recurrent, name):
    before = copy.deepcopy(recurrent.state_dict())
    judged(recurrent, TEXT, method=methods(recurrent)[name])
    assert recurrent.training
    for key, value in recurrent.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(weight.grad is None for weight in recurrent.parameters())


def test_weights_are_restored_where_evaluation_is_interrupted(recurrent):
    before = copy.deepcopy(recurrent.state_dict())

    def interrupt(num_tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(recurrent, TEXT, method=methods(recurrent)["sgd"], progress=interrupt)
    for key, value in recurrent.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_adaptation_helps_on_a_text_that_repeats_itself(recurrent):
    text = np.tile(TEXT, 10)
    static = judged(recurrent, text).perplexity
    for name in ("sgd", "rms", "cache"):
        adapted = judged(recurrent, text, method=methods(recurrent)[name]).perplexity
        assert adapted < static, f"{name}: {adapted:.3f}, static {static:.3f}"


def test_score_adapts_exactly_as_evaluate_does(recurrent):
    text = WORDS.decode(TEXT) + "\n"
    encoded = EncodedText(WORDS.encode(text), len(text), len(text))
    for method in methods(recurrent).values():
        bill = score_text(recurrent, WORDS, [text], method=method)
        assert bill == evaluate(recurrent, encoded, WORDS, method=method)


def test_bill_names_the_method_with_all_its_numbers(recurrent):
    method = Adaptive(dynamic=Dynamic(rate=1e-4, decay=0.008, rms=rms_of(recurrent)), cache=Cache(), temperature=0.95)
    assert judged(recurrent, TEXT, method=method).method == (
        "dynamic evaluation (rms, epsilon 0.001, rate 0.0001, decay 0.008, segments of 20) + "
        "cache (window 2000, theta 0.66, weight 0.13) + temperature 0.95"
    )
    assert Adaptive(dynamic=Dynamic(rate=0.5)).label == "dynamic evaluation (sgd, rate 0.5, decay 0, segments of 20)"
    assert Adaptive(temperature=0.7).label == Static(0.7).label


def test_dynamic_evaluation_of_several_streams_is_refused_because_it_would_peek(recurrent):
    with pytest.raises(SettingsError, match=r"given 2 streams\. It takes 1,.*num_streams=1"):
        judged(recurrent, TEXT, num_streams=2, method=methods(recurrent)["sgd"])


def test_models_without_features_are_refused(table):
    with pytest.raises(SettingsError, match=r"a model of counted n-grams does not have\. They work with every neural model"):
        judged(table, TEXT, method=Adaptive(cache=CACHE))


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        (lambda: Cache(window=0), "window is 0"),
        (lambda: Cache(theta=-1.0), "theta is -1.0"),
        (lambda: Cache(weight=1.0), "weight is 1.0"),
        (lambda: Dynamic(rate=math.nan), "rate is nan"),
        (lambda: Dynamic(rate=0.1, decay=1.5), "decay is 1.5"),
        (lambda: Dynamic(rate=0.1, segment_length=0), "segment_length is 0"),
        (lambda: Dynamic(rate=0.1, epsilon=0.0), "epsilon is 0.0"),
        (lambda: Adaptive(temperature=0.0), "temperature is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, given):
    with pytest.raises(SettingsError, match=given):
        settings()


def test_in_a_mixture_the_neural_model_adapts_and_the_other_predicts_as_always(recurrent, table):
    mixture = Mixture([recurrent, table], [0.3, 0.7])
    method = methods(recurrent)["sgd"]
    parts = [
        np.concatenate([scored.log_probs.ravel() for scored in iter_target_log_probs(model, TEXT, eos_id=0, method=own)])
        for model, own in ((recurrent, method), (table, STATIC))
    ]
    expected = -np.logaddexp(parts[0] + np.log(0.3), parts[1] + np.log(0.7)).sum()
    bill = judged(mixture, TEXT, method=method)
    assert bill.total_nats == pytest.approx(expected, rel=1e-12)
    assert bill.total_nats != judged(mixture, TEXT).total_nats


def test_what_was_learnt_is_read_in_bfloat16_too(recurrent):
    """An autocast keeps copies of weights, which are older than what dynamic evaluation has learnt."""
    model = copy.deepcopy(recurrent).float()
    method, text = Adaptive(dynamic=Dynamic(rate=1.0, decay=0.002, segment_length=3)), np.tile(TEXT[:4], 20)
    exact = judged(model, text, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        static, rounded = judged(model, text), judged(model, text, method=method)
        again = judged(model, text)
    assert exact.total_nats < 0.8 * static.total_nats
    assert rounded.total_nats == pytest.approx(exact.total_nats, rel=0.05)
    assert again.total_nats == static.total_nats  # the weights are back


def test_frozen_weights_are_refused_in_words(recurrent):
    with pytest.raises(ValueError, match=r"frozen; call requires_grad_\(True\)"):
        judged(copy.deepcopy(recurrent).requires_grad_(False), TEXT, method=Adaptive(dynamic=Dynamic(rate=0.1)))
