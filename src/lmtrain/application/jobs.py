"""What Hydra runs: one training, or the jobs of a sweep; and what is said of them in the end.

A job of a sweep that fails does not keep the others from running; the sweep then ends with a list of those that failed.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf

from lmtrain.application.checking import with_start
from lmtrain.application.composing import PLAIN
from lmtrain.application.directories import (
    RefusedError,
    Sweep,
    past_hydra,
    place_of_job,
    take_sweep,
    write_as_hydra_would,
)
from lmtrain.application.overrides import keys_of, parse
from lmtrain.errors import ResourceError, SettingsError, UserError, check_address_space, is_out_of_memory
from lmtrain.settings import reading
from lmtrain.shell import printable
from lmtrain.terminal import warn
from lmtrain.training.run_place import refuse_what_is_not_ours
from lmtrain.training.run_record import NoRecordError, find_runs, read_run
from lmtrain.training.score import TOKENS

if TYPE_CHECKING:
    from lmtrain.tasks.base import Reached

VARIED = "LMTRAIN_VARIED"
"""The variable with the names of settings that differ between this run and others, where a search started it."""
IN_A_JOB = "This happened in a job, not before the first one."


def call_hydra(changes: Mapping[str, Any], swept: Set[str], varies: bool, alone: Sequence[str] | None = None) -> None:
    """Runs the job or jobs of `sys.argv`, a resumed one with `changes`; `varies`: whether their vocabularies may differ.

    `alone` holds the overrides of one training that nothing makes a sweep, where this is known. `hydra.main` would compose all
    settings once more to find that out, which takes a tenth of a second.

    What Hydra cannot do before the first job begins is a mistake in the settings.

    A sweep ends with the table of its runs, whoever ran them, then a list of the jobs that failed here, with their values of
    the `swept` settings; and with the exit code of such a one.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us as they are; Hydra would print them and exit with 1
    jobs: list[str] = []
    failures: list[str] = []

    def task(composed: DictConfig) -> float | None:
        typed, varied = HydraConfig.get().overrides.task, swept | _swept_by_files()
        jobs.append(" ".join(override for override, key in zip(typed, keys_of(typed), strict=True) if key in varied))
        try:
            with _read_to_the_end():
                best = train(composed, changes, varied)
        except Exception as error:
            if isinstance(error, UserError) and HydraConfig.get().mode is not RunMode.MULTIRUN:
                raise RefusedError from error  # past Hydra, which has words of its own; in a sweep the other jobs go on
            failures.append(f"  #{len(jobs) - 1}  {jobs[-1]}: {str(error) or type(error).__name__}")
            error.add_note(IN_A_JOB)  # also where it comes from another process, whose `jobs` are not these
            raise
        return None if best is None else searched(best, varies)

    try:
        with past_hydra():
            if alone is None:
                hydra.main(version_base="1.3", config_path=PLAIN.config_path, config_name=PLAIN.config_name)(task)()
            else:
                run_alone(task, alone)
    except (BrokenPipeError, UserError):
        raise  # `--cfg job | head`
    except Exception as error:  # before the first job nothing runs but Hydra
        if jobs or is_out_of_memory(error) or IN_A_JOB in getattr(error, "__notes__", ()):
            raise
        raise refused_by_hydra(error) from error
    finally:
        if (sweep := take_sweep()) is not None:
            _show_runs(sweep, failures=not failures)
        if failures and len(jobs) > 1:
            print(printable(f"\n{len(failures)} of {len(jobs)} jobs failed:\n" + "\n".join(failures)), file=sys.stderr)


@contextmanager
def _read_to_the_end() -> Iterator[None]:
    """A training whose output nobody reads any more has failed, where a command that prints has done its part."""
    try:
        yield
    except BrokenPipeError as error:
        raise ResourceError(
            "The training has stopped, because the reader of its output is gone.", "",
            "Send the output to a file, and read that:  > training.log 2>&1",
        ) from error  # fmt: skip


def run_alone(task: Callable[[DictConfig], object], overrides: Sequence[str]) -> None:
    """Calls `task` with what `overrides` compose, as `hydra.main` does where no option of Hydra was typed."""
    setbase("1.3")
    started = Hydra.create_main_hydra2("lmtrain", PLAIN.search_path())
    try:
        started.run(PLAIN.config_name, task, [*overrides, "hydra.mode=RUN"])
    finally:
        GlobalHydra.instance().clear()


