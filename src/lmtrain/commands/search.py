"""`python -m lmtrain search SPACE.yaml` looks for the best settings, by Optuna's tree-structured Parzen estimator.

Each trial is a training of its own, in a process of its own and in a directory of its own, so that nothing that goes wrong in
it ends the search. Its result is read from its records. A trial that is worse at an evaluation than the median of the others
was at the same one is ended there. Any number of processes may search the same study at the same time: start the command
several times. A study that exists goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lmtrain.config as config
from lmtrain.commands.options import Parser, whole
from lmtrain.commands.search_space import Space, experiment, read_space
from lmtrain.errors import ResourceError, SettingsError, UserError, is_full, unwritable
from lmtrain.files.unfinished import write_atomically
from lmtrain.progress import watched
from lmtrain.quantity import counted
from lmtrain.settings import quoting
from lmtrain.settings.reading import SettingsProblemsError, read_config
from lmtrain.shell import expanded, one_line, printable, quoted_for_shell, shown
from lmtrain.terminal import PARENT, warn
from lmtrain.training.run_record import NoRecordError, RunRecord, read_run

EPILOG = """a space (the file SPACE.yaml):
  settings:                      # the same in every trial; may be left out
    data: text
    data.path: my.txt
    trainer.max_seconds: 60
  space:
    model: [gru, lstm]           # one of these
    model.hidden_size: {low: 64, high: 512, log: true}             # a whole number, as both bounds are
    model.num_layers: {low: 1, high: 3}
    optimizer.learning_rate: {low: 0.0005, high: 0.02, log: true}  # any number; log: evenly in the logarithm
    model.dropout: {low: 0.0, high: 0.6, step: 0.1}

