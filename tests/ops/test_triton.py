"""The Triton backend against the references: compiled where there is a GPU, otherwise in Triton's interpreter on the CPU.

TRITON_INTERPRET=1 pytest -k triton          in the interpreter whatever there is
"""

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
pytest.importorskip("triton", reason="Triton is not installed; pip install triton, or lmtrain[gpu]")

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from lmtrain.errors import ResourceError
from lmtrain.ops import triton as backend
from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.elman import elman
from lmtrain.ops.gru import gru
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy
from lmtrain.ops.lstm import lstm
from lmtrain.ops.triton import cross_entropy, launch, persistent
from lmtrain.ops.triton import elman as elman_kernels
from lmtrain.ops.triton import gru as gru_kernels
from lmtrain.ops.triton import lstm as lstm_kernels
from lmtrain.ops.triton.launch import INTERPRETED, variant
from lmtrain.ops.triton.persistent import Plan

if INTERPRETED:  # earlier interpreters cannot count a loop up to an argument with NumPy 2.4
    pytest.importorskip("triton", minversion="3.7", reason="the interpreter of Triton is used from 3.7 on")

DEVICE = "cpu" if INTERPRETED else "cuda"
SIZES = [(1, 1, 1), (2, 3, 17), (3, 17, 2), (17, 2, 35), (35, 1, 3), (1, 35, 2), (2, 1, 130)]
FEATURES = ["plain", "keep", "all"]
ORDINARY = {(2, 3, 17): "all", (1, 35, 2): "keep", (2, 1, 130): "plain"}  # the interpreter takes its time
CASES = [  # ordinarily one set of features for some sizes
    pytest.param(*sizes, features, marks=[] if ORDINARY.get(sizes) == features else [pytest.mark.slow])
    for sizes in SIZES
    for features in FEATURES
]


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
        draw = {name: [sizes[x] for x in letters] for name, letters in self.inputs.items()}
        tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in draw.items()}
        weight = next(name for name in tensors if name.startswith("weight"))
        tensors[weight] /= H**0.5
        if self.options.get("nonlinearity") == "relu":  # rounding must not carry a sum across the kink
            tensors["projected_TBH"] += 3 * tensors["projected_TBH"].sign()
            tensors[weight] *= 0.1
        return tensors

    def masks(self, features: str, T: int, B: int, H: int) -> dict[str, Tensor]:
        """Arguments that switch on what the name says."""
        generator = torch.Generator().manual_seed(7)
        made = {}
        if features in ("keep", "all"):
            made["keep_TB"] = (torch.rand(T, B, generator=generator) < 0.6).double()
        if features == "all":
            made["zoneout_TBH"] = torch.rand(T, B, H, generator=generator, dtype=torch.float64)
            if self.op is lstm:
                made["cell_zoneout_TBH"] = torch.rand(H, generator=generator, dtype=torch.float64)
        return made

    def run(self, inputs: dict[str, Tensor], name: str, dtype: torch.dtype, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs, and gradients of their weighted sum, for inputs of this type; cells and biases of the accumulating one."""
        wide = torch.float32 if dtype == torch.bfloat16 else dtype
        leaves = [
            x.detach().to(DEVICE, wide if key in ("c0_BH", "candidate_bias_H") else dtype).requires_grad_()
            for key, x in inputs.items()
        ]
        outputs = self.op(*leaves, backend=name, **self.options, **{key: mask.to(DEVICE) for key, mask in masks.items()})
        generator = torch.Generator().manual_seed(5)
        upstreams = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
        gradients = torch.autograd.grad(outputs, leaves, upstreams)
        names = ["states_TBH", "h_BH", "c_BH"][: len(outputs)] + [f"d_{key}" for key in inputs]
        return {key: y.detach().cpu().double() for key, y in zip(names, (*outputs, *gradients), strict=True)}


_ELMAN = {"projected_TBH": "TBH", "h0_BH": "BH", "weight_HH": "HH"}
CELLS = {
    "elman tanh": Cell(elman, 1, _ELMAN),
    "elman relu": Cell(elman, 1, _ELMAN, {"nonlinearity": "relu"}),
    "elman sigmoid": Cell(elman, 1, _ELMAN, {"nonlinearity": "sigmoid"}),
    "elman identity": Cell(elman, 1, _ELMAN, {"nonlinearity": "identity"}),
    "gru": Cell(gru, 3, {"projected_TBZ": "TBZ", "h0_BH": "BH", "weight_ZH": "ZH", "candidate_bias_H": "H"}),
    "lstm": Cell(lstm, 4, {"projected_TBZ": "TBZ", "h0_BH": "BH", "c0_BH": "BH", "weight_ZH": "ZH"}),
}


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> Cell:
    return CELLS[request.param]


ONE_OF_EACH = ["elman tanh", "gru", "lstm"]


@pytest.fixture(params=[pytest.param(name, marks=[] if name in ONE_OF_EACH else [pytest.mark.slow]) for name in CELLS])
def family(request: pytest.FixtureRequest) -> Cell:
    """A cell; ordinarily one nonlinearity of the Elman cell, whose kernels differ in a line or two."""
    return CELLS[request.param]


@pytest.fixture(params=["steps", "persistent"])
def chosen(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "persistent" and not INTERPRETED:
        pytest.skip("on a GPU see the tests there: what is small or exact is not held on the chip")
    with variant(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts float32 off to bfloat16; a GPU rounds to nearest even, and so does the interpreter here."""
    if not INTERPRETED:
        return
    plain = interpreter.InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16).numpy()
            return interpreter.TensorHandle(rounded, target.scalar)
        return plain(self, source, target)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
    for name in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, cast)


