"""The Hydra application: the only file that knows Hydra.

Overrides are checked by `check_overrides` before Hydra acts on them, so that everything wrong with them is said at once, before
torch is imported and before a run directory appears. Hydra then composes `conf/`, makes the run directory and calls `train`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lmtrain.config as config
from lmtrain.errors import SettingsError, UserError, end_process

GROUPS = ("model", "data", "tokenizer", "optimizer", "schedule", "trainer", "experiment")


def register_schemas() -> None:
    """Gives Hydra the typed settings, in a group of their own that no user chooses from."""
    store = ConfigStore.instance().store
    store(group="schema", name="config", node=config.Config)
    for group, classes in (
        ("model", config.KINDS[config.ModelConfig]),
        ("data", config.KINDS[config.DataConfig]),
        ("schedule", config.KINDS[config.ScheduleConfig]),
    ):
        for cls in classes:
            store(group=f"schema/{group}", name=getattr(cls, "kind"), node=cls)
    store(group="schema/tokenizer", name="tokenizer", node=config.TokenizerConfig)
    store(group="schema/optimizer", name="optimizer", node=config.OptimizerConfig)
    store(group="schema/trainer", name="trainer", node=config.TrainerConfig)


def run(arguments: Sequence[str]) -> None:
    """`python -m lmtrain` without a command: checks the overrides, then lets Hydra train, sweep or show."""
    register_schemas()
    overrides = _overrides(arguments)
    extra: list[str] = []
    if not any(argument in ("--hydra-help", "--version", "--shell-completion", "-sc") for argument in arguments):
        mapping = check_overrides(overrides)
        if mapping["resume"]:
            # A resumed run goes on in its own directory; what Hydra wrote there at the start stays as it is.
            directory = Path(mapping["resume"]).expanduser().resolve()
            extra = [f"hydra.run.dir={_quoted(str(directory))}", "hydra.output_subdir=null"]
    sys.argv = [sys.argv[0], *arguments, *extra]
    hydra.main(version_base="1.3", config_path=str(config.conf_directory()), config_name="config")(_train)()


def _overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither one of Hydra's own options nor the value of one."""
    takes_value = (
        "--cfg",
        "-c",
        "--package",
        "-p",
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
    )
    takes_word = ("--info", "-i")  # its value may be left out
    before = ["", *arguments]
    return [
        argument
        for previous, argument in zip(before, arguments, strict=False)
        if not argument.startswith("-") and previous not in takes_value and not (previous in takes_word and "=" not in argument)
    ]


def _train(composed: DictConfig) -> float | None:
    from lmtrain.commands.train import resume, train  # here: it imports torch

    settings = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    settings = cast(dict[str, Any], settings)
    directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        if settings["resume"]:
            given = [o for o in HydraConfig.get().overrides.task if o.split("=")[0] != "resume"]
            return resume(directory, _given_values(given))
        return train(config.read_config(settings), directory)
    except UserError as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # the other jobs of a sweep go on
        end_process(error)


def check_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings that `overrides` compose; SettingsError with everything wrong in one message.

    Sweeps (`model=lstm,gru`) are checked value by value; the mapping returned is that of the first values.
    """
    problems: list[str] = []
    parsed = _parse(overrides)
    config.raise_problems(
        [
            f"~{item.key_or_group} would remove a setting. Set it to another value, or to null."
            for item in parsed
            if item.is_delete()
        ]
    )
    groups = [item for item in parsed if item.key_or_group in GROUPS]
    for item in groups:
        problems.extend(_check_choices(item))
    config.raise_problems(problems)
    settings = _compose([f"{item.key_or_group}={_first(item)}" for item in groups])
    for item in parsed:
        if item.key_or_group in GROUPS or item.key_or_group.split(".")[0] == "hydra":
            continue
        problem = _apply(settings, item)
        if problem:
            problems.append(problem)
    if settings.get("resume"):
        config.raise_problems(problems)  # the rest of the settings comes from the run itself
        return settings
    try:
        config.read_config(settings)
    except config.SettingsProblemsError as error:
        problems.extend(error.problems)
    config.raise_problems(problems)
    return settings


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser, parsed, problems = OverridesParser.create(), [], []
    for override in overrides:
        try:
            parsed.extend(parser.parse_overrides([override]))
        except HydraException:
            key, _, value = override.partition("=")
            problems.append(
                f"{override!r} cannot be read as key=value. Quote a value with commas, braces, blanks or a further '=' "
                f"twice, once for the shell and once for the settings: '{key}=\"{value}\"'."
            )
    config.raise_problems(problems)
    return parsed


def _check_choices(item: Override) -> list[str]:
    """Group choices that do not exist."""
    directory = config.conf_directory() / item.key_or_group
    allowed = sorted(path.stem for path in directory.glob("*.yaml"))
    return [
        f"{item.key_or_group}={value} does not exist; allowed are {', '.join(allowed)}" + config.nearest(str(value), allowed)
        for value in _values(item)
        if value not in allowed and not (item.key_or_group == "experiment" and value is None)
    ]


def _values(item: Override) -> list[Any]:
    """All values of an override: several in a sweep."""
    if item.is_sweep_override():
        return [_plain(value) for value in item.sweep_iterator()]
    return [item.value()]


def _first(item: Override) -> str:
    value = _values(item)[0]
    return "null" if value is None else str(value)


def _plain(value: Any) -> Any:
    """A sweep yields text; what it stands for."""
    if isinstance(value, str):
        return OmegaConf.to_container(OmegaConf.create(f"v: {value}"))["v"]  # type: ignore[index, call-overload]
    return value


def _compose(group_overrides: list[str]) -> dict[str, Any]:
    try:
        if not GlobalHydra.instance().is_initialized():
            with initialize_config_dir(str(config.conf_directory()), version_base="1.3"):
                composed = compose("config", overrides=group_overrides)
        settings = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(f"The settings do not compose: {error}", "", "Check the files in conf/.") from None
    return cast(dict[str, Any], settings)


def _apply(settings: dict[str, Any], item: Override) -> str | None:
    """Sets one value in `settings`; what is wrong with it in words."""
    key = item.key_or_group
    *parents, name = key.split(".")
    if name == "kind":
        return f"{key} cannot be set by itself. Choose the group: {parents[-1]}=NAME."
    node: Any = settings
    for parent in parents:
        node = node.get(parent) if isinstance(node, Mapping) else None
    if not isinstance(node, dict) or name not in node:
        return config.unknown_setting(key, list(_all_keys(settings)))
    if isinstance(node[name], dict):
        return f"{key} is a group of settings. Set one of them, for example {key}.{next(iter(node[name]))}=..."
    for value in reversed(_values(item)):
        node[name] = value
    return None


def _all_keys(settings: Mapping[str, Any], path: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in settings.items():
        keys.append(path + name)
        if isinstance(value, Mapping):
            keys.extend(_all_keys(value, f"{path}{name}."))
    return keys


def _given_values(overrides: Sequence[str]) -> dict[str, Any]:
    """`key: value` of the overrides given beside `resume=`; whole groups cannot be exchanged then."""
    values: dict[str, Any] = {}
    for item in _parse(overrides):
        if item.key_or_group in GROUPS:
            raise SettingsError(
                f"{item.input_line} was given together with resume=.",
                "A resumed run keeps its groups of settings; single values may be set.",
                f"Type for example {item.key_or_group}.NAME=VALUE, or leave it out.",
            )
        values[item.key_or_group] = item.value()
    return values


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
