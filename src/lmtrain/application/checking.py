"""Everything that is wrong with overrides, said at once, before torch is imported and before a run directory appears."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, QuotedString, RangeSweep

import lmtrain.config as config
from lmtrain.application.composing import PLAIN, Sources, choices, compose, register_schemas
from lmtrain.application.overrides import GROUPS, as_meant, parse, resolve, resumed_run
from lmtrain.errors import SettingsError
from lmtrain.settings import quoting, reading

MAX_SWEEP = 10_000  # values of one setting


def check_overrides(overrides: Sequence[str], sources: Sources = PLAIN) -> dict[str, Any]:
    """The settings that `overrides` compose; SettingsError with everything wrong in one message.

    Sweeps (`model=lstm,gru`) are checked value by value; the mapping returned is that of the first values.
    """
    parsed = parse(overrides)
    reading.raise_problems(
        [
            f"{item.input_line} would remove a setting, or put a group elsewhere. Set it to another value, or to null."
            for item in parsed
            if (item.is_delete() or item.package is not None) and not item.is_hydra_override()
        ]
    )
    composition, typed = Composition(parsed, sources), [item.key_or_group for item in parsed]
    problems = [problem for item in filter(composition.is_group, parsed) for problem in _check_choices(item, sources)]
    reading.raise_problems(problems)
    settings = composition.first()
    problems = composition.problems
    for variant in [settings, *([] if problems else composition.variants(settings))]:
        try:
            reading.read_config(with_start(variant, typed))
        except reading.SettingsProblemsError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)
    reading.raise_problems(problems)
    return dict(with_start(settings, typed))


def read_settings(overrides: Sequence[str]) -> config.Config:
    """The settings of a training that `overrides` would start, for a command that trains nothing."""
    register_schemas()
    parsed = parse(overrides)
    reading.raise_problems(
        [
            f"{item.input_line} gives several values; one is looked at here. For one value with commas in it, quote it twice: "
            f"{quoting.typed(item.key_or_group, (item.input_line or '').partition('=')[2])}"
            for item in parsed
            if item.is_sweep_override()
        ]
        + [f"{item.input_line} is a setting of Hydra, which has no part here." for item in parsed if item.is_hydra_override()]
    )
    overrides = as_meant(overrides)
    if (resumed := resumed_run(overrides)) is not None:
        raise SettingsError(
            f"resume={resumed} names a run, which goes on by training.", "", "Give its data instead: data=... data.path=... ."
        )
    return reading.read_config(check_overrides(overrides))


def refuse_sweep(overrides: Sequence[str]) -> None:
    """Raises SettingsError for overrides of several values."""
    reading.raise_problems(
        [
            f"{item.input_line} gives several values. To train once for each, type -m as well; for one value with commas "
            f"in it, quote it twice: {quoting.typed(item.key_or_group, (item.input_line or '').partition('=')[2])}"
            for item in parse(overrides)
            if item.is_sweep_override()
        ]
    )


def varies_vocabulary(overrides: Sequence[str], sources: Sources = PLAIN) -> bool:
    """Whether the jobs of a sweep may have different vocabularies, because tokenizer or text vary."""
    composition = Composition(parse(overrides), sources)
    first = composition.first()
    return any(
        {**variant[group], "cache_dir": None} != {**first[group], "cache_dir": None}
        for variant in composition.variants(first)
        for group in ("tokenizer", "data")
    )


def with_start(settings: Mapping[str, Any], typed: Sequence[str]) -> Mapping[str, Any]:
    """The settings with those of the model that `start_from` names."""
    if settings.get("start_from") is settings.get("start_from_new_tokens") is None:
        return settings
    from lmtrain.tasks import start_settings  # here: it imports torch

    return start_settings.with_start(settings, typed)


# ---- composing what was typed


@dataclass
class Composition:
    """What overrides compose to: with the first value of every sweep, and with each further one.

    problems  what is wrong with single overrides, found on the way
    """

    parsed: Sequence[Override]
    sources: Sources
    problems: list[str] = field(default_factory=list)

    def is_group(self, item: Override) -> bool:
        """Whether an override chooses a file of settings; Hydra asks in the same way."""
        key = item.key_or_group
        return not item.is_hydra_override() and (key in GROUPS or ("." not in key and bool(choices(self.sources, key))))

    def first(self, chosen: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """The settings with the first value of every override, but for the groups `chosen`."""
        groups = {item.key_or_group: item for item in self.parsed if self.is_group(item)}
        names = {key: values_of(item, self.sources)[0] for key, item in groups.items()} | dict(chosen)
        overrides = tuple(f"{'+' * groups[key].is_add()}{key}={quoting.as_override(name)}" for key, name in names.items())
        settings = copy.deepcopy(compose(self.sources, overrides))
        for item in self.parsed:
            if item.key_or_group not in groups and not item.is_hydra_override():
                problem = _apply(settings, item, self.sources)
                if problem and problem not in self.problems:
                    self.problems.append(problem)
        return resolve(settings, self.problems)

    def variants(self, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """`settings`, which are the first, with each further value of a sweep."""
        for item in self.parsed:
            if item.is_hydra_override() or not item.is_sweep_override():
                continue
            further = values_of(item, self.sources)[1:]
            if self.is_group(item):
                yield from (self.first({item.key_or_group: value}) for value in dict.fromkeys(further))
                continue
            *parents, name = item.key_or_group.split(".")
            for value in further:
                variant = copy.deepcopy(dict(settings))
                _within(variant, parents)[name] = value
                yield variant


def values_of(item: Override, sources: Sources) -> list[Any]:
    """All values of an override: several in a sweep. Raises SettingsError where there is none, or no end of them."""
    match item.value():
        case Glob() as pattern:
            values: list[Any] = pattern.filter(list(choices(sources, item.key_or_group)))
        case IntervalSweep(start=start, end=end):  # only for sweepers that search
            values = [int(bound) if bound.is_integer() else bound for bound in map(float, (start or 0, end or 0))]
        case RangeSweep() as steps:
            values = list(itertools.islice(steps.range(), MAX_SWEEP + 1)) if steps.step else []
        case ChoiceSweep() as choice:
            values = [value.text if isinstance(value, QuotedString) else value for value in choice.list]
        case value:
            values = [value]
    if not 1 <= len(values) <= MAX_SWEEP:
        reading.raise_problems([f"{item.input_line} stands for no value, or for more than {MAX_SWEEP:,}."])
    return values


def _check_choices(item: Override, sources: Sources) -> list[str]:
    """Group choices that do not exist."""
    group, problems = item.key_or_group, []
    for value in values_of(item, sources):
        for name in value if isinstance(value, list) else [value]:
            text = "null" if name is None else str(name)
            parent, _, last = f"{group}/{text}".removesuffix(".yaml").rpartition("/")
            if last not in choices(sources, parent):
                allowed = list(choices(sources, group))
                problems.append(
                    f"{group}={text} does not exist; allowed are {', '.join(allowed)}" + reading.nearest(text, allowed)
                )
            elif not isinstance(name, str):
                problems.append(f"{group}={text} is read as a number, not as a name. Quote it: {quoting.typed(group, text)}")
    return problems


def _apply(settings: dict[str, Any], item: Override, sources: Sources) -> str | None:
    """Sets one value in `settings`; what is wrong with it in words."""
    key = item.key_or_group
    *parents, name = key.split(".")
    if name == "kind":
        return f"{key} cannot be set by itself. Choose the group: {parents[-1]}=NAME."
    node = _within(settings, parents)
    if not isinstance(node, dict) or name not in node:
        return reading.unknown_setting(key, list(_iter_keys(settings)), _within(settings, [*parents, "kind"]))
    if isinstance(node[name], dict):
        return f"{key} is a group of settings. Set one of them, for example {key}.{next(iter(node[name]))}=..."
    node[name] = values_of(item, sources)[0]
    return None


def _within(settings: Any, parents: Sequence[str]) -> Any:
    """What stands in nested settings under the names `parents`; None where nothing does."""
    for parent in parents:
        settings = settings.get(parent) if isinstance(settings, Mapping) else None
    return settings


def _iter_keys(settings: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in settings.items():
        yield (key := config.joined(path, name))
        if isinstance(value, Mapping):
            yield from _iter_keys(value, key)
