"""The directories that Hydra makes: nothing of others is overwritten in them, and a log and a record of the settings get in."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lmtrain.errors import SettingsError, UserError
from lmtrain.files.unfinished import write_atomically
from lmtrain.training.run_place import Place, is_from_hydra, refuse_what_is_not_ours
from lmtrain.training.run_record import find_runs


@dataclass(frozen=True)
class Sweep:
    """Where the runs of a sweep are made, and which were there before it."""

    directory: Path
    before: Set[Path]


_there_before: set[Path] | None = None  # the directories that were there, of those which Hydra may make; None: not known
_sweep: Sweep | None = None  # the sweep of this process, where it is one; jobs may run in others


class BeforeDirectoriesAreMade(Callback):
    """Hydra calls this (see conf/config.yaml) when all is composed and nothing is written."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a directory with what no run wrote."""
        global _there_before
        HydraConfig.instance().set_config(config)  # the directory may be made of its settings
        directory = _directory("hydra.run.dir", config.hydra.run.dir)
        _there_before = {path for path in (directory, *directory.parents) if os.path.exists(path)}
        if not config.resume:
            with _refusing():
                refuse_what_is_not_ours(directory)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a file that Hydra would overwrite; the jobs look at their own directories."""
        global _there_before, _sweep
        HydraConfig.instance().set_config(config)
        directory = _directory("hydra.sweep.dir", config.hydra.sweep.dir)
        _there_before = {path for path in directory.parents if os.path.exists(path)}
        for folder, below, _files in os.walk(directory):
            _there_before.add(Path(folder))
            if "checkpoints" in below:
                below.clear()
        before = find_runs([directory], lambda error: None)
        _sweep = Sweep(directory, {path.resolve() for path in before if any((path / "checkpoints").glob("*"))})
        file = directory / "multirun.yaml"
        if os.path.lexists(file) and not is_from_hydra(file):
            with _refusing():
                raise SettingsError(
                    f"{directory} holds a multirun.yaml, which no sweep of lmtrain wrote.",
                    "A sweep writes a file of this name, and overwrites nothing that it did not write.",
                    "Move it, or choose another directory: hydra.sweep.dir=DIRECTORY.",
                )


class RefusedError(BaseException):
    """Brings a UserError past Hydra, which makes a warning of an Exception of a callback, and adds a line to one of a job."""


def _directory(setting: str, given: str | None) -> Path:
    """The directory that was typed. An empty name, that of a variable which the shell does not know, would be where one is."""
    with _refusing():
        if not (given or "").strip():
            raise SettingsError(f"{setting} is empty.", "It names a directory.", f"Type {setting}=DIRECTORY, or leave it out.")
    return Path(os.path.abspath(given or ""))


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise RefusedError from error


@contextmanager
def past_hydra() -> Iterator[None]:
    """Within it Hydra runs; a UserError that was brought past it is raised as itself."""
    try:
        yield
    except RefusedError as refused:
        raise cast(UserError, refused.__cause__) from None


def take_sweep() -> Sweep | None:
    """The sweep that this process has begun since it was last asked."""
    global _sweep
    taken, _sweep = _sweep, None
    return taken


def directory_of_job() -> Path:
    """Where Hydra has this job run, as it stands: a `${` that is in it now is part of its name."""
    runtime = cast(dict[str, Any], OmegaConf.to_container(HydraConfig.get().runtime, resolve=False))
    return Path(runtime["output_dir"])


def place_of_job() -> Place:
    """The same as a place that a run which was refused can leave as it was."""
    return Place.of(directory_of_job(), there_before=_there_before)


def write_as_hydra_would(composed: DictConfig, directory: Path) -> None:
    """`.hydra/`, which Hydra writes without looking at what is there; so conf/ tells it to leave that to us."""
    given = HydraConfig.get()
    if given.output_subdir is None and "hydra.output_subdir=null" not in given.overrides.hydra:
        documents = {"hydra": HydraConfig.instance().cfg, "config": composed, "overrides": given.overrides.task}
        try:
            (directory / ".hydra").mkdir(exist_ok=True)
            for name, document in documents.items():
                write_atomically(directory / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(document))
        except (OSError, UserError) as error:
            logging.getLogger("lmtrain").warning("%s cannot be written (%s); it is only a record.", directory / ".hydra", error)


class LogFile(logging.FileHandler):
    """The log of a run, opened with its first line: when the directory is known to be ours. It never ends a run.

    A relative `filename` is one in the run directory.
    """

    def __init__(self, filename: str = os.devnull, **options: Any) -> None:
        super().__init__(directory_of_job() / filename, **{**options, "delay": True})

    def _open(self) -> Any:
        try:
            # A link is not followed, as it would lead to a file of somebody else; a pipe is not waited for.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.baseFilename, flags, 0o666)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise FileExistsError("it is no file")
            return os.fdopen(descriptor, "a", encoding=self.encoding, errors=self.errors)
        except OSError as error:
            if self.baseFilename != os.devnull:
                print(f"lmtrain: {self.baseFilename} cannot be written ({error}); nothing is logged there.", file=sys.stderr)
            return open(os.devnull, "a", encoding="utf-8")
