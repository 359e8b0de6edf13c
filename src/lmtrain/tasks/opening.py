"""Opens a trained model of any task from its directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

import lmtrain.config as config
from lmtrain.arguments import checked
from lmtrain.build import build_corpus
from lmtrain.data.corpus import Corpus, encode_file
from lmtrain.data.tokenizer import Ids, Tokenizer
from lmtrain.errors import CheckpointError, SettingsError, UnfitError
from lmtrain.expected import within
from lmtrain.saved import NoVectorsError, Trained, load_trained, read_tokenizer, task_in, vectors_of
from lmtrain.settings import reading
from lmtrain.shell import expanded, one_line
from lmtrain.training.checkpoint import believing, load_checkpoint, load_document, read_named
from lmtrain.vectors.files import is_of_run
from lmtrain.vectors.table import Vectors

if TYPE_CHECKING:
    from lmtrain.tasks.classify_saved import Classifier
    from lmtrain.tasks.tag_saved import Tagger
    from lmtrain.tasks.vectors_saved import TrainedVectors


def task_at(path: str | Path, prefer: Literal["best", "last"] = "best") -> str:
    """Returns the task that the model at `path` was trained for. Raises CheckpointError if there is none."""
    return read_named(path, prefer, lambda found: task_in(found, load_document(found, "model")))


def training_settings(path: Path) -> config.Config:
    """Returns the settings with which the model in a checkpoint was trained. Raises CheckpointError if none were kept."""
    document = load_document(path, "training")
    if not isinstance(document, dict) or "settings" not in document:
        raise CheckpointError(
            f"{path} does not say on which text it was trained.", "Runs of lmtrain do; mixtures and ARPA files do not.",
            "Give a FILE.",
        )  # fmt: skip
    with believing(path), within("training.json: "):
        try:
            return reading.read_config(document["settings"])
        except reading.SettingsProblemsError as error:
            raise UnfitError("settings", f"cannot be used: {'; '.join(error.problems)[:1000]}", "those of a run") from error


def text_field(path: Path) -> str:
    """Returns the field of a .jsonl's records that is their text for the model in a checkpoint: that of its training, if a
    run says it."""
    document = load_document(path, "training")
    data = document["settings"].get("data") if isinstance(document, dict) and "settings" in document else None
    field = data.get("field") if isinstance(data, dict) else None
    return field if isinstance(field, str) else config.TextConfig().field


def training_corpus(path: Path) -> Corpus:
    """Returns the corpus on which the language model in a checkpoint was trained, from the place where it was then.

    Raises CheckpointError if the text is not the same any more.
    """
    settings = training_settings(path)
    assert isinstance(settings.data, config.CorpusConfig)
    given = None
    if settings.start_from:  # it was learnt elsewhere, and is kept beside the model
        given = read_tokenizer(load_checkpoint(path, ("tokenizer",), ("subword",)))
    corpus = build_corpus(settings.data, settings.tokenizer, given)
    document = load_document(path, "training")
    if document.get("corpus") != corpus.fingerprint:
        raise CheckpointError(
            f"The text has changed since {path} was saved.", "The training split is read from where it was then.",
            "Restore it, or give a FILE.",
        )  # fmt: skip
    return corpus


def training_ids(name: str | Path, tokenizer: Tokenizer, field: str = "text") -> Ids:
    """Returns the tokens of a training text: that of a run, or a file (of records: their `field`) that the tokenizer reads.

    Raises SettingsError for a run of another vocabulary or task, CheckpointError where its text is not there any more.
    """
    path = expanded(name)
    if not path.is_dir():
        return encode_file(path, tokenizer, field).ids
    shown, give = one_line(str(name)), "Give the text: training=FILE."
    if task_at(path) != "language":
        raise SettingsError(f"training={shown} is no language model.", "It has no text.", give)
    try:
        corpus = read_named(path, "best", training_corpus)
    except CheckpointError as error:
        raise CheckpointError(error.given, error.allowed, give) from error
    if corpus.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise SettingsError(
            f"training={shown} has another vocabulary than the model that writes.", "Texts are compared token by token.", give
        )
    return corpus.train.ids


def open_saved(
    path: str | Path, *, prefer: Literal["best", "last"] = "best", device: str = "cpu"
) -> Trained | Tagger | Classifier | TrainedVectors:
    """Returns the model at `path`, whatever its task is."""
    task = task_at(path, prefer)
    if task == "tag":
        from lmtrain.tasks.tag_saved import load_tagger

        return load_tagger(path, prefer=prefer, device=device)
    if task == "classify":
        from lmtrain.tasks.classify_saved import load_classifier

        return load_classifier(path, prefer=prefer, device=device)
    if task == "vectors":
        from lmtrain.tasks.vectors_saved import load_word_vectors

        return load_word_vectors(path, prefer=prefer, device=device)
    return load_trained(path, prefer=prefer, device=device)


@checked
def load_vectors(path: str | Path, *, checkpoint: Literal["best", "last"] = "best", format: str | None = None) -> Vectors:
    """Returns the word vectors in a run or checkpoint directory of any task, or in a file: what RUN|FILE names in commands.

    `checkpoint` says which one of a run, `format` that of a file where its content does not tell: see `Vectors.load`. Raises
    CheckpointError for a model without word vectors, and what `lmtrain.load` and `Vectors.load` raise.
    """
    path = expanded(path)
    if not is_of_run(path):
        return Vectors.load(path, format=format)
    saved = open_saved(path, prefer=checkpoint)
    vectors = vectors_of(saved.model, saved.tokenizer) if isinstance(saved, Trained) else saved.vectors
    if vectors is None:
        raise NoVectorsError(saved.path)
    if not np.isfinite(vectors.matrix).all():
        raise CheckpointError(
            f"The word vectors of {saved.path} hold numbers that are not finite.", "Every number must be finite.",
            "Give a checkpoint from before the training diverged.",
        )  # fmt: skip
    return vectors
