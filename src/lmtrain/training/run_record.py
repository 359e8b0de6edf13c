"""The outcome of a run, read from its directory, whether it has ended, was killed, or trains at the moment.

`run.json` holds the results of each process of a run: who was trained (from its start), how good it is (at its end). If a
process was killed, or an earlier version trained, the last records in `metrics.jsonl` say how far it came. Nothing is imported
that takes time, and nothing is written.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmtrain.files.strict_json import MAX_BYTES, parse_json
from lmtrain.settings.defaults import SEED, differing_settings, flat_settings

MAX_METRICS = 1 << 30  # bytes of metrics.jsonl that are read


class NoRecordError(Exception):
    """Is raised where no record of a run is found; it says why."""


@dataclass(frozen=True)
class Result:
    """How good a model is on one split.

    value               the number by which the task judges (`RunRecord.measure`); None if it is not finite
    bits_per_character  None if words are not spelt
    facts               everything that the numbers depend on
    """

    value: float | None
    bits_per_character: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """One run.

    status    finished, stopped (by a signal; it can go on), failed, killed or running
    reason    how it ended, in words
    settings  all of them by name; `differing` are those that differ from the defaults
    seconds   of training; `evaluation_seconds` of what came beside it (evaluations, samples, saving)
    items     what `num_items` counts: tokens, windows, texts
    measure   what validation and test are judged by, such as nats_per_token
    """

    path: Path
    status: str
    reason: str
    settings: Mapping[str, Any]
    differing: Mapping[str, Any]
    task: str = "language"
    num_parameters: int | None = None
    num_steps: int | None = None
    items: str = "tokens"
    num_items: int | None = None
    seconds: float | None = None
    evaluation_seconds: float | None = None
    items_per_second: float | None = None
    measure: str = "nats_per_token"
    higher_is_better: bool = False
    vocabulary: str = ""
    best_step: int | None = None
    valid: Result | None = None
    test: Result | None = None
    test_split: str | None = None

    @property
    def seed(self) -> Any:
        return self.settings.get(SEED)

    def to_json(self) -> dict[str, Any]:
        """Returns everything, for programs."""
        results = {
            name: None
            if result is None
            else {**result.facts, "value": result.value, "bits_per_character": result.bits_per_character}
            for name, result in (("valid", self.valid), ("test", self.test))
        }
        plain = {name: value for name, value in vars(self).items() if name not in ("path", "settings", "differing", *results)}
        return {"run": str(self.path), "seed": self.seed, "settings": dict(self.differing), **plain, **results}


# ---- finding runs


def find_runs(directories: Sequence[Path], unreadable: Callable[[OSError], None]) -> list[Path]:
    """Finds the directories of runs at or below `directories`, each once, by name. Links to directories are not followed."""
    found: dict[Path, Path] = {}
    for start in directories:
        for folder, below, files in os.walk(start, onerror=unreadable):
            path = Path(folder)
            if is_run(files, below):
                found.setdefault(path.resolve(), path)
                below.clear()
            below.sort()
    return list(found.values())


def is_run(files: Sequence[str], directories: Sequence[str]) -> bool:
    """Tells whether a directory that holds these looks like a run."""
    return "run.json" in files or ("settings.json" in files and "checkpoints" in directories)


def read_run(path: Path) -> RunRecord:
    """Reads the record of the run at `path`. Raises NoRecordError if its files are damaged or belong to something else."""
    settings, sessions = _read_settings(path), read_sessions(path)
    results: dict[str, Any] = {}  # from the newest process that noted them
    for session in sessions:
        results |= _mapping(session.get("results"))
    last = _newest(path, sessions)
    status, reason = _ended(path, last)
    ended_well = isinstance(_mapping(last.get("results")).get("valid"), Mapping)
    return RunRecord(
        path, status, reason, flat_settings(settings), differing_settings(settings),
        num_parameters=_whole(next((s["num_parameters"] for s in reversed(sessions) if "num_parameters" in s), None)),
        **_described(results),
        **(_from_results(results, last) if ended_well else _from_metrics(path, results, last)),
    )  # fmt: skip


def find_curves(tensorboard: Path) -> Path | None:
    """Returns where in the directory of that name of a run its curves are; None if there are none. Raises OSError."""
    for place in (tensorboard, *sorted(tensorboard.iterdir() if tensorboard.is_dir() else ())):
        if place.is_dir() and any(place.glob("events*")):
            return place
    return None


def _newest(path: Path, sessions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the process that counts: the one that trains, else the newest that began to. A refused one changes nothing."""
    if not isinstance(sessions[-1].get("exit_reason"), str) and is_held(path / "run.lock"):
        return sessions[-1]
    return next((session for session in reversed(sessions) if "results" in session), sessions[-1])


