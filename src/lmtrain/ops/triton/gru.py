"""GRU on a GPU: the equations of `lmtrain.ops.gru`, point by point, within a step (a) or within one launch (b).

The pointwise functions work on tiles of any shape: BLOCK units of one stream in (a), [ROWS, UNITS] in (b). `at` are the
offsets of a tile's elements in a [B, H], `row_at_t` is t B + row; `survives` is keep for the tile's streams.

    legend   T steps · B streams · H hidden · Z = 3H, gates r, z, n · Y = 4H: r, z, n, q
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmtrain.ops.recurrence import accumulate_dtype
from lmtrain.ops.triton.device import grid_barrier, load, load_gates, sigmoid, split_gates, store_gates, survival, tanh
from lmtrain.ops.triton.launch import BLOCK, OPTIONS, TYPES, contiguous, gradient_before, multiply, pointwise_grid
from lmtrain.ops.triton.persistent import Plan, choose_plan, hold, make_exchange, multiply_held, own_rows


def forward_gru(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    candidate_bias_H: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm_gain_Z: None,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """All states, and the gates r, z, n with q = R_n h + b_hn if they are to be saved."""
    assert norm_gain_Z is None
    T, (B, H) = len(projected_TBZ), h0_BH.shape
    states_TBH = projected_TBZ.new_empty(T, B, H)
    gates_TBY = projected_TBZ.new_empty(T, B, 4 * H) if save else None
    plan = choose_plan(projected_TBZ, num_gates=3, H=H)
    inputs = contiguous(h0_BH, weight_ZH, projected_TBZ, candidate_bias_H, keep_TB, zoneout_TBH)
    arguments = *inputs, states_TBH, gates_TBY
    if plan is None:
        _forward_steps(*arguments)
    else:
        _forward_persistent(plan, *arguments)
    return states_TBH, gates_TBY


def backward_gru(
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    gates_TBY: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input projections, of the recurrent products and of the initial state."""
    assert norm is None
    T, B, H = states_TBH.shape
    d_projected_TBZ, d_term_TBZ = (states_TBH.new_empty(T, B, 3 * H) for _ in range(2))
    plan = choose_plan(gates_TBY, num_gates=3, H=H)
    inputs = contiguous(weight_ZH, d_states_TBH, states_TBH, h0_BH, gates_TBY, keep_TB, zoneout_TBH)
    arguments = *inputs, d_projected_TBZ, d_term_TBZ
    d_h0_BH = _backward_steps(*arguments) if plan is None else _backward_persistent(plan, *arguments)
    return d_projected_TBZ, d_term_TBZ, d_h0_BH


# ---- the cell, point by point


