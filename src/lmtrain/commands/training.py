"""One training as one process has it: the task, the run directory, the state, and what saves, records and limits it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

import lmtrain.config as config
from lmtrain.build import build_limits
from lmtrain.commands.cost import (
    MIN_KEPT,
    checkpoint_bytes,
    describe_cost,
    describe_spent,
    describe_time,
    iter_busy_advice,
    iter_warm_up_advice,
    num_checkpoints,
)
from lmtrain.commands.results import note_beginning, note_outcome
from lmtrain.commands.resuming import go_on, note_arithmetic
from lmtrain.commands.saver import Saver, SharedSaver
from lmtrain.commands.starting import keep_start
from lmtrain.commands.summary import (
    describe_training,
    final_test,
    how_it_ended,
    next_steps,
    say_resume,
    show_comparison,
    show_range_test,
)
from lmtrain.commands.together import say_processes
from lmtrain.distributed.group import Group
from lmtrain.settings import idle, quoting
from lmtrain.shell import shown
from lmtrain.tasks.base import Reached, Task
from lmtrain.training.finite import Nonfinite
from lmtrain.training.gradient_check import gradient_check
from lmtrain.training.gradient_watch import gradient_watch
from lmtrain.training.left_over import check_free_space
from lmtrain.training.limits import Cadence, Limits, epochs_done
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.session import Session
from lmtrain.training.signals import Stop
from lmtrain.training.silent import Silent
from lmtrain.training.state import TrainState
from lmtrain.training.telemetry import Telemetry

log = logging.getLogger("lmtrain")


@dataclass(frozen=True)
class Training:
    """A run that is about to be trained, or that goes on.

    group       the processes that train it together
    saver       saves its checkpoints, and goes back to them
    is_resumed  whether it goes on from a checkpoint
    """

    task: Task
    run: RunDirectory
    group: Group
    state: TrainState
    limits: Limits
    cadence: Cadence
    saver: SharedSaver
    is_resumed: bool

    @property
    def epoch(self) -> float:
        """Returns how many epochs are done."""
        return epochs_done(self.task.batches, self.state.position)

    @property
    def reached(self) -> Reached | None:
        """Returns the best validation so far, if there was one."""
        return None if self.state.best_value is None else self.task.reached(self.state.best_value)

    def say_what_is_to_come(self) -> None:
        """Logs what the run will cost, and what looks wrong with its settings."""
        settings = self.task.settings
        for advice in () if self.is_resumed else iter_warm_up_advice(settings, self.limits, self.task.batches, self.state):
            log.warning("%s", advice)
        for advice in iter_busy_advice(torch.get_num_threads()) if self.state.learner.has_gradients else ():
            log.info("%s", advice)
        for line in describe_cost(self.task, self.limits, self.cadence, self.state):
            log.info("%s", line)
        if self.is_resumed and (limits := self.limits.reached(self.state, self.epoch)):
            log.warning("Nothing is left to train: %s", how_it_ended(settings, limits, self.run.path))

    def telemetry(self, name: str) -> Telemetry:
        """Opens the records of the run, which TensorBoard calls `name`. Only the first process has any."""
        if not self.group.leads:
            return Silent()
        return Telemetry(
            self.run.path, resume_step=self.state.step, resume_fraction=self.limits.fraction(self.state, self.epoch),
            is_evaluated=self.state.evaluated_step == self.state.step, wording=self.task.wording,
            name=name,
        )  # fmt: skip

    def session(self, telemetry: Telemetry, stop: Stop) -> Session:
        """Returns the run as the loop takes it. If training may go back, the beginning is saved, so that it always can."""
        task, trainer, learner = self.task, self.task.settings.trainer, self.state.learner
        if trainer.on_nonfinite is config.OnNonfinite.rollback and not self.is_resumed:
            self.state.saved_step = self.state.step
            self.saver(self.state, True)
        remedy = idle.remedy_for_divergence(task.settings, quoting.typed("resume", shown(self.run.path)))
        return Session(
            self.state, task.batches, self.limits, self.cadence, score=lambda model: task.judge(model, self.group),
            show=task.show, keep=self.saver, telemetry=telemetry, stop=stop, group=self.group,
            on_nonfinite=Nonfinite(trainer.on_nonfinite.name, self.saver.crash, self.saver.go_back, remedy),
            describe_time=lambda seconds: describe_time(self.limits, self.state, task.batches, seconds),
            check=gradient_check(learner, trainer.check_gradients),
            watch=gradient_watch(learner) if trainer.watch_gradients else None,
        )  # fmt: skip

    def record_end(self, telemetry: Telemetry, stop: Stop, reason: str) -> None:
        """Notes how training ended. After a signal, says how the run goes on."""
        state = self.state
        if self.task.settings.trainer.projector and state.step and not stop.requested:
            with state.learner.evaluated() as model:
                if (vectors := self.task.vectors(model)) is not None:
                    telemetry.record_vectors(vectors.words, vectors.matrix)
        telemetry.end_bar()
        telemetry.record_results(state.step, valid=state.best_value, tokens_per_second=telemetry.items_per_second or None)
        note_outcome(self.run, self.task, state, reason)
        log.info("%s", describe_spent(state))
        if stop.requested:
            say_resume(self.run, stop, state)

    def conclude(self, telemetry: Telemetry) -> None:
        """Tests the best model and says what to do next. A range test ends with its curve instead."""
        task, run, state = self.task, self.run, self.state
        if task.settings.is_range_test:
            self.saver.tidy(state)
            show_range_test(run)
            return
        score = final_test(run, task)
        telemetry.record_results(state.step, test=None if score is None else score.value)
        self.saver.tidy(state)
        if score is not None:
            show_comparison(run, task, score)  # last: if a signal comes now, all else is done
        limits = self.limits.reached(state, self.epoch)
        print(next_steps(run.path, task) + how_it_ended(task.settings, limits, run.path))


def begin(task: Task, run: RunDirectory, checkpoint: Path | None, group: Group) -> Training:
    """Starts a training from the beginning, or from `checkpoint`, and notes in the run what it is computed with."""
    trainer = task.settings.trainer
    state = TrainState(task.learner().shared(group, task.batches.batch_size), task.wording)
    if checkpoint is not None:
        go_on(state, checkpoint, task, run, group)
    note_beginning(run, task, state.learner.model, group)  # after the checkpoint was accepted: a refused run stays as it was
    if group.leads:
        keep_start(run, task)
    arithmetic = note_arithmetic(run, state.learner, task, group, is_resumed=checkpoint is not None)
    if group.leads:
        num_bytes = (checkpoint_bytes(task, state.learner.model) or 0) * num_checkpoints(trainer.keep)
        is_resumed, can_keep_fewer = checkpoint is not None, trainer.keep > MIN_KEPT
        check_free_space(run.path, num_bytes, is_resumed=is_resumed, can_keep_fewer=can_keep_fewer)
    log.info("%s", describe_training(task, state.learner, run.path))
    if group.size > 1:
        log.info("%s", say_processes(group, task))
    saver = SharedSaver(Saver(task, run, arithmetic), group)
    if checkpoint is not None:
        saver.remember(state, checkpoint)
    cadence = Cadence(trainer.log_every, trainer.evaluate_every, trainer.save_every)
    return Training(task, run, group, state, build_limits(task.settings), cadence, saver, checkpoint is not None)
