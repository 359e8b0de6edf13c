"""The state of a training: everything that must survive a crash, and nothing else.

TrainState   what was learnt, where in the data, how long, the best so far
Interval     sums since the last record
Trouble      when a number was last not finite, and how often in a row
Spikes       what the loss has been like
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lmtrain.data.batches import Batches, Position
from lmtrain.expected import MIN_NATS, Anything, Flag, Number, Whole, agree, compare, within
from lmtrain.training.learner import Known, Learner, StepReport, Tensors
from lmtrain.training.score import TOKENS, Wording

MAX_SECONDS = 1e10  # three hundred years


@dataclass
class Interval:
    """Sums since the last record, so that a resumed run writes the records which the uninterrupted one would have."""

    num_steps: int = 0
    num_items: int = 0
    loss: float = 0.0
    penalty: float = 0.0
    grad_norm: float = 0.0
    num_clipped: int = 0

    def add(self, report: StepReport) -> None:
        self.num_steps += 1
        self.num_items += report.num_items
        self.loss += report.loss or 0.0
        self.penalty += report.penalty
        self.grad_norm += report.grad_norm
        self.num_clipped += report.clipped


@dataclass(frozen=True)
class Trouble:
    """The step at which a number was last not finite (0: never), and how many times in a row: see `lmtrain.training.finite`."""

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
        """Tells whether `value` is more than `num_deviations` standard deviations above the mean."""
        return self.count >= self.warm_up and value > self.mean + num_deviations * math.sqrt(self.variance)

    def with_value(self, value: float) -> Spikes:
        """Returns the same with `value` counted in, unless it is not finite."""
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
"""The names that documents of the oldest checkpoints lack."""

ADDED_LATER: dict[str, Any] = {"num_stale": 0, "evaluation_seconds": 0.0, "includes_evaluation": True}
"""The names that those of younger ones lack, too. Then `elapsed_seconds` held everything from the first step to the last."""

EARLIER_NAMES = {"num_tokens": "num_items", "nats": "loss", "best_nats": "best_value"}
"""Their names for what has another name today."""


def _renamed(document: Any) -> Any:
    """Returns a document of an older checkpoint as one of today. Anything else stays as it is."""
    if not isinstance(document, dict):
        return document
    if "best_nats" not in document:
        return ADDED_LATER | document
    named = {EARLIER_NAMES.get(name, name): value for name, value in document.items()}
    if isinstance(interval := named.get("interval"), dict):
        named["interval"] = {EARLIER_NAMES.get(name, name): value for name, value in interval.items()}
    return ADDED | ADDED_LATER | named


@dataclass
class TrainState:
    """Everything that must survive a crash: what was learnt, the place in the data, the time, and the best so far.

    elapsed_seconds      time of training: what limits and schedules go by
    evaluation_seconds   what evaluations, samples, checks and checkpoints have taken beside it
    includes_evaluation  whether elapsed_seconds hold those, too, as they do in runs that an earlier version began: such a
                         run keeps the meaning of its limit
    """

    learner: Learner
    wording: Wording = TOKENS
    position: Position = field(default_factory=Position)
    step: int = 0
    num_items: int = 0  # tokens, windows or texts
    elapsed_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    includes_evaluation: bool = False
    best_value: float | None = None  # of the validations that were finite
    best_step: int | None = None
    evaluated_step: int | None = None
    num_stale: int = 0  # evaluations since the best one
    saved_step: int | None = None  # of the last checkpoint that the cadence asked for, and no signal
    trouble: Trouble = Trouble()
    interval: Interval = field(default_factory=Interval)
    spikes: Spikes = Spikes()

    @property
    def running_seconds(self) -> float:
        """From the first step to the last, as far as a clock that runs there counts it."""
        return self.elapsed_seconds if self.includes_evaluation else self.elapsed_seconds + self.evaluation_seconds

    @running_seconds.setter
    def running_seconds(self, seconds: float) -> None:
        self.elapsed_seconds = seconds if self.includes_evaluation else max(seconds - self.evaluation_seconds, 0.0)

    @property
    def best_cost(self) -> float:
        """Returns the cost of the best model so far; infinite if there is none."""
        return math.inf if self.best_value is None else self.wording.cost(self.best_value)

    def tensors(self) -> Tensors:
        return self.learner.tensors()

    def document(self) -> dict[str, Any]:
        return {
            "position": self.position.to_json(),
            "step": self.step,
            "num_items": self.num_items,
            "elapsed_seconds": self.elapsed_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "includes_evaluation": self.includes_evaluation,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "evaluated_step": self.evaluated_step,
            "num_stale": self.num_stale,
            "saved_step": self.saved_step,
            "trouble": asdict(self.trouble),
            "interval": asdict(self.interval),
            "spikes": asdict(self.spikes),
            "learner": self.learner.document(),
        }

    def load(self, tensors: Tensors, document: Any, batches: Batches) -> None:
        """Goes on from `tensors()` and `document()` of another process, which learnt from `batches`.

        Raises UnfitError, before anything has changed, if no such process can have written them.
        """
        document = _renamed(document)
        with within("training.json: "):
            known = self._check(document, batches)
            names = tensors.get("training", {}).keys()
            expected_tensors, expected_document = self.learner.expected(names, known)
            compare(expected_document, document["learner"], "state.learner")
        for file, expected in expected_tensors.items():
            with within(f"{file}.safetensors: "):
                compare(expected, tensors.get(file, {}))
        self.learner.load(tensors, document["learner"])
        self.position = Position(**document["position"])
        self.step, self.num_items = document["step"], document["num_items"]
        self.elapsed_seconds = float(document["elapsed_seconds"])
        self.evaluation_seconds = float(document["evaluation_seconds"])
        self.includes_evaluation = document["includes_evaluation"]
        self.best_value, self.best_step = document["best_value"], document["best_step"]
        self.evaluated_step, self.num_stale = document["evaluated_step"], document["num_stale"]
        self.saved_step, self.trouble = document["saved_step"], Trouble(**document["trouble"])
        self.interval = Interval(**document["interval"])
        self.spikes = Spikes(**document["spikes"])

    def _check(self, document: Any, batches: Batches) -> Known:
        """Compares everything but the learner; returns what the learner's part must agree with."""
        given = document if isinstance(document, dict) else {}
        compare(Whole(), given.get("step"), "state.step")
        step = given["step"]
        compare(self._expected(step) | {"learner": Anything()}, document, "state")
        num_items, best_value, best_step = document["num_items"], document["best_value"], document["best_step"]
        _check_position(Position(**document["position"]), step, num_items, batches)
        evaluated = document["evaluated_step"]
        agree(
            (best_step is None) == (best_value is None) and (best_step is None or best_step <= (evaluated or 0)),
            "state.best_step", f"is {best_step} with best_value {best_value} and evaluated_step {evaluated}",
            "null where best_value is, else at most evaluated_step",
        )  # fmt: skip
        interval, spikes = document["interval"], document["spikes"]
        agree(
            interval["num_steps"] * batches.least_items <= interval["num_items"] <= num_items
            and interval["num_clipped"] <= interval["num_steps"],
            "state.interval", f"is {interval}", f"a part of the {step} steps and {num_items} items, no more steps clipped",
        )  # fmt: skip
        if interval["num_steps"] == 0:
            compare(asdict(Interval()), interval, "state.interval")
        if spikes["count"] == 0:
            compare(asdict(Spikes()), spikes, "state.spikes")
        return Known(step, num_items, None if best_value is None else self.wording.cost(best_value), batches.batch_size)

    def _expected(self, step: int) -> dict[str, Any]:
        """Returns what `document` returns after `step` steps, without the learner."""
        up_to_now, any_number, positive = Whole(most=step), Number(), Number(least=0)
        best = Number(0, 1, null=True) if self.wording.higher_is_better else Number(MIN_NATS, null=True)
        return {
            "position": {"epoch": up_to_now, "index": up_to_now},
            "step": Whole(),
            "num_items": Whole(),
            "elapsed_seconds": Number(0, MAX_SECONDS),
            "evaluation_seconds": Number(0, MAX_SECONDS),
            "includes_evaluation": Flag(),
            "best_value": best,
            "best_step": Whole(most=step, null=True),
            "evaluated_step": Whole(most=step, null=True),
            "num_stale": up_to_now,
            "saved_step": Whole(most=step, null=True),
            "trouble": {"last_step": Whole(), "count": Whole(most=1000)},  # after going back, a step that is still to come
            "interval": {
                "num_steps": up_to_now, "num_items": Whole(), "loss": any_number, "penalty": positive, "grad_norm": positive,
                "num_clipped": up_to_now,
            },
            "spikes": {
                "mean": any_number, "variance": positive, "count": up_to_now, "decay": Spikes.decay,
                "warm_up": Spikes.warm_up,
            },
        }  # fmt: skip


def _check_position(position: Position, step: int, num_items: int, batches: Batches) -> None:
    """Raises UnfitError unless the position, which determines steps and items up to the lengths of epochs, fits them."""
    last = batches.num_batches(position.epoch) - 1
    agree(position.index <= last, "state.position.index", f"is {position.index}", f"0 to {last} in this epoch")
    steps, items = batches.done_before(position)
    agree(step in steps, "state.position", f"is {position} after {step} steps", f"one with {_between(steps)} steps before it")
    agree(num_items in items, "state.num_items", f"is {num_items} at {position}", f"{_between(items)}, as the data have them")


def _between(numbers: range) -> str:
    return f"{numbers.start}" if len(numbers) == 1 else f"{numbers.start} to {numbers.stop - 1}"
