"""Runs that are disturbed: what they end with, what they say, and that nothing is lost."""

import dataclasses
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lmtrain.tasks.language as language
from lmtrain.data.batches import Position
from lmtrain.inference.evaluate import Evaluation
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint, verify_checkpoint
from lmtrain.training.run_directory import open_run_directory
from lmtrain.training.run_record import find_curves
from lmtrain.training.telemetry import Telemetry

Call = Callable[..., Any]
OFTEN = ["trainer.num_steps=10", "trainer.log_every=1", "trainer.save_every=2", "model.dropout=0.3"]


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


# ---- one run, one directory


def test_a_second_process_in_a_run_directory_is_refused_and_changes_nothing(place: Path, call: Call) -> None:
    content = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file() and path.name != "run.json"}
    with open_run_directory(place / "run", ["other"]):
        for arguments in (["resume=run", "trainer.num_steps=9"], ["TRAIN", "hydra.run.dir=run"]):
            ended = call(*arguments)
            assert ended.code == 2
            assert "in use by process" in ended.err or "holds the checkpoints of another run" in ended.err
    assert {path: path.read_bytes() for path in content} == content


def test_paths_with_blanks_commas_and_unicode_work_once_quoted(place: Path, call: Call) -> None:
    shutil.copy("text.txt", "ein Text, für=uns.txt")
    assert call("TRAIN", 'data.path="ein Text, für=uns.txt"', 'hydra.run.dir="Läufe/a b,c=1"').code == 0
    assert call('resume="Läufe/a b,c=1"', "trainer.num_steps=8").code == 0
    assert call("sample", "Läufe/a b,c=1", "--prompt", "a=b, {c}").out.count("a=b, {c}") == 1


def test_from_another_directory_the_text_is_missed_by_its_full_name_and_can_be_given_anew(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call(f"resume={place}/run", "trainer.num_steps=8")
    assert ended.code == 3
    assert f"There is no file or directory {tmp_path}/text.txt" in ended.err
    assert call(f"resume={place}/run", "trainer.num_steps=8", f"data.path={place}/text.txt").code == 0


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    place: Path, call: Call, at_step: Callable[..., None], assert_same_end: Callable[..., None]
) -> None:
    settings = [*OFTEN, "trainer.save_every=1000", "trainer.evaluate_every=1000"]
    assert call("TRAIN", *settings, "hydra.run.dir=whole").code == 0
    at_step({4: interrupt})
    ended = call("TRAIN", *settings, "hydra.run.dir=cut")
    assert (ended.code, ended.err.splitlines()[-1]) == (130, "lmtrain: interrupted.")
    assert list((place / "cut" / "checkpoints").iterdir()) == []
    at_step({})
    assert call("resume=cut").code == 0
    assert "stopped before its first checkpoint: it begins again" in (place / "cut" / "lmtrain.log").read_text()
    assert_same_end(place / "cut", place / "whole")


def test_a_changed_rate_is_warned_of_and_kept_and_a_longer_run_is_simply_done(place: Path, call: Call) -> None:
    assert call("resume=run", "optimizer.learning_rate=0.001", "trainer.num_steps=8").code == 0
    log = (place / "run" / "lmtrain.log").read_text()
    assert log.count("Resuming with optimizer.learning_rate=0.001 instead of") == 1
    assert "trainer.num_steps" not in log, "what may change is not worth a warning"
    assert call("resume=run", "trainer.num_steps=9").code == 0
    assert (place / "run" / "lmtrain.log").read_text().count("Resuming with") == 1
    settings = json.loads((place / "run" / "settings.json").read_text())
    assert (settings["optimizer"]["learning_rate"], settings["trainer"]["num_steps"]) == (0.001, 9)


