"""What is handed to C++ is looked at first: a tensor that does not fit raises an exception, and never reaches an address.

Each tensor of each kernel is spoilt in every way, one at a time; the process must survive.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from lmtrain.ops import native
from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.draw import draw_token, reference_draw
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy
from lmtrain.ops.lookup import lookup
from lmtrain.ops.native.step import Network, Stage
from lmtrain.ops.sampled_cross_entropy import sampled_cross_entropy

Arguments = dict[str, Any]
T, B, H, N, V, D = 3, 2, 5, 4, 7, 6
FAR = 2**40


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if reason := why_not("native", Call("lstm", "cpu", torch.float32, {})):
        pytest.skip(reason)


def of(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def kernels(S: torch.dtype) -> dict[str, tuple[Callable[..., Any], Arguments]]:
    """Every kernel with arguments that fit."""
    A = torch.float32
    keep, none, norm = of(A, T, B).gt(0).float(), None, {"zoneout_TBH": None, "norm": None}
    elman = {"projected_TBH": of(S, T, B, H), "h0_BH": of(S, B, H), "weight_HH": of(S, H, H), "keep_TB": keep,
             "zoneout_TBH": none, "norm_gain_H": none, "nonlinearity": "tanh", "save": True}  # fmt: skip
    gru = {"projected_TBZ": of(S, T, B, 3 * H), "h0_BH": of(S, B, H), "weight_ZH": of(S, 3 * H, H),
           "candidate_bias_H": of(A, H), "keep_TB": keep, "zoneout_TBH": none, "norm_gain_Z": none, "save": True}  # fmt: skip
    lstm = {"projected_TBZ": of(S, T, B, 4 * H), "h0_BH": of(S, B, H), "c0_BH": of(A, B, H), "weight_ZH": of(S, 4 * H, H),
            "keep_TB": keep, "zoneout_TBH": none, "cell_zoneout_TBH": none, "norm_gain_Z": none, "save": True}  # fmt: skip
    d_states = of(S, T, B, H)
    gru_states, gru_gates = native.forward_gru(**gru)
    states, _, cells, gates = native.forward_lstm(**lstm)
    return {
        "elman": (native.forward_elman, elman),
        "elman backward": (native.backward_elman, {
            "d_states_TBH": d_states, "states_TBH": of(S, T, B, H), "candidates_TBH": none, "h0_BH": elman["h0_BH"],
            "weight_HH": elman["weight_HH"], "keep_TB": keep, **norm, "nonlinearity": "relu",
        }),
        "gru": (native.forward_gru, gru),
        "gru backward": (native.backward_gru, {
            "d_states_TBH": d_states, "states_TBH": gru_states, "gates_TBY": gru_gates, "h0_BH": gru["h0_BH"],
            "weight_ZH": gru["weight_ZH"], "keep_TB": keep, **norm,
        }),
        "lstm": (native.forward_lstm, lstm),
        "lstm backward": (native.backward_lstm, {
            "d_states_TBH": d_states, "d_c_BH": of(A, B, H), "states_TBH": states, "cells_TBH": cells, "gates_TBZ": gates,
            "h0_BH": lstm["h0_BH"], "c0_BH": lstm["c0_BH"], "weight_ZH": lstm["weight_ZH"], "keep_TB": keep,
            "cell_zoneout_TBH": none, **norm,
        }),
        "linear cross entropy": (native.forward_linear_cross_entropy, {
            "features_ND": of(S, N, D), "weight_VD": of(S, V, D), "bias_V": of(A, V), "targets_N": torch.arange(N),
            "max_bytes": 1 << 20, "wanted": (True, True, True),
        }),
        "sampled cross entropy": (native.forward_sampled_cross_entropy, {
            "features_ND": of(S, N, D), "weight_VD": of(A, V, D), "bias_V": of(A, V), "targets_N": torch.arange(N),
            "samples_K": torch.tensor([0, 2, 5]), "log_expected_K": of(A, 3),
        }),
    }  # fmt: skip


def written(x: Tensor) -> Tensor:
    """Of gates, whose units lie in tiles of 16, those that there are: what fills up a tile may be anything."""
    return x.movedim(1, -2).flatten(-2)[..., :H] if x.dim() == 5 else x


UNREAD = {("elman backward", "h0_BH"), ("lstm backward", "h0_BH")}  # which C++ never sees


def spoilt(x: Tensor) -> dict[str, object]:
    """The tensor in other types, shapes and places; each is something that no caller should give."""
    other = {str(dtype): x.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int16,
             torch.int32, torch.int64, torch.bool, torch.complex64) if dtype != x.dtype}  # fmt: skip
    shapes = {
        f"axis {axis} {how}": y
        for axis in range(x.dim())
        for how, y in (("shorter", x.narrow(axis, 0, x.shape[axis] - 1)), ("longer", torch.cat([x, x], axis)),
                       ("empty", x.narrow(axis, 0, 0)), ("one", x.narrow(axis, 0, 1)))
    }  # fmt: skip
    shapes.update({"flat": x.flatten(), "in a row": x[None], "a number": x.flatten()[0]})
    others = {"meta": x.to("meta"), "sparse": x.to_sparse(), "a list": x.tolist(), "none": None, "text": "text"}
    return {**other, **{how: y for how, y in shapes.items() if y.shape != x.shape}, **others}


@pytest.mark.parametrize("S", [torch.float32, torch.bfloat16])
def test_no_kernel_takes_a_tensor_that_does_not_fit(S: torch.dtype) -> None:
    tried = 0
    for name, (kernel, arguments) in kernels(S).items():
        kernel(**arguments)
        for argument, x in arguments.items():
            if not isinstance(x, Tensor) or (name, argument) in UNREAD:
                continue
            for how, y in spoilt(x).items():
                optional = how == "none" and argument in ("keep_TB", "bias_V")
                float32_weight = (argument, how) in (("weight_VD", "torch.float32"), ("features_ND", "torch.bfloat16"))
                other_products = (name, argument, how) == ("sampled cross entropy", "features_ND", "torch.float32")
                if optional or float32_weight or other_products:  # these are served
                    continue
                with pytest.raises((ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError)):
                    print(name, argument, how, kernel(**{**arguments, argument: y}))
                tried += 1
    assert tried > 500


@pytest.mark.parametrize("S", [torch.float32, torch.bfloat16])
def test_any_strides_give_the_same(S: torch.dtype) -> None:
    for name, (kernel, arguments) in kernels(S).items():
        expected = kernel(**arguments)
        for argument, x in arguments.items():
            if isinstance(x, Tensor):
                strided = torch.stack([x, x], dim=-1)[..., 0]
                for y, other in zip(expected, kernel(**{**arguments, argument: strided}), strict=True):
                    assert y is other is None or torch.equal(written(y), written(other)), (name, argument)


def test_options_that_the_kernels_lack_are_refused_and_not_ignored() -> None:
    for kernel, arguments in kernels(torch.float32).values():
        for argument in arguments.keys() & {"zoneout_TBH", "cell_zoneout_TBH", "norm_gain_Z", "norm_gain_H", "norm"}:
            with pytest.raises(ValueError, match="no zoneout and no layer normalisation"):
                kernel(**{**arguments, argument: torch.zeros(T, B, H)})


# --- token ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [-1, V, -(2**63), 2**63 - 1, FAR])
@pytest.mark.parametrize("backend", ["auto", "native", "eager", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_outside_the_vocabulary_is_an_index_error(token: int, backend: str, dtype: torch.dtype) -> None:
    features, weight = of(torch.float32, N, D).requires_grad_(), of(torch.float32, V, D)
    for place in (0, N - 1):
        targets = torch.arange(N)
        targets[place] = token
        with pytest.raises(IndexError, match="targets_N holds"):
            linear_cross_entropy(features, weight, None, targets, compute_dtype=dtype, backend=backend)


@pytest.mark.parametrize("token", [-1, V, FAR, -FAR])
def test_the_kernel_itself_looks_at_targets_too(token: int) -> None:
    for wanted in ((True, True, True), (False, False, False)):
        targets = torch.tensor([0, 1, token, 2])
        arguments = (of(torch.float32, N, D), of(torch.float32, V, D), None, targets)
        with pytest.raises(IndexError, match="outside 0 to 6"):
            native.forward_linear_cross_entropy(*arguments, 1 << 20, wanted)


@pytest.mark.parametrize("token", [-1, V, FAR, -FAR])
@pytest.mark.parametrize("where", ["targets", "samples"])
@pytest.mark.parametrize("backend", ["auto", "native", "eager", "reference"])
def test_sampled_cross_entropy_takes_no_token_outside_the_vocabulary(token: int, where: str, backend: str) -> None:
    targets, samples = torch.arange(N), torch.arange(3)
    (targets if where == "targets" else samples)[-1] = token
    weight, bias = (of(torch.float32, *shape).requires_grad_() for shape in ((V, D), (V,)))
    arguments = (of(torch.float32, N, D), weight, bias, targets, samples, torch.zeros(3))
    is_native = backend in ("auto", "native")
    said = "holds a token id outside 0 to 6" if is_native else "out of range|out of bounds"
    with pytest.raises(IndexError if is_native else (IndexError, RuntimeError), match=said):
        sampled_cross_entropy(*arguments, backend=backend)


@pytest.mark.parametrize("token", [-1, V, FAR])
def test_a_row_that_is_not_there_is_an_index_error(token: int) -> None:
    for function in (lambda ids: lookup(of(torch.float32, V, D), ids), lambda ids: embedding(ids, of(torch.float32, V, D))):
        with pytest.raises(IndexError):
            function(torch.tensor([[0, token]]))


# --- draw -----------------------------------------------------------------------------------------------------------


def native_draw(log_probs_V: Tensor, uniform: float, temperature: float, excluded: int | None) -> int:
    return native.forward_draw()(log_probs_V[None], [uniform], temperature, excluded)[0]


@pytest.mark.parametrize("uniform", [-0.1, -1e300, 1.0, 5.0, math.nan, math.inf, -math.inf])
def test_a_uniform_number_outside_0_to_1_draws_nothing(uniform: float) -> None:
    log_probs_V = torch.tensor([-math.inf] * 300 + [0.0, 0.0])  # the sum before the first block was read, at sums[-1]
    assert native_draw(log_probs_V, uniform, 1.0, None) == -1
    with pytest.raises(ValueError, match="expected 0 <= uniform < 1"):
        draw_token(log_probs_V, uniform)


@pytest.mark.parametrize("excluded", [-2, V, FAR])
def test_an_excluded_token_outside_the_vocabulary_is_an_index_error(excluded: int) -> None:
    assert native_draw(torch.zeros(V), 0.5, 1.0, excluded) == -1
    for draw in (draw_token, reference_draw):
        with pytest.raises(IndexError, match=f"excluded={excluded}"):
            draw(torch.zeros(V), 0.5, excluded=excluded)


@pytest.mark.parametrize("spoiler", ["torch.bfloat16", "torch.float64", "torch.int64", "in a row", "a number", "meta"])
def test_draw_takes_a_vector_of_float32_alone(spoiler: str) -> None:
    with pytest.raises((ValueError, AttributeError)):
        native_draw(spoilt(torch.zeros(V))[spoiler], 0.5, 1.0, None)  # type: ignore[arg-type]


def test_an_empty_vocabulary_and_a_temperature_that_is_none_draw_nothing() -> None:
    assert native_draw(torch.empty(0), 0.5, 1.0, None) == -1
    for temperature in (0.0, -1.0, math.nan):
        assert native_draw(torch.zeros(V), 0.5, temperature, None) == -1
    with pytest.raises(ValueError, match="temperature=nan"):
        draw_token(torch.zeros(V), 0.5, temperature=math.nan)


# --- the step of generation -----------------------------------------------------------------------------------------


def stage(kind: str, inputs: int, units: int) -> Stage:
    gates = {"gru": 3, "lstm": 4}.get(kind, 1)
    recurrent = None if kind == "linear" else of(torch.float32, gates * units, units)
    return Stage(kind, of(torch.float32, gates * units, inputs), of(torch.float32, gates * units), recurrent,
                 of(torch.float32, units) if kind == "gru" else None)  # fmt: skip


CELLS = ["elman tanh", "elman relu", "elman sigmoid", "elman identity", "gru", "lstm"]
STATES = {"lstm": 2, "linear": 0}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_whose_parts_do_not_fit_is_refused(kind: str, dtype: torch.dtype) -> None:
    embedding_VE, stages = of(torch.float32, V, D), [stage(kind, D, H), stage("linear", H, V)]
    states = [torch.zeros(1, H)] * STATES.get(kind, 1)
    network = Network(embedding_VE, stages, dtype)
    log_probs = network.streams(states).read([V - 1], [0])
    assert math.isclose(log_probs.exp().sum().item(), 1.0, rel_tol=1e-3)
    for place, whole in enumerate(stages):
        for name, x in whole._asdict().items():
            for how, y in spoilt(x).items() if isinstance(x, Tensor) else {"given": of(torch.float32, H, H)}.items():
                if name == "kind" or (how == "none" and name == "bias_Z") or how in ("torch.float64", "torch.bfloat16"):
                    continue  # a bias may be missing; weights become the type of the products
                changed = [*stages]
                changed[place] = whole._replace(**{name: y})
                with pytest.raises((ValueError, TypeError, AttributeError)):
                    print(place, name, how, Network(embedding_VE, changed, dtype))
    for others in ([], stages[:1], stages[::-1], [stages[0]._replace(kind="rnn"), stages[1]], [stages[0], *stages]):
        with pytest.raises(ValueError, match="stage"):
            Network(embedding_VE, others, dtype)
    for how in ("torch.float64", "torch.bfloat16", "axis 1 shorter", "axis 0 empty", "flat", "in a row"):
        with pytest.raises(ValueError, match=r"embedding_VE|weight_input_ZE"):
            Network(spoilt(embedding_VE)[how], stages, dtype)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not in torch\.float64"):
        Network(embedding_VE, stages, torch.float64)


@pytest.mark.parametrize("kind", CELLS)
def test_a_stream_takes_the_states_of_its_network_alone(kind: str) -> None:
    network = Network(of(torch.float32, V, D), [stage(kind, D, H), stage("linear", H, V)], torch.float32)
    right = [torch.zeros(1, H)] * STATES.get(kind, 1)
    for wrong in ([], [*right, right[0]], [torch.zeros(1, H + 1)] * len(right), [torch.zeros(H)] * len(right),
                  [torch.zeros(1, 0)] * len(right), [torch.zeros(1, H), torch.zeros(2, H)]):  # fmt: skip
        with pytest.raises(ValueError, match=r"the states of the texts|states; the network has"):
            network.streams(wrong)
    streams = network.streams([torch.zeros(H, 2, dtype=torch.float64).T[:1]] * len(right))  # any strides and numbers
    assert torch.equal(streams.read([1], [0]), network.streams(right).read([1], [0]))
    with pytest.raises(IndexError, match="with B=1 they lie in 0 to 0"):
        streams.read([1], [1])
    for tokens, texts in ([1, 1], [0, 0]), ([1, 2], [0]), ([1], [0, 0]):
        with pytest.raises(ValueError, match="expected one token for each"):
            streams.read(tokens, texts)


@pytest.mark.parametrize("token", [-1, V, FAR, -FAR])
def test_the_step_reads_no_token_outside_the_vocabulary(token: int) -> None:
    network = Network(of(torch.float32, V, D), [stage("linear", D, V)], torch.float32)
    with pytest.raises(IndexError, match=rf"tokens \[{token}\]; with V=7 they lie in 0 to 6"):
        network.streams([]).read([token], [0])


def test_the_step_writes_float32_whatever_the_default_type_is() -> None:
    network = Network(of(torch.float32, V, D), [stage("linear", D, V)], torch.float32)
    expected = network.streams([]).read([3], [0]).clone()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(network.streams([]).read([3], [0]), expected)
    finally:
        torch.set_default_dtype(before)