def relative_error(made: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((made - expected).norm() / expected.norm().clamp(min=1e-30))


# --- the recurrences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "B", "H", "features"), CASES)
def test_float32_equals_the_reference(cell: Cell, chosen: str, T: int, B: int, H: int, features: str) -> None:
    inputs, masks = cell.make(T, B, H), cell.masks(features, T, B, H)
    made = cell.run(inputs, "triton", torch.float32, masks)
    expected = cell.run(inputs, "reference", torch.float64, masks)
    for name, y in expected.items():
        assert relative_error(made[name], y) < 1e-5, name


@pytest.mark.parametrize("chosen", [pytest.param("steps", marks=pytest.mark.slow), "persistent"], indirect=True)
@pytest.mark.parametrize("features", ["plain", pytest.param("all", marks=pytest.mark.slow)])
def test_bfloat16_error_is_at_most_twice_the_reference_error(family: Cell, chosen: str, features: str) -> None:
    T, B, H = 6, 3, 33
    runs: dict[tuple[str, torch.dtype], list[dict[str, Tensor]]] = {}
    masks = family.masks(features, T, B, H)
    for seed in range(3):  # few numbers: several draws are judged together
        inputs = {name: x.bfloat16().double() for name, x in family.make(T, B, H, seed).items()}
        for who in (("triton", torch.bfloat16), ("reference", torch.bfloat16), ("reference", torch.float64)):
            runs.setdefault(who, []).append(family.run(inputs, *who, masks))
    for name in runs["triton", torch.bfloat16][0]:
        made, own, exact = (torch.stack([run[name] for run in some]) for some in runs.values())
        assert relative_error(made, exact) <= 2 * relative_error(own, exact), name


GPU_SIZES = [(3, 1, 1), (6, 3, 33), (35, 20, 650), (20, 64, 1024), (70, 128, 512), (9, 101, 400)]


@pytest.mark.skipif(INTERPRETED, reason="no GPU")
@pytest.mark.parametrize("features", ["plain", "all"])
@pytest.mark.parametrize(("T", "B", "H"), GPU_SIZES)
@pytest.mark.parametrize("name", ["steps", "persistent"])
def test_both_variants_agree_with_the_reference_on_a_gpu(cell: Cell, name: str, T: int, B: int, H: int, features: str) -> None:
    """In bfloat16, whose recurrences the chip can hold; again and again the same bits, or a barrier is missing."""
    inputs = {key: x.bfloat16().double() for key, x in cell.make(T, B, H).items()}
    masks = cell.masks(features, T, B, H)
    exact = cell.run(inputs, "reference", torch.float64, masks)
    own = cell.run(inputs, "reference", torch.bfloat16, masks)
    with variant(name):
        made = cell.run(inputs, "triton", torch.bfloat16, masks)
        for key, y in made.items():
            error, own_error = (y - exact[key]).norm(), (own[key] - exact[key]).norm()
            assert error <= 2 * own_error + 1e-2 * (1 + exact[key].norm()), key
        for _ in range(20):
            for key, y in cell.run(inputs, "triton", torch.bfloat16, masks).items():
                assert torch.equal(y, made[key]), key


@pytest.mark.skipif(INTERPRETED, reason="no GPU")
@pytest.mark.parametrize(("T", "B", "H"), GPU_SIZES)
@pytest.mark.parametrize("name", ["steps", "persistent"])
def test_both_variants_can_be_recorded_and_replayed_on_a_gpu(cell: Cell, name: str, T: int, B: int, H: int) -> None:
    leaves = [x.to(DEVICE, torch.bfloat16 if x.dim() > 1 else torch.float32) for x in cell.make(T, B, H).values()]
    leaves = [x.requires_grad_() for x in leaves]

    def work() -> list[Tensor]:
        outputs = cell.op(*leaves, backend="triton", **cell.options)
        return [*outputs, *torch.autograd.grad([y.float().square().sum() for y in outputs], leaves)]

    with variant(name):
        expected = [y.detach().clone() for y in [work() for _ in range(3)][-1]]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = work()
        for _ in range(5):
            for y in made:
                y.detach().fill_(torch.nan)
            graph.replay()
            for y, y_expected in zip(made, expected, strict=True):
                assert torch.equal(y, y_expected)


@pytest.mark.parametrize("features", [pytest.param("plain", marks=pytest.mark.slow), "all"])
def test_gradients_equal_central_differences(family: Cell, chosen: str, features: str) -> None:
    inputs = [x.to(DEVICE).requires_grad_() for x in family.make(2, 2, 3).values()]
    masks = {name: mask.to(DEVICE) for name, mask in family.masks(features, 2, 2, 3).items()}
    assert gradcheck(lambda *xs: family.op(*xs, backend="triton", **family.options, **masks), inputs, fast_mode=True)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "gru" else [pytest.mark.slow]) for name in CELLS], indirect=True
)
def test_second_derivatives_equal_central_differences(family: Cell) -> None:
    inputs = [x.to(DEVICE).requires_grad_() for x in family.make(2, 1, 2).values()]
    assert gradgradcheck(lambda *xs: family.op(*xs, backend="triton", **family.options), inputs, fast_mode=True)


