"""The folder in which compiled libraries are kept, and which of its files are believed.

A library is code that this process runs, so a file counts only where nobody but this user and root could have written it,
and only with the bytes that were stored. The folder is opened once and everything is reached through its descriptor: what
others do to the path afterwards changes nothing.

    <key>.so        a library
    <key>.sha256    the hash of its bytes, compared before it is opened
    build.lock      held (flock) by the process that builds; the kernel releases it when that process ends, however it ends
    tmp........     the folder of a build that runs, or of one that was killed: the next one removes it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("lmtrain")

PATIENCE_SECONDS = 100.0  # for the lock: somewhat more than a build may take
LARGEST_LIBRARY = 1 << 26  # bytes
LOCK = "build.lock"


class UnusableCacheError(Exception):
    """Why nothing is taken from this cache, or put into it: a clause for the user."""


class Cache:
    """A folder that is open. Raises UnusableCacheError where others could write there, OSError where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open_folder(path)
        try:
            self._refuse_what_others_can_write()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def way_to(self, name: str) -> str:
        """A path that leads into this very folder, whatever has become of its own path."""
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def has(self, key: str) -> bool:
        """Whether the library is there and is what was stored."""
        expected, library = self._read(f"{key}.sha256"), self._read(f"{key}.so")
        return library is not None and expected == hashlib.sha256(library).hexdigest().encode()

    def store(self, key: str, made: str) -> None:
        """Takes over the library `made` (a name within the folder) together with its hash."""
        os.chmod(self.way_to(made), 0o755)
        with open(self.way_to(made), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        with open(os.open(self.way_to(f"{made}.sha256"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        for source, name in ((f"{made}.sha256", f"{key}.sha256"), (made, f"{key}.so")):
            os.replace(source, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        os.fsync(self._descriptor)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's lock, and removes what killed builds left. Raises UnusableCacheError after PATIENCE_SECONDS."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        refusal = UnusableCacheError(f"{self.path / LOCK} is not a file that you alone can write; remove it")
        try:
            lock = os.open(LOCK, flags, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise refusal from error
            raise
        try:
            if not _is_own_file(os.fstat(lock)):
                raise refusal
            if self._wait_for(lock):
                self._remove_left_builds()
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def temporary_folder(self) -> Iterator[str]:
        """The name of a new folder within this one, which is removed at the end."""
        folder = Path(tempfile.mkdtemp(dir=self.way_to("")))
        try:
            yield folder.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def runs_code(self) -> bool:
        """Whether the file system may hold libraries: it is not mounted `noexec`."""
        return not os.fstatvfs(self._descriptor).f_flag & os.ST_NOEXEC

    def _refuse_what_others_can_write(self) -> None:
        status = os.fstat(self._descriptor)
        if not _is_ours(status):
            raise UnusableCacheError(f"the cache folder {self.path} belongs to another user (uid {status.st_uid})")
        if status.st_mode & stat.S_IWOTH:
            raise UnusableCacheError(f"the cache folder {self.path} is writable by others (chmod go-w would end that)")
        if status.st_mode & stat.S_IWGRP:  # as a umask of 002 leaves it
            if status.st_uid != os.geteuid():
                raise UnusableCacheError(f"the cache folder {self.path} is writable by a group, and is not yours")
            os.fchmod(self._descriptor, stat.S_IMODE(status.st_mode) & ~0o022)
            log.info("%s could be written by your group; now it can be written by you alone", self.path)

    def _read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none, or others could have written it."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError:
            return None
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            return file.read() if _is_own_file(status) and status.st_size <= LARGEST_LIBRARY else None

    def _wait_for(self, lock: int) -> bool:
        """Whether the lock is held now; False where the file system has no locks, so that processes may build side by side."""
        started_at = time.monotonic()
        has_told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                seconds = time.monotonic() - started_at
            except OSError:
                return False
            if seconds >= PATIENCE_SECONDS:
                raise UnusableCacheError(
                    f"another process has held {self.path / LOCK} for {seconds:.0f} s; end it, or remove that file"
                )
            if seconds >= 1 and not has_told:
                log.warning(
                    "waiting for another process that compiles the native backend (%s; at most %.0f s)",
                    self.path / LOCK, PATIENCE_SECONDS,
                )  # fmt: skip
                has_told = True
            time.sleep(0.05)

    def _remove_left_builds(self) -> None:
        for name in os.listdir(self._descriptor):
            if re.fullmatch(r"tmp[a-z0-9_]{8}", name):  # the names of `tempfile`
                shutil.rmtree(self.way_to(name), ignore_errors=True)


def _open_folder(path: Path) -> int:
    """A descriptor of the folder, which is made where it is missing: writable by this user alone, whatever the umask is."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o755)
    return os.open(path, flags)


def _is_ours(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user or to root."""
    return status.st_uid in (os.geteuid(), 0)


def _is_own_file(status: os.stat_result) -> bool:
    """Whether it is a regular file that nobody but this user and root can write."""
    return stat.S_ISREG(status.st_mode) and _is_ours(status) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
