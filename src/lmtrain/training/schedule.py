"""Learning-rate schedules: pure functions of how far the run is, as multipliers of the base rate.

        warm-up, cosine          warm-up, linear          step               one cycle
          .-.                      .                      ---.                  .---.
         /   `.                   / `.                       `---.             /     `.
        /      `._               /    `.                         `---         /        `-._

A schedule that is pure resumes exactly because there is nothing to resume; `Plateau` alone remembers (the best validation
loss and how often it cut), in three numbers. The fraction of the run that is over may come from steps, epochs or elapsed time.

Sources: cosine, Loshchilov and Hutter 2017; one cycle, Smith 2018, in the Adam variant of Gugger and Howard 2018; step,
Zaremba et al. 2014; plateau, PyTorch's word_language_model; range test, Smith 2017.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from lmtrain.expected import Whole


@dataclass(frozen=True)
class Progress:
    """How far a run is when a step is about to be taken.

    step      steps taken before this one
    epoch     epochs of data consumed, with its fraction
    fraction  how much of the run is over, 0 to 1; 0 if the run has no limit
    """

    step: int
    epoch: float
    fraction: float


def fraction_done(
    *,
    step: int,
    epoch: float,
    elapsed_seconds: float,
    epochs_per_step: float = 0.0,
    num_steps: int | None = None,
    num_epochs: float | None = None,
    max_seconds: float | None = None,
) -> float:
    """Returns the fraction of the run that is over, by the nearest of its limits; 0 without one.

    A step counts at its middle, (step + 1/2) / num_steps, so neither the first of a warm-up nor the last of a decay has
    rate 0; so does a step under `num_epochs`, of which each is `epochs_per_step`. Under `max_seconds` a step counts at the time
    at which it begins, as nobody knows how long the first will take; so the fraction depends on the machine's speed, and with
    it the run's exact numbers.
    """
    shares = [
        (step + 0.5) / num_steps if num_steps else 0.0,
        (epoch + epochs_per_step / 2) / num_epochs if num_epochs else 0.0,
        elapsed_seconds / max_seconds if max_seconds else 0.0,
    ]
    return min(max(shares), 1.0)


class Schedule(ABC):
    """`rate(progress)` multiplies the base learning rate of the step about to be taken."""

    @abstractmethod
    def rate(self, progress: Progress) -> float:
        """Returns the multiplier, at least 0 (at most 1, except for `RangeTest`)."""

    def beta1(self, progress: Progress) -> float | None:
        """Returns Adam's beta1 for this step; None leaves it as it is set."""
        return None

    def after_evaluation(self, cost: float) -> None:  # noqa: B027 (most schedules do not listen)
        """Tells the schedule what validation said: lower is better."""

    def document(self) -> dict[str, Any]:
        """Returns what a resumed run needs, JSON-able."""
        return {}

    def expected_document(self, num_steps: int, best_cost: float | None) -> dict[str, Any]:
        """Returns what `document()` returns after `num_steps` steps, if the best finite validation was `best_cost`."""
        return {}

    def load(self, document: dict[str, Any]) -> None:
        """Goes on from what `document()` returned."""
        assert not document, f"{type(self).__name__} has no memory, but was given {document}"


@dataclass(frozen=True)
class Constant(Schedule):
    """rate = 1."""

    def rate(self, progress: Progress) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear from 0 to 1 over the fraction `warmup`, then final + (1 - final) (1 + cos(pi x)) / 2 over x in 0..1."""

    warmup: float = 0.0
    final: float = 0.0

    def rate(self, progress: Progress) -> float:
        if progress.fraction < self.warmup:
            return progress.fraction / self.warmup
        return _cosine(1.0, self.final, _position(progress.fraction, self.warmup, 1.0))


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear from 0 to 1 over the fraction `warmup`, then linear to `final`."""

    warmup: float = 0.0
    final: float = 0.0

    def rate(self, progress: Progress) -> float:
        if progress.fraction < self.warmup:
            return progress.fraction / self.warmup
        return _line(1.0, self.final, _position(progress.fraction, self.warmup, 1.0))


