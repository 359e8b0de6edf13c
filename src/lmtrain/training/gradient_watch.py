"""`trainer.watch_gradients=true` records at each evaluation how gradients and units of a model behave while it is trained.

    watch/gradient_by_lag/K        |dJ/d(state K steps back)| of a recurrent model over that of lag 0; J is the loss of the last
                                   token of the next chunk, the state is all of h and c; the mean over the streams
    watch/LAYER/GATE_low, _high    fraction of a gate's values below 0.1 and above 0.9 (Karpathy, Johnson and Fei-Fei 2015)
    watch/LAYER/saturated          fraction of the values of tanh units above 0.9 in size, of hard_tanh of size 1
    watch/LAYER/dead               fraction of the units of a ReLU that are 0 for every item of the batch

LAYER is layer.0, layer.1, ... of recurrent cells, and hidden.0, hidden.1, ... of other hidden layers, from the input upwards.
Everything is computed on the next batch, in float64, without dropout (see `ExactCopy`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lmtrain.explain.through_time import state_norms
from lmtrain.models.base import NeuralLanguageModel, State
from lmtrain.models.recurrent import RecurrentLayer
from lmtrain.ops.activations import ACTIVATIONS
from lmtrain.ops.recurrence import previous_states
from lmtrain.training.gradient_check import ExactCopy
from lmtrain.training.learner import GradientLearner, Learner, SequenceLearner
from lmtrain.training.session import GradientWatch

LOW, HIGH = 0.1, 0.9
SIGMOID, TANH, RELU = {"sigmoid"}, {"tanh", "hard_tanh"}, {"relu"}

Gates = dict[str, tuple[str, Tensor]]  # name -> its non-linearity, and its values [T, B, H]
Calls = list[tuple[str, Tensor]]  # the name of a non-linearity, and its output


def gradient_watch(learner: Learner) -> GradientWatch | None:
    """Looks at gradients and units of the batch that comes next. None for a learner without gradients."""
    if not learner.has_gradients:
        return None
    return lambda state, batch: watch_gradients(cast(GradientLearner, learner), learner.own(batch))


def watch_gradients(learner: GradientLearner, batch: Any) -> dict[str, float]:
    """Returns the numbers by tag. Nothing of the learner changes."""
    exact = ExactCopy(learner, batch)
    cells = [module for module in exact.model.modules() if isinstance(module, RecurrentLayer)]
    with torch.no_grad(), recorded(cells) as (gates, calls):
        exact.loss()
    numbers = _gradients_by_lag(learner, exact) if cells and isinstance(learner, SequenceLearner) else {}
    for number, parts in enumerate(gates):  # a chunk whose state is carried from its middle has two parts
        for name, (function, _) in parts[0].items():
            numbers |= _fractions(f"watch/layer.{number}", name, function, torch.cat([part[name][1] for part in parts]))
    num_layers = len(getattr(exact.model, "weights", ())) or len(calls)  # a tagger's corrupted windows are further rows
    for number, (function, y) in enumerate(calls[:num_layers]):
        values = torch.cat([y, *(more for _, more in calls[number + num_layers :: num_layers])])
        numbers |= _fractions(f"watch/hidden.{number}", "", function, values)
    return numbers


def _fractions(layer: str, gate: str, function: str, y: Tensor) -> dict[str, float]:
    """Returns what is recorded of the values [..., H] of the units of a layer, or of one of its gates."""
    prefix = f"{layer}/{gate}_" if gate else f"{layer}/"
    if function in SIGMOID:
        return {f"{prefix}low": _fraction(y < LOW), f"{prefix}high": _fraction(y > HIGH)}
    if function in TANH:
        return {f"{prefix}saturated": _fraction(y.abs() >= (1 if function == "hard_tanh" else HIGH))}
    if function in RELU:
        return {f"{prefix}dead": _fraction((y == 0).flatten(0, -2).all(0))}
    return {}


def _fraction(of: Tensor) -> float:
    return float(of.double().mean())


# ---- units and gates


@contextmanager
def recorded(cells: list[RecurrentLayer]) -> Iterator[tuple[list[list[Gates]], Calls]]:
    """Collects what gates (by cell, call and name) and non-linearities of hidden layers compute within it, in their order.

    The cells belong to a copy, which nobody else uses.
    """
    gates: list[list[Gates]] = [[] for _ in cells]
    calls: Calls = []

    def recur(number: int, projected: Tensor, state: State, weight: Tensor, keep: Tensor | None, zoneout: Any) -> Any:
        layer = cells[number]
        states_TBH, after = type(layer).recur(layer, projected, state, weight, keep, zoneout)
        gates[number].append(layer.gates(projected, previous_states(state[0], states_TBH, keep), weight))
        return states_TBH, after

    def call(name: str, function: Any, *inputs: Tensor) -> Tensor:
        y: Tensor = function(*inputs)
        calls.append((name, y))
        return y

    plain = dict(ACTIVATIONS)
    for number, layer in enumerate(cells):
        layer.recur = partial(recur, number)  # type: ignore[method-assign]
    ACTIVATIONS.update({name: partial(call, name, function) for name, function in plain.items()})
    try:
        yield gates, calls
    finally:
        ACTIVATIONS.update(plain)
        for layer in cells:
            del vars(layer)["recur"]


# ---- gradients through time


def _gradients_by_lag(learner: SequenceLearner, exact: ExactCopy) -> dict[str, float]:
    """Returns the gradients of the loss of the chunk's last token, over the state one step before it and further back."""
    model, chunk = cast(NeuralLanguageModel, exact.model), exact.batch
    state, _ = learner.carried(chunk)
    wide = tuple(x.double() if x.is_floating_point() else x for x in state)
    last = len(chunk.inputs_TB) - 1
    norms = state_norms(model, wide, chunk.inputs_TB, chunk.targets_TB[-1], last)
    lags = [lag for lag in (0, 1, 2, 5, *range(10, last, 10), last) if lag <= last]
    return {f"watch/gradient_by_lag/{lag}": norms[lag] / norms[0] if norms[0] else 0.0 for lag in dict.fromkeys(lags)}
