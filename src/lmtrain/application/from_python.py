"""A training in the process that asks for it, which may be a notebook, or another Hydra program."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lmtrain.application import jobs
from lmtrain.application.command import checked, is_one_of_several
from lmtrain.application.composing import PLAIN, register_schemas
from lmtrain.application.directories import LogFile, directory_of_job, past_hydra
from lmtrain.errors import SettingsError

if TYPE_CHECKING:
    from lmtrain.tasks.base import Reached

HYDRA_STATE = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
"""What Hydra keeps one of per process, and what a program's run sets."""


def train_here(overrides: Sequence[str]) -> tuple[Path, Reached | None]:
    """Trains in this process as the command line does with these overrides; the run directory and what it reached.

    Raises UserError where the command line would end with one. Another Hydra program around it keeps its own state.
    """
    if is_one_of_several():
        raise SettingsError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that this is one of several processes.",
            "lmtrain.train trains in one process; several are trained by the command line.",
            "Type  torchrun --nproc-per-node=2 -m lmtrain ...  , or unset WORLD_SIZE.",
        )
    if options := [override for override in overrides if override.startswith("-")]:
        raise SettingsError(
            f"{' '.join(options)} was given to lmtrain.train.",
            "It takes settings such as model=gru, and no options of the command line.",
            "For a sweep, call it once for each value.",
        )
    ended: list[tuple[Path, Reached | None] | Exception] = []

    def task(composed: DictConfig) -> None:
        directory = directory_of_job()
        with _logged(directory / "lmtrain.log"):
            try:
                ended.append((directory, jobs.train(composed, changes)))
            except Exception as error:  # raised below: Hydra's own are told apart from it
                ended.append(error)

    with _own_hydra():
        register_schemas()
        settings, changes = checked(overrides, [])
        try:
            with past_hydra():
                started = Hydra.create_main_hydra2("lmtrain", PLAIN.search_path())
                started.run(PLAIN.config_name, task, settings, with_log_configuration=False)
        except (OSError, HydraException, OmegaConfBaseException) as error:
            raise jobs.refused_by_hydra(error) from error
    (end,) = ended
    if isinstance(end, Exception):
        raise end
    return end


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra as if no program of this process had used it; afterwards it is again as that program has it."""
    kept: dict[type, Any] = {cls: Singleton._instances.pop(cls) for cls in HYDRA_STATE if cls in Singleton._instances}
    setbase("1.3")
    try:
        yield
    finally:
        for cls in HYDRA_STATE:
            Singleton._instances.pop(cls, None)
        Singleton._instances.update(kept)


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Lines of the log go to `file`, and to standard error unless the program that calls us has a log of its own."""
    logger = logging.getLogger("lmtrain")
    level, to_file = logger.level, LogFile(str(file), encoding="utf-8", errors="backslashreplace")
    to_file.setFormatter(logging.Formatter("[%(asctime)s] %(message)s"))
    handlers: list[logging.Handler] = [to_file, *([] if logger.hasHandlers() else [logging.StreamHandler(sys.stderr)])]
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
        to_file.close()
