"""A search: what a space is, what it comes to, several processes in one study, and whatever can go wrong with a trial."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lmtrain.application import GROUPS, Sources, check_overrides, register_schemas
from lmtrain.commands.runs import read_runs
from lmtrain.commands.search import _open_study
from lmtrain.commands.search_space import Choice, Range, experiment, read_space
from lmtrain.errors import ResourceError, SettingsError

Call = Callable[..., Any]
SPACE = """
settings: {data: text, data.path: text.txt, tokenizer: word, trainer.batch_size: 4, trainer.num_threads: 1, model.embed_size: 6,
  trainer.sample_tokens: 0, trainer.max_seconds: null, trainer.num_steps: 12, trainer.evaluate_every: 2}
space:
  model: [gru, elman, ngram]
  model.hidden_size: {low: 4, high: 32, log: true}
  optimizer.learning_rate: {low: 1e-5, high: 0.1, log: true}
  model.hidden_sizes: [[], [5, 6]]
"""


def test_a_space_has_choices_and_ranges(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SPACE + "  model.dropout: {low: 0, high: 0.6, step: 0.1}\n")
    space = read_space(tmp_path / "a.yaml")
    assert space.space["model"] == Choice(("gru", "elman", "ngram"))
    assert space.space["model.hidden_size"] == Range(4, 32, None, True)
    assert space.space["model.hidden_size"].is_whole  # type: ignore[union-attr]
    rate = space.space["optimizer.learning_rate"]
    assert rate == Range(1e-5, 0.1, None, True), "YAML reads 1e-5 as text"
    assert not rate.is_whole
    assert not space.space["model.dropout"].is_whole  # type: ignore[union-attr]
    overrides = space.overrides({"model.hidden_sizes": [5, 6], "x": True})
    assert {"trainer.max_seconds=null", "data.path=text.txt", "model.hidden_sizes=[5,6]", "x=true"} <= set(overrides)


def test_exponents_without_a_point_are_numbers_wherever_they_stand(tmp_path: Path) -> None:
    """YAML reads them as text."""
    (tmp_path / "a.yaml").write_text(
        "settings: {a: 1e-3, b: [1.5e2, x], c: 1e, d: e1}\nspace: {e: [1e-3, .5E+1, 1.e2, word]}\n"
    )
    space = read_space(tmp_path / "a.yaml")
    assert space.settings == {"a": 0.001, "b": [150.0, "x"], "c": "1e", "d": "e1"}
    assert space.space["e"] == Choice((0.001, 5.0, 100.0, "word"))
    assert "a=0.001" in space.overrides({})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no `space`"), ("space: {}", "holds no `space`"), ("[1]", "holds no `space`"),
        ("space: [a]", "holds no `space`"),
        ("a: b: c", "cannot be read"), ("\x00", "cannot be read"), ("space: {a: [1]}\nmore: 1", "It holds more beside"),
        ("space: {a: 5}", "a: 5 is neither a list of values nor a range"), ("space: {a: []}", "no list of values"),
        ("space: {a: [{}]}", "no list of values"), ("space: {a: [1, 1]}", "a value twice"),
        ("space: {a: {low: 1}}", "neither a list"), ("space: {a: {low: 1, high: 2, lag: true}}", "neither a list"),
        ("space: {a: {low: 3, high: 2}}", "low=3 is above high=2"), ("space: {a: {low: .nan, high: 2}}", "finite numbers"),
        ("space: {a: {low: true, high: 2}}", "finite numbers"), ("space: {a: {low: 1, high: x}}", "finite numbers"),
        ("space: {a: {low: 0, high: 2, log: true}}", "log: true needs low above 0"),
        ("space: {a: {low: 1, high: 2, log: true, step: 1}}", "exclude each other"),
        ("space: {a: {low: 1, high: 2, step: 0}}", "step=0 is not above 0"), ("space: {1: [1]}", "1 is no name"),
        ("space: {hydra.run.dir: [a]}", "says where or how"), ("space: {resume: [a]}", "says where or how"),
        ("settings: {a: 1}\nspace: {a: [1]}", "both in `settings` and in `space`"),
        ("settings: [1]\nspace: {a: [1]}", "no mapping"),
        ("settings: {a: {b: 1}}\nspace: {b: [1]}", "no value of a setting"), ("space: {a: {low: 1, high: 1e999}}", "finite"),
        ("space: {a: {low: 1, high: " + "9" * 400 + "}}", "finite numbers"),
    ],
)  # fmt: skip
def test_what_is_no_space_is_refused_in_a_paragraph(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=re.escape(words)):
        read_space(tmp_path / "a.yaml")


def test_the_best_settings_are_an_experiment_that_composes_to_them(tmp_path: Path) -> None:
    settings = [("experiment", "char_lstm"), ("data.path", "a, b: #ü.txt"), ("model", "gru"), ("model.hidden_sizes", [5, 6]),
                ("optimizer.learning_rate", 1e-5), ("trainer.max_seconds", None), ("trainer.num_steps", 7)]  # fmt: skip
    (tmp_path / "experiment").mkdir()
    text = experiment(settings, GROUPS, ["a command", "two\nlines"], "Validation: 1")
    (tmp_path / "experiment" / "best.yaml").write_text(text)
    register_schemas()
    found = check_overrides(["experiment=best"], Sources(config_dir=str(tmp_path)))
    assert found["model"]["cell"] == "gru"
    assert found["model"]["hidden_sizes"] == [5, 6]
    assert found["model"]["embed_size"] == 64, "of char_lstm"
    assert found["data"]["path"] == "a, b: #ü.txt"
    assert (found["optimizer"]["learning_rate"], found["trainer"]["max_seconds"]) == (1e-5, None)
    assert text.splitlines()[1:3] == ["# a command", r"# two\nlines"]
    assert text.endswith("# Validation: 1\n")


def test_mistakes_are_said_before_the_first_trial(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    Path("a.yaml").write_text(SPACE)
    Path("bad.yaml").write_text(SPACE.replace("optimizer.learning_rate", "optimizer.lerning_rate"))
    Path("text.db").write_text("no data base " * 100)
    for arguments, words in (
        (["none.yaml"], "none.yaml is no space to search. It cannot be read: No such file"),
        (["bad.yaml"], "No trial of this space can be trained."),
        (["bad.yaml"], "optimizer.learning_rate"),
        (["a.yaml", "--set", "model=gru"], "cannot be the same in every trial"),
        (["a.yaml", "--set", "resume=run"], "cannot be the same in every trial"),
        (["a.yaml", "--set", "trainer.nothing=1"], "trainer.nothing"),
        (["a.yaml", "--storage", "nothing://x"], "The study cannot be opened in --storage nothing://x"),
        (["a.yaml", "--storage", "sqlite:///text.db"], "file is not a database"),
        (["a.yaml", "--directory", "text.txt"], "cannot be used: File exists"),
        (["a.yaml", "--trials", "0"], "not a whole number from 1"),
    ):
        ended = call("search", *arguments)
        assert ended.code == 2, arguments
        assert words in ended.err
        assert "Traceback" not in ended.err
    monkeypatch.setattr("lmtrain.commands.search.find_spec", lambda name: None)
    assert "lmtrain's extra `search`" in call("search", "a.yaml").err


def test_a_storage_on_a_full_disk_is_no_wrong_setting(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(
            ResourceError, match=r"The study cannot be written in --storage sqlite:///.*: the disk is full or broken"
        ):
            _open_study(f"sqlite:///{tmp_path}/study.db", "a", 1, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tables_that_another_process_is_making_are_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna")
    from sqlalchemy.exc import IntegrityError

    whole = optuna.storages.RDBStorage.__init__
    problems = [IntegrityError("INSERT", None, Exception("UNIQUE constraint failed"))]

    def half_made(*arguments: Any, **more: Any) -> None:
        if problems:
            raise problems.pop()
        whole(*arguments, **more)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", half_made)
    assert _open_study(f"sqlite:///{tmp_path}/study.db", "a", 1, True).study_name == "a"
    assert not problems


def search(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lmtrain", "search", "a.yaml", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out


def hyper_parameters(run: Path) -> set[str]:
    """Those that TensorBoard shows."""
    (place,) = run.glob("tensorboard/*/results")
    tensorboard = EventAccumulator(str(place)).Reload()
    contents = tensorboard.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    return {*HParamsPluginData.FromString(contents).session_start_info.hparams}


@pytest.mark.slow
def test_two_processes_share_a_study_that_goes_on_and_what_was_interrupted_is_made_up_for(place: Path) -> None:
    optuna = pytest.importorskip("optuna")
    Path("a.yaml").write_text(SPACE)
    storage = ["--storage", "sqlite:///study.db", "--directory", "found"]
    processes = [search("--trials", "8", *storage) for _ in range(2)]
    outs = [finished(process) for process in processes]
    assert all(re.search(r"(?m)^trial \d+: ", out) for out in outs), "each of them made some"
    numbers = re.findall(r"(?m)^trial (\d+): ", "".join(outs))
    assert len(numbers) == len(set(numbers)) >= 8
    process = search("--trials", "30", *storage)
    while len(read_runs(["found"])) < len(list(Path("found").glob("trial-*/run.json"))) + 1 and process.poll() is None:
        if any(run.status == "running" for run in read_runs(["found"])):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "1 interrupted" in out
    assert "Traceback" not in err
    assert not any(run.status == "running" for run in read_runs(["found"])), "the training was ended, too"
    study = optuna.load_study(storage="sqlite:///study.db", study_name="a")
    done = [trial for trial in study.trials if trial.user_attrs.get("reason") != "interrupted"]
    out = finished(search("--trials", str(len(done) + 1), *storage))
    assert len(re.findall(r"(?m)^trial \d+: ", out)) == 1
    refused = [trial for trial in study.trials if trial.user_attrs["values"]["model"] == "ngram"]
    assert all("does not exist here" in trial.user_attrs["reason"] for trial in refused)
    assert {run.status for run in read_runs(["found"])} >= {"finished"}
    trained = [sys.executable, "-m", "lmtrain", "--config-dir", "found", "experiment=best", "hydra.run.dir=again"]
    assert subprocess.run(trained, capture_output=True, timeout=200).returncode == 0
    best = min(run.valid.value for run in read_runs(["found"]) if run.status == "finished" and run.valid)
    (again,) = read_runs(["again"])
    assert again.valid is not None
    assert again.valid.value == best


@pytest.mark.slow
def test_a_training_saves_and_ends_when_its_search_is_killed(place: Path) -> None:
    pytest.importorskip("optuna")
    Path("a.yaml").write_text(SPACE.replace("[gru, elman, ngram]", "[gru]").replace("null, trainer.num_steps: 12", "60"))
    process = search("--trials", "1", "--directory", "found")
    end = time.monotonic() + 60
    while not Path("found/trial-0/metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    process.kill()
    process.communicate(timeout=20)
    end = time.monotonic() + 20
    while (run := read_runs(["found"])[0]).status == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert (run.status, run.reason) == ("stopped", "stopped by SIGTERM")


@pytest.mark.slow
def test_hopeless_trials_are_ended_at_their_evaluations_and_what_fails_always_ends_the_search(place: Path) -> None:
    pytest.importorskip("optuna")
    Path("a.yaml").write_text(SPACE.replace("[gru, elman, ngram]", "[gru]"))
    out = finished(search("--trials", "12", "--seed", "1", "--directory", "found"))
    for trial in Path("found").glob("trial-*"):
        assert hyper_parameters(trial) == {"Model", "Seed", *read_space(Path("a.yaml")).space} - {"model"}, "in every one"
    assert re.search(r"trial \d+: ended at evaluation \d, where it was worse than most", out)
    stopped = [run for run in read_runs(["found"]) if run.status == "stopped"]
    assert stopped, "they can go on with resume="
    Path("text.txt").write_text("")
    process = search("--trials", "12", "--directory", "empty", "--study", "empty")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 6
    assert "5 trials in a row have failed" in err
    assert out.count("failed: ") == 5
    assert os.listdir("empty"), "the study stays"
