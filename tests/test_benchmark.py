"""`scripts/benchmark.py`, in small: contestants agree, and what could not be measured is null, never NaN."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lmtrain.ops.transforms import multiplies_bfloat16_in_plain_loops

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
LACKING = {("torch.nn", "bfloat16")} if multiplies_bfloat16_in_plain_loops() else set()
SIZES: dict[str, Any] = {"hidden_size": 9, "batch_size": 3, "chunk_length": 5, "vocab_size": 13}
PARTS = ["step", "dropin", "packed", "recurrence", "head", "generate", "score", "samples"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, without the large matrix products and the measurements behind a roofline."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("benchmark")
    monkeypatch.setattr(module, "peak_gflops", lambda precision, device: 1.0)
    monkeypatch.setattr(module, "work_of", lambda preset, precision: {})
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmark", "benchmarks")]:
        del sys.modules[name]


def tiny(benchmark: ModuleType, part: str, **sizes: Any) -> Any:
    return benchmark.Preset("tiny", part, **{**SIZES, "batch_size": 1 if part == "generate" else 3, **sizes})


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_contestants_that_agree(part: str, benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = benchmark.run_preset(tiny(benchmark, part), 1, CPU)
    names = {(row.backend.split()[0], row.precision) for row in rows}
    expected = {(name, precision) for name in ("torch.nn", "lmtrain.nn" if part in ("dropin", "packed") else "lmtrain")
                for precision in ("float32", "bfloat16")}  # fmt: skip
    assert expected - LACKING <= names
    assert all(row.agrees is (None if part in ("generate", "samples") else True) for row in rows)
    assert rows[0].ratio == rows[0].ratio_alike == 1
    assert all(row.ratio > 0 and row.tokens_per_second > 0 for row in rows)
    assert all(row.ratio_alike > 0 if ("torch.nn", row.precision) in names else row.ratio_alike is None for row in rows)
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("sizes", [{"embed_size": 4, "last_size": 4}, {"tied": False, "num_layers": 1}], ids=["stack", "one"])
def test_a_step_agrees_for_every_cell_and_for_layers_of_several_sizes(
    cell: str, sizes: dict[str, Any], benchmark: ModuleType
) -> None:
    rows = benchmark.run_preset(tiny(benchmark, "step", cell=cell, **sizes), 1, CPU)
    assert all(row.agrees for row in rows)
    assert {"recurrence", "head", "optimizer", "rest"} <= set(rows[-1].parts)


def test_the_drop_in_is_timed_beside_what_it_replaces(benchmark: ModuleType) -> None:
    assert benchmark.PRESETS["dropin650"].part == "dropin"
    rows = benchmark.run_preset(tiny(benchmark, "dropin", tied=False), 1, CPU)
    assert [(row.backend, row.precision) for row in rows] == [
        (f"{library}{kept}", precision)
        for library in ("torch.nn", "lmtrain.nn", "lmtrain.nn + loss")
        for precision in ("float32", "bfloat16")
        for kept in ("", ", memory kept")
        if (library, precision) not in LACKING
    ]


@pytest.mark.parametrize("part", ["score", "samples"])
def test_a_use_is_timed_side_by_side_and_one_by_one(part: str, benchmark: ModuleType) -> None:
    rows = benchmark.run_preset(tiny(benchmark, part, batch_size=5), 1, CPU)
    names = [f"{name} {precision}" for name in ("lmtrain one by one", "lmtrain") for precision in ("float32", "bfloat16")]
    assert {f"{row.backend} {row.precision}" for row in rows} >= {*names}
    assert {benchmark.PRESETS[name].part for name in ("score200", "samples200")} == {"score", "samples"}


def test_the_sampled_softmax_has_nothing_to_agree_with(benchmark: ModuleType) -> None:
    rows = benchmark.run_preset(tiny(benchmark, "step", cell="gru", tied=False, head="sampled", vocab_size=600), 1, CPU)
    assert {row.agrees for row in rows if row.backend.startswith("lmtrain")} == {None}


def texts(folder: Path) -> str:
    lines = [" ".join(f"w{i * j % 23}" for j in range(1, 2 + i % 9)) for i in range(400)]
    for name, part in ("train", lines[:300]), ("test", lines[300:]):
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    return str(folder)


def test_n_grams_are_scored_as_kenlm_scores_them(
    benchmark: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("kenlm", reason="kenlm is not installed (pip install kenlm)")
    rows = benchmark.run_preset(tiny(benchmark, "ngram", order=3, data=texts(tmp_path)), 1, CPU)
    assert [row.backend for row in rows] == ["kenlm 1 thread", "lmtrain lines in batches", "lmtrain one text"]
    assert all(row.agrees and row.ratio > 0 and row.tokens_per_second > 0 for row in rows)
    assert {(row.gflops, row.fraction_of_peak) for row in rows} == {(None, None)}
    assert "nan" not in capfd.readouterr().out


@pytest.mark.parametrize(("missing", "words"), [("kenlm", "pip install kenlm"), ("text", "--data DIR")])
def test_n_grams_without_kenlm_or_a_text_are_left_out_by_name(
    missing: str,
    words: str,
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None if missing == "kenlm" else ModuleType("kenlm"))  # type: ignore[arg-type]
    folder = texts(tmp_path) if missing == "kenlm" else str(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--preset", "ngram3", "ngram5", "--data", folder])
    benchmark.main()
    shown = capsys.readouterr().out
    assert all(f"{name} is left out: " in shown for name in ("ngram3", "ngram5"))
    assert words in shown


def test_a_wrong_gradient_or_one_that_is_not_a_number_does_not_agree(benchmark: ModuleType) -> None:
    expected = {"loss": torch.tensor(2.0), "w": torch.ones(3), "zero": torch.zeros(2)}
    for name, value in ("w", 1.1), ("w", torch.nan), ("loss", 2.1), ("loss", torch.inf), ("zero", 1e-9):
        probed = expected | {name: torch.full_like(expected[name], value)}
        assert benchmark.agrees(benchmark.Contestant("x", "float32", int, lambda p=probed: p), expected, CPU) is False
    assert benchmark.agrees(benchmark.Contestant("x", "float32", int, lambda: expected), expected, CPU) is True


def rows_of(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, contestants: list[Any]) -> list[Any]:
    monkeypatch.setitem(benchmark.MAKERS, "head", lambda preset, device: iter(contestants))
    rows: list[Any] = benchmark.run_preset(tiny(benchmark, "head"), 2, CPU)
    return rows


@pytest.mark.parametrize("when", ["compared", "run"])
def test_a_contestant_that_fails_is_left_out_and_spoils_no_number(
    when: str, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "multiplies_bfloat16_in_plain_loops", lambda: False)

    def fail() -> Any:
        raise RuntimeError("no kernel\nand more")

    def fine() -> Any:
        return {}

    rows = rows_of(benchmark, monkeypatch, [
        benchmark.Contestant("torch.nn", "float32", fine, fine),
        benchmark.Contestant("torch.nn", "bfloat16", fail, fail if when == "compared" else fine),
        benchmark.Contestant("lmtrain native", "bfloat16", fine, fine),
    ])  # fmt: skip
    assert [(row.backend, row.ratio_alike is None) for row in rows] == [
        ("torch.nn", False), ("torch.nn, memory kept", False), ("lmtrain native", True),
    ]  # fmt: skip
    shown = capsys.readouterr().out
    assert "torch.nn bfloat16 cannot run here: no kernel\n" in shown
    assert "nan" not in shown


def test_a_time_of_nothing_is_no_ratio(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "seconds_of", lambda work, device: 0.0)
    monkeypatch.setattr(benchmark, "peak_gflops", lambda precision, device: None)
    row, _ = rows_of(benchmark, monkeypatch, [benchmark.Contestant("torch.nn", "float32", int)])
    assert (row.ratio, row.ratio_alike, row.tokens_per_second, row.gflops, row.fraction_of_peak) == (None,) * 5
    shown = capsys.readouterr().out
    assert "nan" not in shown
    assert "inf" not in shown


def test_without_a_roofline_the_rows_are_there_and_the_reason_is_said(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Any:
        raise benchmark.LeftOutError("the native backend is missing: no compiler")

    monkeypatch.setattr(benchmark, "machine", missing)
    monkeypatch.setattr(benchmark, "work_of", lambda preset, precision: {"head": None})
    rows = benchmark.run_preset(tiny(benchmark, "head"), 1, CPU)
    assert rows
    assert {len(row.roofline) for row in rows} == {0}
    assert "There is no roofline: the native backend is missing: no compiler." in capsys.readouterr().out


def test_a_preset_that_fails_is_named_and_the_others_are_written(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(benchmark.PRESETS, "lstm200", tiny(benchmark, "head"))
    monkeypatch.setitem(benchmark.PRESETS, "head200", tiny(benchmark, "head", vocab_size=-1))
    file = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--preset", "head200", "lstm200", "--repeat", "1", "--json", str(file)])
    with pytest.raises(SystemExit, match="failed: head200"):
        benchmark.main()
    rows = json.loads(file.read_text())
    assert rows
    assert set(rows[0]) == {
        "preset", "backend", "precision", "milliseconds_per_step", "tokens_per_second", "ratio", "ratio_alike", "gflops",
        "fraction_of_peak", "peak_megabytes", "agrees", "parts", "ratio_autocast", "ratio_kept", "ratio_autocast_kept",
        "roofline",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"), [("--repeat", "0"), ("--threads", "-1"), ("--preset", "lstm2000"), ("--device", "cuda")]
)
def test_options_that_cannot_be_used_are_refused(
    option: str, value: str, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", option, value])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert option in capsys.readouterr().err


def test_the_presets_of_the_commands_for_a_gpu_are_there(benchmark: ModuleType) -> None:
    names = "lstm200 lstm650 gru650 elman650 char512 dropin650 packed256 head200"
    assert set(benchmark.CPU_PRESETS) >= {*names.split()}
    assert set(benchmark.GPU_PRESETS) >= {"step650", "awd1152", "gru1024", "lstm1024", "step512chars"}


def test_scripts_and_src_suffice(tmp_path: Path) -> None:
    """On a borrowed machine nothing is installed: the two directories are copied, and the command is the README's."""
    for name in ("scripts", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "scripts/benchmark.py", "--help"]
    ended = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": "src"}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "step512chars" in ended.stdout


@pytest.mark.slow
def test_a_version_is_timed_against_another(place: Path) -> None:
    """Against itself: both do the same work, to the last bit, in every precision."""
    script = ROOT / "scripts" / "against.py"
    options = ["--lines", "5", "--tokens", "4", "--repeat", "1", "--threads", "1"]
    ended = subprocess.run(
        [sys.executable, str(script), str(ROOT), "run", "text.txt", *options],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = [row.split(" | ") for row in ended.stdout.splitlines()[2:]]
    assert len(rows) == 12
    assert all(float(row[-1].rstrip(" |")) > 0 for row in rows)
    results = dict(line.split(": ") for line in ended.stderr.splitlines() if ", " in line)
    for what, result in results.items():
        assert results[what.replace("before", "now")] == result
