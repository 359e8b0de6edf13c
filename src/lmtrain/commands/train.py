"""`python -m lmtrain` trains a model in a run directory, or goes on with one. It then tests the model and says what is next."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import lmtrain.config as config
from lmtrain.build import choose_device
from lmtrain.commands.results import hyper_parameters, note_end, run_name
from lmtrain.commands.resuming import changed_settings
from lmtrain.commands.starting import kept_start
from lmtrain.commands.together import check_alike, check_shareable, keep_for_restarts, opened
from lmtrain.commands.training import begin
from lmtrain.distributed.failures import SaidError
from lmtrain.distributed.group import ALONE, Group
from lmtrain.errors import DivergedError, is_out_of_memory
from lmtrain.machine import keep_freed_memory
from lmtrain.ops.backends import record_choices
from lmtrain.ops.native.build import why_no_library
from lmtrain.settings import comparing
from lmtrain.shell import shown
from lmtrain.tasks.base import Reached, Task
from lmtrain.tasks.choose import open_task, start_of
from lmtrain.training.checkpoint import newest_valid_checkpoint
from lmtrain.training.loop import fit
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.signals import catch_signals

log = logging.getLogger("lmtrain")


def train(
    settings: config.Config, directory: Path, before: Callable[[], None] = lambda: None, group: Group = ALONE,
    varied: Mapping[str, str] | None = None,
) -> Reached | None:  # fmt: skip
    """Trains from the beginning in `directory` and returns the best validation, if there was one.

    It calls `before` when the directory is known to be free and is locked, and nothing has been done yet. `varied` are the
    settings that differ between the runs of a sweep.
    """
    check_shareable(settings, group)
    choose_device(settings.trainer)  # before anything is written
    with opened(directory, sys.argv, group, new=True) as run:
        before()
        run.keep_settings(_settings_text(settings))
        keep_for_restarts(group, run)
        return _prepare(settings, run, None, group, varied=varied)


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
        return _prepare(settings, run, checkpoint, group, has_changed=bool(changes))


def _settings_text(settings: config.Config) -> str:
    return json.dumps(comparing.config_to_json(settings), indent=2) + "\n"


def _prepare(
    settings: config.Config, run: RunDirectory, resumed_from: Path | None, group: Group, *, has_changed: bool = False,
    varied: Mapping[str, str] | None = None,
) -> Reached | None:  # fmt: skip
    keep_freed_memory(not isinstance(settings.model, config.COUNTED))  # counting takes no steps, and much memory once
    if settings.trainer.num_threads:
        torch.set_num_threads(settings.trainer.num_threads)
    torch.set_flush_denormal(True)
    start = group.led(lambda: start_of(settings, kept_start(run)))  # on the first machine, the only one that has the run
    with group.one_first():  # the first process leaves the tokens in the cache
        task = open_task(settings, choose_device(settings.trainer), start)
    log.info("%s", task.describe())
    for advice in task.iter_advice() if resumed_from is None else ():
        log.warning("%s", advice)
    task.check()
    check_alike(task, group)
    try:
        return _train_prepared(task, run, resumed_from, has_changed, group, varied)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise task.out_of_memory(error, shown(run.path)) from error
    finally:
        record_choices({})  # what this process computes later does not belong to the run


def _train_prepared(
    task: Task, run: RunDirectory, resumed_from: Path | None, has_changed: bool, group: Group, varied: Mapping[str, str] | None
) -> Reached | None:
    settings = task.settings
    task.begins = resumed_from is None
    training = begin(task, run, resumed_from, group)
    state = training.state
    if has_changed:  # only now: a run that may not go on like this keeps its settings
        run.keep_settings(_settings_text(settings))
    training.say_what_is_to_come()
    with training.telemetry(run_name(settings, varied)) as telemetry:
        telemetry.record_settings(comparing.config_to_json(settings), hyper_parameters(settings, varied), state.step)
        with catch_signals(group) as stop:
            if task.device.type == "cpu":
                why_no_library()  # compiles the kernels that are missing, which is no part of the training's time
            session = training.session(telemetry, stop)
            try:
                reason = fit(session)
            except DivergedError:
                if not training.task.settings.is_range_test:
                    raise
                reason = "diverged, as the high rates of a range test do"
            finally:
                note_end(run, task, state, telemetry.items_per_second)
        if group.leads:  # the others wait for what it says next
            training.record_end(telemetry, stop, reason)
            if stop.requested:
                raise SaidError(stop.exit_code)
            training.conclude(telemetry)
        return training.reached
