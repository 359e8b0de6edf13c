"""The loop: `steps` learns chunk after chunk, `fit` only keeps the cadence.

    for report in steps(state, stream, limits):     # take a chunk, learn from it, move on
        every n   write telemetry
        every m   evaluate, keep the best
        every k   save
        a signal  save and stop

To do something else between two steps, write another `for report in steps(...)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmtrain.data.stream import Chunk, Position, Stream
from lmtrain.errors import ResourceError
from lmtrain.inference.evaluate import Bill
from lmtrain.models.base import LanguageModel
from lmtrain.training.learner import StepReport
from lmtrain.training.machine import RunningTime
from lmtrain.training.schedule import Progress, fraction_done
from lmtrain.training.signals import Stop
from lmtrain.training.state import Interval, TrainState

if TYPE_CHECKING:
    from lmtrain.training.telemetry import (
        Telemetry,
    )  # which imports TensorBoard, and commands that do not train import this file

log = logging.getLogger("lmtrain")


@dataclass(frozen=True)
class Limits:
    """When training ends: whichever comes first; None is no limit."""

    num_steps: int | None = None
    num_epochs: float | None = None
    max_seconds: float | None = None

    def share(self, state: TrainState, epoch: float) -> float:
        """How much of the run is done, from 0 to 1: what the bar shows; training ends at 1."""
        shares = [value / limit if limit else 1.0 for _, value, limit in self._iter_done(state, epoch)]
        return min(1.0, max(shares, default=0.0))

    def reached(self, state: TrainState, epoch: float) -> dict[str, float]:
        """The limits by which training has ended: name and value."""
        return {name: limit for name, value, limit in self._iter_done(state, epoch) if value >= limit}

    def _iter_done(self, state: TrainState, epoch: float) -> Iterator[tuple[str, float, float]]:
        """Of every limit its name, how far the run is, and the limit itself."""
        done = {"num_steps": state.step, "num_epochs": epoch, "max_seconds": state.elapsed_seconds}
        for name, value in done.items():
            limit = getattr(self, name)
            if limit is not None:
                yield name, value, limit

    def progress(self, state: TrainState, epoch: float) -> Progress:
        """What schedules go by."""
        fraction = fraction_done(
            step=state.step, epoch=epoch, elapsed_seconds=state.elapsed_seconds,
            num_steps=self.num_steps, num_epochs=self.num_epochs, max_seconds=self.max_seconds,
        )  # fmt: skip
        return Progress(step=state.step, epoch=epoch, fraction=fraction)


@dataclass(frozen=True)
class Cadence:
    """Steps between two records, evaluations and checkpoints; 0: every epoch, and with every evaluation."""

    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0

    def owes_evaluation(self, state: TrainState) -> bool:
        """Whether `state` is to be evaluated before the next step. It is in the state alone, so a resumed run owes it too."""
        ends_epoch = state.position.index == 0
        is_due = ends_epoch if self.evaluate_every == 0 else state.step % self.evaluate_every == 0
        return is_due and state.step > 0 and state.evaluated_step != state.step


OnNonfinite = Callable[[TrainState, str, Chunk | None], None]
"""Is told of a step, or (chunk None) of a validation, whose numbers are not finite. Raises DivergedError, or leaves a state
from which training can go on: this one, or an earlier one."""


Save = Callable[[TrainState, bool], str]
"""Keeps a checkpoint of the state, as the best so far if so; returns why that must not be, else nothing."""


def steps(state: TrainState, stream: Stream, limits: Limits) -> Iterator[StepReport]:
    """Learns from chunk after chunk until a limit is reached; `state` moves on before each report is yielded.

    Time that the process is stopped does not count; what is done between two steps does.
    """
    with RunningTime() as clock:
        started_at = clock() - state.elapsed_seconds
        while True:
            state.elapsed_seconds = clock() - started_at
            epoch = epochs_done(stream, state.position)
            if limits.share(state, epoch) >= 1:
                return
            began_at = clock()
            chunk = stream.chunk(state.position)
            report = state.learner.step(chunk, limits.progress(state, epoch))
            report = report._replace(seconds=clock() - began_at)
            state.position = stream.next(state.position)
            state.step += 1
            state.num_tokens += report.num_tokens
            yield report


def epochs_done(stream: Stream, position: Position) -> float:
    """How many epochs lie before `position`, with the share of the one it is in."""
    return position.epoch + position.index / stream.num_chunks(position.epoch)


def fit(
    state: TrainState,
    stream: Stream,
    *,
    limits: Limits,
    cadence: Cadence,
    evaluate: Callable[[LanguageModel], Bill],
    show_sample: Callable[[LanguageModel], str],
    save: Save,
    telemetry: Telemetry,
    stop: Stop,
    on_nonfinite: OnNonfinite,
) -> str:
    """Trains to the end or to a signal; returns why it ended.

    Whatever is decided here is decided from `state`, which is saved, so a run that was interrupted takes the same way.
    """
    on_disk = state.step, state.evaluated_step, state.saved_step

    def validate() -> None:
        is_best = _evaluate(state, evaluate, show_sample, telemetry, on_nonfinite)
        if is_best or cadence.save_every == 0:
            _save(state, save, is_best, telemetry, on_nonfinite)

    if cadence.owes_evaluation(state):  # a signal came before it
        validate()
    while True:
        for report in steps(state, stream, limits):
            if report.is_finite:
                state.interval.add(report)
                _report_spike(report, state)
                went_back = False
            else:
                went_back = _went_back(state, telemetry, on_nonfinite, *_describe_nonfinite(report, state, stream))
            if not went_back:
                telemetry.progress(state, report, limits.share(state, epochs_done(stream, state.position)))
                if state.step % cadence.log_every == 0:
                    telemetry.record_training(state, report)
                    state.interval = Interval()
            if cadence.owes_evaluation(state) and not stop.requested:
                validate()
            if not went_back and cadence.save_every and state.step % cadence.save_every == 0:
                _save(state, save, False, telemetry, on_nonfinite)
            if stop.requested:
                _save(state, save, False, telemetry, on_nonfinite, is_scheduled=False, is_final=True)
                return stop.reason
            if stop.take_save_request():
                _save(state, save, False, telemetry, on_nonfinite, is_scheduled=False)
        is_best = state.evaluated_step != state.step and _evaluate(state, evaluate, show_sample, telemetry, on_nonfinite)
        if (
            on_disk != (state.step, state.evaluated_step, state.step)
            and limits.share(state, epochs_done(stream, state.position)) >= 1
        ):
            _save(state, save, is_best, telemetry, on_nonfinite, is_final=True)
        if limits.share(state, epochs_done(stream, state.position)) >= 1:  # else what was not finite made training go back
            return "finished"


def _evaluate(
    state: TrainState,
    evaluate: Callable[[LanguageModel], Bill],
    show_sample: Callable[[LanguageModel], str],
    telemetry: Telemetry,
    on_nonfinite: OnNonfinite,
) -> bool:
    """Validates; True where this is the best so far. A model whose validation is not a number has diverged."""
    with state.learner.evaluated() as model:
        bill = evaluate(model)
        text = show_sample(model) if math.isfinite(bill.nats_per_token) else ""
    state.evaluated_step = state.step
    if math.isnan(bill.nats_per_token):
        _went_back(state, telemetry, on_nonfinite, f"Validation at step {state.step} is not a number.", None)
        return False
    is_best = bill.nats_per_token < state.best_nats
    if is_best:
        state.best_nats, state.best_step = bill.nats_per_token, state.step
    state.learner.after_evaluation(bill.nats_per_token)
    telemetry.record_evaluation(state, bill, text, is_best)
    return is_best


def _save(
    state: TrainState,
    save: Save,
    is_best: bool,
    telemetry: Telemetry,
    on_nonfinite: OnNonfinite,
    *,
    is_scheduled: bool = True,
    is_final: bool = False,
) -> None:
    """Saves; a full disk costs this checkpoint, not the run, unless it is the final one.

    The state remembers the last checkpoint that the cadence asked for. A signal asks for others, which change nothing.
    """
    before = state.saved_step
    if is_scheduled:
        state.saved_step = state.step
    try:
        problem = save(state, is_best)
    except ResourceError as error:
        state.saved_step = before
        if is_final:
            raise
        log.warning("%s Training goes on; the next checkpoint will be tried again.", error)
        return
    if problem:
        _went_back(state, telemetry, on_nonfinite, problem, None)


def _went_back(state: TrainState, telemetry: Telemetry, on_nonfinite: OnNonfinite, problem: str, chunk: Chunk | None) -> bool:
    """Asks what shall be done about `problem`; True where `state` is an earlier one now."""
    step = state.step
    on_nonfinite(state, problem, chunk)
    if state.step != step:
        telemetry.rewind(state.step, is_evaluated=state.evaluated_step == state.step)
    return state.step != step


def _describe_nonfinite(report: StepReport, state: TrainState, stream: Stream) -> tuple[str, Chunk]:
    """What went wrong in the step just done, and the chunk it was done with."""
    chunk = stream.chunk(stream.previous(state.position))
    return (
        f"The loss ({report.nats}) or the norm of its gradient ({report.grad_norm}) is not finite at step {state.step} "
        f"(epoch {chunk.epoch}, chunk {chunk.index}).",
        chunk,
    )


def _report_spike(report: StepReport, state: TrainState) -> None:
    if report.nats is None:
        return
    nats_per_token = report.nats / report.num_tokens
    if state.spikes.is_spike(nats_per_token):
        log.warning(
            "The loss jumped to %.3f nats per token at step %d (epoch %d); its mean was %.3f.",
            nats_per_token, state.step, state.position.epoch, state.spikes.mean,
        )  # fmt: skip
    state.spikes = state.spikes.with_value(nats_per_token)
