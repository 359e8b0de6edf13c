"""`python -m lmtrain settings` prints every setting with its default and its meaning, for a plain run and other choices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import lmtrain.config as config
from lmtrain.commands.options import Parser
from lmtrain.settings import comparing, reading


def main(arguments: list[str]) -> None:
    """Prints the settings of one group, or of all."""
    parser = Parser("settings", __doc__)
    parser.add_argument("group", nargs="?", choices=config.GROUPS, help="only this group")
    group = parser.parse_args(arguments).group
    for name in [group] if group else config.GROUPS:
        print("\n".join(_iter_lines(name)))
    if group is None:
        print("\nwithout a group:")
        for field in dataclasses.fields(config.Config):
            if field.name not in config.GROUPS:
                print(_line(f"{field.name}={_written(field.default)}", field))


def options_of(group: str) -> dict[str, Any]:
    """Returns the settings that each option of a group gives, that of a plain run first.

    Read from `conf/` itself: Hydra takes a fifth of a second to compose each.
    """
    directory = config.conf_directory()
    (plain,) = (item[group] for item in _read(directory / "config.yaml")["defaults"] if group in item)
    names = sorted((path.stem for path in (directory / group).glob("*.yaml")), key=lambda name: (name != plain, name))
    return {name: _option(group, directory / group / f"{name}.yaml") for name in names}


def _option(group: str, path: Path) -> Any:
    """Returns the defaults of the dataclass that the file names, `/schema/GROUP/KIND@_here_`, and what it sets itself."""
    values, cls = _read(path), config.GROUPS[group]
    kind = values.pop("defaults")[0].partition("@")[0].rpartition("/")[2]
    problems: list[str] = []
    settings = reading.read_settings(cls, values | ({"kind": kind} if cls in config.KINDS else {}), group, problems)
    reading.raise_problems(problems)
    return settings


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def _iter_lines(group: str) -> Iterator[str]:
    """Yields all settings of the first option of each class; of other options, those that differ."""
    options = options_of(group)
    for cls in dict.fromkeys(type(settings) for settings in options.values()):
        (first, shown), *others = [item for item in options.items() if type(item[1]) is cls]
        is_plain = first == next(iter(options))
        words = (cls.__doc__ or "").strip().splitlines()[0] if _has_words(cls) else ""
        yield f"\n{group}={first}{' (of a plain run)' if is_plain else ''}: {words}".rstrip(": ")
        for field in dataclasses.fields(cls):
            if field.name != "kind":
                yield _line(f"{group}.{field.name}={_written(comparing.config_to_json(getattr(shown, field.name)))}", field)
        for name, other in others:
            changes = [f"{key}={_written(after)}" for key, _, after, _ in comparing.iter_changes(shown, other, group)]
            yield f"  {f'{group}={name}':44} Instead of {group}={first}: {' '.join(changes) or 'the same'}"


def _line(setting: str, field: dataclasses.Field[Any]) -> str:
    return f"  {setting:44} {field.metadata['meaning']}"


def _has_words(cls: type) -> bool:
    """Tells whether a class has a docstring: dataclasses without one get their signature as theirs."""
    return bool(cls.__doc__) and not (cls.__doc__ or "").startswith(cls.__name__ + "(")


def _written(value: object) -> str:
    """Returns a value as one types it."""
    return json.dumps(value).strip('"').replace(" ", "")
