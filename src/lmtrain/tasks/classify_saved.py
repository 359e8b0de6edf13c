"""A classifier as a checkpoint holds it, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lmtrain.config as config
from lmtrain.arguments import checked_methods
from lmtrain.data.indicators import Indicators, load_indicators
from lmtrain.data.labelled import check_labels, fingerprint, is_empty, read_labelled
from lmtrain.data.tokenizer import WordTokenizer
from lmtrain.errors import CheckpointError
from lmtrain.expected import ANY_LENGTH, Anything, Like, Whole, agree, compare, within
from lmtrain.models.classifier import ClassifierNetwork
from lmtrain.saved import NoVectorsError, vectors_of
from lmtrain.settings import reading
from lmtrain.shell import expanded, one_line
from lmtrain.tasks.classify import read_splits
from lmtrain.tasks.classify_baselines import FREQUENT, NAIVE_BAYES, classes_of, lowercase_of, ngrams_of, others, predict_simply
from lmtrain.tasks.classify_model import TextModel, build_classifier
from lmtrain.tasks.classify_score import ClassifyScore
from lmtrain.tasks.opening import training_settings
from lmtrain.tasks.restoring import (
    chosen_splits,
    lines_in,
    open_checkpoint,
    read_model_settings,
    read_word_tokenizer,
    run_settings,
)
from lmtrain.training.checkpoint import believing, load_document
from lmtrain.training.learner import expected_weights, load_weights
from lmtrain.vectors.table import Vectors

TEXTS = 256  # that are classified at once


class Classified(NamedTuple):
    """The likeliest label of a text and its probability; and those of all labels."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class SavedSplit:
    """Texts as a checkpoint carries them: their classes, and those that naive Bayes says."""

    texts: tuple[str, ...]
    targets_N: NDArray[np.int64]
    naive_bayes_N: NDArray[np.int64]


