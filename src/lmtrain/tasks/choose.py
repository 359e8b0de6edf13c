"""Which task the settings ask for: the kinds of the data and of the model tell. Only its own file is imported."""

from __future__ import annotations

from importlib import import_module
from typing import cast

import torch

import lmtrain.config as config
from lmtrain.tasks.base import Task

CLASSES = {"language": "Language", "vectors": "WordVectors", "tag": "Tag", "classify": "Classify"}


def open_task(settings: config.Config, device: torch.device) -> Task:
    """The task of `settings`, with its data read. Raises DataError for data that cannot be used."""
    name = config.task_of(settings.data, settings.model)
    return cast(Task, getattr(import_module(f"lmtrain.tasks.{name}"), CLASSES[name])(settings, device))
