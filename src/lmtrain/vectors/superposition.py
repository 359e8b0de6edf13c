"""Is the vector of a word with two senses the weighted sum of its senses' vectors? (Arora et al. 2018), tried on pseudo-words.

Two words a and b are written as one, vectors are trained again, and the new vectors are turned onto the old ones (orthogonal
Procrustes over all other words). Then

    v_ab ~= alpha v_a + (1 - alpha) v_b,    alpha = count(a) / (count(a) + count(b))

is looked at twice: the cosine of both sides with that alpha, and the alpha that fits best, x / (x + y) of the least squares
v_ab ~= x v_a + y v_b. On Brown the fitted share lies below the frequency's for the more frequent word: the rarer sense weighs
more than its occurrences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.errors import SettingsError
from lmtrain.shell import one_line
from lmtrain.vectors.moved import rotation
from lmtrain.vectors.svd import train_svd
from lmtrain.vectors.table import cosines
from lmtrain.vectors.text import Text


@dataclass(frozen=True)
class Superposition:
    """The vector of a pseudo-word beside the sum of its words' vectors."""

    words: tuple[str, str]
    cosine: float  # of the vector and the sum weighted by frequency
    frequency_share: float  # alpha by counts
    fitted_share: float  # alpha by least squares

    @property
    def difference(self) -> float:
        """The fitted share of the more frequent word minus that of its frequency."""
        sign = 1 if self.frequency_share >= 0.5 else -1
        return sign * (self.fitted_share - self.frequency_share)

    def format(self) -> str:
        """Three lines."""
        first, second = map(one_line, self.words)
        where = "below" if self.difference < 0 else "above"
        return (
            f"{first} + {second}: cosine of the merged word's vector with alpha v({first}) + (1 - alpha) v({second}): "
            f"{self.cosine:.4f}\nalpha by frequency {self.frequency_share:.3f}, fitted {self.fitted_share:.3f}: the more "
            f"frequent word's share is fitted {abs(self.difference):.3f} {where} its frequency's."
        )

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return {
            "words": list(self.words), "cosine": self.cosine, "frequency_share": self.frequency_share,
            "fitted_share": self.fitted_share, "difference": self.difference,
        }  # fmt: skip


def check_superposition(text: Text, first: str, second: str, **settings: Any) -> Superposition:
    """Trains vectors of `text` and of the text with two words merged, `settings` as for `train_svd`, and compares them.

    Raises DataError for a word that the text lacks, SettingsError for the same word twice.
    """
    if first == second:
        raise SettingsError(f"{first!r} was given twice.", "A pseudo-word is made of two words.", "Give another word.")
    merged_text = text.merged(first, second, f"{first}+{second}")
    counts = text.counts[[text.row(first), text.row(second)]]
    before, after = train_svd(text, **settings), train_svd(merged_text, **settings)
    merged = f"{first}+{second}"
    common = [word for word in before.words if word not in (first, second)]
    turn = rotation(np.stack([after[word] for word in common]), np.stack([before[word] for word in common]))
    found = after[merged].astype(np.float64) @ turn
    parts = np.stack([before[first], before[second]]).astype(np.float64)
    share = float(counts[0] / counts.sum())
    expected = np.array([share, 1 - share]) @ parts
    weights = np.linalg.lstsq(parts.T, found, rcond=None)[0]
    return Superposition((first, second), float(cosines(found, expected)), share, float(weights[0] / weights.sum()))
