"""The directory of a run. It is locked while a process trains in it, and keeps a record of every process that did.

    RUN/  settings.json  run.json  metrics.jsonl  lmtrain.log  tensorboard/  checkpoints/  crash/  start/  run.lock

`run.lock` is held while a process trains here and says which one (see run_lock.py). Nobody waits for the lock.
`run.json` holds one record for each process: what it ran on, from when to when, and why it ended.

If one of these names is taken by something else (a directory, a broken link, damaged text), that is renamed, not removed;
nothing is computed from it.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmtrain.errors import ResourceError, SettingsError, is_full
from lmtrain.files.durable import set_aside
from lmtrain.files.run_lock import RunLock
from lmtrain.files.strict_json import MAX_BYTES, parse_json, to_json
from lmtrain.files.unfinished import write_atomically
from lmtrain.training.left_over import remove_temporaries
from lmtrain.training.provenance import session_facts
from lmtrain.training.run_place import refuse_what_is_not_ours

log = logging.getLogger("lmtrain")

MAX_SESSIONS = 1000


@dataclass
class RunDirectory:
    """Knows the places in a run directory, and this process's record in its `run.json`."""

    path: Path
    session: dict[str, Any] = field(default_factory=dict)
    _settings_text: str = ""
    _lock: RunLock | None = None

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "lmtrain.log"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def note(self, **facts: Any) -> None:
        """Adds JSON-able `facts` to this process's record and writes `run.json`. If that cannot be done, a warning says so."""
        to_json(facts)  # so that what cannot be written is refused before it is part of the record
        self.session |= facts
        try:
            self._write_record()
        except (OSError, ResourceError) as error:
            log.warning("%s cannot be written (%s); nothing else depends on it.", self.record, error)

    def keep_settings(self, text: str) -> None:
        """Writes `settings.json`."""
        self._settings_text = text
        write_atomically(self.settings, text)

    def know_settings(self) -> None:
        """Reads `settings.json`, which stays as it is."""
        self._settings_text = self.settings.read_text(encoding="utf-8")

    def make_again_if_removed(self) -> None:
        """Makes the directory again, with a warning, if it was removed while the run trains. Called before a save.

        Raises ResourceError if another run is there by now, or if it cannot be made.
        """
        if self._lock is None or self._lock.is_in_place():
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = RunLock(self.path / "run.lock")
            if self.settings.exists() and self.settings.read_text(encoding="utf-8") != self._settings_text:
                lock.release()
                raise SettingsError(f"{self.settings} is of another run.", "", "")
            self._lock.release()
            self._lock = lock
            if not self.settings.exists():
                log.warning("%s was removed while its run trains; it is made again, without what was in it.", self.path)
                write_atomically(self.settings, self._settings_text)
                self._write_record()
        except (OSError, SettingsError) as error:
            raise ResourceError(
                f"{self.path} was removed while its run trains, and cannot be made again: {error}.",
                "A run saves what it learns in its own directory.",
                "Start the run anew, elsewhere.",
            ) from error

    def _write_record(self) -> None:
        sessions = [*_sessions(self.record)[-MAX_SESSIONS:]]
        if sessions and sessions[-1].get("id") == self.session["id"]:
            sessions.pop()
        write_atomically(self.record, _as_can_be_read([*sessions, self.session]).decode())

    def earlier(self, fact: str) -> Any:
        """Returns what the newest of the processes before this one noted as `fact`; None if none did."""
        others = [session for session in _sessions(self.record) if session.get("id") != self.session.get("id")]
        return next((session[fact] for session in reversed(others) if fact in session), None)


