"""The places where a new run may begin. A run that was refused removes only what its own process made.

A run may begin in a new or an empty directory, beside files of other names, and in what a killed process left before its
first checkpoint. It may not begin beside checkpoints, or beside a file of one of its names that no run wrote.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.errors import SettingsError, UserError
from lmtrain.files.run_lock import RunLock
from lmtrain.files.strict_json import MAX_BYTES, parse_json
from lmtrain.settings.quoting import typed

HYDRA = (".hydra/hydra.yaml", ".hydra/config.yaml", ".hydra/overrides.yaml")
AT_THE_START = ("settings.json", "run.json", "lmtrain.log", "checkpoints", *HYDRA, ".hydra")
LATER = ("metrics.jsonl", "range_test.svg")
ONLY_ADDED_TO = ("tensorboard", "crash", "start")


def refuse_what_is_not_ours(path: Path) -> None:
    """Raises SettingsError if a new run in `path` would overwrite, or mix with, what it did not write."""
    if os.path.isdir(path / "checkpoints") and not _is_empty(path / "checkpoints"):
        raise SettingsError(
            f"{path} holds the checkpoints of another run.",
            "A new run begins in a directory without any.",
            f"Type {typed('resume', path)} to go on with that run, or choose another directory: hydra.run.dir=DIRECTORY.",
        )
    if others := _not_ours(path):
        raise SettingsError(
            f"{path} holds {', '.join(others)}, which no run wrote.",
            "A run writes files of these names, and overwrites nothing that it did not write.",
            "Move them, or choose another directory: hydra.run.dir=DIRECTORY (for a sweep hydra.sweep.dir=DIRECTORY).",
        )


def is_from_hydra(file: Path) -> bool:
    """Tells whether Hydra wrote `file`, a hydra.yaml or multirun.yaml, for this program."""
    import yaml

    try:
        match yaml.safe_load(file.read_bytes()[:MAX_BYTES]) if file.is_file() else None:
            case {"hydra": {"job": {"name": "lmtrain"}}} | {"hydra": {"callbacks": {"lmtrain": _}}}:
                return True
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        pass
    return False


def _not_ours(path: Path) -> list[str]:
    """Returns the names in `path` that a run would use and that no run wrote; none if a run was begun there."""
    present = [name for name in (*AT_THE_START, *LATER) if name != ".hydra" and not _is_empty(path / name)]
    ours = {name for name in present if name in RECOGNISED and RECOGNISED[name](path / name)}
    if HYDRA[0] in ours:
        ours |= {*HYDRA}
    if ours:
        ours |= {*AT_THE_START, *LATER} - {"settings.json", *HYDRA}
    return [name for name in present if name not in ours]


def _is_empty(path: Path) -> bool:
    """Tells whether there is nothing at `path` that could be lost."""
    try:
        return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0 and path.is_file()
    except OSError:
        return not os.path.lexists(path)


def _document(file: Path) -> Any:
    try:
        with open(file, "rb") as opened:
            return parse_json(opened.read(MAX_BYTES + 1))
    except (OSError, ValueError):
        return None


def _holds(*keys: str) -> Callable[[Path], bool]:
    def check(file: Path) -> bool:
        document = _document(file) if file.is_file() else None
        return isinstance(document, dict) and {*keys} <= document.keys()

    return check


RECOGNISED: Mapping[str, Callable[[Path], bool]] = {
    "settings.json": _holds("model", "data", "trainer"),
    "run.json": _holds("sessions"),
    HYDRA[0]: is_from_hydra,
}


@dataclass(frozen=True)
class Place:
    """Remembers a directory as it was before this process wrote in it."""

    path: Path
    made: tuple[Path, ...]  # by this process: the directory and those above it
    before: frozenset[str]  # the names of a run that existed

    @classmethod
    def of(cls, path: Path, *, there_before: Collection[Path] | None) -> Place:
        """`there_before` says which of the directory and those above it existed; None if that is not known."""
        made = [] if there_before is None else itertools.takewhile(lambda p: p not in there_before, (path, *path.parents))
        names = (*AT_THE_START, *LATER, *ONLY_ADDED_TO)
        return cls(path, tuple(made), frozenset(name for name in names if os.path.lexists(path / name)))

    def leave(self) -> None:
        """Removes what this process made, if no work was done and nobody works there. What others wrote stays."""
        try:
            lock = RunLock(self.path / "run.lock")
        except (OSError, UserError):
            return
        try:
            if not lock.is_exclusive:
                return
            names = (*AT_THE_START, *LATER, *ONLY_ADDED_TO)
            made = [name for name in names if name not in self.before and os.path.lexists(self.path / name)]
            if not {*made} <= {*AT_THE_START} or not _is_empty(self.path / "checkpoints"):
                return
            for name in made:
                with suppress(OSError):
                    (self.path / name).rmdir() if (self.path / name).is_dir() else (self.path / name).unlink()
        finally:
            lock.release()
        with suppress(OSError):  # until one holds something of others
            for directory in self.made:
                directory.rmdir()
