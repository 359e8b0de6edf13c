"""How a setting is declared: a typed default, a meaning, a range, and by one of three words what a resumed run may do with it.

class WindowConfig(NeuralConfig, kind="window"):
    context: int = kept(8, "Tokens that the model sees.", least=1)     a resumed run keeps it: another value is refused
    dropout: float = noted(0.1, "Dropout.", **FRACTION)                it may be changed; a warning says so
    log_every: int = free(10, "Steps between two records.")            it may be changed; nothing that is learnt sees it
    hidden_size: int = 256                                             as it is inherited, but for the default
"""

from __future__ import annotations

import inspect
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any, TypedDict, Unpack, dataclass_transform

MAX_LIST = 1000  # items of a setting that is a list, also in a checkpoint


class Range(TypedDict, total=False):
    """least <= value <= most, above < value < below"""

    least: float
    most: float
    above: float
    below: float


SIZE: Range = {"least": 1, "most": 1 << 16}
FRACTION: Range = {"least": 0, "below": 1}


class Resume(Enum):
    """What happens when a resumed run is given another value than it was started with."""

    allowed = "allowed"
    warned = "warned"
    refused = "refused"


def setting(default: Any, meaning: str, *, resume: Resume, **range: Unpack[Range]) -> Any:
    """A dataclass field with its meaning, its range and its resume rule."""
    return _field(default, {"meaning": meaning, "resume": resume, **range})


kept = partial(setting, resume=Resume.refused)
noted = partial(setting, resume=Resume.warned)
free = partial(setting, resume=Resume.allowed)


def fixed(kind: str) -> Any:
    """The field that says which of several classes of settings a mapping is; it cannot be set to anything else."""
    return _field(kind, {"meaning": "The kind of these settings.", "only": kind, "resume": Resume.refused})


def _field(default: Any, metadata: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True)
class Settings:
    """Settings of one subject. Every class made of it is a dataclass whose fields are given by name."""

    def __init_subclass__(cls, kind: str = "") -> None:
        """`kind` is what the field of that name says; a plain value changes the default of a setting that is inherited."""
        own = inspect.get_annotations(cls)
        if kind:
            cls.__annotations__, cls.kind = {"kind": "str", **own}, fixed(kind)  # type: ignore[attr-defined]
        inherited = {spec.name: spec for base in reversed(cls.__mro__[1:]) if is_dataclass(base) for spec in fields(base)}
        for name, value in list(vars(cls).items()):
            if name in own and name in inherited and not isinstance(value, Field):
                setattr(cls, name, _field(value, inherited[name].metadata))
        dataclass(kw_only=True)(cls)
