"""Starting from another model: its weights, its vocabulary and its settings for a run on other data.

Every task takes the model as `open_saved` opens it. A run that cannot use it is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmtrain.data.overlap import MAX_HASHES
from lmtrain.errors import DataError, SettingsError
from lmtrain.models.base import LanguageModel, NeuralLanguageModel
from lmtrain.models.growth import grown_weights
from lmtrain.saved import Trained, load_lines
from lmtrain.shell import one_line
from lmtrain.tasks.opening import open_saved, task_at
from lmtrain.training.learner import load_weights, shared_once

SHOWN = 5  # tags or labels that a refusal names


def open_start(path: Path, task: str) -> Any:
    """Returns the model at `path` to start a run of `task` from. Raises SettingsError if it is of another task, or has no
    weights."""
    found = task_at(path)
    if found != task:
        raise SettingsError(
            f"start_from={one_line(str(path))} holds a model of task={found}, and the data are for task={task}.",
            "A model goes on with data of its own task.", f"Give data of task={found}, or a run of task={task}.",
        )  # fmt: skip
    if task == "vectors":
        raise SettingsError(
            "start_from= was given for task=vectors.", "Language models, taggers and classifiers start from others.",
            "Leave it out, and learn the vectors from both texts together.",
        )  # fmt: skip
    saved = open_saved(path)
    if isinstance(saved, Trained) and not isinstance(saved.model, NeuralLanguageModel):
        raise SettingsError(
            f"start_from={one_line(str(path))} holds counts, or a mixture: it has no weights that could be trained on.",
            "Window and recurrent models have them.",
            "Train a model of the new text, and interpolate both:  python -m lmtrain mix RUN_A RUN_B --output DIR",
        )
    return saved


def put_weights(model: NeuralLanguageModel, start: LanguageModel, *, unk_id: int | None, counts_V: Tensor) -> None:
    """Gives `model` the weights of `start`, and to new tokens of a larger vocabulary their first vectors.

    counts_V   how often the training text has each token of `model`
    """
    assert isinstance(start, NeuralLanguageModel), "see open_start"
    weights = shared_once(start)
    if model.vocab_size > start.vocab_size:
        assert unk_id is not None, "only what can be unknown is added"
        weights = grown_weights(weights, model, unk_id=unk_id, counts_N=counts_V[start.vocab_size :])
    load_weights(model, weights)


def with_lines_of(lines: Tensor, start: Trained) -> Tensor:
    """Joins hashes of training lines with those of the model that was started from, which has learnt from them as well."""
    (before,) = load_lines(start).train
    if before is None:
        return lines
    return torch.from_numpy(np.unique(np.concatenate([lines.numpy(), before]))[:MAX_HASHES])


def check_known(noun: str, found: Collection[str], known: Collection[str]) -> None:
    """Raises DataError if the training data have a tag or a label that the model to start from does not know."""
    new = sorted({*found} - {*known})
    if new:
        listed = ", ".join(map(one_line, new[:SHOWN])) + (f" and {len(new) - SHOWN:,} more" if len(new) > SHOWN else "")
        raise DataError(
            f"The data have a {noun} that the model to start from does not know: {listed}.",
            f"It knows {', '.join(map(one_line, known))}.",
            f"Leave start_from out, or name every {noun} as that model does.",
        )
