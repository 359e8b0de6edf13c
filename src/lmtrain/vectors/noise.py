"""What negative sampling draws (Mikolov et al. 2013): noise words, and which of the frequent words are passed over.

noise        word w is drawn in proportion to count(w)^0.75
subsampling  an occurrence of w is kept with probability min(1, sqrt(t / f) + t / f), f = count(w) / all, as word2vec does
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Noise:
    """Draws words in proportion to their counts raised to `power`; a count of 0 is never drawn."""

    def __init__(self, counts: NDArray[np.int64], power: float = 0.75) -> None:
        weights = np.where(counts > 0, counts.astype(np.float64) ** power, 0)
        self._ends = np.cumsum(weights) / weights.sum()

    def draw(self, random: np.random.RandomState, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Ids of this shape."""
        return np.searchsorted(self._ends, random.random_sample(shape) * self._ends[-1], side="right").astype(np.int64)


def keep_probabilities(counts: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    """The probability of each word's occurrences to be kept, [V]; a threshold of 0 keeps all."""
    if not threshold:
        return np.ones(len(counts))
    ratio = threshold * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1, np.sqrt(ratio) + ratio)
