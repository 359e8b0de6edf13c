"""The classifiers with which a classifier is compared: the most frequent class, naive Bayes, logistic regression on bigrams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import lmtrain.config as config
from lmtrain.data.indicators import Indicators
from lmtrain.data.labelled import Labelled, Splits
from lmtrain.models.classifier import CountedClassifier, Texts
from lmtrain.quantity import counted
from lmtrain.tasks.base import SplitName
from lmtrain.tasks.baselines import THIS, Comparison, compared_splits, logistic_settings, train_beside, wants_logistic
from lmtrain.tasks.classify_model import TextModel, build_classifier, encode

if TYPE_CHECKING:
    from lmtrain.tasks.classify import Classify

FREQUENT, NAIVE_BAYES, LOGISTIC = "most frequent class", "naive Bayes", "logistic regression (words, bigrams)"
NUM_EPOCHS = 10


def compare(task: Classify, model: Any) -> Comparison:
    """Compares `model` with them by accuracy, with McNemar's test against each that reads the texts."""
    splits = compared_splits(task)
    logistic, notes = _logistic(task, splits)
    scores = {split: task.final_score(model, split) for split in splits}
    scores = {
        split: replace(score, baselines={**score.baselines, **logistic.get(split, {})}) for split, score in scores.items()
    }
    names = list(scores["valid"].baselines)
    shares: dict[str, dict[SplitName, float]] = {THIS: {split: score.accuracy for split, score in scores.items()}}
    shares |= {name: {split: score.baseline_accuracy(name) for split, score in scores.items()} for name in names}
    for split in splits[1:]:
        for name in [name for name in names if name != FREQUENT]:
            test, short = scores[split].mcnemar(name), name.partition(" (")[0]
            notes.append(
                f"Against {short} on {split}: only this model is right on {counted(test.num_first, 'text')}, only {short} on "
                f"{test.num_second:,}; p = {test.p:.3g} (McNemar's test, exact)."
            )
    return Comparison("accuracy", shares, notes)


def _logistic(task: Classify, splits: list[SplitName]) -> tuple[dict[str, dict[str, NDArray[np.int64]]], list[str]]:
    """Returns for each split what logistic regression says of each text, by its name; or nothing, and why."""
    if not wants_logistic(task.settings):
        return {}, []
    model = config.LogisticConfig(ngrams=2, lowercase=lowercase_of(task.settings.model))
    own = type(task)(logistic_settings(task.settings, model, NUM_EPOCHS), task.device, task.splits)
    network, notes = train_beside(task.settings, own, own.indicators.size * len(own.labels))
    if network is None:
        return {}, notes
    text_model = TextModel(network, own.indicators, own.labels, task.device)
    return {split: {LOGISTIC: text_model.probabilities(task.splits[split].texts).argmax(1)} for split in splits}, notes


def classes_of(split: Labelled, labels: tuple[str, ...]) -> NDArray[np.int64]:
    """Returns the number of each text's label; all of them must be known."""
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers[label] for label in split.labels], np.int64)


def lowercase_of(model: config.ModelConfig) -> bool:
    """Tells whether a model looks up words in lower case."""
    return bool(getattr(model, "lowercase", False))


def ngrams_of(model: config.ModelConfig) -> int:
    """Returns the longest n-grams that a model reads."""
    return model.ngrams if isinstance(model, config.LogisticConfig) else 1


def predict_simply(splits: Splits, labels: tuple[str, ...], indicators: Indicators) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Returns for each split what the simplest models say: by name the class of each text, or the one that they say of all."""
    encoded = {name: encode(split.texts, indicators, reads_words=True) for name, split in splits.items()}
    train = torch.from_numpy(classes_of(splits["train"], labels))
    predicted: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in splits}
    for name, settings in ((FREQUENT, config.FrequentConfig()), (NAIVE_BAYES, config.NaiveBayesConfig())):
        network = build_classifier(settings, indicators, len(labels))
        assert isinstance(network, CountedClassifier)
        network.count(Texts(*encoded["train"].pick(np.arange(len(train))), train))
        model = TextModel(network, indicators, labels)
        for split, texts in encoded.items():
            classes = model.probabilities_of(texts).argmax(1)
            predicted[split][name] = classes[:1] if name == FREQUENT else classes
    return predicted


def others(model: config.ModelConfig, baselines: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Returns the baselines without the model itself, where it is one of them."""
    own = {"frequent": FREQUENT, "naive_bayes": NAIVE_BAYES}.get(model.kind)
    return {name: classes for name, classes in baselines.items() if name != own}
