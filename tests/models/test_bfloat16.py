"""bfloat16 on a CPU where PyTorch multiplies it in plain loops: no product is left to those, and the numbers are the same."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import lmtrain
import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.inference.dynamic import Adaptive, Cache, Dynamic, _Memory
from lmtrain.models.base import NeuralLanguageModel
from lmtrain.ops import transforms
from lmtrain.ops.linear import linear
from lmtrain.ops.lookup import lookup
from lmtrain.ops.native.products import matmul
from lmtrain.ops.transforms import multiply

V, EOS = 40, 2
RECURRENT: dict[str, Any] = {"embed_size": 12, "hidden_size": 20, "num_layers": 2}
MODELS: dict[str, config.NeuralConfig] = {
    **{str(cell.name): config.RecurrentConfig(cell=cell, **RECURRENT) for cell in config.Cell},
    **{f"{c.name}, normalised":
       config.RecurrentConfig(cell=c, layer_norm=True, zoneout=0.2, projection_size=12, **RECURRENT) for c in config.Cell},
    "hashed n-grams": config.RecurrentConfig(maxent_order=3, maxent_table=1024, **RECURRENT),
    "window": config.WindowConfig(context=3, embed_size=12, hidden_size=20, num_averages=2, average_span=6, tie_weights=True,
                                  project=True),
    **{f"head {head.name}": config.RecurrentConfig(head=head, num_samples=16, cutoffs=[10, 20], **RECURRENT)
       for head in config.HeadName},
}  # fmt: skip


@contextmanager
def products() -> Iterator[Counter[str]]:
    """Counts the products that PyTorch makes, by type, native kernels or not."""
    made: Counter[str] = Counter()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        yield made
    assert profiler.profiler is not None
    for event in profiler.profiler.kineto_results.events():
        if event.name() in {
            f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "mkldnn_linear")
        }:
            made[event.dtypes()[0].removeprefix("c10::")] += 1


@pytest.fixture
def plain_loops(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether PyTorch is to be taken for one that has nothing better."""
    return lambda has: monkeypatch.setattr(transforms, "multiplies_bfloat16_in_plain_loops", lambda: has)


def model_of(name: str, backend: str) -> NeuralLanguageModel:
    settings = MODELS[name]
    fields = {**vars(settings), **({} if isinstance(settings, config.WindowConfig) else {"backend": config.Backend[backend]})}
    model = build_model(type(settings)(**fields), vocab_size=V, eos_id=EOS, seed=3)
    assert isinstance(model, NeuralLanguageModel)
    return model


def numbers(model: NeuralLanguageModel) -> dict[str, Tensor]:
    """Its loss and all gradients, distributions, and probabilities of targets, in bfloat16."""
    draws = torch.Generator().manual_seed(5)
    tokens_TB, targets_TB = (torch.randint(0, V, (9, 4), generator=draws) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        nats, _, _ = model.training_loss(tokens_TB, targets_TB, model.initial_state(4), draws)
    (nats / tokens_TB.numel()).backward()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        log_probs_TBV, _ = model.log_probs(tokens_TB, model.initial_state(4))
        picked_TB, _ = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(4))
    gradients = {name: x.grad.to_dense() for name, x in model.named_parameters() if x.grad is not None}
    return {"nats": nats.detach(), "distributions": log_probs_TBV, "targets": picked_TB, **gradients}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_no_product_of_a_model_runs_in_the_plain_loops(name: str, backend: str, plain_loops: Callable[[bool], None]) -> None:
    plain_loops(False)
    expected = numbers(model_of(name, backend))
    plain_loops(True)
    found = numbers(model_of(name, backend))
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        assert found[key].dtype == x.dtype
        torch.testing.assert_close(found[key], x, rtol=0.05, atol=0.02 * max(float(x.abs().max()), 1e-6))
    with products() as made:
        numbers(model_of(name, backend))
    assert made["BFloat16"] == 0, made