@contextmanager
def open_run_directory(path: Path, command_line: Sequence[str] | None = None, *, new: bool = False) -> Iterator[RunDirectory]:
    """Makes `path` if need be, locks it, clears what a killed process left half done, and records this process.

    All of that is written before any work is done, so a directory that cannot be written is noticed at once. Raises
    SettingsError, or ResourceError for a full disk. SettingsError is also raised if another process trains here and, for a
    `new` run, if the directory has checkpoints of another run (they would be removed as this one's own older ones are) or
    files of the same names that no run wrote.
    """
    run = RunDirectory(path)
    if new:
        refuse_what_is_not_ours(path)
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        if not os.access(run.checkpoints, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run.checkpoints))
        _set_aside_unless(stat.S_ISREG, path / "run.lock", os.lstat)
        run._lock = RunLock(path / "run.lock")
    except OSError as error:
        raise _unwritable(path, error, new) from error
    try:
        try:
            if new:
                refuse_what_is_not_ours(path)  # once more, now that nobody else writes here
            run._lock.say_what_was_found()  # which begins the log
            if run._lock.is_exclusive:  # else they may be of a process that lives
                for directory in (path, run.checkpoints, path / "crash" / "checkpoints", path / "start" / "checkpoints"):
                    remove_temporaries(directory)
            _clear_the_way(run, new)
            run.session |= {"id": secrets.token_hex(8), **session_facts(command_line or sys.argv), "exit_reason": None}
            run._write_record()
        except OSError as error:
            raise _unwritable(path, error, new) from error
        with _recorded_end(run):
            yield run
    finally:
        run._lock.release()


def _clear_the_way(run: RunDirectory, new: bool) -> None:
    """Renames what is in the place of a run's files and is no file; in a run that goes on, also in that of its directories."""
    files = (run.record, run.metrics, run.log, run.path / "range_test.svg", run.checkpoints / "last", run.checkpoints / "best")
    for file in files:
        _set_aside_unless(stat.S_ISREG, file, os.stat)
    for directory in () if new else (run.tensorboard, run.path / "crash"):
        _set_aside_unless(stat.S_ISDIR, directory, os.stat)


def _set_aside_unless(is_right: Callable[[int], bool], path: Path, look: Callable[[Path], os.stat_result]) -> None:
    try:
        if is_right(look(path).st_mode):
            return
    except OSError:  # a broken link, or one to itself
        if not os.path.lexists(path):
            return
    set_aside(path, "it is no file" if is_right is stat.S_ISREG else "it is no directory")


@contextmanager
def _recorded_end(run: RunDirectory) -> Iterator[None]:
    """Writes when and why the process ended: `exit_reason` as it was noted, else the exception, else "finished"."""
    started_at = time.monotonic()
    reason = "finished"
    try:
        yield
    except BaseException as error:
        reason = f"{type(error).__name__}: {str(error)[:2000]}"
        if isinstance(error, Exception):  # for example the final test, after a training that was finished
            run.session["exit_reason"] = None
        raise
    finally:
        run.note(
            exit_reason=run.session["exit_reason"] or reason,
            stopped_at=datetime.now(UTC).isoformat(timespec="seconds"),
            elapsed_seconds=round(time.monotonic() - started_at, 3),
        )


def _as_can_be_read(sessions: list[dict[str, Any]]) -> bytes:
    """Returns `run.json`. The older half of its sessions is dropped for as long as it would be too long to be read back."""
    while True:
        try:
            return to_json({"sessions": sessions})
        except ValueError:
            if len(sessions) == 1:
                raise
            sessions = sessions[len(sessions) // 2 :]


def _sessions(path: Path) -> list[dict[str, Any]]:
    """Returns the records in `run.json`. A damaged file is renamed, with a warning, as nothing is computed from it."""
    try:
        with open(path, "rb") as file:
            document = parse_json(file.read(MAX_BYTES + 1))
        match document:
            case {"sessions": list(sessions)} if all(isinstance(session, dict) for session in sessions):
                return sessions
        raise ValueError("it does not hold sessions")
    except FileNotFoundError:
        return []
    except ValueError as error:
        set_aside(path, f"it is damaged: {error}")
        return []


def _unwritable(path: Path, error: OSError, new: bool) -> SettingsError | ResourceError:
    if is_full(error):
        return ResourceError(f"{path} cannot be written: {error}.", "A run writes its checkpoints there.", "Free some space.")
    return SettingsError(
        f"{path} cannot be used as a run directory: {error}.",
        "It must be a directory, or a new path, that you may write in.",
        "Choose another with hydra.run.dir=DIRECTORY."
        if new
        else "Make it writable, or copy the run to a place that is, and resume the copy: resume=COPY.",
    )
