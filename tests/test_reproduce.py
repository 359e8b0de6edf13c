"""`scripts/reproduce.py`: READMEs say what results.json says, what is run can be run, and several sittings lose nothing."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from lmtrain.__main__ import main as lmtrain_main
from lmtrain.application import check_overrides, register_schemas
from lmtrain.application.command import overrides_of
from lmtrain.errors import DataError
from lmtrain.settings import reading

ROOT = Path(__file__).parents[1]
register_schemas()


class Scripts:
    """The modules of `scripts/reproducing`."""

    def __init__(self) -> None:
        for name in ("brown", "program", "results", "running", "tables", "tasks"):
            setattr(self, name, importlib.import_module(f"reproducing.{name}"))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    @property
    def all_tables(self) -> list[Any]:
        return [*self.brown.TABLES, *self.tasks.TABLES]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield Scripts()
    for name in [name for name in sys.modules if name.split(".")[0] == "reproducing"]:
        del sys.modules[name]


# ---- what the READMEs say


def test_the_tables_of_the_readmes_are_those_of_the_results(scripts: Any) -> None:
    results = scripts.results.load_results(ROOT / "scripts" / "results.json")
    in_readmes = [table for table in scripts.all_tables if table.readme]
    assert len(in_readmes) >= 14
    for table in in_readmes:
        text = (ROOT / table.readme).read_text(encoding="utf-8")
        assert scripts.tables.placed(text, table, results) == text, f"python scripts/reproduce.py --render ({table.name})"


def test_every_entry_is_of_a_row_and_invents_nothing(scripts: Any) -> None:
    rows = {row.name: row for table in scripts.all_tables for row in table.rows}
    assert len(rows) == sum(len(table.rows) for table in scripts.all_tables)
    for result in scripts.results.load_results(ROOT / "scripts" / "results.json"):
        assert result.row in rows
        if result.source:  # copied from a README that knew neither version nor, mostly, seed
            assert result.commit is None
        else:
            assert all([result.machine, result.date, result.commit, result.command, result.seeds])
            assert len(result.seeds) == 1
            assert result.seeds[0] in rows[result.row].seeds


def test_trained_rows_have_three_seeds_and_long_ones_one(scripts: Any) -> None:
    rows = {row.name: row for row in scripts.brown.TABLES[0].rows}
    assert len(rows) == 17
    assert sum("cache" in name for name in rows) == 4
    trained = "LSTM", "window", "example", "two minutes", "eight minutes", "long"
    for name in (*trained, "LONG + cache", "LONG + cache + dynamic evaluation", "LONG + Kneser-Ney 5"):
        assert rows[f"brown {name}"].seeds == (1, 2, 3)
    for name in ("Kneser-Ney 5", "five + Kneser-Ney 5", "these six + cache + dynamic evaluation"):
        assert rows[f"brown {name}"].seeds == (1,)


# ---- what is run


def prepared(scripts: Any, tmp_path: Path) -> Any:
    place = scripts.tables.Place(tmp_path / "da ta", tmp_path / "out put")
    (place.data / "brown").mkdir(parents=True)
    place.output.mkdir()
    (place.data / "brown" / "valid.txt").write_bytes(b"a b\n" * 50_000)
    return place


def commands_of(scripts: Any, monkeypatch: pytest.MonkeyPatch, place: Any, rows: list[Any]) -> list[str]:
    """All that the rows would run, with results that are made up and runs that are never there."""
    told: list[str] = []

    anything: Any = MagicMock(baselines=["naive Bayes"], average_precision={"LOC": 0.5}, accuracy=0.5, entity_f1=0.5)
    anything.evaluate.return_value = anything

    def run(arguments: str) -> str:
        told.append(arguments)
        words = shlex.split(arguments)
        for word in words:
            if word.startswith("hydra.run.dir="):
                run = Path(word.partition("=")[2])
                run.mkdir(parents=True)
                shares = {
                    "each word's most frequent tag": {"valid": 0.1, "test": 0.2},
                    "logistic regression (": {"valid": 0.1, "test": 0.2},
                }
                session = {"exit_reason": "finished", "results": {"seconds": 3.0}, "compared": {"shares": shares}}
                (run / "run.json").write_text(json.dumps({"sessions": [session]}))
        if words[0] == "mix":
            Path(words[words.index("--output") + 1]).mkdir()
        numbers = ("perplexity", "perplexity_per_word", "bits_per_character", "bits_per_byte", "nats_per_token", "cosine",
                   "frequency_share", "fitted_share")  # fmt: skip
        return json.dumps(dict.fromkeys(numbers, 1.5))

    for module in (scripts.running, scripts.brown, scripts.tasks):
        monkeypatch.setattr(module, "lmtrain", run)
    for name in ("load", "load_vectors"):
        monkeypatch.setattr(scripts.tasks.package, name, lambda path: anything)
    for row in rows:
        made = row.make(place, row.seeds[-1])
        assert made.numbers
    return told


def test_all_that_is_run_can_be_run(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = prepared(scripts, tmp_path)
    rows = [row for table in scripts.all_tables for row in table.rows]
    told = commands_of(scripts, monkeypatch, place, rows)
    assert len(told) == len(set(told)), "a run or a mixture was made twice"
    assert len((place.output / "first_of_valid.txt").read_bytes()) == 150_000
    told = [arguments for arguments in told if not re.search(r"data\.fold=[2-9]|data\.fold=10", arguments)]
    kinds = {"train": 0, "evaluate": 0, "mix": 0, "vectors": 0}
    for arguments in told:
        words = shlex.split(arguments)
        kinds[words[0] if words[0] in kinds else "train"] += 1
        if words[0] in kinds:
            lmtrain_main([*words, "--help"])
        else:
            reading.read_config(check_overrides(overrides_of(words)))
    assert kinds["train"] > 60
    assert min(kinds.values()) >= 3
    assert capsys.readouterr().out.count("usage:") == len(told) - kinds["train"]


def test_every_number_that_a_cell_shows_is_made(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = prepared(scripts, tmp_path)
    commands_of(scripts, monkeypatch, place, [])
    for table in scripts.all_tables:
        made = {row.name: row.make(place, row.seeds[0]) for row in table.rows}
        for cell in (cell for line in table.lines for cell in line):
            for number, name in re.findall(r"{(\d)\[(\w+)\]", cell.template):
                row = cell.rows[int(number)].name
                has_no_validation = name == "valid" and row.removeprefix("brown ") in scripts.brown.ADAPTED
                assert name in {*made[row].numbers, "time", "measured"} or has_no_validation, (row, name)


def test_a_command_in_a_table_is_the_one_that_is_run(scripts: Any) -> None:
    for row in scripts.brown.TABLES[0].rows:
        name = row.name.removeprefix("brown ")
        if name in scripts.brown.TRAININGS:
            assert row.command == f"{scripts.brown.TRAININGS[name]} data.path=DATA"
        elif name in scripts.brown.MIXTURES:
            words = row.command.split()
            assert len(words) - words.index("mix") - 3 == len(scripts.brown.MIXTURES[name])
        else:
            assert row.command.endswith(scripts.brown.ADAPTED[name][1])


def test_runs_are_used_again_gone_on_with_or_trained(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = scripts.tables.Place(tmp_path / "data", tmp_path)
    told: list[str] = []
    monkeypatch.setattr(scripts.running, "lmtrain", told.append)
    run = scripts.running.train("model=gru data.path={data}/brown", place, 2)
    assert told == [f"model=gru data.path={tmp_path}/data/brown trainer.seed=2  hydra.run.dir={run}"]
    run.mkdir()
    scripts.running.train("model=gru data.path={data}/brown", place, 2)  # died before it wrote anything
    assert len(told) == 2
    for reason, number in (("SIGTERM", 3), ("finished", 3)):
        (run / "run.json").write_text(json.dumps({"sessions": [{"exit_reason": reason}]}))
        assert scripts.running.train("model=gru data.path={data}/brown", place, 2) == run
        assert len(told) == number
    assert told[2] == f"resume={run}"
    assert scripts.running.train("model=gru data.path={data}/brown", place, 3) != run


def test_a_command_that_fails_says_what_it_said(scripts: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(scripts.running.FailedError, match=r"evaluate none ended with \d:\n.*none"):
        scripts.running.lmtrain("evaluate none")
    assert "$ python -m lmtrain evaluate none" in capfd.readouterr().err


# ---- results


def result(scripts: Any, row: str, seeds: list[int] | None, value: Any, **rest: Any) -> Any:
    return scripts.results.Result(row, seeds, {"test": value}, **rest)


def test_what_is_written_is_read_again_and_takes_the_place_of_the_same_seed(scripts: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert scripts.results.load_results(path) == []
    known = result(scripts, "b", None, 3.0, source="README.md")
    scripts.results.save_results(path, [known])
    for row, seed, value in (("b", 2, 2.0), ("a", 1, 1.0), ("b", 1, 5.0), ("b", 2, 4.0)):
        made = scripts.results.add_result(path, result(scripts, row, [seed], value, machine="é", seconds=1.5))
    read = scripts.results.load_results(path)
    assert {(each.row, tuple(each.seeds or ()), each.numbers["test"]) for each in made} == {
        ("b", (), 3.0), ("b", (1,), 5.0), ("b", (2,), 4.0), ("a", (1,), 1.0),
    }  # fmt: skip
    assert [(each.row, each.seeds) for each in read] == [("b", None), ("b", [1]), ("b", [2]), ("a", [1])]
    assert known in read
    assert path.read_text(encoding="utf-8").count("\n") == 2 + len(read)  # a line for each, for the sake of git


def test_sittings_at_the_same_time_lose_nothing(scripts: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: scripts.results.add_result(path, result(scripts, "row", [seed], float(seed))), range(40)))
    assert sorted(each.seeds[0] for each in scripts.results.load_results(path)) == list(range(40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"results": [{"row": "a"}]}', "missing"),
        ('{"results": [{"row": "a", "seeds": [1], "numbers": {}, "perplexity": 2}]}', "perplexity"),
        ('{"results": [{"row": "a", "seeds": 1, "numbers": {}}]}', "wrong type"),
        ('{"results": [{"row": "a", "seeds": ["x"], "numbers": {}}]}', "wrong type"),
        ('{"results": [{"row": "a", "seeds": [1], "numbers": {"test": "12"}}]}', "'12'"),
        ('{"results": [{"row": "a", "seeds": [1], "numbers": {"test": NaN}}]}', "NaN"),
        ('{"results": [3]}', "cannot be read"),
    ],
)
def test_a_file_of_something_else_is_refused_and_kept(text: str, words: str, scripts: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        scripts.results.add_result(path, result(scripts, "a", [1], 1.0))
    assert path.read_text() == text


def test_a_table_shows_the_runs_or_the_text_of_before_whichever_tells_of_more(scripts: Any) -> None:
    told = result(scripts, "a", [1, 2, 3], 5.0, source="README.md")
    once = result(scripts, "a", None, 6.0, source="README.md")
    runs = [result(scripts, "a", [seed], float(seed)) for seed in (1, 2, 3)]
    other = result(scripts, "b", [1], 9.0)
    chosen = scripts.results.chosen
    assert chosen([told, once, runs[0], other], "a") == [told]
    assert chosen([told, *runs], "a") == runs
    assert chosen([once, runs[0]], "a") == [runs[0]]
    assert chosen([once], "a") == [once]
    assert chosen([other], "a") == []


# ---- tables


def test_numbers_are_written_as_their_cells_ask(scripts: Any) -> None:
    Spread, Numbers, Result = scripts.tables.Spread, scripts.tables.Numbers, scripts.results.Result
    assert f"{Spread([2.0]):.1f}" == "2.0"
    assert f"{Spread([1.0, 2.0, 3.0]):.2f}" == "2.00 ± 1.00"
    assert f"{Spread([2.0], 0.25):.2f}" == "2.00 ± 0.25"
    assert f"{Spread([1.0, 2.0]):each .1f}|{Spread([1.0, 2.0]):mean .1f}|{Spread():.1f}" == "1.0, 2.0|1.5|-"
    runs = [Result("a", [seed], {"p": [0.1, 0.2], "none": None}, machine="M", date=f"2026-0{seed}", seconds=60.0 * seed)
            for seed in (1, 2, 3)]  # fmt: skip
    numbers = Numbers(runs)
    assert f"{numbers['p']:each .1f}" == "0.1, 0.2, 0.1, 0.2, 0.1, 0.2"
    assert f"{numbers['none']:.1f}{numbers['other']:.1f}" == "--"
    assert (numbers["time"], numbers["measured"]) == ("2 minutes", "M, 2026-03, 3 seeds")
    assert (Numbers([])["time"], Numbers([])["measured"]) == ("-", "not yet")
    assert Numbers([Result("a", None, {}, seconds=2)])["time"] == "2.0 s"
    assert Numbers([Result("a", None, {}, seconds=1650)])["time"] == "27.5 minutes"


def tiny(scripts: Any, make: Callable[[Any, int], Any], readme: str = "R.md", **rest: Any) -> tuple[Any, ...]:
    """Two tables: `one` with two rows, `two` with one."""
    Cell, Row, Table = scripts.tables.Cell, scripts.tables.Row, scripts.tables.Table
    rows = [Row(f"one {letter}", f"x={letter}", make, **rest) for letter in "ab"] + [Row("two c", "x=c", make, (1,))]
    lines = [(Cell(row.name), Cell("{0[test]:.1f}", (row,))) for row in rows]
    return Table("one", ("row", "test"), tuple(lines[:2]), readme), Table("two", ("row", "test"), tuple(lines[2:]), readme)


def test_only_what_lies_between_the_marks_is_replaced(scripts: Any) -> None:
    tables = tiny(scripts, lambda place, seed: None)
    begin, end = scripts.tables.marks(tables[0])
    text = f"before | a |\n{begin}\nold\n{end}\nafter\n"
    made = scripts.tables.placed(text, tables[0], [result(scripts, "one b", [1], 2.0)])
    assert made == f"before | a |\n{begin}\n| row | test |\n|---|---|\n| one a | - |\n| one b | 2.0 |\n{end}\nafter\n"
    assert scripts.tables.placed(made, tables[0], [result(scripts, "one b", [1], 2.0)]) == made
    for damaged in ("nothing", text + text, text.replace(end, ""), text.replace(begin, end)):
        with pytest.raises(DataError, match=r"no single place for the table one"):
            scripts.tables.placed(damaged, tables[0], [])


# ---- the command line


@pytest.fixture
def program(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Runs the command line on tables in a directory of its own; what it exits with."""
    monkeypatch.setattr(scripts.program, "ROOT", tmp_path)
    monkeypatch.setattr(scripts.program, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(scripts.program, "version", lambda root: "a" * 12)

    def run(tables: tuple[Any, ...], *arguments: str) -> str:
        text = "".join(f"{begin}\n{end}\n" for begin, end in map(scripts.tables.marks, tables))
        if not (tmp_path / "R.md").exists():
            (tmp_path / "R.md").write_text(text)
        typed = ["reproduce.py", str(tmp_path), "--output", str(tmp_path / "runs"), *arguments]
        monkeypatch.setattr(sys, "argv", typed)
        try:
            scripts.program.run(tables, "what it is for", "outputs")
        except SystemExit as ended:
            return str(ended.code)
        return ""

    return run


def test_every_row_and_seed_is_made_once_and_is_in_the_readme(
    scripts: Any, program: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[int] = []

    def make(place: Any, seed: int) -> Any:
        assert (place.data, place.output) == (tmp_path, tmp_path / "runs")
        told.append(seed)
        return scripts.tables.Made({"test": float(seed)}, 2.04)

    tables = tiny(scripts, make)
    assert program(tables, "--seed", "2") == ""
    assert told == [2, 2]  # the row with one seed does not have this one
    assert program(tables, "--only", "X=A") == ""
    assert told == [2, 2, 1, 3]
    assert program(tables, "--table", "two") == ""
    assert "| one a | 2.0 ± 1.0 |\n| one b | 2.0 |" in (tmp_path / "R.md").read_text()
    assert program(tables) == ""
    assert told == [2, 2, 1, 3, 1, 1, 3]
    assert program(tables) == ""
    assert len(told) == 7
    first = scripts.results.load_results(tmp_path / "results.json")[0]
    assert (first.seconds, first.commit, first.command) == (2.0, "a" * 12, "x=a")
    assert program(tables, "--again", "--rows", "two") == ""
    assert len(told) == 8
    assert program(tables, "--list") == ""
    assert "one a\n    seeds 1, 2, 3; measured: 1, 2, 3\n    x=a" in capsys.readouterr().out


def test_a_row_that_fails_or_lacks_data_does_not_keep_the_others(
    scripts: Any, program: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def make(place: Any, seed: int) -> Any:
        if seed == 2:
            raise scripts.running.FailedError("python -m lmtrain x ended with 5:\nit has diverged")
        return scripts.tables.Made({"test": 1.0}, None)

    assert program(tiny(scripts, make)) == "failed: one a, seed 2, one b, seed 2"
    said = capsys.readouterr()
    assert "| one a | 1.0 ± 0.0 |" in said.out
    assert "it has diverged" in said.err
    assert program(tiny(scripts, make, needs=("no/where",)), "--again") == ""
    assert "one a is left out: " in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_made(
    scripts: Any, program: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(place: Any, seed: int) -> Any:
        if seed == 2:
            raise KeyboardInterrupt
        return scripts.tables.Made({"test": 1.0}, None)

    assert program(tiny(scripts, make)) == "130"
    assert "the same command goes on" in capsys.readouterr().err
    assert "| one a | 1.0 |" in (tmp_path / "R.md").read_text()


def test_what_cannot_be_asked_or_written_is_said(
    scripts: Any,
    program: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def make(place: Any, seed: int) -> Any:
        return scripts.tables.Made({"test": 1.0}, None)

    tables = tiny(scripts, make)
    assert "no row has this" in program(tables, "--only", "nothing")
    assert "have the seeds 1, 2, 3" in program(tables, "--seed", "7")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="2"):
        scripts.program.run(tables, "", "outputs")
    assert "is no directory" in capsys.readouterr().err
    (tmp_path / "R.md").write_text("no marks")
    assert "no single place for the table one" in program(tables, "--render")
    (tmp_path / "R.md").unlink()
    (tmp_path / "results.json").write_text("{")
    assert "cannot be read as results" in program(tables)
    (tmp_path / "results.json").unlink()
    (tmp_path / "file").write_text("not a directory")
    assert "file" in program(tables, "--output", str(tmp_path / "file"))


def test_the_version_is_that_of_the_program_and_not_of_its_tables(scripts: Any, tmp_path: Path) -> None:
    version = scripts.program.version
    assert version(tmp_path / "none") is None
    for name in ("src", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("1")
        (tmp_path / name / "README.md").write_text("1")
    identity = ["-c", "user.name=a", "-c", "user.email=b"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    commit = version(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", commit)
    (tmp_path / "src" / "README.md").write_text("2")
    assert version(tmp_path) == commit
    (tmp_path / "conf" / "a.py").write_text("2")
    assert version(tmp_path) == f"{commit} with changes"


@pytest.mark.slow
def test_a_row_is_trained_evaluated_and_written(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The n-gram row, with a small text in the place of Brown."""
    data: ModuleType = scripts.program
    (tmp_path / "brown").mkdir()
    for name in ("train", "valid", "test"):
        lines = "".join(f"the w{i % 7} of w{i % 5} w{i % 3}\n" for i in range(200))
        (tmp_path / "brown" / f"{name}.txt").write_text(lines)
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(data, "RESULTS", tmp_path / "results.json")
    typed = ["reproduce.py", str(tmp_path), "--output", str(tmp_path / "runs"), "--only", "brown Kneser-Ney 3"]
    monkeypatch.setattr(sys, "argv", typed)
    data.run(scripts.brown.TABLES, "what it is for", "outputs")
    (made,) = scripts.results.load_results(tmp_path / "results.json")
    assert 1 < made.numbers["test"] < 10
    assert made.seconds is not None
    assert "| Kneser-Ney, order 3" in capsys.readouterr().out
