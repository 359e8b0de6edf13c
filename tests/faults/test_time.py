"""Time: `trainer.max_seconds` limits that of training, and what evaluations add to it stands apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain.tasks.language as language
import lmtrain.training.loop as loop
import lmtrain.training.session as session
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from lmtrain.training.learner import SequenceLearner

Call = Callable[..., Any]
BY_TIME = ["trainer.max_seconds=6", "trainer.num_steps=null", "trainer.evaluate_every=2"]


class Clock:
    """A time that moves when it is told to, in the place of `RunningTime`."""

    now = 0.0

    def __enter__(self) -> Callable[[], float]:
        return lambda: Clock.now

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    """A step takes one second, an evaluation ten, a checkpoint a hundred."""

    def slow(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*arguments: Any, **options: Any) -> Any:
            Clock.now += seconds
            return work(*arguments, **options)

        return slowed

    Clock.now = 0.0
    for module in (loop, session):
        monkeypatch.setattr(module, "RunningTime", Clock)
    monkeypatch.setattr(SequenceLearner, "step", slow(1, SequenceLearner.step))
    monkeypatch.setattr(language.Language, "score", slow(10, language.Language.score))
    monkeypatch.setattr("lmtrain.commands.saver.save_checkpoint", slow(100, save_checkpoint))
    return Clock


def state_of(run: str) -> dict[str, Any]:
    return load_checkpoint(find_checkpoint(run, "last")).documents["training"]["state"]


def rates_of(run: str) -> list[float]:
    records = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [record["optim/learning_rate"] for record in records if "optim/learning_rate" in record]


def test_the_limit_and_the_schedule_go_by_the_time_of_training(clock: Clock, place: Path, call: Call) -> None:
    ended = call("TRAIN", *BY_TIME, "trainer.log_every=1", "schedule=linear", "schedule.warmup=0", "hydra.run.dir=a")
    assert ended.code == 0, ended.err
    results = json.loads(Path("a/run.json").read_text())["sessions"][-1]["results"]
    assert (results["num_steps"], results["seconds"], results["evaluation_seconds"]) == (6, 6, 330)
    assert "The run took 6 seconds of training and 6 minutes of evaluation, samples and saving." in ended.out
    first = rates_of("a")[0]
    assert rates_of("a") == pytest.approx([first * (1 - done / 6) for done in range(6)])


def test_a_run_goes_on_with_the_time_that_it_had(clock: Clock, place: Path, call: Call) -> None:
    assert call("TRAIN", *BY_TIME, "hydra.run.dir=a").code == 0
    assert call("resume=a", "trainer.max_seconds=8").code == 0
    assert (state_of("a")["step"], state_of("a")["elapsed_seconds"]) == (8, 8)
    assert state_of("a")["evaluation_seconds"] == 240, "its last checkpoint does not know what itself took"


def as_saved_before(run: str) -> None:
    """The newest checkpoint again, as earlier versions wrote it."""
    checkpoint = load_checkpoint(find_checkpoint(run, "last"))
    state = checkpoint.documents["training"]["state"]
    state["elapsed_seconds"] += state.pop("evaluation_seconds")
    assert state.pop("includes_evaluation") is False
    save_checkpoint(Path(run), checkpoint.step, checkpoint.tensors, checkpoint.documents)


def test_a_run_of_an_earlier_version_keeps_the_meaning_of_its_limit(clock: Clock, place: Path, call: Call) -> None:
    assert call("TRAIN", *BY_TIME, "hydra.run.dir=a").code == 0
    as_saved_before("a")
    before = state_of("a")["elapsed_seconds"]
    assert before == 236, "6 seconds of training, three evaluations, and two checkpoints before the last"
    ended = call("resume=a", "trainer.max_seconds=450")
    assert "An earlier version began this run: its trainer.max_seconds limits the time of its evaluations, too." in ended.out
    assert ended.code == 0, ended.err
    state = state_of("a")
    assert state["step"] == 10, "two steps, 110 seconds, two steps, 110 seconds"
    assert state["elapsed_seconds"] >= 450
    assert state["includes_evaluation"]
    assert call("resume=a", "trainer.max_seconds=1000").code == 0
    assert state_of("a")["includes_evaluation"], "for ever"


def test_training_that_went_back_has_not_got_its_time_back(
    clock: Clock, place: Path, call: Call, at_step: Callable[..., None]
) -> None:
    spoilt: list[int] = []

    def spoil(learner: SequenceLearner) -> None:
        if not spoilt:
            spoilt.append(1)
            next(learner.model.parameters()).data.fill_(float("nan"))

    at_step({4: spoil})
    ended = call("TRAIN", *BY_TIME, "trainer.on_nonfinite=rollback", "hydra.run.dir=a")
    assert ended.code == 0, ended.err
    assert state_of("a")["elapsed_seconds"] == 6
    assert state_of("a")["step"] < 6
