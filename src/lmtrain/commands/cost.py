"""The cost of a run, told before its first step: steps, tokens and evaluations; disk; and time, after ten steps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch

import lmtrain.config as config
from lmtrain.data.batches import Batches, Position
from lmtrain.machine import num_waiting
from lmtrain.quantity import counted
from lmtrain.tasks.base import Task
from lmtrain.training.learner import shared_once
from lmtrain.training.limits import Cadence, Limits, epochs_done
from lmtrain.training.session import FIRST_STEPS
from lmtrain.training.state import TrainState

LONG_WARM_UP = 1000  # steps after which the rates of most recipes have risen
MIN_KEPT = 2  # checkpoints while a run trains: one is no protection while the next one is being written


def describe_cost(task: Task, limits: Limits, cadence: Cadence, state: TrainState) -> list[str]:
    """Returns three lines; none if nothing is left to train.

    If training ends by time alone, its steps are not known; if n-grams are counted, the size of the table is not.
    """
    if limits.fraction(state, epochs_done(task.batches, state.position)) >= 1:
        return []
    return [_work(task, limits, cadence, state), _disk(task, state), _time(task, limits, state)]


def iter_warm_up_advice(settings: config.Config, limits: Limits, batches: Batches, state: TrainState) -> Iterator[str]:
    """Says what looks wrong with a rate that rises for a fraction of a run that is set to be very long.

    If time ends the run as well, the rise takes a fraction of that time at most, and no advice is needed.
    """
    steps, schedule = limits.steps_to_come(state, batches), settings.schedule
    name = "up" if hasattr(schedule, "up") else "warmup"
    share = getattr(schedule, name, 0.0)
    if steps is None or limits.max_seconds is not None or not share:
        return
    rising, per_epoch = share * steps, batches.num_batches(state.position.epoch)
    if rising > max(LONG_WARM_UP, per_epoch):
        limit = min(("num_steps", "num_epochs"), key=lambda limit: _steps_of(limits, limit, per_epoch))
        long = f"{counted(round(rising), 'step')} ({counted(rising / per_epoch, 'epoch', '.3g')})"
        yield (
            f"The learning rate rises for the first {long}: "
            f"schedule.{name}={share:g} is a fraction of the run, which trainer.{limit}={getattr(limits, limit):g} makes long. "
            f"For a rise of one epoch type schedule.{name}={min(per_epoch / steps, share):.2g}; to let a long run "
            "end by itself use schedule=constant with trainer.patience, or trainer.max_seconds."
        )


def iter_busy_advice(num_threads: int) -> Iterator[str]:
    """Says that threads will wait for each other if other programs keep all cores of this machine busy.

    Every product ends when its last thread does, so a thread that has no core to itself holds up all of them.
    """
    if num_threads > 1 and (others := num_waiting()) >= (num_cores := os.cpu_count() or 1):
        yield (
            f"Other programs keep the {num_cores} cores of this machine busy ({others} of their threads run or wait to run). "
            f"Then {num_threads} threads, which wait for each other at every product, may be many times slower than one: "
            "try trainer.num_threads=1."
        )


def _steps_of(limits: Limits, name: str, per_epoch: int) -> float:
    limit = getattr(limits, name)
    return math.inf if limit is None else limit * (per_epoch if name == "num_epochs" else 1)


def num_checkpoints(keep: int) -> int:
    """Returns the most that are on the disk at a time: the newest ones, the best one, and the one that is being written."""
    return max(keep, MIN_KEPT) + 2


def checkpoint_bytes(task: Task, model: torch.nn.Module) -> int | None:
    """Returns about how large a checkpoint is; None if that is known only when the text has been counted."""
    tensors = shared_once(model)
    if not tensors:
        return None
    optimizer = task.settings.optimizer
    has_momentum = optimizer.momentum > 0
    moments = {
        config.OptimizerName.sgd: has_momentum, config.OptimizerName.adagrad: 1, config.OptimizerName.rmsprop: 1 + has_momentum,
    }.get(optimizer.name, 2)  # fmt: skip
    averages = 0 if optimizer.averaging is config.Averaging.none else 2  # the averages, and the weights that are trained
    weights = sum(_num_bytes(tensor) for tensor in tensors.values())
    others = sum(_num_bytes(tensor) for members in task.files().tensors.values() for tensor in members.values())
    return weights * (1 + moments + averages) + others


def _work(task: Task, limits: Limits, cadence: Cadence, state: TrainState) -> str:
    batches, items = task.batches, task.wording.items
    steps = limits.steps_to_come(state, batches)
    per_epoch = batches.num_batches(state.position.epoch)
    evaluated = task.judged_on().get("num_tokens")
    of_so_many = f" of {counted(evaluated, 'token')}" if evaluated else ""
    if steps is None:
        often = cadence.evaluate_every
        every = f"every {counted(often, 'step')}" if often else f"every epoch ({counted(per_epoch, 'step')})"
        seconds = (limits.max_seconds or 0) - state.elapsed_seconds
        return f"Cost: {duration(seconds)} of training; an evaluation{of_so_many} {every}{_final_test(task)}."
    items_per_epoch = batches.done_before(Position(epoch=1))[1][-1]
    num_items = round(steps / per_epoch * items_per_epoch)
    between = cadence.evaluate_every or per_epoch
    number = max(1, -(-steps // between)) if steps else 0
    to_come = " to come" if state.step else ""
    return (
        f"Cost: {counted(steps, 'step')}{to_come}, about {num_items:,} {items} ({counted(steps / per_epoch, 'epoch', '.3g')}); "
        f"{counted(number, 'evaluation')}{of_so_many}{_final_test(task)}."
    )


def _final_test(task: Task) -> str:
    is_none = task.settings.is_range_test or task.settings.trainer.final_split is config.FinalSplit.none
    return "" if is_none else ", and the final test"


def _disk(task: Task, state: TrainState) -> str:
    keep = task.settings.trainer.keep
    stay = "the best alone stays" if keep == 0 else f"the best and the newest {'one stays' if keep == 1 else f'{keep} stay'}"
    size = checkpoint_bytes(task, state.learner.model)
    if size is None:
        return f"Disk: checkpoints of a size that is known when the text is counted; {stay}."
    number = num_checkpoints(keep)
    total = f"{megabytes(number * size)} in all"
    return f"Disk: up to {number} checkpoints of {megabytes(size)}, {total}; {stay} (trainer.keep={keep})."


def _time(task: Task, limits: Limits, state: TrainState) -> str:
    steps = limits.steps_to_come(state, task.batches)
    if steps is not None and steps <= FIRST_STEPS:
        return "Time: so few steps are soon done."
    most = f", but {duration(limits.max_seconds - state.elapsed_seconds)} at most" if limits.max_seconds is not None else ""
    return f"Time: known after {FIRST_STEPS} steps{most}."


def describe_time(limits: Limits, state: TrainState, batches: Any, seconds_per_step: float) -> str:
    """Says the remaining time, by that of the first steps."""
    steps = limits.steps_to_come(state, batches)
    seconds = None if steps is None else steps * seconds_per_step
    left = None if limits.max_seconds is None else limits.max_seconds - state.elapsed_seconds
    if seconds is None or (left is not None and left < seconds):
        assert left is not None, "something ends a run"
        steps, seconds = int(left / seconds_per_step) if seconds_per_step else 0, left
    each = f"{seconds_per_step:.2g} s each"
    return f"Time: about {duration(seconds)} for the {counted(steps or 0, 'step')} to come ({each}), without evaluations."


def describe_spent(state: TrainState) -> str:
    """Returns what training took, and what evaluations added to it, or, in a run that an earlier version began, had of it."""
    apart = f"{duration(state.evaluation_seconds)} of evaluation, samples and saving"
    if state.includes_evaluation:
        return f"The run took {duration(state.elapsed_seconds)}, at least {apart} among them."
    return f"The run took {duration(state.elapsed_seconds)} of training and {apart}."


def duration(seconds: float) -> str:
    """Returns a time to read."""
    if seconds < 100:
        return counted(max(seconds, 0), "second", ".3g")
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def megabytes(num_bytes: int) -> str:
    """Returns a size to read, in powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