Values that the rules of the settings refuse count as a failed trial, with the reason. The best settings come out as
DIR/experiment/best.yaml, which  python -m lmtrain --config-dir DIR experiment=best  trains again; all trials stand in the
table of  python -m lmtrain runs DIR ."""

MAX_FAILURES = 5  # one after the other, before anything has succeeded
POLL_SECONDS = 0.2
DRAWN = 20  # points of the space, of which one at least must be settings


class TrialError(Exception):
    """Says why a trial has no value."""


class RefusedError(TrialError):
    """Is raised for settings that exclude each other. That concerns one trial, and says nothing about the others."""


class PrunedError(Exception):
    """Is raised for a trial that was worse at an evaluation than most."""


def main(arguments: list[str]) -> None:
    """Searches until the study has as many trials as are asked for."""
    parser = Parser("search", __doc__, EPILOG)
    parser.add_argument("space", metavar="SPACE", help="the YAML file with what is searched, see below")
    parser.add_argument("--trials", type=whole(1), default=20, help="of the whole study, whoever makes them (default: 20)")
    parser.add_argument("--storage", metavar="URL", help="of the study (default: sqlite:///DIR/study.db)")
    parser.add_argument("--study", metavar="NAME", help="its name in the storage (default: that of the file SPACE)")
    parser.add_argument("--directory", metavar="DIR", help="of the runs (default: outputs/search_STUDY)")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), help="of the search; for one process alone (default: none)")
    parser.add_argument("--no-pruning", action="store_true", help="ends no trial before its end")
    parser.add_argument("--set", nargs="+", default=[], metavar="SETTING", help="more settings of every trial: key=value")
    options = parser.parse_args(arguments)
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise SettingsError(
            f"search was given to one of several processes (WORLD_SIZE={os.environ['WORLD_SIZE']}).",
            "torchrun starts the processes of one training; each trial of a search is a training of its own.",
            "Start the search without torchrun, and once more beside it for each further process: they share the study.",
        )  # fmt: skip
    _need_optuna()
    space = read_space(expanded(options.space))
    name = options.study or Path(options.space).stem
    directory = expanded(options.directory or f"outputs/search_{name}")
    search = Search(space, options.set, directory, name, options.storage, options.seed, not options.no_pruning)
    try:
        search.run(options.trials)
    finally:
        search.conclude()


def _need_optuna() -> None:
    if find_spec("optuna") is None:
        raise SettingsError(
            "search needs the package optuna, which is not installed.", "It comes with lmtrain's extra `search`.",
            "Type  pip install 'optuna>=4'",
        )  # fmt: skip


class Search:
    """One process of a search: it asks the study for values, trains with them, and reports the result."""

    def __init__(
        self, space: Space, typed: list[str], directory: Path, name: str, storage: str | None, seed: int | None, prunes: bool
    ) -> None:
        self._space, self._typed, self._directory = space, typed, directory
        self._application: Any = import_module("lmtrain.application")  # by name, because it is above commands
        self._application.register_schemas()
        self._check()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_full(error):
                raise unwritable(f"--directory {one_line(str(directory))}", error) from error
            raise SettingsError(
                f"--directory {one_line(str(directory))} cannot be used: {error.strerror}.",
                "The runs of the trials are kept in it.", "Give a directory that you may write in.",
            ) from error  # fmt: skip
        url = storage or f"sqlite:///{directory / 'study.db'}"
        self._study = _open_study(url, name, seed, prunes)
        self._agree()

    # ---- before the first trial

    def _settings_of(self, values: Mapping[str, Any]) -> config.Config:
        """Returns the settings of a trial. Raises SettingsError for those that the rules refuse."""
        return read_config(self._application.check_overrides([*self._space.overrides(values), *self._typed]))

    def _check(self) -> None:
        """SettingsError where no point of the space makes settings: then a name is wrong, or a setting is lacking."""
        from random import Random

        for override in self._typed:
            key = override.partition("=")[0]
            if override.startswith(("hydra", "+", "~")) or key == "resume" or key in self._space.space:
                raise SettingsError(
                    f"--set {one_line(override)} cannot be the same in every trial.",
                    "Set is what the space does not vary: settings such as trainer.max_seconds=60.", "Leave it out.",
                )  # fmt: skip
        random, problem = Random(1), SettingsError("", "", "")
        for number in range(DRAWN):
            trial = _Drawn(random, number)
            try:
                self._settings_of({name: where.suggest(trial, name) for name, where in self._space.space.items()})
                return
            except SettingsError as error:
                problem = problem if problem.given else error
        raise SettingsError(f"No trial of this space can be trained. {problem}", "", "")

    def _agree(self) -> None:
        """Remembers in the study what is searched. Raises SettingsError if it searches something else."""
        own = json.dumps([self._space.to_json(), self._typed], sort_keys=True)
        theirs = self._study.user_attrs.get("searched")
        if theirs is None:
            self._study.set_user_attr("searched", own)
        elif theirs != own:
            raise SettingsError(
                f"The study {one_line(self._study.study_name)} was begun with another space or other settings.",
                "Trials of different settings do not compare.", "Give it another name with --study, or the space as it was.",
            )  # fmt: skip

    # ---- trials

    def run(self, number: int) -> None:
        """Makes trials until the study has so many."""
        import optuna

        failures = 0
        while self._num_trials() < number:
            trial = self._study.ask()
            trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
            values = {name: where.suggest(trial, name) for name, where in self._space.space.items()}
            trial.set_user_attr("values", values)
            state, said, cost = optuna.trial.TrialState.FAIL, "", None
            try:
                cost, said = self._train(trial, values)
                state, failures = optuna.trial.TrialState.COMPLETE, 0
            except PrunedError as pruned:
                state, said = optuna.trial.TrialState.PRUNED, str(pruned)
            except TrialError as failed:
                failures, said = failures + (not isinstance(failed, RefusedError)), f"failed: {failed}"
                trial.set_user_attr("reason", str(failed))
            except BaseException:
                trial.set_user_attr("reason", INTERRUPTED)
                self._study.tell(trial, state=state)
                raise
            self._study.tell(trial, cost, state=state)
            print(printable(f"trial {trial.number}: {said}  {_typed(values)}"), flush=True)
            if failures >= MAX_FAILURES and not self._completed():
                raise ResourceError(
                    f"{failures} trials in a row have failed, the last one so: {said.removeprefix('failed: ')}",
                    "A search needs some that succeed.", "Mend the space, or what they lack, and type the command again.",
                )  # fmt: skip

    def _num_trials(self) -> int:
        """Counts those that are done or under way. A trial of a dead process is marked as failed, and does not count."""
        from optuna.trial import TrialState

        number = 0
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state is TrialState.RUNNING and _is_dead(trial.user_attrs.get("process")):
                with contextlib.suppress(Exception):  # another process was quicker
                    self._study._storage.set_trial_user_attr(trial._trial_id, "reason", INTERRUPTED)
                    self._study.tell(trial.number, state=TrialState.FAIL)
            elif trial.user_attrs.get("reason") != INTERRUPTED:
                number += 1
        return number

    def _train(self, trial: Any, values: Mapping[str, Any]) -> tuple[float, str]:
        """Trains with `values`; returns the cost that the search minimises, and a text that says it."""
        try:
            self._settings_of(values)
        except SettingsProblemsError as error:
            raise RefusedError(one_line(error.problems[0])) from None
        except SettingsError as error:
            raise RefusedError(one_line(str(error))) from None
        path = self._directory / f"trial-{trial.number}"
        trial.set_user_attr("run", str(path))
        overrides = [*self._space.overrides(values), *self._typed, f"hydra.run.dir={quoting.quoted(str(path))}"]
        for step, cost in enumerate(self._follow(path, overrides), 1):
            trial.report(cost, step)
            if trial.should_prune():
                raise PrunedError(
                    f"ended at evaluation {step}, where it was worse than most ({self._written(path, abs(cost))})"
                )
        record = _record(path)
        value = None if record is None or record.valid is None else self._measured(record.valid.value, record)
        if record is None or value is None or record.status != "finished":
            raise TrialError(
                "no validation that compares" if record is None else f"{record.reason}; no validation that compares"
            )
        return -value if record.higher_is_better else value, self._written(path, value)

    def _follow(self, path: Path, overrides: list[str]) -> Iterator[float]:
        """Trains in a process of its own, and yields the cost of each evaluation as it comes. Raises TrialError."""
        with tempfile.TemporaryFile() as errors, watched(path.name.replace("-", " ")):
            # It has a session of its own: Ctrl-C reaches this process alone, which then ends the training in order, once.
            # If this process is killed, the training ends in order by itself.
            environment = {self._application.VARIED: ",".join(self._space.space), PARENT: str(os.getpid())}
            process = subprocess.Popen(
                [sys.executable, "-m", "lmtrain", *overrides], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=errors, start_new_session=True, env=os.environ | environment,
            )  # fmt: skip
            try:
                seen = 0
                while True:
                    has_ended = process.poll() is not None
                    costs = self._costs(path)
                    yield from costs[seen:]
                    seen = len(costs)
                    if has_ended:
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                _end(process)
            if process.returncode:
                errors.seek(0)
                raise TrialError(_said(errors.read()[-20_000:].decode(errors="replace"), process.returncode))

    def _costs(self, path: Path) -> list[float]:
        """Returns the costs of the evaluations so far, by the records of the run."""
        record = _record(path)
        if record is None:
            return []
        name = "bits_per_character" if self._varies and record.task == "language" else record.measure
        values = [
            line.get(f"val/{name}", math.nan) for line in _lines(path / "metrics.jsonl") if f"val/{record.measure}" in line
        ]
        finite = [value if isinstance(value, int | float) else math.inf for value in values]
        return [-value if record.higher_is_better else value for value in finite]

    @property
    def _varies(self) -> bool:
        """Tells whether vocabularies may differ between trials."""
        return any(name.split(".")[0] in ("tokenizer", "data", "experiment", "task") for name in self._space.space)

    def _measured(self, value: float | None, record: RunRecord) -> float | None:
        if self._varies and record.task == "language":
            return None if record.valid is None else record.valid.bits_per_character
        return value

    def _written(self, path: Path, value: float) -> str:
        record = _record(path)
        name = "" if record is None else record.measure
        if self._varies and record is not None and record.task == "language":
            name = "bits_per_character"
        return f"{value:.4f} {name.replace('_', ' ')}"

    # ---- in the end

    def _completed(self) -> list[Any]:
        from optuna.trial import TrialState

        return list(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def conclude(self) -> None:
        """Says what was found and writes it as an experiment."""
        trials = self._study.get_trials(deepcopy=False)
        kinds: dict[str, int] = {}
        for trial in trials:
            name = "interrupted" if trial.user_attrs.get("reason") == INTERRUPTED else WORDS.get(trial.state.name, "")
            kinds[name] = kinds.get(name, 0) + 1
        print(f"\n{counted(len(trials), 'trial')}: {', '.join(f'{number} {name}' for name, number in kinds.items())}.")
        completed = self._completed()
        if not completed:
            return
        best = min(completed, key=lambda trial: trial.value)
        values, run = best.user_attrs["values"], best.user_attrs["run"]
        written = self._written(Path(run), abs(best.value))
        directory = quoted_for_shell(shown(self._directory))
        command = f"python -m lmtrain --config-dir {directory} experiment=best"
        typed = [(item.key_or_group, item.value()) for item in self._application.parse(self._typed)]
        settings = [*self._space.settings.items(), *typed, *values.items()]
        text = experiment(
            settings, self._application.GROUPS,
            [command, f"The best of {counted(len(completed), 'trial')} that came to an end, of {len(trials)} in all."],
            f"Validation: {written} (trial {best.number}).",
        )  # fmt: skip
        file = self._directory / "experiment" / "best.yaml"
        try:
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, text)
        except (OSError, UserError) as error:
            warn(f"{file} cannot be written: {error}")
        print(
            f"The best is trial {best.number}: {written}\n  {printable(_typed(values))}\n"
            f"Its settings: {printable(shown(file))}. Next:\n  {command}\n  python -m lmtrain runs {directory}"
        )


INTERRUPTED = "interrupted"
SAID_OF_A_FULL_DISK = ("database or disk is full", "disk I/O error")  # by SQLite
WORDS = {"COMPLETE": "complete", "PRUNED": "ended early", "FAIL": "failed", "RUNNING": "under way", "WAITING": "waiting"}


@dataclass
class _Drawn:
    """Draws from a space without a study: the ends of every range first, then anything between them."""

    random: Any
    number: int

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        return (low, high)[self.number] if self.number < 2 else self.random.randrange(low, high + 1, step)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        return (low, high)[self.number] if self.number < 2 else self.random.uniform(low, high)

    def suggest_categorical(self, name: str, values: list[Any]) -> Any:
        return self.random.choice(values)


def _open_study(url: str, name: str, seed: int | None, prunes: bool) -> Any:
    """Returns the study of this name, new or as it is. Raises SettingsError if the storage cannot be used, and ResourceError
    where the disk is full.

    Of processes that begin together, one makes the tables, and the others may find them half made: they look again.
    """
    import optuna
    from sqlalchemy.exc import DBAPIError

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    pruner = optuna.pruners.MedianPruner() if prunes else optuna.pruners.NopPruner()
    try:
        patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None  # while another process writes
        for seconds in (0.1, 0.2, 0.4, 0.8, 0.0):
            try:
                storage = optuna.storages.RDBStorage(url, engine_kwargs=patience)
                return optuna.create_study(
                    storage=storage, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True
                )
            except (DBAPIError, optuna.exceptions.StorageInternalError):
                if not seconds:
                    raise
                time.sleep(seconds)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # from SQLAlchemy, from a missing driver, from a file that is no data base
        if any(said in f"{error} {error.__cause__}" for said in SAID_OF_A_FULL_DISK):
            raise ResourceError(
                f"The study cannot be written in --storage {one_line(url)}: the disk is full or broken.",
                "It holds what is known of every trial.",
                "Free some space, or give a path on another disk.",
            ) from error
        raise SettingsError(
            f"The study cannot be opened in --storage {one_line(url)}: {one_line(str(error).partition(chr(10))[0])}.",
            "A storage is a data base that Optuna can use, such as sqlite:///study.db (a file).",
            "Give another --storage, or leave it out.",
        ) from error


def _record(path: Path) -> RunRecord | None:
    try:
        return read_run(path)
    except NoRecordError:
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records in `metrics.jsonl`, without a last one that is not written to its end."""
    found = []
    with contextlib.suppress(OSError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                if line.endswith(b"\n") and isinstance(record := json.loads(line), dict):
                    found.append(record)
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a training in order if it has not ended: it saves, and notes how it ended."""
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # a second signal ends it at once
            continue


def _said(errors: str, code: int) -> str:
    """Says why a training failed, in its own words."""
    _, found, words = errors.rpartition("lmtrain: ")
    last = words if found else (errors.strip().splitlines() or [""])[-1]
    return one_line(last.strip()) or f"it ended with {code}"


def _is_dead(process: Any) -> bool:
    """Tells whether a process of this machine has ended; of one elsewhere that is not known."""
    match process:
        case [str(host), int(number)] if host == socket.gethostname():
            try:
                os.kill(number, 0)
            except ProcessLookupError:
                return True
            except OSError:
                return False
    return False


def _typed(values: Mapping[str, Any]) -> str:
    written = ((name, f"{value:.4g}" if isinstance(value, float) else quoting.written(value)) for name, value in values.items())
    return " ".join(f"{name}={value}" for name, value in written)
