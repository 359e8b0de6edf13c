"""What training has come to: all that must survive a crash, and nothing else.

TrainState   what was learnt, where in the text, how long, the best so far
Interval     sums since the last record
Trouble      when a number was last not finite, and how often in a row
Spikes       what the loss has been like
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lmtrain.data.stream import Position
from lmtrain.training.learner import Learner, StepReport, Tensors


@dataclass
class Interval:
    """Sums since the last record, so that a resumed run writes the records which the uninterrupted one would have."""

    num_steps: int = 0
    num_tokens: int = 0
    nats: float = 0.0
    penalty: float = 0.0
    grad_norm: float = 0.0
    num_clipped: int = 0

    def add(self, report: StepReport) -> None:
        self.num_steps += 1
        self.num_tokens += report.num_tokens
        self.nats += report.nats or 0.0
        self.penalty += report.penalty
        self.grad_norm += report.grad_norm
        self.num_clipped += report.clipped


@dataclass(frozen=True)
class Trouble:
    """When a number was last not finite (0: never), and how many times in a row: see `lmtrain.training.finite`."""

    last_step: int = 0
    count: int = 0


@dataclass(frozen=True)
class Spikes:
    """Running mean and variance of a loss, exponentially weighted over about `1 / (1 - decay)` steps.

        d = x - mean      mean' = mean + (1 - decay) d      variance' = decay (variance + (1 - decay) d^2)

    West (1979), "Updating mean and variance estimates". During the first `warm_up` values nothing is a spike.
    """

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0
    decay: float = 0.99
    warm_up: int = 100

    def is_spike(self, value: float, num_deviations: float = 6.0) -> bool:
        """Whether `value` lies more than `num_deviations` standard deviations above the mean."""
        return self.count >= self.warm_up and value > self.mean + num_deviations * math.sqrt(self.variance)

    def with_value(self, value: float) -> Spikes:
        """The same with `value` counted in; a value that is not finite is not."""
        if not math.isfinite(value):
            return self
        if self.count == 0:
            return replace(self, mean=value, count=1)
        weight = max(1 - self.decay, 1 / (self.count + 1))  # a plain mean until there are enough values
        difference = value - self.mean
        return replace(
            self,
            mean=self.mean + weight * difference,
            variance=(1 - weight) * (self.variance + weight * difference**2),
            count=self.count + 1,
        )


ADDED: dict[str, Any] = {"saved_step": None, "trouble": asdict(Trouble())}
"""What the documents of older checkpoints lack."""


@dataclass
class TrainState:
    """All that must survive a crash: what was learnt, where in the text, how long, and the best so far."""

    learner: Learner
    position: Position = field(default_factory=Position)
    step: int = 0
    num_tokens: int = 0
    elapsed_seconds: float = 0.0
    best_nats: float = math.inf  # nats per token on validation
    best_step: int | None = None
    evaluated_step: int | None = None
    saved_step: int | None = None  # of the last checkpoint that the cadence asked for, not a signal
    trouble: Trouble = Trouble()
    interval: Interval = field(default_factory=Interval)
    spikes: Spikes = Spikes()

    def tensors(self) -> Tensors:
        return self.learner.tensors()

    def document(self) -> dict[str, Any]:
        return {
            "position": self.position.to_json(),
            "step": self.step,
            "num_tokens": self.num_tokens,
            "elapsed_seconds": self.elapsed_seconds,
            "best_nats": self.best_nats if math.isfinite(self.best_nats) else None,
            "best_step": self.best_step,
            "evaluated_step": self.evaluated_step,
            "saved_step": self.saved_step,
            "trouble": asdict(self.trouble),
            "interval": asdict(self.interval),
            "spikes": asdict(self.spikes),
            "learner": self.learner.document(),
        }

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        """Goes on from `tensors()` and `document()` of another process."""
        document = {**ADDED, **document}
        _check_like(self.document(), document)
        self.learner.load(tensors, document["learner"])
        self.position = Position.from_json(document["position"])
        self.step, self.num_tokens = document["step"], document["num_tokens"]
        self.elapsed_seconds = document["elapsed_seconds"]
        self.best_nats = math.inf if document["best_nats"] is None else document["best_nats"]
        self.best_step, self.evaluated_step = document["best_step"], document["evaluated_step"]
        self.saved_step, self.trouble = document["saved_step"], Trouble(**document["trouble"])
        self.interval = Interval(**document["interval"])
        self.spikes = Spikes(**document["spikes"])


def _check_like(own: Any, given: Any, name: str = "state") -> None:
    """ValueError unless `given` has the form of `own`, with counts that are counts and numbers that are numbers."""
    if name in ("state.learner.optimizer", "state.learner.random"):
        return  # checked where they are put back
    largest = 1e100 if isinstance(given, float) else 1 << 63  # more than any sum of a diverging run, and safe to square
    is_number = isinstance(given, int | float) and not isinstance(given, bool) and abs(given) < largest
    match own:
        case dict():
            fits = isinstance(given, dict) and given.keys() == own.keys()
            for key in own if fits else ():
                _check_like(own[key], given[key], f"{name}.{key}")
        case list():
            fits = isinstance(given, list) and all(item is None or isinstance(item, float) for item in given)
        case bool():
            fits = isinstance(given, bool)
        case int():
            fits = is_number and isinstance(given, int) and given >= 0
        case float():
            fits = is_number or (given is None and not math.isfinite(own))
        case _:
            fits = given is None or is_number
    if not fits:
        raise ValueError(f"{name} is {given!r:.60}")