def train(composed: DictConfig, changes: Mapping[str, Any], swept: Set[str] = frozenset()) -> Reached | None:
    """One job, which Hydra has composed: trains, or goes on with a run with `changes`. Returns the best that it reached."""
    check_address_space()
    from lmtrain.commands import train as training  # here: it imports torch
    from lmtrain.commands.together import Job, tell
    from lmtrain.distributed.launch import this_group

    logging.raiseExceptions = False  # a line of the log that cannot be written (a full disk) is no reason for a traceback
    settings = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, enum_to_str=True))
    place, group = place_of_job(), this_group()
    directory = place.path
    os.chdir(HydraConfig.get().runtime.cwd)  # where the command was typed, whatever hydra.job.chdir says: paths start there
    try:
        if settings["resume"]:
            tell(group, Job(None, directory, changes))
            return training.resume(directory, changes, group)
        refuse_what_is_not_ours(directory)
        started = with_start(settings, keys_of(HydraConfig.get().overrides.task))
        tell(group, Job(started, directory, {}))
        return training.train(
            reading.read_config(started),
            directory,
            lambda: write_as_hydra_would(composed, directory),
            group,
            _as_typed({*swept, *filter(None, os.environ.get(VARIED, "").split(","))}) or None,
        )
    except UserError:
        if not settings["resume"]:
            place.leave()  # a run that was refused before it began (its text, its device, its size) leaves nothing behind
        raise


def _as_typed(varied: Set[str]) -> dict[str, str]:
    """These settings, by name, with the values that were typed for this job; empty where none was."""
    typed = HydraConfig.get().overrides.task
    values = {key: override.partition("=")[2] for override, key in zip(typed, keys_of(typed), strict=True)}
    return {key: values.get(key, "") for key in sorted(varied)}


def _swept_by_files() -> set[str]:
    """The settings that a sweep varies because a file of settings says so (`hydra.sweeper.params`)."""
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        return set()
    params = HydraConfig.get().sweeper.get("params") or {}
    items = parse([f"{key}={value}" for key, value in params.items()])
    return {item.key_or_group for item in items if item.is_sweep_override()}


def searched(best: Reached, varies: bool) -> float:
    """What a sweeper that searches makes small.

    Nats per token compare jobs of one vocabulary. Where vocabularies vary, bits per character do, but only of models that
    spell every word; another one counts as infinitely bad, as otherwise the more words are unknown, the better it would look.
    Of other tasks it is the share that is wrong, or their loss.
    """
    if not varies or best.wording is not TOKENS:
        return best.wording.cost(best.value)
    if best.bits_per_character is not None:
        return best.bits_per_character
    if "BasicSweeper" not in HydraConfig.get().sweeper["_target_"]:
        print(
            f"lmtrain: The search varies the vocabulary, and this job does not spell {best.num_unk:,} <unk> of validation: "
            "it counts as infinitely bad. Search with tokenizer=byte, or with a fixed tokenizer and text.",
            file=sys.stderr,
        )
    return math.inf


def _show_runs(sweep: Sweep, *, failures: bool) -> None:
    """The table of the runs that a sweep made, read from their files; `failures`: with those that failed."""
    from lmtrain.commands.runs import format_runs

    records = []
    for path in find_runs([sweep.directory], lambda error: None):
        if path.resolve() not in sweep.before:
            try:
                records.append(read_run(path))
            except NoRecordError as problem:
                warn(f"{path} is left out of the table: {problem}.")
    if records:
        print(f"\n{printable(format_runs(records, failures=failures))}")


def refused_by_hydra(error: Exception) -> SettingsError:
    """What Hydra could not do before a job began, as a mistake in the settings."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return SettingsError(
            f"The run directory cannot be made: {error}.",
            "It must be a new path, or a directory, that you may write in.",
            "Choose another with hydra.run.dir=DIRECTORY (for a sweep hydra.sweep.dir=DIRECTORY).",
        )
    return SettingsError(
        f"Hydra refuses the settings: {str(error) or type(error).__name__}", "",
        "\nOptions of Hydra itself:  python -m lmtrain --hydra-help",
    )  # fmt: skip
