"""What a run leaves on the disk, and what it is said to cost before its first step."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain import machine
from lmtrain.commands import cost
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint

Call = Callable[..., Any]
OFTEN = ["trainer.evaluate_every=2", "trainer.save_every=2"]
WORSE = ["optimizer=sgd", "optimizer.learning_rate=1000", "trainer.evaluate_every=1"]  # the first step is the best one


def steps_in(run: str) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in Path(run, "checkpoints").glob("step-*"))


# ---- checkpoints


@pytest.mark.parametrize("settings", [OFTEN, ["trainer.save_every=3"], ["trainer.evaluate_every=4"]])
def test_no_step_is_saved_twice_where_nothing_differs(settings: list[str], place: Path, call: Call) -> None:
    assert call("TRAIN", *settings, "hydra.run.dir=a").code == 0
    names = [path.name for path in Path("a/checkpoints").glob("step-*")]
    assert len(steps_in("a")) == len(set(steps_in("a"))), "one that was saved before its evaluation goes"
    assert "trainer.save_every=3" in settings or all(re.fullmatch(r"step-\d+", name) for name in names), names
    assert max(steps_in("a")) == 6
    state = load_checkpoint(find_checkpoint(Path("a"), "last")).documents["training"]["state"]
    assert (state["step"], state["evaluated_step"], state["saved_step"]) == (6, 6, 6)
    call("resume=a")
    assert [path.name for path in Path("a/checkpoints").glob("step-*")] == names, "nothing was left to train"


def test_a_signal_behind_a_save_does_not_save_again(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    """The signal comes in step 4, whose end is evaluated, is the best, is saved, and is saved for the signal."""
    at_step({5: lambda _: signal.raise_signal(signal.SIGUSR1)})
    assert call("TRAIN", *OFTEN, "trainer.num_steps=5", "hydra.run.dir=a").code == 0
    assert len(steps_in("a")) == len(set(steps_in("a")))


def test_a_limit_of_time_that_an_evaluation_uses_up_is_used_up_when_the_run_goes_on(place: Path, call: Call) -> None:
    assert (
        call("TRAIN", "trainer.max_seconds=0.2", "trainer.num_steps=null", "trainer.evaluate_every=1", "hydra.run.dir=a").code
        == 0
    )
    steps = steps_in("a")
    assert len(steps) == len(set(steps)), "the best of the last step went with the one that knows the time"
    again = call("resume=a")
    assert "Nothing is left to train" in again.out + again.err
    assert steps_in("a") == steps


@pytest.mark.parametrize(("keep", "left"), [(0, [1]), (1, [1, 6]), (3, [1, 4, 5, 6])])
def test_so_many_stay_besides_the_best_when_the_run_has_ended_well(keep: int, left: list[int], place: Path, call: Call) -> None:
    ended = call("TRAIN", *WORSE, f"trainer.keep={keep}", "hydra.run.dir=a")
    assert ended.code == 0
    assert steps_in("a") == left
    assert find_checkpoint(Path("a"), "best").name == "step-00000001"
    assert find_checkpoint(Path("a"), "last").name == f"step-{left[-1]:08d}"
    assert ended.out.count("resume= goes on from step 1") == (keep == 0)
    assert call("sample", "a", "--max-tokens", "2").code == 0
    assert call("resume=a", "trainer.num_steps=8").code == 0


def test_until_then_two_stay(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    at_step({6: lambda _: signal.raise_signal(signal.SIGTERM)})
    assert call("TRAIN", *WORSE, "trainer.keep=0", "trainer.num_steps=9", "hydra.run.dir=a").code == 143
    assert steps_in("a") == [1, 5, 6], "a run that was stopped has not ended"
    at_step({})
    assert call("resume=a").code == 0
    assert steps_in("a") == [1]


def test_a_run_whose_final_test_fails_keeps_them(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import lmtrain.tasks.language as language

    monkeypatch.setattr(language.Language, "final_score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("TRAIN", *WORSE, "trainer.keep=0", "hydra.run.dir=a")
    assert steps_in("a") == [1, 5, 6]


# ---- what it costs


def test_three_lines_say_before_the_first_step_what_it_costs(place: Path, call: Call) -> None:
    ended = call("TRAIN", "trainer.num_steps=25", "trainer.evaluate_every=10", "hydra.run.dir=a")
    lines = [line for line in ended.out.splitlines() if re.match("Cost|Disk|Time", line)]
    assert lines[0] == ("Cost: 25 steps, about 1,000 tokens (0.481 epochs); 3 evaluations of 116 tokens, and the final test.")
    assert re.fullmatch(
        r"Disk: up to 4 checkpoints of .* kB, .* kB in all; the best and the newest 2 stay \(trainer.keep=2\)\.", lines[1]
    )
    assert lines[2] == "Time: known after 10 steps."
    assert re.fullmatch(r"Time: about \S+ seconds for the 15 steps to come \(\S+ s each\), without evaluations\.", lines[3])
    assert len(lines) == 4
    assert ended.out.index(lines[2]) < ended.out.index("validation:")
    assert "step=" not in ended.out.partition(lines[2])[0]
    records = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    assert sum("val/nats_per_token" in record for record in records) == 3
    again = call("resume=a", "trainer.num_steps=30")
    assert "Cost: 5 steps to come, about 200 tokens" in again.out
    assert not re.search("^Cost", call("resume=a").out, re.MULTILINE), "nothing is left to train"


def test_a_range_test_is_said_to_end_without_a_test_and_keeps_the_checkpoints_that_are_said(place: Path, call: Call) -> None:
    ended = call("TRAIN", "schedule=range_test", "trainer.num_steps=12", "trainer.evaluate_every=4", "trainer.keep=0",
                 "hydra.run.dir=a")  # fmt: skip
    assert "3 evaluations of 116 tokens." in ended.out
    assert "the best alone stays" in ended.out
    assert len(steps_in("a")) == 1


def test_of_a_run_that_ends_by_time_the_steps_are_told_when_they_are_known(place: Path, call: Call) -> None:
    ended = call("TRAIN", "trainer.max_seconds=1", "trainer.num_steps=null", "trainer.evaluate_every=1000", "hydra.run.dir=a")
    assert "Cost: 1 second of training; an evaluation of 116 tokens every 1,000 steps, and the final test." in ended.out
    assert "Time: known after 10 steps, but 1 second at most." in ended.out
    assert re.search(r"Time: about 0\.\d+ seconds for the [\d,]+ steps to come", ended.out)


@pytest.mark.parametrize(
    "settings",
    [["optimizer=sgd"], ["optimizer=rmsprop", "optimizer.momentum=0.5"], ["optimizer=adam", "optimizer.averaging=ema"]],
)  # fmt: skip
def test_the_size_of_a_checkpoint_is_known_beforehand(settings: list[str], place: Path, call: Call) -> None:
    ended = call("TRAIN", *settings, "model.hidden_size=128", "model.embed_size=64", "trainer.num_steps=2", "hydra.run.dir=a")
    told = re.search(r"checkpoints of ([\d.]+) (MB|kB)", ended.out)
    assert told
    expected = float(told[1]) * {"MB": 1e6, "kB": 1e3}[told[2]]
    actual = sum(file.stat().st_size for file in find_checkpoint(Path("a"), "last").iterdir())
    assert expected == pytest.approx(actual, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["trainer.num_epochs=9000", "trainer.num_steps=null"], "9,360 steps (180 epochs): schedule.warmup=0.02 is a fraction"),
        (["trainer.num_epochs=9000", "trainer.num_steps=200000"], "4,000 steps (76.9 epochs)"),
        (
            ["schedule=one_cycle", "trainer.num_steps=20000"],
            "schedule.up=0.083 is a fraction of the run, which trainer.num_steps",
        ),
        (["trainer.num_epochs=9000", "trainer.num_steps=null", "trainer.max_seconds=0.01"], ""),
        (["trainer.num_epochs=9000", "trainer.num_steps=null", "schedule=constant"], ""),
        (["trainer.num_steps=2000"], ""),
    ],
)
def test_a_warm_up_that_a_long_run_makes_long_is_said_before_the_first_step(
    settings: list[str], words: str, place: Path, call: Call, at_step: Callable[..., None]
) -> None:
    at_step({1: lambda _: signal.raise_signal(signal.SIGINT)})
    ended = call("TRAIN", *settings, "hydra.run.dir=a")
    assert words in ended.out
    assert bool(words) == ("The learning rate rises for the first" in ended.out)


def test_that_other_programs_keep_the_cores_busy_is_said_where_threads_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.cpu_count() or 1
    for others, threads, is_said in ((cores, 2, True), (cores + 7, 4, True), (cores - 1, 2, False), (cores + 7, 1, False)):
        monkeypatch.setattr(cost, "num_waiting", lambda others=others: others)
        advice = list(cost.iter_busy_advice(threads))
        assert bool(advice) == is_said
        assert all("trainer.num_threads=1" in line and str(others) in line for line in advice)


def test_threads_of_other_programs_are_counted_where_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter(["0.1 0.2 0.3 9/400 77\n", "0.1 0.2 0.3 4/400 78\n", "0.1 0.2 0.3 6/400 79\n"])
    monkeypatch.setattr(Path, "read_text", lambda path: next(told))
    assert machine.num_waiting(looks=3) == 3
    monkeypatch.setattr(Path, "read_text", lambda path: "no such numbers")
    assert machine.num_waiting() == 0
