"""The space that `python -m lmtrain search` searches: a YAML file with the settings of every trial and the space of the others.

    settings   those that are the same in every trial; may be left out
    space      for each other setting a list of values, or {low, high} with step or log

`search --help` shows one. `log: true` draws evenly in the logarithm: as many from 0.001 to 0.01 as from 0.01 to 0.1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.errors import SettingsError
from lmtrain.settings import quoting
from lmtrain.shell import one_line

MAX_BYTES = 1 << 20
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
SCALAR = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both and `step` are whole."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, *([self.step] if self.step is not None else [])))

    def suggest(self, trial: Any, name: str) -> Any:
        """Returns a value, as Optuna chooses it for this trial."""
        if self.is_whole:
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        """Returns a value, as Optuna chooses it for this trial; lists, which it does not take, go by their JSON."""
        words = [value if isinstance(value, SCALAR) else json.dumps(value) for value in self.values]
        return self.values[words.index(trial.suggest_categorical(name, words))]


@dataclass(frozen=True)
class Space:
    """The settings of every trial, and the ranges in which the others are searched."""

    settings: Mapping[str, Any]
    space: Mapping[str, Range | Choice]

    def to_json(self) -> dict[str, Any]:
        """Returns what two processes must have in common to search together."""
        return {"settings": dict(self.settings), "space": {name: vars(where) for name, where in self.space.items()}}

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Returns the command line of a trial."""
        return [f"{name}={quoting.as_override(value)}" for name, value in {**self.settings, **values}.items()]


def read_space(path: Path) -> Space:
    """Returns the space in a file. Raises SettingsError for what is none."""
    document = _read(path)
    if not isinstance(document, dict) or not isinstance(document.get("space"), dict) or not document["space"]:
        raise _wrong(path, "It holds no `space` with settings in it.")
    if extra := [str(name) for name in document if name not in ("settings", "space")]:
        raise _wrong(path, f"It holds {one_line(', '.join(extra))} beside `settings` and `space`.")
    settings = document.get("settings") or {}
    if not isinstance(settings, dict):
        raise _wrong(path, "Its `settings` are no mapping of names to values.")
    for name, value in settings.items():
        _check_name(path, name)
        settings[name] = value = _as_meant(value)
        if not _is_value(value):
            raise _wrong(path, f"settings: {one_line(str(name))} is {_shown(value)}, which is no value of a setting.")
    if both := [name for name in settings if name in document["space"]]:
        raise _wrong(path, f"{one_line(', '.join(both))} is both in `settings` and in `space`.")
    return Space(settings, {name: _dimension(path, name, where) for name, where in document["space"].items()})


def _read(path: Path) -> Any:
    import yaml

    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MB")
        return yaml.safe_load(text.decode())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise _wrong(path, f"It cannot be read: {one_line(str(words))}.") from None


def _check_name(path: Path, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise _wrong(path, f"{_shown(name)} is no name of a setting.")
    if name.startswith("hydra") or name == "resume":
        raise _wrong(path, f"{one_line(name)} says where or how a run is made, which `search` does itself.")


def _dimension(path: Path, name: Any, where: Any) -> Range | Choice:
    """Where the values of one setting are looked for."""
    _check_name(path, name)
    if isinstance(where, list):
        where = _as_meant(where)
        if not where or not all(_is_value(value) for value in where):
            raise _wrong(path, f"{one_line(name)}: {_shown(where)} is no list of values.")
        if len({json.dumps(value) for value in where}) < len(where):
            raise _wrong(path, f"{one_line(name)}: {_shown(where)} has a value twice.")
        return Choice(tuple(where))
    if not isinstance(where, dict) or not {"low", "high"} <= where.keys() <= {"low", "high", "step", "log"}:
        raise _wrong(path, f"{one_line(name)}: {_shown(where)} is neither a list of values nor a range.")
    log, step = where.get("log", False), where.get("step")
    numbers = [_number(where[key]) for key in ("low", "high", *(["step"] if step is not None else []))]
    if not all(number is not None for number in numbers) or not isinstance(log, bool):
        raise _wrong(path, f"{one_line(name)}: {_shown(where)} needs finite numbers, and true or false for log.")
    low, high = numbers[0], numbers[1]
    if low > high:
        raise _wrong(path, f"{one_line(name)}: low={low} is above high={high}.")
    if log and low <= 0:
        raise _wrong(path, f"{one_line(name)}: log: true needs low above 0, and it is {low}.")
    if log and step is not None:
        raise _wrong(path, f"{one_line(name)}: log: true and step exclude each other.")
    if step is not None and numbers[2] <= 0:
        raise _wrong(path, f"{one_line(name)}: step={step} is not above 0.")
    return Range(low, high, None if step is None else numbers[2], log)


def _as_meant(value: Any) -> Any:
    """Reads 1e-3 as the number that was meant, which YAML reads as text for want of a point; in a list, too."""
    if isinstance(value, list):
        return [_as_meant(item) for item in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _number(value: Any) -> Any:
    value = _as_meant(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e300 and math.isfinite(value) else None


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, SCALAR) for item in value)
    return isinstance(value, SCALAR) and not (isinstance(value, float) and not math.isfinite(value))


def _shown(value: Any) -> str:
    return one_line(str(value)[:200])


def _wrong(path: Path, problem: str) -> SettingsError:
    return SettingsError(
        f"{one_line(str(path))} is no space to search. {problem}",
        "A space is a YAML file with `settings:` (the same in every trial) and `space:`; there a setting has a list of values, "
        "such as [gru, lstm], or {low: 1, high: 3}, with step: NUMBER or log: true where that is wanted.",
        "See  python -m lmtrain search --help  for an example.",
    )


# ---- the best settings


def experiment(overrides: Sequence[tuple[str, Any]], groups: Sequence[str], heading: Sequence[str], ending: str) -> str:
    """Returns settings as a file of `conf/experiment/`: groups are chosen in its list of defaults, the others follow."""
    import yaml

    chosen = [(name, value) for name, value in overrides if name in groups]
    defaults: list[Any] = [value for name, value in chosen if name == "experiment"]
    defaults += [{f"override /{name}": value} for name, value in chosen if name != "experiment"]
    tree: dict[str, Any] = {}
    for name, value in overrides:
        if name not in groups:
            *parents, last = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    document = ({"defaults": defaults} if defaults else {}) | tree
    lines = ["# @package _global_", *(f"# {one_line(line)}" for line in heading)]
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
    return "\n".join(lines) + f"\n{body}# {one_line(ending)}\n"
