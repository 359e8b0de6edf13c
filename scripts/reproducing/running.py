"""Runs that rows are made of: trained where they are missing, gone on with where they were stopped, evaluated."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproducing.tables import Place

LINES_OF_A_FAILURE = 15


class FailedError(Exception):
    """A command that ended with an error: what it was, and the end of what it said."""


def train(settings: str, place: Place, seed: int, extra: str = "") -> Path:
    """The run with these settings and seed, finished. `{data}` is where the data lie; `extra` settings are not in its name."""
    run = place.output / f"{slug(settings)}_{seed}"
    if not (run / "run.json").exists():
        typed = settings.format(data=shlex.quote(str(place.data)))
        lmtrain(f"{typed} trainer.seed={seed} {extra} hydra.run.dir={shlex.quote(str(run))}")
    elif not is_finished(run):
        lmtrain(f"resume={shlex.quote(str(run))}")
    return run


def is_finished(run: Path) -> bool:
    """Whether a run came to its end."""
    sessions = _sessions(run)
    return bool(sessions) and sessions[-1].get("exit_reason") == "finished"


def training_seconds(run: Path) -> float | None:
    """How long a run trained, in all of its processes."""
    results: Mapping[str, Any] = _sessions(run)[-1].get("results") or {}
    return results.get("seconds")


def _sessions(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["sessions"]


def evaluated(run: Path, options: str) -> dict[str, Any]:
    """What one `evaluate` gives, as JSON."""
    return json.loads(lmtrain(f"evaluate {shlex.quote(str(run))} --json {options}"))


def timed_evaluation(run: Path, options: str) -> tuple[dict[str, Any], float]:
    """The same with its seconds."""
    started_at = time.monotonic()
    made = evaluated(run, options)
    return made, time.monotonic() - started_at


def lmtrain(arguments: str) -> str:
    """Runs a command; what it prints. Raises FailedError where it fails."""
    words = [sys.executable, "-m", "lmtrain", *shlex.split(arguments)]
    print("$", shlex.join(["python", *words[1:]]), file=sys.stderr, flush=True)
    ended = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if ended.returncode in (130, -2):  # Ctrl-C reached it, too; it has saved
        raise KeyboardInterrupt
    if ended.returncode:
        last = "\n".join((ended.stderr or ended.stdout).strip().splitlines()[-LINES_OF_A_FAILURE:])
        raise FailedError(f"{shlex.join(['python', *words[1:]])} ended with {ended.returncode}:\n{last}")
    return ended.stdout


def slug(settings: str) -> str:
    """A name for a directory: what can be read of the settings, and their hash."""
    readable = re.sub(r"\W+", "_", re.sub(r"\S*\.path=\S*", "", settings))[-60:].strip("_")
    return f"{readable}_{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
