"""Averages of rows of a table over bags of different sizes, such as the word vectors of texts, with their gradient by hand.

    y_n = sum over m in bag n of w_m table[ids_m]          average: w_m = k_m / sum over the bag of k;   total: w_m = 1
    d_table[i] = sum over m with ids_m = i of w_m d_y_n(m)

Bag n holds the ids from place offsets_n up to the next bag's offset. k_m is 1 for what is kept and 0 for what is dropped. A bag
that is empty, or of which nothing is kept, gives zeros, and adds nothing to the gradient.

    legend   N bags · M ids of all bags together · V rows of the table · E their size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lmtrain.ops.lookup import sparse_rows
from lmtrain.ops.shapes import check_dtype
from lmtrain.ops.transforms import Looped, call, follow, is_followed


def average(
    table_VE: Tensor, ids_M: Tensor, offsets_N: Tensor, keep_M: Tensor | None = None, *, sparse: bool = False
) -> Tensor:
    """The mean [N, E] of the rows of each bag, or of those that `keep_M` (bool) keeps.

    sparse   the gradient of the table is a sparse tensor with the rows that were read

    Raises ValueError for ids and offsets that do not fit together, IndexError or RuntimeError for an id outside the table
    (on a CPU).
    """
    bags_M = bags_of(ids_M, offsets_N)
    kept_M = torch.ones_like(ids_M, dtype=table_VE.dtype) if keep_M is None else keep_M.to(table_VE.dtype)
    sizes_N = torch.zeros(len(offsets_N), dtype=table_VE.dtype, device=ids_M.device).index_add(0, bags_M, kept_M)
    weights_M = kept_M / sizes_N.clamp(min=1)[bags_M]
    averages_NE: Tensor = call(BagsFunction, table_VE, ids_M, offsets_N, weights_M, sparse)
    return averages_NE


def total(table_VE: Tensor, ids_M: Tensor, offsets_N: Tensor, *, sparse: bool = False) -> Tensor:
    """The sum [N, E] of the rows of each bag; else as `average`."""
    bags_of(ids_M, offsets_N)
    totals_NE: Tensor = call(BagsFunction, table_VE, ids_M, offsets_N, torch.ones_like(ids_M, dtype=table_VE.dtype), sparse)
    return totals_NE


def average_reference(table_VE: Tensor, ids_M: Tensor, offsets_N: Tensor, keep_M: Tensor | None = None) -> Tensor:
    """`average` as one reads it, bag by bag."""
    ends = [*offsets_N.tolist()[1:], len(ids_M)]
    means = []
    for start, end in zip(offsets_N.tolist(), ends, strict=True):
        rows_KE = table_VE[ids_M[start:end]]
        if keep_M is not None:
            rows_KE = rows_KE[keep_M[start:end]]
        means.append(rows_KE.mean(0) if len(rows_KE) else table_VE.new_zeros(table_VE.shape[1]))
    return torch.stack(means)


class BagsFunction(Looped):
    """Weighted sums of rows. The weights get no gradient."""

    @staticmethod
    def forward(table_VE: Tensor, ids_M: Tensor, offsets_N: Tensor, weights_M: Tensor, sparse: bool) -> Tensor:
        return embedding_bag(ids_M, table_VE, offsets_N, mode="sum", per_sample_weights=weights_M)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        table_VE, ids_M, offsets_N, weights_M, ctx.sparse = inputs
        ctx.shape = table_VE.shape
        ctx.save_for_backward(ids_M, offsets_N, weights_M)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (d_NE,), (ids_M, offsets_N, weights_M) = d_outputs, ctx.saved_tensors
        d_ME = d_NE[bags_of(ids_M, offsets_N)] * weights_M[:, None]
        if ctx.sparse:
            d_table = sparse_rows(ids_M, d_ME, ctx.shape)
        else:
            d_table = d_NE.new_zeros(ctx.shape).index_add(0, ids_M, d_ME)
        return d_table, None, None, None, None


def bags_of(ids_M: Tensor, offsets_N: Tensor) -> Tensor:
    """To which bag each id belongs, [M]."""
    check_dtype("ids_M", ids_M.dtype, torch.int64)
    check_dtype("offsets_N", offsets_N.dtype, torch.int64)
    ends_N = torch.cat([offsets_N[1:], offsets_N.new_full((1,), len(ids_M))])
    sizes_N = ends_N - offsets_N
    can_look = offsets_N.device.type == "cpu" and not (is_followed() or follow(offsets_N))
    if not len(offsets_N) or (can_look and (int(offsets_N[0]) or bool((sizes_N < 0).any()))):
        raise ValueError(
            f"the offsets of bags begin at 0 and ascend to at most {len(ids_M)}, but they are {offsets_N.tolist()}."
        )
    return torch.repeat_interleave(torch.arange(len(offsets_N), device=ids_M.device), sizes_N, output_size=len(ids_M))
