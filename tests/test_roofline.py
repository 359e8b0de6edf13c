"""`scripts/benchmarks/roofline.py`: what a part must do at least is counted right, and its limit is the longer of two times."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
LSTM: dict[str, Any] = {"cell": "lstm", "num_layers": 1, "hidden_size": 2, "batch_size": 3, "chunk_length": 5, "vocab_size": 40}


class Scripts:
    """The modules of the benchmark, imported for one test."""

    def __init__(self) -> None:
        for name in ("presets", "machine", "models", "roofline", "measuring"):
            setattr(self, name, importlib.import_module(f"benchmarks.{name}"))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Once, because the native product is compiled for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield Scripts()
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmark", "benchmarks")]:
        del sys.modules[name]


class Slow:
    """A machine that computes one operation a second, reads a byte of a cache in a second and one of memory in ten."""

    def seconds(self, product: Any, precision: str) -> float:
        return float(product.flops)

    def shares(self, set_bytes: int) -> dict[str, float]:
        return {"L2": 1.0} if set_bytes <= 100 else {"L2": 0.5, "memory": 0.5}

    def bytes_per_second(self, level: str, updates: bool) -> float:
        return {"L2": 1.0, "memory": 0.1}[level] * (2 if updates else 1)


def presets(scripts: Any) -> list[Any]:
    return [*scripts.presets.CPU_PRESETS.values(), *scripts.presets.GPU_PRESETS.values()]


def test_the_products_of_all_parts_are_the_operations_of_the_preset(scripts: Any) -> None:
    checked = 0
    for preset in presets(scripts):
        work = scripts.roofline.work_of(preset, "bfloat16")
        if work and not preset.projects_words:
            assert sum(part.flops for part in work.values()) == preset.flops, preset.name
            checked += 1
    assert checked >= 20
    assert scripts.roofline.work_of(scripts.presets.PRESETS["ngram3"], "float32") == {}


def test_words_that_are_projected_once_take_fewer_operations(scripts: Any) -> None:
    preset = scripts.presets.PRESETS["char512"]
    assert preset.projects_words
    (forward, _, _) = scripts.roofline.work_of(preset, "float32")["projection"].products
    assert (forward.rows, forward.inner, forward.columns) == (65, 512, 2048)
    saved = 3 * 2 * (preset.num_tokens - 65) * 512 * 2048
    assert sum(part.flops for part in scripts.roofline.work_of(preset, "float32").values()) == preset.flops - saved


@pytest.mark.parametrize("vocab_size", [7, 8, 9])
def test_whether_words_are_projected_is_what_the_model_does(vocab_size: int, scripts: Any) -> None:
    preset = scripts.presets.Preset("tiny", "step", hidden_size=4, batch_size=3, chunk_length=6, vocab_size=vocab_size)
    model = scripts.models.our_model(preset, "reference", CPU)
    assert model._projects_words(torch.zeros(6, 3, dtype=torch.long)) == preset.projects_words == (vocab_size <= 8)


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("sizes", [{"tied": True}, {"tied": False, "embed_size": 3, "last_size": 5}], ids=["tied", "stack"])
def test_the_parameters_are_those_of_the_model(cell: str, sizes: dict[str, Any], scripts: Any) -> None:
    preset = scripts.presets.Preset("tiny", "step", cell, hidden_size=4, vocab_size=11, **sizes)
    assert preset.num_parameters == sum(
        weight.numel() for weight in scripts.models.our_model(preset, "reference", CPU).parameters()
    )


def test_the_bytes_of_a_small_lstm_are_those_that_a_person_counts(scripts: Any) -> None:
    """15 tokens, 2 units, 8 gates, 40 words, in bfloat16: 2 bytes, weights and cells 4."""
    preset = scripts.presets.Preset("tiny", "step", **LSTM)
    work = scripts.roofline.work_of(preset, "bfloat16")
    parameters = 40 * 2 + 40 + 8 * (2 + 2 + 1)  # the tied table, its bias, the layer
    projected, states, cells, gates = 15 * 8 * 2, 15 * 2 * 2, 15 * 2 * 4, 15 * 8 * 2
    weight, weight_in_bfloat16 = 8 * 2 * 4, 8 * 2 * 2
    assert {name: [(t.num_bytes, t.set_bytes, t.updates) for t in part.traffic] for name, part in work.items()} == {
        "embedding": [(4 * 15 * 8, 4 * 15 * 8, True)],  # 15 rows of 8 bytes: read, written; gradients read, written
        "projection": [(2 * (states + projected) + 2 * weight,) * 2 + (True,)],
        "forward": [
            (5 * weight_in_bfloat16, weight_in_bfloat16, False),
            (projected + states + cells + gates,) * 2 + (True,),
        ],
        "backward": [
            (5 * weight_in_bfloat16, weight_in_bfloat16, False),
            (2 * states + cells + gates + projected + weight,) * 2 + (True,),
        ],
        "head": [(2 * 40 * 2 * 4 + 2 * states,) * 2 + (True,)],
        "clip": [(4 * parameters, 4 * parameters, False)],
        "optimizer": [(7 * 4 * parameters, 16 * parameters, True)],
    }


def test_the_steps_of_a_recurrence_are_products_of_their_own_shape(scripts: Any) -> None:
    work = scripts.roofline.work_of(scripts.presets.PRESETS["gru650"], "float32")
    assert [str(product) for product in work["forward"].products] == ["20 x 650 x 1950, 35 times"] * 2
    assert [str(product) for product in work["backward"].products] == ["20 x 1950 x 650, 35 times", "1950 x 700 x 650"] * 2
    assert set(work) == {"projection", "forward", "backward"}


def test_what_is_written_token_by_token_reads_all_weights_each_time(scripts: Any) -> None:
    preset = scripts.presets.Preset("tiny", "generate", **{**LSTM, "batch_size": 1})
    (traffic,) = scripts.roofline.work_of(preset, "float32")["tokens"].traffic
    assert (traffic.num_bytes, traffic.set_bytes, traffic.updates) == (5 * 4 * 112, 4 * 112, False)  # 16 + 16 + 80 weights
    in_8_bits = scripts.roofline.work_of(preset, "int8")["tokens"]
    assert (in_8_bits.products, in_8_bits.num_bytes) == ((), 5 * 112)


def test_a_limit_is_the_longer_of_both_times_and_says_which(scripts: Any) -> None:
    roofline, product = scripts.roofline, scripts.machine.Product(2, 3, 5, times=4)
    assert product.flops == 240
    for traffic, milliseconds, bound in (
        ((roofline.Traffic(100, 100, False),), 240e3, "products"),
        ((roofline.Traffic(300, 100, False),), 300e3, "L2"),
        ((roofline.Traffic(300, 100, True),), 240e3, "products"),  # two bytes a second
        ((roofline.Traffic(40, 101, False), roofline.Traffic(100, 100, False)), 320e3, "memory"),  # 20 x 1 + 20 x 10 + 100
    ):
        limit = roofline.limit(roofline.Work((product,), traffic), "float32", Slow())
        assert (limit.milliseconds, limit.bound) == (pytest.approx(milliseconds), bound)


def test_what_was_reached_is_told_of_each_part_of_the_rest_and_of_the_whole(scripts: Any) -> None:
    limits = {"head": scripts.roofline.Limit(6.0, "products"), "clip": scripts.roofline.Limit(1.0, "L3")}
    reached = scripts.roofline.compared({"head": 8.0, "clip": 2.0}, limits, 14.0)
    assert {name: (part.milliseconds, part.limit_milliseconds, part.fraction) for name, part in reached.items()} == {
        "head": (8.0, 6.0, 0.75), "clip": (2.0, 1.0, 0.5), "rest": (4.0, 0.0, None), "whole": (14.0, 7.0, 0.5),
    }  # fmt: skip
    assert set(scripts.roofline.compared({}, limits, 14.0)) == {"whole"}
    assert scripts.roofline.compared({"head": 0.0, "clip": 1.0}, limits, 0.0)["whole"].fraction is None
    shown = scripts.roofline.table("ours", reached)
    assert "head            8.000    6.000      75%  products" in shown
    assert json.dumps([asdict(part) for part in reached.values()], allow_nan=False)


def test_sets_lie_in_the_nearest_caches_that_hold_them(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = [
        ("1", "Data", "48K"),
        ("1", "Instruction", "32K"),
        ("2", "Unified", "1024K"),
        ("3", "Unified", "32M"),
        ("4", "", "x"),
    ]
    for index, values in enumerate(told):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size"), values, strict=True):
            (folder / name).write_text(value + "\n")
    monkeypatch.setattr(scripts.machine, "CACHES", tmp_path)
    assert scripts.machine.cache_bytes(2) == {"L2": 2 << 20, "L3": 32 << 20}
    machine = scripts.machine.Machine.__new__(scripts.machine.Machine)
    machine.cache_bytes = scripts.machine.cache_bytes(2)
    megabyte = 1 << 20
    assert machine.shares(1) == machine.shares(2 * megabyte) == {"L2": 1.0}
    assert machine.shares(4 * megabyte) == {"L2": 0.5, "L3": 0.5}
    assert machine.shares(32 * megabyte) == {"L2": 2 / 32, "L3": 30 / 32}
    assert machine.shares(64 * megabyte) == {"L2": 2 / 64, "L3": 30 / 64, "memory": 0.5}
    monkeypatch.setattr(scripts.machine, "CACHES", tmp_path / "none")
    assert scripts.machine.cache_bytes(2) == {}
    machine.cache_bytes = {}
    assert machine.shares(5) == {"memory": 1.0}


def machine_of(scripts: Any) -> Any:
    try:
        return scripts.machine.Machine()
    except scripts.measuring.LeftOutError as error:
        pytest.skip(str(error))


def test_the_native_product_that_is_timed_is_the_product(scripts: Any) -> None:
    machine = machine_of(scripts)
    for threads in (1, 2, 3):
        machine.threads = threads
        for sizes in ((1, 1, 1), (2, 3, 17), (3, 17, 130), (17, 20, 1), (20, 130, 257), (130, 65, 20)):
            product = scripts.machine.Product(*sizes, times=2)
            for precision in ("float32", "bfloat16"):
                left, right = scripts.machine.operands(product, precision)
                expected = left.float() @ right.float().T
                for by_rows in (False, True):
                    first = torch.full_like(expected, torch.nan)
                    machine.native_product(product, precision, by_rows, first)()
                    assert (first - expected).norm() <= 1e-5 * expected.norm(), (threads, sizes, precision, by_rows)


def test_the_fastest_way_counts_and_is_measured_once(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_of(scripts)
    once, often = scripts.machine.Product(5, 7, 9), scripts.machine.Product(5, 7, 9, times=3)
    ways = {name.split(" by ")[0] for name in machine.ways(once, "float32")}
    assert ways == {"torch", "product", "native", "native turned"}
    assert {name.split(" by ")[0] for name in machine.ways(often, "bfloat16")} == {"torch", "native"}
    told: list[Any] = []
    monkeypatch.setattr(machine, "ways", lambda *asked: told.append(asked) or {"torch": 3.0, "native": 2.0})
    assert [machine.seconds(once, "float32") for _ in range(3)] == [2.0] * 3
    assert told == [(once, "float32")] * scripts.machine.ROUNDS


def test_a_bandwidth_is_measured_where_the_bytes_lie(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_of(scripts)
    machine.cache_bytes = {"L2": 1 << 16}
    monkeypatch.setattr(scripts.machine, "ENOUGH_BYTES", 1 << 16)
    assert machine.bytes_per_second("L2", False) > 0
    assert machine.bytes_per_second("L2", True) > 0


@pytest.mark.parametrize("part", ["step", "recurrence", "head", "generate"])
def test_every_part_that_is_measured_has_a_limit(part: str, scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    benchmark: ModuleType = importlib.import_module("benchmark")
    monkeypatch.setattr(benchmark, "peak_gflops", lambda precision, device: 1.0)
    monkeypatch.setattr(benchmark, "machine", Slow)
    sizes: dict[str, Any] = {"hidden_size": 9, "batch_size": 1 if part == "generate" else 3, "chunk_length": 5}
    for vocab_size in (7, 13) if part == "step" else (13,):  # words that are projected, and others
        preset = benchmark.Preset("tiny", part, vocab_size=vocab_size, **sizes)
        assert preset.projects_words == (vocab_size == 7)
        for row in benchmark.run_preset(preset, 1, CPU):
            assert {"whole"} <= set(row.roofline)
            if row.backend == "lmtrain native" and part in ("step", "recurrence"):
                assert set(row.roofline) == {*scripts.roofline.work_of(preset, "float32"), "rest", "whole"}
                assert all(reached.milliseconds > 0 for name, reached in row.roofline.items() if name != "rest")
    assert "each part alone, and its limit" in capsys.readouterr().out


def test_ratios_are_to_three_ways_of_torch(scripts: Any) -> None:
    rows = importlib.import_module("benchmarks.rows")
    preset = replace(scripts.presets.PRESETS["head200"], name="tiny")
    contestants = [
        scripts.measuring.Contestant(backend, precision, int, seconds=[seconds])
        for backend, precision, seconds in (
            ("torch.nn", "float32", 12.0), ("torch.nn", "bfloat16", 9.0), ("lmtrain native", "bfloat16", 3.0),
            ("lmtrain.nn", "bfloat16", 4.0),
        )
    ]  # fmt: skip
    for contestant, seconds in zip(contestants[:2], (6.0, 4.5), strict=True):
        (twin,) = scripts.measuring.with_memory_kept(contestant)
        assert (twin.backend, twin.keeps_memory, contestant.keeps_memory) == ("torch.nn, memory kept", True, False)
        twin.seconds.append(seconds)
        contestants.append(twin)
    assert scripts.measuring.with_memory_kept(contestants[2]) == []
    medians = rows.medians_of(contestants)
    made = [rows.make_row(preset, each, contestants[0], medians, {}, None, 0.0) for each in contestants]
    names = ("ratio", "ratio_autocast", "ratio_kept", "ratio_autocast_kept", "ratio_alike")
    assert [tuple(getattr(row, name) for name in names) for row in made[2:5]] == [
        (4.0, 3.0, 2.0, 1.5, 3.0),
        (3.0, 2.25, None, None, 2.25),  # as a foreign script: freed memory is not kept
        (2.0, 1.5, 1.0, 0.75, 2.0),
    ]


def told(
    backend: str, precision: str, milliseconds: float, **parts: tuple[float | None, float, float | None]
) -> dict[str, Any]:
    """A row as `--json` writes it, as far as a README needs it."""
    names = ("milliseconds", "limit_milliseconds", "fraction")
    roofline = {part: dict(zip(names, values, strict=True)) | {"bound": "L3"} for part, values in parts.items()}
    ratios = dict.fromkeys(("ratio", "ratio_autocast", "ratio_kept"), 9 / milliseconds) | {"ratio_autocast_kept": None}
    named = {"preset": "p", "backend": backend, "precision": precision, "milliseconds_per_step": milliseconds}
    return {**named, **ratios, "roofline": roofline}


def test_the_tables_for_a_readme_have_ratios_and_the_parts_of_ours(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([
        told("torch.nn", "float32", 9.0, whole=(9.0, 1.0, 0.1)),
        told("lmtrain eager", "bfloat16", 3.0, whole=(3.0, 1.0, 0.3)),
        told("lmtrain native", "bfloat16", 4.0, head=(2.0, 1.0, 0.5), rest=(2.0, 0.0, None), whole=(4.0, 1.0, 0.25)),
        told("lmtrain one by one", "float32", 8.0, whole=(8.0, 2.0, 0.25)),
        told("lmtrain", "float32", 5.0, whole=(5.0, 2.0, 0.4)),
    ]))  # fmt: skip
    benchmark: ModuleType = importlib.import_module("benchmark")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--table", str(file)])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines[:3]}) == len({line.count("|") for line in lines[4:]}) == 1
    assert lines[2] == "| `p` | 9 | 2.25 | 2.25 | 2.25 | - | 1.80 | 1.80 | 1.80 | - |"
    assert lines[6:] == [
        "| `p` | head | 2.00 | 1.00 | 50% | L3 | - | - | - | - |",
        "| `p` | rest | 2.00 | 0.00 | - | L3 | - | - | - | - |",
        "| `p` | whole | 4.00 | 1.00 | 25% | L3 | 5.00 | 2.00 | 40% | L3 |",
    ]


@pytest.mark.parametrize("text", ["", "[1]", '[{"backend": "lmtrain", "preset": "p"}]', None])
def test_a_file_that_is_no_benchmark_is_said(
    text: str | None, scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    if text is not None:
        file.write_text(text)
    benchmark: ModuleType = importlib.import_module("benchmark")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--table", str(file)])
    with pytest.raises(SystemExit, match="takes files that --json wrote"):
        benchmark.main()
