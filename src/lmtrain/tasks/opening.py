"""A trained model of any task, from the directory in which it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import lmtrain.config as config
from lmtrain.build import build_corpus
from lmtrain.data.corpus import Corpus
from lmtrain.errors import CheckpointError, UnfitError
from lmtrain.expected import within
from lmtrain.saved import Trained, load_trained, task_in
from lmtrain.settings import reading
from lmtrain.training.checkpoint import believing, load_document, read_named

if TYPE_CHECKING:
    from lmtrain.tasks.tag_saved import Tagger


def task_at(path: str | Path, prefer: Literal["best", "last"] = "best") -> str:
    """The task that the model at `path` was trained for. Raises CheckpointError where there is none."""
    return read_named(path, prefer, lambda found: task_in(found, load_document(found, "model")))


def training_settings(path: Path) -> config.Config:
    """The settings with which the model in a checkpoint was trained. Raises CheckpointError where none were kept."""
    document = load_document(path, "training")
    if not isinstance(document, dict) or "settings" not in document:
        raise CheckpointError(
            f"{path} does not say on which text it was trained.", "Runs of lmtrain do; mixtures and ARPA files do not.",
            "Give the text: --text FILE.",
        )  # fmt: skip
    with believing(path), within("training.json: "):
        try:
            return reading.read_config(document["settings"])
        except reading.SettingsProblemsError as error:
            raise UnfitError("settings", f"cannot be used: {'; '.join(error.problems)[:1000]}", "those of a run") from error


def training_corpus(path: Path) -> Corpus:
    """The corpus on which the language model in a checkpoint was trained, from where it was then.

    Raises CheckpointError where the text is not the same any more.
    """
    settings = training_settings(path)
    assert isinstance(settings.data, config.CorpusConfig)
    corpus = build_corpus(settings.data, settings.tokenizer)
    document = load_document(path, "training")
    if document.get("corpus") != corpus.fingerprint:
        raise CheckpointError(
            f"The text has changed since {path} was saved.", "The training split is read from where it was then.",
            "Restore it, or give a text: --text FILE.",
        )  # fmt: skip
    return corpus


def open_saved(path: str | Path, *, prefer: Literal["best", "last"] = "best", device: str = "cpu") -> Trained | Tagger:
    """The model at `path`; of whatever task."""
    if task_at(path, prefer) == "tag":
        from lmtrain.tasks.tag_saved import load_tagger

        return load_tagger(path, prefer=prefer, device=device)
    return load_trained(path, prefer=prefer, device=device)
