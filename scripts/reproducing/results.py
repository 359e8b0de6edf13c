"""`scripts/results.json`: what came of every row of every table of quality, one entry per row and seed, from several sittings.

    row         its name, as `reproduce.py --list` shows it
    seeds       [2]: of a run. [1, 2, 3]: of three runs that are told together. null: of one run whose seed is not known
    numbers     by name; a list where a number is told for every seed
    deviations  by name, where `numbers` are means of several runs: their standard deviations (dividing by n - 1)
    machine, date, commit, command, seconds    what it was measured on, when, with which version, how, and how long that took
    source      the text that an entry was copied from, which was there before this file; null for what a script measured

What is not known is null. An entry that a script measured takes the place of an earlier one of the same row and seed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lmtrain.errors import DataError
from lmtrain.files.strict_json import parse_json
from lmtrain.files.unfinished import write_atomically

Number = float | list[float] | None


@dataclass(frozen=True)
class Result:
    """One entry."""

    row: str
    seeds: list[int] | None
    numbers: dict[str, Number]
    deviations: dict[str, float] | None = None
    machine: str | None = None
    date: str | None = None
    commit: str | None = None
    command: str | None = None
    seconds: float | None = None
    source: str | None = None

    @property
    def num_runs(self) -> int:
        return len(self.seeds or [0])


def load_results(path: Path) -> list[Result]:
    """All entries; none where there is no file. Raises DataError where it is not as described above."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        entries = parse_json(text)["results"]
        return [_entry(each) for each in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as results: {error}.",
            'It is {"results": [...]}, as the head of scripts/reproducing/results.py describes it.',
            "Take it from the repository again:  git checkout scripts/results.json",
        ) from error


def _entry(document: Any) -> Result:
    names = {field.name for field in fields(Result)}
    if unknown := set(document) - names:
        raise ValueError(f"an entry has the field {sorted(unknown)[0]}")
    result = Result(**document)
    is_list_of_seeds = isinstance(result.seeds, list) and result.seeds and all(type(seed) is int for seed in result.seeds)
    if not (isinstance(result.row, str) and isinstance(result.numbers, dict) and (result.seeds is None or is_list_of_seeds)):
        raise ValueError(f"the entry of {result.row} has a field of a wrong type")
    for value in [*result.numbers.values(), *(result.deviations or {}).values()]:
        if not all(each is None or type(each) in (int, float) for each in (value if isinstance(value, list) else [value])):
            raise ValueError(f"the entry of {result.row} has {value!r} where a number belongs")
    return result


def add_result(path: Path, result: Result) -> list[Result]:
    """Writes one more entry, whoever else does so at the same time; returns all."""
    with _alone(path.parent):
        kept = [each for each in load_results(path) if each.source or (each.row, each.seeds) != (result.row, result.seeds)]
        save_results(path, [*kept, result])
        return [*kept, result]


def save_results(path: Path, results: Sequence[Result]) -> None:
    """Atomically; entries of a row together, in the order in which rows were first met."""
    rows = list(dict.fromkeys(each.row for each in results))
    ordered = sorted(results, key=lambda each: (rows.index(each.row), each.source is None, each.seeds or [0]))
    lines = ",\n".join(json.dumps(_without_nulls(each), ensure_ascii=False, allow_nan=False) for each in ordered)
    write_atomically(path, '{"results": [\n' + lines + "\n]}\n")


def _without_nulls(result: Result) -> dict[str, Any]:
    """What is null by default need not be written."""
    return {name: value for name, value in asdict(result).items() if value is not None or name == "seeds"}


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Held by one process at a time; given up by the system however that ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def measured(results: Sequence[Result], row: str, seed: int) -> Result | None:
    """What a script measured of a row with a seed."""
    return next((each for each in results if each.row == row and each.seeds == [seed] and not each.source), None)


def chosen(results: Sequence[Result], row: str) -> list[Result]:
    """What a table shows of a row: its runs that scripts measured, or the text of before where that tells of more runs."""
    own = [each for each in results if each.row == row]
    runs = [each for each in own if not each.source]
    told = max((each for each in own if each.source), key=lambda each: each.num_runs, default=None)
    return [told] if told and told.num_runs > len(runs) else runs
