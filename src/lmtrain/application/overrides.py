"""What was typed as `key=value`: parsed by Hydra, read as it was meant, and which run it goes on with."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lmtrain.config as config
from lmtrain.errors import SettingsError
from lmtrain.settings import quoting, reading
from lmtrain.shell import expanded, quoted_for_shell

GROUPS = (*config.GROUPS, "task", "experiment")


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides as Hydra reads them. Raises SettingsError for all that cannot be read."""
    parsed, problems = [], []
    for override in overrides:
        try:
            parsed.append(_parsed(override))
        except HydraException:
            problems.append(_unreadable(override))
    reading.raise_problems(problems)
    return parsed


@functools.lru_cache(maxsize=1000)  # every override is looked at several times
def _parsed(override: str) -> Override:
    (item,) = OverridesParser.create().parse_overrides([override])
    return item


def _unreadable(override: str) -> str:
    """Why Hydra does not take `override` for key=value, and what to type instead."""
    key, equal, value = override.partition("=")
    if not override:
        return "An empty word is not key=value. Leave it out."
    if not equal:
        if expanded(override).exists():
            return (
                f"{override!r} is not key=value. To train on the text in it, type  data=text "
                f"{quoting.typed('data.path', override)}"
            )
        return (
            f"{override!r} is not key=value. Is it part of a value that contains spaces? Quote such a value: "
            f"{quoting.typed('data.path', 'my text.txt')}"
        )
    if not re.fullmatch(r"[+~]*[\w/@$-]+(\.[\w/@$-]+)*", key, re.ASCII):
        return f"{override!r} does not begin with the name of a setting. See  python -m lmtrain settings"
    line = (
        quoted_for_shell(f"{key}={quoting.in_quotation_marks(value)}")
        if key.startswith("hydra.")
        else quoting.typed(key, value)
    )
    return (
        f"{override!r} cannot be read as key=value. Quote a value of other characters than letters from a to z, digits and "
        f"_ - . / : twice, once for the shell and once for the settings: {line}"
    )


def as_meant(overrides: Sequence[str]) -> list[str]:
    """The overrides, in which what sets a path is one: `resume=123` names a run and no number.

    `hydra.run.dir=~/runs` is in the home directory: behind `=` the shell leaves `~` to us. Where we open the file ourselves, it
    is replaced there.
    """
    return [_with_path(item, override) for item, override in zip(parse(overrides), overrides, strict=True)]


def _with_path(item: Override, override: str) -> str:
    if item.key_or_group not in quoting.PATHS or item.is_sweep_override() or item.is_delete():
        return override
    key, _, text = override.partition("=")
    value = item.value()
    if isinstance(value, int | float):
        return f"{key}={quoting.quoted(text.strip())}"
    if isinstance(value, str) and value.startswith("~") and item.is_hydra_override():
        name, slash, rest = value.partition("/")
        return f"{key}={quoting.in_quotation_marks(quoting.escaped(str(expanded(name))) + slash + rest)}"
    return override


def keys_of(overrides: Iterable[str]) -> list[str]:
    """The names of the settings and groups that overrides set."""
    return [override.partition("=")[0].lstrip("+") for override in overrides]


def of_hydra(words: Iterable[str]) -> list[str]:
    """Those of the overrides that set something of Hydra's."""
    return [word for word in words if word.lstrip("+").startswith(("hydra.", "hydra/"))]


def resolve(settings: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """`settings` with every `${...}` replaced. Only what was typed here is resolved, never what a checkpoint says."""
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(settings), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        reading.raise_problems([*problems, _unresolved(settings, getattr(error, "full_key", None) or "", error)])
    return cast(dict[str, Any], resolved)


def _unresolved(settings: Mapping[str, Any], key: str, error: Exception) -> str:
    """Says which setting cannot be resolved, and how text with a `${` in it is typed."""
    said = str(error).partition("\n")[0].rstrip(".")
    value: Any = settings
    for name in [key] if key in settings else key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        return f"{key or 'The settings'} cannot be resolved: {said}."
    stands = "${NAME} stands for the value of another setting"
    return f"{key}={value} cannot be resolved: {said}. {stands}; for text with a $ in it, type {quoting.typed(key, value)}"


def resolved_value(item: Override) -> Any:
    """The value of an override that is none of a sweep, with every `${...}` in it replaced."""
    return resolve({item.key_or_group: item.value()}, [])[item.key_or_group]


# ---- a run that goes on


def resumed_run(overrides: Sequence[str]) -> str | None:
    """The run that `resume=` names. Raises SettingsError where it names several."""
    items = [item for item in parse(overrides) if item.key_or_group == "resume"]
    if any(item.is_sweep_override() for item in items):
        raise SettingsError(
            f"{items[-1].input_line} names several runs.",
            "One run goes on at a time.",
            "Type resume=RUN for each of them; a path with commas is quoted twice: 'resume=\"a, b\"'.",
        )
    named = resolved_value(items[-1]) if items else None
    return named if isinstance(named, str) and named else None


def given_values(overrides: Sequence[str]) -> dict[str, Any]:
    """`key: value` of the overrides given beside `resume=`; whole groups cannot be exchanged then.

    They are compared with the settings of the run, not with the defaults: see `lmtrain.commands.resuming`.
    """
    values: dict[str, Any] = {}
    for item in parse(overrides):
        if item.key_or_group in GROUPS or item.is_delete() or item.package is not None or item.is_sweep_override():
            raise SettingsError(
                f"{item.input_line} was given together with resume=.",
                "A resumed run keeps its groups of settings; single values may be set.",
                f"Type for example {item.key_or_group}.NAME=VALUE, or leave it out.",
            )
        if item.key_or_group != "resume" and not item.is_hydra_override():
            values[item.key_or_group] = resolved_value(item)
    return values
