"""Settings as JSON, and in what two of them differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any

from lmtrain.config import Resume, joined


def config_to_json(config: Any) -> Any:
    """Settings as JSON-able values: what `read_config` reads."""
    if dataclasses.is_dataclass(config):
        return {f.name: config_to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.name
    return config


def iter_changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Resume]]:
    """Every setting in which two configs differ: its name, the old value, the new one, and the rule for resuming."""
    if type(old) is not type(new):
        yield path, getattr(old, "kind", old), getattr(new, "kind", new), Resume.refused
        return
    for f in dataclasses.fields(old):
        before, after, key = getattr(old, f.name), getattr(new, f.name), joined(path, f.name)
        if dataclasses.is_dataclass(before):
            yield from iter_changes(before, after, key)
        elif before != after:
            yield key, config_to_json(before), config_to_json(after), f.metadata["resume"]
