"""Files that survive a crash: written whole or not at all, flushed to the disk, found again after `kill -9`.

    write beside the target  ->  flush and fsync  ->  rename over it  ->  fsync the directory

Whatever is half done is called `<name>.tmp-<process id>-<random>`. One process at a time works in a run directory, under its
lock, so what it finds of these at its start was left by a dead one, and goes. Files beside them that are no run's stay.
A rename replaces what stands there, even a device file, so a target that is not a regular file is refused.
File modes follow the umask, because files are made by plain `open`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmtrain.errors import ResourceError

logger = logging.getLogger("lmtrain")

WRITTEN = r"settings\.json|run\.json|metrics\.jsonl|range_test\.svg|last|best|step-\d{8,18}(?:-\d{1,9})?"  # by a run
TEMPORARY = re.compile(rf"(?:{WRITTEN})\.tmp-\d{{1,10}}-[0-9a-f]{{8}}")


@dataclass(frozen=True)
class FileRecord:
    """What a file must be to be the file that was written."""

    size_bytes: int
    sha256: str


def write_durably(path: Path, pieces: Iterable[bytes | memoryview]) -> FileRecord:
    """Makes the new file `path` out of `pieces`, on the disk when this returns; OSError where that cannot be done."""
    digest, size_bytes = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size_bytes += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(size_bytes, digest.hexdigest())


def write_atomically(path: Path, text: str) -> None:
    """Gives `path` the content `text`: a reader, or a crash at any moment, sees all of the old text or all of the new."""
    if path.exists() and not path.is_file():
        raise ResourceError(f"{path} is not a regular file.", "Only regular files are replaced.", "Give another path.")
    temporary = temporary_path(path)
    try:
        write_durably(temporary, [text.encode()])
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Puts the names in directory `path` on the disk: a rename alone does not survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such operation; there is nothing to wait for
            raise
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A new name beside `path` that says which process made it."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def remove_temporaries(directory: Path) -> None:
    """Removes what was left half done of a run's files in `directory`; what cannot be removed is a warning.

    Only for the process that holds the run's lock, and only while it is writing nothing.
    """
    for path in sorted(directory.glob("*.tmp-*")):
        if TEMPORARY.fullmatch(path.name):
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError as error:
                logger.warning("%s cannot be removed (%s); it only takes space, and is tried again later.", path, error)


def set_aside(path: Path, problem: str) -> None:
    """Renames `path`, because of a `problem` that is said, so that a new one can be begun and nothing is lost."""
    aside = path.with_name(f"{path.stem}-damaged-{secrets.token_hex(4)}{path.suffix}")
    os.rename(path, aside)
    logger.warning("%s cannot be used (%s); it is now called %s, and a new one is begun.", path, problem, aside.name)


def check_free_space(directory: Path, num_bytes: int) -> None:
    """ResourceError unless the file system of `directory` has `num_bytes` free (quotas are not seen)."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < num_bytes:
        raise ResourceError(
            f"{directory} has {free_bytes / 1e9:.3g} GB free.",
            f"This run's checkpoints need {num_bytes / 1e9:.3g} GB.",
            "Free some space, keep fewer checkpoints with trainer.keep=2, or run elsewhere with hydra.run.dir=DIRECTORY.",
        )
