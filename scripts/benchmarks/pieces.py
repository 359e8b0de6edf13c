"""Contestants that do a piece of the work: the recurrence alone, the output layer alone, generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import lmtrain.nn
from benchmarks.measuring import PRECISIONS, Contestant, autocast, dtype_of, gradient, least_seconds, plain_precisions
from benchmarks.models import Way, draw_tokens, our_model, plain_model, ways
from benchmarks.parts import least_of, recurrence_parts
from benchmarks.presets import Preset
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.sample import sample
from lmtrain.ops.cuda_graph import PLAIN_CALLS, record_cuda_graph
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy

# ---- the recurrence


@dataclass
class Recurrence:
    """The layers of a model: from inputs [T, B, E] to outputs [T, B, H], with their parameters by name."""

    forward: Callable[[Tensor], Tensor]
    weights: dict[str, Tensor]
    parts: Callable[[Tensor, str], dict[str, float]] | None = None  # of given inputs and a precision, as roofline.py names them


def make_recurrences(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Forward and backward of the layers over given inputs."""
    ours = our_model(preset, "reference", device)
    plain = plain_model(preset, ours, device).recurrence
    inputs = torch.randn(preset.chunk_length, preset.batch_size, preset.layer_sizes[0][0], device=device)
    upstream = torch.randn(preset.chunk_length, preset.batch_size, preset.layer_sizes[-1][1], device=device)
    plainly = Recurrence(lambda x: plain(x)[0], dict(plain.named_parameters()))
    for precision in plain_precisions(device):
        yield _recurrence("torch.nn", Way("torch.nn", "auto", False), precision, plainly, inputs, upstream, preset)
    for precision in PRECISIONS[device.type]:
        for way in ways(preset, device, precision):
            layers = _our_layers(our_model(preset, way.backend, device), preset.batch_size)
            yield _recurrence(f"lmtrain {way}", way, precision, layers, inputs, upstream, preset)


def _our_layers(model: Any, batch_size: int) -> Recurrence:
    initial = model.initial_state(batch_size)

    def forward(x: Tensor) -> Tensor:
        used = 1
        for layer in model.layers:
            x, after = layer(x, initial[used : used + layer.num_states], None, None)
            used += len(after)
        return x

    def parts(x: Tensor, precision: str) -> dict[str, float]:
        return least_of(lambda: recurrence_parts(model.layers, x, initial[1:], lambda: autocast(precision, x.device)))

    return Recurrence(forward, dict(model.layers.named_parameters()), parts)


def _recurrence(
    name: str, way: Way, precision: str, layers: Recurrence, inputs: Tensor, upstream: Tensor, preset: Preset
) -> Contestant:
    leaf = inputs.clone().requires_grad_()

    def forward() -> Tensor:
        with autocast(precision, inputs.device), way.variant():
            return layers.forward(leaf)

    def both() -> Tensor:
        for tensor in (leaf, *layers.weights.values()):
            tensor.grad = None
        outputs = forward()
        with way.variant():
            outputs.backward(upstream.to(outputs.dtype))
        return outputs

    run, run_forward = (_Recorded(both), _Recorded(forward)) if way.graph else (both, forward)

    def probe() -> dict[str, Tensor]:
        outputs = run()
        first = next(w for n, w in layers.weights.items() if n.endswith(("weight_hh_l0", "0.weight_recurrent_ZH")))
        return {"loss": outputs.detach().float().square().mean(), "inputs": gradient(leaf), "recurrent": gradient(first)}

    def parts() -> dict[str, float]:
        """Microseconds of a step in one layer."""
        half, whole = (least_seconds(work, inputs.device, 10) for work in (run_forward, run))
        steps = preset.chunk_length * preset.num_layers
        return {"forward": 1e6 * half / steps, "backward": 1e6 * (whole - half) / steps}

    def roofline_parts() -> dict[str, float]:
        assert layers.parts is not None
        return layers.parts(inputs, precision)

    return Contestant(
        name, precision, run, probe, parts if inputs.is_cuda else None,
        roofline_parts=roofline_parts if way.backend == "native" else None,
    )  # fmt: skip


