"""Milliseconds of the parts of a training step of ours, each timed alone, as `roofline.py` names them.

A part repeats on the same numbers, so what it needs lies in the nearest cache that holds it: as its limit assumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import least_seconds
from lmtrain.data.stream import Chunk
from lmtrain.ops.lookup import lookup
from lmtrain.training.learner import SequenceLearner
from lmtrain.training.optimizer import clip_gradients

CPU = torch.device("cpu")
REPEAT, ROUNDS = 5, 3  # rounds apart from each other, because other work may slow a machine down for a second

Parts = dict[str, float]
Context = Callable[[], AbstractContextManager[Any]]


def least_of(measure: Callable[[], Parts]) -> Parts:
    """The least of each part that several rounds found."""
    rounds = [measure() for _ in range(ROUNDS)]
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


def step_parts(learner: SequenceLearner, chunk: Chunk, step: Callable[[], object]) -> Parts:
    """All parts of one step of a recurrent model in training."""
    model: Any = learner.model
    weight, tokens_TB = model.embedding.weight, chunk.inputs_TB
    state = model.initial_state(tokens_TB.shape[1])
    x = model.embedding(tokens_TB).detach()
    if model._projects_words(tokens_TB):
        with learner.autocast():
            projected_VZ = model.layers[0].project(weight).detach().requires_grad_()
        embedding = sum(_halves(lambda: lookup(projected_VZ, tokens_TB), learner.autocast))
        parts = recurrence_parts(model.layers, weight.detach(), state[1:], learner.autocast, tokens_TB)
    else:
        embedding = sum(_halves(lambda: model.embedding(tokens_TB), learner.autocast, [weight]))
        parts = recurrence_parts(model.layers, x, state[1:], learner.autocast)
    with torch.no_grad(), learner.autocast():
        features = model.features(tokens_TB, state, learner.generator)[0]
    features = features.detach().requires_grad_()
    head = sum(_halves(
        lambda: model.head.loss(features, chunk.targets_TB, learner.generator), learner.autocast,
        [features, *model.head.parameters()],
    ))  # fmt: skip
    step()  # which leaves gradients behind
    clip = least_seconds(lambda: clip_gradients(model.parameters(), learner.clip_norm), CPU, REPEAT)
    step()
    update = least_seconds(learner.optimizer.step, CPU, REPEAT)
    seconds = {"head": head, "clip": clip, "optimizer": update}
    return {"embedding": 1e3 * embedding, **parts, **{name: 1e3 * value for name, value in seconds.items()}}


def recurrence_parts(
    layers: Iterable[Any], x: Tensor, state: tuple[Tensor, ...], autocast: Context, tokens_TB: Tensor | None = None
) -> Parts:
    """Input projections (both passes), recurrences forward and backward. `tokens_TB`: `x` is the table of their vectors."""
    projection = forward = backward = 0.0
    for layer in layers:
        own, state = state[: layer.num_states], state[layer.num_states :]
        inputs, parameters = x.detach().requires_grad_(), list(layer.parameters())
        projection += sum(_halves(lambda: layer.project(inputs), autocast, [inputs, *parameters]))  # noqa: B023
        with torch.no_grad(), autocast():
            projected = layer.project(inputs)
            projected = projected if tokens_TB is None else lookup(projected, tokens_TB)
            x = layer.run(projected, own, None, None)[0]
        tokens_TB, projected = None, projected.detach().requires_grad_()
        halves = _halves(lambda: layer.run(projected, own, None, None)[0], autocast, [projected, *parameters])  # noqa: B023
        forward, backward = forward + halves[0], backward + halves[1]
    return {"projection": 1e3 * projection, "forward": 1e3 * forward, "backward": 1e3 * backward}


def _halves(forward: Callable[[], Tensor], context: Context, leaves: Iterable[Tensor] = ()) -> tuple[float, float]:
    """The least seconds of a forward pass and of the backward pass behind it, whose gradients are new ones each time."""
    leaves = list(leaves)
    least = [float("inf"), float("inf")]
    for _ in range(REPEAT + 2):  # some to warm up
        for leaf in leaves:
            leaf.grad = None
        started_at = time.perf_counter()
        with context():
            outputs = forward()
        half_at = time.perf_counter()
        upstream = torch.ones_like(outputs)
        again_at = time.perf_counter()
        outputs.backward(upstream)
        least = [min(least[0], half_at - started_at), min(least[1], time.perf_counter() - again_at)]
    return least[0], least[1]
