"""The data that a model learns from, a batch per step: the position of a run in its data, and what the loop needs of a batch.

Batches are a function of the position alone, and a position is two whole numbers; so a run goes on exactly where it was.

    Stream     the columns of a text, read chunk by chunk (`lmtrain.data.stream`)
    Shuffled   independent examples, in another order in each epoch
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmtrain.errors import CheckpointError


@dataclass(frozen=True)
class Position:
    """The position of a run in its data: before batch `index` (from 0) of `epoch` (from 0)."""

    epoch: int = 0
    index: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Batch(Protocol):
    """One step's worth of data."""

    @property
    def epoch(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def num_items(self) -> int:
        """Returns how many tokens, windows or texts the loss is a sum over."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns all of it by name: what is kept of a batch that spoilt a model."""

    def to(self, device: torch.device) -> Self:
        """Returns the same on another device."""


class Batches(ABC):
    """All batches of a run.

    batch_size   items side by side in a batch
    least_items  items of the smallest batch that there can be
    """

    batch_size: int
    least_items: int

    @abstractmethod
    def batch(self, position: Position) -> Batch:
        """Returns the batch at `position`. Raises CheckpointError if the epoch has no such batch."""

    @abstractmethod
    def num_batches(self, epoch: int) -> int:
        """Batches of `epoch`."""

    @abstractmethod
    def done_before(self, position: Position) -> tuple[range, range]:
        """Says how many batches, and how many items, may lie before `position`."""

    def next(self, position: Position) -> Position:
        """Returns the position after `position`, in the next epoch where this one ends."""
        if position.index + 1 < self.num_batches(position.epoch):
            return Position(position.epoch, position.index + 1)
        return Position(position.epoch + 1, 0)

    def previous(self, position: Position) -> Position:
        """Returns the position before `position`, which is not the first."""
        if position.index:
            return Position(position.epoch, position.index - 1)
        return Position(position.epoch - 1, self.num_batches(position.epoch - 1) - 1)

    def check(self, position: Position) -> None:
        """Raises CheckpointError if there is no batch at `position`."""
        num_batches = self.num_batches(position.epoch)
        if not 0 <= position.index < num_batches:
            raise CheckpointError(
                f"The position in the data is batch {position.index} of epoch {position.epoch}.",
                f"This epoch has batches 0 to {num_batches - 1}.",
                "Resume with the data, the batch_size, the chunk_length and the seed that the run was started with.",
            )


class Shuffled(Batches):
    """Batches of `num_items` examples, each of which is seen once per epoch; the last batch of an epoch may be smaller.

    make   (numbers of the examples, position) -> the batch; what it draws, it draws from `random_of(purpose, seed, ...)`
    """

    def __init__(
        self, num_items: int, make: Callable[[NDArray[Any], Position], Batch], *, batch_size: int, seed: int = 1
    ) -> None:
        assert num_items > 0, "there is nothing to learn from"
        self.num_items, self.batch_size, self.seed = num_items, min(batch_size, num_items), seed
        self.least_items = num_items % self.batch_size or self.batch_size
        self._make = make
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def batch(self, position: Position) -> Batch:
        self.check(position)
        start = position.index * self.batch_size
        return self._make(self._order(position.epoch)[start : start + self.batch_size], position)

    def num_batches(self, epoch: int) -> int:
        return -(-self.num_items // self.batch_size)

    def done_before(self, position: Position) -> tuple[range, range]:
        batches = position.epoch * self.num_batches(0) + position.index
        items = position.epoch * self.num_items + min(position.index * self.batch_size, self.num_items)
        return range(batches, batches + 1), range(items, items + 1)

    def _draw_order(self, epoch: int) -> NDArray[Any]:
        return random_of("shuffle", self.seed, epoch).permutation(self.num_items)


def random_of(purpose: str, *numbers: int) -> np.random.RandomState:
    """Returns a generator that depends on nothing but the purpose and the numbers (a seed, an epoch, the index of a batch).

    The legacy generator, because numpy promises that its numbers stay the same (NEP 19).
    """
    return np.random.RandomState(np.frombuffer(digest_of(purpose, *numbers), "<u4"))


def digest_of(purpose: str, *numbers: int) -> bytes:
    """32 bytes that depend on nothing but the purpose and the numbers."""
    return hashlib.sha256("/".join([purpose, *map(str, numbers)]).encode()).digest()
