"""Cuts a split's ids into B contiguous columns and walks them side by side, a chunk of T steps at a time.

    legend   N ids of the split · B columns (parallel streams) · S ids of a column · T steps in a chunk (chunk_length)

Column b of an epoch that starts at `offset` is ids[offset + b S : offset + (b+1) S], with S = (N - offset) // B. Chunk after
chunk continues where the last one ended, in every column, so that a model's state can be carried along (Mikolov 2010;
Merity 2017). Every id of a column is a target once. Its input is the id before it, across the border between columns too;
before the very first id of the split stands `<eos>`. The alphabet in four columns, with "." for `<eos>`:

    >>> import numpy as np
    >>> alphabet = ".abcdefghijklmnopqrstuvwxyz"
    >>> def show(matrix_TB):
    ...     print(*(" ".join(alphabet[i] for i in row) for row in matrix_TB.tolist()), sep="\\n")
    >>> stream = Stream(np.arange(1, 27, dtype=np.uint16), batch_size=4, chunk_length=3, eos_id=0, random_offset=False)
    >>> chunk = stream.batch(Position(epoch=0, index=0))
    >>> show(chunk.inputs_TB)
    . f l r
    a g m s
    b h n t
    >>> show(chunk.targets_TB)
    a g m s
    b h n t
    c i o u
    >>> following = stream.next(Position(epoch=0, index=0))
    >>> following
    Position(epoch=0, index=1)
    >>> show(stream.batch(following).targets_TB)
    d j p v
    e k q w
    f l r x
    >>> stream.next(following)
    Position(epoch=1, index=0)

What an epoch leaves out: `offset` ids at the start (fewer than T, drawn anew for each epoch, so that the cuts between chunks
move), fewer than B at the end (y and z above), and the last S mod T of each column, where a chunk would be shorter
than T. With `random_chunk_length` or `keep_tail` the last chunk is as short as it must be, and nothing is left out there.

A stream has no state: a chunk is a function of the position, and a position is two whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmtrain.data.batches import Batches, Position, digest_of, random_of
from lmtrain.errors import DataError

SHORTEST = 5  # of random chunk lengths, but for the last of an epoch


@dataclass(frozen=True)
class Chunk:
    """One step's worth of data; its length T is `len(chunk.inputs_TB)`."""

    inputs_TB: Tensor  # torch.long, contiguous
    targets_TB: Tensor  # torch.long, contiguous: the inputs one step later
    starts_epoch: bool  # the columns begin anew here, and with them the model's state
    epoch: int
    index: int

    @property
    def num_items(self) -> int:
        return self.targets_TB.numel()

    def tensors(self) -> dict[str, Tensor]:
        return {"inputs_TB": self.inputs_TB, "targets_TB": self.targets_TB}

    def to(self, device: torch.device) -> Chunk:
        return replace(self, inputs_TB=self.inputs_TB.to(device), targets_TB=self.targets_TB.to(device))


def num_tokens_needed(batch_size: int, chunk_length: int) -> int:
    """Returns the fewest ids of which a stream can be made: a chunk and one id more for every column."""
    return batch_size * (chunk_length + 1)


