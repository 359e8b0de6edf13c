"""What a setting is where nobody set it, and in which settings a run differs from that.

A run is compared with the plain `python -m lmtrain`, group by group: `model=gru` differs in `model`, and further only in what
`conf/model/gru.yaml` and the class of these settings say otherwise. Works on mappings, so that runs of other versions, which
have other settings, can be compared as well.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import lmtrain.config as config
from lmtrain.settings.comparing import config_to_json
from lmtrain.settings.reading import with_new_names

NAMED_BY = {"model": ("cell", "kind"), "data": ("kind",), "tokenizer": ("name",), "optimizer": ("name",), "schedule": ("kind",)}
"""By which of its settings a group is chosen."""

SEED = "trainer.seed"
ABOUT_NOTHING = ("data.cache_dir", "resume")
"""Settings that no number depends on."""

OF_NO_GROUP = ("start_from", "start_from_new_tokens")
"""Settings of a run that belong to no group."""


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by its full name, and every group by the name that one types: `model`, `optimizer` and so on."""
    flat: dict[str, Any] = {}
    for group, members in with_new_names(settings).items():
        if group in OF_NO_GROUP:
            flat[group] = members
        if not isinstance(members, Mapping):
            continue
        if group in NAMED_BY:
            flat[group] = _name(group, members)
        flat |= {key: value for key, value in _iter_flat(members, group) if key not in ABOUT_NOTHING}
    return {key: value for key, value in flat.items() if not _is_name(key)}


def default_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What each setting of `flat_settings` is by default, beside groups chosen as there."""
    defaults: dict[str, Any] = {name: None for name in OF_NO_GROUP if name in flat}
    for group, chosen in _choices().items():
        if group not in config.GROUPS:
            continue
        name = flat.get(group, chosen)
        values = _group_defaults(group, name if isinstance(name, str) else chosen)
        if group in NAMED_BY:
            defaults[group] = chosen
        defaults |= {key: value for key, value in _iter_flat(values, group) if not _is_name(key) and key not in ABOUT_NOTHING}
    return defaults


def differing_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run (a mapping as in its settings.json) that differ from the defaults; the seed is not among them."""
    flat = flat_settings(settings)
    defaults = default_settings(flat)
    return {key: value for key, value in flat.items() if key != SEED and (key not in defaults or value != defaults[key])}


def _iter_flat(mapping: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        key = config.joined(path, str(name))
        if isinstance(value, Mapping):
            yield from _iter_flat(value, key)
        else:
            yield key, value


def _is_name(key: str) -> bool:
    group, _, name = key.partition(".")
    return name == "kind" or name in NAMED_BY.get(group, ())


def _name(group: str, members: Mapping[str, Any]) -> Any:
    return next((members[name] for name in NAMED_BY[group] if name in members), None)


@functools.cache
def _choices() -> dict[str, str]:
    """Which file of settings `conf/config.yaml` chooses of each group."""
    chosen: dict[str, str] = {}
    for entry in _read_yaml("config.yaml")["defaults"]:
        if isinstance(entry, dict):
            chosen |= {group: name for group, name in entry.items() if isinstance(name, str)}
    return chosen


@functools.cache
def _group_defaults(group: str, name: str) -> dict[str, Any]:
    """The settings of a group that was chosen by `name`: those of its class, and over them those of its file in `conf/`."""
    file = _read_yaml(f"{group}/{name}.yaml")
    hint = config.GROUPS[group]
    kinds = config.KINDS.get(hint, (hint,))
    kind = next((cls for cls in kinds if name in _names_of(cls, hint)), hint)
    return config_to_json(kind()) | {key: value for key, value in file.items() if key != "defaults"}


def _names_of(cls: type, hint: type) -> tuple[str, ...]:
    """What one types for a class of settings of the group `hint`; empty where its class does not tell."""
    if hint is config.ModelConfig:
        return config.names_of(cls)
    return (getattr(cls, "kind", ""),)


def _read_yaml(name: str) -> dict[str, Any]:
    """A file of `conf/`; empty where there is none, as for a group that somebody keeps elsewhere."""
    import yaml

    try:
        document = yaml.safe_load((config.conf_directory() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
