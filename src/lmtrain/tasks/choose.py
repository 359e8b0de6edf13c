"""Which task the settings ask for: the kind of the model tells."""

from __future__ import annotations

import torch

import lmtrain.config as config
from lmtrain.tasks.base import Task
from lmtrain.tasks.language import Language


def open_task(settings: config.Config, device: torch.device) -> Task:
    """The task of `settings`, with its data read. Raises DataError for data that cannot be used."""
    return Language(settings, device)