@checked_methods
class Classifier:
    """A classifier as it was saved. `lmtrain.load` makes one of a run of task=classify.

    path, step  the checkpoint's directory, and the steps that it was trained for
    model       the network with what it needs to read texts, for code that wants probabilities as an array
    """

    def __init__(
        self, path: Path, step: int, model: TextModel, settings: config.ModelConfig, splits: Mapping[str, SavedSplit],
        most_frequent: int,
    ) -> None:  # fmt: skip
        self.path, self.step, self.model = path, step, model
        self._settings, self._splits, self._most_frequent = settings, splits, np.array([most_frequent])

    def __repr__(self) -> str:
        size = f"vocabulary {self.model.indicators.tokenizer.vocab_size:,}"
        return f"<lmtrain.Classifier {self._settings.kind}, {len(self.labels)} labels, {size}, {self.path}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns all labels, in the order of the classes."""
        return self.model.labels

    def classify(self, texts: str | Iterable[str]) -> list[Classified]:
        """Returns the label of each text, with probabilities: one result per text, in their order. A string is one text."""
        given = [texts] if isinstance(texts, str) else list(texts)
        return [
            Classified(self.labels[int(row.argmax())], float(row.max()), dict(zip(self.labels, row.tolist(), strict=True)))
            for row in self.model.probabilities(given)
        ]

    def iter_predictions(self, texts: Iterable[str], *, at_once: int = TEXTS) -> Iterator[tuple[str, Classified]]:
        """Yields each text with its label, in their order; `at_once` texts are waited for before the first of them is
        answered."""
        remaining = iter(texts)
        while block := list(islice(remaining, at_once)):
            yield from zip(block, self.classify(block), strict=True)

    @property
    def vectors(self) -> Vectors:
        """Returns the words with their vectors. Raises CheckpointError if the model has none."""
        if (vectors := vectors_of(self.model.network, self.model.indicators.tokenizer)) is None:
            raise NoVectorsError(self.path)
        return vectors

    @property
    def splits(self) -> list[str]:
        """Returns the splits that were saved with it: valid, and test where there was one."""
        return list(self._splits)

    def evaluate(self, *splits: str) -> ClassifyScore:
        """Says how well it classifies a split that was saved with it, or several together. By default the test split, where
        there was one, else valid.

        Raises DataError, which is a KeyError here, if there is none of this name.
        """
        saved = chosen_splits(self._splits, splits, self.path)
        baselines = {
            FREQUENT: self._most_frequent,
            NAIVE_BAYES: np.concatenate([split.naive_bayes_N for split in saved]),
        }
        texts = [text for split in saved for text in split.texts]
        return self._judge(texts, np.concatenate([split.targets_N for split in saved]), baselines)

    def evaluate_file(self, path: str | Path) -> ClassifyScore:
        """Says how well it classifies the texts of a file, which is read as those of its training.

        Raises DataError for a label that training did not have.
        """
        encoding = self._data().encoding
        labelled = read_labelled(expanded(path), encoding, typed=None)
        check_labels(labelled, self.labels, str(path))
        return self._judge(labelled.texts, classes_of(labelled, self.labels), {FREQUENT: self._most_frequent})

    def evaluate_training(self) -> ClassifyScore:
        """Says how well it classifies what it was trained on, from where that was then."""
        settings = training_settings(self.path)
        assert isinstance(settings.data, config.LabelledConfig)
        splits = read_splits(settings.data)
        document = load_document(self.path, "training")
        if document.get("corpus") != fingerprint(splits):
            raise CheckpointError(
                f"The texts have changed since {one_line(str(self.path))} was saved.",
                "The training split is read from where it was then.", "Restore it, or give a FILE.",
            )  # fmt: skip
        train = {"train": splits["train"]}
        baselines = predict_simply(train, self.labels, self.model.indicators)["train"]
        return self._judge(train["train"].texts, classes_of(train["train"], self.labels), baselines)

    def _judge(
        self, texts: Iterable[str], targets_N: NDArray[np.int64], baselines: Mapping[str, NDArray[np.int64]]
    ) -> ClassifyScore:
        given = list(texts)
        return ClassifyScore(
            self.labels,
            targets_N,
            self.model.probabilities(given),
            others(self._settings, baselines),
            sum(map(is_empty, given)),
        )

    def _data(self) -> config.LabelledConfig:
        data = reading.read_settings(config.DataConfig, self.settings.get("data"), "data", [])
        return data if isinstance(data, config.LabelledConfig) else config.LabelledConfig()

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings of the run, as nested dictionaries."""
        return run_settings(self.path, self._settings)


def load_classifier(path: str | Path, *, prefer: Literal["best", "last"] = "best", device: str = "cpu") -> Classifier:
    """Returns the classifier in a run or checkpoint directory. Raises CheckpointError for anything that does not fit
    together."""
    checkpoint = open_checkpoint(path, prefer, "classify", ("model", "tokenizer", "features", "texts"))
    documents, tensors = checkpoint.documents, checkpoint.tensors
    with believing(checkpoint.path):
        tokenizer = read_word_tokenizer(checkpoint)
        with within("model.json: "):
            settings, labels, most_frequent = read_classifier_settings(documents.get("model"))
        with within("features.safetensors: "):
            indicators = read_indicators(tensors.get("features", {}), tokenizer, settings)
        with within("model.safetensors: "):
            network = restore_classifier(settings, indicators, len(labels), tensors.get("model", {}))
        splits = _read_texts(tensors.get("texts", {}), len(labels))
    network.to(device).eval()
    model = TextModel(network, indicators, labels, device)
    return Classifier(checkpoint.path, checkpoint.step, model, settings, splits, most_frequent)


def read_classifier_settings(document: Any) -> tuple[config.ModelConfig, tuple[str, ...], int]:
    """Returns the settings of the classifier, its labels, and the most frequent class of training. Raises UnfitError."""
    compare({"task": "classify", "settings": Anything(), "labels": Anything(), "most_frequent": Anything()}, document)
    settings: config.ModelConfig = read_model_settings(document["settings"], config.TASKS["classify"][1], "a classifier")
    labels = document["labels"]
    is_fit = isinstance(labels, list) and len(labels) >= 2 and all(isinstance(label, str) and label for label in labels)
    agree(is_fit and labels == sorted(set(labels)), "labels", "are no list of labels", "two or more, in order, each once")
    compare(Whole(most=len(labels) - 1), document["most_frequent"], "most_frequent")
    return settings, tuple(labels), document["most_frequent"]


def read_indicators(tensors: Mapping[str, Tensor], tokenizer: WordTokenizer, settings: config.ModelConfig) -> Indicators:
    """Returns the words and n-grams that are known. Raises UnfitError."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return load_indicators(arrays, tokenizer, lowercase=lowercase_of(settings), max_length=ngrams_of(settings))


def restore_classifier(
    settings: config.ModelConfig, indicators: Indicators, num_classes: int, tensors: Mapping[str, Tensor]
) -> ClassifierNetwork:
    """Returns a classifier with saved weights; its sizes are compared with the tensors before any memory is taken for it."""
    with torch.device("meta"):
        empty = build_classifier(settings, indicators, num_classes)
    compare(expected_weights(empty), tensors)
    network = build_classifier(settings, indicators, num_classes)
    load_weights(network, tensors)
    return network


def _read_texts(tensors: Mapping[str, Tensor], num_classes: int) -> dict[str, SavedSplit]:
    """Returns the splits of a checkpoint. Raises UnfitError if they cannot be those of a run."""
    with within("texts.safetensors: "):
        splits = ["valid", *["test"] * any(name.startswith("test.") for name in tensors)]
        text = Like((ANY_LENGTH,), torch.uint8, least=0, most=255)
        classes = Like((range(1, ANY_LENGTH.stop),), torch.int64, least=0, most=num_classes - 1)
        parts = {"text": text, "targets": classes, "naive_bayes": classes}
        compare({f"{split}.{part}": like for split in splits for part, like in parts.items()}, tensors)
        found = {}
        for split in splits:
            texts = tuple(lines_in(tensors[f"{split}.text"], f"{split}.text"))
            targets_N, naive_bayes_N = (tensors[f"{split}.{part}"].numpy() for part in ("targets", "naive_bayes"))
            for part, rows in (("targets", targets_N), ("naive_bayes", naive_bayes_N)):
                agree(
                    len(rows) == len(texts), f"{split}.{part}", f"has {len(rows)} values", f"one of each of {len(texts)} texts"
                )
            found[split] = SavedSplit(texts, targets_N, naive_bayes_N)
        return found