class Stream(Batches):
    """Chunks of `ids` [N] for training; `offset`s and random lengths follow from (seed, epoch) alone.

    All chunks have one length, so what is left of a column is not read in this epoch (`keep_tail`: it is a shorter chunk).

    Random chunk lengths (Merity 2017, section 5) are drawn from N(T, 5) or, one time in twenty, N(T/2, 5), and are at least
    5 (or T, where that is less): scale the learning rate by len(chunk.inputs_TB) / chunk_length.

    Raises DataError if the split has fewer than `num_tokens_needed` ids.
    """

    def __init__(
        self,
        ids: NDArray[Any],
        *,
        batch_size: int,
        chunk_length: int,
        eos_id: int,
        seed: int = 1,
        random_offset: bool = True,
        random_chunk_length: bool = False,
        keep_tail: bool = False,
    ) -> None:
        _check_enough(len(ids), batch_size, chunk_length)
        self.batch_size, self.chunk_length, self.eos_id, self.seed = batch_size, chunk_length, eos_id, seed
        self.least_items = batch_size
        self.random_offset, self.random_chunk_length, self.keep_tail = random_offset, random_chunk_length, keep_tail
        self._ids = ids
        self._starts = lru_cache(maxsize=2)(self._draw_starts)  # an epoch's cuts are drawn once, not for every chunk

    def batch(self, position: Position) -> Chunk:
        self.check(position)
        start, end = self._starts(position.epoch)[position.index : position.index + 2]
        block_TB = self._copy(self.offset(position.epoch), start, end)
        return Chunk(
            inputs_TB=block_TB[:-1],
            targets_TB=block_TB[1:],
            starts_epoch=position.index == 0,
            epoch=position.epoch,
            index=position.index,
        )

    def done_before(self, position: Position) -> tuple[range, range]:
        """Epochs differ in the number of their chunks, and of their tokens, by offsets and lengths."""
        chunks, tokens = self._sizes_of_epochs()
        read = self.batch_size * self._starts(position.epoch)[position.index]
        return (
            range(position.epoch * chunks[0] + position.index, position.epoch * chunks[-1] + position.index + 1),
            range(position.epoch * tokens[0] + read, position.epoch * tokens[-1] + read + 1),
        )

    def _sizes_of_epochs(self) -> tuple[range, range]:
        """Says how many chunks, and how many tokens, an epoch can have, whatever is drawn for it."""
        least, most = ((len(self._ids) - offset) // self.batch_size for offset in (self._largest_offset(), 0))
        if not self.random_chunk_length and not self.keep_tail:
            least, most = (length // self.chunk_length * self.chunk_length for length in (least, most))
        shortest = min(SHORTEST, self.chunk_length)
        chunks = (1, -(-most // shortest)) if self.random_chunk_length else (-(-n // self.chunk_length) for n in (least, most))
        fewest_chunks, most_chunks = chunks
        return range(fewest_chunks, most_chunks + 1), range(self.batch_size * least, self.batch_size * most + 1)

    def num_batches(self, epoch: int) -> int:
        """Chunks of `epoch`; with random lengths or offsets, epochs may differ."""
        return len(self._starts(epoch)) - 1

    def offset(self, epoch: int) -> int:
        """Ids left out at the start of `epoch`: fewer than chunk_length, and so few that one chunk remains."""
        return int.from_bytes(digest_of("offset", self.seed, epoch)) % (self._largest_offset() + 1)

    def _largest_offset(self) -> int:
        most = min(self.chunk_length - 1, len(self._ids) - self.batch_size * self.chunk_length)
        return most if self.random_offset else 0

    def _copy(self, offset: int, start: int, end: int) -> Tensor:
        """Steps start-1 .. end-1 of every column, [end-start+1, B]: the one copy from the memory map."""
        column_length = (len(self._ids) - offset) // self.batch_size
        columns_BS = self._ids[offset : offset + self.batch_size * column_length].reshape(self.batch_size, column_length)
        before_B = offset + start - 1 + column_length * np.arange(self.batch_size)
        block_TB = np.empty((end - start + 1, self.batch_size), np.int64)
        block_TB[1:] = columns_BS[:, start:end].T
        block_TB[0] = np.where(before_B < 0, self.eos_id, self._ids[np.maximum(before_B, 0)])
        return torch.from_numpy(block_TB)

    def _draw_starts(self, epoch: int) -> list[int]:
        """Where in a column each chunk of `epoch` starts, and where the last one ends."""
        column_length = (len(self._ids) - self.offset(epoch)) // self.batch_size
        if not self.random_chunk_length:
            starts = list(range(0, column_length + 1, self.chunk_length))
            return [*starts, column_length] if self.keep_tail and starts[-1] < column_length else starts
        shortest = min(SHORTEST, self.chunk_length)
        size = -(-column_length // shortest)
        random = random_of("lengths", self.seed, epoch)
        mean = np.where(random.random_sample(size) < 0.05, self.chunk_length / 2, self.chunk_length)
        lengths = np.maximum(np.rint(mean + 5 * random.standard_normal(size)).astype(np.int64), shortest)
        ends = np.cumsum(lengths)
        return [0, *ends[ends < column_length].tolist(), column_length]


def _check_enough(num_tokens: int, batch_size: int, chunk_length: int) -> None:
    needed = num_tokens_needed(batch_size, chunk_length)
    if num_tokens >= needed:
        return
    largest = num_tokens // (chunk_length + 1)
    remedy = f"Type batch_size={largest}{' or less' * (largest > 1)}" if largest else "Give more text"
    shorter = (num_tokens // batch_size) - 1
    raise DataError(
        f"The training split has {num_tokens:,} tokens, too few for batch_size={batch_size} and chunk_length={chunk_length}.",
        f"They need at least batch_size x (chunk_length + 1) = {needed:,} tokens.",
        f"{remedy}{f', or chunk_length={shorter}' if shorter >= 1 else ''}.",
    )
