"""Word similarity: Spearman's correlation of cosines with human judgements of pairs of words, with the pairs furthest off.

Files of pairs differ in form, and all of this is read: fields separated by tabs, commas, semicolons or blanks; `#` comments;
a header or none; a number of the row in front; a part of speech between words and score (SimLex-999 as its authors publish
it), or behind every word (`cat-n`, MEN). A pair with a word that has no vector is not compared but counted. A pair of a word
with itself counts as any other.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.text import iter_text
from lmtrain.errors import DataError
from lmtrain.shell import num_columns, one_line, padded
from lmtrain.vectors.table import Vectors, cosines

NUM_WORST = 10
PART_OF_SPEECH = re.compile(r"(.+)-[nvajr]")
FORM = "A file of pairs has a pair and its score on each line: word, word, number."


class Pair(NamedTuple):
    """Two words and what people say about how similar they are."""

    first: str
    second: str
    human: float


class Compared(NamedTuple):
    """A pair with its cosine and both ranks, 1 for the most similar pair."""

    first: str
    second: str
    human: float
    cosine: float
    human_rank: float
    cosine_rank: float


@dataclass(frozen=True)
class Similarity:
    """Cosines beside human judgements; the correlations are nan where they are not defined."""

    spearman: float
    pearson: float
    num_pairs: int
    pairs: tuple[Compared, ...]  # those that were compared, in the order of the file
    missing: tuple[str, ...]  # words without a vector
    lower_case: bool  # whether words were looked up in lower case

    @property
    def coverage(self) -> float:
        """Share of the pairs that could be compared."""
        return len(self.pairs) / self.num_pairs

    @property
    def worst(self) -> list[Compared]:
        """The ten pairs whose ranks are furthest apart, the furthest first."""
        return sorted(self.pairs, key=lambda pair: -abs(pair.human_rank - pair.cosine_rank))[:NUM_WORST]

    def format(self) -> str:
        """The correlations with their coverage, then the worst pairs."""
        lines = [
            f"Spearman {_number(self.spearman)}   Pearson {_number(self.pearson)}   "
            f"on {len(self.pairs):,} of {self.num_pairs:,} pairs ({self.coverage:.2%})"
        ]
        if self.missing:
            shown = ", ".join(map(one_line, self.missing[:8])) + f" and {len(self.missing) - 8} more" * (len(self.missing) > 8)
            lines.append(f"without a vector: {shown}")
        if self.pairs:
            width = max(num_columns(one_line(f"{pair.first} {pair.second}")) for pair in self.worst)
            lines += ["", f"{'furthest off':<{width}}   human  cosine   rank by humans  rank by cosine"]
        for pair in self.worst if self.pairs else []:
            lines.append(
                f"{padded(one_line(f'{pair.first} {pair.second}'), width)}  {pair.human:>6.2f}  {pair.cosine:>6.3f}"
                f"  {pair.human_rank:>15g}  {pair.cosine_rank:>14g}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As a dictionary; null for a correlation that is not defined."""
        return {
            "spearman": None if math.isnan(self.spearman) else self.spearman,
            "pearson": None if math.isnan(self.pearson) else self.pearson,
            "coverage": self.coverage, "num_pairs": self.num_pairs, "num_compared": len(self.pairs),
            "lower_case": self.lower_case, "missing": list(self.missing), "worst": [pair._asdict() for pair in self.worst],
        }  # fmt: skip


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file. Raises DataError, with the line, for what is none."""
    pairs: list[Pair] = []
    header_may_come = True
    for number, fields in _iter_fields(path):
        pair = _pair(fields)
        if pair is None and not header_may_come:
            raise DataError(
                f"Line {number} of {path} is no pair with a score: {one_line(repr(' '.join(fields)[:60]))}.",
                FORM,
                "Mend the line, or begin it with # where it is a comment.",
            )
        header_may_come = False
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} holds no pair with a score.", FORM, "Give such a file; WordSim-353 and SimLex-999 are some.")
    found = [(PART_OF_SPEECH.fullmatch(first), PART_OF_SPEECH.fullmatch(second)) for first, second, _ in pairs]
    if all(first and second for first, second in found):
        pairs = [Pair(f[1], s[1], pair.human) for (f, s), pair in zip(found, pairs, strict=True) if f and s]
    return pairs


def _iter_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    lines = "".join(iter_text(path)).split("\n")
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    delimiter = next((mark for mark in "\t;," if filled and mark in filled[-1][1]), None)
    for number, line in filled:
        fields = next(csv.reader([line], delimiter=delimiter), []) if delimiter in (";", ",") else line.split(delimiter)
        yield number, [field.strip() for field in fields]


def _pair(fields: Sequence[str]) -> Pair | None:
    """Two words and the first number behind them; in front there may be a number of the row, between a part of speech."""
    numbers = [_score(field) for field in fields]
    if len(fields) > 3 and numbers[0] is not None and numbers[1] is None and numbers[2] is None:
        fields, numbers = fields[1:], numbers[1:]
    if len(fields) > 3 and len(fields[2]) == 1 and numbers[2] is None:
        fields, numbers = [*fields[:2], *fields[3:]], [*numbers[:2], *numbers[3:]]
    if len(fields) < 3 or not fields[0] or not fields[1] or (score := numbers[2]) is None:
        return None
    return Pair(fields[0], fields[1], score)


def _score(field: str) -> float | None:
    try:
        value = float(field)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in field else None


def evaluate_similarity(vectors: Vectors, path: Path, *, keep_case: bool = False) -> Similarity:
    """Compares cosines with the scores of a file. See `Vectors.evaluate_similarity`."""
    pairs = read_pairs(path)
    lower_case = not keep_case and not vectors.has_capitals
    if lower_case:
        pairs = [Pair(first.lower(), second.lower(), human) for first, second, human in pairs]
    words = dict.fromkeys(word for pair in pairs for word in pair[:2])
    row_of = {word: vectors.row(word) for word in words}
    known = [pair for pair in pairs if row_of[pair.first] is not None and row_of[pair.second] is not None]
    rows = np.array([[row_of[pair.first], row_of[pair.second]] for pair in known], np.int64).reshape(-1, 2)
    found = cosines(vectors.matrix[rows[:, 0]], vectors.matrix[rows[:, 1]])
    human = np.array([pair.human for pair in known])
    human_ranks, cosine_ranks = average_ranks(-human), average_ranks(-found)
    compared = (Compared(*row) for row in zip(*zip(*known, strict=True), found.tolist(), human_ranks.tolist(),
                                              cosine_ranks.tolist(), strict=True)) if known else ()  # fmt: skip
    missing = tuple(word for word in words if row_of[word] is None)
    return Similarity(
        correlation(human_ranks, cosine_ranks), correlation(human, found), len(pairs), tuple(compared), missing, lower_case
    )


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value, 1 for the least; those that are the same share the average of their ranks.

    >>> average_ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation; of ranks it is Spearman's. nan for fewer than two values, and where all are the same.

    >>> round(correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 7.0])), 4)
    0.9934
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))
