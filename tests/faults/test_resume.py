"""Exact resuming of every model with every optimiser, schedule, output layer and average, stopped anywhere.

An epoch has ten steps here, so training crosses its end. The ordinary suite tries every choice at least once, the slow part
all models x optimisers x schedules x output layers. (After `kill -9` in a process of its own: tests/commands/test_train.py.)
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODELS = {
    "lstm": ["model=lstm", "model.num_layers=2", "model.zoneout=0.1"],
    "gru": ["model=gru", "model.locked_dropout=true", "model.layer_norm=true"],
    "elman": ["model=elman", "model.weight_drop=0.2", "trainer.backward_length=30"],
    "window": ["model=window", "model.embedding_dropout=0.1", "trainer.random_chunk_length=true"],
}
OPTIMIZERS = {
    "sgd": ["optimizer=sgd", "optimizer.learning_rate=1", "optimizer.momentum=0.9"], "adagrad": ["optimizer=adagrad"],
    "rmsprop": ["optimizer=rmsprop"], "adam": ["optimizer=adam"], "adamw": ["optimizer=adamw"],
    "sparse_adam": ["optimizer=sparse_adam"],
}  # fmt: skip
SCHEDULES = ["constant", "cosine", "linear", "step", "exponential", "plateau", "one_cycle"]
HEADS = ["full", "adaptive", "sampled"]
AVERAGES = [[], ["optimizer.averaging=ema"], ["optimizer.averaging=nt_asgd", "optimizer.patience=1"]]
STOPS = [2, 3, 7, 10, 11, 12, 14]  # the step before which training is interrupted; 11 is the first of the second epoch
ALL = list(itertools.product(MODELS, OPTIMIZERS, SCHEDULES, HEADS))
FEW = [
    (list(MODELS)[i % 4], list(OPTIMIZERS)[i % 6], SCHEDULES[i], HEADS[i % 3]) for i in range(len(SCHEDULES))
]  # fmt: skip
SETTINGS = [
    "tokenizer=word", "model.cutoffs=[3,6]", "model.num_samples=5", "model.dropout=0.3", "trainer.batch_size=4",
    "trainer.chunk_length=16", "trainer.num_steps=14", "trainer.log_every=1", "trainer.save_every=4",
    "trainer.evaluate_every=3", "trainer.sample_tokens=0",
]  # fmt: skip


def name(combination: tuple[str, ...]) -> str:
    return "-".join(combination)


MANY = [combination for combination in ALL if combination not in FEW]


@pytest.mark.parametrize(
    "combination",
    [pytest.param(c, id=name(c)) for c in FEW] + [pytest.param(c, id=name(c), marks=pytest.mark.slow) for c in MANY],
)
def test_a_resumed_training_ends_bit_for_bit_like_the_uninterrupted_one(
    combination: tuple[str, str, str, str], place: Path, call: Callable[..., Any], at_step: Callable[..., None],
    assert_same_end: Callable[..., None],
) -> None:  # fmt: skip
    number = ALL.index(combination)
    model, optimizer, schedule, head = combination
    settings = [*SETTINGS, *MODELS[model], *OPTIMIZERS[optimizer], f"schedule={schedule}", f"model.head={head}",
                *AVERAGES[number % 3]]  # fmt: skip
    assert call("TRAIN", *settings, "hydra.run.dir=whole").code == 0

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    at_step({STOPS[number % len(STOPS)]: interrupt})
    assert call("TRAIN", *settings, "hydra.run.dir=cut").code == 130
    at_step({})
    assert call("resume=cut").code == 0
    assert_same_end(place / "cut", place / "whole")


@pytest.mark.parametrize(
    "settings", [["model.tie_weights=true", "model.embed_size=8"], ["model.head=sampled", "model.num_samples=3"]]
)
def test_a_vocabulary_larger_than_a_chunk_resumes_exactly_with_sparse_gradients(
    settings: list[str], place: Path, call: Callable[..., Any], at_step: Callable[..., None],
    assert_same_end: Callable[..., None],
) -> None:  # fmt: skip
    settings = [*SETTINGS, *settings, "trainer.batch_size=2", "trainer.chunk_length=3"]

    def interrupt(learner: Any) -> None:
        assert learner.model.embedding.sparse
        raise KeyboardInterrupt

    assert call("TRAIN", *settings, "hydra.run.dir=whole").code == 0
    at_step({9: interrupt})
    assert call("TRAIN", *settings, "hydra.run.dir=cut").code == 130
    at_step({})
    assert call("resume=cut").code == 0
    assert_same_end(place / "cut", place / "whole")


def test_the_few_hold_every_choice() -> None:
    for position, choices in enumerate((MODELS, OPTIMIZERS, SCHEDULES, HEADS)):
        assert {combination[position] for combination in FEW} == set(choices)
    assert {ALL.index(combination) % 3 for combination in FEW} == {0, 1, 2}, "and every average"
