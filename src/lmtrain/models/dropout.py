"""Noise that regularises: what is dropped is a function of an explicit `torch.Generator`, never of global state.

    dropout            y = x * m / keep                 a coin per element (Srivastava et al. 2014)
    locked_dropout     y_t = x_t * m / keep             the same coins at every step of a chunk (Gal and Ghahramani 2016)
    embedding_dropout  W'_v = W_v * m_v / keep          a coin per row: a word is absent from the whole chunk (Gal 2016)
    weight_drop        R' = R * m / keep                a coin per recurrent weight (Wan et al. 2013; Merity et al. 2017)
    zoneout            h_t = z h_{t-1} + (1 - z) h~_t   a coin per unit keeps the old state (Krueger et al. 2017)

Coins are 16 random bits each, four from one drawn int64, compared with a threshold: four to five times as fast on a CPU
as `bernoulli_`. So probabilities are multiples of 1/65536, and the scale is the inverse of the probability that is really
used: the expectation of the output is the input. Callers apply these in training only.

Where several processes share the columns of a batch, each draws the coins of all columns and uses those of its own
(`ColumnGenerator`): what is dropped is a function of the column, not of the process.

    legend   T steps · B streams · D features · V vocabulary · E embedding · Z gates x H · H hidden
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from lmtrain.distributed.group import Columns

_SIDES = 1 << 16  # a coin is one of 65536 equally likely numbers


class ColumnGenerator(Generator):
    """A generator for some `columns` of a batch, in the state of `generator`; it draws as that one does for all of them."""

    columns: Columns

    def __new__(cls, generator: Generator, columns: Columns) -> Self:
        return super().__new__(cls, generator.device)  # type: ignore[call-arg]

    def __init__(self, generator: Generator, columns: Columns) -> None:
        self.set_state(generator.get_state())
        self.columns = columns


def dropout(x: Tensor, p: float, generator: Generator) -> Tensor:
    """`x` (any shape) with every element zeroed with probability `p`, 0 <= p < 1, the others scaled by 1 / (1 - p).

    A `ColumnGenerator` takes the second axis for that of the columns.
    """
    return _drop(x, x.shape, p, generator, has_columns=True)


def locked_dropout(x_TBD: Tensor, p: float, generator: Generator) -> Tensor:
    """As `dropout`, with one mask [1, B, D] (or [1, B, ...]) for all steps."""
    return _drop(x_TBD, (1, *x_TBD.shape[1:]), p, generator, has_columns=True)


def embedding_dropout(weight_VE: Tensor, p: float, generator: Generator) -> Tensor:
    """The embedding matrix with whole rows zeroed with probability `p`, the others scaled by 1 / (1 - p)."""
    return _drop(weight_VE, (len(weight_VE), 1), p, generator)


def dropped_rows(embedded: Tensor, ids: Tensor, vocab_size: int, p: float, generator: Generator) -> Tensor:
    """The look-up of `ids` in an embedding matrix after `embedding_dropout`, from its look-up before it.

    embedded [..., E] is embedding[ids]; row dropped or not is drawn once per word, from the same coins. Without touching
    the rows of other words: neither does the gradient then, which stays sparse if it was.
    """
    if p == 0:
        return embedded
    ones_V1 = torch.ones(vocab_size, 1, dtype=embedded.dtype, device=embedded.device)
    return embedded * F.embedding(ids, embedding_dropout(ones_V1, p, generator))


def weight_drop(weight_ZH: Tensor, p: float, generator: Generator) -> Tensor:
    """The recurrent weight with every entry zeroed with probability `p`; call it once per chunk, outside the recurrence."""
    return _drop(weight_ZH, weight_ZH.shape, p, generator)


def zoneout_weights(
    shape: Sequence[int],
    p: float,
    generator: Generator | None,
    *,
    training: bool,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The weight of the previous state: 1 with probability `p` and else 0 in training, its mean in evaluation.

    Shape [T, B, H] in training; in evaluation one number that expands to it ([1, 1, 1]), without a generator.
    """
    _check_probability(p)
    count = round(_SIDES * p)
    if not training:
        return torch.full([1] * len(shape), count / _SIDES, device=device, dtype=dtype)
    assert generator is not None, "training with zoneout takes a generator"
    return _coins_of_columns(shape, count, generator, device).to(dtype)


def _drop(x: Tensor, mask_shape: Sequence[int], p: float, generator: Generator, *, has_columns: bool = False) -> Tensor:
    _check_probability(p)
    if p == 0:
        return x
    count, scale = quantised_keep(p, x.dtype)
    coins = (_coins_of_columns if has_columns else _coins)(mask_shape, count, generator, x.device)
    return x * coins.to(x.dtype).mul_(scale)


@cache
def quantised_keep(p: float, dtype: torch.dtype) -> tuple[int, float]:
    """How many of the 65536 sides of a coin keep, and the scale of what is kept: count * scale = 65536 within `dtype`.

    The scale must be a number of `dtype`, of which bfloat16 has few: it is chosen first and the probability after it.
    """
    scale = torch.tensor(1 / (1 - p), dtype=dtype, device="cpu").item()
    count = min(max(round(_SIDES / scale), 1), _SIDES - 1)
    return count, _SIDES / count


def _coins_of_columns(shape: Sequence[int], count: int, generator: Generator, device: torch.device | None) -> Tensor:
    """The coins of a mask [_, B, ...] that has columns: of those that a `ColumnGenerator` is for."""
    columns: Columns | None = getattr(generator, "columns", None)
    if columns is None:
        return _coins(shape, count, generator, device)
    first, size, *rest = shape
    assert size == columns.last - columns.first, f"a mask of {size} columns was asked for by a process with {columns}"
    return columns.of(_coins([first, columns.total, *rest], count, generator, device), 1)


def _coins(shape: Sequence[int], count: int, generator: Generator, device: torch.device | None) -> Tensor:
    """Bools that are true with probability count / 65536, 0 <= count < 65536."""
    size = torch.Size(shape).numel()
    words = torch.empty((size + 3) // 4, dtype=torch.int64, device=device).random_(-(1 << 63), None, generator=generator)
    return (words.view(torch.int16)[:size] < count - _SIDES // 2).view(*shape)


def _check_probability(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"a probability of dropping is {p}; it must be at least 0 and below 1.")
