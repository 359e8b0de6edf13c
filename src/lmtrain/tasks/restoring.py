"""Reads from the disk what checkpoints of taggers, classifiers and word vectors have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

import lmtrain.config as config
from lmtrain.data.tokenizer import WordTokenizer
from lmtrain.errors import CheckpointError, DataError
from lmtrain.expected import agree, within
from lmtrain.saved import read_tokenizer, task_in
from lmtrain.settings import comparing, reading
from lmtrain.shell import one_line
from lmtrain.training.checkpoint import Checkpoint, load_checkpoint, load_document, read_named

Split = TypeVar("Split")
Settings = TypeVar("Settings", bound=config.ModelConfig)

NOUNS = {"tag": "A tagger", "classify": "A classifier", "vectors": "A model of word vectors"}


def open_checkpoint(
    path: str | Path, prefer: Literal["best", "last"], task: str, names: Sequence[str], optional: Sequence[str] = ()
) -> Checkpoint:
    """Returns the files `names` of a run or checkpoint directory of `task`. Raises CheckpointError for one of another task."""
    checkpoint = read_named(path, prefer, lambda found: load_checkpoint(found, names, optional))
    found = task_in(checkpoint.path, checkpoint.documents.get("model"))
    if found != task:
        raise CheckpointError(
            f"{one_line(str(checkpoint.path))} holds a model of task={found}.", f"{NOUNS[task]} is needed here.",
            f"Name a run of task={task}.",
        )  # fmt: skip
    return checkpoint


def read_word_tokenizer(checkpoint: Checkpoint) -> WordTokenizer:
    """Returns the tokenizer of a checkpoint. Raises UnfitError for one that is not of words."""
    tokenizer = read_tokenizer(checkpoint)
    with within("tokenizer.json: "):
        agree(isinstance(tokenizer, WordTokenizer), "name", "is no tokenizer of words", "word")
    assert isinstance(tokenizer, WordTokenizer)
    return tokenizer


def read_model_settings(value: Any, kinds: tuple[type[Settings], ...], what: str) -> Settings:
    """Returns the settings of a model of one of these kinds; `what` such a model is ("a tagger"). Raises UnfitError."""
    problems: list[str] = []
    settings = reading.read_settings(config.ModelConfig, value, "model", problems)
    if not problems and not isinstance(settings, kinds):
        problems = [f"model={settings.kind} is not {what}"]
    found = "; ".join(problems)[:1000].rstrip(".")
    agree(not problems, "settings", f"cannot be used: {found}", "what a run can be started with")
    assert isinstance(settings, kinds)
    return settings


def run_settings(path: Path, model: config.ModelConfig) -> dict[str, Any]:
    """Returns the settings of the run that made a checkpoint, as nested dictionaries; those of the model if no others
    were kept."""
    document = load_document(path, "training")
    saved = document.get("settings") if isinstance(document, dict) else None
    return dict(saved or {"model": comparing.config_to_json(model)})


class NoSplitError(DataError, KeyError):
    """A split was asked for that was not saved with a model. KeyError would show its text in quotation marks."""

    __str__ = Exception.__str__


def chosen_splits(saved: Mapping[str, Split], names: Sequence[str], path: Path) -> list[Split]:
    """Returns the splits of these names, without any the last one of those that were saved. Raises NoSplitError."""
    for name in names or [*saved][-1:] or ["test"]:
        if name not in saved:
            listed = ", ".join(saved) or "none"
            first = "evaluate_training()" if name == "train" else f"evaluate({[*saved][-1]!r})" if saved else ""
            raise NoSplitError(
                f"No {one_line(name)} split was saved with {one_line(str(path))}.", f"Saved are: {listed}.",
                f"Type  {first}{', or ' * bool(first)}evaluate_file(FILE)  .",
            )  # fmt: skip
    return [saved[name] for name in names or [*saved][-1:]]


def text_to_tensor(text: str) -> Tensor:
    """Returns a text as a checkpoint carries it: its bytes."""
    return torch.from_numpy(np.frombuffer(bytearray(text.encode("utf-8", "surrogatepass")), np.uint8))


def lines_in(tensor: Tensor, name: str) -> list[str]:
    """Returns the lines of such a text. Raises UnfitError for what is no text."""
    lines = []
    try:
        lines = tensor.numpy().tobytes().decode("utf-8", "surrogatepass").split("\n")
    except UnicodeDecodeError:
        agree(False, name, "is not UTF-8", "text in UTF-8")
    return lines
