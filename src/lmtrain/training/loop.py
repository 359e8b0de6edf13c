"""The loop of training: the order in which everything happens. `lmtrain.training.session` says what each thing is."""

from __future__ import annotations

from collections.abc import Iterator

from lmtrain.data.batches import Batches
from lmtrain.distributed.group import ALONE, Group
from lmtrain.machine import RunningTime
from lmtrain.training.learner import StepReport
from lmtrain.training.limits import Limits, epochs_done
from lmtrain.training.session import Session
from lmtrain.training.state import TrainState


def fit(run: Session) -> str:
    """Trains to the end or to a signal; returns why it ended."""
    if run.owes_evaluation:  # a signal came before it
        run.validate()
        if run.stop.requested:
            return _leave(run)
    else:
        run.check_gradients()
    while True:
        for report in steps(run.state, run.batches, run.limits, run.group):
            run.stop.share()
            accepted = run.accept(report)
            if run.owes_evaluation and not run.stop.requested:
                run.validate()
            if accepted and run.owes_checkpoint:
                run.save()
            if run.stop.requested:
                return _leave(run)
            if run.stop.take_save_request():
                run.save(is_scheduled=False)
        run.finish()
        if run.is_broken_off:
            return run.stop.reason
        if run.fraction >= 1:  # else numbers that are not finite made training go back
            return run.why_it_ended


def _leave(run: Session) -> str:
    """Saves because of a signal; returns its name."""
    run.save(is_scheduled=False, is_final=True)
    return run.stop.reason


def steps(state: TrainState, batches: Batches, limits: Limits, group: Group = ALONE) -> Iterator[StepReport]:
    """Learns from batch after batch until a limit is reached; `state` moves on before each report is yielded.

    Time while the process is stopped does not count, and what is done apart from training between two steps is subtracted.
    """
    with RunningTime() as clock:
        started_at = clock() - state.running_seconds
        while True:
            state.running_seconds = clock() - started_at
            state.elapsed_seconds = group.seconds(state.elapsed_seconds)
            if limits.fraction(state, epochs_done(batches, state.position)) >= 1:
                return
            began_at = clock()
            batch = batches.batch(state.position)
            report = state.learner.step(batch, limits.progress(state, batches))
            report = report._replace(seconds=clock() - began_at)
            state.position = batches.next(state.position)
            state.step += 1
            state.num_items += report.num_items
            state.running_seconds = clock() - started_at  # a signal may end the run before the next step
            yield report
