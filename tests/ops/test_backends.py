"""How a backend is chosen, refused and logged."""

import logging
import sys
from types import ModuleType

import pytest
import torch

from lmtrain.errors import ResourceError, SettingsError
from lmtrain.ops import backends
from lmtrain.ops.backends import Call, choose, why_not
from lmtrain.ops.lstm import lstm


def call(device: str = "cpu", **changes: object) -> Call:
    return Call("lstm", device, torch.float64, {"T": 2, "B": 1, "H": 3}, **changes)  # type: ignore[arg-type]


def install(monkeypatch: pytest.MonkeyPatch, name: str, reason: str | None) -> None:
    """A backend module that has an lstm and gives one answer."""
    module = ModuleType(f"lmtrain.ops.{name}")
    vars(module).update(why_not=lambda call: reason, forward_lstm=None)
    monkeypatch.setitem(sys.modules, f"lmtrain.ops.{name}", module)
    monkeypatch.setattr(backends, "_told", set())


def test_auto_takes_the_first_of_its_table_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "native", None)
    assert choose("auto", call()) == "native"
    install(monkeypatch, "native", "it is busy")
    assert choose("auto", call()) == "eager"
    assert choose("auto", call(device="xpu")) == "eager"


def test_auto_says_once_what_it_took_and_why_not_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "native", "it computes in float32 and bfloat16")
    with caplog.at_level(logging.INFO, logger="lmtrain"):
        choose("auto", call())
        choose("auto", call())
    assert caplog.messages == ["lstm in float64 on cpu is computed by eager (native: it computes in float32 and bfloat16)"]


def test_a_reason_is_given_once_and_not_for_every_function(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "native", "there is no compiler")
    vars(sys.modules["lmtrain.ops.native"]).update(forward_gru=None)
    with caplog.at_level(logging.INFO, logger="lmtrain"):
        for function in ("lstm", "gru", "gru"):
            choose("auto", Call(function, "cpu", torch.float32, {}))
        install_reason(monkeypatch, "the cache is full")
        choose("auto", Call("gru", "cpu", torch.float32, {}))
    assert caplog.messages == [
        "lstm in float32 on cpu is computed by eager (native: there is no compiler)",
        "gru in float32 on cpu is computed by eager",
        "gru in float32 on cpu is computed by eager (native: the cache is full)",
    ]


def install_reason(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setitem(vars(sys.modules["lmtrain.ops.native"]), "why_not", lambda call: reason)


def test_a_named_backend_that_cannot_serve_raises_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "native", "it computes in float32 and bfloat16")
    message = (
        r'^backend="native" cannot compute lstm in float64 on cpu: it computes in float32 and bfloat16\. Use backend="auto"\.$'
    )
    with pytest.raises(ResourceError, match=message):
        choose("native", call())


def test_a_backend_without_the_function_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "native", None)
    del sys.modules["lmtrain.ops.native"].forward_lstm
    assert why_not("native", call()) == "it has no lstm"


def test_a_backend_whose_package_is_missing_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmtrain.ops.triton", None)
    assert why_not("triton", call("cuda")) == "there is no Python module lmtrain.ops.triton"


def test_a_missing_module_within_a_backend_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(backend: str, function: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'speling'", name="speling")

    monkeypatch.setattr(backends, "kernels", broken)
    with pytest.raises(ModuleNotFoundError, match="speling"):
        why_not("native", call())


def test_an_unknown_name_lists_the_known_ones() -> None:
    message = r'^backend="fast" does not exist\. There are auto, reference, eager, native, triton\. Use backend="auto"\.$'
    with pytest.raises(SettingsError, match=message):
        choose("fast", call())


def test_the_options_in_use_reach_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "native", None)
    asked: list[Call] = []
    vars(sys.modules["lmtrain.ops.native"])["why_not"] = lambda call: asked.append(call) or "it only asks"
    zeros = torch.zeros
    lstm(zeros(2, 1, 12), zeros(1, 3), zeros(1, 3), zeros(12, 3), keep_TB=zeros(2, 1), norm_gain_Z=zeros(12))
    assert asked == [Call("lstm", "cpu", torch.float32, {"T": 2, "B": 1, "H": 3}, frozenset({"keep_TB", "norm_gain_Z"}))]
