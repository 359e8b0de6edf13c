"""Files of settings: where Hydra looks for them, which choices there are of each group, and what they compose to."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lmtrain.config as config
from lmtrain.errors import SettingsError


@dataclass(frozen=True)
class Sources:
    """Where Hydra looks for files of settings: `conf/`, and what its own options and `hydra.searchpath` say."""

    config_name: str = "config"
    config_path: str = str(config.conf_directory())
    config_dir: str | None = None
    searchpath: tuple[str, ...] = ()  # the overrides of it

    def search_path(self) -> ConfigSearchPath:
        """The same as Hydra's own search path."""
        path = create_automatic_config_search_path(__file__, None, self.config_path)
        if self.config_dir is not None:
            directory, anchor = f"file://{self.config_dir}", SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=directory, anchor=anchor)
        return path


PLAIN = Sources()
"""Where it looks when nothing else is said."""


@functools.cache
def register_schemas() -> None:
    """Gives Hydra the typed settings, in a group of their own that no user chooses from."""
    store = ConfigStore.instance().store
    store(group="schema", name="config", node=config.Config)
    for group, hint in config.GROUPS.items():
        for cls in config.KINDS.get(hint, (hint,)):
            store(group=f"schema/{group}", name=getattr(cls, "kind", group), node=cls)


@functools.cache
def choices(sources: Sources, group: str) -> tuple[str, ...]:
    """The files of settings in a group, wherever Hydra looks."""
    with initialised(sources) as started:
        options = started.config_loader.get_group_options(
            group, ObjectType.CONFIG, config_name=sources.config_name, overrides=list(sources.searchpath)
        )
    return tuple(sorted(options))


@functools.cache  # a tenth of a second each; a sweep asks for the same choices many times
def compose(sources: Sources, group_overrides: tuple[str, ...]) -> dict[str, Any]:
    """The settings that Hydra composes, `${...}` as they are written. They are to be copied before they are changed."""
    try:
        with initialised(sources) as started:
            composed = started.compose_config(
                config_name=sources.config_name, overrides=[*sources.searchpath, *group_overrides], run_mode=RunMode.RUN,
                from_shell=False, with_log_configuration=False,
            )  # fmt: skip
        HydraConfig.instance().set_config(composed)  # for ${hydra:runtime.cwd} in a value
        settings = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _does_not_compose(str(error)) from None
    assert isinstance(settings, dict)
    del settings["hydra"]
    return cast(dict[str, Any], settings)


@contextmanager
def initialised(sources: Sources) -> Iterator[Hydra]:
    """Hydra as `hydra.main` starts it, without its words on directories that are missing: it says them itself later."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield Hydra.create_main_hydra2(task_name="lmtrain", config_search_path=sources.search_path())
        finally:
            GlobalHydra.instance().clear()


def _does_not_compose(problem: str) -> SettingsError:
    """Hydra's words, or ours where an experiment sets what another choice of group does not have."""
    setting, file = re.search(r"full_key: (\S+)", problem), re.search(r"In '([^']+)'", problem)
    if setting and file:
        group = setting[1].split(".")[0]
        return SettingsError(
            f"{file[1]} sets {setting[1]}, which the {group} that was chosen beside it does not have.",
            "",
            f"Leave out {group}=..., or write the experiment's other settings on the command line instead of experiment=.",
        )
    return SettingsError(f"The settings do not compose: {problem}", "", "Check the files of settings that were chosen.")
