"""`lmtrain.nn`: nothing that a script sees of torch's LSTM, GRU and RNN changes with the one line that replaces them."""

import copy
import doctest
import inspect
import io
import itertools
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.testing import assert_close

import lmtrain
import lmtrain.ops.packed
from lmtrain.models.dropout import quantised_keep
from lmtrain.models.recurrent import CELLS
from lmtrain.ops import native
from lmtrain.ops.transforms import multiplies_bfloat16_in_plain_loops

ROOT = Path(__file__).parents[1]
CLASSES = ["LSTM", "GRU", "RNN"]
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


def pair(name: str, *sizes: Any, **options: Any) -> tuple[Any, Any]:
    """torch's module and ours with the same weights."""
    torch.manual_seed(1)
    theirs = getattr(nn, name)(*sizes, **options)
    torch.manual_seed(1)
    return theirs, getattr(lmtrain.nn, name)(*sizes, **options)


def tensors(result: Any) -> list[Tensor]:
    outputs, final = result
    outputs = outputs.data if isinstance(outputs, PackedSequence) else outputs
    return [outputs, *(final if isinstance(final, tuple) else [final])]


def under_autocast(theirs: Any, x: Any, hx: Any) -> tuple[list[Tensor], bool]:
    """What torch's module gives, and whether the types are those of an autocast: on a processor that is older than AVX-512 its
    LSTM knows no bfloat16, and the numbers are those of float32."""
    if isinstance(theirs, nn.LSTM) and multiplies_bfloat16_in_plain_loops():
        return tensors(theirs.float()(x.float(), None if hx is None else tuple(y.float() for y in hx))), False
    with torch.autocast(**AUTOCAST):
        return tensors(theirs(x, hx)), True


def given_state(name: str, *size: int, **options: Any) -> Any:
    """A state h, for an LSTM the two, that asks for gradients."""
    h = [torch.randn(size, **options).requires_grad_() for _ in range(2 if name == "LSTM" else 1)]
    return tuple(h) if name == "LSTM" else h[0]


def gradients(module: nn.Module, x: Tensor, hx: Any) -> dict[str, Tensor]:
    """Outputs, final states, and the gradients of a fixed random projection of them, by name."""
    leaves = {"x": x.data if isinstance(x, PackedSequence) else x, **dict(module.named_parameters())}
    leaves |= {} if hx is None else {f"hx{n}": h for n, h in enumerate(hx if isinstance(hx, tuple) else [hx])}
    results = tensors(module(x, hx))
    torch.manual_seed(7)
    projection = sum((y * torch.randn_like(y)).sum() for y in results)
    found = torch.autograd.grad(projection, list(leaves.values()))
    return {f"result{n}": y for n, y in enumerate(results)} | {f"d_{n}": d for n, d in zip(leaves, found, strict=True)}


# ---- the same numbers


@given(
    name=st.sampled_from([*CLASSES, "RNN relu"]), sizes=st.tuples(*[st.sampled_from([1, 2, 3, 5, 8])] * 4),
    num_layers=st.integers(1, 3), bias=st.booleans(), batch_first=st.booleans(), batched=st.booleans(), with_hx=st.booleans(),
    dropout=st.sampled_from([0.0, 0.4]), training=st.booleans(), contiguous=st.booleans(), bidirectional=st.booleans(),
)  # fmt: skip
def test_outputs_and_all_gradients_are_torchs(
    name: str, sizes: tuple[int, ...], num_layers: int, bias: bool, batch_first: bool, batched: bool, with_hx: bool,
    dropout: float, training: bool, contiguous: bool, bidirectional: bool,
) -> None:  # fmt: skip
    T, B, D, H = sizes
    name, _, nonlinearity = name.partition(" ")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    theirs, ours = pair(
        name, D, H, num_layers, bias=bias, batch_first=batch_first, dropout=dropout * (num_layers > 1),
        bidirectional=bidirectional, dtype=torch.float64, **options,
    )  # fmt: skip
    num_layers *= 1 + bidirectional
    shape = ((B, T) if batch_first else (T, B)) if batched else (T,)
    x = torch.randn(*shape, D, dtype=torch.float64)
    x = (x if contiguous else torch.randn(D, *reversed(shape), dtype=torch.float64).T if not batched else
         torch.randn(D, *reversed(shape), dtype=torch.float64).permute(2, 1, 0)).requires_grad_()  # fmt: skip
    hx = given_state(name, num_layers, *([B] if batched else []), H, dtype=torch.float64) if with_hx else None
    found = []
    for module in (theirs, ours):
        module.train(training)
        torch.manual_seed(3)  # the dropout between layers
        found.append(gradients(module, x, hx))
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


