"""`lmtrain.train`: a training from Python, with the settings of the command line; and the `Run` that it leaves.

The process is afterwards as it was before: signal handlers, random states, number of threads and working directory. What it
has set in PyTorch for itself (`set_default_dtype`, `no_grad`, an open autocast) changes nothing of a training.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmtrain.application import train_here
from lmtrain.arguments import checked
from lmtrain.errors import SettingsError, current_directory
from lmtrain.tasks.base import Reached
from lmtrain.trained import Model, load

_in_use = threading.Lock()


def _in_child() -> None:
    """A forked child trains nothing, whatever a thread of its parent does."""
    global _in_use
    _in_use = threading.Lock()


os.register_at_fork(after_in_child=_in_child)


@dataclass(frozen=True)
class Run:
    """A run as it lies on the disk.

    path  its directory, which `lmtrain.load`, the commands and `resume=` take
    best  its best validation: its `value` (nats per token) and bits per character; None where there was none
    """

    path: Path
    best: Reached | None

    @cached_property
    def model(self) -> Model:
        """The best model of the run."""
        return load(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of the run in their order: a step and the numbers that were noted at it, by their tags."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@checked
def train(*settings: str) -> Run:
    """Trains with the settings of the command line, one string each; returns the run.

        run = lmtrain.train("model=gru", "data=text", "data.path=my.txt", "trainer.max_seconds=60")
        run = lmtrain.train(f"resume={run.path}", "trainer.max_seconds=120")

    Raises a `UserError` for what the command line refuses in words, and while a training goes on in this process: it sets what
    the whole process shares. Ctrl-C stops training behind the present step, saves, and is then raised as KeyboardInterrupt; the
    run can be resumed.
    """
    with _alone(), _left_as_it_was():
        try:
            return Run(*train_here(settings))
        except SystemExit as stopped:
            number = int(stopped.code or 0) - 128
    signal.raise_signal(number)  # what it would have done without us
    raise KeyboardInterrupt


@contextmanager
def _alone() -> Iterator[None]:
    """Lets one training of this process run at a time."""
    if not (in_use := _in_use).acquire(blocking=False):
        raise SettingsError(
            "A training is going on in this process.",
            "A process trains one model at a time.",
            "Wait for it, or train in a process of its own, for example by the command line.",
        )
    try:
        yield
    finally:
        in_use.release()


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Puts back what training sets for the whole process, and gives it standard streams where there are none."""
    place, raises = current_directory(), logging.raiseExceptions
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    flushes = float(torch.tensor(1e-320, dtype=torch.float64) * 1) == 0
    try:
        with ExitStack() as stack:
            for stream, redirected in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
                if stream is None:  # as in a program without a console
                    stack.enter_context(redirected(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        os.chdir(place)
        logging.raiseExceptions = raises
