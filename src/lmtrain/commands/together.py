"""A training by several processes. The first one reads the command line, writes and prints; the others follow it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lmtrain.config as config
from lmtrain import __version__, progress
from lmtrain.distributed.group import ALONE, Group
from lmtrain.distributed.launch import remember_directory
from lmtrain.errors import SettingsError
from lmtrain.settings import reading
from lmtrain.tasks.base import Reached, Task
from lmtrain.training.run_directory import RunDirectory, open_run_directory


@dataclass(frozen=True)
class Job:
    """One training: its settings (None if a run goes on, with `changes`) and its directory."""

    settings: Mapping[str, Any] | None
    directory: Path
    changes: Mapping[str, Any]


def tell(group: Group, job: Job | None) -> None:
    """Tells the other processes what comes next; None means that nothing comes."""
    group.led(lambda: job)


def follow(group: Group) -> tuple[Path, Reached | None] | None:
    """Does every job that the first process tells, and returns the result of the last one. The other processes call this."""
    from lmtrain.commands.train import resume, train

    logging.getLogger("lmtrain").disabled = True
    progress.silence()
    ended = None
    while (job := group.led(lambda: None)) is not None:
        assert isinstance(job, Job)
        if job.settings is None:
            ended = job.directory, resume(job.directory, job.changes, group)
        else:
            ended = job.directory, train(reading.read_config(job.settings), job.directory, group=group)
    return ended


def check_shareable(settings: config.Config, group: Group) -> None:
    """Raises SettingsError if several processes cannot train this together."""
    trainer, kind = settings.trainer, config.model_name(settings.model)
    if group.size == 1:
        if trainer.distributed is config.Distributed.ddp:
            raise SettingsError(
                "trainer.distributed=ddp was given to one process alone.", "Several processes are started by torchrun.",
                "Type  torchrun --nproc-per-node=2 -m lmtrain ...  , or leave it out.",
            )  # fmt: skip
        return
    several = f"{group.size} processes were started (WORLD_SIZE={group.size})"
    if trainer.distributed is config.Distributed.none:
        raise SettingsError(
            f"trainer.distributed=none was given, but {several}.", "They would all train the same model in the same place.",
            "Leave it out, or start one process without torchrun.",
        )  # fmt: skip
    if isinstance(settings.model, config.COUNTED):
        raise SettingsError(
            f"model={kind} cannot be trained by several processes, and {several}.",
            "It is counted in one pass over the data, faster than counts could be exchanged.",
            "Start it without torchrun.",
        )
    if config.task_of(settings.data, settings.model) != "language":
        raise SettingsError(
            f"model={kind} cannot be trained by several processes, and {several}.",
            "Language models are: window, elman, gru and lstm; their streams of text are dealt out.",
            "Start it without torchrun.",
        )
    if trainer.batch_size < group.size:
        raise SettingsError(
            f"trainer.batch_size={trainer.batch_size} is less than the number of processes: {several}.",
            "Each of them needs one stream of text at the least.",
            f"Type trainer.batch_size={group.size} or more, or start fewer processes.",
        )
    if trainer.cuda_graph is config.CudaGraph.on:
        raise SettingsError(
            f"trainer.cuda_graph=on cannot be done: {several}, which exchange their gradients within each step.",
            "A step that is recorded is one piece of work for one GPU.",
            "Type trainer.cuda_graph=auto.",
        )


def check_alike(task: Task, group: Group) -> None:
    """Raises SettingsError if processes are about to train something else than the first one: each reads the text and
    whatever file is named on its own machine."""
    if group.size == 1:
        return
    same_files, same_version = "Give every machine the same files, and start again.", "Install the same one on every machine."
    facts = [
        ("reads another text", task.fingerprint, same_files),
        ("has another vocabulary", task.vocabulary(), same_files),
        ("has another kind of device", task.device.type, "Type trainer.device=cpu, or leave out machines without a GPU."),
        ("multiplies in another precision", str(task.precision).removeprefix("torch."), "Type trainer.precision=float32."),
        ("has another version of lmtrain", __version__, same_version),
        ("has another version of PyTorch", torch.__version__.partition("+")[0], same_version),
    ]
    first, *others = group.everyones((socket.gethostname(), [value for _, value, _ in facts]))
    for rank, (host, values) in enumerate(others, 1):
        for (words, _, remedy), value, expected in zip(facts, values, first[1], strict=True):
            if value != expected:
                raise SettingsError(
                    f"Process {rank} of {group.size} (on {host}) {words} than the first one (on {first[0]}): {value[:12]}, not "
                    f"{expected[:12]}.",
                    "All of them train one model.",
                    remedy,
                )


class Follower(RunDirectory):
    """The run directory of the other processes: they write nothing, and it need not exist for them."""

    def note(self, **facts: Any) -> None:
        self.session |= facts

    def keep_settings(self, text: str) -> None:
        """The first process does."""

    def know_settings(self) -> None:
        """The first process does."""

    def make_again_if_removed(self) -> None:
        """The first process does."""


@contextmanager
def opened(path: Path, command_line: list[str], group: Group = ALONE, *, new: bool = False) -> Iterator[RunDirectory]:
    """Opens the run directory in the first process."""
    if not group.leads:
        yield Follower(path)
        return
    with open_run_directory(path, command_line, new=new) as run:
        yield run


def keep_for_restarts(group: Group, run: RunDirectory) -> None:
    """From now on, if torchrun starts the same processes again, they go on with this run."""
    if group.leads:
        remember_directory(group, str(run.path.resolve()))


def say_processes(group: Group, task: Task) -> str:
    """Says how many processes there are, and what each has."""
    total = task.batches.batch_size
    least, most = total // group.size, -(-total // group.size)
    streams = f"{least}" if least == most else f"{least} or {most}"
    judges = task.judges(group)
    validation = "the first one evaluates" if judges == 1 else f"{judges} of them share the streams of each evaluation"
    return f"{group.size} processes train together, with {streams} of the {total} streams each; {validation}."
