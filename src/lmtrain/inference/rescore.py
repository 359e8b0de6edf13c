"""Picks hypotheses of n-best lists by acoustic and language model together, and finds the weights that make fewest errors.

    total = acoustic + lm_weight * lm + word_penalty * words

The errors that a pair of weights makes are those of the hypotheses with the highest total: a step function of the weights.
Along one weight it is known exactly: the total of every hypothesis is a straight line, the best ones form the upper envelope,
and errors change only at its corners (minimum error rate training; Och 2003). `tune` goes along one weight after the
other, from several beginnings, until nothing is gained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lmtrain.data.vocabulary import split_words
from lmtrain.errors import DataError, SettingsError
from lmtrain.shell import one_line

STARTS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # of lm_weight
MAX_ROUNDS = 50
MIN_LM = -1e6  # stands for the logarithm of zero, so that a weight of 0 makes nothing of it


@dataclass(frozen=True)
class Hypothesis:
    """What might have been said. `acoustic` and `lm` are logarithms of probabilities: more is better."""

    text: str
    acoustic: float
    lm: float
    words: int

    def __post_init__(self) -> None:
        if math.isnan(self.acoustic) or math.isnan(self.lm):
            raise DataError(
                f"The hypothesis {one_line(self.text[:60])!r} has a score that is not a number.",
                "Scores are logarithms of probabilities, by which hypotheses are put in order.", "Correct it, or leave it out.",
            )  # fmt: skip

    def total(self, weights: tuple[float, float]) -> float:
        """The number to choose by, for (lm_weight, word_penalty)."""
        return self.acoustic + weights[0] * max(self.lm, MIN_LM) + weights[1] * self.words


@dataclass(frozen=True)
class Rescored:
    """What was picked of each list, by its id, and with which weights (lm_weight, word_penalty).

    `ties` counts, for each list, other texts that are exactly as good; the first hypothesis stands. With references
    `num_words` is how many words they have, and `errors`, `errors_of_first` and `errors_of_best` are the word errors of what
    was picked, of the first hypotheses, and of the best that the lists hold.
    """

    weights: tuple[float, float]
    best: dict[str, Hypothesis]
    ties: dict[str, int]
    num_words: int | None = None
    errors: int = 0
    errors_of_first: int = 0
    errors_of_best: int = 0


def rescore(
    lists: Mapping[str, Sequence[Hypothesis]],
    *,
    weights: tuple[float, float] | None = None,
    references: Mapping[str, str] | None = None,
) -> Rescored:
    """Picks the best hypothesis of each list; without `weights` they are those with the fewest word errors on `references`.

    Raises SettingsError where neither is given, DataError where lists and references are not of the same ids or a list is
    empty. A score that is not a number makes no `Hypothesis`.
    """
    if weights is None and references is None:
        raise SettingsError(
            "Neither weights nor references were given.", "Weights are given, or found on references.",
            "Give one of them.",
        )  # fmt: skip
    if empty := [key for key, hypotheses in lists.items() if not hypotheses]:
        raise DataError(
            f"The list {one_line(empty[0][:60])!r} is empty.", "Each has a hypothesis at the least.", "Leave it out."
        )
    if not lists:
        raise DataError("There are no lists to pick from.", "At least one is needed.", "Give an n-best list.")
    errors: list[list[int]] = []
    num_words = None
    if references is not None:
        _check_ids(set(lists), set(references))
        words = {key: _words(text) for key, text in references.items()}
        num_words = sum(map(len, words.values()))
        errors = [[word_errors(words[key], _words(h.text)) for h in own] for key, own in lists.items()]
    if weights is None:
        weights, _ = tune(list(lists.values()), errors)
    picked = {key: pick(hypotheses, weights) for key, hypotheses in lists.items()}
    return Rescored(
        weights, {key: lists[key][number] for key, (number, _) in picked.items()},
        {key: num_ties for key, (_, num_ties) in picked.items()}, num_words,
        sum(own[number] for own, (number, _) in zip(errors, picked.values(), strict=False)),
        sum(own[0] for own in errors), sum(map(min, errors)),
    )  # fmt: skip


def _words(text: str) -> list[str]:
    return [word.decode() for word in split_words(text)]


def _check_ids(lists: set[str], references: set[str]) -> None:
    for missing, what in ((lists - references, "reference"), (references - lists, "hypothesis")):
        if missing:
            others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise DataError(
                f"There is no {what} for {one_line(min(missing)[:60])!r}{others}.",
                "Every list has one reference, and every reference a list.",
                "Correct the ids.",
            )


def pick(hypotheses: Sequence[Hypothesis], weights: tuple[float, float]) -> tuple[int, int]:
    """The number of the best hypothesis, and how many others, of another text, are exactly as good; the first one stands."""
    totals = [hypothesis.total(weights) for hypothesis in hypotheses]
    best = max(range(len(totals)), key=totals.__getitem__)
    ties = {hypotheses[n].text for n, total in enumerate(totals) if total == totals[best]} - {hypotheses[best].text}
    return best, len(ties)


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """The fewest words to replace, insert or leave out that make one of the other (Levenshtein 1966)."""
    numbers: dict[str, int] = {}
    wanted, given = ([numbers.setdefault(word, len(numbers)) for word in words] for words in (reference, hypothesis))
    steps = np.arange(len(given) + 1)
    distances, given_ids = steps, np.array(given, np.int64)
    for word in wanted:
        next_row = distances + 1
        next_row[1:] = np.minimum(next_row[1:], distances[:-1] + (given_ids != word))
        distances = np.minimum.accumulate(next_row - steps) + steps  # words inserted, any number of them
    return int(distances[-1])


def tune(lists: Sequence[Sequence[Hypothesis]], errors: Sequence[Sequence[int]]) -> tuple[tuple[float, float], int]:
    """The weights (lm_weight at least 0, word_penalty) with the fewest errors that were found, and these errors.

    errors  of each hypothesis of each list
    """
    found = [_descend(lists, errors, (start, 0.0)) for start in STARTS]
    weights = min(found, key=lambda weights: (_count(lists, errors, weights), abs(weights[0] - 1)))
    return weights, _count(lists, errors, weights)


def _count(lists: Sequence[Sequence[Hypothesis]], errors: Sequence[Sequence[int]], weights: tuple[float, float]) -> int:
    return sum(own[pick(hypotheses, weights)[0]] for hypotheses, own in zip(lists, errors, strict=True))


def _descend(
    lists: Sequence[Sequence[Hypothesis]], errors: Sequence[Sequence[int]], weights: tuple[float, float]
) -> tuple[float, float]:
    """The best weights along one after the other, until a round gains nothing."""
    fewest = _count(lists, errors, weights)
    for _ in range(MAX_ROUNDS):
        before = fewest
        for place in (1, 0):  # first the penalty that suits the beginning's lm_weight
            candidate = [*weights]
            candidate[place] = _best_along(lists, errors, weights, place)
            tried = candidate[0], candidate[1]
            if (count := _count(lists, errors, tried)) < fewest:  # as it is picked: corners are rounded
                weights, fewest = tried, count
        if fewest == before:
            break
    return weights


def _best_along(
    lists: Sequence[Sequence[Hypothesis]], errors: Sequence[Sequence[int]], weights: tuple[float, float], place: int
) -> float:
    """The weight number `place` with the fewest errors while the other stays: the middle of the widest stretch of them."""
    rest = (0.0, weights[1]) if place == 0 else (weights[0], 0.0)
    changes: dict[float, int] = {}
    for hypotheses, own in zip(lists, errors, strict=True):
        lines = [(max(h.lm, MIN_LM) if place == 0 else float(h.words), h.total(rest)) for h in hypotheses]
        corners = envelope(lines)
        changes[-math.inf] = changes.get(-math.inf, 0) + own[corners[0][1]]
        for (_, left), (corner, right) in pairwise(corners):
            changes[corner] = changes.get(corner, 0) + own[right] - own[left]
    bounds = sorted(changes)
    counts = np.cumsum([changes[bound] for bound in bounds])
    least = 0.0 if place == 0 else -math.inf
    finite = [bound for bound in bounds if math.isfinite(bound)]
    ends = (max(least, min(finite, default=0.0) - 1.0), max(max(finite, default=0.0) + 1.0, least + 1.0))
    stretches = []
    for start, end, count in zip(bounds, [*bounds[1:], math.inf], counts.tolist(), strict=True):
        low, high = max(start, ends[0]), min(end, ends[1])
        if low < high:
            stretches.append((count, low - high, (low + high) / 2))
    return min(stretches)[2]


def envelope(lines: Sequence[tuple[float, float]]) -> list[tuple[float, int]]:
    """The upper envelope of the lines  slope * x + height: (from which x on, number of the highest line), ascending in x."""
    order = sorted(range(len(lines)), key=lambda n: (lines[n][0], -lines[n][1], n))
    kept: list[tuple[float, int]] = []
    for number in order:
        slope, height = lines[number]
        if kept and lines[kept[-1][1]][0] == slope:  # as steep as the last one, and no higher
            continue
        start = -math.inf
        while kept:
            before, last = kept[-1]
            start = (lines[last][1] - height) / (slope - lines[last][0])
            if start > before:
                break
            kept.pop()
            start = -math.inf
        kept.append((start, number))
    return kept
