"""What one sees of a run: the same numbers in TensorBoard and in `metrics.jsonl`, visible while the run goes on."""

import fcntl
import html
import json
import math
import os
import pty
import re
import select
import shutil
import struct
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import markdown
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lmtrain.application import read_settings
from lmtrain.commands.results import run_name
from lmtrain.data.batches import Position
from lmtrain.inference.evaluate import Evaluation
from lmtrain.training.bar import Bar, clock
from lmtrain.training.board import Board
from lmtrain.training.learner import StepReport
from lmtrain.training.limits import Forecast
from lmtrain.training.markdown import unwrapped, wrapped
from lmtrain.training.run_record import find_curves
from lmtrain.training.score import TOKENS, Wording
from lmtrain.training.state import Interval, TrainState
from lmtrain.training.telemetry import Telemetry

SETTINGS = {"model": {"cell": "gru", "hidden_size": 7, "cutoffs": [1, 2]}, "trainer": {"max_seconds": None}}
CHOSEN = {"Model": "gru", "Seed": 1, "model.hidden_size": 7, "model.cutoffs": [1, 2], "data.path": "B\udce4r"}
BILL = Evaluation(20.0, 10, 1, 0, 0.0, 30, 40, 1, "carry")


def state_at(step: int, **more: Any) -> Any:
    interval = Interval()
    interval.add(StepReport(10, 20.0, 0.5, 3.0, True, 0.01))
    times = {"elapsed_seconds": 5.0, "evaluation_seconds": 1.0}
    return SimpleNamespace(step=step, num_items=10 * step, position=Position(2, 1), interval=interval, **times, **more)


def reader(run: Path, part: str = "") -> EventAccumulator:
    """TensorBoard's reader of the curves of a run, or of its results."""
    place = find_curves(run / "tensorboard")
    assert place is not None
    accumulator = EventAccumulator(str(place / part))
    accumulator.Reload()
    return accumulator


