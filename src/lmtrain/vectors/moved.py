"""How far words moved between two vectors of each: before and after training, or in two trainings.

A word that training never met keeps the vector it had, while the words around it go: what is learnt of its neighbours is lost
on it, which is the lectures' warning against tuning word vectors on a small text. So those that never moved are counted.

Two trainings that began apart have axes of their own. `align` first turns the vectors of the one onto those of the other by the
rotation that brings all common words closest (orthogonal Procrustes, Schoenemann 1966).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import DataError
from lmtrain.shell import num_columns, one_line, padded
from lmtrain.vectors.table import Ranking, Vectors, cosines, ranking_to_json

NUM_SHOWN = 10


@dataclass(frozen=True)
class Moved:
    """The cosine of every common word's two vectors, the smallest first."""

    cosines: Ranking
    furthest: Ranking  # of them the words that moved
    num_still: int  # words whose two vectors are the same, bit by bit
    num_without_direction: int  # words that have a vector of zeros in one of the two
    num_only_before: int
    num_only_after: int

    def format(self, number: int = NUM_SHOWN) -> str:
        """The sums, then the words that moved furthest."""
        num_common = len(self.cosines) + self.num_without_direction
        lines = [
            f"{num_common:,} words in both; {self.num_only_before:,} in the first alone, {self.num_only_after:,} in the second",
            f"{self.num_still:,} never moved ({self.num_still / num_common:.2%})",
        ]
        if self.num_without_direction:
            lines.append(f"{self.num_without_direction:,} have a vector of zeros, which has no direction")
        if self.cosines:
            values = [cosine for _, cosine in self.cosines]
            lines.append(f"mean cosine of a word with itself {np.mean(values):.4f}, median {np.median(values):.4f}")
        if shown := self.furthest[:number]:
            width = max(num_columns(one_line(word)) for word, _ in shown)
            lines += ["", "moved furthest", *(f"  {padded(one_line(word), width)}  {cosine:.4f}" for word, cosine in shown)]
        return "\n".join(lines)

    def to_json(self, number: int = NUM_SHOWN) -> dict[str, Any]:
        """As a dictionary; null for a mean over nothing."""
        values = [cosine for _, cosine in self.cosines]
        return {
            "num_common": len(self.cosines) + self.num_without_direction, "num_still": self.num_still,
            "num_without_direction": self.num_without_direction, "num_only_before": self.num_only_before,
            "num_only_after": self.num_only_after, "mean_cosine": float(np.mean(values)) if values else None,
            "furthest": ranking_to_json(self.furthest[:number]),
        }  # fmt: skip


def compare_vectors(before: Vectors, after: Vectors, *, align: bool = False) -> Moved:
    """How far each word of both moved. Raises DataError for sizes that differ, and where no word is in both."""
    if before.matrix.shape[1] != after.matrix.shape[1]:
        raise DataError(
            f"The vectors have the sizes {before.matrix.shape[1]} and {after.matrix.shape[1]}.",
            "A word can be compared with itself where both vectors have the same size.",
            "Give vectors of one training, or of two with the same size.",
        )
    common = [word for word in before.words if word in after]
    if not common:
        raise DataError("No word is in both.", "Words are compared with themselves.", "Give vectors of the same words.")
    first = np.stack([before[word] for word in common])
    second = np.stack([after[word] for word in common])
    still = np.asarray((first == second).all(axis=1))
    if align:
        first = (first @ rotation(first, second)).astype(np.float32)
    both = np.flatnonzero(first.any(axis=1) & second.any(axis=1))
    found = cosines(first[both], second[both])
    order = np.argsort(found, kind="stable")
    ranking = [(common[both[place]], float(found[place])) for place in order]
    furthest = [pair for pair, place in zip(ranking, order, strict=True) if not still[both[place]]]
    return Moved(
        ranking, furthest, int(still.sum()), len(common) - len(both), len(before) - len(common), len(after) - len(common)
    )


def rotation(first_NE: NDArray[Any], second_NE: NDArray[Any]) -> NDArray[np.float64]:
    """The orthogonal matrix Q [E, E] for which `first_NE` @ Q is closest to `second_NE`, in the sum of squares."""
    left, _, right = np.linalg.svd(first_NE.astype(np.float64).T @ second_NE.astype(np.float64))
    return left @ right
