"""Files and directories that appear whole or not at all, and the locks (`flock`) that tell whether their process lives.

    NAME.<process id>-<random>.tmp    locked by the process that makes it, until it is renamed to NAME

The kernel releases a lock however its process ends. So what nobody holds was left by a process that is dead, whichever
container it ran in, and the next process that makes something of that name removes it. The process id only tells a person
whose file it is. On a file system without `flock` nothing can be known to be dead, and nothing is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lmtrain.errors import ResourceError
from lmtrain.files.durable import sync_directory

ATTEMPTS = 100
LONGEST_NAME = 200  # bytes of NAME that a temporary name begins with; file systems allow 255 in all


def lock(descriptor: int) -> bool | None:
    """Takes the lock of an open file without waiting. False: another holds it. None: the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # of network file systems: ENOLCK, EOPNOTSUPP, EBADF, EINVAL
        return None
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Tells whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """Makes the directories above `path` that are missing. At the end of the block those go that are still empty."""
    with ExitStack() as undo:
        for parent in reversed([parent for parent in path.parents if not os.path.exists(parent)]):
            parent.mkdir()
            undo.callback(_remove_if_empty, parent)
        yield


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """`unfinished_file`, which also makes the directories above `path` that are missing."""
    with parents_of(path), unfinished_file(path) as file:
        yield file


@contextmanager
def unfinished_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to write, which becomes `path` at the end of the block, and is removed if that ends with an exception."""
    remove_unfinished(path.parent, re.escape(_beginning(path)))
    temporary, descriptor = _begin(path, is_directory=False)
    try:
        with open(descriptor, "wb") as file:  # closing it releases the lock, so it is renamed before
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Gives `path` the content `text`: a reader, or a crash at any moment, sees all of the old text or all of the new.

    A rename replaces whatever is there, even a device file. So it raises ResourceError if that is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise ResourceError(f"{path} is not a regular file.", "Only regular files are replaced.", "Give another path.")
    with unfinished_file(path) as file:
        file.write(text.encode())


@contextmanager
def unfinished_directory(path: Path) -> Iterator[Path]:
    """Makes a directory to fill and then to rename to `path`. At the end of the block it is removed if it was not renamed."""
    remove_unfinished(path.parent, re.escape(_beginning(path)))
    temporary, descriptor = _begin(path, is_directory=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def remove_unfinished(directory: Path, name: str) -> None:
    """Removes what dead processes left in `directory` of files whose name matches the regular expression `name`."""
    pattern = re.compile(rf"(?:{name})\.\d{{1,10}}-[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for entry in sorted(os.listdir(directory)):
            if pattern.fullmatch(entry):
                with suppress(OSError):
                    _remove_unless_held(directory / entry)


def _remove_unless_held(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if lock(descriptor):
            shutil.rmtree(path) if stat.S_ISDIR(os.fstat(descriptor).st_mode) else path.unlink()
    finally:
        os.close(descriptor)


def _begin(path: Path, *, is_directory: bool) -> tuple[Path, int]:
    """Returns a new file or directory beside `path` that is open and locked."""
    flags = os.O_RDONLY | os.O_DIRECTORY if is_directory else os.O_RDWR | os.O_CREAT | os.O_EXCL
    for _ in range(ATTEMPTS):
        temporary = path.with_name(f"{_beginning(path)}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        if is_directory:
            temporary.mkdir()
        with suppress(*[FileNotFoundError] * is_directory):
            descriptor = os.open(temporary, flags, 0o666)
            if lock(descriptor) is not False and is_at(temporary, descriptor):
                return temporary, descriptor
            os.close(descriptor)
        # Another process thought that it was abandoned, in the moment before it was locked.
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))


def _beginning(path: Path) -> str:
    return os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME])
