"""The senses of a word: the windows around it, clustered; one prototype for each cluster (Huang et al. 2012).

    context of an occurrence = sum over the words within `window` of it, in its line, of idf(w) v_w / |v_w|
    idf(w)                   = log(words of the text / occurrences of w)

The contexts, at length 1, are clustered by spherical k-means (Dhillon and Modha 2001): a context belongs to the centre of the
largest cosine, a centre is the sum of its contexts at length 1. The number of clusters is given, or that of 2 .. 10 with the
best silhouette (Rousseeuw 1987) by the distance 1 - cosine. That distance is linear in each context, so mean distances to
clusters are distances to the clusters' means, and no pairs are compared. Two clusters are found in the windows of any word:
the silhouette, not their number, tells how far apart they are (0: not at all, 1: entirely).

The words shown for a sense are those nearest to its centre minus the mean of all contexts, as that which all windows share
(function words, mostly) tells no sense from another. Of a word with very many occurrences, MAX_WINDOWS spread over the text
are taken.

    legend   N occurrences · K clusters · V words · E numbers of a vector
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import DataError
from lmtrain.shell import one_line
from lmtrain.vectors.table import Ranking, Vectors, ranking_to_json
from lmtrain.vectors.text import Text

MAX_SENSES = 10  # that are tried where the number is not given
MAX_WINDOWS = 5000
NUM_STARTS = 10
MAX_ROUNDS = 100
NUM_CONTEXTS = 2

Rows = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Sense:
    """One cluster of the windows around a word."""

    share: float  # of the windows
    neighbours: Ranking  # of the cluster's centre without what all windows share
    contexts: tuple[str, ...]  # the windows nearest to the centre


@dataclass(frozen=True)
class Senses:
    """The senses of a word, the most frequent first, and how the occurrences were divided."""

    word: str
    senses: tuple[Sense, ...]
    silhouette: float
    num_occurrences: int
    num_used: int  # those with a word around them that has a vector
    positions: Labels  # of those in the text, [N]
    labels: Labels  # the sense of each, [N]

    def format(self) -> str:
        """A paragraph for each sense."""
        lines = [
            f"{one_line(self.word)}: {len(self.senses)} senses of {self.num_used:,} windows "
            f"(of {self.num_occurrences:,} occurrences)"
            + ("" if math.isnan(self.silhouette) else f", silhouette {self.silhouette:.3f}")
        ]
        for number, sense in enumerate(self.senses, 1):
            lines += [
                "", f"sense {number}: {sense.share:.1%} of the windows",
                "  near: " + ", ".join(one_line(word) for word, _ in sense.neighbours),
                *(f"  ... {one_line(context)} ..." for context in sense.contexts),
            ]  # fmt: skip
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return {
            "word": self.word, "silhouette": None if math.isnan(self.silhouette) else self.silhouette,
            "num_occurrences": self.num_occurrences, "num_used": self.num_used,
            "senses": [
                {"share": s.share, "contexts": list(s.contexts), "neighbours": ranking_to_json(s.neighbours)}
                for s in self.senses
            ],
        }  # fmt: skip


def find_senses(
    vectors: Vectors, text: Text, words: Sequence[str], *, number: int | None = None, window: int = 5, seed: int = 1,
    num_neighbours: int = 10,
) -> Senses:  # fmt: skip
    """The senses of `words`, whose occurrences are taken together: one word, or two as a pseudo-word.

    `text` had better hold its rare words too (min_count=1), as they are shown. Raises DataError for a word that the text lacks,
    and for one with fewer usable windows than senses.
    """
    rows = [text.row(word) for word in words]
    occurrences = np.flatnonzero(np.isin(text.ids, rows))
    positions = occurrences[:: -(-len(occurrences) // MAX_WINDOWS) or 1]
    contexts = _contexts(vectors, text, positions, window)
    lengths = np.linalg.norm(contexts, axis=1)
    used = lengths > 0
    unit_NE, positions = contexts[used] / lengths[used][:, None], positions[used]
    numbers = [number] if number else list(range(2, min(MAX_SENSES, len(unit_NE) - 1) + 1))
    if not numbers or len(unit_NE) < numbers[0]:
        raise DataError(
            f"{one_line(' + '.join(words))} has {len(unit_NE)} windows with words that have vectors.",
            f"{number or 3} at least are needed.",
            "Give a more frequent word, or a longer text.",
        )
    labels, centres = max(
        (spherical_kmeans(unit_NE, k, seed) for k in numbers),
        key=lambda found: silhouette(unit_NE, found[0]) if len(numbers) > 1 else 0,
    )
    shares = np.bincount(labels, minlength=len(centres)) / len(labels)
    order = [sense for sense in np.argsort(-shares, kind="stable") if shares[sense]]
    place = np.argsort(order)
    shared = unit_NE.mean(axis=0) if len(order) > 1 else 0
    senses = [
        Sense(float(shares[sense]), _neighbours(vectors, centres[sense] - shared, words, num_neighbours),
              _nearest_contexts(text, positions, unit_NE @ centres[sense], labels == sense, window))
        for sense in order
    ]  # fmt: skip
    value = silhouette(unit_NE, labels)
    return Senses(" + ".join(words), tuple(senses), value, len(occurrences), len(unit_NE), positions, place[labels])


def _contexts(vectors: Vectors, text: Text, positions: Labels, window: int) -> Rows:
    """The weighted sums of the vectors around each position [N, E]; the words at the positions themselves are left out."""
    row_of_id = np.array([-1 if (row := vectors.row(word)) is None else row for word in text.words])
    row_of_id[np.unique(text.ids[positions])] = -1
    idf = np.log(text.counts.sum() / text.counts)
    lines = text.lines
    total_NE = np.zeros((len(positions), vectors.matrix.shape[1]))
    for distance in (*range(-window, 0), *range(1, window + 1)):
        near = np.clip(positions + distance, 0, len(text.ids) - 1)
        ids = text.ids[near]
        there = (near == positions + distance) & (lines[near] == lines[positions]) & (ids >= 0)
        ids = np.where(there, ids, 0)
        rows = np.where(there, row_of_id[ids], -1)
        total_NE += np.where(rows >= 0, idf[ids], 0)[:, None] * vectors.unit[rows]
    return total_NE


def _neighbours(vectors: Vectors, centre: Rows, words: Sequence[str], number: int) -> Ranking:
    if not centre.astype(np.float32).any():
        return []
    found = vectors.neighbours(centre.astype(np.float32), number + len(words))
    return [(word, cosine) for word, cosine in found if word not in words][:number]


def _nearest_contexts(text: Text, positions: Labels, cosines: Rows, inside: NDArray[np.bool_], window: int) -> tuple[str, ...]:
    best = [row for row in np.argsort(-cosines, kind="stable") if inside[row]]
    shown = dict.fromkeys(_window(text, int(positions[row]), window) for row in best[: 20 * NUM_CONTEXTS])
    return tuple(shown)[:NUM_CONTEXTS]  # texts repeat themselves; each window once


def _window(text: Text, position: int, window: int) -> str:
    """The words around a position, within its line."""
    line = text.ids[max(position - window, 0) : position + window + 1]
    start = min(position, window)
    breaks = np.flatnonzero(line == -1)
    left, right = max([b + 1 for b in breaks if b < start], default=0), min([b for b in breaks if b > start], default=len(line))
    return " ".join(text.words[i] if i >= 0 else "_" for i in line[left:right])


def spherical_kmeans(unit_NE: Rows, number: int, seed: int = 1) -> tuple[Labels, Rows]:
    """Clusters [N] of rows of length 1 and their centres [K, E], the best of several starts (as k-means++ chooses them)."""
    random = np.random.default_rng(seed)
    best: tuple[float, Labels, Rows] | None = None
    for _ in range(NUM_STARTS):
        centres = _first_centres(unit_NE, number, random)
        labels = (unit_NE @ centres.T).argmax(axis=1)
        for _ in range(MAX_ROUNDS):
            sums = np.stack([unit_NE[labels == cluster].sum(axis=0) for cluster in range(number)])
            lengths = np.linalg.norm(sums, axis=1, keepdims=True)
            centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centres)
            before, labels = labels, (unit_NE @ centres.T).argmax(axis=1)
            if np.array_equal(before, labels):
                break
        total = float((unit_NE * centres[labels]).sum())
        if best is None or total > best[0] + 1e-12:
            best = total, labels, centres
    assert best is not None
    return best[1], best[2]


def _first_centres(unit_NE: Rows, number: int, random: np.random.Generator) -> Rows:
    """Rows far from each other: each is drawn in proportion to its distance from the nearest one before."""
    rows = [int(random.integers(len(unit_NE)))]
    while len(rows) < number:
        distances = np.clip(1 - (unit_NE @ unit_NE[rows].T).max(axis=1), 0, None)
        total = distances.sum()
        rows.append(int(random.choice(len(unit_NE), p=distances / total if total > 0 else None)))
    return unit_NE[rows]


def silhouette(unit_NE: Rows, labels: Labels) -> float:
    """The mean over all rows of (b - a) / max(a, b); nan where there is one cluster only.

    a is the mean distance 1 - cosine to the others of the row's cluster, b that to the nearest other cluster; a row that is
    alone in its cluster counts 0.
    """
    found, labels = np.unique(labels, return_inverse=True)
    if len(found) < 2:
        return float("nan")
    sums, sizes = np.zeros((len(found), unit_NE.shape[1])), np.bincount(labels)
    np.add.at(sums, labels, unit_NE)
    distances = 1 - unit_NE @ sums.T / sizes
    every = np.arange(len(labels))
    own_sizes = sizes[labels]
    own = (distances[every, labels] * own_sizes) / np.maximum(own_sizes - 1, 1)  # without the row itself, at distance 0
    distances[every, labels] = np.inf
    other = distances.min(axis=1)
    largest = np.maximum(own, other)
    values = np.where((own_sizes > 1) & (largest > 0), (other - own) / np.where(largest > 0, largest, 1), 0)
    return float(values.mean())


def adjusted_rand_index(first: Labels, second: Labels) -> float:
    """How far two divisions of the same things agree: 1 entirely, 0 as by chance (Hubert and Arabie 1985).

    >>> adjusted_rand_index(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    1.0
    """
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)

    def pairs(counts: NDArray[Any]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    expected = pairs(table.sum(0)) * pairs(table.sum(1)) / max(pairs(np.array([len(first)])), 1)
    most = (pairs(table.sum(0)) + pairs(table.sum(1))) / 2
    return (pairs(table) - expected) / (most - expected) if most != expected else 1.0
