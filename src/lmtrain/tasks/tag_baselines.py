"""The taggers with which a tagger is compared: each word's most frequent tag, and logistic regression on windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import lmtrain.config as config
from lmtrain.data.columns import Sentence
from lmtrain.tasks.base import SplitName
from lmtrain.tasks.baselines import THIS, Comparison, compared_splits, logistic_settings, train_beside, wants_logistic
from lmtrain.tasks.tag_model import TagModel
from lmtrain.tasks.tag_score import score_tags

if TYPE_CHECKING:
    from lmtrain.tasks.tag import Tag

FREQUENT, LOGISTIC = "each word's most frequent tag", "logistic regression (words, shapes, affixes)"
NUM_EPOCHS = 5

Guess = Callable[[Sequence[Sentence]], list[list[str]]]


def compare(task: Tag, model: Any) -> Comparison:
    """Compares `model` with them by the F1 of entities, or by accuracy if the tags mark no entities."""
    measure = "accuracy" if task.wording.value == "accuracy" else "entity_f1"
    splits = compared_splits(task)
    logistic, notes = _logistic(task)
    guesses = {FREQUENT: _frequent(task.splits["train"].sentences)} | ({LOGISTIC: logistic} if logistic else {})
    scores = {split: task.final_score(model, split) for split in splits}
    shares: dict[str, dict[SplitName, float]] = {THIS: {split: getattr(score, measure) for split, score in scores.items()}}
    shares |= {name: {split: _score(task, split, guess, measure) for split in splits} for name, guess in guesses.items()}
    empty = [split for split, score in scores.items() if measure == "entity_f1" and not score.total.num_there]
    return Comparison(measure.replace("_f1", " F1"), shares, notes, empty)


def _score(task: Tag, split: SplitName, guess: Guess, measure: str) -> float:
    sentences = task.splits[split].sentences
    score = score_tags(
        sentences, guess(sentences), known_entities=task.known_entities, known_tags=task.known_tags,
        classes=set(task.outputs.classes) or None, judged_by=measure,
    )  # fmt: skip
    return score.value


def _frequent(sentences: Sequence[Sentence]) -> Guess:
    frequent = most_frequent_tags(sentences)
    return lambda those: [[frequent.get(token, frequent[""]) for token in sentence.tokens] for sentence in those]


def _logistic(task: Tag) -> tuple[Guess | None, list[str]]:
    """Returns logistic regression over all tags, or nothing, and why."""
    if not wants_logistic(task.settings):
        return None, []
    settings = logistic_settings(task.settings, config.LogisticConfig(context=task.model.context), NUM_EPOCHS)
    own = type(task)(settings, task.device, task.splits)
    num_weights = (2 * own.model.context + 1) * sum(own.features.sizes) * len(own.outputs.names)
    network, notes = train_beside(task.settings, own, num_weights)
    if network is None:
        return None, notes
    model = TagModel(network, own.features, own.outputs, own.model.context, task.device)
    return lambda those: [tagged.tags for tagged in model.tag([sentence.tokens for sentence in those])], notes


def most_frequent_tags(sentences: Sequence[Sentence]) -> dict[str, str]:
    """Returns each word's most frequent tag; that of all tokens under the empty word. Of equally frequent ones the first by
    name."""
    counts: dict[str, Counter[str]] = {"": Counter()}
    for sentence in sentences:
        for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
            counts.setdefault(token, Counter())[tag] += 1
            counts[""][tag] += 1
    return {token: min(tags, key=lambda tag: (-tags[tag], tag)) for token, tags in counts.items()}
