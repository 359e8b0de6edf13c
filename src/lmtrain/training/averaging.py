"""The weights that are evaluated: the last ones, or an average of those along the way.

    LastWeights              w
    NonMonotonicAverage      mean of w after every step since validation stopped improving (NT-ASGD: Merity 2017, alg. 1)
    ExponentialAverage       a <- d a + (1 - d) w after every step, with d = min(decay, (1 + n) / (10 + n)) after n steps

Training goes on with w itself; `averaged()` puts the average into the model and restores the weights exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.expected import MIN_NATS, Each, Flag, Like, Number, Whole, agree, compare

FEWEST_LOSSES = 3  # before NT-ASGD starts: the best one, `patience` (at least one) after it, and one that is worse


class Averaging(ABC):
    """Averages parameters over the steps of a run. There is no average before the first step."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._parameters = dict(named_parameters)
        self._averages: dict[str, Tensor] = {}
        self._num_averaged = 0

    @property
    def differs(self) -> bool:
        """Tells whether there is an average, so that the weights to evaluate are not those that are trained."""
        return bool(self._averages)

    @abstractmethod
    def update(self) -> None:
        """Takes in the weights after a step."""

    def after_evaluation(self, cost: float) -> None:  # noqa: B027 (only NT-ASGD listens)
        """Tells the average what validation said: lower is better."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averaged weights into the model; afterwards it has exactly those that it had."""
        trained = {name: self._parameters[name].detach().clone() for name in self._averages}
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(trained)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the averages by parameter name (not copies); empty if there are none."""
        return dict(self._averages)

    def document(self) -> dict[str, Any]:
        """Returns the JSON-able rest of what a resumed run needs."""
        return {"num_averaged": self._num_averaged}

    def expected_tensors(self, there_are: bool) -> dict[str, Like]:
        """Returns what `tensors()` returns, if there are averages."""
        return {name: Like.of(parameter) for name, parameter in self._parameters.items() if there_are}

    def expected_document(self, there_are: bool, num_steps: int, best_cost: float | None) -> dict[str, Any]:
        """Returns what `document()` returns after `num_steps` steps, if the best finite validation was `best_cost`."""
        return {"num_averaged": Whole(1, num_steps) if there_are else 0}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Goes on from `tensors()` and `document()`. Raises UnfitError if they are of another model."""
        compare(self.expected_tensors(bool(tensors)), tensors)
        # In the order of the parameters, on which `_move` relies, whatever the order in which they were stored.
        self._averages = {
            name: torch.empty_like(parameter).copy_(tensors[name]) for name, parameter in self._parameters.items() if tensors
        }
        self._num_averaged = document["num_averaged"]

    def _move(self, share: float) -> None:
        """Moves every average by this fraction of the way to the weights. The first average is the weights themselves."""
        if not self._averages:
            self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        else:
            torch._foreach_lerp_([*self._averages.values()], [p.detach() for p in self._parameters.values()], share)
        self._num_averaged += 1

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in weights.items():
                self._parameters[name].copy_(tensor)


class LastWeights(Averaging):
    """Takes no average: what is trained is evaluated."""

    def __init__(self) -> None:
        super().__init__(())

    def update(self) -> None:
        """Does nothing."""


class ExponentialAverage(Averaging):
    """Takes an exponential moving average. Its memory grows with the run, so the first weights do not weigh forever."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        super().__init__(named_parameters)
        self.decay = decay

    def update(self) -> None:
        n = self._num_averaged
        self._move(1 - min(self.decay, (1 + n) / (10 + n)))


MAX_LOSSES = 10_000  # that are kept besides the last `patience` ones: a checkpoint does not hold any number of them


class NonMonotonicAverage(Averaging):
    """Is NT-ASGD: averaging starts when a validation loss is worse than the best of those before the last `patience` ones.

    So it cannot start before `patience` + 1 evaluations were made, and it never ends. It is meant for plain SGD at a constant
    rate.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], patience: int) -> None:
        super().__init__(named_parameters)
        self.patience = patience
        self.started = False
        self._losses: list[float] = []

    def update(self) -> None:
        if self.started:
            self._move(1 / (self._num_averaged + 1))

    def after_evaluation(self, cost: float) -> None:
        before = self._losses[: -self.patience]
        if before and not cost <= min(before):  # a loss that is not a number is no improvement
            self.started = True
        self._losses.append(math.inf if math.isnan(cost) else cost)
        if len(self._losses) > self.patience + MAX_LOSSES:  # only the least of the old ones counts
            self._losses[:MAX_LOSSES] = [min(self._losses[:MAX_LOSSES])]

    def document(self) -> dict[str, Any]:
        losses = [None if math.isinf(loss) else loss for loss in self._losses]
        return super().document() | {"started": self.started, "losses": losses}

    def expected_document(self, there_are: bool, num_steps: int, best_cost: float | None) -> dict[str, Any]:
        fewest = FEWEST_LOSSES if there_are else 0
        own = {
            "started": True if there_are else Flag(),
            "losses": _Losses(Number(MIN_NATS, null=True), fewest, num_steps + 1, best_cost=best_cost),
        }
        return super().expected_document(there_are, num_steps, best_cost) | own

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        agree(
            not document["started"] or len(document["losses"]) >= FEWEST_LOSSES,
            "started", f"is true after {len(document['losses'])} evaluations", f"true from the {FEWEST_LOSSES}rd on",
        )  # fmt: skip
        super().load(tensors, document)
        self.started = document["started"]
        self._losses = [math.inf if loss is None else loss for loss in document["losses"]]


@dataclass(frozen=True)
class _Losses(Each):
    """Stands for all validation losses so far; the least of those that are finite is the best of the run."""

    best_cost: float | None = None

    def problem(self, value: Any) -> str:
        least = min((loss for loss in value if type(loss) in (int, float)), default=None) if isinstance(value, list) else None
        return super().problem(value) or (f"has the minimum {least}" if least != self.best_cost else "")

    def __str__(self) -> str:
        return f"{super().__str__()}, with the best so far, {self.best_cost}, as the minimum"
