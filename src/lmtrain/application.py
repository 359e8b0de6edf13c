"""The Hydra application: the only file that knows Hydra.

Overrides are checked by `check_overrides` before Hydra acts on them, so that everything wrong with them is said at once, before
torch is imported and before a run directory appears. Hydra then composes `conf/`, makes the run directory and calls `train`.
A job of a sweep that fails does not keep the others from running; the sweep then ends with a list of those that failed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import logging
import math
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lmtrain.config as config
from lmtrain.errors import CheckpointError, SettingsError, UserError, check_address_space, is_out_of_memory
from lmtrain.files.unfinished import write_atomically
from lmtrain.settings import conflicts, quoting, reading
from lmtrain.shell import expanded, printable, quoted_for_shell
from lmtrain.terminal import warn
from lmtrain.training.run_place import Place, is_from_hydra, refuse_what_is_not_ours
from lmtrain.training.run_record import NoRecordError, find_runs, read_run
from lmtrain.training.score import TOKENS

if TYPE_CHECKING:
    from lmtrain.tasks.base import Reached

MAX_SWEEP = 10_000  # values of one setting

TAKES_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
               "--experimental-rerun")  # fmt: skip
MAY_TAKE_WORD = ("--info", "-i")
TAKES_NOTHING = ("--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
"""The options of Hydra itself."""

GROUPS = (*config.GROUPS, "task", "experiment")

IN_A_JOB = "This happened in a job, not before the first one."

PATHS = (
    "data.path",
    "data.train",
    "data.valid",
    "data.test",
    "model.embeddings",
    "data.cache_dir",
    "tokenizer.path",
    "tokenizer.vocabulary",
    "resume",
    "start_from",
    "hydra.run.dir",
    "hydra.sweep.dir",
)


@dataclass(frozen=True)
class Sources:
    """Where Hydra looks for files of settings: `conf/`, and what its own options and `hydra.searchpath` say."""

    config_name: str = "config"
    config_path: str = str(config.conf_directory())
    config_dir: str | None = None
    searchpath: tuple[str, ...] = ()  # the overrides of it


@functools.cache
def register_schemas() -> None:
    """Gives Hydra the typed settings, in a group of their own that no user chooses from."""
    store = ConfigStore.instance().store
    store(group="schema", name="config", node=config.Config)
    for group, classes in (
        ("model", config.KINDS[config.ModelConfig]),
        ("data", config.KINDS[config.DataConfig]),
        ("schedule", config.KINDS[config.ScheduleConfig]),
    ):
        for cls in classes:
            store(group=f"schema/{group}", name=getattr(cls, "kind"), node=cls)
    store(group="schema/tokenizer", name="tokenizer", node=config.TokenizerConfig)
    store(group="schema/optimizer", name="optimizer", node=config.OptimizerConfig)
    store(group="schema/trainer", name="trainer", node=config.TrainerConfig)


def run(arguments: Sequence[str]) -> None:
    """`python -m lmtrain` without a command: checks the overrides, then lets Hydra train, sweep or show.

    Of several processes that torchrun started, the first one does; the others train what it tells them.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        _run(arguments)
        return
    check_address_space()
    from lmtrain.commands.together import follow, tell
    from lmtrain.distributed.launch import joined, remembered_directory

    with joined() as group:
        if not group.leads:
            follow(group)
            return
        _run(_going_on(arguments, remembered_directory(group)))
        tell(group, None)


def _going_on(arguments: Sequence[str], directory: str | None) -> Sequence[str]:
    """The command line of a start by torchrun; where an earlier one made a run, the one that goes on with it."""
    if directory is None:
        return arguments
    of_hydra = [word for word in arguments if word.lstrip("+").startswith(("hydra.", "hydra/"))]
    return [f"resume={quoting.quoted(directory)}", *(word for word in of_hydra if not word.startswith("hydra.run.dir"))]


