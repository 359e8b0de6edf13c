"""A vector for each sense of a word (Huang et al. 2012): its occurrences are renamed by their sense, and vectors trained again.

    ... the bank of the river ...  ->  ... the bank_2 of the river ...

Occurrences that were not divided (no word around them has a vector, or there are more than are clustered) keep the word's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.errors import DataError
from lmtrain.quantity import counted
from lmtrain.shell import one_line
from lmtrain.vectors.senses import Senses
from lmtrain.vectors.svd import train_svd
from lmtrain.vectors.table import Ranking, Vectors, ranking_to_json
from lmtrain.vectors.text import GAP, Text


@dataclass(frozen=True)
class Retrained:
    """The vectors after the second training, and what is near to each sense in them.

    names    of the senses, the most frequent first, by name how often each was seen
    rare     senses that are too rare to get a vector
    """

    word: str
    vectors: Vectors
    names: dict[str, int]
    rare: tuple[str, ...]
    near: dict[str, Ranking]

    def format(self) -> str:
        """A line for each sense, and how alike each two are."""
        lines = ["Vectors trained again, with a name for each sense:"]
        for name, ranking in self.near.items():
            lines.append(
                f"  {one_line(name)} ({counted(self.names[name], 'time')}): {', '.join(one_line(word) for word, _ in ranking)}"
            )
        for name in self.rare:
            lines.append(f"  {one_line(name)} ({counted(self.names[name], 'time')}) is too rare for a vector; see --min-count.")
        lines += [f"  cosine of {one_line(a)} and {one_line(b)}: {cosine:.3f}" for a, b, cosine in self.cosines]
        return "\n".join(lines)

    @property
    def cosines(self) -> list[tuple[str, str, float]]:
        """Of each two senses."""
        names = list(self.near)
        return [(a, b, self.vectors.similarity(a, b)) for i, a in enumerate(names) for b in names[i + 1 :]]

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return {
            "names": self.names, "rare": list(self.rare), "cosines": [list(each) for each in self.cosines],
            "neighbours": {name: ranking_to_json(ranking) for name, ranking in self.near.items()},
        }  # fmt: skip


def retrain(text: Text, found: Senses, *, min_count: int = 5, num_neighbours: int = 10, **settings: Any) -> Retrained:
    """Trains vectors of `text` with the occurrences of a word renamed as `found` divides them; `settings` as of `train_svd`.

    Words seen fewer than `min_count` times get no vector. Raises DataError where no sense is frequent enough.
    """
    base = found.word
    while any(f"{base}_{number + 1}" in text.words for number in range(len(found.senses))):
        base += "_"
    counts = np.bincount(found.labels, minlength=len(found.senses))
    names = {f"{base}_{number}": int(count) for number, count in enumerate(counts, 1)}
    renamed = _frequent(_renamed(text, found, list(names)), min_count)
    kept = [name for name in names if name in renamed.words]
    if not kept:
        raise DataError(
            f"No sense of {one_line(found.word)} was seen {counted(min_count, 'time')}.", "Rarer words get no vector.",
            "Give a smaller --min-count, fewer senses with --k, or a longer text.",
        )  # fmt: skip
    vectors = train_svd(renamed, **settings)
    near = {name: vectors.neighbours(name, num_neighbours) for name in kept}
    return Retrained(found.word, vectors, names, tuple(name for name in names if name not in kept), near)


def _renamed(text: Text, found: Senses, names: list[str]) -> Text:
    """The text with the senses as words of their own behind the others."""
    ids, counts = text.ids.copy(), np.append(text.counts, np.zeros(len(names), np.int64))
    ids[found.positions] = len(text.words) + found.labels
    counts[: len(text.words)] -= np.bincount(text.ids[found.positions], minlength=len(text.words))
    counts[len(text.words) :] = np.bincount(found.labels, minlength=len(names))
    return Text((*text.words, *names), ids, counts)


def _frequent(text: Text, min_count: int) -> Text:
    """The text with gaps for words that are rarer, the most frequent words first."""
    order = np.argsort(-text.counts, kind="stable")
    order = order[text.counts[order] >= min_count]
    new = np.full(len(text.words) + 2, GAP, np.int32)  # behind the words, as indices from the end: GAP and BREAK
    new[order] = np.arange(len(order), dtype=np.int32)
    new[-1] = -1
    return Text(tuple(text.words[row] for row in order), new[text.ids], text.counts[order])