def _described(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a process writes when it begins, as far as it exists and is of the right kind."""
    kinds = {"task": str, "items": str, "measure": str, "vocabulary": str, "higher_is_better": bool}
    return {name: results[name] for name, kind in kinds.items() if isinstance(results.get(name), kind)}


def _read_settings(path: Path) -> Mapping[str, Any]:
    document = _read_json(path / "settings.json")
    if not isinstance(document, Mapping) or not {"model", "data", "trainer"} <= document.keys():
        raise NoRecordError("settings.json does not hold the settings of a run")
    return document


def read_sessions(path: Path) -> list[Mapping[str, Any]]:
    """Returns what each process of the run at `path` noted. Raises NoRecordError if that cannot be read."""
    document = _read_json(path / "run.json")
    sessions = document.get("sessions") if isinstance(document, Mapping) else None
    if not isinstance(sessions, list) or not sessions or not all(isinstance(session, Mapping) for session in sessions):
        raise NoRecordError("run.json does not hold the record of a run")
    return sessions


def _read_json(path: Path) -> Any:
    try:
        if not path.is_file():
            raise NoRecordError(f"it has no {path.name}" if not os.path.lexists(path) else f"{path.name} is no file")
        with open(path, "rb") as file:
            return parse_json(file.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        raise NoRecordError(f"{path.name} cannot be read: {error}") from error


# ---- how a run ended


def _ended(path: Path, session: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the status of a run, and how it ended in words."""
    reason = session.get("exit_reason")
    if not isinstance(reason, str):
        return ("running", "running") if is_held(path / "run.lock") else ("killed", "killed")
    if re.fullmatch(r"SIG[A-Z0-9]+", reason):
        return "stopped", f"stopped by {reason}"
    if re.match(r"KeyboardInterrupt|SystemExit: (129|130|143)$", reason):
        return "stopped", "stopped at once"
    if re.match(r"[A-Za-z_.]+: |[A-Za-z_.]+(Error|Exception|Exit)\b", reason):
        kind, _, words = reason.partition(": ")
        return "failed", words.strip() or kind
    return "finished", reason


def is_held(path: Path) -> bool:
    """Tells whether a process holds the lock file at `path`. Nothing is changed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: the file exists only while somebody trains, or was killed
        return False
    finally:
        os.close(descriptor)
    return False


# ---- how good its model is


def _from_results(results: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers that a process wrote when it ended."""
    test = results.get("test")
    return {
        "num_steps": _whole(results.get("num_steps")), "num_items": _whole(results.get("num_items")),
        "seconds": _number(results.get("seconds")), "evaluation_seconds": _number(results.get("evaluation_seconds")),
        "items_per_second": _number(results.get("items_per_second")),
        "best_step": _whole(results.get("best_step")), "valid": _result(results["valid"]),
        "test": _result(test) if isinstance(test, Mapping) and "final" in session else None,
        "test_split": session.get("final_split") if isinstance(session.get("final_split"), str) else None,
    }  # fmt: skip


def _result(document: Mapping[str, Any]) -> Result | None:
    """Returns None if no validation of the run was finite."""
    value = _number(document.get("value"))
    if value is None and not document.get("num_tokens"):
        return None
    return Result(value, _bits(document), {k: v for k, v in document.items() if k not in ("value", "bits_per_character")})


def _bits(document: Mapping[str, Any]) -> float | None:
    """Returns None if the text has words that the tokenizer does not spell."""
    is_spelt = not document.get("num_unk") or _number(document.get("spelling_nats")) is not None
    return None if not is_spelt else _number(document.get("bits_per_character"))


def _from_metrics(path: Path, results: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
    """Says by its last records how far a run came that was killed, or that an earlier version trained."""
    described = _described(results)
    items, measure = described.get("items", "tokens"), described.get("measure", "nats_per_token")
    sign = -1 if described.get("higher_is_better") else 1
    last: dict[str, Any] = {}
    best: Mapping[str, Any] | None = None
    for record in iter_records(path / "metrics.jsonl"):
        last |= {name: value for name, value in record.items() if value is not None}
        value = _number(record.get(f"val/{measure}"))
        if value is not None and (best is None or sign * value < sign * best[f"val/{measure}"]):
            best = record
    final = session.get("final") if isinstance(session.get("final"), Mapping) else None
    valid = best and Result(
        best[f"val/{measure}"], _number(best.get("val/bits_per_character")), _mapping(results.get("evaluation"))
    )
    return {
        "num_steps": _whole(last.get("step")), "num_items": _whole(last.get(f"train/{items}")),
        "seconds": _number(last.get("perf/training_seconds")),
        "evaluation_seconds": _number(last.get("perf/evaluation_seconds")),
        "items_per_second": _number(last.get(f"perf/{items}_per_second")), "best_step": best and best["step"], "valid": valid,
        "test": _result({**final, "value": final.get("value", final.get(measure))}) if final else None,
        "test_split": session.get("final_split") if final else None,
    }  # fmt: skip


def iter_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records in `metrics.jsonl`. Other lines are skipped, because a killed process leaves half a line."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_METRICS:
            return
        with open(path, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict) and type(record.get("step")) is int:
                    yield record
    except OSError:
        return


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
