"""The native backend against the references, compiled for this processor and, by LMTRAIN_NATIVE_ISA, for lesser ones.

The library goes into the user's cache, so that only the first run of the tests compiles.
"""

import logging
import mmap
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lmtrain.errors import ResourceError
from lmtrain.ops import native
from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.elman import elman
from lmtrain.ops.gru import gru
from lmtrain.ops.lstm import lstm
from lmtrain.ops.native import build

LESSER_BUILD = "avx2" if platform.machine() == "x86_64" else "portable"  # each takes some seconds to compile; others: slow
SIZES = [(1, 1, 1), (1, 3, 17), (2, 1, 2), (3, 35, 3), (2, 17, 130), (17, 2, 35), (35, 3, 17), (3, 130, 2), (130, 1, 3)]
FEW_SIZES = [(1, 3, 17), (2, 17, 130), (17, 2, 35)]


@dataclass(frozen=True)
class Cell:
    """A recurrence: its function and the letters of its inputs; Z gates x H."""

    op: Callable[..., tuple[Tensor, ...]]
    gates: int
    inputs: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, T: int, B: int, H: int, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(T + 10 * B + 100 * H + 100_000 * seed)
        sizes = {"T": T, "B": B, "H": H, "Z": self.gates * H}
        tensors = {name: torch.randn([sizes[x] for x in letters], generator=generator) for name, letters in self.inputs.items()}
        weight = next(name for name in tensors if name.startswith("weight"))
        tensors[weight] /= H**0.5
        if self.options.get("nonlinearity") == "relu":  # rounding must not carry a sum across the kink
            tensors["projected_TBH"] += 3 * tensors["projected_TBH"].sign()
        return tensors

    def run(
        self, inputs: dict[str, Tensor], backend: str, dtype: torch.dtype, keep_TB: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Outputs, and gradients of their weighted sum, for inputs of this type; cells and biases of the accumulating one."""
        wide = torch.float32 if dtype == torch.bfloat16 else dtype
        leaves = [
            x.detach().to(wide if name in ("c0_BH", "candidate_bias_H") else dtype).requires_grad_()
            for name, x in inputs.items()
        ]
        outputs = self.op(*leaves, keep_TB=keep_TB, backend=backend, **self.options)
        generator = torch.Generator().manual_seed(5)
        upstreams = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
        gradients = torch.autograd.grad(outputs, leaves, upstreams)
        names = ["states_TBH", "h_BH", "c_BH"][: len(outputs)] + [f"d_{name}" for name in inputs]
        return {name: y.detach().double() for name, y in zip(names, (*outputs, *gradients), strict=True)}


_ELMAN = {"projected_TBH": "TBH", "h0_BH": "BH", "weight_HH": "HH"}
CELLS = {
    "elman tanh": Cell(elman, 1, _ELMAN),
    "elman relu": Cell(elman, 1, _ELMAN, {"nonlinearity": "relu"}),
    "elman sigmoid": Cell(elman, 1, _ELMAN, {"nonlinearity": "sigmoid"}),
    "elman identity": Cell(elman, 1, _ELMAN, {"nonlinearity": "identity"}),
    "gru": Cell(gru, 3, {"projected_TBZ": "TBZ", "h0_BH": "BH", "weight_ZH": "ZH", "candidate_bias_H": "H"}),
    "lstm": Cell(lstm, 4, {"projected_TBZ": "TBZ", "h0_BH": "BH", "c0_BH": "BH", "weight_ZH": "ZH"}),
}
CALL = Call("lstm", "cpu", torch.float32, {"T": 1, "B": 1, "H": 1})


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> Cell:
    return CELLS[request.param]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if reason := why_not("native", CALL):
        pytest.skip(reason)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if (
        request.param.startswith("avx512")
        and {"avx512": "avx512bw"}.get(request.param, request.param) not in build._instruction_sets()
    ):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", request.param)
    if reason := why_not("native", CALL):
        pytest.skip(reason)
    return request.param


def relative_error(made: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((made - expected).norm() / expected.norm().clamp(min=1e-30))


def resets(T: int, B: int) -> Tensor:
    """About a third of the streams start anew before every second step."""
    generator = torch.Generator().manual_seed(4)
    keep_TB = (torch.rand(T, B, generator=generator) > 0.3).float()
    keep_TB[::2] = 1
    return keep_TB


def assert_within(cell: Cell, dtype: torch.dtype, limit: float, T: int, B: int, H: int) -> None:
    """Errors against float64 stay below `limit`, or twice the reference's own in this type where that is more.

    Where a gradient has few numbers, several draws are judged together: two single roundings have no meaningful ratio.
    """
    keep_TB = resets(T, B) if (T + B + H) % 2 else None
    made: list[dict[str, Tensor]] = []
    for seed in range(1 + 150 // (T * H) + 20 // H if dtype == torch.bfloat16 else 1):
        rounded = {name: x.to(dtype).float() for name, x in cell.make(T, B, H, seed).items()}
        arguments = [("native", dtype), ("reference", dtype), ("reference", torch.float64)]
        made.append({f"{who} {kind}": cell.run(rounded, who, kind, keep_TB) for who, kind in arguments})
    native_runs, own_runs, exact_runs = ([m[key] for m in made] for key in made[0])
    for name in exact_runs[0]:
        exact, got, own = (torch.stack([run[name] for run in runs]) for runs in (exact_runs, native_runs, own_runs))
        error, own_error = relative_error(got, exact), relative_error(own, exact)
        assert error <= max(limit, 2 * own_error), f"{name}: {error:.1e}, the reference's own {own_error:.1e}"


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_float32_values_and_gradients_equal_the_reference_to_1e_5(cell: Cell, T: int, B: int, H: int) -> None:
    assert_within(cell, torch.float32, 1e-5, T, B, H)


@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_bfloat16_errs_at_most_twice_as_much_as_the_reference_in_bfloat16(cell: Cell, T: int, B: int, H: int) -> None:
    assert_within(cell, torch.bfloat16, 0.0, T, B, H)


@pytest.mark.parametrize(("T", "B", "H"), FEW_SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", [LESSER_BUILD], indirect=True)
def test_builds_for_lesser_processors_agree_too(cell: Cell, isa: str, dtype: torch.dtype, T: int, B: int, H: int) -> None:
    assert_within(cell, dtype, 1e-5 if dtype == torch.float32 else 0.0, T, B, H)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "portable", "avx512", "avx512_bf16"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_every_build_agrees_at_every_size(cell: Cell, isa: str, dtype: torch.dtype, T: int, B: int, H: int) -> None:
    assert_within(cell, dtype, 1e-5 if dtype == torch.float32 else 0.0, T, B, H)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "B", "H"), [(3, 20, 130), (2, 33, 114), (3, 5, 250), (2, 16, 730)])
def test_several_threads_compute_what_one_computes(cell: Cell, dtype: torch.dtype, T: int, B: int, H: int) -> None:
    """Large enough for several threads, which share the streams, or the units where streams are few or the weight is large."""
    inputs = cell.make(T, B, H)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = cell.run(inputs, "native", dtype)
    for number in (2, 3, 5):
        torch.set_num_threads(number)
        together = cell.run(inputs, "native", dtype)
        torch.set_num_threads(before)
        for name in ("states_TBH", "d_h0_BH"):
            assert torch.equal(alone[name], together[name]), (name, number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_bit_identical(cell: Cell, dtype: torch.dtype, threads: int) -> None:
    inputs = cell.make(5, 20, 130)
    first = cell.run(inputs, "native", dtype)
    for _ in range(3):
        for name, y in cell.run(inputs, "native", dtype).items():
            assert torch.equal(y, first[name]), name


@pytest.mark.parametrize("isa", ["native", LESSER_BUILD], indirect=True)
def test_gates_at_plus_and_minus_100_stay_finite_and_right(cell: Cell, isa: str) -> None:
    inputs = cell.make(4, 3, 17)
    name = next(iter(inputs))
    inputs[name] = 100 * inputs[name].sign()
    exact = cell.run(inputs, "reference", torch.float64)
    for output, y in cell.run(inputs, "native", torch.float32).items():
        assert y.isfinite().all(), output
        largest = (
            max(1.0, exact[output].abs().max().item()) if "identity" in cell.options.values() else 1.0
        )  # others are bounded
        assert_close(y, exact[output], rtol=1e-5, atol=1e-5 * largest)


def test_tanh_keeps_its_relative_accuracy_near_zero() -> None:
    projected = torch.logspace(-30, 1, 200)[None, None]
    states, _ = elman(projected, torch.zeros(1, 200), torch.zeros(200, 200), backend="native")
    assert_close(states.double(), projected.double().tanh(), rtol=4e-7, atol=0)


@pytest.mark.parametrize("isa", ["native", LESSER_BUILD], indirect=True)
def test_sigmoid_keeps_its_relative_accuracy_far_below_zero(isa: str) -> None:
    projected = torch.linspace(-80, 20, 401)[None, None]
    states, _ = elman(projected, torch.zeros(1, 401), torch.zeros(401, 401), nonlinearity="sigmoid", backend="native")
    assert_close(states.double(), projected.double().sigmoid(), rtol=4e-7, atol=0)


def test_not_a_number_reaches_the_output(cell: Cell) -> None:
    inputs = cell.make(3, 2, 17)
    next(iter(inputs.values()))[1, 0] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        states_TBH = cell.run(inputs, "native", dtype)["states_TBH"]
        assert states_TBH[1:, 0].isnan().all()
        assert states_TBH[:, 1].isfinite().all()


def test_denormal_numbers_cost_no_more_than_ordinary_ones() -> None:
    T, B, H = 20, 16, 128
    inputs = CELLS["elman tanh"].make(T, B, H).values()
    tiny = [torch.full_like(x, 1e-39) for x in inputs]

    def seconds(tensors: Any) -> float:
        elapsed = []
        for _ in range(5):
            started_at = time.thread_time()
            elman(*tensors, backend="native")
            elapsed.append(time.thread_time() - started_at)
        return min(elapsed)

    assert seconds(tiny) < 3 * seconds(list(inputs))
    assert torch.tensor(1e-39) * 1 != 0  # the caller's own arithmetic still has them


def test_inputs_and_upstream_gradients_of_any_strides_give_the_same(cell: Cell) -> None:
    def strided(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=-1)[..., ::2].transpose(0, -1).contiguous().transpose(0, -1)

    inputs = cell.make(3, 4, 5)
    plain, got = ([x.clone().requires_grad_() for x in inputs.values()] for _ in range(2))
    outputs = cell.op(*plain, backend="native", **cell.options)
    others = cell.op(*(strided(x) for x in got), backend="native", **cell.options)
    for y, other in zip(outputs, others, strict=True):
        assert torch.equal(y, other)
    ones = torch.autograd.grad(outputs[0], plain, torch.ones(3, 4, 5))
    expanded = torch.autograd.grad(others[0].sum(), got)  # its upstream gradient has stride 0
    for d, other in zip(ones, expanded, strict=True):
        assert_close(d, other, rtol=1e-6, atol=1e-6)


def test_without_gradients_the_states_are_the_same(cell: Cell) -> None:
    inputs = cell.make(4, 3, 17)
    with torch.no_grad():
        states_TBH, *_ = cell.op(*inputs.values(), backend="native", **cell.options)
    assert torch.equal(states_TBH.double(), cell.run(inputs, "native", torch.float32)["states_TBH"])


def test_two_python_threads_may_compute_at_once() -> None:
    cell = CELLS["lstm"]
    inputs = [cell.make(4, 3, 35), cell.make(5, 7, 20)]
    expected = [cell.run(x, "native", torch.float32) for x in inputs]
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda index: cell.run(inputs[index % 2], "native", torch.float32), range(20))
        for index, results in enumerate(made):
            for name, y in results.items():
                assert torch.equal(y, expected[index % 2][name])


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call("lstm", "cuda", torch.float32, {}), "it runs on the CPU, not on cuda"),
        (Call("gru", "cpu", torch.float64, {}), "it computes in float32 and bfloat16, not in float64"),
        (
            Call("lstm", "cpu", torch.float32, {}, frozenset({"keep_TB", "zoneout_TBH", "norm_gain_Z"})),
            "it has no norm_gain_Z and no zoneout_TBH",
        ),
        (Call("elman", "cpu", torch.bfloat16, {}, frozenset({"keep_TB"})), None),
    ],
)
def test_why_not_names_what_is_in_the_way(call: Call, reason: str | None) -> None:
    assert native.why_not(call) == reason


def test_zoneout_by_name_is_refused_with_the_reason() -> None:
    inputs = CELLS["gru"].make(1, 1, 1)
    with pytest.raises(ResourceError, match="cannot compute gru in float32 on cpu: it has no zoneout_TBH"):
        gru(*inputs.values(), zoneout_TBH=torch.zeros(1), backend="native")


# --- building -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and no memory of what was loaded."""
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_libraries", {})
    monkeypatch.setattr(build, "_reasons", {})
    return tmp_path


def test_without_a_compiler_the_reason_says_how_to_get_one(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    reason = native.why_not(CALL)
    assert reason is not None
    assert "no C++ compiler (g++) on PATH" in reason
    assert "apt install g++" in reason
    with caplog.at_level(logging.INFO, "lmtrain"):
        states_TBH, *_ = lstm(*CELLS["lstm"].make(2, 1, 3).values())
    assert states_TBH.shape == (2, 1, 3)
    assert [m for m in caplog.messages if "apt install g++" in m] in (caplog.messages, [])  # told at most once a process


def test_a_compiler_that_fails_is_quoted(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = fresh / "broken"
    compiler.write_text("#!/bin/sh\necho 'native.cpp:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    reason = native.why_not(CALL)
    assert reason is not None
    assert reason.endswith("cannot compile the native backend: native.cpp:1: error: no such thing")
    assert not list(fresh.glob("native/*.so"))


def test_a_cache_that_cannot_be_written_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "file").write_text("")
    monkeypatch.setenv("LMTRAIN_CACHE", str(fresh / "file"))
    reason = native.why_not(CALL)
    assert reason is not None
    assert "set LMTRAIN_CACHE to another folder" in reason


def test_an_unknown_instruction_set_is_refused(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", "mmx")
    assert native.why_not(CALL) == "LMTRAIN_NATIVE_ISA=mmx is none of native, avx512_bf16, avx512, avx2, portable"


def test_importing_compiles_nothing(tmp_path: Path) -> None:
    code = "import lmtrain.ops.native, lmtrain.ops.lstm"
    environment = {**os.environ, "LMTRAIN_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not any(tmp_path.iterdir())


def test_the_openmp_runtime_is_found_beside_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    before = build._key("portable")
    file = tmp_path / os.fsdecode(b"B\xe4r")
    file.write_bytes(b"text")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ):
        assert build._key("portable") == before


@pytest.mark.slow
def test_two_processes_that_build_at_once_compile_once(tmp_path: Path) -> None:
    code = (
        "import logging, torch; logging.basicConfig(level=logging.INFO);"
        "from lmtrain.ops import native; from lmtrain.ops.backends import Call;"
        "assert native.why_not(Call('lstm', 'cpu', torch.float32, {})) is None"
    )
    environment = {**os.environ, "LMTRAIN_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("compiling the native backend" in text for text in told) == 1
    assert len(list(tmp_path.glob("native/*.so"))) == 1