@pytest.mark.parametrize(
    ("schedule", "limit", "said"),
    [
        ("cosine", "trainer.num_steps=12", "The cosine schedule stretches over the new length of the run: "),
        ("one_cycle", "trainer.num_steps=12", "The one_cycle schedule stretches"),
        ("constant", "trainer.num_steps=12", ""),
        ("cosine", "trainer.keep=3", ""),
    ],
)
def test_a_schedule_that_goes_by_the_length_of_the_run_says_where_a_new_length_takes_it(
    schedule: str, limit: str, said: str, place: Path, call: Call
) -> None:
    assert call("TRAIN", f"schedule={schedule}", "hydra.run.dir=other", "optimizer.learning_rate=0.5").code == 0
    log, metrics = place / "other" / "lmtrain.log", place / "other" / "metrics.jsonl"
    assert "schedule" not in log.read_text(), "a new run is not stretched"
    assert call("resume=other", limit, "trainer.log_every=1").code == 0
    assert said in log.read_text()
    assert ("stretches" in log.read_text()) == bool(said)
    if schedule == "cosine" and said:
        (new, old) = map(float, re.findall(r"goes on at (\S+) instead of (\S+)\.", log.read_text())[0])
        rates = {r["step"]: r.get("optim/learning_rate") for r in map(json.loads, metrics.read_text().splitlines())}
        assert new == pytest.approx(rates[7], rel=0.05)
        assert old == 0


def test_a_damaged_checkpoint_ends_with_4_and_names_the_file(place: Path, call: Call) -> None:
    file = find_checkpoint(place / "run", "best") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    ended = call("sample", "run")
    assert ended.code == 4
    assert f"{file.relative_to(place)} is damaged. Its SHA-256 is " in ended.err


# ---- signals


def test_a_signal_before_validation_breaks_it_off_with_everything_saved(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, assert_same_end: Callable[..., None]
) -> None:
    settings = [*OFTEN, "trainer.evaluate_every=4"]
    assert call("TRAIN", *settings, "hydra.run.dir=whole").code == 0
    evaluate, num_calls = language.evaluate_split, 0

    def disturbed(*arguments: Any) -> Evaluation:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(language, "evaluate_split", disturbed)
    ended = call("TRAIN", *settings, "hydra.run.dir=cut")
    assert ended.code == 143
    assert "python -m lmtrain resume=cut" in ended.err
    assert (place / "cut" / "checkpoints" / "last").read_text().startswith("step-00000004")
    assert call("resume=cut").code == 0
    assert_same_end(place / "cut", place / "whole")


def test_sigusr1_saves_and_training_goes_on(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    at_step({3: lambda _: os.kill(os.getpid(), signal.SIGUSR1)})
    settings = [*OFTEN, "trainer.save_every=1000", "trainer.evaluate_every=1000"]
    assert call("TRAIN", *settings, "hydra.run.dir=saved").code == 0
    assert {path.name for path in (place / "saved" / "checkpoints").glob("step-*")} == {"step-00000003", "step-00000010"}


# ---- full disks and telemetry


def test_a_full_disk_costs_no_step_and_no_record(
    place: Path, call: Call, at_step: Callable[..., None], file_limit: Callable[[int | None], None],
    assert_same_end: Callable[..., None],
) -> None:  # fmt: skip
    assert call("TRAIN", *OFTEN, "hydra.run.dir=whole").code == 0
    at_step({4: lambda _: file_limit(1), 8: lambda _: file_limit(None)})
    ended = call("TRAIN", *OFTEN, "hydra.run.dir=full")
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err + ended.out
    assert "Training goes on; the next checkpoint will be tried again." in ended.out
    assert "Telemetry cannot be written" in ended.out
    assert_same_end(place / "full", place / "whole")


def test_the_best_model_of_a_moment_without_space_is_kept_as_soon_as_there_is_some(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, file_limit: Callable[[int | None], None],
    at_step: Callable[..., None],
) -> None:  # fmt: skip
    """Validation is best at step 4, while the disk is full, and never again."""
    evaluate, evaluations = language.evaluate_split, iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])

    def arranged(*arguments: Any) -> Evaluation:
        bill = evaluate(*arguments)
        return dataclasses.replace(bill, total_nats=bill.num_tokens * next(evaluations))

    monkeypatch.setattr(language, "evaluate_split", arranged)
    at_step({4: lambda _: file_limit(1), 5: lambda _: file_limit(None)})
    assert call("TRAIN", *OFTEN, "trainer.evaluate_every=2", "trainer.baselines=false", "hydra.run.dir=full").code == 0
    best = load_checkpoint(find_checkpoint(place / "full", "best"))
    assert best.step == 4
    assert best.documents["training"]["state"]["best_value"] == 1.0
    at_step({5: interrupt})
    assert call("TRAIN", *OFTEN, "trainer.evaluate_every=1000", "hydra.run.dir=four").code == 130
    four = load_checkpoint(find_checkpoint(place / "four", "last"))
    assert four.step == 4
    assert all(tensor.equal(best.tensors["model"][name]) for name, tensor in four.tensors["model"].items())


