"""`python -m lmtrain`: trains a model in a run directory, or goes on with one; then tests it and says what to do next."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch

import lmtrain.config as config
from lmtrain.build import build_limits, choose_device
from lmtrain.commands.cost import checkpoint_bytes, describe_cost, describe_time, iter_warm_up_advice, num_checkpoints
from lmtrain.commands.results import describe_end, describe_run, hyper_parameters
from lmtrain.commands.resuming import changed_settings, earlier_checkpoint, load_state, note_arithmetic, say_stretched
from lmtrain.commands.saver import Saver
from lmtrain.commands.starting import keep_start, kept_start
from lmtrain.commands.summary import (
    conclude,
    describe_training,
    how_it_ended,
    next_steps,
    num_parameters,
    say_resume,
    show_comparison,
    show_range_test,
)
from lmtrain.commands.together import SharedSaver, check_shareable, keep_for_restarts, opened, say_processes
from lmtrain.data.batches import Batch
from lmtrain.distributed.group import ALONE, Group
from lmtrain.errors import DivergedError, is_out_of_memory
from lmtrain.ops.backends import record_choices
from lmtrain.settings import comparing, conflicts, quoting
from lmtrain.shell import shown
from lmtrain.tasks.base import Reached, Task
from lmtrain.tasks.choose import open_task
from lmtrain.training.checkpoint import mark, newest_valid_checkpoint
from lmtrain.training.finite import Nonfinite
from lmtrain.training.gradient_check import check_gradients
from lmtrain.training.gradient_watch import watch_gradients
from lmtrain.training.learner import GradientLearner, Learner
from lmtrain.training.left_over import check_free_space
from lmtrain.training.limits import Cadence, epochs_done
from lmtrain.training.loop import fit
from lmtrain.training.machine import keep_freed_memory
from lmtrain.training.provenance import device_facts
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.session import Check, Session, Watch
from lmtrain.training.signals import Stop, catch_signals
from lmtrain.training.silent import Silent
from lmtrain.training.state import TrainState
from lmtrain.training.telemetry import Telemetry

log = logging.getLogger("lmtrain")


def train(
    settings: config.Config, directory: Path, before: Callable[[], None] = lambda: None, group: Group = ALONE
) -> Reached | None:
    """Trains from the beginning in `directory`; returns the best validation, where there was one.

    Calls `before` once the directory is known to be free and is locked, and nothing has been done.
    """
    check_shareable(settings, group)
    choose_device(settings.trainer)  # before anything is written
    with opened(directory, sys.argv, group, new=True) as run:
        before()
        run.keep_settings(_settings_text(settings))
        keep_for_restarts(group, run)
        return _run(settings, run, None, group)


def resume(directory: Path, changes: Mapping[str, Any], group: Group = ALONE) -> Reached | None:
    """Goes on where the run in `directory` stopped, with the single settings in `changes` replaced."""
    settings = group.led(lambda: changed_settings(directory, changes))
    check_shareable(settings, group)
    choose_device(settings.trainer)
    with opened(directory, sys.argv, group) as run:
        checkpoint = group.led(lambda: newest_valid_checkpoint(directory) if any(run.checkpoints.iterdir()) else None)
        if checkpoint is None:
            log.warning("%s was stopped before its first checkpoint: it begins again.", shown(directory))
        run.know_settings()
        return _run(settings, run, checkpoint, group, has_changed=bool(changes))


def _settings_text(settings: config.Config) -> str:
    return json.dumps(comparing.config_to_json(settings), indent=2) + "\n"


def _run(
    settings: config.Config, run: RunDirectory, resumed_from: Path | None, group: Group, *, has_changed: bool = False
) -> Reached | None:
    keep_freed_memory(not isinstance(settings.model, config.COUNTED))  # what is counted takes no steps, and much memory once
    if settings.trainer.num_threads:
        torch.set_num_threads(settings.trainer.num_threads)
    torch.set_flush_denormal(True)
    started = group.led(lambda: kept_start(run))
    with group.one_first():  # it leaves the tokens in the cache
        task = open_task(settings, choose_device(settings.trainer), started)
    log.info("%s", task.describe())
    for advice in task.iter_advice() if resumed_from is None else ():
        log.warning("%s", advice)
    task.check()
    try:
        return _train(task, run, resumed_from, has_changed, group)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise task.out_of_memory(error, shown(run.path)) from error
    finally:
        record_choices({})  # what else this process computes is no part of the run


def _train(task: Task, run: RunDirectory, resumed_from: Path | None, has_changed: bool, group: Group) -> Reached | None:
    settings, trainer = task.settings, task.settings.trainer
    state = TrainState(task.learner().shared(group, task.batches.batch_size), task.wording)
    saver = _begin(task, run, state, resumed_from, group)
    if has_changed:  # a run that may not go on so keeps the settings that it has
        run.keep_settings(_settings_text(settings))
    limits, cadence = build_limits(settings), Cadence(trainer.log_every, trainer.evaluate_every, trainer.save_every)
    for advice in () if resumed_from else iter_warm_up_advice(settings, limits, task.batches, state):
        log.warning("%s", advice)
    for line in describe_cost(task, limits, cadence, state):
        log.info("%s", line)
    epoch = epochs_done(task.batches, state.position)
    if resumed_from is not None and (reached := limits.reached(state, epoch)):
        log.warning("Nothing is left to train: %s", how_it_ended(settings, reached, run.path))
    is_evaluated = state.evaluated_step == state.step
    with Silent() if not group.leads else Telemetry(
        run.path, resume_step=state.step, resume_fraction=limits.share(state, epoch), is_evaluated=is_evaluated,
        wording=task.wording,
    ) as telemetry:  # fmt: skip
        telemetry.record_settings(comparing.config_to_json(settings), hyper_parameters(settings), state.step)
        with catch_signals(group) as stop:
            if trainer.on_nonfinite is config.OnNonfinite.rollback and resumed_from is None:
                state.saved_step = state.step
                saver(state, True)  # so that there always is somewhere to go back to
            session = Session(
                state, task.batches, limits, cadence, score=task.score, show=task.show, keep=saver, telemetry=telemetry,
                stop=stop, on_nonfinite=_nonfinite(task, run, saver, group), group=group,
                describe_time=lambda seconds: describe_time(limits, state, task.batches, seconds),
                check=_check(state.learner, trainer), watch=_watch(state.learner, trainer),
            )  # fmt: skip
            try:
                reason = fit(session)
            except DivergedError:
                if not isinstance(settings.schedule, config.RangeTestConfig):
                    raise
                reason = "diverged, as the high rates of a range test do"
            finally:
                note_results(run, **describe_end(task, state, telemetry.items_per_second))
        if not group.leads:
            return _end_of_follower(task, state, stop)
        if trainer.projector and state.step and not stop.requested:
            with state.learner.evaluated() as model:
                if (vectors := task.vectors(model)) is not None:
                    telemetry.record_vectors(vectors.words, vectors.matrix)
        telemetry.end_bar()
        telemetry.record_results(state.step, valid=state.best_value, tokens_per_second=telemetry.items_per_second or None)
        return _end(task, run, state, stop, reason, saver, telemetry)


def _end_of_follower(task: Task, state: TrainState, stop: Stop) -> Reached | None:
    """The first process says and tests the rest."""
    if stop.requested:
        raise SystemExit(stop.exit_code)
    return None if state.best_value is None else task.reached(state.best_value)


def _begin(task: Task, run: RunDirectory, state: TrainState, resumed_from: Path | None, group: Group) -> SharedSaver:
    """Puts the state where the run stopped, where it did, and notes what is computed with; what saves it from now on."""
    settings, trainer, model = task.settings, task.settings.trainer, state.learner.model
    results = describe_run(task, num_parameters(model))
    if resumed_from is None:  # else once it is known that the run goes on: one that is refused is as it was
        run.note(results=results)
    else:
        before = load_state(state, resumed_from, task, group)
        log.info("Going on from step %d (%s).", state.step, resumed_from)
        if group.leads and state.step == (state.best_step or 0):  # a kill may have come before it was marked
            mark(run.path, "best", resumed_from)
        say_stretched(before, settings, state, epochs_done(task.batches, state.position))
        run.note(results=results)
    if group.leads:
        keep_start(run, task)
    arithmetic = note_arithmetic(run, model, task, is_resumed=resumed_from is not None, group=group)
    run.note(**device_facts(task.device), num_parameters=num_parameters(model), num_threads=torch.get_num_threads(),
             corpus=task.fingerprint, num_processes=group.size)  # fmt: skip
    if group.leads:
        check_free_space(run.path, (checkpoint_bytes(task, model) or 0) * num_checkpoints(trainer.keep))
    log.info("%s", describe_training(task, model, run.path))
    if group.size > 1:
        log.info("%s", say_processes(group, task))
    saver = SharedSaver(Saver(task, run, arithmetic), group)
    if resumed_from is not None:
        saver.remember(state, resumed_from)
    return saver


def _nonfinite(task: Task, run: RunDirectory, saver: SharedSaver, group: Group) -> Nonfinite:
    def load(state: TrainState, which: Literal["last", "best"]) -> object:
        return load_state(state, group.led(lambda: earlier_checkpoint(run.path, state, which)), task, group)

    return Nonfinite(
        task.settings.trainer.on_nonfinite.name,
        save_crash=saver.crash,
        load=load,
        remedy=conflicts.remedy_for_divergence(task.settings, quoting.typed("resume", shown(run.path))),
    )


def _check(learner: Learner, trainer: config.TrainerConfig) -> Check | None:
    """Checks gradients and says what was found, where that is asked for and there are any."""
    if not (trainer.check_gradients and learner.has_gradients):
        return None

    def check(state: TrainState, batch: Batch) -> None:
        checked = check_gradients(
            cast(GradientLearner, state.learner), state.learner.own(batch), trainer.check_gradients, state.step
        )
        log.info("%s", checked.format(state.step))
        checked.raise_if_wrong(state.step)

    return check


def _watch(learner: Learner, trainer: config.TrainerConfig) -> Watch | None:
    """Looks at gradients and units, where that is asked for and there are any."""
    if not (trainer.watch_gradients and learner.has_gradients):
        return None
    return lambda state, batch: watch_gradients(cast(GradientLearner, state.learner), state.learner.own(batch))


def _end(
    task: Task, run: RunDirectory, state: TrainState, stop: Stop, reason: str, saver: SharedSaver, telemetry: Telemetry
) -> Reached | None:
    """What is said and noted behind the last step."""
    run.note(**{f"best_{task.wording.value}": state.best_value}, exit_reason=reason, num_steps=state.step,
             best_step=state.best_step)  # fmt: skip
    if stop.requested:
        say_resume(run, stop, state)
    best = None if state.best_value is None else task.reached(state.best_value)
    if isinstance(task.settings.schedule, config.RangeTestConfig):
        show_range_test(run)
        return best
    score = conclude(run, task)
    telemetry.record_results(state.step, test=None if score is None else score.value)
    saver.tidy(state)
    if score is not None:
        show_comparison(run, task)  # last: all else is done where a signal comes now
    limits = build_limits(task.settings).reached(state, epochs_done(task.batches, state.position))
    print(next_steps(run.path, task) + how_it_ended(task.settings, limits, run.path))
    return best


def note_results(run: RunDirectory, **facts: Any) -> None:
    """Adds to the results of this process."""
    run.note(results={**run.session["results"], **facts})
