"""From a mapping to settings: every problem with it is named at once, each with the nearest valid name."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from enum import Enum
from typing import Any

from lmtrain.config import GROUPS, KINDS, MAX_LIST, TASKS, Cell, Config, ModelConfig, joined
from lmtrain.errors import SettingsError
from lmtrain.settings.conflicts import iter_conflicts
from lmtrain.settings.quoting import written

RENAMED = {
    "tokenizer.max_size": "tokenizer.vocab_size",
    "model.direct_order": "model.maxent_order",
    "model.direct_table": "model.maxent_table",
}
"""Settings that had another name once: read silently where a run saved them, refused where they are typed."""

ELSEWHERE = {
    **dict.fromkeys(("lr", "rate", "alpha"), "optimizer.learning_rate"),
    **dict.fromkeys(("wd", "decay", "l2"), "optimizer.weight_decay"),
    **dict.fromkeys(("emsize", "emb_dim", "emb_size", "embedding_dim", "embedding_size", "dim"), "model.embed_size"),
    **dict.fromkeys(("nhid", "hidden", "hidden_dim", "units", "rnn_size"), "model.hidden_size"),
    **dict.fromkeys(("nlayers", "layers", "depth"), "model.num_layers"),
    **dict.fromkeys(("bptt", "seq_len", "sequence_length", "block_size"), "trainer.chunk_length"),
    **dict.fromkeys(("bs", "batch"), "trainer.batch_size"),
    **dict.fromkeys(("clip", "grad_clip", "max_grad_norm"), "trainer.clip_norm"),
    **dict.fromkeys(("epochs", "max_epochs"), "trainer.num_epochs"),
    **dict.fromkeys(("steps", "max_steps", "max_iters"), "trainer.num_steps"),
    **dict.fromkeys(("tied", "weight_tying"), "model.tie_weights"),
    **dict.fromkeys(("threads", "num_workers"), "trainer.num_threads"),
    **dict.fromkeys(("gpu", "cuda"), "trainer.device"),
    "n": "model.order",
    "warmup_steps": "schedule.warmup",
}
"""What other programs call some settings, for the advice to one who types it here."""


def with_new_names(mapping: Any) -> Any:
    """Settings as a run saved them, under the names that they have now."""
    for old, new in RENAMED.items():
        (group, before), after = old.split("."), new.rpartition(".")[2]
        settings = mapping.get(group) if isinstance(mapping, Mapping) else None
        if isinstance(settings, Mapping) and before in settings and after not in settings:
            mapping = {**mapping, group: {after if name == before else name: value for name, value in settings.items()}}
    return mapping


def read_config(mapping: Mapping[str, Any]) -> Config:
    """The settings in `mapping`; missing ones take their defaults. Raises SettingsError naming *all* that is wrong."""
    problems: list[str] = []
    config = read_settings(Config, with_new_names(mapping), "", problems)
    if not problems:
        problems.extend(iter_conflicts(config))
    raise_problems(problems)
    return config


class SettingsProblemsError(SettingsError):
    """Everything that is wrong with a set of settings, a line each."""

    def __init__(self, problems: list[str]) -> None:
        head = "One setting cannot be used:" if len(problems) == 1 else f"{len(problems)} settings cannot be used:"
        remedy = "\nNothing was started. All settings:  python -m lmtrain --cfg job   meanings:  python -m lmtrain settings"
        super().__init__("\n  * ".join([head, *problems]), "", remedy)
        self.problems = problems


def raise_problems(problems: list[str]) -> None:
    """Raises one SettingsProblemsError with every problem in it; nothing where there is none."""
    if problems:
        raise SettingsProblemsError(problems)


def read_settings(cls: type, mapping: object, path: str, problems: list[str]) -> Any:
    """An instance of dataclass `cls` from `mapping`; appends to `problems` what cannot be used."""
    if not isinstance(mapping, Mapping):
        problems.append(f"{path or 'the settings'} is {mapping!r}; a group of settings is needed.")
        return None
    cls = _class_of_kind(cls, mapping, path, problems)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            allowed = [joined(path, name) for name in fields]
            problems.append(unknown_setting(joined(path, str(key)), allowed, getattr(cls, "kind", "")))
    values = {}
    for name, spec in fields.items():
        key, hint = joined(path, name), hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = read_settings(typing.cast(type, hint), mapping.get(name, {}), key, problems)
        elif name in mapping:
            values[name] = _read_value(mapping[name], hint, spec.metadata, key, problems)
    return cls(**{name: value for name, value in values.items() if value is not MISSING}) if not problems else None


def _class_of_kind(cls: type, mapping: Mapping[str, Any], path: str, problems: list[str]) -> type:
    if cls not in KINDS:
        return cls
    named = {getattr(kind, "kind"): kind for kind in KINDS[cls]}
    kind = mapping.get("kind")
    if isinstance(kind, str) and kind in named:
        return named[kind]
    problems.append(f"{path}.kind is {kind!r}; allowed are {', '.join(named)}.")
    return cls


def _read_value(value: Any, hint: Any, metadata: Mapping[str, Any], key: str, problems: list[str]) -> Any:
    """`value` as type `hint` within its range, or MISSING with the problem noted."""
    try:
        value = _convert(value, hint)
    except ValueError as error:
        problems.append(f"{key}={written(value)} is not usable; {error}.")
        return MISSING
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            wrong = _outside(number, metadata)
            if wrong:
                problems.append(f"{key}={written(value)} is out of range; allowed is {wrong}.")
    if "only" in metadata and value != metadata["only"]:
        problems.append(f"{key}={written(value)} cannot be set; here it is always {metadata['only']}.")
    return value


def _convert(value: Any, hint: Any) -> Any:
    """`value` as `hint`; ValueError says what is allowed."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return None if value is None else _convert(value, inner[0])
    if typing.get_origin(hint) is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError("allowed is a list such as [1,2]")
        if len(value) > MAX_LIST:
            raise ValueError(f"allowed are at most {MAX_LIST} values")
        return [_convert(item, typing.get_args(hint)[0]) for item in value]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _convert_enum(value, hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 1000 else math.inf  # which no range allows
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"allowed is {names[hint]}")
    return value


