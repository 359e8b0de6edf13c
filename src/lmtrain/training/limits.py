"""How far a run is: when it ends, and when it records, evaluates and saves. All of it depends on the state alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lmtrain.data.batches import Batches, Position
from lmtrain.training.schedule import Progress, fraction_done
from lmtrain.training.state import TrainState


@dataclass(frozen=True)
class Limits:
    """When training ends: whichever comes first; None is no limit. `patience`: evaluations in a row without improvement."""

    num_steps: int | None = None
    num_epochs: float | None = None
    max_seconds: float | None = None
    patience: int | None = None

    def fraction(self, state: TrainState, epoch: float) -> float:
        """Returns how much of the run is done, from 0 to 1. The bar shows it, and training ends at 1.

        Evaluations without improvement are no progress; they only end it.
        """
        if self.is_stale(state):
            return 1.0
        done = self._iter_done(state, epoch)
        shares = [value / limit if limit else 1.0 for name, value, limit in done if name != "patience"]
        return min(1.0, max(shares, default=0.0))

    def is_stale(self, state: TrainState) -> bool:
        """Tells whether the patience has come to its end."""
        return self.patience is not None and state.num_stale >= self.patience

    def steps_to_come(self, state: TrainState, batches: Batches) -> int | None:
        """Returns about how many steps the limits except time leave; None if only time, or nothing, ends training."""
        left = [] if self.num_steps is None else [self.num_steps - state.step]
        if self.num_epochs is not None:
            epochs = self.num_epochs - epochs_done(batches, state.position)
            left.append(math.ceil(epochs * batches.num_batches(state.position.epoch)))
        return max(0, min(left)) if left else None

    def reached(self, state: TrainState, epoch: float) -> dict[str, tuple[float, float]]:
        """Returns the limits by which training has ended: by name the limit, and how far the run is."""
        return {name: (limit, value) for name, value, limit in self._iter_done(state, epoch) if value >= limit}

    def _iter_done(self, state: TrainState, epoch: float) -> Iterator[tuple[str, float, float]]:
        """Yields of every limit its name, how far the run is, and the limit itself."""
        done = {
            "num_steps": state.step, "num_epochs": epoch, "max_seconds": state.elapsed_seconds, "patience": state.num_stale,
        }  # fmt: skip
        for name, value in done.items():
            limit = getattr(self, name)
            if limit is not None:
                yield name, value, limit

    def progress(self, state: TrainState, batches: Batches) -> Progress:
        """Returns what schedules depend on."""
        epoch = epochs_done(batches, state.position)
        fraction = fraction_done(
            step=state.step, epoch=epoch, elapsed_seconds=state.elapsed_seconds,
            epochs_per_step=1 / batches.num_batches(state.position.epoch),
            num_steps=self.num_steps, num_epochs=self.num_epochs, max_seconds=self.max_seconds,
        )  # fmt: skip
        return Progress(step=state.step, epoch=epoch, fraction=fraction)


class Forecast:
    """When the run will end, evaluations and all, by what this process has done since its first step.

    That step is left out: it may have compiled kernels. Until there is another, a limit of time tells the most.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None  # the share that was done, and the time

    def left(self, state: TrainState, share: float, max_seconds: float | None) -> float:
        """About how many seconds are left when `share` is done; infinite if that is not known."""
        seconds = state.running_seconds
        if self._first is None or share <= self._first[0]:  # in a step that went back, as well
            self._first = share, seconds
            return math.inf if max_seconds is None else max(max_seconds - state.elapsed_seconds, 0.0)
        done, began_at = self._first
        return (seconds - began_at) * (1 - share) / (share - done)


@dataclass(frozen=True)
class Cadence:
    """Steps between two records, evaluations and checkpoints; 0: every epoch, and with every evaluation."""

    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0

    def owes_evaluation(self, state: TrainState) -> bool:
        """Tells whether `state` is to be evaluated before the next step. The state alone says so, also in a resumed run."""
        ends_epoch = state.position.index == 0
        is_due = ends_epoch if self.evaluate_every == 0 else state.step % self.evaluate_every == 0
        return is_due and state.step > 0 and state.evaluated_step != state.step


def epochs_done(batches: Batches, position: Position) -> float:
    """Returns how many epochs are before `position`, with the fraction of its own."""
    return position.epoch + position.index / batches.num_batches(position.epoch)
