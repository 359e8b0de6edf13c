"""Scores of tagging: entities as CoNLL counts them, a table of confusions, and average precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.columns import OUTSIDE, Sentence, entities, split_tag
from lmtrain.quantity import counted
from lmtrain.tasks.counts import Counts, iter_classes, iter_confusion


@dataclass(frozen=True)
class TagScore:
    """How well sentences were tagged.

    entities            of each class: right if both ends and the class are
    unseen              of all classes: entities whose words are no entity of the training split
    num_tokens_right    tags that are right, of `num_tokens`
    confusion           how often a class (first) was taken for a class (second), O among them, by tokens
    average_precision   of each class that has a scorer of its own: the area under precision over recall, by tokens
    is_finite           whether the scores are numbers
    judged_by           the field that `value` is: entity_f1, accuracy (tags without O), or average_precision
    """

    entities: dict[str, Counts]
    unseen: Counts
    num_tokens: int
    num_tokens_right: int
    confusion: dict[tuple[str, str], int]
    average_precision: dict[str, float]
    is_finite: bool
    judged_by: str
    num_unknown_tags: int = 0

    @property
    def total(self) -> Counts:
        """Returns all classes together."""
        return Counts(*(sum(column) for column in zip(*self.entities.values(), strict=True))) if self.entities else Counts()

    @property
    def entity_f1(self) -> float:
        return self.total.f1

    @property
    def accuracy(self) -> float:
        return self.num_tokens_right / self.num_tokens

    @property
    def mean_average_precision(self) -> float:
        """Returns the mean over the classes."""
        return float(np.mean([*self.average_precision.values()])) if self.average_precision else 0.0

    @property
    def value(self) -> float:
        """Returns the number by which models are compared; NaN if scores are none."""
        if not self.is_finite:
            return float("nan")
        return {
            "entity_f1": self.entity_f1, "accuracy": self.accuracy, "average_precision": self.mean_average_precision,
        }[self.judged_by]  # fmt: skip

    def numbers(self) -> dict[str, float | None]:
        own = {"average_precision": self.mean_average_precision} if self.average_precision else {}
        return {"entity_f1": self.entity_f1, "accuracy": self.accuracy, **own}

    def line(self, mark: str = "") -> str:
        parts = [f"{name.replace('_', ' ')} {100 * (number or 0):.2f} %" for name, number in self.numbers().items()]
        return ", ".join(parts) + mark

    def format(self) -> str:
        lines = [*iter_classes("entities", [*sorted(self.entities.items()), ("all classes", self.total)])]
        if self.unseen.num_there:
            unseen = f"F1 {100 * self.unseen.f1:.2f} ({self.unseen.num_there:,} there)"
            lines.append(f"entities that training does not have: {unseen}")
        lines.append(
            f"{100 * self.accuracy:.2f} % of {counted(self.num_tokens, 'tag')} {'is' if self.num_tokens == 1 else 'are'} right"
        )
        for cls, precision in self.average_precision.items():
            lines.append(f"average precision of {cls}: {precision:.4f}")
        if self.num_unknown_tags:
            lines.append(f"counted as missed: {counted(self.num_unknown_tags, 'token')} with a tag that training lacks")
        classes = sorted({name for pair in self.confusion for name in pair}, key=lambda name: (name != OUTSIDE, name))
        return "\n".join([*lines, *iter_confusion(classes, self.confusion, "tokens")])

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value if self.is_finite else None, "judged_by": self.judged_by, "entity_f1": self.entity_f1,
            "accuracy": self.accuracy, "num_tokens": self.num_tokens, "all": self.total.to_json(),
            "classes": {name: counts.to_json() for name, counts in sorted(self.entities.items())},
            "unseen": self.unseen.to_json(), "average_precision": self.average_precision,
            "confusion": [[*pair, count] for pair, count in sorted(self.confusion.items())],
            "num_unknown_tags": self.num_unknown_tags,
        }  # fmt: skip


def score_tags(
    sentences: Sequence[Sentence],
    predicted: Sequence[Sequence[str]],
    *,
    known_entities: Collection[tuple[str, ...]],
    known_tags: Collection[str],
    judged_by: str,
    classes: Collection[str] | None = None,
    average_precision: dict[str, float] | None = None,
    is_finite: bool = True,
) -> TagScore:
    """Compares predicted tags with those of the sentences. If `classes` are given, others count as O."""
    by_class: dict[str, list[int]] = {}
    confusion: Counter[tuple[str, str]] = Counter()
    unseen, num_right, num_unknown = [0, 0, 0], 0, 0
    for sentence, tags in zip(sentences, predicted, strict=True):
        gold = sentence.tags if classes is None else [t if split_tag(t).cls in classes else OUTSIDE for t in sentence.tags]
        there, found = entities(gold), entities(tags)
        found_set = set(found)
        for entity in there:
            counts = by_class.setdefault(entity.cls, [0, 0, 0])
            is_new = sentence.tokens[entity.start : entity.end] not in known_entities
            counts[2] += 1
            counts[0] += entity in found_set
            unseen[2] += is_new
            unseen[0] += is_new and entity in found_set
        for entity in found:
            by_class.setdefault(entity.cls, [0, 0, 0])[1] += 1
            unseen[1] += sentence.tokens[entity.start : entity.end] not in known_entities
        for right, guess in zip(gold, tags, strict=True):
            confusion[split_tag(right).cls, split_tag(guess).cls] += 1
            num_right += right == guess
            num_unknown += right not in known_tags
    return TagScore(
        {name: Counts(*counts) for name, counts in by_class.items()}, Counts(*unseen), sum(confusion.values()), num_right,
        dict(confusion), average_precision or {}, is_finite, judged_by, num_unknown,
    )  # fmt: skip


def average_precision_of(scores: NDArray[Any], is_there: NDArray[np.bool_]) -> float:
    """Returns the sum over thresholds of (recall - recall before) times precision. Windows of one score pass together."""
    if not is_there.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(is_there[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last window of each score
    precision, recall = right[ends] / (ends + 1), right[ends] / is_there.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def best_threshold(scores: NDArray[Any], is_there: NDArray[np.bool_]) -> float:
    """Returns the threshold above which F1, by tokens, is largest: halfway between two scores. Infinite without windows."""
    if not is_there.any() or not np.isfinite(scores).all():
        return float(np.finfo(np.float32).max)
    order = np.argsort(-scores, kind="stable")
    right, descending = np.cumsum(is_there[order]), scores[order].astype(np.float64)
    ends = np.flatnonzero(np.append(np.diff(descending) != 0, True))
    f1 = 2 * right[ends] / (ends + 1 + is_there.sum())
    best = int(ends[np.argmax(f1)])
    below = descending[best + 1] if best + 1 < len(descending) else descending[best] - 1
    return float((descending[best] + below) / 2)
