"""Scores of classification: accuracy, F1 by class, confusions, calibration, and McNemar's test.

legend   N texts · C classes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmtrain.quantity import counted
from lmtrain.shell import one_line
from lmtrain.tasks.counts import Counts, iter_classes, iter_confusion

BINS = 10  # of calibration
MAX_SHOWN = 200  # characters of a text
MAX_CHANCE = 0.05  # with a smaller p a difference is taken for one

Classes = NDArray[np.int64]  # [N], or one class for all texts: [1]


class Bin(NamedTuple):
    """Texts whose likeliest class has a probability in one tenth of 0 to 1: their number, its mean, the fraction right."""

    num_texts: int
    mean_probability: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class ClassifyScore:
    """How well texts were classified.

    labels            of the classes
    targets_N         the class of each text
    probabilities_NC  what the model says
    baselines         by name, the classes that simpler models say, or the only class that they say of all texts
    num_empty         texts without a word
    """

    labels: tuple[str, ...]
    targets_N: Classes
    probabilities_NC: NDArray[np.float64]
    baselines: Mapping[str, Classes] = field(default_factory=dict)
    num_empty: int = 0

    @property
    def num_texts(self) -> int:
        return len(self.targets_N)

    @cached_property
    def predicted(self) -> Classes:
        """Returns the likeliest class of each text; of equally likely ones the first."""
        return self.probabilities_NC.argmax(1)

    @property
    def is_right(self) -> NDArray[np.bool_]:
        return self.predicted == self.targets_N

    @property
    def accuracy(self) -> float:
        """Returns the fraction of the texts that are right."""
        return float(self.is_right.mean())

    @property
    def value(self) -> float:
        """Returns the accuracy; NaN if probabilities are not numbers."""
        return self.accuracy if np.isfinite(self.probabilities_NC).all() else math.nan

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts how often a class (row) was taken for a class (column)."""
        places = self.targets_N * len(self.labels) + self.predicted
        return np.bincount(places, minlength=len(self.labels) ** 2).reshape(len(self.labels), -1)

    @property
    def classes(self) -> dict[str, Counts]:
        """Of each class by its label."""
        right, found, there = self.confusion.diagonal(), self.confusion.sum(0), self.confusion.sum(1)
        rows = zip(self.labels, right.tolist(), found.tolist(), there.tolist(), strict=True)
        return {label: Counts(*counts) for label, *counts in rows}

    @property
    def macro_f1(self) -> float:
        """Returns the mean F1 of the classes that there are texts of, or that a text was taken for."""
        return float(np.mean([counts.f1 for counts in self.classes.values() if counts.num_found or counts.num_there]))

    @property
    def nats_per_text(self) -> float:
        """Returns the mean of -log p of the class that a text is of; infinite if one has probability 0."""
        with np.errstate(divide="ignore"):
            return float(-np.log(self.probabilities_NC[np.arange(self.num_texts), self.targets_N]).mean())

    @cached_property
    def calibration(self) -> list[Bin | None]:
        """Returns bins by tenths of the probability of the likeliest class; None if there are no texts."""
        confidence_N = np.nan_to_num(self.probabilities_NC.max(1))  # of a model that has diverged it is no number
        tenth_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
        found: list[Bin | None] = []
        for tenth in range(BINS):
            inside = tenth_N == tenth
            number = int(inside.sum())
            means = (float(confidence_N[inside].mean()), float(self.is_right[inside].mean())) if number else None
            found.append(None if means is None else Bin(number, *means))
        return found

    @property
    def calibration_error(self) -> float:
        """Returns the mean distance between probability and accuracy of a bin, by its texts (Naeini et al. 2015)."""
        distances = [b.num_texts * abs(b.mean_probability - b.accuracy) for b in self.calibration if b is not None]
        return sum(distances) / self.num_texts

    def baseline_accuracy(self, name: str) -> float:
        """Returns the accuracy of a simpler model on the same texts."""
        return float((self.baselines[name] == self.targets_N).mean())

    def mcnemar(self, name: str) -> McNemar:
        """Returns McNemar's test against a simpler model on the same texts."""
        return mcnemar(self.is_right, self.baselines[name] == self.targets_N)

    def numbers(self) -> dict[str, float | None]:
        return {
            "accuracy": self.accuracy, "macro_f1": self.macro_f1, "nats_per_text": self.nats_per_text,
            "calibration_error": self.calibration_error,
        }  # fmt: skip

    def line(self, mark: str = "") -> str:
        f1, nats = _percent(self.macro_f1), self.nats_per_text
        return f"accuracy {_percent(self.accuracy)} %{mark}, macro F1 {f1}, {nats:.4f} nats/text"

    def format(self) -> str:
        empty = f", {self.num_empty:,} of them without a word" if self.num_empty else ""
        return "\n".join(
            [
                f"accuracy {_percent(self.accuracy)} % of {counted(self.num_texts, 'text')}{empty} · "
                f"macro F1 {_percent(self.macro_f1)} · {self.nats_per_text:.4f} nats per text",
                *iter_classes("class", self.classes.items()),
                *iter_confusion(self.labels, self._taken, "texts"), *self._iter_calibration(),
                *(self.compared_with(name) for name in self.baselines),
            ]
        )  # fmt: skip

    def compared_with(self, name: str) -> str:
        """Returns a sentence on a simpler model."""
        test = self.mcnemar(name)
        verdict = "so this model is better" if test.num_first > test.num_second else "so this model is no better"
        if test.num_first != test.num_second and test.p >= MAX_CHANCE:
            verdict = "but the difference proves nothing"
        return (
            f"{name}: accuracy {_percent(self.baseline_accuracy(name))} %, {verdict}; this model alone is right on "
            f"{counted(test.num_first, 'text')}, the other alone on {test.num_second:,} "
            f"(McNemar's p = {test.p:.3g})"
        )

    @property
    def _taken(self) -> dict[tuple[str, str], int]:
        """Says how often a label was taken for a label."""
        pairs = itertools.product(self.labels, self.labels)
        return dict(zip(pairs, self.confusion.ravel().tolist(), strict=True))

    def _iter_calibration(self) -> Iterator[str]:
        error = _percent(self.calibration_error)
        yield f"{'probability':<12}{'texts':>7}{'mean':>8}{'right':>8}   (calibration error {error} %)"
        for tenth, found in enumerate(self.calibration):
            if found is not None:
                place = f"{tenth / BINS:.1f} to {(tenth + 1) / BINS:.1f}"
                yield f"{place:<12}{found.num_texts:>7,}{_percent(found.mean_probability):>8}{_percent(found.accuracy):>8}"

    def to_json(self) -> dict[str, Any]:
        is_finite = not math.isnan(self.value)
        return {
            "value": self.value if is_finite else None, "accuracy": self.accuracy, "num_texts": self.num_texts,
            "num_empty": self.num_empty, "macro_f1": self.macro_f1,
            "nats_per_text": self.nats_per_text if math.isfinite(self.nats_per_text) else None,
            "classes": {label: counts.to_json() for label, counts in self.classes.items()},
            "labels": list(self.labels), "confusion": self.confusion.tolist(),
            "calibration": [None if b is None else b._asdict() for b in self.calibration],
            "calibration_error": self.calibration_error if is_finite else None,
            "baselines": {
                name: {"accuracy": self.baseline_accuracy(name), "mcnemar": self.mcnemar(name)._asdict()}
                for name in self.baselines
            },
        }  # fmt: skip


