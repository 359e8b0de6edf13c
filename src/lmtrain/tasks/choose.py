"""Chooses the task that the settings ask for, by the kinds of the data and of the model. Only its own file is imported."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

import torch

import lmtrain.config as config
from lmtrain.shell import expanded
from lmtrain.tasks.base import Task
from lmtrain.tasks.starting import open_start

CLASSES = {"language": "Language", "vectors": "WordVectors", "tag": "Tag", "classify": "Classify"}


def open_task(settings: config.Config, device: torch.device, start: Path | None = None) -> Task:
    """Returns the task of `settings`, with its data read. Raises DataError for data that cannot be used.

    start   where the model to start from is kept, if not where `start_from` says
    """
    name = config.task_of(settings.data, settings.model)
    task = getattr(import_module(f"lmtrain.tasks.{name}"), CLASSES[name])
    if not settings.start_from:
        return cast(Task, task(settings, device))
    return cast(Task, task(settings, device, start=open_start(start or expanded(settings.start_from), name)))
