"""Writes bytes and names so that they are on the disk when a call returns, and survive a crash and a power cut.

`lmtrain.files.unfinished` builds on this: files that appear whole or not at all. What a run has half done, above all a
checkpoint, is called `<name>.tmp-<process id>-<random>` instead. One process at a time works in a run directory, under its
lock, so what it finds of these at its start was left by a dead one. File modes follow the umask, because files are made by
plain `open`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("lmtrain")


@dataclass(frozen=True)
class FileRecord:
    """What a file must be to be the file that was written."""

    size_bytes: int
    sha256: str


def write_durably(path: Path, pieces: Iterable[bytes | memoryview]) -> FileRecord:
    """Makes the new file `path` out of `pieces`, on the disk when this returns. Raises OSError if that cannot be done."""
    digest, size_bytes = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size_bytes += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(size_bytes, digest.hexdigest())


def sync_directory(path: Path) -> None:
    """Puts the names in directory `path` on the disk: a rename alone does not survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such operation, and there is nothing to wait for
            raise
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Returns a new name beside `path` that says which process made it."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def set_aside(path: Path, problem: str) -> None:
    """Renames `path` because of a `problem`, and says so, so that a new one can be begun and nothing is lost."""
    aside = path.with_name(f"{path.stem}-damaged-{secrets.token_hex(4)}{path.suffix}")
    os.rename(path, aside)
    log.warning("%s cannot be used (%s); it is now called %s, and a new one is begun.", path, problem, aside.name)
