"""A run while it is trained: its state, its batches, and the objects that limit, judge, save and record it.

The loop (`lmtrain.training.loop`) says in which order things happen, and this file says what each of them is. Every decision
depends on `state` alone, which is saved, so an interrupted run takes the same way.
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
from lmtrain.machine import RunningTime
from lmtrain.progress import BrokenOffError, given_up_when
from lmtrain.quantity import counted
from lmtrain.training.learner import StepReport
from lmtrain.training.limits import Cadence, Forecast, Limits, epochs_done
from lmtrain.training.score import TOKENS, Score
from lmtrain.training.signals import Stop
from lmtrain.training.state import Interval, TrainState

if TYPE_CHECKING:  # it imports TensorBoard, and this file is also imported by commands that do not train
    from lmtrain.training.telemetry import Telemetry

log = logging.getLogger("lmtrain")

FIRST_STEPS = 10  # after which the remaining time is told

NonfiniteHandler = Callable[[TrainState, str, Batch | None], None]
"""It is told of a step, or (batch None) of a validation, whose numbers are not finite. It raises DivergedError, or leaves a
state from which training can go on: this one, or an earlier one."""


GradientCheck = Callable[[TrainState, Batch], None]
"""It checks the gradients of the next batch, and raises GradientError."""

GradientWatch = Callable[[TrainState, Batch], Mapping[str, float]]
"""It returns by tag what is recorded of gradients and units on the next batch."""

Save = Callable[[TrainState, bool], str]
"""It saves a checkpoint of the state, as the best one if asked. It returns why the state must not be saved, else ''."""


@dataclass
class Session:
    """What one process does with a run.

    batches, limits, cadence  the data, when training ends, and how often it records, evaluates and saves
    score                     judges a model on validation; every process of the group calls it, and gets the same
    show                      shows what a model does as text (a sample, its worst errors)
    keep                      saves a checkpoint
    on_nonfinite              decides what is done about numbers that are not finite
    describe_time             (seconds per step) -> a line about the remaining time
    check, watch              look at the gradients of the next batch, if that is asked for; they change nothing
    group                     the processes that train together
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
        self.is_broken_off = False  # whether a signal ended the last evaluation: the state still owes it

    @property
    def fraction(self) -> float:
        """Returns how much of the run is done, from 0 to 1."""
        return self.limits.fraction(self.state, epochs_done(self.batches, self.state.position))

    @property
    def why_it_ended(self) -> str:
        """Returns "finished", or that training came no further."""
        if not self.limits.is_stale(self.state):
            return "finished"
        number, patience = self.state.num_stale, self.limits.patience
        return f"no improvement in {counted(number, 'evaluation')} (trainer.patience={patience})"

    @property
    def owes_evaluation(self) -> bool:
        """Tells whether the model is to be evaluated before the next step."""
        return self.cadence.owes_evaluation(self.state)

    @property
    def owes_checkpoint(self) -> bool:
        """Tells whether the cadence asks for a checkpoint after this step."""
        return self.cadence.save_every > 0 and self.state.step % self.cadence.save_every == 0

    def accept(self, report: StepReport) -> bool:
        """Adds up and records a step. Returns False if its numbers made training go back to an earlier state."""
        state = self.state
        if report.is_finite:
            state.interval.add(report)
            _report_spike(report, state)
        elif self.go_back(*_describe_nonfinite(report, state, self.batches)):
            return False
        self.telemetry.progress(
            state, report, self.fraction, self._forecast.left(state, self.fraction, self.limits.max_seconds)
        )
        self._say_time(report.seconds)
        if state.step % self.cadence.log_every == 0:
            self.telemetry.record_training(state, report)
            state.interval = Interval()
        return True

    def _say_time(self, seconds: float) -> None:
        """Tells the remaining time once, after ten steps of this process. The first, which takes longer, does not count."""
        if self.describe_time is not None and len(self._first_steps) < FIRST_STEPS:
            self._first_steps.append(seconds)
            if len(self._first_steps) == FIRST_STEPS and self.fraction < 1:
                self.telemetry.say(self.describe_time(sum(self._first_steps[1:]) / (FIRST_STEPS - 1)))

    def validate(self) -> None:
        """Evaluates the model, and saves it if it is the best so far or if every evaluation is saved.

        A signal breaks the evaluation off; a resumed run then begins with it.
        """
        is_best = self._evaluate()
        if self.is_broken_off:
            return
        if is_best or self.cadence.save_every == 0:
            self.save(is_best)
        self.check_gradients()
        self.stop.share()

    def check_gradients(self) -> None:
        """Checks the gradients of the next batch, if that is asked for."""
        if self.check is not None:
            with self._apart():
                self.check(self.state, self.batches.batch(self.state.position))

    def finish(self) -> None:
        """Evaluates and saves the last state, unless that is done."""
        state = self.state
        is_due = state.evaluated_step != state.step
        is_best = is_due and self._evaluate()
        if self.fraction >= 1:
            self.save(is_best, is_final=True)
        if is_due and state.evaluated_step == state.step:
            self.check_gradients()

    def _evaluate(self) -> bool:
        """Evaluates; tells whether validation is the best so far. If validation is not a number, the model has diverged.

        A signal breaks it off. What it changes is then as it was, and `is_broken_off` is set.
        """
        state = self.state
        self.is_broken_off = False
        began_at = time.monotonic()
        with state.learner.evaluated() as model:
            if not state.learner.has_gradients:  # counts are turned into probabilities here, which is part of training
                state.elapsed_seconds += time.monotonic() - began_at
            with self._apart():
                try:
                    with given_up_when(lambda: self.stop.requested):
                        score = self.score(model)
                except BrokenOffError:
                    self.is_broken_off = True
                    return False
                text = self.group.led(lambda: self._shown(model)) if math.isfinite(score.value) else ""
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

    def _shown(self, model: Any) -> str:
        """Returns what the model does as text; nothing if a signal came before it was whole."""
        try:
            with given_up_when(lambda: self.stop.is_asked_for):
                return self.show(model)
        except BrokenOffError:
            return ""

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
                remedy = f"{error.remedy} Then go on from the last checkpoint with resume=RUN."
                raise ResourceError(error.given, error.allowed, remedy) from error
            log.warning("%s Training goes on; the next checkpoint will be tried again.", error)
            return
        if problem:
            self.go_back(problem, None)

    def go_back(self, problem: str, batch: Batch | None) -> bool:
        """Asks what is to be done about numbers that are not finite. Returns True if the state is an earlier one now."""
        state, step = self.state, self.state.step
        spent = state.elapsed_seconds, state.evaluation_seconds
        self.on_nonfinite(state, problem, batch)
        state.elapsed_seconds, state.evaluation_seconds = spent  # or a run that goes back again and again would not end
        if state.step != step:
            self.telemetry.rewind(state.step, is_evaluated=state.evaluated_step == state.step)
        return state.step != step


def _describe_nonfinite(report: StepReport, state: TrainState, batches: Batches) -> tuple[str, Batch]:
    """Says what went wrong in the last step, and returns its batch."""
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
