"""The table of runs: what a run leaves is found again, compared only with what can be compared, and read with care."""

import csv
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.commands.run_table import by_task, measures_of, spread, table_of_groups, table_of_runs, varying
from lmtrain.commands.runs import format_runs
from lmtrain.files.run_lock import RunLock
from lmtrain.models.ngram import NgramModel
from lmtrain.settings.defaults import differing_settings
from lmtrain.training.run_record import NoRecordError, Result, RunRecord, read_run

Call = Callable[..., Any]


def record(
    name: str, value: float | None, seed: int = 1, *, bits: float | None = 1.0, test: float | None = None, **more: Any
) -> Any:
    settings = {"model": "lstm", "trainer.seed": seed, "optimizer.learning_rate": 0.1} | more.pop("settings", {})
    differing = {key: value for key, value in settings.items() if key != "trainer.seed"}
    return RunRecord(
        Path(name), more.pop("status", "finished"), more.pop("reason", "finished"), settings, differing,
        valid=None if value is None else Result(value, bits), test=None if test is None else Result(test, bits),
        **{"vocabulary": "a", **more},
    )  # fmt: skip


def name(run: RunRecord) -> str:
    return str(run.path)


# ---- what a run leaves


def test_a_run_leaves_its_results_with_all_that_they_depend_on(place: Path) -> None:
    (session,) = json.loads((place / "run" / "run.json").read_text())["sessions"]
    results = session["results"]
    run = read_run(place / "run")
    assert (run.status, run.task, run.seed, run.num_steps, run.num_items) == ("finished", "language", 1, 6, 240)
    assert run.num_parameters == session["num_parameters"] > 0
    assert run.seconds is not None
    assert run.items_per_second is not None
    assert run.differing["model.hidden_size"] == 8
    assert run.differing["trainer.max_seconds"] is None
    assert "model" not in run.differing, "an LSTM is the default"
    assert run.valid is not None
    assert run.test is not None
    assert run.valid.value == session["best_nats_per_token"]
    assert run.valid.facts["num_tokens"] > 0
    assert run.valid.facts["num_streams"] == 16
    assert run.valid.facts["state_policy"] == "carry"
    assert run.test.value == session["final"]["nats_per_token"]
    assert run.test.facts["num_streams"] == 1
    assert results["seed"] == 1


def test_a_killed_run_is_listed_by_its_last_record(place: Path, call: Call) -> None:
    """As `kill -9` leaves it: no end in run.json, half a line in metrics.jsonl."""
    shutil.copytree("run", "killed")
    document = json.loads(Path("killed/run.json").read_text())
    (session,) = document["sessions"]
    keep = ("task", "items", "measure", "higher_is_better", "vocabulary", "evaluation")
    session |= {"exit_reason": None, "results": {key: session["results"][key] for key in keep}}
    del session["final"]
    Path("killed/run.json").write_text(json.dumps(document))
    with open("killed/metrics.jsonl", "a") as file:
        file.write('{"step": 9, "val/nats_per_to')
    run, whole = read_run(Path("killed")), read_run(Path("run"))
    assert (run.status, run.num_steps, run.num_items, run.test) == ("killed", 6, 240, None)
    assert run.valid is not None
    assert whole.valid is not None
    assert run.valid.value == whole.valid.value
    assert run.valid.facts["num_tokens"] == 116
    assert run.seconds is not None
    assert whole.seconds is not None
    assert 0 < run.seconds <= whole.seconds, "of the last record"
    assert "killed at step 6" in call("runs", "killed").out
    lock = RunLock(Path("killed/run.lock"))
    try:
        assert read_run(Path("killed")).status == "running"
    finally:
        lock.release()


def test_a_process_that_was_refused_does_not_spoil_what_the_run_had_reached(place: Path, call: Call) -> None:
    before = read_run(Path("run"))
    Path("text.txt").rename("elsewhere.txt")
    assert call("resume=run").code == 3
    assert len(json.loads(Path("run/run.json").read_text())["sessions"]) == 2
    assert read_run(Path("run")) == before


