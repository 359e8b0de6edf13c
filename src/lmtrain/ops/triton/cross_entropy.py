"""The output layer with its loss on a GPU: two passes over the logits of many rows at a time.

    product        z = features W^T                                   in the type of the computation, the only large buffer
    row by row     largest and sum of exponentials of z + b, read once: log Z_n and the loss
    tile by tile   d_z = exp(z + b - log Z) - onehot(target), over z itself, and its sums over the tile's rows for d_b
    products       d_features = d_z W,  d_W += d_z^T features         in float32

Chunks are as large as `max_bytes` allows: every further one reads W again and adds to d_W. Sums over rows are added in a
fixed order, without atomics.

    legend   N rows · R rows of a chunk · V vocabulary · D features
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmtrain.ops.recurrence import accumulate_dtype
from lmtrain.ops.triton.device import load
from lmtrain.ops.triton.launch import OPTIONS, TYPES, multiply

ROW_BLOCK = 4096  # columns of a row read at once
TILE_ROWS, TILE_COLUMNS = 32, 128


def forward_linear_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    max_bytes: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The total and the wanted gradients, as `lmtrain.ops.linear_cross_entropy` describes."""
    dtype, wide_dtype = features_ND.dtype, accumulate_dtype(features_ND.dtype)
    (N, D), V = features_ND.shape, len(weight_VD)
    features_ND, weight_VD = features_ND.contiguous(), weight_VD.to(dtype).contiguous()
    targets_N = targets_N.contiguous()
    wide = features_ND.new_empty(0, dtype=wide_dtype)
    d_features_ND = wide.new_empty(N, D) if wanted[0] else None
    d_weight_VD = wide.new_empty(V, D) if wanted[1] else None
    d_bias_V = wide.new_zeros(V) if wanted[2] else None
    num_rows = _rows_at_once(N, V, D, dtype, max_bytes)
    logits_RV, losses_N = features_ND.new_empty(num_rows, V), wide.new_empty(N)
    for first in range(0, N, num_rows):
        rows = slice(first, min(first + num_rows, N))
        logits_RV = logits_RV[: rows.stop - first]
        torch.mm(features_ND[rows], weight_VD.T, out=logits_RV)
        log_sums_R = _row_by_row(logits_RV, bias_V, targets_N[rows], losses_N[rows])
        if not any(wanted):
            continue
        _tile_by_tile(logits_RV, bias_V, targets_N[rows], log_sums_R, d_bias_V)
        if d_features_ND is not None:
            multiply(logits_RV, weight_VD, out=d_features_ND[rows])
        if d_weight_VD is not None:
            _add_product(d_weight_VD, logits_RV, features_ND[rows], first == 0, max_bytes)
    return losses_N.sum(dtype=torch.float64).to(wide_dtype), d_features_ND, d_weight_VD, d_bias_V


def _rows_at_once(N: int, V: int, D: int, dtype: torch.dtype, max_bytes: int) -> int:
    """As many rows as half of `max_bytes` holds with the sums of their tiles; the other half is `_add_product`'s."""
    bytes_per_row = V * (dtype.itemsize + accumulate_dtype(dtype).itemsize / TILE_ROWS)
    num_chunks = -(-N // max(1, int(max_bytes / 2 / bytes_per_row)))
    return -(-N // num_chunks)


def _row_by_row(logits_RV: Tensor, bias_V: Tensor | None, targets_R: Tensor, losses_R: Tensor) -> Tensor:
    """Fills in the losses; returns log Z."""
    R, V = logits_RV.shape
    log_sums_R = torch.empty_like(losses_R)
    block = min(ROW_BLOCK, triton.next_power_of_2(V))
    _log_sums[R,](
        logits_RV, bias_V, targets_R, losses_R, log_sums_R, V, TYPES[losses_R.dtype], block, **OPTIONS | {"num_warps": 8}
    )
    return log_sums_R


@triton.jit
def _log_sums(logits, bias, targets, losses, log_sums, V, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    largest, total = tl.full([1], float("-inf"), ACCUMULATE), tl.zeros([1], ACCUMULATE)
    for first in range(0, V, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = tl.load(logits + column, mask=column < V, other=float("-inf")).to(ACCUMULATE)
        if bias is not None:
            z += load(bias + column, column < V, ACCUMULATE)
        new_largest = tl.maximum(largest, tl.max(z, axis=0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(z - new_largest), axis=0)
        largest = new_largest
    log_sum = largest + tl.log(total)
    target = tl.load(targets + row + tl.arange(0, 1))
    exists = (target >= 0) & (target < V)  # another target makes the loss NaN, which the loop over steps reports
    z = tl.load(logits + target, mask=exists, other=float("nan")).to(ACCUMULATE)
    if bias is not None:
        z += load(bias + target, exists, ACCUMULATE)
    tl.store(losses + row + tl.arange(0, 1), log_sum - z)
    tl.store(log_sums + row + tl.arange(0, 1), log_sum)


def _tile_by_tile(
    logits_RV: Tensor, bias_V: Tensor | None, targets_R: Tensor, log_sums_R: Tensor, d_bias_V: Tensor | None
) -> None:
    """Turns the logits into their gradients; adds the sums over rows to d_bias."""
    R, V = logits_RV.shape
    grid = triton.cdiv(R, TILE_ROWS), triton.cdiv(V, TILE_COLUMNS)
    sums_PV = None if d_bias_V is None else d_bias_V.new_empty(grid[0], V)
    _gradients[grid](
        logits_RV, bias_V, targets_R, log_sums_R, sums_PV, R, V, TYPES[log_sums_R.dtype], TILE_ROWS, TILE_COLUMNS,
        **OPTIONS | {"num_warps": 8},
    )  # fmt: skip
    if sums_PV is not None and d_bias_V is not None:
        d_bias_V += sums_PV.sum(0)


@triton.jit(do_not_specialize=["R"])
def _gradients(
    logits, bias, targets, log_sums, sums, R, V, ACCUMULATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside, at = (row < R) & (column < V), row * V + column
    z = load(logits + at, inside, ACCUMULATE)
    if bias is not None:
        z += load(bias + column, column < V, ACCUMULATE)
    p = tl.exp(z - load(log_sums + row, row < R, ACCUMULATE))
    target = tl.load(targets + row, mask=row < R, other=-1)
    d_z = tl.where(inside, p - tl.where(column == target, 1.0, 0.0), 0.0)
    tl.store(logits + at, d_z, mask=inside)
    if sums is not None:
        block_sums = tl.sum(d_z, axis=0)[None, :]
        tl.store(sums + tl.program_id(0).to(tl.int64) * V + column, block_sums, mask=column < V)


def _add_product(sum_VD: Tensor, d_logits_RV: Tensor, features_RD: Tensor, is_first: bool, max_bytes: int) -> None:
    """sum (+)= d_logits^T features, summed in sum's type; by slices of V where the product must be made before it is added."""
    V, D = sum_VD.shape
    if is_first:
        multiply(d_logits_RV.T, features_RD, out=sum_VD)
    elif sum_VD.dtype == features_RD.dtype:
        sum_VD.addmm_(d_logits_RV.T, features_RD)
    else:
        size = max(1, min(V, max_bytes // 2 // (D * sum_VD.element_size())))
        product_SD = sum_VD.new_empty(size, D)
        for first in range(0, V, size):
            words = slice(first, min(first + size, V))
            part_SD = product_SD[: words.stop - first]
            multiply(d_logits_RV[:, words].T, features_RD, out=part_SD)
            sum_VD[words] += part_SD
