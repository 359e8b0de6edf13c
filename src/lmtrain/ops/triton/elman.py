"""Elman recurrence on a GPU: the equations of `lmtrain.ops.elman`, within a step (a) or within one launch (b).

The pointwise functions work on tiles of any shape: BLOCK units of one stream in (a), [ROWS, UNITS] in (b). `at` are the
offsets of a tile's elements in a [B, H], `row_at_t` is t B + row; `survives` is keep for the tile's streams.

    legend   T steps · B streams · H hidden
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmtrain.ops.recurrence import accumulate_dtype
from lmtrain.ops.triton.device import grid_barrier, load, sigmoid, survival, tanh
from lmtrain.ops.triton.launch import BLOCK, OPTIONS, TYPES, contiguous, gradient_before, multiply, pointwise_grid
from lmtrain.ops.triton.persistent import Plan, choose_plan, hold, make_exchange, multiply_held, own_rows


def forward_elman(
    projected_TBH: Tensor,
    h0_BH: Tensor,
    weight_HH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm_gain_H: None,
    nonlinearity: str,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """All states, and the candidates before zoneout if there is any and they are to be saved."""
    assert norm_gain_H is None
    states_TBH = torch.empty_like(projected_TBH, memory_format=torch.contiguous_format)
    candidates_TBH = torch.empty_like(states_TBH) if save and zoneout_TBH is not None else None
    plan = choose_plan(projected_TBH, num_gates=1, H=h0_BH.shape[1])
    inputs = contiguous(h0_BH, weight_HH, projected_TBH, keep_TB, zoneout_TBH)
    arguments = *inputs, states_TBH, candidates_TBH, nonlinearity
    if plan is None:
        _forward_steps(*arguments)
    else:
        _forward_persistent(plan, *arguments)
    return states_TBH, candidates_TBH


def backward_elman(
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    candidates_TBH: Tensor | None,
    h0_BH: Tensor,
    weight_HH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm: None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the projections and of the initial state."""
    assert norm is None
    d_projected_TBH = torch.empty_like(states_TBH, memory_format=torch.contiguous_format)
    plan = choose_plan(states_TBH, num_gates=1, H=h0_BH.shape[1])
    candidates_TBH = states_TBH if candidates_TBH is None else candidates_TBH
    inputs = contiguous(weight_HH, d_states_TBH, candidates_TBH, keep_TB, zoneout_TBH)
    arguments = *inputs, d_projected_TBH, nonlinearity
    d_h0_BH = _backward_steps(*arguments) if plan is None else _backward_persistent(plan, *arguments)
    return d_projected_TBH, d_h0_BH


# ---- the cell, point by point


@triton.jit
def _forward_tile(
    a, h, survives, zoneout, states, candidates, row_at_t, unit, H, inside, ACCUMULATE: tl.constexpr,
    NONLINEARITY: tl.constexpr,
):  # fmt: skip
    """Stores the state of a step, and the candidate; returns the new h. h is read only with zoneout."""
    step = row_at_t * H + unit
    if NONLINEARITY == "tanh":
        new_h = tanh(a)
    elif NONLINEARITY == "sigmoid":
        new_h = sigmoid(a)
    elif NONLINEARITY == "identity":
        new_h = a
    else:
        new_h = tl.where(a <= 0, 0.0, a)  # NaN stays NaN
    if candidates is not None:
        tl.store(candidates + step, new_h, mask=inside)
    if zoneout is not None:
        zone = load(zoneout + step, inside, ACCUMULATE)
        new_h = zone * survives * h + (1 - zone) * new_h
    tl.store(states + step, new_h, mask=inside)
    return new_h


@triton.jit
def _backward_tile(
    d_h, candidates, zoneout, d_projected, row_at_t, unit, H, inside, ACCUMULATE: tl.constexpr, NONLINEARITY: tl.constexpr
):  # fmt: skip
    """Stores d_projected of a step; returns it, and what zoneout passes to the previous h."""
    step = row_at_t * H + unit
    h, direct = load(candidates + step, inside, ACCUMULATE), 0.0
    if zoneout is not None:
        zone = load(zoneout + step, inside, ACCUMULATE)
        direct, d_h = zone * d_h, (1 - zone) * d_h
    if NONLINEARITY == "tanh":
        d_a = d_h * (1 - h * h)
    elif NONLINEARITY == "sigmoid":
        d_a = d_h * h * (1 - h)
    elif NONLINEARITY == "identity":
        d_a = d_h
    else:
        d_a = tl.where(h > 0, d_h, 0.0)
    tl.store(d_projected + step, d_a, mask=inside)
    return d_a, direct


