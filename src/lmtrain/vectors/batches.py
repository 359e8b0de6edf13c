"""What word vectors are learnt from, as batches of the common training loop: windows of a text, or counted pairs.

    skipgram   rows (centre -> each neighbour)          cbow   rows (all neighbours -> centre)
    glove      the pairs of words that stand together, with their counts

An epoch takes every occurrence of a word that has a neighbour as a centre once, in another order each time. Of each centre the
window is drawn from 1 .. `window`, frequent words are passed over, and noise words are drawn, all from the seed, the epoch and
the batch's place alone, so that a run goes on exactly where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmtrain.data.batches import Position, Shuffled, random_of
from lmtrain.errors import DataError
from lmtrain.quantity import counted
from lmtrain.vectors.noise import Noise, keep_probabilities
from lmtrain.vectors.text import Text

METHODS = ("skipgram", "cbow")


@dataclass(frozen=True)
class _Tensors:
    """A batch whose tensors are its fields."""

    epoch: int
    index: int

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self, device: torch.device) -> Self:
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Predictions(_Tensors):
    """Rows of skip-gram or CBOW: see `lmtrain.ops.negative_sampling`."""

    contexts_NC: Tensor
    targets_N: Tensor
    samples_NK: Tensor

    @property
    def num_items(self) -> int:
        return len(self.targets_N)


@dataclass(frozen=True)
class Pairs(_Tensors):
    """Pairs of words with their counts: see `lmtrain.ops.glove`. The training text would have `scale` times as many of each."""

    words_N: Tensor
    contexts_N: Tensor
    counts_N: Tensor
    scale: float = 1.0

    @property
    def num_items(self) -> int:
        return len(self.counts_N)


class WindowBatches(Shuffled):
    """Batches of windows. Of how many predictions each consists is drawn: at least one, at most `most` of each centre."""

    most: int

    def done_before(self, position: Position) -> tuple[range, range]:
        batches, centres = super().done_before(position)
        return batches, range(batches.start, centres.start * self.most + 1)


def window_batches(
    text: Text, method: str, *, batch_size: int, window: int = 5, num_negatives: int = 5, subsample: float = 1e-3,
    noise_power: float = 0.75, seed: int = 1,
) -> WindowBatches:  # fmt: skip
    """Batches of `batch_size` centres of `text`; skip-gram has a row for each neighbour, so more rows than that.

    Raises DataError for a text in which no two words stand together.
    """
    assert method in METHODS, method
    windows = _Windows(text, window)
    keep_V, noise = keep_probabilities(text.counts, subsample), Noise(text.counts, noise_power)

    def make(numbers: NDArray[Any], position: Position) -> Predictions:
        random = random_of("windows", seed, position.epoch, position.index)
        centres, contexts_NC = windows.draw(numbers, keep_V, random)
        if method == "skipgram":
            rows, places = np.nonzero(contexts_NC >= 0)
            contexts_NC, targets_N = centres[rows, None], contexts_NC[rows, places]
        else:
            targets_N = centres
        samples_NK = noise.draw(random, (len(targets_N), num_negatives))
        arrays = (contexts_NC, targets_N, samples_NK)
        return Predictions(position.epoch, position.index, *(torch.from_numpy(array.astype(np.int64)) for array in arrays))

    batches = WindowBatches(len(windows.centres), make, batch_size=batch_size, seed=seed)
    batches.least_items, batches.most = 1, 2 * window if method == "skipgram" else 1
    return batches


class _Windows:
    """The windows of a text: `centres` are the positions of words that have a neighbour."""

    def __init__(self, text: Text, window: int) -> None:
        self._ids, self._lines, self._window = text.ids, text.lines, window
        self._offsets = np.array([*range(-window, 0), *range(1, window + 1)])
        words = np.flatnonzero(text.ids >= 0)
        has_neighbour = np.zeros(len(words), bool)
        for offset in self._offsets:
            has_neighbour |= self._there(words, np.array([offset]))[:, 0]
        self.centres = words[has_neighbour]
        if not len(self.centres):
            raise DataError(
                f"No two of the {len(text.words):,} words stand together.",
                f"Words are learnt from their neighbours within {counted(window, 'word')}, in one line.",
                text.remedy("Give a longer text."),
            )  # fmt: skip

    def _there(self, positions: NDArray[Any], offsets: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether a word stands at each offset of each position, in the same line, [N, C]."""
        near = positions[:, None] + offsets
        inside = (near >= 0) & (near < len(self._ids))
        near = np.where(inside, near, 0)
        return np.asarray(inside & (self._lines[near] == self._lines[positions][:, None]) & (self._ids[near] >= 0))

    def draw(
        self, numbers: NDArray[Any], keep_V: NDArray[np.float64], random: np.random.RandomState
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Centres [N] and their neighbours [N, C] (-1: none) of the centres with these numbers, those passed over left out.

        Where none at all is left, all are kept, with their whole windows: no batch is empty.
        """
        positions = self.centres[numbers]
        there = self._there(positions, self._offsets)
        near_ids = self._ids[np.where(there, positions[:, None] + self._offsets, 0)]
        centres = self._ids[positions]
        sizes = random.randint(1, self._window + 1, len(positions))
        kept = there & (np.abs(self._offsets) <= sizes[:, None])
        kept &= random.random_sample(there.shape) < np.where(there, keep_V[near_ids], 0)
        kept &= (random.random_sample(len(positions)) < keep_V[centres])[:, None]
        if not kept.any():
            kept = there
        rows = kept.any(axis=1)
        return centres[rows], np.where(kept, near_ids, -1)[rows]


def pair_batches(counts: Any, *, batch_size: int, seed: int = 1, scale: float = 1.0) -> Shuffled:
    """Batches of the pairs of a sparse matrix of counts, such as `lmtrain.vectors.svd.count_pairs` gives.

    scale   how many times as long the training text is as the text of these counts
    """
    pairs = counts.tocoo()
    if not pairs.nnz:
        raise DataError(
            "No line of the text has two words of the vocabulary near each other.",
            "GloVe learns from such pairs.",
            "Give a longer text.",
        )

    def make(numbers: NDArray[Any], position: Position) -> Pairs:
        return Pairs(
            position.epoch, position.index, torch.from_numpy(pairs.row[numbers].astype(np.int64)),
            torch.from_numpy(pairs.col[numbers].astype(np.int64)), torch.from_numpy(pairs.data[numbers].astype(np.float32)),
            scale,
        )  # fmt: skip

    return Shuffled(pairs.nnz, make, batch_size=batch_size, seed=seed)