def make_packed(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Forward and backward over a packed sequence, torch's modules and ours in their place.

    The texts have 1, 3, 5, ... steps, so that all together have as many as B streams of T steps where B = T.
    """
    lengths = torch.linspace(1, 2 * preset.chunk_length - 1, preset.batch_size).round().long().flip(0)
    sizes = (preset.hidden_size, preset.hidden_size, preset.num_layers)
    texts = torch.randn(int(lengths[0]), preset.batch_size, preset.hidden_size, device=device)
    name = {"elman": "RNN"}.get(preset.cell, preset.cell.upper())
    first = getattr(nn, name)(*sizes).to(device)
    for library in (nn, lmtrain.nn):
        module = getattr(library, name)(*sizes).to(device)
        module.load_state_dict(first.state_dict())
        for precision in PRECISIONS[device.type]:
            yield _packed(library.__name__, precision, module, texts, lengths)


def _packed(library: str, precision: str, module: Any, texts: Tensor, lengths: Tensor) -> Contestant:
    leaf = texts.clone().requires_grad_()

    def run() -> Tensor:
        for tensor in (leaf, *module.parameters()):
            tensor.grad = None
        with autocast(precision, texts.device):
            outputs: Tensor = module(pack_padded_sequence(leaf, lengths))[0].data
        outputs.float().square().sum().backward()
        return outputs

    def probe() -> dict[str, Tensor]:
        loss = run().detach().float().square().mean()
        return {"loss": loss, "inputs": gradient(leaf), "recurrent": gradient(module.weight_hh_l0)}

    return Contestant(library, precision, run, probe)


class _Recorded:
    """Work that becomes a CUDA graph when it is first called, after a few plain calls."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self.work = work
        self.play: Callable[[], object] | None = None

    def __call__(self) -> Tensor:
        if self.play is None:
            for _ in range(PLAIN_CALLS):
                self.work()
            self.play = record_cuda_graph(self._keep_outputs, None)
        self.play()
        return self.outputs

    def _keep_outputs(self) -> None:
        self.outputs = self.work()


# ---- the output layer


def make_heads(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Output layer and loss, forward and backward."""
    features = torch.randn(preset.num_tokens, preset.hidden_size, device=device)
    weight = torch.empty(preset.vocab_size, preset.hidden_size, device=device).uniform_(-0.1, 0.1)
    bias, targets = torch.zeros(preset.vocab_size, device=device), draw_tokens(preset, device, preset.chunk_length).flatten()

    def plain(f: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(f, w, b), targets, reduction="sum")

    for precision in PRECISIONS[device.type]:
        yield _head("torch.nn", precision, plain, features, weight, bias)
    if hasattr(F, "linear_cross_entropy"):

        def torchs(f: Tensor, w: Tensor, b: Tensor) -> Tensor:
            options = torch.nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(f, w, targets, linear_bias=b, reduction="sum", options=options)

        yield _head("torch linear_cross_entropy", "float32", torchs, features, weight, bias)
    for backend in ("eager", "native") if device.type == "cpu" else ("eager", "triton"):
        for precision in PRECISIONS[device.type]:
            dtype = dtype_of(precision)

            def ours(f: Tensor, w: Tensor, b: Tensor, backend: str = backend, dtype: torch.dtype = dtype) -> Tensor:
                return linear_cross_entropy(f, w, b, targets, compute_dtype=dtype, backend=backend)

            yield _head(f"lmtrain {backend}", precision, ours, features, weight, bias)


def _head(name: str, precision: str, loss: Callable[..., Tensor], features: Tensor, weight: Tensor, bias: Tensor) -> Contestant:
    leaves = {"features": features, "weight": weight, "bias": bias}
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in leaves.items()}

    def run() -> Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        with autocast(precision, features.device):
            nats = loss(*leaves.values())
        nats.backward()
        return nats

    def probe() -> dict[str, Tensor]:
        return {"loss": run().detach(), **{key: gradient(leaf) for key, leaf in leaves.items()}}

    return Contestant(name, precision, run, probe)


# ---- generation


def make_generators(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """One stream of text, token by token. Plain bfloat16 is autocast without its cache of weights, which inference lacks."""
    ours = our_model(preset, "auto", device).eval()
    plain = plain_model(preset, ours, device).eval()

    @torch.no_grad()
    def write(precision: str) -> None:
        token, state = torch.zeros(1, 1, dtype=torch.long, device=device), None
        for _ in range(preset.chunk_length):
            with autocast(precision, device):
                logits, state = plain(token, state)
            token = torch.multinomial(logits[0].float().softmax(-1), 1)

    settings = SampleSettings(max_tokens=preset.chunk_length, allow_unk=True, statistics=False)
    endless: dict[str, Any] = {}

    def write_ours(precision: str) -> None:
        tokenizer: Any = Numbers(preset.vocab_size)
        with autocast(precision, device):
            if precision not in endless:
                endless[precision] = sample(
                    ours, tokenizer, "", settings, num_samples=10**9, side_by_side=1, device=device, int8=precision == "int8"
                )
            for _ in next(endless[precision]):
                pass

    in_8_bits = ("int8",) if device.type == "cpu" else ()
    for name, work, others in (("torch.nn", write, ()), ("lmtrain", write_ours, in_8_bits)):
        for precision in ("float32", "bfloat16", *others):
            yield Contestant(name, precision, partial(work, precision))


class Numbers:
    """A tokenizer whose tokens are written as nothing."""

    eos_id, unk_id, reverse = 0, None, False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def unknown_pieces(self, text: str) -> list[str]:
        return []

    def encode(self, text: str) -> Any:
        return torch.zeros(0, dtype=torch.int32).numpy()

    def make_decoder(self, before: str = "") -> Numbers:
        return self

    def push(self, token_id: int) -> str:
        return ""

    def is_open(self) -> bool:
        return False

    def flush(self) -> str:
        return ""