def test_a_run_that_may_not_go_on_with_changed_settings_keeps_its_own(place: Path, call: Call) -> None:
    before, settings = read_run(Path("run")), Path("run/settings.json").read_bytes()
    Path("other.txt").write_text(Path("text.txt").read_text() + "one more line\n")
    ended = call("resume=run", "data.path=other.txt", "trainer.num_steps=99")
    assert ended.code == 4
    assert "The text has changed" in ended.err
    assert Path("run/settings.json").read_bytes() == settings
    assert read_run(Path("run")) == before
    assert call("resume=run", "trainer.num_steps=7").code == 0
    assert read_run(Path("run")).settings["trainer.num_steps"] == 7


def test_the_seconds_of_a_counted_model_are_those_of_counting_and_estimating(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, first = NgramModel.finish, [0.2]  # every evaluation asks for it again, when there is nothing to estimate

    def slow(model: NgramModel) -> None:
        time.sleep(first.pop() if first else 0)
        finish(model)

    monkeypatch.setattr(NgramModel, "finish", slow)
    assert call("model=ngram", "data=text", "data.path=text.txt", "tokenizer=word", "hydra.run.dir=counted").code == 0
    run = read_run(Path("counted"))
    assert run.seconds is not None
    assert run.seconds >= 0.2
    assert " 0.0 " not in call("runs", "counted").out


def test_a_run_of_an_earlier_version_is_read_from_its_records(place: Path) -> None:
    document = json.loads(Path("run/run.json").read_text())
    (session,) = document["sessions"]
    final = session["final"]
    del session["results"]
    Path("run/run.json").write_text(json.dumps(document))
    run = read_run(Path("run"))
    assert (run.status, run.num_steps) == ("finished", 6)
    assert run.valid is not None
    assert run.test is not None
    assert (run.valid.value, run.test.value) == (session["best_nats_per_token"], final["nats_per_token"])


@pytest.mark.parametrize(
    ("reason", "status", "words"),
    [
        ("finished", "finished", "finished"), ("SIGTERM", "stopped", "stopped by SIGTERM"),
        ("SystemExit: 130", "stopped", "at once"),
        ("DivergedError: The loss (nan) is not finite", "failed", "The loss (nan) is not finite"),
        ("MemoryError: ", "failed", "Memory"),
        ("no improvement in 3 evaluations (trainer.patience=3)", "finished", "no improvement"),
    ],
)  # fmt: skip
def test_how_a_run_ended(reason: str, status: str, words: str, place: Path) -> None:
    document = json.loads(Path("run/run.json").read_text())
    document["sessions"][-1]["exit_reason"] = reason
    Path("run/run.json").write_text(json.dumps(document))
    run = read_run(Path("run"))
    assert run.status == status
    assert words in run.reason


def test_a_final_test_that_fails_is_no_run_that_finished(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import lmtrain.tasks.language as language

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(language.Language, "final_score", fail)
    with pytest.raises(RuntimeError):
        call("TRAIN", "hydra.run.dir=spoilt")
    run = read_run(Path("spoilt"))
    assert (run.status, run.reason) == ("failed", "out of order")
    assert run.valid is not None, "what it had reached is kept"


# ---- the table


def test_the_best_run_comes_first_and_runs_without_a_number_last() -> None:
    runs = [record("a", None), record("b", 2.0), record("c", 1.5), record("d", math.pi)]
    assert [row[0] for row in table_of_runs(runs, name).rows] == ["c", "b", "d", "a"]
    tagged = [
        record(n, v, task="tag", measure="entity_f1", higher_is_better=True, items="windows")
        for n, v in (("x", 0.5), ("y", 0.9))
    ]
    table = table_of_runs(tagged, name)
    assert [row[0] for row in table.rows] == ["y", "x"]
    assert "valid entity f1" in table.columns
    assert "more is better" in table.heading


def test_tasks_have_tables_of_their_own() -> None:
    runs = [record("a", 2.0), record("b", 0.5, task="tag", measure="entity_f1", higher_is_better=True)]
    assert [[name(run) for run in group] for group in by_task(runs)] == [["a"], ["b"]]
    assert format_runs(runs).count("best first") == 2


def test_other_vocabularies_compare_in_bits_per_character_and_only_where_every_token_is_spelt() -> None:
    runs = [record("unspelt", 0.5, bits=None, vocabulary="b"), record("worse", 1.0, bits=3.0), record("better", 9.0, bits=2.0)]
    table = table_of_runs(runs, name)
    assert [row[0] for row in table.rows] == ["better", "worse", "unspelt"]
    assert "valid bits/char" in table.columns
    assert not any("nats" in column for column in table.columns)
    assert table.rows[-1][table.columns.index("valid bits/char")] == "-"
    assert any("do not spell" in note for note in table.notes)
    assert [measure.name for measure in measures_of(runs[1:])] == ["nats/token", "ppl"], "of one vocabulary nats compare"


def test_runs_of_one_vocabulary_stand_together_by_perplexity_where_they_do_not_spell() -> None:
    """For example word models beside a model of characters."""
    words = {"words4": (4.0, "x"), "bigger3": (3.0, "y"), "words2": (2.0, "x"), "bigger5": (5.0, "y")}
    runs = [record(key, value, bits=None, vocabulary=of) for key, (value, of) in words.items()]
    table = table_of_runs([*runs, record("none", None, vocabulary="x"), record("characters", 9.0, bits=2.0)], name)
    assert [row[0] for row in table.rows] == ["characters", "words2", "words4", "bigger3", "bigger5", "none"]
    assert table.rows[1][table.columns.index("valid ppl")] == f"{math.exp(2):.2f}"
    assert any("within one vocabulary alone" in note for note in table.notes)


def test_means_and_standard_deviations_are_over_seeds_of_runs_that_ended_well() -> None:
    runs = [record(f"s{seed}", value, seed, test=value + 1) for seed, value in enumerate((2.0, 2.5, 2.25), 1)]
    runs += [record("other", 2.1, 1, settings={"optimizer.learning_rate": 0.2}), record("dead", 9.0, 4, status="killed")]
    table = table_of_groups(runs, None)
    assert table is not None
    sd = statistics.stdev((2.0, 2.5, 2.25))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.2", "0.1"], "2.1 is better than the mean 2.25"
    assert (rows[1]["runs"], rows[1]["seeds"]) == ("3", "3")
    assert rows[1]["valid nats/token"] == f"2.2500 ± {sd:.4f}"
    assert rows[1]["test nats/token"] == f"3.2500 ± {sd:.4f}"
    assert table.notes == ["1 that did not end well is not counted."]
    assert table_of_groups(runs[3:4], None) is None, "one run has no deviation"
    grouped = table_of_groups(runs, ["model"])
    assert grouped is not None
    assert [row[:2] for row in grouped.rows] == [["lstm", "4"]]


def test_perplexities_of_different_vocabularies_have_no_mean() -> None:
    """A group may hold them where its settings were named: --group-by model, say."""
    runs = [record("words", 2.0, 1, vocabulary="a"), record("bytes", 1.0, 2, bits=2.0, vocabulary="b")]
    runs += [record(f"own{seed}", 2.0, seed, vocabulary="a", settings={"model": "gru"}) for seed in (1, 2)]
    table = table_of_groups(runs, ["model"])
    assert table is not None
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert cells["lstm"]["valid ppl"] == "-"
    assert cells["lstm"]["valid bits/char"].startswith("1.5000 ± ")
    assert cells["gru"]["valid ppl"] == f"{math.exp(2):.2f} ± 0.00"
    assert table.notes == ["ppl has no mean (-) where the runs of a row have different vocabularies."]


def test_what_is_left_out_of_the_means_is_counted_by_its_reason() -> None:
    runs = [record("a", 2.0, 1), record("b", 2.0, 2), record("infinite", None, 3), record("killed", 2.0, 4, status="killed")]
    table = table_of_groups(runs, None)
    assert table is not None
    assert table.notes == ["1 that did not end well is not counted.", "1 without a finite validation is not counted."]


def test_a_number_of_the_validation_text_under_test_is_marked() -> None:
    runs = [record("a", 2.0, 1, test=2.5, test_split="valid"), record("b", 2.1, 2, test=2.6, test_split="test"),
            record("c", 2.2, 3, test_split="valid")]  # fmt: skip
    tables = [table_of_runs(runs, name), table_of_groups(runs, None), table_of_runs(runs[1:2], name)]
    cells = [
        [cell for row in table.rows for column, cell in zip(table.columns, row, strict=True) if column == "test nats/token"]
        for table in tables
        if table is not None
    ]
    assert cells == [["2.5000 *", "2.6000", "-"], ["2.5500 ± 0.0707 (2 of 3) *"], ["2.6000"]]
    notes = [" ".join(table.notes) for table in tables if table is not None]
    assert ["* is of the whole validation" in note for note in notes] == [True, True, False]


def test_a_mean_over_fewer_runs_says_over_how_many() -> None:
    assert spread([1.0, None, 3.0], "{:.1f}".format) == "2.0 ± 1.4 (2 of 3)"
    assert spread([None], str) == "-"
    assert spread([2.0], "{:.1f}".format) == "2.0"


def test_columns_are_the_settings_that_vary_with_the_default_where_a_run_lacks_one() -> None:
    old, new = record("old", 1.0), record("new", 2.0, settings={"trainer.clip_norm": 0.5, "trainer.log_every": 10})
    assert varying([old, new]) == ["trainer.clip_norm"], "log_every is 10 in both"
    table = table_of_runs([old, new], name)
    assert [row[1] for row in table.rows] == ["1", "0.5"]


def test_defaults_are_those_of_the_plain_command_and_of_what_was_chosen() -> None:
    from lmtrain.application import check_overrides, register_schemas
    from lmtrain.settings.comparing import config_to_json
    from lmtrain.settings.reading import read_config

    register_schemas()
    for overrides, expected in [
        ([], {}), (["model=gru", "optimizer=sgd"], {"model": "gru", "optimizer": "sgd"}), (["trainer.seed=7"], {}),
        (["tokenizer=word"], {"tokenizer": "word"}), (["model=ngram", "model.order=3"], {"model": "ngram", "model.order": 3}),
        (["optimizer.learning_rate=0.1"], {"optimizer.learning_rate": 0.1}), (["schedule=plateau"], {"schedule": "plateau"}),
    ]:  # fmt: skip
        assert differing_settings(config_to_json(read_config(check_overrides(overrides)))) == expected


# ---- the command


def test_the_command_writes_text_markdown_csv_and_json(place: Path, call: Call) -> None:
    assert call("TRAIN", "trainer.seed=2", "trainer.save_every=2", "hydra.run.dir=more/second").code == 0
    text = call("runs", ".")
    assert text.code == 0
    assert {"run", "more/second"} <= {line.split()[0] for line in text.out.splitlines() if line.startswith("  ")}
    assert "±" in text.out
    markdown = call("runs", ".", "--markdown").out
    assert all(line.count("|") == markdown.splitlines()[2].count("|") for line in markdown.splitlines()[2:6])
    assert call("runs", ".", "--csv", "all.csv").code == 0
    with open("all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    document = json.loads(call("runs", ".", "--json").out)
    assert [row["run"] for row in rows] == [run["run"] for run in document["runs"]]
    assert [float(row["valid"]) for row in rows] == [run["valid"]["value"] for run in document["runs"]]
    (both,) = document["groups"]
    values = [run["valid"]["value"] for run in document["runs"]]
    assert both["valid"] == {"n": 2, "mean": statistics.fmean(values), "standard_deviation": statistics.stdev(values)}
    again = call("runs", ".", "--csv", "all.csv")
    assert (again.code, "--csv all.csv is there already" in again.err) == (2, True)


def test_what_is_damaged_or_of_something_else_is_skipped_with_a_line(place: Path, call: Call) -> None:
    for folder, files in {
        "foreign": {"run.json": '{"name": "another program"}', "settings.json": "{}"}, "torn": {"run.json": '{"sess'},
        "bytes": {"run.json": b"\xff\x00", "settings.json": b"\xff"}, "empty": {"run.json": ""}, "list": {"run.json": "[]"},
        "deep": {"run.json": "[" * 5000}, "sessions\x1b[31m\nforged": {"run.json": '{"sessions": []}'},
    }.items():  # fmt: skip
        Path(folder).mkdir()
        for file, content in files.items():
            Path(folder, file).write_bytes(content if isinstance(content, bytes) else content.encode())
    Path("pipe").mkdir()
    Path("pipe/run.json").symlink_to("/dev/zero")
    Path("circle").symlink_to(".")
    ended = call("runs", ".")
    assert ended.code == 0
    assert "1 run, best first" in ended.out
    for folder in ("foreign", "torn", "bytes", "empty", "list", "deep", "pipe"):
        assert f"lmtrain: {folder} is left out: " in ended.err
    assert ended.err.count("is left out: ") == 8
    assert "\x1b" not in ended.err
    assert not any(line.startswith("forged") for line in ended.err.splitlines())


def test_values_of_another_kind_than_a_run_writes_are_no_numbers(place: Path) -> None:
    document = json.loads(Path("run/run.json").read_text())
    for spoilt in (
        {"valid": {"value": "good"}},
        {"valid": 3, "num_steps": "x"},
        {"measure": 7, "task": None},
        [],
        None,
        {"test": []},
    ):
        document["sessions"][-1]["results"] = spoilt
        Path("run/run.json").write_text(json.dumps(document))
        assert format_runs([read_run(Path("run"))])
    Path("run/settings.json").write_text(json.dumps({"model": 1, "data": [], "trainer": {"seed": {}}}))
    assert format_runs([read_run(Path("run"))])
    Path("run/settings.json").unlink()
    with pytest.raises(NoRecordError):
        read_run(Path("run"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "nosuch is not there"), (["text.txt"], "text.txt is no directory"),
        (["run/checkpoints"], "There is no run below"),
        ([".", "--group-by", "modl"], "did you mean model?"),
        ([".", "--json", "--markdown"], "--json was given with --markdown"),
        ([], "There is no run below outputs"), ([".", "--cvs", "f"], "Did you mean --csv?"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_a_paragraph(arguments: list[str], words: str, place: Path, call: Call) -> None:
    ended = call("runs", *arguments)
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("facts", "bits"), [({}, 2.0), ({"num_unk": 3}, None), ({"num_unk": 3, "spelling_nats": 9.0}, 2.0)])
def test_bits_per_character_are_those_of_texts_whose_every_word_is_spelt(facts: dict[str, Any], bits: Any, place: Path) -> None:
    document = json.loads(Path("run/run.json").read_text())
    document["sessions"][-1]["results"]["test"] |= {"num_unk": 0, "bits_per_character": 2.0, **facts}
    Path("run/run.json").write_text(json.dumps(document))
    test = read_run(Path("run")).test
    assert test is not None
    assert test.bits_per_character == bits


def test_settings_of_earlier_versions_count_under_the_names_that_they_have_now() -> None:
    old = {"model": {"kind": "recurrent", "cell": "lstm", "direct_order": 3}, "tokenizer": {"name": "word", "max_size": 100}}
    assert differing_settings(old) == {"model.maxent_order": 3, "tokenizer": "word", "tokenizer.vocab_size": 100}