@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16,) * 2])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (5,)])
def test_a_linear_layer_gives_the_types_and_numbers_of_pytorch(
    types: tuple[torch.dtype, torch.dtype], shape: tuple[int, ...], plain_loops: Callable[[bool], None]
) -> None:
    plain_loops(True)
    draws = torch.Generator().manual_seed(1)
    x, weight_ZE = (torch.randn(s, generator=draws).to(t).requires_grad_() for s, t in zip((shape, (6, 5)), types, strict=True))
    bias_Z = torch.randn(6, generator=draws, requires_grad=True)
    made = []
    for function in (F.linear, linear):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, weight_ZE, bias_Z)
        made.append((y, *torch.autograd.grad(y.float().square().sum(), (x, weight_ZE, bias_Z))))
    for theirs, ours in zip(*made, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.detach().abs().max()))


def test_factors_of_two_types_are_refused_as_elsewhere(plain_loops: Callable[[bool], None]) -> None:
    plain_loops(True)
    x_NE = torch.ones(3, 4, dtype=torch.bfloat16)
    for dtype in (torch.float32, torch.float64, torch.float16):
        with pytest.raises(RuntimeError, match="same dtype"):
            linear(x_NE, torch.ones(2, 4, dtype=dtype))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_the_backward_pass_may_run_under_the_autocast_and_keeps_no_copies(
    name: str, backend: str, plain_loops: Callable[[bool], None]
) -> None:
    plain_loops(True)
    module, x_TBD = getattr(lmtrain.nn, name)(12, 20, backend=backend), torch.randn(6, 3, 12)
    kept: list[Tensor] = []
    with products() as made, torch.autocast("cpu", torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            total = module(x_TBD)[0].float().sum()
        total.backward()
    assert made["BFloat16"] == 0
    assert made.total() > 1
    assert not [x for x in kept if x.dtype == torch.float32 and x.numel() >= module.weight_hh_l0.numel()]


def test_other_types_and_other_devices_are_left_to_pytorch(plain_loops: Callable[[bool], None]) -> None:
    plain_loops(True)
    x_NE, weight_EZ = torch.ones(3, 4), torch.ones(4, 2)
    for dtype in (torch.float32, torch.float64):
        assert multiply(torch.matmul, x_NE.to(dtype), weight_EZ.to(dtype)).dtype == dtype
    assert multiply(torch.matmul, x_NE.to("meta", torch.bfloat16), weight_EZ.to("meta", torch.bfloat16)).dtype == torch.bfloat16


def test_no_product_of_dynamic_evaluation_runs_in_the_plain_loops(plain_loops: Callable[[bool], None]) -> None:
    plain_loops(True)
    method = Adaptive(cache=Cache(window=9), dynamic=Dynamic(rate=0.1, segment_length=3))
    begun = method.scoring(model_of("lstm", "auto"), torch.tensor([EOS]))
    with products() as made, torch.autocast("cpu", torch.bfloat16), begun as score:
        for targets_TB in (torch.arange(24) % V).view(-1, 3, 1):
            score(targets_TB)
    assert made["BFloat16"] == 0
    assert made.total() > 1


def test_no_product_of_the_cache_and_of_the_kernels_runs_in_the_plain_loops(plain_loops: Callable[[bool], None]) -> None:
    plain_loops(True)
    hidden_TBD = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(2)).bfloat16()
    with products() as made:
        _Memory(Cache(window=9)).mix(torch.zeros(5, 2), hidden_TBD, torch.ones(5, 2, dtype=torch.int64))
        assert matmul(hidden_TBD[0], hidden_TBD[1].T).dtype == torch.bfloat16
        lookup(
            torch.ones(3, 4, dtype=torch.bfloat16, requires_grad=True), torch.zeros(2, 2, dtype=torch.int64)
        ).sum().backward()
    assert made["BFloat16"] == 0
    assert made.total() > 1
