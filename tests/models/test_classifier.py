"""Classifiers of texts: what they compute, what they leave out in training, and texts without a word."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from lmtrain.models.classifier import (
    AveragingClassifier,
    ClassifierNetwork,
    CountedClassifier,
    EncoderClassifier,
    IndicatorClassifier,
    Texts,
    kept_words,
    pool,
)
from lmtrain.models.recurrent import CELLS

V, E, C = 6, 4, 3


def embedding(sparse: bool = False) -> nn.Embedding:
    return nn.Embedding(V, E, sparse=sparse, _weight=torch.randn(V, E, generator=Generator().manual_seed(1)))


def encoder(cell: str, pooling: str) -> EncoderClassifier:
    return EncoderClassifier(C, embedding(), [CELLS[cell](E, 5), CELLS[cell](5, 5)], pooling=pooling, dropout=0.2)


MODELS: dict[str, Callable[[], ClassifierNetwork]] = {
    "nbow": lambda: AveragingClassifier(C, embedding(), word_dropout=0.3),
    "dan": lambda: AveragingClassifier(C, embedding(), hidden_sizes=[5, 3], activation="swiglu", dropout=0.3, word_dropout=0.3),
    "learnt": lambda: AveragingClassifier(C, embedding(sparse=True), hidden_sizes=[5], activation="parametric_relu"),
    "indicators": lambda: IndicatorClassifier(C, V),
    **{f"{cell} {pooling}": (lambda c=cell, p=pooling: encoder(c, p)) for cell in CELLS for pooling in ("last", "mean", "max")},
}  # fmt: skip


def texts(*rows: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([word for row in rows for word in row], dtype=torch.int64)
    return ids, torch.tensor([0, *map(len, rows)]).cumsum(0)[:-1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("name", MODELS)
def test_a_text_gets_the_same_scores_alone_and_beside_others_and_never_nan(name: str) -> None:
    model = MODELS[name]().eval()
    rows = [[0, 1, 2], [], [5], [3, 3, 1, 0, 4, 2, 1], []]
    together_NC = model.scores(*texts(*rows))
    assert torch.isfinite(together_NC).all()
    for row, scores_C in zip(rows, together_NC, strict=True):
        assert_close(model.scores(*texts(row))[0], scores_C)
    assert torch.isfinite(model.scores(*texts([], []))).all(), "no text of a batch has a word"


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns_and_texts_without_a_word_spoil_none(name: str) -> None:
    model = MODELS[name]().train()
    batch = Texts(*texts([0, 1, 2], [], [3, 4], [5, 2, 5, 1]), torch.tensor([0, 1, 2, 0]))
    loss, penalty = model.loss(batch, Generator().manual_seed(1))
    loss.backward()
    assert penalty.item() == 0
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        grad = parameter.grad.to_dense()
        assert torch.isfinite(grad).all()
        assert grad.any() or "recurrent" in parameter_name or parameter_name == "weight_CD", parameter_name


def test_nbow_is_a_softmax_of_the_mean_vector() -> None:
    model = MODELS["nbow"]().eval()
    assert isinstance(model, AveragingClassifier)
    mean_E = model.embedding.weight[[1, 1, 4]].mean(0)
    assert_close(model.scores(*texts([1, 1, 4]))[0], model.weight_CD @ mean_E + model.bias_C)
    assert_close(model.scores(*texts([]))[0], model.bias_C.detach())


def test_logistic_regression_starts_undecided_and_adds_weights_up() -> None:
    model = IndicatorClassifier(C, V)
    assert not model.scores(*texts([0, 3])).any()
    with torch.no_grad():
        model.weight_VC.copy_(torch.arange(V * C).view(V, C))
        model.bias_C.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert model.scores(*texts([0, 3], [])).tolist() == [[0 + 9 + 1, 1 + 10 + 2, 2 + 11 + 3], [1, 2, 3]]


@pytest.mark.parametrize("cell", CELLS)
def test_an_encoder_reads_a_text_as_its_recurrence_does(cell: str) -> None:
    model = EncoderClassifier(C, embedding(), [CELLS[cell](E, 5)], pooling="last").eval()
    layer, row = model.layers[0], [3, 0, 5, 1]
    zeros = (torch.zeros(1, 5),) * layer.num_states
    outputs_TBD, _ = layer(model.embedding(torch.tensor(row))[:, None], zeros, None, None)
    states_TD = outputs_TBD[:, 0]
    others = [2, 2, 2, 2, 2, 2, 2]  # a longer text beside it
    for how, expected_D in (("last", states_TD[-1]), ("mean", states_TD.mean(0)), ("max", states_TD.amax(0))):
        model.pooling = how
        assert_close(model.features(*texts(others, row))[1], expected_D)


def test_pooled_states_are_those_that_are_there_and_zero_where_there_are_none() -> None:
    states_TND = torch.tensor([[[-1.0], [7.0]], [[-2.0], [7.0]], [[5.0], [7.0]]])
    is_there_TN = torch.tensor([[True, False], [True, False], [False, False]])
    pooled = {how: pool(states_TND, is_there_TN, how).tolist() for how in ("last", "mean", "max")}
    assert pooled == {"last": [[-2.0], [0.0]], "mean": [[-1.5], [0.0]], "max": [[-1.0], [0.0]]}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=10), st.floats(0.1, 0.999), st.integers(0, 50))
def test_word_dropout_keeps_a_word_of_every_text(sizes: list[int], p: float, seed: int) -> None:
    ids_M, offsets_N = torch.zeros(sum(sizes), dtype=torch.int64), torch.tensor([0, *sizes]).cumsum(0)[:-1]
    keep_M = kept_words(ids_M, offsets_N, p, Generator().manual_seed(seed))
    kept = [part.sum().item() for part in keep_M.split(sizes)]
    assert [count > 0 for count in kept] == [size > 0 for size in sizes]


def test_word_dropout_drops_its_share_in_training_and_nothing_in_evaluation() -> None:
    ids_M, offsets_N = torch.zeros(40000, dtype=torch.int64), torch.arange(0, 40000, 40)
    assert kept_words(ids_M, offsets_N, 0.3, Generator().manual_seed(1)).double().mean().item() == pytest.approx(0.7, abs=0.01)
    model = MODELS["nbow"]()
    batch = texts([0, 1, 2, 3, 4, 5])
    trained = [model.scores(*batch, Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])
    model.eval()
    assert torch.equal(model.scores(*batch), model.scores(*batch, Generator().manual_seed(3)))


def test_naive_bayes_is_that_of_the_textbook_whatever_the_batches_are() -> None:
    """Manning, Raghavan and Schütze (2008), table 13.1: Chinese Beijing Chinese ... -> P(c|d) ~ 0.0003, P(not c|d) ~ 0.0001."""
    words = {"Chinese": 0, "Beijing": 1, "Shanghai": 2, "Macao": 3, "Tokyo": 4, "Japan": 5, "unseen": 6}
    train = ["Chinese Beijing Chinese", "Chinese Chinese Shanghai", "Chinese Macao", "Tokyo Japan Chinese"]
    rows, targets = [[words[word] for word in text.split()] for text in train], [1, 1, 1, 0]
    whole, parts = CountedClassifier(2, 7, add_k=1.0), CountedClassifier(2, 7, add_k=1.0)
    whole.count(Texts(*texts(*rows), torch.tensor(targets)))
    for row, target in zip(rows, targets, strict=True):
        parts.count(Texts(*texts(row), torch.tensor([target])))
    assert torch.equal(whole.counts_VC, parts.counts_VC)
    assert torch.equal(whole.texts_C, parts.texts_C)
    scores_C = whole.scores(*texts([0, 0, 0, 4, 5]))[0]
    expected = [math.log(1 / 4 * (2 / 9) ** 3 * 2 / 9 * 2 / 9), math.log(3 / 4 * (3 / 7) ** 3 / 14 / 14)]
    assert scores_C.tolist() == pytest.approx(expected)
    assert torch.equal(whole.scores(*texts([0, 6]))[0], whole.scores(*texts([0]))[0]), "a word unseen in training says nothing"


def test_the_most_frequent_class_is_that_of_the_texts() -> None:
    model, targets = CountedClassifier(3, 5), [2, 0, 2, 1, 2, 0]
    model.count(Texts(*texts(*[[1]] * 6), torch.tensor(targets)))
    probabilities = model.scores(*texts([4], [])).softmax(-1)
    shares = [Counter(targets)[cls] / 6 for cls in range(3)]
    assert probabilities.tolist() == [pytest.approx(shares)] * 2