@triton.jit
def _forward_tile(
    p_r, p_z, p_n, r_r, r_z, r_n, bias, h, survives, zoneout, states, gates, row_at_t, unit, H, inside,
    ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """From projections p and products R h to the new h; stores it and the gates."""
    step = row_at_t * H + unit
    h *= survives
    r, z, q = sigmoid(p_r + survives * r_r), sigmoid(p_z + survives * r_z), survives * r_n + bias
    n = tanh(p_n + r * q)
    new_h = n + z * (h - n)
    if zoneout is not None:
        zone = load(zoneout + step, inside, ACCUMULATE)
        new_h = zone * h + (1 - zone) * new_h
    tl.store(states + step, new_h, mask=inside)
    if gates is not None:
        store_gates(gates + row_at_t * 4 * H + unit, H, inside, r, z, n, q)
    return new_h


@triton.jit
def _backward_tile(
    d_h, h, survives, gates, zoneout, d_projected, d_term, row_at_t, unit, H, inside, ACCUMULATE: tl.constexpr
):  # fmt: skip
    """Stores both gradients of a step; returns d_term of r, z and q, and what reaches the previous h directly."""
    r, z, n, q = load_gates(gates + row_at_t * 4 * H + unit, H, inside, ACCUMULATE)
    h *= survives
    direct = 0.0
    if zoneout is not None:
        zone = load(zoneout + row_at_t * H + unit, inside, ACCUMULATE)
        direct, d_h = zone * d_h, (1 - zone) * d_h
    d_n = d_h * (1 - z) * (1 - n * n)
    d_r, d_z, d_q = d_n * q * r * (1 - r), d_h * (h - n) * z * (1 - z), d_n * r
    _store_three(d_projected + row_at_t * 3 * H + unit, H, inside, d_r, d_z, d_n)
    _store_three(d_term + row_at_t * 3 * H + unit, H, inside, d_r, d_z, d_q)
    return d_r, d_z, d_q, direct + d_h * z


@triton.jit
def _store_three(pointers, H, inside, first, second, third):
    tl.store(pointers, first, mask=inside)
    tl.store(pointers + H, second, mask=inside)
    tl.store(pointers + 2 * H, third, mask=inside)


# ---- (a) a product and a pointwise kernel per step


def _forward_steps(
    h_BH: Tensor,
    weight_ZH: Tensor,
    projected_TBZ: Tensor,
    candidate_bias_H: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    states_TBH: Tensor,
    gates_TBY: Tensor | None,
) -> None:
    T, B, H = states_TBH.shape
    product_BZ = candidate_bias_H.new_empty(B, 3 * H)
    for t in range(T):
        multiply(h_BH, weight_ZH.T, out=product_BZ)
        _forward_step[pointwise_grid(B, H)](
            product_BZ, h_BH, projected_TBZ, candidate_bias_H, keep_TB, zoneout_TBH, states_TBH, gates_TBY, t, B, H,
            TYPES[product_BZ.dtype], BLOCK, **OPTIONS,
        )  # fmt: skip
        h_BH = states_TBH[t]


@triton.jit(do_not_specialize=["t", "B"])
def _forward_step(
    product, previous_h, projected, bias, keep, zoneout, states, gates, t, B, H, ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, row_at_t = unit < H, t.to(tl.int64) * B + row
    p, r = projected + row_at_t * 3 * H + unit, product + row * 3 * H + unit
    _forward_tile(
        load(p, inside, ACCUMULATE), load(p + H, inside, ACCUMULATE), load(p + 2 * H, inside, ACCUMULATE),
        load(r, inside, ACCUMULATE), load(r + H, inside, ACCUMULATE), load(r + 2 * H, inside, ACCUMULATE),
        load(bias + unit, inside, ACCUMULATE), load(previous_h + row * H + unit, inside, ACCUMULATE),
        survival(keep, row_at_t, True), zoneout, states, gates, row_at_t, unit, H, inside, ACCUMULATE,
    )  # fmt: skip


def _backward_steps(
    weight_ZH: Tensor,
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    h0_BH: Tensor,
    gates_TBY: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    d_projected_TBZ: Tensor,
    d_term_TBZ: Tensor,
) -> Tensor:
    T, B, H = states_TBH.shape
    product_BH = h0_BH.new_zeros(B, H, dtype=accumulate_dtype(h0_BH.dtype))  # what reaches the previous h by the weight
    direct_BH = torch.zeros_like(product_BH)  # and by z and zoneout
    for t in reversed(range(T)):
        _backward_step[pointwise_grid(B, H)](
            product_BH, direct_BH, d_states_TBH, states_TBH[t - 1] if t else h0_BH, gates_TBY, keep_TB, zoneout_TBH,
            d_projected_TBZ, d_term_TBZ, t, T, B, H, TYPES[product_BH.dtype], BLOCK, **OPTIONS,
        )  # fmt: skip
        multiply(d_term_TBZ[t], weight_ZH, out=product_BH)
    return gradient_before(product_BH, direct_BH, keep_TB, h0_BH.dtype)


@triton.jit(do_not_specialize=["t", "T", "B"])
def _backward_step(
    product, direct, d_states, previous_h, gates, keep, zoneout, d_projected, d_term, t, T, B, H,
    ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, row_at_t = unit < H, row * H + unit, t.to(tl.int64) * B + row
    d_h = load(product + at, inside, ACCUMULATE) + load(direct + at, inside, ACCUMULATE)
    d_h = survival(keep, row_at_t + B, t + 1 < T) * d_h + load(d_states + row_at_t * H + unit, inside, ACCUMULATE)
    _, _, _, direct_h = _backward_tile(
        d_h, load(previous_h + at, inside, ACCUMULATE), survival(keep, row_at_t, True), gates, zoneout, d_projected, d_term,
        row_at_t, unit, H, inside, ACCUMULATE,
    )  # fmt: skip
    tl.store(direct + at, direct_h, mask=inside)


# ---- (b) one launch for all steps


def _forward_persistent(
    plan: Plan,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    projected_TBZ: Tensor,
    candidate_bias_H: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    states_TBH: Tensor,
    gates_TBY: Tensor | None,
) -> None:
    T, B, H = states_TBH.shape
    exchange_2BK, counters = make_exchange(plan, h0_BH, B, H)
    exchange_2BK[0, :, :H] = h0_BH
    _forward_all[plan.grid](
        exchange_2BK, counters, weight_ZH, h0_BH, projected_TBZ, candidate_bias_H, keep_TB, zoneout_TBH, states_TBH,
        gates_TBY, plan.rows, T, B, H, **plan.options(h0_BH.dtype, H),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "T", "B"])
def _forward_all(
    exchange, counters, weight, h0, projected, candidate_bias, keep, zoneout, states, gates, num_rows, T, B, H,
    UNITS: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr, CHUNKS: tl.constexpr,
    IN_FLIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    unit, column = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[None, :], tl.arange(0, 4 * UNITS)
    held_unit, gate = tl.program_id(0) * UNITS + column // 4, column % 4  # the gates of a unit side by side, the last empty
    is_column = (held_unit < H) & (gate < 3)
    tiles = hold(weight, 1, (gate * H + held_unit) * H, is_column, H, SLICES, SLICE, CHUNKS, FACTOR)
    row, is_row = own_rows(num_rows, B, ROWS)
    inside, B = is_row & (unit < H), B.to(tl.int64)
    h, bias = load(h0 + row * H + unit, inside, ACCUMULATE), load(candidate_bias + unit, unit < H, ACCUMULATE)
    PADDED: tl.constexpr = SLICES * SLICE * CHUNKS
    for t in range(T):
        row_at_t = t * B + row
        survives, p = survival(keep, row_at_t, is_row), projected + row_at_t * 3 * H + unit
        p_r, p_z = load(p, inside, ACCUMULATE), load(p + H, inside, ACCUMULATE)
        p_n = load(p + 2 * H, inside, ACCUMULATE)
        slot = exchange + (t % 2) * B * PADDED
        product = multiply_held(
            slot, row, is_row, tiles, 4 * UNITS, ROWS, SLICES, SLICE, CHUNKS, IN_FLIGHT, ACCUMULATE, FACTOR, PRECISION
        )
        r_r, r_z, r_n, _ = split_gates(product, ROWS, UNITS)
        h = _forward_tile(
            p_r, p_z, p_n, r_r, r_z, r_n, bias, h, survives, zoneout, states, gates, row_at_t, unit, H, inside, ACCUMULATE
        )
        h = h.to(states.dtype.element_ty).to(ACCUMULATE)
        tl.store(exchange + ((t + 1) % 2) * B * PADDED + row * PADDED + unit, h, mask=inside)
        grid_barrier(counters + tl.program_id(1), (t + 1) * tl.num_programs(0))


def _backward_persistent(
    plan: Plan,
    weight_ZH: Tensor,
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    h0_BH: Tensor,
    gates_TBY: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    d_projected_TBZ: Tensor,
    d_term_TBZ: Tensor,
) -> Tensor:
    T, B, H = states_TBH.shape
    exchange_2BK, counters = make_exchange(plan, h0_BH, B, 3 * H)
    d_h0_BH = h0_BH.new_empty(B, H)
    _backward_all[plan.grid](
        exchange_2BK, counters, weight_ZH, d_states_TBH, states_TBH, h0_BH, gates_TBY, keep_TB, zoneout_TBH,
        d_projected_TBZ, d_term_TBZ, d_h0_BH, plan.rows, T, B, H, **plan.options(h0_BH.dtype, 3 * H),
    )  # fmt: skip
    return d_h0_BH


@triton.jit(do_not_specialize=["num_rows", "T", "B"])
def _backward_all(
    exchange, counters, weight, d_states, states, h0, gates, keep, zoneout, d_projected, d_term, d_h0, num_rows, T, B, H,
    UNITS: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr, CHUNKS: tl.constexpr,
    IN_FLIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    tiles = hold(weight, H, column, column < H, 3 * H, SLICES, SLICE, CHUNKS, FACTOR)
    unit = column[None, :]
    row, is_row = own_rows(num_rows, B, ROWS)
    inside, at, B = is_row & (unit < H), row * H + unit, B.to(tl.int64)
    d_h = tl.zeros([ROWS, UNITS], ACCUMULATE)
    PADDED: tl.constexpr = SLICES * SLICE * CHUNKS
    for number in range(T):
        t = T - 1 - number
        row_at_t = t * B + row
        step, survives, is_first = row_at_t * H + unit, survival(keep, row_at_t, is_row), row_at_t < B
        d_h += load(d_states + step, inside, ACCUMULATE)
        h = load(states + step - B * H, inside & ~is_first, ACCUMULATE) + load(h0 + at, inside & is_first, ACCUMULATE)
        d_r, d_z, d_q, direct = _backward_tile(
            d_h, h, survives, gates, zoneout, d_projected, d_term, row_at_t, unit, H, inside, ACCUMULATE
        )
        slot = exchange + (t % 2) * B * PADDED
        _store_three(slot + row * PADDED + unit, H, inside, d_r, d_z, d_q)
        grid_barrier(counters + tl.program_id(1), (number + 1) * tl.num_programs(0))
        product = multiply_held(
            slot, row, is_row, tiles, UNITS, ROWS, SLICES, SLICE, CHUNKS, IN_FLIGHT, ACCUMULATE, FACTOR, PRECISION
        )
        d_h = survives * (product + direct)
    tl.store(d_h0 + at, d_h, mask=inside)