@given(
    name=st.sampled_from(CLASSES), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), num_layers=st.integers(1, 2),
    bidirectional=st.booleans(), is_sorted=st.booleans(), with_hx=st.booleans(), dropout=st.sampled_from([0.0, 0.4]),
    bias=st.booleans(), worth=st.sampled_from([0, 1, 3, 64]),
)  # fmt: skip
def test_packed_sequences_are_read_as_torch_reads_them(
    name: str, lengths: list[int], num_layers: int, bidirectional: bool, is_sorted: bool, with_hx: bool, dropout: float,
    bias: bool, worth: int,
) -> None:  # fmt: skip
    """Wherever the steps are cut: here all runs are joined where one call is worth 64 rows."""
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths
    theirs, ours = pair(
        name, 3, 4, num_layers, bidirectional=bidirectional, dropout=dropout * (num_layers > 1), bias=bias, dtype=torch.float64
    )
    x = torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64).requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
    size = (num_layers * (1 + bidirectional), len(lengths), 4)
    hx = given_state(name, *size, dtype=torch.float64) if with_hx else None
    found, outputs = [], []
    for module in (theirs, ours):
        torch.manual_seed(3)  # the dropout between layers
        with mock.patch.multiple(lmtrain.ops.packed, LAYING_OUT=worth, CALLING=0, COPYING=0):
            outputs.append(module(packed, hx)[0])
            torch.manual_seed(3)
            found.append(gradients(module, packed, hx))
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
    for theirs_ways, our_ways in zip(outputs[0][1:], outputs[1][1:], strict=True):
        assert theirs_ways is our_ways or torch.equal(theirs_ways, our_ways)


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"zoneout": 0.3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_depends_on_where_a_packed_sequence_is_cut(
    backend: str, name: str, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    module = getattr(lmtrain.nn, name)(3, 20, 2, bidirectional=True, backend=backend, dtype=dtype, **options).eval()
    lengths = (17, 9, 9, 4, 1)
    packed = pack_sequence([torch.randn(n, 3, dtype=dtype) for n in lengths])
    packed.data.requires_grad_()
    hx = given_state(name, 4, 5, 20, dtype=dtype)
    found = []
    for cost in ("CALLING", "COPYING"):
        monkeypatch.setattr(lmtrain.ops.packed, cost, 0)
    for worth, num_segments in ((0, 4), (10, 2), (1000, 1)):
        monkeypatch.setattr(lmtrain.ops.packed, "LAYING_OUT", worth)
        assert len(lmtrain.ops.packed.segments(packed.batch_sizes.tolist(), 20)) == num_segments
        found.append({key: x.detach().float() for key, x in gradients(module, packed, hx).items()})
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for other in found[1:]:
        for key, x in found[0].items():
            assert_close(other[key], x, rtol=tolerance, atol=tolerance * max(1.0, float(x.abs().max())))


def test_a_packed_sequence_is_read_where_another_device_is_the_default() -> None:
    module = lmtrain.nn.GRU(3, 50)
    packed = pack_sequence([torch.randn(n, 3) for n in (5, 3, 2, 2)])
    expected = tensors(module(packed))
    with torch.device("meta"):
        assert all(map(torch.equal, tensors(module(packed)), expected))


def test_runs_are_joined_where_that_costs_less_than_a_call() -> None:
    def cut(*streams_T: int) -> list[tuple[tuple[int, int], ...]]:
        return [segment.runs for segment in lmtrain.ops.packed.segments(streams_T, hidden_size=400)]

    assert cut(4, 4, 4) == [((4, 3),)]
    assert cut(4, 4, 3, 2, 2) == [((4, 2), (3, 1), (2, 2))]
    assert cut(100, 30, 29) == [((100, 1),), ((30, 1), (29, 1))], "seventy rows that nobody reads"
    assert cut(2, *[1] * 100) == [((2, 1),), ((1, 100),)], "a hundred rows that nobody reads"
    assert cut(*[100] * 100, 99) == [((100, 100),), ((99, 1),)], "ten thousand rows to be copied"


@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
@pytest.mark.parametrize("start", [1e20, 2e38])
def test_states_that_grow_do_not_go_on_behind_the_end_of_a_stream(nonlinearity: str, start: float) -> None:
    """Sixty more steps, or one, would take the short stream to infinity, and zero times infinity is no gradient."""
    theirs, ours = nn.RNN(1, 256, nonlinearity="relu"), lmtrain.nn.RNN(1, 256, nonlinearity=nonlinearity)
    for module in (theirs, ours):
        for parameter in module.parameters():
            nn.init.constant_(parameter, 1 / 85)
    packed = pack_sequence([torch.zeros(60, 1), torch.ones(1, 1)])
    found = []
    for module in (theirs, ours):
        outputs, _ = module(packed, torch.stack([torch.zeros(256), torch.full((256,), start)])[None])
        outputs.data[2:].sum().backward()
        found.append([parameter.grad for parameter in module.parameters()])
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_under_autocast_with_noise_and_of_one_step(name: str, bidirectional: bool) -> None:
    theirs, ours = pair(name, 3, 4, 2, bidirectional=bidirectional)
    for x_dtype, hx_dtype in itertools.product((torch.float32, torch.bfloat16), (None, torch.float32, torch.bfloat16)):
        for lengths in ((5, 3, 3, 1), (2, 2), (4,)):
            packed = pack_sequence([torch.randn(n, 3, dtype=x_dtype) for n in lengths])
            hx = None if hx_dtype is None else given_state(name, 2 + 2 * bidirectional, len(lengths), 4, dtype=hx_dtype)
            with torch.autocast(**AUTOCAST):
                made = tensors(ours(packed, hx))
            expected, typed = under_autocast(theirs, packed, hx)
            if typed and TORCH >= (2, 13):  # earlier ones give some states another type
                assert [y.dtype for y in made] == [y.dtype for y in expected]
            assert_close([y.float() for y in made], [y.float() for y in expected], rtol=0, atol=0.02)
    noisy = getattr(lmtrain.nn, name)(
        3, 4, bidirectional=bidirectional, weight_drop=0.5, zoneout=0.2, layer_norm=True, dtype=torch.float64
    )
    longest = torch.randn(5, 3, dtype=torch.float64)
    sequences = pack_sequence([longest, longest[:3], longest[:1]])
    noisy.eval()
    alone = [tensors(noisy(longest[:n, None]))[1:] for n in (5, 3, 1)]
    assert_close(tensors(noisy(sequences))[1:], [torch.cat(states, 1) for states in zip(*alone, strict=True)])
    noisy.train()
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(tensors(noisy(sequences)))
    assert all(map(torch.equal, *drawn))
    assert not torch.equal(noisy(sequences)[0].data, drawn[0][0])


@pytest.mark.parametrize("name", CLASSES)
def test_float32_differs_by_rounding_alone(name: str) -> None:
    theirs, ours = pair(name, 33, 47, 2)
    x, hx = torch.randn(19, 5, 33).requires_grad_(), given_state(name, 2, 5, 47)
    assert_close(gradients(ours, x, hx), gradients(theirs, x, hx), rtol=1e-4, atol=2e-5)


@pytest.mark.skipif(native.why_no_library() is not None, reason="there is no compiler")
@pytest.mark.parametrize("name", CLASSES)
def test_the_fast_kernels_are_the_ones_that_compute(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    kernel = {"LSTM": "lstm", "GRU": "gru", "RNN": "elman"}[name]
    for direction in ("forward", "backward"):
        function = getattr(native, f"{direction}_{kernel}")
        monkeypatch.setattr(
            native, f"{direction}_{kernel}", lambda *a, f=function, d=direction: called.append(d) or f(*a)
        )  # fmt: skip
    module = getattr(lmtrain.nn, name)(3, 4, 2)
    module(torch.randn(5, 2, 3))[0].sum().backward()
    with torch.autocast(**AUTOCAST):
        module(torch.randn(5, 2, 3))
    assert called == ["forward", "forward", "backward", "backward", "forward", "forward"]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hx_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_types_that_torch_gives(
    name: str, x_dtype: torch.dtype, hx_dtype: torch.dtype | None, weight_dtype: torch.dtype
) -> None:
    theirs, ours = pair(name, 3, 4, 2, dtype=weight_dtype)
    x, hx = torch.randn(5, 2, 3, dtype=x_dtype), None if hx_dtype is None else given_state(name, 2, 2, 4, dtype=hx_dtype)
    with torch.autocast(**AUTOCAST):
        made = tensors(ours(x, hx))
    expected, typed = under_autocast(theirs, x, hx)
    assert not typed or [y.dtype for y in made] == [y.dtype for y in expected]
    assert_close([y.float() for y in made], [y.float() for y in expected], rtol=0, atol=0.02)
    sum(y.float().sum() for y in made).backward()
    assert all(parameter.grad.dtype == weight_dtype for parameter in ours.parameters())


@pytest.mark.parametrize("name", CLASSES)
def test_modules_in_bfloat16_and_in_float64_under_autocast_do_as_torchs(name: str) -> None:
    theirs, ours = pair(name, 3, 4, 2)
    theirs.bfloat16(), ours.bfloat16()
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16)
    made, expected = tensors(ours(x)), tensors(theirs(x))
    assert [y.dtype for y in made] == [y.dtype for y in expected] == [torch.bfloat16] * len(made)
    assert_close(made, expected, rtol=0, atol=0.02)
    theirs.double(), ours.double()
    with torch.autocast(**AUTOCAST):
        assert_close(ours(x.double()), theirs(x.double()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch_gives_empty_results_and_zero_gradients(name: str, batch_first: bool) -> None:
    theirs, ours = pair(name, 3, 4, 2, batch_first=batch_first)
    x = torch.randn(0, 5, 3) if batch_first else torch.randn(5, 0, 3)
    for hx in (None, given_state(name, 2, 0, 4)):
        assert [y.shape for y in tensors(ours(x, hx))] == [y.shape for y in tensors(theirs(x, hx))]
        assert_close(gradients(ours, x.requires_grad_(), hx), gradients(theirs, x.requires_grad_(), hx))


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_of_gradients(name: str) -> None:
    _, ours = pair(name, 2, 3, 2, dtype=torch.float64)
    x, hx = torch.randn(3, 2, 2, dtype=torch.float64).requires_grad_(), given_state(name, 2, 2, 3, dtype=torch.float64)

    def run(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(ours(x, states if name == "LSTM" else states[0])))

    states = hx if name == "LSTM" else (hx,)
    assert torch.autograd.gradcheck(run, (x, *states))
    assert torch.autograd.gradgradcheck(run, (x, *states))


# ---- the same module


@pytest.mark.parametrize("name", CLASSES)
def test_a_seed_draws_the_weights_that_torch_draws(name: str) -> None:
    for options in ({}, {"bias": False, "num_layers": 3}, {"dtype": torch.float64}):
        theirs, ours = pair(name, 3, 5, **options)
        after = torch.rand(1)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
        torch.manual_seed(1)
        with_more = getattr(lmtrain.nn, name)(3, 5, **options, layer_norm=True, weight_drop=0.5, zoneout=0.1)
        assert torch.equal(torch.rand(1), after)
        assert_close({k: v for k, v in with_more.state_dict().items() if "norm" not in k}, theirs.state_dict(), rtol=0, atol=0)
        torch.manual_seed(1)
        with_more.reset_parameters()
        assert torch.equal(with_more.weight_hh_l0, theirs.weight_hh_l0)
        assert bool((with_more.norm_hh_l0 == 1).all())


@pytest.mark.parametrize("name", CLASSES)
def test_weights_go_to_torch_and_come_back(name: str) -> None:
    theirs, ours = getattr(nn, name)(3, 4, 2), getattr(lmtrain.nn, name)(3, 4, 2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    again = getattr(nn, name)(3, 4, 2)
    again.load_state_dict(ours.state_dict(), strict=True)
    assert_close(again.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert [[w.shape for w in layer] for layer in ours.all_weights] == [
        [w.shape for w in layer] for layer in theirs.all_weights
    ]
    ours.flatten_parameters()
    x = torch.randn(5, 2, 3)
    assert_close(ours(x), theirs(x))


def test_arguments_have_torchs_order() -> None:
    assert repr(lmtrain.nn.LSTM(3, 4, 2, False, True, 0.5)) == repr(nn.LSTM(3, 4, 2, False, True, 0.5))
    assert repr(lmtrain.nn.GRU(3, 4, 2, False, True, 0.5)) == repr(nn.GRU(3, 4, 2, False, True, 0.5))
    for rnn in (lmtrain.nn.RNN(3, 4, 2, "relu", False, True, 0.5), nn.RNN(3, 4, 2, "relu", False, True, 0.5)):
        assert rnn.nonlinearity == "relu"
        assert rnn.mode == "RNN_RELU"
        assert repr(rnn) == "RNN(3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.5)"
    ours = lmtrain.nn.LSTM(3, 4, weight_drop=0.5, zoneout=0.1, layer_norm=True, backend="eager")
    assert repr(ours) == "LSTM(3, 4, weight_drop=0.5, zoneout=0.1, layer_norm=True, backend=eager)"
    assert isinstance(ours, nn.LSTM)  # what a script's own initialisation asks


@pytest.mark.parametrize(
    "options",
    [{"input_size": 0}, {"hidden_size": 0}, {"hidden_size": 4.5}, {"num_layers": 0}, {"dropout": 1.5}, {"dropout": True},
     {"bias": 1}, {"batch_first": None}, {"hidden": 3}, {"dropout": 0.5}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", CLASSES)
def test_what_the_constructor_refuses_or_warns_of_is_torchs(name: str, options: dict[str, Any]) -> None:
    said: list[Any] = []
    for module in (nn, lmtrain.nn):
        try:
            getattr(module, name)(**{"input_size": 3, "hidden_size": 4, **options})
        except (ValueError, TypeError, UserWarning) as error:
            said.append((type(error), str(error)))
        else:
            said.append(None)
    assert said[0] == said[1]
    assert said[0] is not None or TORCH < (2, 13)  # which looks at more of them than earlier ones


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proj_size": 2}, "proj_size"), ({"weight_drop": 1.0}, "weight_drop"),
        ({"zoneout": -0.1}, "zoneout"), ({"backend": "cuda"}, "backend 'cuda'. Select from auto, reference"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_refused_by_name(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        getattr(lmtrain.nn, name)(3, 4, **options)


def test_float16_and_an_unknown_nonlinearity_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"GRU: lmtrain.nn does not support torch.float16 \(but"):
        lmtrain.nn.GRU(3, 4).half()(torch.randn(5, 2, 3).half())
    with (
        pytest.raises(ValueError, match=r"GRU: lmtrain.nn does not support torch.float16 \(but"),
        torch.autocast("cpu", torch.float16),
    ):
        lmtrain.nn.GRU(3, 4)(torch.randn(5, 2, 3))
    with pytest.raises(ValueError, match=r"nonlinearity 'gelu'\. Select from tanh, relu, sigmoid"):
        lmtrain.nn.RNN(3, 4, nonlinearity="gelu")


def wrong_calls(name: str) -> Iterator[tuple[str, Any, Any]]:
    """What the message must name, an input and an hx, for a module of input size 3, hidden size 4 and two layers."""
    x = torch.randn(5, 2, 3)

    def hx(*size: int, **options: Any) -> Any:
        h = torch.zeros(size, **options)
        return (h, h) if name == "LSTM" else h

    yield "input", torch.randn(3), None
    yield "input", torch.randn(1, 5, 2, 3), None
    yield "input_size", torch.randn(5, 2, 4), None
    yield "sequence length", torch.randn(0, 2, 3), None
    yield "input dtype", x.double(), None
    yield "input dtype", x.long(), None
    yield "input tensor at meta", x.to("meta"), None
    yield "hx", x, hx(2, 4)
    yield "hx", x[:, 0], hx(2, 1, 4)
    yield r"\(2, 2, 4\), got \[1, 2, 4\]", x, hx(1, 2, 4)
    yield r"\(2, 2, 4\), got \[2, 3, 4\]", x, hx(2, 3, 4)
    yield r"\(2, 2, 4\), got \[2, 2, 5\]", x, hx(2, 2, 5)
    yield "meta", x, hx(2, 2, 4, device="meta")
    packed = pack_padded_sequence(x, torch.tensor([5, 3]))
    yield r"\(2, 2, 4\), got \[2, 1, 4\]", packed, hx(2, 1, 4)
    yield "input_size", pack_padded_sequence(torch.randn(5, 2, 4), torch.tensor([5, 3])), None


@pytest.mark.parametrize("name", CLASSES)
def test_errors_have_torchs_types_and_name_torchs_arguments(name: str) -> None:
    theirs, ours = pair(name, 3, 4, 2)
    for words, x, hx in wrong_calls(name):
        with pytest.raises((ValueError, RuntimeError)) as expected:
            theirs(x, hx)
        with pytest.raises(expected.type, match=words):
            ours(x, hx)
    h = torch.zeros(2, 2, 4)
    for wrong in ((h, h), [h]) if name != "LSTM" else (h, (h,), (h, h, h), (h, None), torch.zeros(2, 2, 2, 4)):
        with pytest.raises(TypeError, match=f"{name}: hx.* should be"):
            ours(torch.randn(5, 2, 3), wrong)
    with pytest.raises(ValueError, match=r"hx.* has dtype torch.float64"):  # of which torch says something cryptic
        ours(torch.randn(5, 2, 3), (h.double(),) * 2 if name == "LSTM" else h.double())


@pytest.mark.parametrize("name", CLASSES)
def test_it_is_copied_pickled_moved_and_called_functionally(name: str) -> None:
    theirs, ours = pair(name, 3, 4, 2)
    x = torch.randn(5, 2, 3)
    expected = theirs(x)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)):
        assert_close(copied(x), expected)
        copied.weight_hh_l0.data.zero_()
    assert_close(ours(x), expected)
    other, _ = pair(name, 3, 4, 2, dtype=torch.float64)
    weights = {key: 2 * value.detach() for key, value in other.named_parameters()}
    other.load_state_dict(weights)
    assert_close(functional_call(ours, weights, (x.double(),)), other(x.double()))
    assert_close(ours(x), expected)
    shapes = [y.shape for y in tensors(copy.deepcopy(ours).to("meta")(x.to("meta")))]
    assert shapes == [y.shape for y in tensors(expected)]


@pytest.mark.parametrize("name", CLASSES)
def test_frozen_weights_hooks_and_parametrisations(name: str) -> None:
    theirs, ours = pair(name, 3, 4, 2)
    x, heard = torch.randn(5, 2, 3), []
    for module in (theirs, ours):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l1.requires_grad_(False)
        module.register_forward_pre_hook(lambda module, arguments: heard.append(len(arguments)))
        module.register_forward_hook(lambda module, arguments, result: (2 * result[0], result[1]))
        module.register_full_backward_hook(lambda module, d_inputs, d_outputs: heard.append(len(d_outputs)))
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l1")
        module(x.requires_grad_())[0].sum().backward()
    assert heard[: len(heard) // 2] == heard[len(heard) // 2 :]
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    assert_close({key: parameter.grad for key, parameter in ours.named_parameters()}, expected, rtol=1e-4, atol=1e-5)
    assert expected["weight_hh_l0"] is None
    ours.requires_grad_(False)
    assert not ours(x.detach())[0].requires_grad
    assert ours(x)[0].requires_grad


@pytest.mark.parametrize("name", CLASSES)
def test_compiled_models_compute_what_they_are(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrence = getattr(lmtrain.nn, name)(3, 4, 2)
            self.output = nn.Linear(4, 2)

        def forward(self, x: Tensor, hx: Any = None) -> Any:
            outputs, hx = self.recurrence(x + 1, hx)
            return self.output(outputs), hx

    model, x = Model(), torch.randn(5, 2, 3)
    for module in (model, model.recurrence):
        expected = module(x)
        compiled = torch.compile(module, backend="eager")
        assert_close(compiled(x), expected)
        with torch.no_grad():
            assert_close(compiled(x, expected[1]), module(x, expected[1]))
        module.zero_grad()
        compiled(x)[0].sum().backward()
        assert all(parameter.grad is not None for parameter in model.recurrence.parameters())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_is_of_any_number_of_steps(name: str, bidirectional: bool) -> None:
    _, ours = pair(name, 3, 4, 2, bidirectional=bidirectional)
    traced = torch.jit.trace(ours, torch.randn(5, 2, 3))
    for steps, streams in ((5, 2), (7, 2), (1, 3)):
        x = torch.randn(steps, streams, 3)
        assert_close(traced(x), ours(x))
    with_norm = getattr(lmtrain.nn, name)(3, 4, layer_norm=True)
    x = torch.randn(5, 2, 3)
    assert_close(torch.jit.trace(with_norm, x)(x), with_norm(x))


@pytest.mark.parametrize("name", CLASSES)
def test_derivatives_of_functions_as_torch_func_takes_them(name: str) -> None:
    theirs, ours = pair(name, 3, 4, 2, dtype=torch.float64)
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)

    def gradient(module: nn.Module) -> dict[str, Tensor]:
        weights = {key: value.detach() for key, value in module.named_parameters()}
        return torch.func.grad(lambda weights: functional_call(module, weights, (x[0],))[0].square().sum())(weights)

    def along(module: nn.Module) -> Tensor:
        return torch.func.jvp(lambda x: module(x)[0], (x[0],), (x[1],))[1]

    for backend in ("auto", "reference"):
        ours.backend = backend
        assert_close(gradient(ours), gradient(theirs))
        assert_close(torch.func.vmap(lambda x: ours(x)[0])(x), torch.stack([theirs(each)[0] for each in x]))
    assert_close(along(ours), along(theirs))


@pytest.mark.parametrize("name", CLASSES)
def test_a_state_that_is_learnt_once_for_all_streams(name: str) -> None:
    theirs, ours = pair(name, 3, 4, 2)
    x, h = torch.randn(5, 3, 3), torch.randn(2, 1, 4).requires_grad_()
    hx = [h.expand(-1, 3, -1)] * 2 if name == "LSTM" else h.expand(-1, 3, -1)
    made, expected = (torch.autograd.grad(module(x, hx)[0].sum(), h) for module in (ours, theirs))
    assert_close(made, expected)


# ---- what torch's lack


def test_sigmoid_is_a_nonlinearity() -> None:
    ours = lmtrain.nn.RNN(1, 1, nonlinearity="sigmoid")
    for parameter in ours.parameters():
        nn.init.ones_(parameter)
    outputs, _ = ours(torch.ones(2, 1, 1))
    first = torch.sigmoid(torch.tensor(3.0))
    assert_close(outputs.flatten(), torch.stack([first, torch.sigmoid(3 + first)]))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_added_is_that_of_the_language_models(name: str, bias: bool, training: bool, dtype: torch.dtype) -> None:
    cell = {"LSTM": "lstm", "GRU": "gru", "RNN": "elman"}[name]
    ours = getattr(lmtrain.nn, name)(3, 4, bias=bias, layer_norm=True, zoneout=0.3, weight_drop=0.2).train(training)
    layer = CELLS[cell](3, 4, layer_norm=True, zoneout=0.3, weight_drop=0.2).train(training)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter))
        bias_ih, bias_hh = (ours.bias_ih_l0, ours.bias_hh_l0) if bias else torch.zeros(2, len(ours.weight_hh_l0))
        layer.weight_input_ZE.copy_(ours.weight_ih_l0), layer.weight_recurrent_ZH.copy_(ours.weight_hh_l0)
        layer.norm_input.weight.copy_(ours.norm_ih_l0), layer.norm_gain_Z.copy_(ours.norm_hh_l0)
        layer.bias_Z.copy_(bias_ih + bias_hh)
        if name == "GRU":
            layer.bias_Z[8:] -= bias_hh[8:]
            layer.candidate_bias_H.copy_(bias_hh[8:])
    x, state = torch.randn(5, 2, 3), tuple(torch.randn(2, 4) for _ in range(layer.num_states))
    hx = tuple(s[None] for s in state) if name == "LSTM" else state[0][None]
    torch.manual_seed(3)
    with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
        outputs, *finals = tensors(ours(x, hx))
    torch.manual_seed(3)
    expected, expected_finals = layer(x, state, None, torch.default_generator)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert_close(outputs.float(), expected, rtol=0, atol=tolerance)
    assert_close([final[0].float() for final in finals], list(expected_finals), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "noise", [{"weight_drop": 0.5}, {"zoneout": 0.3}, {"dropout": 0.5}, {"weight_drop": 0.2, "zoneout": 0.1}]
)
def test_noise_comes_from_torchs_generator_and_in_training_alone(name: str, noise: dict[str, float]) -> None:
    ours = getattr(lmtrain.nn, name)(3, 8, 2, **noise)
    x = torch.randn(5, 2, 3)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ours(x)[0])
    drawn.append(ours(x)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[2], drawn[3])
    sum(y.sum() for y in tensors(ours(x))).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in ours.parameters())
    before = torch.get_rng_state()
    assert torch.equal(ours.eval()(x)[0], ours(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", CLASSES)
def test_zoneout_keeps_units_and_weight_drop_drops_weights(name: str) -> None:
    ours = getattr(lmtrain.nn, name)(3, 50, zoneout=0.3)
    outputs, _ = ours(torch.randn(9, 4, 3))
    kept = float((outputs[1:] == outputs[:-1]).float().mean())
    assert 0.25 < kept < 0.35
    ours = getattr(lmtrain.nn, name)(3, 20, weight_drop=0.3)
    ours(torch.randn(2, 1, 3))[0].sum().backward()  # one step from zeros, one from a dense state: one sum of products
    dropped = float((ours.weight_hh_l0.grad == 0).float().mean())
    assert 0.2 < dropped < 0.4


# ---- the front door

SCRIPT = """
import torch
import lmtrain

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(17, 12)
        self.lstm = torch.nn.LSTM(12, 24, num_layers=2, dropout=0.2, batch_first=True)
        self.output = torch.nn.Linear(24, 17)

    def forward(self, tokens, state=None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.output(hidden), state

torch.manual_seed(0)
model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
text = torch.arange(4 * 201).reshape(4, 201) ** 2 % 17
losses, state = [], None
for chunk in text.unfold(1, 21, 20).unbind(1):
    logits, state = model(chunk[:, :-1], state)
    state = tuple(s.detach() for s in state)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
"""


def test_a_foreign_script_switches_by_one_line_and_gets_the_same_losses() -> None:
    switched = SCRIPT.replace("torch.nn.LSTM(", "lmtrain.nn.LSTM(")
    assert sum(a != b for a, b in zip(SCRIPT.splitlines(), switched.splitlines(), strict=True)) == 1
    losses = []
    for script in (SCRIPT, switched):
        names: dict[str, Any] = {}
        exec(script, names)
        losses.append(names["losses"])
    assert len(losses[0]) == 10
    assert losses[0][-1] < 0.95 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_readmes_example_and_the_docstrings_run() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### A drop-in")[2].partition("\n## ")[0]
    blocks = "".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    names: dict[str, Any] = {}
    exec(blocks, names)
    assert names["outputs"].shape == (35, 20, 200)
    layer, loss = (eval(was, names) for was in re.findall(r"# was (torch\.nn\..*)", blocks))
    assert repr(layer) == repr(names["lstm"])
    assert_close(names["loss"], loss)
    result = doctest.testmod(lmtrain.nn)
    assert result.attempted >= 5
    assert result.failed == 0


def test_importing_lmtrain_imports_no_torch_and_using_nn_no_compiler() -> None:
    script = (
        "import sys, lmtrain\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert 'nn' in dir(lmtrain) and 'nn' in lmtrain.__all__\n"
        "assert not hasattr(lmtrain, 'absent')\n"
        "lstm = lmtrain.nn.LSTM(3, 4)\n"
        "from lmtrain import nn\n"
        "assert nn is lmtrain.nn\n"
        "import torch\n"
        "lstm(torch.ones(5, 2, 3))[0].sum().backward()\n"
        "assert 'torch._dynamo' not in sys.modules and 'hydra' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)


def test_a_layer_on_a_cpu_does_not_ask_for_the_default_device() -> None:
    quantised_keep.cache_clear()
    layer, x = lmtrain.nn.LSTM(3, 5, weight_drop=0.5, zoneout=0.3), torch.randn(4, 2, 3)
    with torch.device("meta"):
        y, _ = layer(x)
    assert y.device.type == "cpu"
    y.sum().backward()


# ---- the loss of an output layer


def plain_loss(input: Tensor, linear_weight: Tensor, target: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    logits = F.linear(input, linear_weight, bias).reshape(-1, len(linear_weight))
    return F.cross_entropy(logits, target.reshape(-1), **options)


@given(
    shape=st.sampled_from([(), (1,), (7,), (3, 5), (2, 1, 3)]), V=st.sampled_from([1, 2, 17]), D=st.sampled_from([1, 4]),
    with_bias=st.booleans(), reduction=st.sampled_from(["mean", "sum"]), ignore_index=st.sampled_from([-100, 0, 999]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]), dtype=st.sampled_from([torch.float32, torch.float64]),
    weighted=st.sampled_from([False, False, True]), smoothing=st.sampled_from([0.0, 0.0, 0.1, 1.0]), seed=st.integers(0, 9),
)  # fmt: skip
def test_the_loss_of_an_output_layer_is_torchs(
    shape: tuple[int, ...], V: int, D: int, with_bias: bool, reduction: str, ignore_index: int, ignored: float,
    dtype: torch.dtype, weighted: bool, smoothing: float, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    tensors = [torch.randn(*size, dtype=dtype, requires_grad=True) for size in ((*shape, D), (V, D), (V,))]
    x, weight, bias = tensors if with_bias else [*tensors[:2], None]
    leaves = tensors if with_bias else tensors[:2]
    target = torch.randint(V, shape)
    target = torch.where(torch.rand(shape) < ignored, ignore_index, target)
    found = []
    options = {"reduction": reduction, "ignore_index": ignore_index, "label_smoothing": smoothing}
    options["weight"] = torch.rand(V, dtype=dtype) if weighted else None
    own = partial(lmtrain.nn.linear_cross_entropy, x, weight, target, linear_bias=bias)
    for loss in (plain_loss(x, weight, target, bias, **options), own(**options)):
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    assert_close(found[1], found[0], equal_nan=True)  # where nothing counts, a mean is torch's nan
    options["reduction"], upstream = "none", torch.randn(shape, dtype=dtype)
    found = []
    for losses in (plain_loss(x, weight, target, bias, **options).view(shape), own(**options)):
        found.append([losses, *torch.autograd.grad(losses, leaves, upstream)])
    assert_close(found[1], found[0])
    with torch.no_grad():
        assert_close(own(**options), found[0][0])


def test_the_loss_keeps_no_logits_and_calls_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "linear", lambda *_: pytest.fail("the logits of all tokens were made"))
    hidden, output = torch.randn(5, 3, 8, requires_grad=True), nn.Linear(8, 11)
    target = torch.randint(11, (5, 3))
    target[0] = -100
    loss = lmtrain.nn.linear_cross_entropy(hidden, output.weight, target, linear_bias=output.bias)
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.flatten(1).any(1).tolist() == [False] + [True] * 4


def test_the_loss_under_autocast_and_in_bfloat16_is_float32() -> None:
    torch.manual_seed(1)
    x, weight, target = torch.randn(40, 16, requires_grad=True), torch.randn(90, 16), torch.randint(90, (40,))
    with torch.autocast(**AUTOCAST):
        ours, theirs = lmtrain.nn.linear_cross_entropy(x, weight, target), plain_loss(x, weight, target, None)
    assert ours.dtype == theirs.dtype == torch.float32
    assert_close(ours, theirs, rtol=0.01, atol=0.01)
    assert torch.autograd.grad(ours, x)[0].dtype == torch.float32
    narrow = lmtrain.nn.linear_cross_entropy(x.bfloat16(), weight.bfloat16(), target)
    assert narrow.dtype == torch.float32
    assert_close(narrow, ours, rtol=0.01, atol=0.01)
    for reduction in ("mean", "sum"):
        none_counts = torch.full_like(target, -100)
        assert (
            lmtrain.nn.linear_cross_entropy(x.bfloat16(), weight.bfloat16(), none_counts, reduction=reduction).dtype
            == torch.float32
        )


def test_the_loss_of_tokens_none_of_which_counts_makes_no_logits_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a batch that is padding alone."""
    rows, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: rows.append(len(x)) or linear(x, *rest))
    x, weight, target = torch.randn(40, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True), torch.full((40,), -100)
    lmtrain.nn.linear_cross_entropy(x, weight, target, reduction="sum").backward()
    assert rows == [1]
    for leaf in (x, weight):
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_the_loss_on_the_device_meta_has_a_shape() -> None:
    with torch.device("meta"):
        x, weight, target = torch.empty(3, 5, 4), torch.empty(9, 4), torch.empty(3, 5, dtype=torch.int64)
    assert lmtrain.nn.linear_cross_entropy(x, weight, target).shape == ()


def test_the_loss_in_torch_func_in_compiled_code_and_twice_differentiated() -> None:
    torch.manual_seed(1)
    x, weight, target = torch.randn(3, 6, 4), torch.randn(9, 4), torch.randint(9, (3, 6))

    def plain(x: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Tensor:
        return plain_loss(x, weight, target, None, **options)

    found = []
    for loss in (plain, lmtrain.nn.linear_cross_entropy):
        found.append([
            vmap(loss, (0, None, 0))(x, weight, target),
            vmap(grad(loss, argnums=1), (0, None, 0))(x, weight, target),
            vmap(partial(loss, reduction="none"), (0, None, 0))(x, weight, target),
            torch.compile(lambda *tensors, loss=loss: 2 * loss(*tensors), backend="eager")(x, weight, target),
        ])  # fmt: skip
    assert_close(found[1], found[0])
    leaves = [tensor.double().requires_grad_() for tensor in (x[0], weight)]
    assert torch.autograd.gradgradcheck(lmtrain.nn.linear_cross_entropy, (*leaves, target[0]))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target": torch.zeros(5, dtype=torch.int64)}, "target should be [6], as input without its last size, got [5]"),
        ({"target": torch.zeros(6)}, "target should be int64, got torch.float32"),
        ({"linear_weight": torch.zeros(4, 9)}, "should be [V, D]; input is [6, 4], linear_weight [4, 9]"),
        ({"linear_bias": torch.zeros(4)}, "linear_bias should be [9], got [4]"),
        ({"input": torch.zeros(6, 4).double()}, "input has dtype torch.float64, linear_weight has torch.float32"),
        ({"linear_bias": torch.zeros(9).double()}, "linear_bias has dtype torch.float64, linear_weight has torch.float32"),
        ({"weight": torch.zeros(4)}, "weight should be [9], one of each class, got [4]"),
        ({"label_smoothing": 1.5}, "label_smoothing should lie in 0 to 1, got 1.5"),
        ({"reduction": "max"}, "reduction should be 'mean', 'sum' or 'none', got 'max'"),
        ({"backend": "fast"}, "Unknown backend 'fast'"),
    ],
)
def test_what_the_loss_refuses_is_said(changed: dict[str, Any], words: str) -> None:
    arguments = {
        "input": torch.zeros(6, 4, requires_grad=True),
        "linear_weight": torch.zeros(9, 4),
        "target": torch.zeros(6, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=re.escape(words)):
        lmtrain.nn.linear_cross_entropy(**{**arguments, **changed})
    arguments["target"][1] = 9
    with pytest.raises(IndexError, match="with V=9 they lie in 0 to 8"):
        lmtrain.nn.linear_cross_entropy(**arguments)


def test_the_arguments_of_the_loss_are_torchs() -> None:
    theirs = getattr(F, "linear_cross_entropy", None)
    if theirs is None:
        pytest.skip("PyTorch has linear_cross_entropy since 2.13")
    own, torchs = (inspect.signature(function).parameters for function in (lmtrain.nn.linear_cross_entropy, theirs))
    assert set(own) - set(torchs) == {"backend"}
    assert set(torchs) - set(own) == {"options"}
    shared = [name for name in own if name in torchs]
    assert shared == [name for name in torchs if name in own]
    assert [own[name].kind for name in shared] == [torchs[name].kind for name in shared]