@pytest.mark.parametrize("size", [-100.0, 100.0])
def test_saturated_gates_give_finite_values_and_gradients(cell: Cell, chosen: str, size: float) -> None:
    inputs = cell.make(3, 2, 3)
    projected = next(iter(inputs))
    inputs[projected] = inputs[projected].sign() * size
    made, expected = (cell.run(inputs, name, torch.float32, {}) for name in ("triton", "reference"))
    for name, y in expected.items():
        assert made[name].isfinite().all(), name
        assert_close(made[name], y, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_strides_do_not_matter(cell: Cell, chosen: str) -> None:
    inputs = [x.to(DEVICE) for x in cell.make(3, 2, 5).values()]
    strided = [x.movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_() for x in inputs]
    assert not strided[0].is_contiguous()
    zoneout = torch.full((1, 1, 1), 0.25, device=DEVICE)
    outputs = cell.op(*strided, backend="triton", zoneout_TBH=zoneout, **cell.options)
    expected = cell.op(*(x.requires_grad_() for x in inputs), backend="reference", zoneout_TBH=zoneout, **cell.options)
    assert_close(outputs[0], expected[0], rtol=0, atol=1e-13)
    expanded = torch.autograd.grad(outputs[0].sum(), strided)  # an upstream gradient with stride 0
    for d, d_expected in zip(expanded, torch.autograd.grad(expected[0].sum(), inputs), strict=True):
        assert_close(d, d_expected, rtol=0, atol=1e-12)


def test_without_gradients_the_states_are_the_same(cell: Cell, chosen: str) -> None:
    inputs = [x.to(DEVICE).requires_grad_() for x in cell.make(3, 2, 5).values()]
    masks = {name: mask.to(DEVICE) for name, mask in cell.masks("all", 3, 2, 5).items()}
    training = cell.op(*inputs, backend="triton", **cell.options, **masks)
    with torch.no_grad():
        quiet = cell.op(*inputs, backend="triton", **cell.options, **masks)
    for y, y_training in zip(quiet, training, strict=True):
        assert_close(y, y_training, rtol=0, atol=0)


def test_two_runs_give_the_same_bits(family: Cell, chosen: str) -> None:
    inputs, masks = family.make(3, 2, 17), family.masks("all", 3, 2, 17)
    first, second = (family.run(inputs, "triton", torch.bfloat16, masks) for _ in range(2))
    for name, y in first.items():
        assert torch.equal(y, second[name]), name


# --- one launch for all steps, several programs ---------------------------------------------------------------------


class Programs:
    """Runs all programs of a grid in the interpreter, which knows no threads: one goes on until its barrier, then another.

    So a program sees what others stored before the barrier and nothing later, in the worst order: the first program is
    always a whole step ahead of the last.
    """

    def __init__(self) -> None:
        self.baton = threading.Condition()
        self.arrived: dict[int, int] = {}
        self.most = 0

    def barrier(self, counter: Any, target: Any) -> None:
        """In place of `grid_barrier`."""
        builder = interpreter.interpreter_builder
        key, own_index = int(counter.handle.data.item()), builder.grid_idx
        self.arrived[key] = self.arrived.get(key, 0) + 1
        self.baton.notify_all()
        assert self.baton.wait_for(lambda: self.arrived[key] >= int(np.asarray(target.handle.data).item()), timeout=60)
        builder.set_grid_idx(*own_index)

    def executor(self) -> type[interpreter.GridExecutor]:
        """In place of the interpreter's loop over the grid."""
        programs = self

        class Executor(interpreter.GridExecutor):
            def __init__(self, fn: Callable[..., Any], *rest: Any) -> None:
                super().__init__(fn, *rest)
                waiting: list[tuple[int, ...]] = []
                errors: list[BaseException] = []

                def run(index: tuple[int, ...], arguments: dict[str, Any]) -> None:
                    with programs.baton:
                        interpreter.interpreter_builder.set_grid_idx(*index)
                        try:
                            fn(**arguments)
                        except BaseException as error:
                            errors.append(error)

                def collect(**arguments: Any) -> None:
                    builder = interpreter.interpreter_builder
                    waiting.append(builder.grid_idx)
                    if len(waiting) < prod(builder.grid_dim):
                        return
                    programs.arrived.clear()
                    programs.most = max(programs.most, len(waiting))
                    threads = [threading.Thread(target=run, args=(index, arguments)) for index in waiting]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()
                    if errors:
                        raise errors[0]

                vars(collect)["__signature__"] = inspect.signature(fn)
                self.fn = collect

        return Executor


@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs them at once anyway")
@pytest.mark.parametrize("features", [pytest.param("plain", marks=pytest.mark.slow), "all"])
def test_programs_that_share_a_recurrence_get_it_right(family: Cell, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    T, B, H = 3, 3, 5
    programs = Programs()
    monkeypatch.setattr(interpreter, "GridExecutor", programs.executor())
    for module in (elman_kernels, gru_kernels, lstm_kernels):
        monkeypatch.setattr(module, "grid_barrier", programs.barrier)
    monkeypatch.setattr(persistent, "make_plan", lambda *_: Plan(2, 3, 2, 2, 2, 1))
    inputs, masks = family.make(T, B, H), family.masks(features, T, B, H)
    with variant("persistent"):
        made = family.run(inputs, "triton", torch.float64, masks)
    assert programs.most == 6
    expected = family.run(inputs, "reference", torch.float64, masks)
    for name, y in expected.items():
        assert relative_error(made[name], y) < 1e-12, name


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan | None]:
    """`make_plan` for 132 multiprocessors with 227 KB each."""
    monkeypatch.setattr(persistent, "INTERPRETED", False)
    monkeypatch.setattr(persistent, "_describe", lambda device: (132, 227 << 10))

    def plan(B: int, H: int, num_gates: int = 4, dtype: torch.dtype = torch.bfloat16) -> Plan | None:
        return persistent.make_plan(torch.device("cuda"), dtype, num_gates, B, H)

    return plan


@pytest.mark.parametrize(
    ("B", "H", "grid"), [(20, 200, (13, 10)), (64, 512, (32, 4)), (20, 650, (41, 3)), (64, 1024, (64, 2)), (20, 1280, (80, 1))]
)
def test_the_rule_spreads_a_recurrence_over_the_chip(
    h200: Callable[..., Plan | None], B: int, H: int, grid: tuple[int, int]
) -> None:
    plan = h200(B, H)
    assert plan is not None
    assert plan.grid == grid
    assert plan.num_row_blocks * plan.rows >= B > (plan.num_row_blocks - 1) * plan.rows
    assert plan.num_unit_blocks * plan.units >= H
    assert prod(plan.grid) <= 132
    assert plan.shared_bytes(torch.bfloat16, 4, H) <= 227 << 10


@pytest.mark.parametrize(
    ("B", "H", "why"), [(1, 1300, "the weight"), (101, 1152, "the streams"), (128, 1024, "the streams"), (1, 2113, "the units")]
)
def test_the_rule_leaves_what_does_not_fit_to_single_steps(h200: Callable[..., Plan | None], B: int, H: int, why: str) -> None:
    assert h200(B, H) is None, why


def test_exact_float32_goes_step_by_step(h200: Callable[..., Plan | None]) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "ieee"
        assert h200(20, 200, dtype=torch.float32) is None
        matmul.fp32_precision = "tf32"
        assert h200(20, 200, dtype=torch.float32) is not None
        assert h200(20, 200, dtype=torch.float64) is None
    finally:
        matmul.fp32_precision = before


# --- the output layer -----------------------------------------------------------------------------------------------

TYPES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-6}


