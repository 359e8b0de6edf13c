"""What training has come to: all that must survive a crash, and nothing else.

TrainState   what was learnt, where in the text, how long, the best so far
Interval     sums since the last record
Trouble      when a number was last not finite, and how often in a row
Spikes       what the loss has been like
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lmtrain.data.stream import Position, Stream
from lmtrain.expected import LEAST_NATS, Anything, Number, Whole, agree, compare, within
from lmtrain.training.learner import Known, Learner, StepReport, Tensors

MOST_SECONDS = 1e10  # three hundred years


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

    def load(self, tensors: Tensors, document: Any, stream: Stream) -> None:
        """Goes on from `tensors()` and `document()` of another process, which read `stream`.

        Raises UnfitError, before anything has changed, where no such process can have written them.
        """
        document = {**ADDED, **document} if isinstance(document, dict) else document
        with within("training.json: "):
            known = self._check(document, stream)
            names = tensors.get("training", {}).keys()
            expected_tensors, expected_document = self.learner.expected(names, known)
            compare(expected_document, document["learner"], "state.learner")
        for file, expected in expected_tensors.items():
            with within(f"{file}.safetensors: "):
                compare(expected, tensors.get(file, {}))
        self.learner.load(tensors, document["learner"])
        self.position = Position(**document["position"])
        self.step, self.num_tokens = document["step"], document["num_tokens"]
        self.elapsed_seconds = float(document["elapsed_seconds"])
        self.best_nats = math.inf if document["best_nats"] is None else document["best_nats"]
        self.best_step, self.evaluated_step = document["best_step"], document["evaluated_step"]
        self.saved_step, self.trouble = document["saved_step"], Trouble(**document["trouble"])
        self.interval = Interval(**document["interval"])
        self.spikes = Spikes(**document["spikes"])

    def _check(self, document: Any, stream: Stream) -> Known:
        """Compares all but the learner, and says what the learner's part must agree with."""
        given = document if isinstance(document, dict) else {}
        compare(Whole(), given.get("step"), "state.step")
        step = given["step"]
        compare(self._expected(step) | {"learner": Anything()}, document, "state")
        num_tokens, best_nats, best_step = document["num_tokens"], document["best_nats"], document["best_step"]
        _check_position(Position(**document["position"]), step, num_tokens, stream)
        evaluated = document["evaluated_step"]
        agree(
            (best_step is None) == (best_nats is None) and (best_step is None or best_step <= (evaluated or 0)),
            "state.best_step", f"is {best_step} with best_nats {best_nats} and evaluated_step {evaluated}",
            "null where best_nats is, else at most evaluated_step",
        )  # fmt: skip
        interval, spikes = document["interval"], document["spikes"]
        agree(
            interval["num_steps"] * stream.batch_size <= interval["num_tokens"] <= num_tokens
            and interval["num_clipped"] <= interval["num_steps"],
            "state.interval", f"is {interval}", f"a part of the {step} steps and {num_tokens} tokens, no more steps clipped",
        )  # fmt: skip
        if interval["num_steps"] == 0:
            compare(asdict(Interval()), interval, "state.interval")
        if spikes["count"] == 0:
            compare(asdict(Spikes()), spikes, "state.spikes")
        return Known(step, num_tokens, best_nats, stream.batch_size)

    def _expected(self, step: int) -> dict[str, Any]:
        """What `document` gives after `step` steps, but for the learner."""
        up_to_now, sum_of_nats, positive = Whole(most=step), Number(), Number(least=0)
        return {
            "position": {"epoch": up_to_now, "index": up_to_now},
            "step": Whole(),
            "num_tokens": Whole(),
            "elapsed_seconds": Number(0, MOST_SECONDS),
            "best_nats": Number(LEAST_NATS, null=True),
            "best_step": Whole(most=step, null=True),
            "evaluated_step": Whole(most=step, null=True),
            "saved_step": Whole(most=step, null=True),
            "trouble": {"last_step": Whole(), "count": Whole(most=1000)},  # going back makes it a step still to come
            "interval": {
                "num_steps": up_to_now, "num_tokens": Whole(), "nats": sum_of_nats, "penalty": positive, "grad_norm": positive,
                "num_clipped": up_to_now,
            },
            "spikes": {
                "mean": sum_of_nats, "variance": positive, "count": up_to_now, "decay": Spikes.decay,
                "warm_up": Spikes.warm_up,
            },
        }  # fmt: skip


def _check_position(position: Position, step: int, num_tokens: int, stream: Stream) -> None:
    """A position says, but for the lengths of the epochs before it, how many steps were taken and how many tokens read."""
    num_chunks = stream.num_chunks(position.epoch)
    agree(position.index < num_chunks, "state.position.index", f"is {position.index}", f"0 to {num_chunks - 1} in this epoch")
    chunks, tokens = stream.done_before(position)
    agree(step in chunks, "state.position", f"is {position} after {step} steps", f"one with {_between(chunks)} steps before it")
    agree(
        num_tokens in tokens, "state.num_tokens", f"is {num_tokens} at {position}", f"{_between(tokens)}, as the text has them"
    )


def _between(numbers: range) -> str:
    return f"{numbers.start}" if len(numbers) == 1 else f"{numbers.start} to {numbers.stop - 1}"