# ---- (a) a product and a pointwise kernel per step


def _forward_steps(
    h_BH: Tensor,
    weight_HH: Tensor,
    projected_TBH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    states_TBH: Tensor,
    candidates_TBH: Tensor | None,
    nonlinearity: str,
) -> None:
    T, B, H = states_TBH.shape
    product_BH = h_BH.new_empty(B, H, dtype=accumulate_dtype(h_BH.dtype))
    for t in range(T):
        multiply(h_BH, weight_HH.T, out=product_BH)
        _forward_step[pointwise_grid(B, H)](
            product_BH, h_BH, projected_TBH, keep_TB, zoneout_TBH, states_TBH, candidates_TBH, t, B, H,
            TYPES[product_BH.dtype], nonlinearity, BLOCK, **OPTIONS,
        )  # fmt: skip
        h_BH = states_TBH[t]


@triton.jit(do_not_specialize=["t", "B"])
def _forward_step(
    product, previous_h, projected, keep, zoneout, states, candidates, t, B, H, ACCUMULATE: tl.constexpr,
    NONLINEARITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, row_at_t = unit < H, row * H + unit, t.to(tl.int64) * B + row
    survives = survival(keep, row_at_t, True)
    a = load(projected + row_at_t * H + unit, inside, ACCUMULATE) + survives * load(product + at, inside, ACCUMULATE)
    h = load(previous_h + at, inside, ACCUMULATE) if zoneout is not None else 0.0
    _forward_tile(a, h, survives, zoneout, states, candidates, row_at_t, unit, H, inside, ACCUMULATE, NONLINEARITY)


def _backward_steps(
    weight_HH: Tensor,
    d_states_TBH: Tensor,
    candidates_TBH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    d_projected_TBH: Tensor,
    nonlinearity: str,
) -> Tensor:
    T, B, H = candidates_TBH.shape
    product_BH = d_states_TBH.new_zeros(B, H, dtype=accumulate_dtype(d_states_TBH.dtype))  # reaches h by the weight
    direct_BH = None if zoneout_TBH is None else torch.zeros_like(product_BH)  # and by zoneout
    for t in reversed(range(T)):
        _backward_step[pointwise_grid(B, H)](
            product_BH, direct_BH, d_states_TBH, candidates_TBH, keep_TB, zoneout_TBH, d_projected_TBH, t, T, B, H,
            TYPES[product_BH.dtype], nonlinearity, BLOCK, **OPTIONS,
        )  # fmt: skip
        multiply(d_projected_TBH[t], weight_HH, out=product_BH)
    return gradient_before(product_BH, direct_BH, keep_TB, d_projected_TBH.dtype)


@triton.jit(do_not_specialize=["t", "T", "B"])
def _backward_step(
    product, direct, d_states, candidates, keep, zoneout, d_projected, t, T, B, H, ACCUMULATE: tl.constexpr,
    NONLINEARITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, row_at_t = unit < H, row * H + unit, t.to(tl.int64) * B + row
    d_h = load(product + at, inside, ACCUMULATE)
    if direct is not None:
        d_h += load(direct + at, inside, ACCUMULATE)
    d_h = survival(keep, row_at_t + B, t + 1 < T) * d_h + load(d_states + row_at_t * H + unit, inside, ACCUMULATE)
    _, direct_h = _backward_tile(d_h, candidates, zoneout, d_projected, row_at_t, unit, H, inside, ACCUMULATE, NONLINEARITY)
    if direct is not None:
        tl.store(direct + at, direct_h, mask=inside)


# ---- (b) one launch for all steps


def _forward_persistent(
    plan: Plan,
    h0_BH: Tensor,
    weight_HH: Tensor,
    projected_TBH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    states_TBH: Tensor,
    candidates_TBH: Tensor | None,
    nonlinearity: str,
) -> None:
    T, B, H = states_TBH.shape
    exchange_2BK, counters = make_exchange(plan, h0_BH, B, H)
    exchange_2BK[0, :, :H] = h0_BH
    _forward_all[plan.grid](
        exchange_2BK, counters, weight_HH, h0_BH, projected_TBH, keep_TB, zoneout_TBH, states_TBH, candidates_TBH,
        plan.rows, T, B, H, nonlinearity, **plan.options(h0_BH.dtype, H),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "T", "B"])
def _forward_all(
    exchange, counters, weight, h0, projected, keep, zoneout, states, candidates, num_rows, T, B, H,
    NONLINEARITY: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr,
    CHUNKS: tl.constexpr, IN_FLIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    tiles = hold(weight, 1, column * H, column < H, H, SLICES, SLICE, CHUNKS, FACTOR)
    unit = column[None, :]
    row, is_row = own_rows(num_rows, B, ROWS)
    inside, B = is_row & (unit < H), B.to(tl.int64)
    h = load(h0 + row * H + unit, inside, ACCUMULATE)
    PADDED: tl.constexpr = SLICES * SLICE * CHUNKS
    for t in range(T):
        row_at_t = t * B + row
        survives, p = survival(keep, row_at_t, is_row), load(projected + row_at_t * H + unit, inside, ACCUMULATE)
        slot = exchange + (t % 2) * B * PADDED
        product = multiply_held(
            slot, row, is_row, tiles, UNITS, ROWS, SLICES, SLICE, CHUNKS, IN_FLIGHT, ACCUMULATE, FACTOR, PRECISION
        )
        h = _forward_tile(
            p + survives * product, h, survives, zoneout, states, candidates, row_at_t, unit, H, inside, ACCUMULATE,
            NONLINEARITY,
        )  # fmt: skip
        h = h.to(states.dtype.element_ty).to(ACCUMULATE)
        tl.store(exchange + ((t + 1) % 2) * B * PADDED + row * PADDED + unit, h, mask=inside)
        grid_barrier(counters + tl.program_id(1), (t + 1) * tl.num_programs(0))


def _backward_persistent(
    plan: Plan,
    weight_HH: Tensor,
    d_states_TBH: Tensor,
    candidates_TBH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    d_projected_TBH: Tensor,
    nonlinearity: str,
) -> Tensor:
    T, B, H = candidates_TBH.shape
    exchange_2BK, counters = make_exchange(plan, weight_HH, B, H)
    d_h0_BH = weight_HH.new_empty(B, H)
    _backward_all[plan.grid](
        exchange_2BK, counters, weight_HH, d_states_TBH, candidates_TBH, keep_TB, zoneout_TBH, d_projected_TBH, d_h0_BH,
        plan.rows, T, B, H, nonlinearity, **plan.options(weight_HH.dtype, H),
    )  # fmt: skip
    return d_h0_BH


@triton.jit(do_not_specialize=["num_rows", "T", "B"])
def _backward_all(
    exchange, counters, weight, d_states, candidates, keep, zoneout, d_projected, d_h0, num_rows, T, B, H,
    NONLINEARITY: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr,
    CHUNKS: tl.constexpr, IN_FLIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    tiles = hold(weight, H, column, column < H, H, SLICES, SLICE, CHUNKS, FACTOR)
    unit = column[None, :]
    row, is_row = own_rows(num_rows, B, ROWS)
    inside, B = is_row & (unit < H), B.to(tl.int64)
    d_h = tl.zeros([ROWS, UNITS], ACCUMULATE)
    PADDED: tl.constexpr = SLICES * SLICE * CHUNKS
    for number in range(T):
        t = T - 1 - number
        row_at_t = t * B + row
        survives = survival(keep, row_at_t, is_row)
        d_h += load(d_states + row_at_t * H + unit, inside, ACCUMULATE)
        d_a, direct = _backward_tile(d_h, candidates, zoneout, d_projected, row_at_t, unit, H, inside, ACCUMULATE, NONLINEARITY)
        slot = exchange + (t % 2) * B * PADDED
        tl.store(slot + row * PADDED + unit, d_a, mask=inside)
        grid_barrier(counters + tl.program_id(1), (number + 1) * tl.num_programs(0))
        product = multiply_held(
            slot, row, is_row, tiles, UNITS, ROWS, SLICES, SLICE, CHUNKS, IN_FLIGHT, ACCUMULATE, FACTOR, PRECISION
        )
        d_h = survives * (product + direct)
    tl.store(d_h0 + row * H + unit, d_h, mask=inside)