def _run(arguments: Sequence[str]) -> None:
    _refuse_other_options(arguments)
    register_schemas()
    overrides = _overrides(arguments)
    options = [argument for argument in arguments if argument not in overrides]
    _refuse_several_purposes(options)
    changes: dict[str, Any] = {}
    if not {"--hydra-help", "--shell-completion", "-sc"} & set(options):
        overrides, changes = _checked(overrides, options)
    # Overrides first: argparse takes them from one place only, and we do not want to mind where they were typed.
    sys.argv = [sys.argv[0], *overrides, *options]
    swept = {item.key_or_group for item in _parse(overrides) if item.is_sweep_override()}
    _refuse_sweep_of_several_processes(options)
    _call_hydra(changes, swept, varies=bool(swept) and _varies_vocabulary(overrides, options))


def _checked(overrides: Sequence[str], options: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides for Hydra, checked; and the settings to be changed in a run that goes on."""
    overrides = [_with_path_as_meant(item, override) for item, override in zip(_parse(overrides), overrides, strict=True)]
    resumed = _resumed_run(overrides)
    if resumed is None:
        _check_new_run(overrides, options)
        return overrides, {}
    return _in_its_own_directory(resumed, overrides, options), _given_values(overrides)


def read_settings(overrides: Sequence[str]) -> config.Config:
    """The settings of a training that `overrides` would start, for a command that trains nothing."""
    register_schemas()
    parsed = _parse(overrides)
    reading.raise_problems(
        [f"{item.input_line} gives several values; one is looked at here." for item in parsed if item.is_sweep_override()]
        + [f"{item.input_line} is a setting of Hydra, which has no part here." for item in parsed if item.is_hydra_override()]
    )
    overrides = [_with_path_as_meant(item, override) for item, override in zip(parsed, overrides, strict=True)]
    if (resumed := _resumed_run(overrides)) is not None:
        raise SettingsError(
            f"resume={resumed} names a run, which goes on by training.", "", "Give its data instead: data=... data.path=... ."
        )
    return reading.read_config(check_overrides(overrides))


def _resumed_run(overrides: Sequence[str]) -> str | None:
    """The run that `resume=` names. Raises SettingsError where it names several."""
    items = [item for item in _parse(overrides) if item.key_or_group == "resume"]
    if any(item.is_sweep_override() for item in items):
        raise SettingsError(
            f"{items[-1].input_line} names several runs.",
            "One run goes on at a time.",
            "Type resume=RUN for each of them; a path with commas is quoted twice: 'resume=\"a, b\"'.",
        )
    named = _resolved_value(items[-1]) if items else None
    return named if isinstance(named, str) and named else None


def _resolved_value(item: Override) -> Any:
    """The value of an override that is none of a sweep, with every `${...}` in it replaced."""
    problems: list[str] = []
    return _resolve({"value": item.value()}, problems)["value"]


def _with_path_as_meant(item: Override, override: str) -> str:
    """An override that sets a path: `resume=123` names a run and no number; `hydra.run.dir=~/runs` is in the home directory.

    Behind `=` the shell leaves `~` to us. Where we open the file ourselves, it is replaced there.
    """
    if item.key_or_group not in PATHS or item.is_sweep_override() or item.is_delete():
        return override
    key, _, text = override.partition("=")
    value = item.value()
    if isinstance(value, int | float):
        return f"{key}={quoting.quoted(text.strip())}"
    if isinstance(value, str) and value.startswith("~") and item.is_hydra_override():
        name, slash, rest = value.partition("/")
        return f"{key}={quoting.in_quotation_marks(quoting.escaped(str(expanded(name))) + slash + rest)}"
    return override


def _check_new_run(overrides: Sequence[str], options: Sequence[str]) -> None:
    """All that is refused or remarked before anything is done."""
    settings = reading.read_config(check_overrides(overrides, _sources(overrides, options)))
    _refuse_sweep_unless_asked_for(overrides, options)
    for note in conflicts.iter_idle(settings, [override.partition("=")[0].lstrip("+") for override in overrides]):
        warn(note)


def _refuse_sweep_of_several_processes(options: Sequence[str]) -> None:
    """Several processes train one model together."""
    if {"-m", "--multirun"} & set(options) and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise SettingsError(
            f"-m was given to one of several processes (WORLD_SIZE={os.environ['WORLD_SIZE']}).",
            "torchrun starts the processes of one training.",
            "Leave -m out and call torchrun once for each run, or start the sweep without torchrun.",
        )


def _refuse_other_options(arguments: Sequence[str]) -> None:
    """`--lr 0.1`: neither ours nor Hydra's."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.startswith("-") and name not in (*TAKES_VALUE, *MAY_TAKE_WORD, *TAKES_NOTHING):
            example = f"{name.lstrip('-')}={value or 'VALUE'}" if "." in name else "optimizer.learning_rate=0.1"
            raise SettingsError(
                f"{argument} is not an option of training.",
                "Settings are written key=value, without dashes.",
                f"Type for example  python -m lmtrain {example};  all settings:  python -m lmtrain settings",
            )


def _refuse_several_purposes(options: Sequence[str]) -> None:
    """Hydra trains, sweeps, shows the settings or shows something else; and refuses two of these with a ValueError."""
    given = {option.partition("=")[0] for option in options}
    purposes = [next(name for name in names if name in given) for names in PURPOSES if given & set(names)]
    if len(purposes) > 1:
        raise SettingsError(
            f"{' and '.join(purposes)} were given together.", "Each of them does something else.",
            f"Leave {' or '.join(purposes)} out.",
        )  # fmt: skip
    if "--resolve" in given and not {"--cfg", "-c"} & given:
        raise SettingsError("--resolve was given without --cfg.", "It says how settings are shown.", "Type --cfg job as well.")


PURPOSES = (("--run", "-r"), ("--multirun", "-m"), ("--cfg", "-c"), ("--info", "-i"), ("--shell-completion", "-sc"))


def _sources(overrides: Sequence[str], options: Sequence[str]) -> Sources:
    """Where Hydra will look, by its options and overrides. Raises SettingsError for a directory that does not exist."""
    parser = argparse.ArgumentParser(add_help=False)
    for long, short in (("--config-name", "-cn"), ("--config-path", "-cp"), ("--config-dir", "-cd"), ("--cfg", "-c")):
        parser.add_argument(long, short, default=argparse.SUPPRESS)
    given = vars(parser.parse_known_args(list(options))[0])
    given.pop("cfg", None)  # it is here only so that -c is no abbreviation of another
    directory = given.get("config_dir")
    if directory is not None and not os.path.isdir(directory):
        raise SettingsError(
            f"--config-dir {directory} is not a directory.", "It holds groups of settings as conf/ does.", "Check the path."
        )
    given |= {} if directory is None else {"config_dir": os.path.abspath(directory)}
    searchpath = [override for override in overrides if override.partition("=")[0] == "hydra.searchpath"]
    return Sources(**given, searchpath=tuple(searchpath))


def _refuse_sweep_unless_asked_for(overrides: Sequence[str], options: Sequence[str]) -> None:
    if not {"-m", "--multirun"} & set(options) and not any("hydra.mode" in override for override in overrides):
        reading.raise_problems(
            [
                f"{item.input_line} gives several values. To train once for each, type -m as well; for one value with commas "
                f"in it, quote it twice: {quoting.typed(item.key_or_group, (item.input_line or '').partition('=')[2])}"
                for item in _parse(overrides)
                if item.is_sweep_override()
            ]
        )


def _in_its_own_directory(resumed: str, overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """The overrides with which Hydra goes on in the directory of the run; what it wrote there at the start stays as it is."""
    elsewhere = [o for o in overrides if o.startswith(("hydra.run.dir=", "hydra.sweep.", "hydra.mode"))]
    elsewhere += [option for option in options if option in ("-m", "--multirun")]
    if elsewhere:
        raise SettingsError(
            f"{' '.join(elsewhere)} was given together with resume=.",
            "A run goes on in its own directory, one run at a time.",
            f"Leave {' '.join(elsewhere)} out.",
        )
    directory = expanded(resumed).resolve()
    if not (directory / "settings.json").is_file():  # before Hydra makes it
        raise CheckpointError(
            f"resume={resumed} is not a run directory: {directory} holds no settings.json.",
            "A run directory is what a training wrote under outputs/.",
            "Type resume=outputs/RUN; to use a single checkpoint, see  python -m lmtrain sample --help.",
        )
    place = quoting.quoted(str(directory))
    of_hydra = [override for override in overrides if override.lstrip("+").startswith(("hydra.", "hydra/"))]
    return [f"resume={place}", f"hydra.run.dir={place}", "hydra.output_subdir=null", *of_hydra]


def _call_hydra(changes: Mapping[str, Any], swept: Set[str], varies: bool) -> None:
    """Runs the job or jobs of `sys.argv`, a resumed one with `changes`; `varies`: whether their vocabularies may differ.

    What Hydra cannot do before the first job begins is a mistake in the settings.

    A sweep ends with the table of its runs, whoever ran them, then a list of the jobs that failed here, with their values of
    the `swept` settings; and with the exit code of such a one.
    """
    global _sweep
    _sweep = None
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us as they are; Hydra would print them and exit with 1
    jobs: list[str] = []
    failures: list[str] = []

    def task(composed: DictConfig) -> float | None:
        jobs.append(" ".join(o for o in HydraConfig.get().overrides.task if o.partition("=")[0].lstrip("+") in swept))
        try:
            best = _train(composed, changes)
        except Exception as error:
            if isinstance(error, UserError) and HydraConfig.get().mode is not RunMode.MULTIRUN:
                raise _RefusedError from error  # past Hydra, which has words of its own; in a sweep the other jobs go on
            failures.append(f"  #{len(jobs) - 1}  {jobs[-1]}: {str(error) or type(error).__name__}")
            error.add_note(IN_A_JOB)  # also where it comes from another process, whose `jobs` are not these
            raise
        return None if best is None else _searched(best, varies)

    try:
        hydra.main(version_base="1.3", config_path=str(config.conf_directory()), config_name="config")(task)()
    except (BrokenPipeError, UserError):
        raise  # `--cfg job | head`
    except _RefusedError as refused:
        raise cast(UserError, refused.__cause__) from None
    except Exception as error:  # before the first job nothing runs but Hydra
        if jobs or is_out_of_memory(error) or IN_A_JOB in getattr(error, "__notes__", ()):
            raise
        raise _of_hydra(error) from error
    finally:
        if _sweep is not None:
            _show_runs(_sweep, failures=not failures)
        if failures and len(jobs) > 1:
            print(printable(f"\n{len(failures)} of {len(jobs)} jobs failed:\n" + "\n".join(failures)), file=sys.stderr)


def _varies_vocabulary(overrides: Sequence[str], options: Sequence[str]) -> bool:
    """Whether the jobs of a sweep may have different vocabularies, because tokenizer or text vary."""
    parsed, problems, sources = _parse(overrides), list[str](), _sources(overrides, options)
    first = _composed(parsed, {}, problems, sources)
    return any(
        {**variant[group], "cache_dir": None} != {**first[group], "cache_dir": None}
        for variant in _iter_variants(first, parsed, problems, sources)
        for group in ("tokenizer", "data")
    )


def _searched(best: Reached, varies: bool) -> float:
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


def _show_runs(sweep: _Sweep, *, failures: bool) -> None:
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


def _of_hydra(error: Exception) -> SettingsError:
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


def _overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither one of Hydra's own options nor the value of one."""
    before = ["", *arguments]
    return [
        argument
        for previous, argument in zip(before, arguments, strict=False)
        if not argument.startswith("-")
        and previous not in TAKES_VALUE
        and not (previous in MAY_TAKE_WORD and "=" not in argument)
    ]


def _train(composed: DictConfig, changes: Mapping[str, Any]) -> Reached | None:
    check_address_space()
    from lmtrain.commands.together import Job, tell
    from lmtrain.commands.train import resume, train  # here: it imports torch
    from lmtrain.distributed.launch import this_group

    logging.raiseExceptions = False  # a line of the log that cannot be written (a full disk) is no reason for a traceback
    settings = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    settings = cast(dict[str, Any], settings)
    directory = _directory_of_job()
    os.chdir(HydraConfig.get().runtime.cwd)  # where the command was typed, whatever hydra.job.chdir says: paths start there
    place = Place.of(directory, there_before=_there_before)
    group = this_group()
    try:
        if settings["resume"]:
            tell(group, Job(None, directory, changes))
            return resume(directory, changes, group)
        refuse_what_is_not_ours(directory)
        typed = [override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task]
        started = _started(settings, typed)
        tell(group, Job(started, directory, {}))
        return train(reading.read_config(started), directory, lambda: _write_as_hydra_would(composed, directory), group)
    except UserError:
        if not settings["resume"]:
            place.leave()  # a run that was refused before it began (its text, its device, its size) leaves nothing behind
        raise


def _directory_of_job() -> Path:
    """Where Hydra has this job run, as it stands: a `${` that is in it now is part of its name."""
    runtime = cast(dict[str, Any], OmegaConf.to_container(HydraConfig.get().runtime, resolve=False))
    return Path(runtime["output_dir"])


def _write_as_hydra_would(composed: DictConfig, directory: Path) -> None:
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


_there_before: set[Path] | None = None  # the directories that were there, of those which Hydra may make; None: not known


@dataclass(frozen=True)
class _Sweep:
    """Where the runs of a sweep are made, and which were there before it."""

    directory: Path
    before: Set[Path]


_sweep: _Sweep | None = None  # the sweep of this process, where it is one; jobs may run in others


class BeforeDirectoriesAreMade(Callback):
    """Hydra calls this (see conf/config.yaml) when all is composed and nothing is written."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a directory with what no run wrote."""
        global _there_before
        HydraConfig.instance().set_config(config)  # the directory may be made of its settings
        directory = Path(os.path.abspath(config.hydra.run.dir))
        _there_before = {path for path in (directory, *directory.parents) if path.exists()}
        if not config.resume:
            with _refusing():
                refuse_what_is_not_ours(directory)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuses a file that Hydra would overwrite; the jobs look at their own directories."""
        global _there_before, _sweep
        HydraConfig.instance().set_config(config)
        directory = Path(os.path.abspath(config.hydra.sweep.dir))
        _there_before = {path for path in directory.parents if path.exists()}
        for folder, below, _files in os.walk(directory):
            _there_before.add(Path(folder))
            if "checkpoints" in below:
                below.clear()
        before = find_runs([directory], lambda error: None)
        _sweep = _Sweep(directory, {path.resolve() for path in before if any((path / "checkpoints").glob("*"))})
        file = directory / "multirun.yaml"
        if os.path.lexists(file) and not is_from_hydra(file):
            with _refusing():
                raise SettingsError(
                    f"{directory} holds a multirun.yaml, which no sweep of lmtrain wrote.",
                    "A sweep writes a file of this name, and overwrites nothing that it did not write.",
                    "Move it, or choose another directory: hydra.sweep.dir=DIRECTORY.",
                )


class _RefusedError(BaseException):
    """Brings a UserError past Hydra, which makes a warning of an Exception of a callback, and adds a line to one of a job."""


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise _RefusedError from error


class LogFile(logging.FileHandler):
    """The log of a run, opened with its first line: when the directory is known to be ours. It never ends a run.

    A relative `filename` is one in the run directory.
    """

    def __init__(self, filename: str = os.devnull, **options: Any) -> None:
        super().__init__(_directory_of_job() / filename, **{**options, "delay": True})

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


def check_overrides(overrides: Sequence[str], sources: Sources = Sources()) -> dict[str, Any]:
    """The settings that `overrides` compose; SettingsError with everything wrong in one message.

    Sweeps (`model=lstm,gru`) are checked value by value; the mapping returned is that of the first values.
    """
    problems: list[str] = []
    parsed = _parse(overrides)
    reading.raise_problems(
        [
            f"{item.input_line} would remove a setting, or put a group elsewhere. Set it to another value, or to null."
            for item in parsed
            if (item.is_delete() or item.package is not None) and not item.is_hydra_override()
        ]
    )
    for item in parsed:
        if _is_group(item, sources):
            problems.extend(_check_choices(item, sources))
    reading.raise_problems(problems)
    settings = _composed(parsed, {}, problems, sources)
    for variant in [settings, *([] if problems else _iter_variants(settings, parsed, problems, sources))]:
        try:
            reading.read_config(_started(variant, [item.key_or_group for item in parsed]))
        except reading.SettingsProblemsError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)
    reading.raise_problems(problems)
    return dict(_started(settings, [item.key_or_group for item in parsed]))


def _started(settings: Mapping[str, Any], typed: Sequence[str]) -> Mapping[str, Any]:
    """The settings with those of the model that `start_from` names."""
    if settings.get("start_from") is settings.get("start_from_new_tokens") is None:
        return settings
    from lmtrain.tasks.start_settings import with_start  # here: it imports torch

    return with_start(settings, typed)


def _composed(parsed: Sequence[Override], chosen: Mapping[str, Any], problems: list[str], sources: Sources) -> dict[str, Any]:
    """The settings with the first value of every override, but for the groups `chosen`; appends to `problems`."""
    groups = {item.key_or_group: item for item in parsed if _is_group(item, sources)}
    first = {key: _values(item, sources)[0] for key, item in groups.items()}
    overrides = [f"{'+' * groups[key].is_add()}{key}={_choice(value)}" for key, value in (first | dict(chosen)).items()]
    settings = copy.deepcopy(_compose(sources, tuple(overrides)))
    for item in parsed:
        if item.key_or_group not in groups and not item.is_hydra_override():
            problem = _apply(settings, item, sources)
            if problem and problem not in problems:
                problems.append(problem)
    return _resolve(settings, problems)


def _resolve(settings: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """`settings` with every `${...}` replaced. Only what was typed here is resolved, never what a checkpoint says."""
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(settings), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        problems.append(f"The settings cannot be resolved: {str(error).partition(chr(10))[0].rstrip('.')}.")
        reading.raise_problems(problems)
    return cast(dict[str, Any], resolved)


def _iter_variants(
    settings: dict[str, Any], parsed: Sequence[Override], problems: list[str], sources: Sources
) -> Iterator[dict[str, Any]]:
    """The settings with each further value of a sweep."""
    for item in parsed:
        if item.is_hydra_override() or not item.is_sweep_override():
            continue
        if _is_group(item, sources):
            for value in dict.fromkeys(_values(item, sources)[1:]):
                yield _composed(parsed, {item.key_or_group: value}, problems, sources)
        else:
            *parents, name = item.key_or_group.split(".")
            for value in _values(item, sources)[1:]:
                variant = node = copy.deepcopy(settings)
                for parent in parents:
                    node = node[parent]
                node[name] = value
                yield variant


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser, parsed, problems = OverridesParser.create(), [], []
    for override in overrides:
        try:
            parsed.extend(parser.parse_overrides([override]))
        except HydraException:
            problems.append(_unreadable(override))
    reading.raise_problems(problems)
    return parsed


def _unreadable(override: str) -> str:
    """Why Hydra does not take `override` for key=value, and what to type instead."""
    key, equal, value = override.partition("=")
    if not equal:
        return (
            f"{override!r} is not key=value. Is it part of a value with blanks? Quote such a value: "
            f"{quoting.typed('data.path', 'my text.txt')}"
        )
    if not re.fullmatch(r"[+~]*[\w/@$-]+(\.[\w/@$-]+)*", key, re.ASCII):
        return f"{override!r} does not begin with the name of a setting. See  python -m lmtrain settings"
    line = (
        quoted_for_shell(f"{key}={quoting.in_quotation_marks(value)}")
        if key.startswith("hydra.")
        else quoting.typed(key, value)
    )
    return (
        f"{override!r} cannot be read as key=value. Quote a value of other characters than letters from a to z, digits and "
        f"_ - . / : twice, once for the shell and once for the settings: {line}"
    )


def _is_group(item: Override, sources: Sources) -> bool:
    """Whether an override chooses a file of settings; Hydra asks in the same way."""
    key = item.key_or_group
    return not item.is_hydra_override() and (key in GROUPS or ("." not in key and bool(_choices(sources, key))))


def _check_choices(item: Override, sources: Sources) -> list[str]:
    """Group choices that do not exist."""
    group, problems = item.key_or_group, []
    for value in _values(item, sources):
        for name in value if isinstance(value, list) else [value]:
            text = "null" if name is None else str(name)
            parent, _, last = f"{group}/{text}".removesuffix(".yaml").rpartition("/")
            if last not in _choices(sources, parent):
                allowed = list(_choices(sources, group))
                problems.append(
                    f"{group}={text} does not exist; allowed are {', '.join(allowed)}" + reading.nearest(text, allowed)
                )
            elif not isinstance(name, str):
                problems.append(f"{group}={text} is read as a number, not as a name. Quote it: {quoting.typed(group, text)}")
    return problems


@functools.cache
def _choices(sources: Sources, group: str) -> tuple[str, ...]:
    """The files of settings in a group, wherever Hydra looks."""
    with _initialised(sources) as started:
        options = started.config_loader.get_group_options(
            group, ObjectType.CONFIG, config_name=sources.config_name, overrides=list(sources.searchpath)
        )
    return tuple(sorted(options))


def _choice(value: Any) -> str:
    """A choice of a group, or a list of some, as Hydra reads it."""
    return f"[{','.join(map(_choice, value))}]" if isinstance(value, list) else quoting.quoted(value)


def _values(item: Override, sources: Sources) -> list[Any]:
    """All values of an override: several in a sweep. Raises SettingsError where there is none, or no end of them."""
    match item.value():
        case Glob() as pattern:
            values: list[Any] = pattern.filter(list(_choices(sources, item.key_or_group)))
        case IntervalSweep(start=start, end=end):  # only for sweepers that search
            values = [int(bound) if bound.is_integer() else bound for bound in map(float, (start or 0, end or 0))]
        case RangeSweep() as steps:
            values = list(itertools.islice(steps.range(), MAX_SWEEP + 1)) if steps.step else []
        case ChoiceSweep() as choice:
            values = [value.text if isinstance(value, QuotedString) else value for value in choice.list]
        case value:
            values = [value]
    if not 1 <= len(values) <= MAX_SWEEP:
        reading.raise_problems([f"{item.input_line} stands for no value, or for more than {MAX_SWEEP:,}."])
    return values


@functools.cache  # a tenth of a second each; a sweep asks for the same choices many times
def _compose(sources: Sources, group_overrides: tuple[str, ...]) -> dict[str, Any]:
    """The settings that Hydra composes, `${...}` as they are written."""
    try:
        with _initialised(sources) as started:
            composed = started.compose_config(
                config_name=sources.config_name, overrides=[*sources.searchpath, *group_overrides], run_mode=RunMode.RUN,
                from_shell=False, with_log_configuration=False,
            )  # fmt: skip
        HydraConfig.instance().set_config(composed)  # for ${hydra:runtime.cwd} in a value
        settings = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _does_not_compose(str(error)) from None
    assert isinstance(settings, dict)
    del settings["hydra"]
    return cast(dict[str, Any], settings)


@contextmanager
def _initialised(sources: Sources) -> Iterator[Hydra]:
    """Hydra as `hydra.main` starts it, without its words on directories that are missing: it says them itself later."""
    path = create_automatic_config_search_path(__file__, None, sources.config_path)
    if sources.config_dir is not None:
        directory, anchor = f"file://{sources.config_dir}", SearchPathQuery(provider="schema")
        path.prepend(provider="command-line", path=directory, anchor=anchor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield Hydra.create_main_hydra2(task_name="lmtrain", config_search_path=path)
        finally:
            GlobalHydra.instance().clear()


def _does_not_compose(problem: str) -> SettingsError:
    """Hydra's words, or ours where an experiment sets what another choice of group does not have."""
    setting, file = re.search(r"full_key: (\S+)", problem), re.search(r"In '([^']+)'", problem)
    if setting and file:
        group = setting[1].split(".")[0]
        return SettingsError(
            f"{file[1]} sets {setting[1]}, which the {group} that was chosen beside it does not have.",
            "",
            f"Leave out {group}=..., or write the experiment's other settings on the command line instead of experiment=.",
        )
    return SettingsError(f"The settings do not compose: {problem}", "", "Check the files of settings that were chosen.")


def _apply(settings: dict[str, Any], item: Override, sources: Sources) -> str | None:
    """Sets one value in `settings`; what is wrong with it in words."""
    key = item.key_or_group
    *parents, name = key.split(".")
    if name == "kind":
        return f"{key} cannot be set by itself. Choose the group: {parents[-1]}=NAME."
    node: Any = settings
    for parent in parents:
        node = node.get(parent) if isinstance(node, Mapping) else None
    if not isinstance(node, dict) or name not in node:
        return reading.unknown_setting(key, list(_all_keys(settings)))
    if isinstance(node[name], dict):
        return f"{key} is a group of settings. Set one of them, for example {key}.{next(iter(node[name]))}=..."
    node[name] = _values(item, sources)[0]
    return None


def _all_keys(settings: Mapping[str, Any], path: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in settings.items():
        keys.append(path + name)
        if isinstance(value, Mapping):
            keys.extend(_all_keys(value, f"{path}{name}."))
    return keys


def _given_values(overrides: Sequence[str]) -> dict[str, Any]:
    """`key: value` of the overrides given beside `resume=`; whole groups cannot be exchanged then.

    They are compared with the settings of the run, not with the defaults: see `lmtrain.commands.train.resume`.
    """
    values: dict[str, Any] = {}
    for item in _parse(overrides):
        if item.key_or_group in GROUPS or item.is_delete() or item.package is not None or item.is_sweep_override():
            raise SettingsError(
                f"{item.input_line} was given together with resume=.",
                "A resumed run keeps its groups of settings; single values may be set.",
                f"Type for example {item.key_or_group}.NAME=VALUE, or leave it out.",
            )
        if item.key_or_group != "resume" and not item.is_hydra_override():
            values[item.key_or_group] = _resolved_value(item)
    return values


# ---- from Python


def train_here(overrides: Sequence[str]) -> tuple[Path, Reached | None]:
    """Trains in this process as the command line does with these overrides; the run directory and what it reached.

    Raises UserError where the command line would end with one. Another Hydra program around it keeps its own state.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
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
    ended: list[tuple[Path, Reached | None] | UserError] = []

    def task(composed: DictConfig) -> None:
        directory = _directory_of_job()
        with _logged(directory / "lmtrain.log"):
            try:
                ended.append((directory, _train(composed, changes)))
            except UserError as error:
                ended.append(error)

    with _own_hydra():
        register_schemas()
        checked, changes = _checked(overrides, [])
        _refuse_sweep_unless_asked_for(checked, [])
        path = create_automatic_config_search_path(__file__, None, str(config.conf_directory()))
        try:
            Hydra.create_main_hydra2("lmtrain", path).run("config", task, checked, with_log_configuration=False)
        except _RefusedError as refused:
            raise cast(UserError, refused.__cause__) from None
        except (OSError, HydraException, OmegaConfBaseException) as error:
            raise _of_hydra(error) from error
    (end,) = ended
    if isinstance(end, UserError):
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


HYDRA_STATE = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
"""What Hydra keeps one of per process, and what a program's run sets."""


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
