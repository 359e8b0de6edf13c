"""`python -m lmtrain settings`: every setting with its default and its meaning, straight from the dataclasses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import lmtrain.config as config
from lmtrain.commands.options import Parser

TITLES: dict[str, tuple[type, ...]] = {
    "model": config.KINDS[config.ModelConfig],
    "data": config.KINDS[config.DataConfig],
    "tokenizer": (config.TokenizerConfig,),
    "optimizer": (config.OptimizerConfig,),
    "schedule": config.KINDS[config.ScheduleConfig],
    "trainer": (config.TrainerConfig,),
}


def main(arguments: list[str]) -> None:
    """Prints the settings of one group, or of all."""
    parser = Parser("settings", __doc__)
    parser.add_argument("group", nargs="?", choices=TITLES, help="only this group")
    group = parser.parse_args(arguments).group
    for name in [group] if group else TITLES:
        for cls in TITLES[name]:
            print("\n".join(_iter_lines(name, cls)))


def _iter_lines(group: str, cls: type) -> Iterator[str]:
    kind = getattr(cls, "kind", "")
    words = (cls.__doc__ or "").strip().splitlines()[0] if _has_words(cls) else ""
    yield f"\n{group}{f' ({kind})' if kind else ''}: {words}".rstrip()
    for field in dataclasses.fields(cls):
        if field.name != "kind":
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            yield f"  {f'{group}.{field.name}={_written(default)}':44} {field.metadata['meaning']}"


def _has_words(cls: type) -> bool:
    """Dataclasses without a docstring get their signature as one."""
    return bool(cls.__doc__) and not (cls.__doc__ or "").startswith(cls.__name__ + "(")


def _written(value: object) -> str:
    """As one types it."""
    return json.dumps(config.config_to_json(value)).strip('"').replace(" ", "")
