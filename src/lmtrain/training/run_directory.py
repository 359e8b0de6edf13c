"""One run, one directory: locked while a process trains in it, and with a record of every process that did.

    RUN/  settings.json  run.json  metrics.jsonl  lmtrain.log  tensorboard/  checkpoints/  run.lock

`run.lock` exists while a process trains here and says which. A lock whose process is dead is taken over. Processes that look
at the lock of one directory do so one after the other.
`run.json` holds one record for each process: what it ran on, from when to when, and why it ended.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmtrain.config import typed
from lmtrain.errors import ResourceError, SettingsError
from lmtrain.training.durable_file import remove_temporaries, write_atomically
from lmtrain.training.machine import is_alive, start_of
from lmtrain.training.provenance import session_facts
from lmtrain.training.strict_json import MAX_BYTES, parse_json, to_json

logger = logging.getLogger("lmtrain")

MAX_SESSIONS = 1000
UNREADABLE_SECONDS = 1.0  # a lock without text for so long was left by a process that died between making and writing it


@dataclass
class RunDirectory:
    """The places in a run directory, and this process's record in its `run.json`."""

    path: Path
    session: dict[str, Any] = field(default_factory=dict)

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
        """Adds JSON-able `facts` to this process's record and writes `run.json`; OSError where that cannot be done."""
        to_json(facts)  # so that what cannot be written is refused before it is part of the record
        self.session |= facts
        sessions = [*_sessions(self.record)[-MAX_SESSIONS:]]
        if sessions and sessions[-1].get("id") == self.session["id"]:
            sessions.pop()
        write_atomically(self.record, to_json({"sessions": [*sessions, self.session]}).decode())

    def earlier(self, fact: str) -> Any:
        """What the newest of the processes before this one noted as `fact`; None where none did."""
        others = [session for session in _sessions(self.record) if session.get("id") != self.session.get("id")]
        return next((session[fact] for session in reversed(others) if fact in session), None)


@contextmanager
def open_run_directory(path: Path, command_line: Sequence[str] | None = None, *, new: bool = False) -> Iterator[RunDirectory]:
    """Makes `path` if need be, locks it, clears what a killed process left half done, and records this process.

    All that is written before any work is done, so a directory that cannot be written is known at once: SettingsError,
    or ResourceError for a full disk. SettingsError also where another process trains here, and, for a `new` run, where
    there are checkpoints of another one: they would be removed as this one's own older ones are.
    """
    run = RunDirectory(path)
    lock = _lock_text()
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        if not os.access(run.checkpoints, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run.checkpoints))
        _lock(path / "run.lock", lock)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        try:
            remove_temporaries(path)
            remove_temporaries(run.checkpoints)
            if new:
                _refuse_another_run(run)
            run.note(id=secrets.token_hex(8), **session_facts(command_line or sys.argv), exit_reason=None)
        except OSError as error:
            raise _unwritable(path, error) from error
        with _recorded_end(run):
            yield run
    finally:
        _unlock(path / "run.lock", lock)


def _refuse_another_run(run: RunDirectory) -> None:
    if any(run.checkpoints.iterdir()):
        raise SettingsError(
            f"{run.path} holds the checkpoints of another run.",
            "A new run begins in a directory without any.",
            f"Type {typed('resume', run.path)} to go on with that run, or choose another directory: hydra.run.dir=DIRECTORY.",
        )


@contextmanager
def _recorded_end(run: RunDirectory) -> Iterator[None]:
    """Writes when and why the process ended: `exit_reason` as it was noted, else the exception, else "finished"."""
    started_at = time.monotonic()
    reason = "finished"
    try:
        yield
    except BaseException as error:
        reason = f"{type(error).__name__}: {str(error)[:2000]}"
        raise
    finally:
        try:
            run.note(
                exit_reason=run.session["exit_reason"] or reason,
                stopped_at=datetime.now(UTC).isoformat(timespec="seconds"),
                elapsed_seconds=round(time.monotonic() - started_at, 3),
            )
        except (OSError, ResourceError) as error:
            logger.warning("%s cannot be written (%s); nothing else depends on it.", run.record, error)


def _sessions(path: Path) -> list[dict[str, Any]]:
    """The records in `run.json`; one that is damaged is set aside with a warning, as nothing is computed from it."""
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
        aside = path.with_name(f"run-damaged-{secrets.token_hex(4)}.json")
        os.rename(path, aside)
        logger.warning("%s is damaged (%s); it is now called %s, and a new one is begun.", path, error, aside.name)
        return []


# ---- the lock


def _lock_text() -> str:
    """Who this process is: its number alone would not do, because numbers are used again."""
    holder = {
        "process": os.getpid(),
        "started": start_of(os.getpid()),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "nonce": secrets.token_hex(8),
    }
    return json.dumps(holder) + "\n"


def _lock(path: Path, text: str) -> None:
    """Makes the lock file, or raises SettingsError that says who holds it."""
    with _alone(path.parent):
        while not _make_lock(path, text):
            held = _read_lock(path)
            if held is not None:
                _refuse_if_alive(path, held)
                logger.warning("%s was left by a process that is dead (%s); it is taken over.", path, held.strip() or "no text")
                path.unlink(missing_ok=True)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Within it no other process of this host looks at locks in `directory`; the kernel ends that when a process dies.

    Where a file system has no such thing, two processes that take over one dead lock at the same moment may both succeed.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_lock(path: Path, text: str) -> bool:
    """Makes the lock file; False where there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, text.encode())
    except OSError:
        path.unlink()  # the disk is too full for its text
        raise
    finally:
        os.close(descriptor)
    return True


def _read_lock(path: Path) -> str | None:
    """The text of the lock, waiting for the one who is just writing it; None where it has gone."""
    patience = time.monotonic() + UNREADABLE_SECONDS
    while True:
        try:
            with open(path, errors="replace") as file:
                text = file.read(4096)
        except FileNotFoundError:
            return None
        if text.endswith("\n") or time.monotonic() > patience:
            return text
        time.sleep(0.01)


def _refuse_if_alive(path: Path, text: str) -> None:
    """SettingsError unless the process that `text` names is known to be dead."""
    try:
        document = parse_json(text.encode())
    except ValueError:
        return  # torn: its process died while writing it
    match document:
        case {"process": int(process), "host": str(host), "since": str(since)}:
            started = document.get("started")
        case _:
            return
    here = host == socket.gethostname()
    if here and not is_alive(process, started if isinstance(started, str) else None):
        return
    raise SettingsError(
        f"{path.parent} is in use by process {process} on {host}, since {since}.",
        "One process at a time trains in a run directory.",
        f"Wait for it, end it with  kill {process}  , or choose another directory with hydra.run.dir=DIRECTORY."
        if here
        else f"Wait for it; if you know that it is dead (it cannot be seen from {socket.gethostname()}), type: rm {path}",
    )


def _unlock(path: Path, text: str) -> None:
    """Removes our own lock; one that somebody else put there stays."""
    try:
        if path.read_text(errors="replace") == text:
            path.unlink()
    except OSError as error:
        logger.warning("%s cannot be removed (%s); the next run here takes it over.", path, error)


def _unwritable(path: Path, error: OSError) -> SettingsError | ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return ResourceError(f"{path} cannot be written: {error}.", "A run writes its checkpoints there.", "Free some space.")
    return SettingsError(
        f"{path} cannot be used as a run directory: {error}.",
        "It must be a directory, or a new path, that you may write in.",
        "Choose another with hydra.run.dir=DIRECTORY.",
    )
