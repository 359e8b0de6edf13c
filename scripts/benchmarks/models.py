"""The two models of a preset, with the same weights: one written plainly with `torch.nn`, and ours on a backend."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import lmtrain.config as config
import lmtrain.nn
from benchmarks.measuring import dtype_of, float32_products
from benchmarks.presets import Preset
from lmtrain.build import build_model, sparse_gradients
from lmtrain.models.base import NeuralLanguageModel
from lmtrain.ops import backends


class PlainModel(nn.Module):
    """The model as one would write it: embedding, nn.LSTM / GRU / RNN, linear layer. `library`: whose nn for the second."""

    def __init__(self, preset: Preset, library: ModuleType = nn) -> None:
        super().__init__()
        sizes = preset.layer_sizes
        self.embedding = nn.Embedding(preset.vocab_size, sizes[0][0])
        module = {"elman": library.RNN, "gru": library.GRU, "lstm": library.LSTM}[preset.cell]
        if len(set(sizes)) == 1:
            self.recurrence = module(*sizes[0], len(sizes))
        else:
            self.recurrence = Stack([module(*size) for size in sizes])
        self.output = nn.Linear(sizes[-1][1], preset.vocab_size)
        if preset.tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens_TB: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden_TBH, state = self.recurrence(self.embedding(tokens_TB), state)
        return self.output(hidden_TBH), state

    def loss(self, tokens_TB: Tensor, targets_TB: Tensor, state: Any, *, fused: bool) -> tuple[Tensor, Any]:
        """The mean loss in nats, with the logits of all tokens or by `lmtrain.nn.linear_cross_entropy`; and the next state."""
        if not fused:
            logits_TBV, state = self(tokens_TB, state)
            return F.cross_entropy(logits_TBV.flatten(0, 1), targets_TB.flatten()), state
        hidden_TBH, state = self.recurrence(self.embedding(tokens_TB), state)
        weight, bias = self.output.weight, self.output.bias
        return lmtrain.nn.linear_cross_entropy(hidden_TBH, weight, targets_TB, linear_bias=bias), state

    def weights(self, layer: int) -> dict[str, Tensor]:
        """The parameters of one layer of the recurrence, by their names without the number."""
        stacked = isinstance(self.recurrence, Stack)
        own, suffix = (self.recurrence.layers[layer], "_l0") if stacked else (self.recurrence, f"_l{layer}")
        return {name.removesuffix(suffix): weight for name, weight in own.named_parameters() if name.endswith(suffix)}


class Stack(nn.Module):
    """Layers of several sizes, to be called like a module of several layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        after = []
        for number, layer in enumerate(self.layers):
            x, own = layer(x, None if state is None else state[number])
            after.append(own)
        return x, after


def our_model(preset: Preset, backend: str, device: torch.device) -> Any:
    model: Any = copy.deepcopy(_first_model(preset, device))
    for layer in model.layers:
        layer.backend = backend
    return model


@lru_cache(maxsize=1)  # drawing hundreds of millions of weights takes longer than a preset's steps
def _first_model(preset: Preset, device: torch.device) -> NeuralLanguageModel:
    sizes = preset.layer_sizes
    settings = config.RecurrentConfig(
        cell=config.Cell[preset.cell], embed_size=sizes[0][0], hidden_sizes=[hidden for _, hidden in sizes],
        hidden_size=preset.hidden_size, num_layers=preset.num_layers, tie_weights=preset.tied,
        head=config.HeadName[preset.head], weight_drop=preset.weight_drop,
    )  # fmt: skip
    model = build_model(
        settings, vocab_size=preset.vocab_size, eos_id=0, seed=1,
        sparse_embeddings=sparse_gradients(preset.num_tokens, preset.vocab_size, device),
    )  # fmt: skip
    assert isinstance(model, NeuralLanguageModel)
    return model.to(device)


@torch.no_grad()
def plain_model(preset: Preset, ours: Any, device: torch.device, library: ModuleType = nn) -> PlainModel:
    """The plain model with our weights."""
    with device:
        plain = PlainModel(preset, library)
    plain.embedding.weight.copy_(ours.embedding.weight)
    plain.output.weight.copy_(ours.head.weight_VE)
    plain.output.bias.zero_()
    for number, layer in enumerate(ours.layers):
        weights = plain.weights(number)
        weights["weight_ih"].copy_(layer.weight_input_ZE)
        weights["weight_hh"].copy_(layer.weight_recurrent_ZH)
        weights["bias_ih"].copy_(layer.bias_Z)
        weights["bias_hh"].zero_()
    return plain


def draw_tokens(preset: Preset, device: torch.device, length: int) -> Tensor:
    """Ids [length, B], as frequent as those of a text: 1 / rank."""
    ranks = torch.arange(1, preset.vocab_size + 1, dtype=torch.float64)
    return torch.multinomial(1 / ranks, length * preset.batch_size, replacement=True).view(length, preset.batch_size).to(device)


@dataclass(frozen=True)
class Way:
    """How ours computes: the backend, for Triton its variant, and whether as a CUDA graph."""

    backend: str
    variant_name: str
    graph: bool

    def variant(self) -> AbstractContextManager[None]:
        if self.backend != "triton":
            return nullcontext()
        from lmtrain.ops.triton.launch import variant

        return variant(self.variant_name)

    def __str__(self) -> str:
        letter = {"auto": " a+b" if self.backend == "triton" else "", "steps": " a", "persistent": " b"}[self.variant_name]
        return f"{self.backend}{letter}{' graph' if self.graph else ''}"


def ways(preset: Preset, device: torch.device, precision: str) -> list[Way]:
    """Those that can serve the shape here; on a GPU with and without a graph."""
    sizes = {"T": preset.chunk_length, "B": preset.batch_size, "H": preset.hidden_size}
    call = backends.Call(preset.cell, device.type, dtype_of(precision), sizes)
    found = [(name, "auto") for name in ("eager", "native") if backends.why_not(name, call) is None]
    if device.type == "cuda" and backends.why_not("triton", call) is None:  # its interpreter on a CPU is no contestant
        found.append(("triton", "steps"))
        fits = _fits(preset, device, precision)
        if any(fits):
            found.append(("triton", "persistent" if all(fits) else "auto"))
    return [Way(*way, graph) for way in found for graph in ((False, True) if device.type == "cuda" else (False,))]


def _fits(preset: Preset, device: torch.device, precision: str) -> list[bool]:
    """Of every layer whether its weight can be held on the chip."""
    from lmtrain.ops.triton.persistent import make_plan

    dtype, gates = dtype_of(precision), preset.num_gates
    with float32_products(precision, device):
        return [make_plan(device, dtype, gates, preset.batch_size, hidden) is not None for _, hidden in preset.layer_sizes]
