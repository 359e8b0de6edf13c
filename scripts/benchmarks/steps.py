"""Contestants that do a whole training step: `torch.nn` as one would write it, with our recurrence in it, and ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import lmtrain.nn
from benchmarks.measuring import PRECISIONS, Contestant, autocast, gradient, least_seconds, plain_precisions
from benchmarks.models import PlainModel, Way, draw_tokens, our_model, plain_model, ways
from benchmarks.parts import least_of, step_parts
from benchmarks.presets import Preset
from lmtrain.data.stream import Chunk
from lmtrain.training.averaging import LastWeights
from lmtrain.training.graphed import graphed
from lmtrain.training.learner import SequenceLearner
from lmtrain.training.optimizer import group_parameters, make_optimizer
from lmtrain.training.schedule import Constant, Progress

RATE = 0.001
CLIP = 0.25
PROGRESS = Progress(step=0, epoch=0.0, fraction=0.0)


def make_steps(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Plain torch.nn in every precision, then ours on every backend that serves the shape."""
    tokens_TB = draw_tokens(preset, device, preset.chunk_length + 1)
    ours = our_model(preset, "reference", device)
    for precision in plain_precisions(device):
        yield _plain_step(plain_model(preset, ours, device), tokens_TB, precision, preset.num_layers)
    for precision in PRECISIONS[device.type]:
        for way in ways(preset, device, precision):
            yield _our_step(preset, way, precision, tokens_TB, device)


def make_dropins(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """The plain step, with torch's recurrence, with ours in its place, and with our loss of the output layer as well."""
    tokens_TB = draw_tokens(preset, device, preset.chunk_length + 1)
    ours = our_model(preset, "reference", device)
    for library, fused in ((nn, False), (lmtrain.nn, False), (lmtrain.nn, True)):
        for precision in PRECISIONS[device.type]:
            model = plain_model(preset, ours, device, library)
            name = f"{library.__name__} + loss" if fused else library.__name__
            yield _plain_step(model, tokens_TB, precision, preset.num_layers, name, fused=fused)


def _plain_step(
    model: PlainModel, tokens_TB: Tensor, precision: str, num_layers: int, name: str = "torch.nn", *, fused: bool = False
) -> Contestant:
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    inputs_TB, targets_TB = tokens_TB[:-1], tokens_TB[1:]
    state: Any = None

    def loss_of() -> Tensor:
        nonlocal state
        with autocast(precision, tokens_TB.device):
            loss, after = model.loss(inputs_TB, targets_TB, state, fused=fused)
        state = tree_map(Tensor.detach, after)
        return loss

    def run() -> float:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    def probe() -> dict[str, Tensor]:
        nonlocal state
        state = None
        model.zero_grad()
        loss = loss_of()
        loss.backward()
        state = None
        gradients = {"loss": loss.detach(), "embedding": gradient(model.embedding.weight)}
        for layer in range(num_layers):
            weights = model.weights(layer)
            gradients[f"input{layer}"] = gradient(weights["weight_ih"])
            gradients[f"recurrent{layer}"] = gradient(weights["weight_hh"])
        return gradients | {"bias": gradient(model.output.bias)}

    # without scaling, gradients in float16 are not to be compared
    return Contestant(name, precision, run, probe if precision != "float16" else None)


def _our_step(preset: Preset, way: Way, precision: str, tokens_TB: Tensor, device: torch.device) -> Contestant:
    learner = our_learner(our_model(preset, way.backend, device), precision, device)
    if way.graph:
        learner = graphed(learner)
    model: Any = learner.model
    chunk = Chunk(tokens_TB[:-1], tokens_TB[1:], starts_epoch=False, epoch=0, index=0)

    def step() -> object:
        with way.variant():
            return learner.step(chunk, PROGRESS)

    def probe() -> dict[str, Tensor]:
        model.zero_grad()
        model.eval()  # without weight-drop, so that it can be compared
        with learner.autocast(), way.variant():
            nats, _, _ = model.training_loss(
                chunk.inputs_TB, chunk.targets_TB, model.initial_state(preset.batch_size), learner.generator
            )
        (nats / preset.num_tokens).backward()
        gradients = {"loss": nats.detach() / preset.num_tokens, "embedding": gradient(model.embedding.weight)}
        for number, layer in enumerate(model.layers):
            gradients[f"input{number}"] = gradient(layer.weight_input_ZE)
            gradients[f"recurrent{number}"] = gradient(layer.weight_recurrent_ZH)
        return gradients | {"bias": gradient(model.head.bias_V)}

    def parts() -> dict[str, float]:
        with way.variant():
            return {} if way.graph else _parts(learner, chunk, preset, device)

    def roofline_parts() -> dict[str, float]:
        return least_of(lambda: step_parts(learner, chunk, step))

    name = f"lmtrain {way}" + ("" if preset.head == "full" else f", {preset.head}")
    return Contestant(
        name, precision, step, probe if preset.head == "full" else None, parts,
        roofline_parts=roofline_parts if way.backend == "native" else None,
    )  # fmt: skip


def our_learner(model: Any, precision: str, device: torch.device) -> SequenceLearner:
    return SequenceLearner(
        model=model,
        optimizer=make_optimizer("adam", group_parameters(model.named_parameters()), learning_rate=RATE),
        schedule=Constant(),
        averaging=LastWeights(),
        generator=torch.Generator(device).manual_seed(1),
        learning_rate=RATE,
        clip_norm=CLIP,
        autocast=lambda: autocast(precision, device),
    )


def _parts(learner: SequenceLearner, chunk: Chunk, preset: Preset, device: torch.device) -> dict[str, float]:
    """Milliseconds of the parts of a step, each timed alone, forward and backward; what is left is `rest`."""
    model: Any = learner.model
    state = model.initial_state(preset.batch_size)
    with torch.no_grad(), learner.autocast():
        features = model.features(chunk.inputs_TB, state, learner.generator)[0]

    def step() -> None:
        learner.step(chunk, PROGRESS)

    def recurrence() -> None:  # with the embedding, which may be projected word by word
        with learner.autocast():
            x = model.activations(chunk.inputs_TB, state, learner.generator)[0]
        x.backward(torch.ones_like(x))

    def head() -> None:
        with learner.autocast():
            nats = model.head.loss(features.detach().requires_grad_(), chunk.targets_TB, learner.generator)
        nats.backward()

    measured = {}
    for work in (recurrence, head):
        step()
        model.zero_grad(set_to_none=True)
        measured[work.__name__] = 1e3 * least_seconds(work, device, 5)
    step()  # which leaves gradients behind
    measured["optimizer"] = 1e3 * least_seconds(learner.optimizer.step, device, 5)
    whole = 1e3 * least_seconds(step, device, 5)
    return measured | {"rest": max(0.0, whole - sum(measured.values()))}