def loss_and_gradients(inputs: tuple[Tensor | None, ...], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
    """The total and the gradients of half of it, from parameters of the accumulating type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    *parameters, targets_N = inputs
    assert targets_N is not None
    leaves = [None if x is None else x.to(DEVICE, wide).requires_grad_() for x in parameters]
    total = linear_cross_entropy(*leaves, targets_N.to(DEVICE), compute_dtype=dtype, **options)
    gradients = torch.autograd.grad(total / 2, [x for x in leaves if x is not None])
    names = ("total", "d_features_ND", "d_weight_VD", "d_bias_V")
    return {name: y.detach().cpu().double() for name, y in zip(names, (total, *gradients), strict=False)}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("max_bytes", [1000, 64 << 20])
@pytest.mark.parametrize(("N", "V", "D", "bias"), [(1, 1, 1, True), (3, 130, 5, True), (35, 33, 3, False)])
def test_loss_and_gradients_equal_the_definition(
    N: int, V: int, D: int, bias: bool, max_bytes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "ROW_BLOCK", 64)  # several blocks in a row
    made, own, exact = [], [], []
    for seed in range(3 if dtype == torch.bfloat16 else 1):
        generator = torch.Generator().manual_seed(N + 10 * V + 100 * D + 1000 * seed)
        features, weight, b = (torch.randn(shape, generator=generator).double() for shape in ((N, D), (V, D), (V,)))
        inputs = features, 2 * weight / D**0.5, b if bias else None, torch.randint(V, (N,), generator=generator)
        made.append(loss_and_gradients(inputs, dtype, backend="triton", max_bytes=max_bytes))
        own.append(loss_and_gradients(inputs, dtype, backend="reference"))
        exact.append(loss_and_gradients(inputs, torch.float64, backend="reference"))
    for name in exact[0]:
        y, y_own, y_exact = (torch.stack([run[name] for run in runs]) for runs in (made, own, exact))
        error, own_error = relative_error(y, y_exact), relative_error(y_own, y_exact)
        assert error <= max(TYPES[dtype], 2 * own_error), f"{name}: {error:.1e}, the reference's own {own_error:.1e}"


def test_gradients_of_the_loss_equal_central_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE) for shape in ((4, 3), (5, 3), (5,))]
    targets_N = torch.tensor([0, 4, 2, 2], device=DEVICE)
    leaves = [x.requires_grad_() for x in inputs]
    assert gradcheck(lambda *xs: linear_cross_entropy(*xs, targets_N, backend="triton"), leaves, fast_mode=True)


def test_a_loss_without_gradients_is_the_same() -> None:
    features_ND, weight_VD, targets_N = torch.randn(5, 3), torch.randn(7, 3), torch.tensor([6, 0, 3, 3, 1])
    inputs = [x.to(DEVICE) for x in (features_ND, weight_VD)]
    made, expected = (
        linear_cross_entropy(*inputs, None, targets_N.to(DEVICE), backend=name) for name in ("triton", "reference")
    )
    assert_close(made, expected)


def test_extreme_logits_give_finite_losses() -> None:
    features_ND, weight_VD = torch.ones(2, 1), torch.tensor([[-1e4], [1e4], [0.0]])
    made = loss_and_gradients((features_ND, weight_VD, None, torch.tensor([1, 0])), torch.float32, backend="triton")
    assert_close(made["total"], torch.tensor(2e4).double())
    assert all(y.isfinite().all() for y in made.values())


def test_a_target_outside_the_vocabulary_makes_the_loss_nan() -> None:
    """A GPU cannot raise; the loop stops at a loss that is not finite."""
    features_ND, weight_VD = (torch.ones(shape, device=DEVICE) for shape in ((1, 2), (3, 2)))
    for target in (-1, 3):
        targets_N = torch.tensor([target], device=DEVICE)
        total, *_ = backend.forward_linear_cross_entropy(features_ND, weight_VD, None, targets_N, 1 << 20, (False,) * 3)
        assert total.isnan()


@pytest.mark.parametrize("max_bytes", [1 << 20, 10 << 20])
def test_chunks_of_rows_stay_below_the_bound_and_are_few(max_bytes: int) -> None:
    N, V, D = 4480, 33_278, 650
    rows = cross_entropy._rows_at_once(N, V, D, torch.bfloat16, max_bytes)
    assert rows * V * (2 + 4 / 32) <= max_bytes / 2
    assert (rows + 1) * V * (2 + 4 / 32) > max_bytes / 2 * (1 - 1 / (N // rows))


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_layer_normalisation_is_refused_with_the_reason() -> None:
    call = Call("gru", DEVICE, torch.float32, {"T": 1, "B": 1, "H": 1}, frozenset({"norm_gain_Z", "keep_TB"}))
    assert why_not("triton", call) == "it has no norm_gain_Z"
    zeros = [x.to(DEVICE) for x in CELLS["gru"].make(1, 1, 2).values()]
    with pytest.raises(ResourceError, match=r'backend="triton" cannot compute gru .*: it has no norm_gain_Z\.'):
        gru(*zeros, norm_gain_Z=torch.ones(6, device=DEVICE, dtype=torch.float64), backend="triton")


def test_the_wrong_device_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "INTERPRETED", False)
    reason = why_not("triton", Call("lstm", "cpu", torch.float32, {}))
    assert reason == "it runs on CUDA, not on cpu; TRITON_INTERPRET=1 lets it run slowly on the CPU"


def test_a_variant_holds_only_inside_its_block() -> None:
    with variant("steps"):
        assert launch.chosen_variant() == "steps"
    assert launch.chosen_variant() == "auto"
