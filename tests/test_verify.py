"""The checks that run on a user's machine find what they are there to find."""

import importlib
import math
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lmtrain
from lmtrain import verify
from lmtrain.explain import scorer
from lmtrain.ops import elman, gru, linear_cross_entropy, lstm
from lmtrain.ops.activations import ACTIVATIONS
from lmtrain.verify import Check, format_table, iter_checks


def failures(operation: str) -> set[str]:
    """The tensors of an operation whose gradient differs from central differences."""
    generator = torch.Generator().manual_seed(1)
    subjects = [*verify._recurrences(generator, ""), verify._output_layer(generator)]
    checks = [check for s in subjects if s.operation == operation for check in verify._check_differences(s)]
    return {check.tensor for check in checks if not check.passed}


def functions() -> list[type[torch.autograd.Function]]:
    """Every function of the package whose gradient was written by hand."""
    for module in pkgutil.walk_packages(lmtrain.__path__, "lmtrain."):
        if not module.name.endswith("__main__") and ".triton" not in module.name:  # Triton may be absent
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:  # the graphs of export compute nothing here; their package is an extra
                if error.name != "onnx" or not module.name.startswith("lmtrain.export.onnx_"):
                    raise
    found, left = [], [torch.autograd.Function]
    while left:
        subclasses = left.pop().__subclasses__()
        left += subclasses
        found += [cls for cls in subclasses if cls.__module__.startswith("lmtrain.") and "backward" in vars(cls)]
    return found


def test_nothing_fails_and_every_hand_written_gradient_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    differentiated: set[str] = set()

    def watched(cls: type[torch.autograd.Function]) -> Callable[..., object]:
        backward = cls.backward

        def watching(*arguments: object) -> object:
            differentiated.add(cls.__name__)
            return backward(*arguments)

        return watching

    for cls in functions():
        monkeypatch.setattr(cls, "backward", staticmethod(watched(cls)))
    monkeypatch.setattr(verify, "_fast_backends", lambda operation: iter(()))
    before = torch.get_rng_state()
    checks = list(iter_checks())
    assert [check for check in checks if not check.passed] == []
    assert differentiated == {cls.__name__ for cls in functions()}
    assert {check.function for check in checks} >= {*ACTIVATIONS, "elman tanh", "gru with everything", "direct_cross_entropy"}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("module", "kernel", "result", "tensor"),
    [
        (elman, "backward_elman", 1, "d_h0_BH"),
        (gru, "backward_gru", 2, "d_h0_BH"),
        (lstm, "backward_lstm", 1, "d_h0_BH"),
        (lstm, "backward_lstm", 2, "d_c0_BH"),
    ],
)
def test_a_dropped_gradient_is_found(
    module: object, kernel: str, result: int, tensor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Callable[..., tuple[Tensor, ...]] = getattr(module, kernel)

    def dropping(*arguments: object) -> tuple[Tensor, ...]:
        results = list(right(*arguments))
        results[result] = torch.zeros_like(results[result])
        return tuple(results)

    monkeypatch.setattr(module, kernel, dropping)
    assert failures(kernel.removeprefix("backward_")) == {tensor}


def test_a_wrong_gradient_of_the_output_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear_cross_entropy.forward_linear_cross_entropy

    def wrong(*arguments: object) -> tuple[Tensor | None, ...]:
        total, d_features, d_weight, d_bias = right(*arguments)  # type: ignore[arg-type]
        return total, d_features, None if d_weight is None else d_weight * (1 + 1e-5), d_bias

    monkeypatch.setattr(linear_cross_entropy, "forward_linear_cross_entropy", wrong)
    assert failures("linear_cross_entropy") == {"d_weight_VD"}


def test_an_error_that_is_not_a_number_does_not_pass() -> None:
    assert not Check("lstm", "eager", "torch.nn", "h_BH", math.nan).passed


def test_table_names_the_failed_tensor_and_counts() -> None:
    checks = [Check("lstm", "eager", "torch.nn", "h_BH", 1e-16), Check("gru", "native", "float64", "d_h0_BH", 0.5)]
    _, good, bad, _, last = format_table(checks).splitlines()
    assert good.split() == ["lstm", "eager", "torch.nn", "h_BH", "1.0e-16", "1e-10"]
    assert bad.split() == ["gru", "native", "float64", "d_h0_BH", "5.0e-01", "1e-05", "FAILED"]
    assert last == "2 checks, 1 failed"


def test_an_operation_that_no_fast_backend_serves_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for checks in ("_check_differences", "_check_against_torch"):
        monkeypatch.setattr(verify, checks, lambda _: iter(()))
    monkeypatch.setattr(verify, "why_not", lambda backend, call: "there is no compiler" if backend == "native" else "no GPU")
    assert list(iter_checks()) == []
    said = [message for message in caplog.messages if "native" in message]
    assert said[0] == "elman is not checked with backend native: there is no compiler"
    assert len(said) == len(set(said)) == 5


def test_a_wrong_delta_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scorer.delta_form
    monkeypatch.setattr(scorer, "delta_form", lambda p: right({**p, "u": p["u"] * 1.001}))
    failed = {check.tensor for check in verify.lecture_checks(scorer.scorer_gradients()) if not check.passed}
    assert failed == {"d_W1", "d_b1", "d_W2", "d_b2", "d_x"}