@dataclass(frozen=True)
class Step(Schedule):
    """rate = factor ** (number of cuts so far): the first at epoch `after` (0: `every`), then one per `every` epochs.

    Halving every k epochs is Step(0.5, k); Zaremba's small model is Step(0.5, 1, after=4): epochs 0 to 3 at full rate.
    """

    factor: float
    every: float
    after: float = 0.0

    def rate(self, progress: Progress) -> float:
        first = self.after or self.every
        if progress.epoch < first:
            return 1.0
        return self.factor ** (1 + math.floor((progress.epoch - first) / self.every))


@dataclass(frozen=True)
class Exponential(Schedule):
    """rate = factor ** epoch, continuously."""

    factor: float

    def rate(self, progress: Progress) -> float:
        return self.factor**progress.epoch


@dataclass
class Plateau(Schedule):
    """Multiplied by `factor` when the last `patience` evaluations were no better than the best before them.

    With factor 1/4 and patience 1 this is the PyTorch example's rule. A loss that is not finite is no improvement.
    """

    factor: float
    patience: int = 1
    best: float | None = field(default=None, init=False)
    stale: int = field(default=0, init=False)
    cuts: int = field(default=0, init=False)

    def rate(self, progress: Progress) -> float:
        return self.factor**self.cuts

    def after_evaluation(self, cost: float) -> None:
        if math.isfinite(cost) and (self.best is None or cost < self.best):
            self.best, self.stale = cost, 0
            return
        self.stale += 1
        if self.stale >= self.patience:  # more than that if a resumed run was given less patience
            self.cuts, self.stale = self.cuts + 1, 0

    def document(self) -> dict[str, Any]:
        return {"best": self.best, "stale": self.stale, "cuts": self.cuts}

    def expected_document(self, num_steps: int, best_cost: float | None) -> dict[str, Any]:
        at_most = Whole(most=num_steps + 1)  # an evaluation per step, and one before the first
        return {"best": best_cost, "stale": at_most, "cuts": at_most}

    def load(self, document: dict[str, Any]) -> None:
        self.best, self.stale, self.cuts = document["best"], document["stale"], document["cuts"]


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from 1/div to 1 over the fraction `up`, level over `flat`, back to 1/div over `down`, then a cosine to 0.

    Adam's beta1 moves against the rate: high -> low, low, low -> high, high. Gugger's 90 epochs on WikiText-2 had phases
    of 7.5, 37.5, 37.5, 7.5 epochs, div 10, beta1 between 0.8 and 0.7.
    """

    up: float = 7.5 / 90
    flat: float = 37.5 / 90
    down: float = 37.5 / 90
    div: float = 10.0
    beta1_low: float = 0.7
    beta1_high: float = 0.8

    def rate(self, progress: Progress) -> float:
        height = self._height(progress.fraction)
        if height is not None:
            return _line(1 / self.div, 1.0, height)
        return _cosine(1 / self.div, 0.0, _position(progress.fraction, self.up + self.flat + self.down, 1.0))

    def beta1(self, progress: Progress) -> float | None:
        return _line(self.beta1_high, self.beta1_low, self._height(progress.fraction) or 0.0)

    def _height(self, fraction: float) -> float | None:
        """Returns 0 at the foot, 1 on the plateau, and None after the hill."""
        top, edge, foot = self.up, self.up + self.flat, self.up + self.flat + self.down
        if fraction < top:
            return _position(fraction, 0.0, top)
        if fraction <= edge:
            return 1.0
        return 1.0 - _position(fraction, edge, foot) if fraction < foot else None


@dataclass(frozen=True)
class RangeTest(Schedule):
    """For a learning-rate range test: from `low` to `high` geometrically, low * (high / low) ** fraction."""

    low: float
    high: float

    def rate(self, progress: Progress) -> float:
        return self.low * (self.high / self.low) ** progress.fraction


def _position(fraction: float, start: float, end: float) -> float:
    """Returns the place of `fraction` between `start` (0) and `end` (1); 1 if they are equal."""
    return min((fraction - start) / (end - start), 1.0) if end > start else 1.0


def _line(first: float, last: float, position: float) -> float:
    return first + (last - first) * position


def _cosine(first: float, last: float, position: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * position)) / 2