class McNemar(NamedTuple):
    """The number of texts on which only the first model is right, or only the second, and how likely such a difference is."""

    num_first: int
    num_second: int
    p: float


def mcnemar(is_right_first_N: NDArray[np.bool_], is_right_second_N: NDArray[np.bool_]) -> McNemar:
    """McNemar's test, two-sided and exact (1947): if both are equally good, either is as likely to be the one that is right.

    p = 2 sum over i <= min(b, c) of binomial(b + c, i) / 2^(b + c), at most 1; the sum is taken of logarithms.
    """
    b = int((is_right_first_N & ~is_right_second_N).sum())
    c = int((~is_right_first_N & is_right_second_N).sum())
    n, few = b + c, min(b, c)
    steps = np.arange(1, few + 1)
    log_terms = np.concatenate([[0.0], np.cumsum(np.log((n - steps + 1) / steps))]) - n * math.log(2)
    return McNemar(b, c, min(1.0, 2 * float(np.exp(log_terms).sum())))


def worst_errors(score: ClassifyScore, texts: Sequence[str], most: int = 20) -> Iterator[str]:
    """Yields the texts about which the model is surest and wrong, the worst first: how sure, their label, what it said."""
    wrong = np.flatnonzero(~score.is_right)
    sure = score.probabilities_NC[wrong, score.predicted[wrong]]
    for place in wrong[np.argsort(-sure, kind="stable")][:most].tolist():
        probability = score.probabilities_NC[place, score.predicted[place]]
        right, taken = (one_line(score.labels[cls[place]]) for cls in (score.targets_N, score.predicted))
        text = one_line(texts[place].strip())
        yield f"{probability:.4f}  {right} taken for {taken}  {text[:MAX_SHOWN]}{'...' * (len(text) > MAX_SHOWN)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
