"""The lock of a run directory: `run.lock`, held by `flock` for as long as a process trains there.

The kernel holds the lock and releases it however the process ends, so it is right between containers and after `kill -9`. The
text of the file (process, host, since when) is for a message only. Nobody waits for the lock: a second process is refused.

A file system without `flock` cannot keep two processes apart. Then the file only tells who trains here, and a warning says so.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lmtrain.errors import SettingsError
from lmtrain.files.strict_json import parse_json
from lmtrain.files.unfinished import ATTEMPTS, is_at, lock

log = logging.getLogger("lmtrain")

MAX_BYTES = 4096  # of the text, which are read


class RunLock:
    """Held from the moment it is made until `release`. Raises SettingsError if another process holds it, or OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor, self.is_exclusive = _acquire(path)
        _close_in_children()
        _held.add(self._descriptor)
        self._found = os.pread(self._descriptor, MAX_BYTES, 0)
        try:
            self._write()
        except OSError:  # the disk is too full for the text
            self.release()
            raise

    def say_what_was_found(self) -> None:
        """Warns of a process that ended without giving up the lock, and of a file system that has none."""
        if not self.is_exclusive:
            named = f" {self.path} names {_holder(self._found)}: if that runs, end one of the two." if self._found else ""
            log.warning(
                "The file system of %s has no locks (flock), so nothing keeps a second process from training here.%s",
                self.path.parent, named,
            )  # fmt: skip
        elif self._found:
            log.warning("%s was left by a process that is dead (%s); it is taken over.", self.path, _holder(self._found))

    def is_in_place(self) -> bool:
        """Tells whether another process that looks at `run.lock` finds this lock."""
        return is_at(self.path, self._descriptor)

    def release(self) -> None:
        """Removes the file, unless it is another one by now, and gives up the lock. In a forked child it does nothing."""
        if self._descriptor in _held:
            try:
                if self.is_in_place() and (self.is_exclusive or os.pread(self._descriptor, MAX_BYTES, 0) == self._text):
                    self.path.unlink()
            except OSError as error:
                log.warning("%s cannot be removed (%s); the next run here takes it over.", self.path, error)
            _held.discard(self._descriptor)
            os.close(self._descriptor)

    def _write(self) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._text = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode() + b"\n"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._text, 0)


_held: set[int] = set()


@functools.cache
def _close_in_children() -> None:
    """A forked child would keep the lock of a parent that is killed. (Programs that are started never have the file.)"""
    os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    while _held:
        os.close(_held.pop())


def _acquire(path: Path) -> tuple[int, bool]:
    """Returns the open file, locked, and whether that keeps others out."""
    for attempt in range(ATTEMPTS):
        descriptor, is_writable = _open(path)
        got = lock(descriptor)
        if got is False:
            text = os.pread(descriptor, MAX_BYTES, 0)
            os.close(descriptor)
            raise _in_use(path, text)
        is_last = attempt == ATTEMPTS - 1  # some file systems give a file another number each time it is looked at
        if is_at(path, descriptor) or is_last:
            if is_writable or is_last:
                return descriptor, bool(got) and not is_last
            path.unlink()  # a dead process of somebody else left it: we make another
        os.close(descriptor)  # else its holder removed it between our opening and our locking it
    raise AssertionError("the last attempt returns or raises")


def _open(path: Path) -> tuple[int, bool]:
    """`run.lock`, made if need be, and whether it may be written. A link is not followed, and nothing is cut off yet."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666), True
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | flags), False


def _in_use(path: Path, text: bytes) -> SettingsError:
    return SettingsError(
        f"{path.parent} is in use by {_holder(text)}.",
        "One process at a time trains in a run directory.",
        f"Wait for it, end it where it runs{_how_to_end(text)}, or choose another directory with hydra.run.dir=DIRECTORY.",
    )


def _parsed(text: bytes) -> tuple[int, str, str] | None:
    with suppress(ValueError):
        match parse_json(text):
            case {"process": int(process), "host": str(host), "since": str(since)}:
                return process, _printable(host), _printable(since)
    return None


def _holder(text: bytes) -> str:
    match _parsed(text):
        case process, host, since:
            return f"process {process} on {host}, since {since}"
    return "a process that it does not name"


def _how_to_end(text: bytes) -> str:
    match _parsed(text):
        case process, _, _:
            return f" with  kill {process}  "
    return ""


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:80])
