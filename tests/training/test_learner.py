"""One step of learning: which gradients it takes, and what it carries on."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.batches import Position
from lmtrain.data.stream import Stream
from lmtrain.models.base import NeuralLanguageModel, detach
from lmtrain.training.averaging import LastWeights
from lmtrain.training.learner import Known, SequenceLearner
from lmtrain.training.schedule import Constant, Progress

V, EOS, BATCH = 11, 0, 3
FAMILIES: dict[str, config.NeuralConfig] = {
    "elman": config.RecurrentConfig(cell=config.Cell.elman, embed_size=4, hidden_size=5, num_layers=2),
    "gru": config.RecurrentConfig(cell=config.Cell.gru, embed_size=4, hidden_size=5),
    "lstm": config.RecurrentConfig(embed_size=4, hidden_size=5, num_layers=2, projection_size=3),
    "window": config.WindowConfig(context=3, embed_size=4, hidden_size=5, num_averages=2, average_span=3),
    "direct": config.RecurrentConfig(embed_size=4, hidden_size=5, maxent_order=3, maxent_table=1024),
}
NOW = Progress(step=0, epoch=0.0, fraction=0.0)


def make_model(family: str) -> NeuralLanguageModel:
    model = build_model(FAMILIES[family], vocab_size=V, eos_id=EOS, seed=2)
    assert isinstance(model, NeuralLanguageModel)
    return model.double()


def make_learner(model: NeuralLanguageModel, overlap: int, **rest: Any) -> SequenceLearner:
    return SequenceLearner(
        model=model, optimizer=torch.optim.SGD(model.named_parameters(), lr=0.0), schedule=Constant(), averaging=LastWeights(),
        generator=torch.Generator().manual_seed(1), learning_rate=0.0, overlap=overlap, **rest,
    )  # fmt: skip


def make_stream(chunk_length: int, **rest: Any) -> Stream:
    ids = np.random.default_rng(4).integers(0, V, 3 * 43).astype(np.uint16)
    return Stream(ids, batch_size=BATCH, chunk_length=chunk_length, eos_id=EOS, random_offset=False, **rest)


def gradients_by_hand(model: NeuralLanguageModel, stream: Stream, overlap: int) -> Iterator[list[Tensor]]:
    """BPTT(h; h') of Williams and Peng (1990) with h' new steps and h = h' + overlap, for every chunk of the first epoch.

    All that was read before is read anew, without gradients up to the place where they end.
    """
    read_TB = torch.empty(0, BATCH, dtype=torch.long)
    for index in range(stream.num_batches(0)):
        chunk = stream.batch(Position(0, index))
        place = max(0, len(read_TB) - overlap)
        read_TB = torch.cat([read_TB, chunk.inputs_TB])
        state = model.initial_state(BATCH)
        if place:
            _, state = model.activations(read_TB[:place], state)
        features_TBD, _ = model.features(read_TB[place:], detach(state))
        nats = model.head.loss(features_TBD[-len(chunk.targets_TB) :], chunk.targets_TB)
        gradients = torch.autograd.grad(nats / chunk.targets_TB.numel(), [*model.parameters()])
        yield [gradient.to_dense() for gradient in gradients]


LENGTHS = [(5, 5), (12, 5), (4, 1), (34, 1), (7, 3), (2, 5), (0, 4)]  # the overlap, and of the chunks
CASES = list(itertools.product(FAMILIES, LENGTHS, (False, True)))


@pytest.mark.parametrize(  # ordinarily all lengths for one family, and two for the others
    ("family", "overlap", "chunk_length", "random_lengths"),
    [
        pytest.param(
            family, *lengths, is_random,
            marks=[] if family == "lstm" or (lengths, is_random) in (((12, 5), True), ((4, 1), False)) else [pytest.mark.slow],
        )
        for family, lengths, is_random in CASES
    ],
)  # fmt: skip
def test_gradients_are_those_of_bptt_made_by_hand(family: str, overlap: int, chunk_length: int, random_lengths: bool) -> None:
    """Also where the epoch's first chunk is no longer than the overlap, or shorter than what gradients reach back over."""
    model = make_model(family)
    stream = make_stream(chunk_length, random_chunk_length=random_lengths, seed=5)
    learner, position = make_learner(model, overlap), Position()
    for expected in gradients_by_hand(make_model(family), stream, overlap):
        learner.step(stream.batch(position), NOW)
        for (name, weight), want in zip(model.named_parameters(), expected, strict=True):
            assert weight.grad is not None, name
            torch.testing.assert_close(weight.grad.to_dense(), want, rtol=1e-9, atol=1e-12, msg=f"{name} at {position}")
        position = stream.next(position)
    assert position == Position(1, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chunk_that_is_skipped_leaves_no_trace_in_what_is_carried(family: str) -> None:
    stream, model = make_stream(2), make_model(family)
    learner = make_learner(model, overlap=3)
    for index in range(3):
        learner.step(stream.batch(Position(0, index)), NOW)
    state, earlier_TB = learner.state, learner.earlier_TB
    assert earlier_TB is not None
    assert len(earlier_TB) == 3
    broken: Callable[..., Any] = lambda *_: torch.tensor(float("nan"), requires_grad=True)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.head, "loss", broken)
        patch.setattr(torch.optim.SGD, "step", lambda *_: pytest.fail("nothing may be updated"))
        assert not learner.step(stream.batch(Position(0, 3)), NOW).is_finite
    assert learner.state is state
    assert learner.earlier_TB is earlier_TB


@pytest.mark.parametrize("family", FAMILIES)
def test_the_carried_state_is_saved_under_names_and_read_by_the_numbers_of_earlier_versions(family: str) -> None:
    stream = make_stream(5)
    learner = make_learner(make_model(family), overlap=0)
    learner.step(stream.batch(Position(0, 0)), NOW)
    names = [f"state.{name}" for name in learner.model.state_names()]
    tensors = learner.tensors()
    assert [name for name in tensors["training"] if name.startswith("state.")] == names
    assert len(set(names)) == len(names) == len(learner.state)
    earlier = {name: tensor for name, tensor in tensors["training"].items() if name not in names}
    earlier |= {f"state.{number}": tensor for number, tensor in enumerate(learner.state)}
    known = Known(num_steps=1, num_items=15, best_cost=None, batch_size=BATCH)
    for training in (tensors["training"], earlier):
        other = make_learner(make_model(family), overlap=0)
        assert set(other.expected(training, known)[0]["training"]) == set(training)
        other.load({"model": tensors["model"], "training": training}, learner.document())
        assert all(map(torch.equal, other.state, learner.state))