def shown(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    accumulator.Reload()
    return [(event.step, round(event.value, 6)) for event in accumulator.Scalars(tag)]


def test_a_running_tensorboard_sees_every_record_as_it_comes(tmp_path: Path) -> None:
    """TensorBoard's plain loader leaves a file for good as soon as there is a later one."""
    with Telemetry(tmp_path) as telemetry:
        telemetry.record_settings(SETTINGS, CHOSEN)
        watching = reader(tmp_path)
        for step in (1, 2, 3):
            telemetry.record_training(state_at(step), StepReport(10, 20.0, 0.5, 3.0, True, 0.01))
            assert telemetry._board._writer is not None
            telemetry._board._writer.flush()
            assert shown(watching, "train/nats_per_token") == [(n, 2.0) for n in range(1, step + 1)]
        telemetry.record_results(3, valid=1.5, test=None)
    assert shown(reader(tmp_path, "results"), "valid") == [(3, 1.5)]
    assert len(list((tmp_path / "tensorboard/run").glob("events*"))) == 1


def test_both_records_hold_the_same_numbers(tmp_path: Path) -> None:
    with Telemetry(tmp_path) as telemetry:
        telemetry.record_training(state_at(4), StepReport(10, 20.0, 0.5, 3.0, True, 0.01))
        telemetry.record_evaluation(state_at(4), BILL, "a sample", True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    tensorboard = reader(tmp_path)
    for line in lines:
        assert line.pop("step") == 4
        for tag, value in line.items():
            (event,) = tensorboard.Scalars(tag)
            assert (event.step, event.value) == (4, pytest.approx(value)), tag
    assert lines[0]["optim/learning_rate"] == 0.01
    assert lines[0]["optim/clipped_share"] == 1
    assert lines[1]["val/bits_per_character"] == BILL.bits_per_character
    assert {"sample/text_summary"} <= set(tensorboard.Tags()["tensors"])


def test_only_time_within_steps_counts_as_speed_and_not_that_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernels are compiled in the first step; between two others there may be an evaluation of any length."""
    now = 0.0
    monkeypatch.setattr("lmtrain.training.bar.time.monotonic", lambda: now)
    with Telemetry(tmp_path) as telemetry:
        for step, seconds in enumerate([40.0, 0.5, 0.5, 1.5, 0.25], 1):
            now += seconds + 1000
            report = StepReport(10, 20.0, 0.5, 3.0, True, 0.01, seconds)
            telemetry.progress(state_at(step), report, 0.1, 1.0)
            telemetry.record_training(state_at(step), report)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("perf/tokens_per_second") for line in lines] == [None, 20, 20, 12, 12]
    shown = capsys.readouterr().err.splitlines()
    assert "tokens/s" not in shown[0]
    assert all(f" tokens/s={rate} " in line for rate, line in zip((20, 20, 12, 12), shown[1:], strict=True))


def test_counting_has_no_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Telemetry(tmp_path) as telemetry:
        for step in (1, 2, 3):
            telemetry.progress(state_at(step), StepReport(10, seconds=1e-6), 0.1, math.inf)
    assert "step=1" in (shown := capsys.readouterr().err)
    assert "tokens/s" not in shown


def test_what_tells_a_run_from_others_are_hyper_parameters_beside_its_results(tmp_path: Path) -> None:
    with Telemetry(tmp_path) as telemetry:
        telemetry.record_settings(SETTINGS, CHOSEN)
    contents = reader(tmp_path, "results").PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info.hparams
    assert {*start} == {*CHOSEN}, "not every setting"
    assert start["Model"].string_value == "gru"
    assert start["model.hidden_size"].number_value == 7
    assert start["model.cutoffs"].string_value == "[1, 2]"
    assert start["data.path"].string_value == "B\\udce4r"
    assert "_hparams_/experiment" not in contents, "TensorBoard would believe the first one of all runs"


@pytest.mark.parametrize(
    ("wording", "tags"),
    [(TOKENS, ["train/nats_per_token", "val/nats_per_token"]),
     (Wording("windows", "nats_per_window", "entity_f1", True), ["train/nats_per_window", "val/entity_f1"])],
)  # fmt: skip
def test_training_and_validation_are_in_one_chart(wording: Wording, tags: list[str], tmp_path: Path) -> None:
    with Telemetry(tmp_path, wording=wording) as telemetry:
        telemetry.record_settings(SETTINGS, CHOSEN)
    tensorboard = reader(tmp_path)
    (event,) = tensorboard.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [[*chart.multiline.tag] for category in layout.category for chart in category.chart] == [tags]


def test_a_run_shows_what_differs_from_the_defaults_and_its_results(place: Path, call: Any) -> None:
    assert call("TRAIN", "hydra.run.dir=a", "trainer.seed=3").code == 0
    tensorboard = reader(Path("a"), "results")
    contents = tensorboard.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info.hparams
    assert (start["Model"].string_value, start["Seed"].number_value, start["model.hidden_size"].number_value) == ("lstm", 3, 8)
    assert {"optimizer.epsilon", "trainer.save_every", "model.dropout", "trainer.seed"}.isdisjoint(start)
    results = json.loads(Path("a/run.json").read_text())["sessions"][-1]["results"]
    for tag, value in (("valid", results["valid"]["value"]), ("test", results["test"]["value"])):
        assert shown(tensorboard, tag) == [(6, pytest.approx(value, abs=1e-5))]
    assert len(shown(tensorboard, "tokens_per_second")) == 1
    assert [place.name for place in Path("a/tensorboard").iterdir()] == ["lstm-8-seed3"]
    assert len(list(Path("a/tensorboard/lstm-8-seed3").glob("events*"))) == 1


def test_of_a_sweep_names_and_hyper_parameters_hold_what_it_varies(place: Path, call: Any) -> None:
    assert call("-m", "TRAIN", "optimizer.learning_rate=0.01,0.1", "tokenizer=char,byte", "trainer.seed=1,2",
                "hydra.sweep.dir=sweep").code == 0  # fmt: skip
    names = sorted(place.name for place in Path("sweep").glob("*/tensorboard/*"))
    assert names == sorted(f"lstm-8-learning_rate={rate}-tokenizer={tokenizer}-seed{seed}"
                           for rate in ("0.01", "0.1") for tokenizer in ("char", "byte") for seed in (1, 2))  # fmt: skip
    contents = reader(Path("sweep/7"), "results").PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info.hparams
    assert {key: value.number_value or value.string_value for key, value in start.items()} == {
        "Model": "lstm", "Seed": 2, "optimizer.learning_rate": 0.1, "tokenizer": "byte",
    }  # fmt: skip


def test_what_a_file_of_settings_sweeps_is_told_as_well(place: Path, call: Any) -> None:
    Path("files/experiment").mkdir(parents=True)
    params = "{optimizer.learning_rate: '0.01,0.02', trainer.log_every: '3'}"
    Path("files/experiment/sweep.yaml").write_text(f"# @package _global_\nhydra:\n  sweeper:\n    params: {params}\n")
    assert call("--config-dir", "files", "-m", "TRAIN", "experiment=sweep", "hydra.sweep.dir=sweep").code == 0
    for job, rate in enumerate((0.01, 0.02)):
        contents = reader(Path(f"sweep/{job}"), "results").PluginTagToContent("hparams")
        start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info.hparams
        assert {*start} == {"Model", "Seed", "optimizer.learning_rate"}
        assert start["optimizer.learning_rate"].number_value == rate


def test_a_run_keeps_its_name_and_one_of_an_earlier_version_its_place(place: Path, call: Any) -> None:
    assert call("TRAIN", "hydra.run.dir=a").code == 0
    shutil.copytree("a", "old")
    shutil.rmtree("old/tensorboard/lstm-8-seed1/results")
    for file in Path("old/tensorboard/lstm-8-seed1").iterdir():
        file.rename(Path("old/tensorboard", file.name)) if file.is_file() else shutil.rmtree(file)
    Path("old/tensorboard/lstm-8-seed1").rmdir()
    for run, curves in (("a", "lstm-8-seed1"), ("old", ".")):
        assert call(f"resume={run}", "trainer.num_steps=8").code == 0
        assert find_curves(Path(run, "tensorboard")) == Path(run, "tensorboard", curves)
        assert shown(reader(Path(run)), "val/nats_per_token")[-1][0] == 8
        assert shown(reader(Path(run), "results"), "test")[-1][0] == 8


def test_names_are_ones_of_directories() -> None:
    assert run_name(read_settings(["model=gru", "model.hidden_sizes=[40,20]"]), None) == "gru-40-20-seed1"
    path = "ä b/" + "x" * 100
    settings = read_settings(["model=ngram", "model.order=3", "data=text", f"data.path='{path}'", "trainer.seed=5"])
    name = run_name(settings, {"data.path": path, "experiment": "", "model.order": "3"})
    assert name == f"ngram-3-path=__b_{'x' * 83}-seed5"
    assert run_name(settings, {"trainer": "epochs", "trainer.seed": "5"}) == "ngram-3-trainer=epochs-seed5"


def test_the_bar_shows_loss_and_time_left_on_a_terminal_of_60_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Telemetry(tmp_path) as telemetry:
            for step in range(1, 4):
                telemetry._bar._next_at = 0
                report = StepReport(10, 45.678, 0.5, 3.0, True, 0.00123, 0.001)
                telemetry.progress(state_at(123_456 + step), report, 0.2 + step / 100, 16_000)
        monkeypatch.undo()
        shown = b""
        while select.select([ours], [], [], 0.2)[0]:
            shown += os.read(ours, 1 << 16)
    os.close(ours)
    lines = [line for line in re.split(r"[\r\n]+", shown.decode()) if "loss" in line]
    assert lines
    assert all(len(line) <= 60 for line in lines), lines
    assert "loss=4.568" in lines[-1]
    assert "left=4:26:40" in lines[-1]
    assert re.search(r"\w+=[\d.,:]+ \|", lines[-1]), "no word is cut"


@pytest.mark.parametrize("columns", [10, 30, 45, 60, 80, 200])
def test_a_bar_has_so_many_whole_words_as_fit(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmtrain.training.bar import _fitting

    words = Bar(TOKENS, 0)._words(123_456, StepReport(10, 45.678, 0.5, 3.0, True, 0.00123, 0.001), 1_234_567, 75)
    fitting = _fitting(words, columns)
    assert fitting == words[: len(fitting)]
    assert len(fitting) == 1 or len(f" 40%, {' '.join(fitting)} |#|") <= columns
    assert ("left=1:15" in fitting) == (columns >= 30)
    assert (len(fitting) == len(words)) == (columns > 80)


def test_lines_come_at_once_then_when_a_speed_is_known_then_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("lmtrain.training.bar.time.monotonic", lambda: now)
    bar = Bar(TOKENS, 0)
    for step in range(1, 40):
        now = float(step)
        bar.show(step, StepReport(10, 20.0, seconds=1.0), 10, step / 100, math.inf if step == 1 else 100 - step)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"step=(\d+)", line)[1] for line in lines] == ["1", "3", "13", "23", "33"]  # type: ignore[index]
    assert "left" not in lines[0], "nobody knows"
    assert lines[1].startswith("  3% loss=2.000 left=1:37 ppl=7.39 step=3 tokens/s=10 ")


def test_the_time_left_is_told_by_the_steps_behind_the_first_one_and_the_evaluations_between_them() -> None:
    forecast, state = Forecast(), TrainState(None, elapsed_seconds=40.0)  # type: ignore[arg-type]
    assert forecast.left(state, 0.01, None) == math.inf, "40 seconds of compiling tell nothing"
    state.elapsed_seconds = 41.0
    assert forecast.left(state, 0.02, None) == pytest.approx(98)
    state.elapsed_seconds, state.evaluation_seconds = 49.0, 9.0
    assert forecast.left(state, 0.1, None) == pytest.approx(18 / 0.09 * 0.9)
    assert forecast.left(state, 0.01, None) == math.inf, "training went back"
    state.elapsed_seconds = 59.0
    assert forecast.left(state, 0.1, None) == pytest.approx(10 / 0.09 * 0.9)
    assert Forecast().left(state, 0.6, 100.0) == 41, "a limit of time is known from the beginning"


def test_a_clock_never_says_nothing_is_left_before_it_is() -> None:
    assert [clock(seconds) for seconds in (0, 0.2, 61, 3599.5, 86399)] == ["0:00", "0:01", "1:01", "1:00:00", "23:59:59"]


def test_what_a_resumed_run_does_again_is_shown_once(tmp_path: Path) -> None:
    for first in (0, 2, 0):
        with Telemetry(tmp_path, resume_step=first) as telemetry:
            for step in range(first + 1, 5):
                telemetry.record_evaluation(state_at(step), BILL, "", False)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    tensorboard = reader(tmp_path)
    assert [step for step, _ in shown(tensorboard, "val/perplexity")] == [1, 2, 3, 4]


def test_a_clock_that_was_set_back_hides_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the files of a run in the order of the times in their names."""
    now = time.time()
    for earlier, first in ((0, 0), (7200, 2), (7200, 3), (9000, 4)):
        monkeypatch.setattr(time, "time", lambda earlier=earlier: now - earlier)
        with Telemetry(tmp_path, resume_step=first) as telemetry:
            for step in range(first + 1, 7):
                telemetry.record_evaluation(state_at(step), BILL, "", False)
    tensorboard = reader(tmp_path)
    assert [step for step, _ in shown(tensorboard, "val/perplexity")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["projector_config.pbtxt", "00000"])
def test_a_link_in_place_of_vectors_for_the_projector_is_not_followed(name: str, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    if name == "00000":
        (target / "words").mkdir(parents=True)
    precious = target / "words" / "metadata.tsv" if name == "00000" else target
    precious.write_text("precious")
    board = Board(tmp_path / "tensorboard", "name", 0, lambda work: work() is None)
    (tmp_path / "tensorboard" / "name" / name).symlink_to(target)
    board.add_vectors(["a", "b"], np.eye(2, dtype=np.float32))
    board.close()
    assert precious.read_text() == "precious"
    assert "metadata.tsv" in (tmp_path / "tensorboard" / "name" / "projector_config.pbtxt").read_text()
    assert (tmp_path / "tensorboard" / "name" / "00000" / "words" / "metadata.tsv").read_text() == "a\nb\n"


TEXTS = [
    "a  b\n  c <unk> *d* _e_ \\ `f` &amp; [g](h) # i\n\n1. j\n- k | l",
    "  ",
    "a | b\n--- | ---\n1 | 2\n\nabc\n===\n~~~\ncode\n~~~",
    "x" * 500,
    "ü\u200dé~~no~~\n    four",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_shown_as_they_are_and_wrap(text: str) -> None:
    """TensorBoard makes HTML of Markdown; an indented block would not wrap."""
    made = re.sub(r"</?p>|<br ?/?>", "", markdown.markdown(wrapped(text), extensions=["tables", "fenced_code"]))
    assert "<pre>" not in made
    assert not re.search(r"<(em|strong|code|a|li|h1|del|table)\b", made)
    assert html.unescape(made).replace("\xa0", " ").split() == text.split()
    assert unwrapped(wrapped(text)) == text


def test_histograms_of_weights_are_written_where_gradients_are_watched(place: Path, call: Any) -> None:
    assert call("TRAIN", "hydra.run.dir=plain").code == 0
    assert call("TRAIN", "trainer.watch_gradients=true", "hydra.run.dir=watched").code == 0
    tags = []
    for run in ("plain", "watched"):
        tensorboard = reader(Path(run))
        tags.append([tag for tag in tensorboard.Tags()["histograms"] if tag.startswith("weights/")])
    assert tags[0] == []
    assert len(tags[1]) >= 4
