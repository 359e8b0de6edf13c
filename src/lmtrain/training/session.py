"""A run while it is trained: its state, what it learns from, and all that watches over it.

The loop (`lmtrain.training.loop`) says in which order things happen; here is what each of them is. Whatever is decided is
decided from `state`, which is saved, so a run that was interrupted takes the same way.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmtrain.data.batches import Batch, Batches
from lmtrain.distributed.group import ALONE, Group
from lmtrain.errors import ResourceError
from lmtrain.training.learner import StepReport
from lmtrain.training.limits import Cadence, Forecast, Limits, epochs_done
from lmtrain.training.machine import RunningTime
from lmtrain.training.score import TOKENS, Score
from lmtrain.training.signals import Stop
from lmtrain.training.state import Interval, TrainState

if TYPE_CHECKING:  # it imports TensorBoard, and commands that do not train import this file
    from lmtrain.training.telemetry import Telemetry

log = logging.getLogger("lmtrain")

FIRST_STEPS = 10  # by which the time to come is told

NonfiniteHandler = Callable[[TrainState, str, Batch | None], None]
"""Is told of a step, or (batch None) of a validation, whose numbers are not finite. Raises DivergedError, or leaves a state
from which training can go on: this one, or an earlier one."""


GradientCheck = Callable[[TrainState, Batch], None]
"""Checks the gradients of the batch that comes next; raises GradientError."""

GradientWatch = Callable[[TrainState, Batch], Mapping[str, float]]
"""What is to be recorded of gradients and units on the batch that comes next, by tag."""

Save = Callable[[TrainState, bool], str]
"""Keeps a checkpoint of the state, as the best so far if so; returns why that must not be, else nothing."""


@dataclass
class Session:
    """What one process does with a run.

    batches, limits, cadence  what is learnt from, how long, and how often is recorded, evaluated and saved
    score, show               judge a model on validation, and show what it does as text (a sample, its worst errors)
    keep                      saves a checkpoint
    on_nonfinite              says what is to be done about numbers that are not finite
    describe_time             (seconds per step) -> a line about the time to come
    check, watch              look at the gradients of the batch that comes next, where that is asked for; they change nothing
    group                     the processes that train together: the first one judges and shows, all know what it found
    """

    state: TrainState
    batches: Batches
    limits: Limits
    cadence: Cadence
    score: Callable[[Any], Score]
    show: Callable[[Any], str]
    keep: Save
    telemetry: Telemetry
    stop: Stop
    on_nonfinite: NonfiniteHandler
    describe_time: Callable[[float], str] | None = None
    check: GradientCheck | None = None
    watch: GradientWatch | None = None
    group: Group = ALONE

    def __post_init__(self) -> None:
        self._first_steps: list[float] = []  # how long they took
        self._forecast = Forecast()

    @property
    def share(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return self.limits.share(self.state, epochs_done(self.batches, self.state.position))

    @property
    def why_it_ended(self) -> str:
        """For the record: "finished", or that it came no further."""
        if not self.limits.is_stale(self.state):
            return "finished"
        number, patience = self.state.num_stale, self.limits.patience
        return f"no improvement in {number} evaluation{'s' * (number != 1)} (trainer.patience={patience})"

    @property
    def owes_evaluation(self) -> bool:
        """Whether the model is to be evaluated before the next step."""
        return self.cadence.owes_evaluation(self.state)

    @property
    def owes_checkpoint(self) -> bool:
        """Whether the cadence asks for a checkpoint after this step."""
        return self.cadence.save_every > 0 and self.state.step % self.cadence.save_every == 0

    def accept(self, report: StepReport) -> bool:
        """Takes note of a step, also in the records; False where its numbers made training go back to an earlier state."""
        state = self.state
        if report.is_finite:
            state.interval.add(report)
            _report_spike(report, state)
        elif self.go_back(*_describe_nonfinite(report, state, self.batches)):
            return False
        self.telemetry.progress(state, report, self.share, self._forecast.left(state, self.share, self.limits.max_seconds))
        self._say_time(report.seconds)
        if state.step % self.cadence.log_every == 0:
            self.telemetry.record_training(state, report)
            state.interval = Interval()
        return True

    def _say_time(self, seconds: float) -> None:
        """Once, when ten steps of this process are known: the first may have compiled kernels and does not count."""
        if self.describe_time is not None and len(self._first_steps) < FIRST_STEPS:
            self._first_steps.append(seconds)
            if len(self._first_steps) == FIRST_STEPS and self.share < 1:
                self.telemetry.say(self.describe_time(sum(self._first_steps[1:]) / (FIRST_STEPS - 1)))

    def validate(self) -> None:
        """Evaluates the model, and saves it where it is the best so far or where every evaluation is saved."""
        is_best = self._evaluate()
        if is_best or self.cadence.save_every == 0:
            self.save(is_best)
        self.check_gradients()
        self.stop.share()

    def check_gradients(self) -> None:
        """Checks the gradients of the batch that comes next, where that is asked for."""
        if self.check is not None:
            with self._apart():
                self.check(self.state, self.batches.batch(self.state.position))

    def finish(self) -> None:
        """Evaluates and saves the last state, unless that was done."""
        state = self.state
        is_due = state.evaluated_step != state.step
        is_best = is_due and self._evaluate()
        if self.share >= 1:
            self.save(is_best, is_final=True)
        if is_due and state.evaluated_step == state.step:
            self.check_gradients()

    def _evaluate(self) -> bool:
        """Whether validation is the best so far. A model whose validation is not a number has diverged."""
        state = self.state
        began_at = time.monotonic()
        with state.learner.evaluated() as model:
            if not state.learner.has_gradients:  # what was counted is estimated here, which is part of training
                state.elapsed_seconds += time.monotonic() - began_at
            with self._apart():
                score = self.group.led(lambda: self.score(model))
                text = self.show(model) if self.group.leads and math.isfinite(score.value) else ""
        state.evaluated_step = state.step
        if math.isnan(score.value):
            self.go_back(f"Validation at step {state.step} is not a number.", None)
            return False
        cost = state.wording.cost(score.value)
        is_best = cost < state.best_cost
        state.num_stale = 0 if is_best else state.num_stale + 1
        if is_best:
            state.best_value, state.best_step = score.value, state.step
        state.learner.after_evaluation(cost)
        with self._apart():
            watched = {} if self.watch is None else self.watch(state, self.batches.batch(state.position))
        self.telemetry.record_evaluation(state, score, text, is_best, watched)
        return is_best

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Counts the time of its block as one that is not spent on training."""
        with RunningTime() as clock:
            began_at = clock()
            try:
                yield
            finally:
                self.state.evaluation_seconds += clock() - began_at

    def save(self, is_best: bool = False, *, is_scheduled: bool = True, is_final: bool = False) -> None:
        """Saves a checkpoint. A full disk costs this checkpoint, not the run, unless it is the final one.

        The state remembers the last checkpoint that the cadence asked for. A signal asks for others, which change nothing.
        """
        before = self.state.saved_step
        if is_scheduled:
            self.state.saved_step = self.state.step
        try:
            with self._apart():
                problem = self.keep(self.state, is_best)
        except ResourceError as error:
            self.state.saved_step = before
            if is_final:
                raise
            log.warning("%s Training goes on; the next checkpoint will be tried again.", error)
            return
        if problem:
            self.go_back(problem, None)

    def go_back(self, problem: str, batch: Batch | None) -> bool:
        """Asks what shall be done about numbers that are not finite; True where the state is an earlier one now."""
        state, step = self.state, self.state.step
        spent = state.elapsed_seconds, state.evaluation_seconds
        self.on_nonfinite(state, problem, batch)
        state.elapsed_seconds, state.evaluation_seconds = spent  # or a run that goes back again and again would not end
        if state.step != step:
            self.telemetry.rewind(state.step, is_evaluated=state.evaluated_step == state.step)
        return state.step != step


def _describe_nonfinite(report: StepReport, state: TrainState, batches: Batches) -> tuple[str, Batch]:
    """What went wrong in the step just done, and the batch it was done with."""
    batch = batches.batch(batches.previous(state.position))
    return (
        f"The loss ({report.loss}) or the norm of its gradient ({report.grad_norm}) is not finite at step {state.step} "
        f"(epoch {batch.epoch}, batch {batch.index}).",
        batch,
    )


def _report_spike(report: StepReport, state: TrainState) -> None:
    if report.loss is None or state.wording is not TOKENS:  # the loss of a few windows jumps from batch to batch
        return
    mean_loss = report.loss / report.num_items
    if state.spikes.is_spike(mean_loss):
        log.warning(
            "The loss jumped to %.3f %s at step %d (epoch %d); its mean was %.3f.",
            mean_loss, state.wording.loss.replace("_", " "), state.step, state.position.epoch, state.spikes.mean,
        )  # fmt: skip
    state.spikes = state.spikes.with_value(mean_loss)
