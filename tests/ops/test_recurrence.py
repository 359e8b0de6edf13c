"""What holds for all three recurrences: Elman, GRU and LSTM, in the backend eager unless said otherwise."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmtrain.ops.elman import elman
from lmtrain.ops.gru import gru
from lmtrain.ops.lstm import lstm
from lmtrain.ops.recurrence import weight_gradients


@dataclass(frozen=True)
class Cell:
    """A recurrence and the letters of its tensors: inputs without the gain, and outputs."""

    op: Callable[..., tuple[Tensor, ...]]
    gates: int
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    gain: str
    bytes_kept: int  # per token and hidden unit in float32, the docstring's figure

    def make(self, T: int, B: int, H: int, dtype: torch.dtype = torch.float64, *, grad: bool = True) -> list[Tensor]:
        generator = torch.Generator().manual_seed(T + 10 * B + 100 * H)
        sizes = {"T": T, "B": B, "H": H, "Z": self.gates * H}
        shapes = [[sizes[letter] for letter in letters] for letters in (*self.inputs.values(), "Z")]
        tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        tensors[self.weight] /= H**0.5
        return [tensor.to(dtype).requires_grad_(grad) for tensor in tensors]

    @property
    def weight(self) -> int:
        return next(index for index, name in enumerate(self.inputs) if name.startswith("weight"))

    def __call__(
        self, inputs: list[Tensor], backend: str = "eager", *, norm: bool = False, **options: Any
    ) -> tuple[Tensor, ...]:
        *tensors, gain = inputs
        return self.op(*tensors, backend=backend, **({self.gain: gain} if norm else {}), **options)


CELLS = {
    "elman": Cell(
        elman, 1, {"projected_TBH": "TBH", "h0_BH": "BH", "weight_HH": "HH"}, ("states_TBH", "h_BH"), "norm_gain_H", 4,
    ),
    "gru": Cell(
        gru, 3, {"projected_TBZ": "TBZ", "h0_BH": "BH", "weight_ZH": "ZH", "candidate_bias_H": "H"},
        ("states_TBH", "h_BH"), "norm_gain_Z", 20,
    ),
    "lstm": Cell(
        lstm, 4, {"projected_TBZ": "TBZ", "h0_BH": "BH", "c0_BH": "BH", "weight_ZH": "ZH"},
        ("states_TBH", "h_BH", "c_BH"), "norm_gain_Z", 24,
    ),
}  # fmt: skip
SIZES = [(1, 1, 1), (3, 2, 5), (4, 3, 1), (5, 1, 3)]
FEATURES = ["plain", "keep", "zoneout", "norm", "all"]


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> Cell:
    return CELLS[request.param]


def options(cell: Cell, features: str, T: int, B: int, H: int) -> dict[str, Any]:
    """Arguments that switch on what the name says."""
    generator = torch.Generator().manual_seed(7)
    chosen: dict[str, Any] = {"norm": features in ("norm", "all")}
    if features in ("keep", "all"):
        chosen["keep_TB"] = (torch.rand(T, B, generator=generator) < 0.6).double()
    if features in ("zoneout", "all"):
        chosen["zoneout_TBH"] = torch.rand(T, B, H, generator=generator)
        if cell.op is lstm:
            chosen["cell_zoneout_TBH"] = torch.rand(H, generator=generator)
    return chosen


def gradients(
    cell: Cell, inputs: list[Tensor], outputs: tuple[Tensor, ...], used: tuple[int, ...] | None = None
) -> list[Tensor]:
    """Gradients of a random projection of the outputs (of those used) with respect to the inputs that require them."""
    generator = torch.Generator().manual_seed(3)
    upstreams = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    used = tuple(range(len(outputs))) if used is None else used
    wanted = [x for x in inputs if x.requires_grad]
    made = torch.autograd.grad([outputs[i] for i in used], wanted, [upstreams[i] for i in used], allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(wanted, made, strict=True)]


def subsets(items: range) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(items, count) for count in range(1, len(items) + 1)))


# --- values and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_eager_equals_the_reference_in_values_and_gradients(cell: Cell, features: str, T: int, B: int, H: int) -> None:
    inputs, chosen = cell.make(T, B, H), options(cell, features, T, B, H)
    expected, got = cell(inputs, "reference", **chosen), cell(inputs, "eager", **chosen)
    for name, y, y_expected in zip(cell.outputs, got, expected, strict=True):
        assert_close(y, y_expected, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    names = [*cell.inputs, cell.gain]
    for name, d, d_expected in zip(names, gradients(cell, inputs, got), gradients(cell, inputs, expected), strict=True):
        assert_close(d, d_expected, rtol=0, atol=1e-11, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("features", ["plain", "all"])
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_gradients_equal_central_differences(cell: Cell, features: str, T: int, B: int, H: int) -> None:
    chosen = options(cell, features, T, B, H)
    assert gradcheck(lambda *inputs: cell(list(inputs), **chosen), cell.make(T, B, H))


@pytest.mark.parametrize("features", ["plain", "all"])
@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), pytest.param(2, 1, 3, marks=pytest.mark.slow), (3, 2, 2)])
def test_second_derivatives_equal_central_differences(cell: Cell, features: str, T: int, B: int, H: int) -> None:
    chosen = options(cell, features, T, B, H)
    assert gradgradcheck(lambda *inputs: cell(list(inputs), **chosen), cell.make(T, B, H))


def test_gradients_do_not_depend_on_which_inputs_require_them(cell: Cell) -> None:
    chosen = options(cell, "all", 3, 2, 3)
    inputs = cell.make(3, 2, 3)
    complete = gradients(cell, inputs, cell(inputs, **chosen))
    for subset in subsets(range(len(inputs))):
        some = [x.detach().requires_grad_(index in subset) for index, x in enumerate(inputs)]
        for index, d in zip(subset, gradients(cell, some, cell(some, **chosen)), strict=True):
            assert_close(d, complete[index], rtol=0, atol=0)


def test_second_derivatives_do_not_depend_on_which_inputs_require_them(cell: Cell) -> None:
    for subset in subsets(range(len(cell.inputs))):
        inputs = [x.detach().requires_grad_(index in subset) for index, x in enumerate(cell.make(2, 1, 2))]
        assert gradgradcheck(lambda *xs: cell(list(xs)), inputs, fast_mode=True)


def test_every_subset_of_outputs_sends_its_gradient_back(cell: Cell) -> None:
    inputs = cell.make(3, 2, 3)
    for used in subsets(range(len(cell.outputs))):
        expected = gradients(cell, inputs, cell(inputs, "reference"), used)
        for d, d_expected in zip(gradients(cell, inputs, cell(inputs), used), expected, strict=True):
            assert_close(d, d_expected, rtol=0, atol=1e-12)


def test_final_state_alone_reaches_the_initial_states(cell: Cell) -> None:
    inputs = cell.make(3, 2, 3)
    initial = [x for name, x in zip(cell.inputs, inputs, strict=False) if name in ("h0_BH", "c0_BH")]
    for final in cell(inputs)[1:]:
        for d in torch.autograd.grad(final.sum(), initial, retain_graph=True):
            assert (d != 0).all()


def test_one_tensor_as_two_inputs_gets_the_sum_of_both_gradients() -> None:
    projected, h0, _, weight, _ = CELLS["lstm"].make(2, 1, 3)
    assert gradcheck(lambda p, h, w: lstm(p, h, h, w, backend="eager"), (projected, h0, weight))
    states_TBH, _, _ = lstm(projected, h0, h0, weight, backend="eager")
    assert_differentiable_gradients_are_the_same(states_TBH, [projected, h0, weight])


def test_an_input_that_depends_on_another_does_not_collect_its_gradient(cell: Cell) -> None:
    inputs = cell.make(2, 1, 3)
    weight = inputs[cell.weight]
    inputs[1] = weight[:1].sin()  # h0
    assert_differentiable_gradients_are_the_same(cell(inputs)[0], [inputs[0], weight])


def assert_differentiable_gradients_are_the_same(states_TBH: Tensor, inputs: list[Tensor]) -> None:
    """With create_graph they come from the reference, which must not walk past the inputs of the call."""
    by_hand = torch.autograd.grad(states_TBH.sum(), inputs, retain_graph=True)
    by_reference = torch.autograd.grad(states_TBH.sum(), inputs, create_graph=True)
    for d, d_by_hand in zip(by_reference, by_hand, strict=True):
        assert_close(d.detach(), d_by_hand, rtol=0, atol=1e-12)


def test_upstream_gradients_are_not_written_to(cell: Cell) -> None:
    inputs = cell.make(3, 2, 3)
    outputs = cell(inputs)
    upstreams = [torch.ones_like(y) for y in outputs]
    torch.autograd.grad(outputs, inputs[:-1], upstreams)
    assert all((upstream == 1).all() for upstream in upstreams)


def test_no_weight_gradient_is_made_where_none_is_wanted() -> None:
    d_term_TBZ, previous_TBH = torch.ones(2, 1, 4), torch.ones(2, 1, 3)
    assert weight_gradients(d_term_TBZ, previous_TBH, None, False) == (None, None)
    d_weight_ZH, _ = weight_gradients(d_term_TBZ, previous_TBH, None, True)
    assert d_weight_ZH is not None
    assert_close(d_weight_ZH, torch.full((4, 3), 2.0))


def test_backward_can_run_twice(cell: Cell) -> None:
    inputs = cell.make(3, 2, 3)
    outputs = cell(inputs, **options(cell, "all", 3, 2, 3))
    first = torch.autograd.grad(outputs[0].sum(), inputs, retain_graph=True)
    for d, d_first in zip(torch.autograd.grad(outputs[0].sum(), inputs), first, strict=True):
        assert_close(d, d_first, rtol=0, atol=0)


# --- chunks, resets, zoneout ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["plain", "all"])
def test_chunks_with_carried_state_equal_one_long_chunk(cell: Cell, features: str) -> None:
    T, B, H = 7, 2, 3
    inputs, chosen = cell.make(T, B, H), options(cell, features, T, B, H)
    whole = cell(inputs, **chosen)
    num_states = len(cell.outputs) - 1
    pieces, state = [], tuple(inputs[1 : 1 + num_states])
    for start, stop in [(0, 1), (1, 4), (4, 7)]:
        own = {name: value[start:stop] if name in ("keep_TB", "zoneout_TBH") else value for name, value in chosen.items()}
        states_TBH, *state = cell([inputs[0][start:stop], *state, *inputs[1 + num_states :]], **own)
        pieces.append(states_TBH)
    chunked = (torch.cat(pieces), *state)
    for name, y, y_whole in zip(cell.outputs, chunked, whole, strict=True):
        assert_close(y, y_whole, rtol=0, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}")
    for d, d_whole in zip(gradients(cell, inputs, chunked), gradients(cell, inputs, whole), strict=True):
        assert_close(d, d_whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("features", ["plain", "zoneout"])
def test_a_reset_forgets_everything_before_it(cell: Cell, features: str) -> None:
    T, B, H = 5, 2, 3
    chosen = options(cell, features, T, B, H)
    inputs = cell.make(T, B, H)
    keep_TB = torch.ones(T, B)
    keep_TB[2, 1] = 0
    whole = cell(inputs, keep_TB=keep_TB, **chosen)
    fresh = [inputs[0][2:], *(torch.zeros_like(x) if name in ("h0_BH", "c0_BH") else x
                              for name, x in list(zip([*cell.inputs, cell.gain], inputs, strict=True))[1:])]  # fmt: skip
    chosen = {name: value[2:] if name == "zoneout_TBH" else value for name, value in chosen.items()}
    assert_close(whole[0][2:, 1], cell(fresh, **chosen)[0][:, 1], rtol=0, atol=1e-14)
    assert (torch.autograd.grad(whole[0][2:, 1].sum(), inputs[1])[0][1] == 0).all()


def test_zoneout_of_one_keeps_the_state_and_of_zero_changes_nothing(cell: Cell) -> None:
    inputs = cell.make(3, 2, 4)
    frozen = cell(inputs, zoneout_TBH=torch.ones(()))
    assert_close(frozen[0], inputs[1].expand(3, 2, 4), rtol=0, atol=0)
    assert_close(cell(inputs, zoneout_TBH=torch.zeros(3, 2, 4))[0], cell(inputs)[0], rtol=0, atol=1e-15)


def test_layer_norm_makes_the_recurrent_weight_free_of_scale(cell: Cell) -> None:
    inputs = cell.make(4, 2, 7)
    larger = list(inputs)
    larger[cell.weight] = inputs[cell.weight] * 1000
    smaller = list(inputs)
    smaller[cell.weight] = inputs[cell.weight] * 100
    assert_close(cell(larger, norm=True)[0], cell(smaller, norm=True)[0], rtol=0, atol=1e-6)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["plain", "all"])
def test_bfloat16_error_is_at_most_twice_the_reference_error(cell: Cell, features: str) -> None:
    T, B, H = 20, 5, 33
    chosen = options(cell, features, T, B, H)

    def run(dtype: torch.dtype, backend: str) -> list[Tensor]:
        exact = [x.detach().bfloat16() for x in cell.make(T, B, H)]  # the same numbers in both types
        others = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = [x.to(others if index else dtype).requires_grad_() for index, x in enumerate(exact)]
        outputs = cell(inputs, backend, **chosen)
        return [*outputs, *gradients(cell, inputs, outputs)]

    def error(got: Tensor, truth: Tensor) -> Tensor:
        return (got.double() - truth).norm()

    names = [*cell.outputs, *cell.inputs, cell.gain]
    runs = run(torch.float64, "reference"), run(torch.bfloat16, "reference"), run(torch.bfloat16, "eager")
    for name, truth, reference, eager in zip(names, *runs, strict=True):
        assert error(eager, truth) <= 2 * error(reference, truth), name


def test_bfloat16_returns_bfloat16_states_and_carries_the_types_it_was_given(cell: Cell) -> None:
    projected, *others = cell.make(2, 1, 3, torch.float32)
    states_TBH, *final = cell([projected.bfloat16(), *others])
    assert states_TBH.dtype == torch.bfloat16
    assert [y.dtype for y in final] == [torch.float32] * len(final)


@pytest.mark.parametrize("size", [-100.0, 100.0])
def test_saturated_gates_give_finite_values_and_gradients(cell: Cell, size: float) -> None:
    inputs = cell.make(3, 2, 3, torch.float32)
    with torch.no_grad():
        inputs[0].copy_(inputs[0].sign() * size)
    outputs = cell(inputs)
    expected = cell(inputs, "reference")
    for y, y_expected in zip(outputs, expected, strict=True):
        assert_close(y, y_expected, rtol=1e-6, atol=1e-6)
    for d, d_expected in zip(gradients(cell, inputs, outputs), gradients(cell, inputs, expected), strict=True):
        assert d.isfinite().all()
        assert_close(d, d_expected, rtol=1e-5, atol=1e-6)


def test_strides_do_not_matter(cell: Cell) -> None:
    inputs = cell.make(3, 2, 5)
    strided = [x.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_() for x in inputs]
    assert not strided[0].is_contiguous()
    outputs, expected = cell(strided), cell(inputs)
    for y, y_expected in zip(outputs, expected, strict=True):
        assert_close(y, y_expected, rtol=0, atol=1e-14)
    expanded = torch.autograd.grad(outputs[0].sum(), strided[:-1])  # an upstream gradient with stride 0
    for d, d_expected in zip(expanded, torch.autograd.grad(expected[0].sum(), inputs[:-1]), strict=True):
        assert_close(d, d_expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_autocast_around_the_call_changes_nothing(cell: Cell, backend: str) -> None:
    inputs = cell.make(3, 2, 5, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cell(inputs, backend, norm=True)
    for y, y_outside in zip(inside, cell(inputs, backend, norm=True), strict=True):
        assert_close(y, y_outside, rtol=0, atol=0)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_backward_keeps_as_many_bytes_as_the_docstring_says(cell: Cell) -> None:
    T, B, H = 6, 2, 3
    inputs = cell.make(T, B, H, torch.float32)
    kept: dict[int, int] = {}
    own = {x.data_ptr() for x in inputs}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = cell(inputs)
    assert outputs[0].grad_fn is not None
    assert sum(kept.values()) == T * B * H * cell.bytes_kept
    assert f" {cell.bytes_kept}H bytes in float32" in (sys.modules[cell.op.__module__].__doc__ or "")


class Largest(TorchDispatchMode):
    """The bytes of the largest memory that is made within, apart from that of some tensors."""

    def __init__(self, apart_from: list[Tensor]) -> None:
        super().__init__()
        self.nbytes, self.known = 0, {x.untyped_storage().data_ptr() for x in apart_from}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.nbytes = max(self.nbytes, x.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("features", ["plain", "all"])
def test_inference_makes_nothing_larger_than_the_states_and_gives_the_same(cell: Cell, features: str) -> None:
    T, B, H = 8, 2, 3
    inputs, chosen = cell.make(T, B, H), options(cell, features, T, B, H)
    with torch.no_grad(), Largest([*inputs, *(x for x in chosen.values() if isinstance(x, Tensor))]) as largest:
        quiet = cell(inputs, **chosen)
    assert largest.nbytes == quiet[0].nbytes
    for y, y_training in zip(quiet, cell(inputs, **chosen), strict=True):
        assert not y.requires_grad
        assert_close(y, y_training, rtol=0, atol=0)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_mask_that_requires_grad_is_refused(cell: Cell) -> None:
    message = r"zoneout_TBH requires grad; it is a constant here and would get none\. Pass zoneout_TBH\.detach\(\)\."
    with pytest.raises(ValueError, match=message):
        cell(cell.make(2, 1, 3), zoneout_TBH=torch.ones(3, requires_grad=True))


def test_a_mask_of_the_wrong_shape_is_refused_with_the_sizes_it_should_have(cell: Cell) -> None:
    with pytest.raises(ValueError, match=r"keep_TB has shape \(5, 4\); expected \(T, B\) = \(2, 4\), because"):
        cell(cell.make(2, 4, 3), keep_TB=torch.ones(5, 4))


def test_types_are_not_mixed_silently(cell: Cell) -> None:
    projected, h0, *others = cell.make(2, 1, 3)
    with pytest.raises(ValueError, match=r"h0_BH is float32; expected float64\."):
        cell([projected, h0.float(), *others])
    with pytest.raises(ValueError, match=r"projected_TB. is float16; expected float32 or float64 or bfloat16\."):
        cell([projected.half(), h0, *others])


def test_devices_are_not_mixed(cell: Cell) -> None:
    projected, h0, *others = cell.make(2, 1, 3)
    with pytest.raises(ValueError, match=r"h0_BH is on meta; expected cpu, where projected_TB. is\."):
        cell([projected, h0.to("meta"), *others])