def _convert_enum(value: Any, hint: type[Enum]) -> Enum:
    names = list(hint.__members__)
    text = value.name if isinstance(value, Enum) else value
    if isinstance(value, bool):
        text = "on" if value else "off"  # YAML reads both as truth values
    if isinstance(text, str) and text in names:
        return hint[text]
    raise ValueError(f"allowed are {', '.join(names)}{nearest(str(text), names)}".rstrip(".?"))


def _outside(number: float, metadata: Mapping[str, Any]) -> str:
    """The range in words where `number` is outside it, else nothing."""
    least, most, above, below = (metadata.get(name) for name in ("least", "most", "above", "below"))
    inside = (
        (isinstance(number, int) or math.isfinite(number))
        and (least is None or number >= least)
        and (most is None or number <= most)
        and (above is None or number > above)
        and (below is None or number < below)
    )
    if inside:
        return ""
    low = f"at least {least}" if least is not None else f"above {above}" if above is not None else "a finite number"
    high = f" and at most {most}" if most is not None else f" and below {below}" if below is not None else ""
    return low + high


def unknown_setting(key: str, allowed: list[str], kind: object = "") -> str:
    """One line for a setting that does not exist, with the nearest one that does, or the choice that it belongs to.

    kind  of the settings of that group now: only choices for the same tasks are named
    """
    if key in RENAMED:
        return f"{key} is now called {RENAMED[key]}. Type {RENAMED[key]}= instead."
    group, _, name = key.partition(".")
    classes = [cls for cls in KINDS.get(GROUPS.get(group, object), ()) if _are_of_one_task(kind, getattr(cls, "kind"))]
    owners = [getattr(cls, "kind") for cls in classes if name in {f.name for f in dataclasses.fields(cls)}]
    if owners:
        choices = " or ".join(f"{group}={'|'.join(Cell.__members__) if owner == 'recurrent' else owner}" for owner in owners)
        kinds_in_words = " or ".join(owners)
        return (
            f"{key} does not exist here; it belongs to {group} settings of the kind {kinds_in_words}. Type {choices} as well."
        )
    last = key.rpartition(".")[2]
    if last == "patience" or last.startswith("early"):
        return (
            f"{key} does not exist; trainer.patience=N ends training after N evaluations in a row without improvement. "
            "(optimizer.patience is NT-ASGD's, schedule.patience that of schedule=plateau.) In any case it is the best "
            "checkpoint that sample, score and evaluate use."
        )
    return f"{key} does not exist{nearest(key, allowed)}"


def _are_of_one_task(*kinds: object) -> bool:
    """Whether some task has models of all these kinds; True for kinds of other things."""
    of_tasks = [{getattr(cls, "kind") for cls in KINDS[ModelConfig] if issubclass(cls, models)} for _, models in TASKS.values()]
    return not set.union(*of_tasks).issuperset(kinds) or any(models.issuperset(kinds) for models in of_tasks)


def nearest(word: str, allowed: list[str]) -> str:
    """'; did you mean X?' where something allowed is near, first in the same group, else '.'."""
    group, _, name = word.rpartition(".")
    allowed = [key for key in allowed if not key.endswith(".kind")]  # which is set by the choice of a group
    same = [key for key in allowed if key.rpartition(".")[2] == name]
    if same := same or [key for key in allowed if key == ELSEWHERE.get(name)]:
        return f"; did you mean {same[0]}?"
    beside = [key for key in allowed if key.rpartition(".")[0] == group]
    for keys, cutoff in ((beside, 0.6), (allowed, 0.7)):
        by_name = {key.rpartition(".")[2]: key for key in keys}
        if close := difflib.get_close_matches(name, by_name, n=1, cutoff=cutoff):
            return f"; did you mean {by_name[close[0]]}?"
    return "."
