"""Chooses the task that the settings ask for, by the kinds of the data and of the model. Only its own file is imported."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

import lmtrain.config as config
from lmtrain.shell import expanded
from lmtrain.tasks.base import Task
from lmtrain.tasks.starting import open_start

CLASSES = {"language": "Language", "vectors": "WordVectors", "tag": "Tag", "classify": "Classify"}


def start_of(settings: config.Config, kept: Path | None = None) -> Any:
    """Returns the model to start from, which is `kept` there if not where `start_from` says; None if nothing is asked for."""
    if not settings.start_from:
        return None
    return open_start(kept or expanded(settings.start_from), config.task_of(settings.data, settings.model))


def open_task(settings: config.Config, device: torch.device, start: Any = None) -> Task:
    """Returns the task of `settings`, with its data read. Raises DataError for data that cannot be used.

    start   the model to start from, if it is open already
    """
    name = config.task_of(settings.data, settings.model)
    task = getattr(import_module(f"lmtrain.tasks.{name}"), CLASSES[name])
    start = start or start_of(settings)
    return cast(Task, task(settings, device) if start is None else task(settings, device, start=start))
