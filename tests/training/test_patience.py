"""`trainer.patience`: training ends when it comes no further, says so, and goes on with more patience."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.run_record import read_run
from lmtrain.training.state import TrainState, _renamed

Call = Callable[..., Any]
WORSE = ["trainer.num_steps=40", "trainer.evaluate_every=1", "optimizer=sgd", "optimizer.learning_rate=50"]


def state_of(run: Path) -> dict[str, Any]:
    return load_checkpoint(find_checkpoint(run, "last"), names=("training",)).documents["training"]["state"]


def test_training_ends_after_so_many_evaluations_without_improvement(place: Path, call: Call) -> None:
    ended = call("TRAIN", *WORSE, "trainer.patience=3", "hydra.run.dir=a")
    assert ended.code == 0, ended.err
    records = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    values = [record["val/nats_per_token"] for record in records if "val/nats_per_token" in record]
    assert len(values) < 40
    assert values.index(min(values)) == len(values) - 4, "the best one, and three behind it"
    session = json.loads(Path("a/run.json").read_text())["sessions"][-1]
    assert session["exit_reason"] == "no improvement in 3 evaluations (trainer.patience=3)"
    assert (
        "Training ended at trainer.patience=3. To go on from there:\n  python -m lmtrain resume=a trainer.patience=6"
        in ended.out
    )
    assert read_run(Path("a")).status == "finished"
    again = call("resume=a")
    assert "Nothing is left to train: Training ended at trainer.patience=3" in again.err + again.out
    assert state_of(Path("a"))["step"] == len(values), "not a step further"
    call("resume=a", "trainer.patience=5")
    assert state_of(Path("a"))["step"] >= len(values) + 2


def test_it_is_no_progress_and_moves_no_schedule(place: Path, call: Call) -> None:
    """A run with patience that it does not use up is the one without, but for the setting."""
    for patience in ("null", "30"):
        assert call("TRAIN", "trainer.evaluate_every=1", f"trainer.patience={patience}", f"hydra.run.dir=p{patience}").code == 0
    first, second = (load_checkpoint(find_checkpoint(Path(name), "last")) for name in ("pnull", "p30"))
    assert all(tensor.equal(second.tensors["model"][name]) for name, tensor in first.tensors["model"].items())
    rates = [[json.loads(line).get("optim/learning_rate") for line in Path(n, "metrics.jsonl").read_text().splitlines()]
             for n in ("pnull", "p30")]  # fmt: skip
    assert rates[0] == rates[1]


@pytest.mark.parametrize("lacks", ["num_stale", "trainer.patience"])
def test_a_run_of_an_earlier_version_goes_on_and_counts_from_there(lacks: str, place: Path, call: Call) -> None:
    if lacks == "num_stale":
        document = TrainState(learner=_Learner(), num_stale=2).document()  # type: ignore[arg-type]
        del document["num_stale"]
        assert _renamed(document)["num_stale"] == 0
    else:
        settings = json.loads(Path("run/settings.json").read_text())
        del settings["trainer"]["patience"]
        Path("run/settings.json").write_text(json.dumps(settings))
        assert call("resume=run", "trainer.patience=2", "trainer.num_steps=8").code == 0
        assert json.loads(Path("run/settings.json").read_text())["trainer"]["patience"] == 2


class _Learner:
    def document(self) -> dict[str, Any]:
        return {}