def test_too_little_space_is_said_before_training(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtrain.training.left_over.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    ended = call("TRAIN", "hydra.run.dir=small")
    assert ended.code == 6
    assert "This run's checkpoints need" in ended.err
    assert not (place / "small").exists()


def test_only_a_last_save_that_fails_ends_a_run_with_6(
    place: Path, call: Call, at_step: Callable[..., None], file_limit: Callable[[int | None], None]
) -> None:
    at_step({5: lambda _: file_limit(1)})
    ended = call("TRAIN", *OFTEN, "hydra.run.dir=full")
    file_limit(None)
    assert ended.code == 6
    assert "The checkpoint of step 10 cannot be saved" in ended.err
    assert verify_checkpoint(find_checkpoint(place / "full", "last")).step == 4
    assert list((place / "full" / "checkpoints").glob("*.tmp-*")) == []


def test_training_goes_on_without_tensorboard(place: Path, call: Call) -> None:
    (place / "dark").mkdir()
    (place / "dark" / "tensorboard").write_text("in the way")
    ended = call("TRAIN", *OFTEN, "hydra.run.dir=dark")
    assert ended.code == 0
    assert ended.out.count("Telemetry cannot be written") == 1
    assert len((place / "dark" / "metrics.jsonl").read_text().splitlines()) == 11


def test_what_is_not_finite_is_null_in_the_records_and_lists_are_hyper_parameters(tmp_path: Path) -> None:
    bill = Evaluation(1e9, 10, 1, 0, 0.0, 10, 10, 1, "carry")
    state: Any = SimpleNamespace(step=3, position=Position())
    with Telemetry(tmp_path) as telemetry:
        settings = {"model": {"cutoffs": [1, 2], "dropout": None}}
        telemetry.record_settings(settings, {"model.cutoffs": [1, 2], "model.dropout": None})
        telemetry.record_evaluation(state, bill, "", False)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["val/perplexity"] is None
    assert events_of(tmp_path).Scalars("val/perplexity")[0].value == float("inf")


def test_no_step_is_shown_twice_after_resuming(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    at_step({8: interrupt})
    assert call("TRAIN", *OFTEN, "trainer.save_every=3", "hydra.run.dir=cut").code == 130
    assert recorded(place / "cut")[-1] == 7
    at_step({})
    assert call("resume=cut").code == 0
    assert recorded(place / "cut") == [*range(1, 11), 10], "every step once, and the validation of the last"
    shown = [event.step for event in events_of(place / "cut").Scalars("train/nats_per_token")]
    assert shown == list(range(1, 11))


def recorded(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(find_curves(run / "tensorboard")))
    events.Reload()
    return events


# ---- sweeps


def test_a_failing_job_does_not_stop_a_sweep_and_is_listed(place: Path, call: Call) -> None:
    ended = call("-m", "TRAIN", "tokenizer=word", "trainer.batch_size=4,500,5", "hydra.sweep.dir=sweep")
    assert ended.code == 3, "the exit code of the job that failed"
    assert "1 of 3 jobs failed:\n  #1  trainer.batch_size=500: The training split has" in ended.err
    reached = r"  sweep/(\d) +(\d) +1 +(\d\.\d+) "
    found = re.findall(reached, ended.out.rpartition("language: 2 runs, best first")[2])
    assert {numbers[:2] for numbers in found} == {("0", "4"), ("2", "5")}
    for number, _, nats in found:
        records = [json.loads(line) for line in (place / "sweep" / number / "metrics.jsonl").read_text().splitlines()]
        best = min((r for r in records if "val/perplexity" in r), key=lambda r: r["val/nats_per_token"])
        assert nats == f"{best['val/nats_per_token']:.4f}"
    assert "Traceback" not in ended.err
    assert (place / "sweep" / "2" / "checkpoints" / "best").exists()
    assert not (place / "sweep" / "1").exists()


def test_fewer_validation_tokens_than_streams_are_said_once_a_run(place: Path, call: Call) -> None:
    ended = call(
        "TRAIN", "data.valid_fraction=0.003", "trainer.evaluation_streams=16", "trainer.evaluate_every=2", "hydra.run.dir=few"
    )
    assert (ended.code, ended.out.count("validation:")) == (0, 3)
    assert ended.out.count("tokens are too few for 16 streams; using") == 1
    assert "on cpu with 1 thread," in ended.out
