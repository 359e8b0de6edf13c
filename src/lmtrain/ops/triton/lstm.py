"""LSTM on a GPU: the equations of `lmtrain.ops.lstm`, point by point, within a step (a) or within one launch (b).

The pointwise functions work on tiles of any shape: BLOCK units of one stream in (a), [ROWS, UNITS] in (b). `at` are the
offsets of a tile's elements in a [B, H], `row_at_t` is t B + row; `survives` is keep for the tile's streams.

    legend   T steps · B streams · H hidden · Z = 4H, gates i, f, g, o
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmtrain.ops.triton.device import grid_barrier, load, load_gates, sigmoid, split_gates, store_gates, survival, tanh
from lmtrain.ops.triton.launch import BLOCK, OPTIONS, TYPES, contiguous, gradient_before, multiply, pointwise_grid
from lmtrain.ops.triton.persistent import Plan, choose_plan, hold, make_exchange, multiply_held, own_rows


def forward_lstm(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    norm_gain_Z: None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """All states, the last cell, and if they are to be saved all cells and the activated gates i, f, g, o."""
    assert norm_gain_Z is None
    (T, B, Z), H = projected_TBZ.shape, h0_BH.shape[1]
    c_BH = c0_BH.clone(memory_format=torch.contiguous_format)  # the running cell
    states_TBH = projected_TBZ.new_empty(T, B, H)
    cells_TBH = c0_BH.new_empty(T, B, H) if save else None
    gates_TBZ = projected_TBZ.new_empty(T, B, Z) if save else None
    plan = choose_plan(projected_TBZ, num_gates=4, H=H)
    inputs = contiguous(h0_BH, weight_ZH, projected_TBZ, keep_TB, zoneout_TBH, cell_zoneout_TBH)
    arguments = *inputs, c_BH, states_TBH, cells_TBH, gates_TBZ
    if plan is None:
        _forward_steps(*arguments)
    else:
        _forward_persistent(plan, *arguments)
    return states_TBH, c_BH, cells_TBH, gates_TBZ


def backward_lstm(
    d_states_TBH: Tensor,
    d_c_BH: Tensor,
    states_TBH: Tensor,
    cells_TBH: Tensor,
    gates_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    norm: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projections, of the initial state and of the initial cell."""
    assert norm is None
    d_c_BH = d_c_BH.clone(memory_format=torch.contiguous_format)  # the running gradient
    d_projected_TBZ = torch.empty_like(gates_TBZ, memory_format=torch.contiguous_format)
    plan = choose_plan(gates_TBZ, num_gates=4, H=h0_BH.shape[1])
    inputs = contiguous(weight_ZH, d_states_TBH, cells_TBH, c0_BH, gates_TBZ, keep_TB, zoneout_TBH, cell_zoneout_TBH)
    arguments = *inputs, d_c_BH, d_projected_TBZ
    d_h0_BH = _backward_steps(*arguments) if plan is None else _backward_persistent(plan, *arguments)
    return d_projected_TBZ, d_h0_BH, d_c_BH


# ---- the cell, point by point


@triton.jit
def _forward_tile(
    a_i, a_f, a_g, a_o, h, c, survives, zoneout, cell_zoneout, states, cells, gates, row_at_t, unit, H, inside,
    ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Stores states, cells and gates of a step; returns the new h and c. h is read only with zoneout."""
    step, step_gates = row_at_t * H + unit, row_at_t * 4 * H + unit
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)
    previous_c = survives * c
    c = f * previous_c + i * g
    new_h = o * tanh(c)
    if cell_zoneout is not None:
        zone = load(cell_zoneout + step, inside, ACCUMULATE)
        c = zone * previous_c + (1 - zone) * c
    if zoneout is not None:
        zone = load(zoneout + step, inside, ACCUMULATE)
        new_h = zone * survives * h + (1 - zone) * new_h
    tl.store(states + step, new_h, mask=inside)
    if cells is not None:
        tl.store(cells + step, c, mask=inside)
        store_gates(gates + step_gates, H, inside, i, f, g, o)
    return new_h, c


@triton.jit
def _backward_tile(
    d_h, d_c, previous_c, survives, cells, gates, zoneout, cell_zoneout, d_projected, row_at_t, unit, H, inside,
    ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Stores d_projected of a step; returns it, what zoneout passes to the previous h, and the previous c's gradient."""
    step, step_gates = row_at_t * H + unit, row_at_t * 4 * H + unit
    i, f, g, o = load_gates(gates + step_gates, H, inside, ACCUMULATE)
    previous_c *= survives
    direct_h, direct_c, new_c = 0.0, 0.0, load(cells + step, inside, ACCUMULATE)
    if zoneout is not None:
        zone = load(zoneout + step, inside, ACCUMULATE)
        direct_h, d_h = zone * d_h, (1 - zone) * d_h
    if cell_zoneout is not None:
        zone = load(cell_zoneout + step, inside, ACCUMULATE)
        direct_c, d_c, new_c = zone * d_c, (1 - zone) * d_c, f * previous_c + i * g
    y = tanh(new_c)
    d_c += d_h * o * (1 - y * y)
    d_i, d_f = d_c * g * i * (1 - i), d_c * previous_c * f * (1 - f)
    d_g, d_o = d_c * i * (1 - g * g), d_h * y * o * (1 - o)
    store_gates(d_projected + step_gates, H, inside, d_i, d_f, d_g, d_o)
    return d_i, d_f, d_g, d_o, direct_h, survives * (d_c * f + direct_c)


# ---- (a) a product and a pointwise kernel per step


def _forward_steps(
    h_BH: Tensor,
    weight_ZH: Tensor,
    projected_TBZ: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    c_BH: Tensor,
    states_TBH: Tensor,
    cells_TBH: Tensor | None,
    gates_TBZ: Tensor | None,
) -> None:
    T, B, H = states_TBH.shape
    product_BZ = c_BH.new_empty(B, 4 * H)
    for t in range(T):
        multiply(h_BH, weight_ZH.T, out=product_BZ)
        _forward_step[pointwise_grid(B, H)](
            product_BZ, h_BH, projected_TBZ, keep_TB, zoneout_TBH, cell_zoneout_TBH, c_BH, states_TBH, cells_TBH,
            gates_TBZ, t, B, H, TYPES[c_BH.dtype], BLOCK, **OPTIONS,
        )  # fmt: skip
        h_BH = states_TBH[t]


@triton.jit(do_not_specialize=["t", "B"])
def _forward_step(
    product, previous_h, projected, keep, zoneout, cell_zoneout, running_c, states, cells, gates, t, B, H,
    ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, row_at_t = unit < H, row * H + unit, t.to(tl.int64) * B + row
    step_gates, survives = row_at_t * 4 * H + unit, survival(keep, row_at_t, True)
    p_i, p_f, p_g, p_o = load_gates(projected + step_gates, H, inside, ACCUMULATE)
    r_i, r_f, r_g, r_o = load_gates(product + row * 4 * H + unit, H, inside, ACCUMULATE)
    h = load(previous_h + at, inside, ACCUMULATE) if zoneout is not None else 0.0
    c = load(running_c + at, inside, ACCUMULATE)
    _, c = _forward_tile(
        p_i + survives * r_i, p_f + survives * r_f, p_g + survives * r_g, p_o + survives * r_o, h, c, survives,
        zoneout, cell_zoneout, states, cells, gates, row_at_t, unit, H, inside, ACCUMULATE,
    )  # fmt: skip
    tl.store(running_c + at, c, mask=inside)


def _backward_steps(
    weight_ZH: Tensor,
    d_states_TBH: Tensor,
    cells_TBH: Tensor,
    c0_BH: Tensor,
    gates_TBZ: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    d_c_BH: Tensor,
    d_projected_TBZ: Tensor,
) -> Tensor:
    T, B, H = cells_TBH.shape
    product_BH = torch.zeros_like(d_c_BH)  # what reaches the previous h through the weight
    direct_BH = None if zoneout_TBH is None else torch.zeros_like(d_c_BH)  # and what zoneout passes by it
    for t in reversed(range(T)):
        _backward_step[pointwise_grid(B, H)](
            product_BH, direct_BH, d_states_TBH, cells_TBH, cells_TBH[t - 1] if t else c0_BH, gates_TBZ, keep_TB,
            zoneout_TBH, cell_zoneout_TBH, d_c_BH, d_projected_TBZ, t, T, B, H, TYPES[d_c_BH.dtype], BLOCK, **OPTIONS,
        )  # fmt: skip
        multiply(d_projected_TBZ[t], weight_ZH, out=product_BH)
    return gradient_before(product_BH, direct_BH, keep_TB, d_projected_TBZ.dtype)


@triton.jit(do_not_specialize=["t", "T", "B"])
def _backward_step(
    product, direct, d_states, cells, previous_cells, gates, keep, zoneout, cell_zoneout, running_d_c, d_projected,
    t, T, B, H, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, row_at_t = unit < H, row * H + unit, t.to(tl.int64) * B + row
    step = row_at_t * H + unit
    d_h = load(product + at, inside, ACCUMULATE)
    if direct is not None:
        d_h += load(direct + at, inside, ACCUMULATE)
    d_h = survival(keep, row_at_t + B, t + 1 < T) * d_h + load(d_states + step, inside, ACCUMULATE)
    d_c = load(running_d_c + at, inside, ACCUMULATE)
    previous_c = load(previous_cells + at, inside, ACCUMULATE)
    _, _, _, _, direct_h, d_c = _backward_tile(
        d_h, d_c, previous_c, survival(keep, row_at_t, True), cells, gates, zoneout, cell_zoneout, d_projected,
        row_at_t, unit, H, inside, ACCUMULATE,
    )  # fmt: skip
    if direct is not None:
        tl.store(direct + at, direct_h, mask=inside)
    tl.store(running_d_c + at, d_c, mask=inside)


# ---- (b) one launch for all steps


def _forward_persistent(
    plan: Plan,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    projected_TBZ: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    c_BH: Tensor,
    states_TBH: Tensor,
    cells_TBH: Tensor | None,
    gates_TBZ: Tensor | None,
) -> None:
    T, B, H = states_TBH.shape
    exchange_2BK, counters = make_exchange(plan, h0_BH, B, H)
    exchange_2BK[0, :, :H] = h0_BH
    _forward_all[plan.grid](
        exchange_2BK, counters, weight_ZH, h0_BH, projected_TBZ, keep_TB, zoneout_TBH, cell_zoneout_TBH, c_BH, states_TBH,
        cells_TBH, gates_TBZ, plan.rows, T, B, H, **plan.options(h0_BH.dtype, H),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "T", "B"])
def _forward_all(
    exchange, counters, weight, h0, projected, keep, zoneout, cell_zoneout, running_c, states, cells, gates, num_rows,
    T, B, H, UNITS: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr, CHUNKS: tl.constexpr,
    IN_FLIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    unit, column = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[None, :], tl.arange(0, 4 * UNITS)
    held_unit = tl.program_id(0) * UNITS + column // 4  # the gates of a unit side by side
    tiles = hold(weight, 1, (column % 4 * H + held_unit) * H, held_unit < H, H, SLICES, SLICE, CHUNKS, FACTOR)
    row, is_row = own_rows(num_rows, B, ROWS)
    inside, at, B = is_row & (unit < H), row * H + unit, B.to(tl.int64)
    h, c = load(h0 + at, inside, ACCUMULATE), load(running_c + at, inside, ACCUMULATE)
    PADDED: tl.constexpr = SLICES * SLICE * CHUNKS
    for t in range(T):
        row_at_t = t * B + row
        step_gates, survives = row_at_t * 4 * H + unit, survival(keep, row_at_t, is_row)
        p_i, p_f, p_g, p_o = load_gates(projected + step_gates, H, inside, ACCUMULATE)
        slot = exchange + (t % 2) * B * PADDED
        product = multiply_held(
            slot, row, is_row, tiles, 4 * UNITS, ROWS, SLICES, SLICE, CHUNKS, IN_FLIGHT, ACCUMULATE, FACTOR, PRECISION
        )
        r_i, r_f, r_g, r_o = split_gates(product, ROWS, UNITS)
        h, c = _forward_tile(
            p_i + survives * r_i, p_f + survives * r_f, p_g + survives * r_g, p_o + survives * r_o, h, c, survives,
            zoneout, cell_zoneout, states, cells, gates, row_at_t, unit, H, inside, ACCUMULATE,
        )  # fmt: skip
        h = h.to(states.dtype.element_ty).to(ACCUMULATE)
        tl.store(exchange + ((t + 1) % 2) * B * PADDED + row * PADDED + unit, h, mask=inside)
        grid_barrier(counters + tl.program_id(1), (t + 1) * tl.num_programs(0))
    tl.store(running_c + at, c, mask=inside)


def _backward_persistent(
    plan: Plan,
    weight_ZH: Tensor,
    d_states_TBH: Tensor,
    cells_TBH: Tensor,
    c0_BH: Tensor,
    gates_TBZ: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    d_c_BH: Tensor,
    d_projected_TBZ: Tensor,
) -> Tensor:
    T, B, H = cells_TBH.shape
    exchange_2BK, counters = make_exchange(plan, gates_TBZ, B, 4 * H)
    d_h0_BH = gates_TBZ.new_empty(B, H)
    _backward_all[plan.grid](
        exchange_2BK, counters, weight_ZH, d_states_TBH, cells_TBH, c0_BH, gates_TBZ, keep_TB, zoneout_TBH,
        cell_zoneout_TBH, d_c_BH, d_projected_TBZ, d_h0_BH, plan.rows, T, B, H, **plan.options(gates_TBZ.dtype, 4 * H),
    )  # fmt: skip
    return d_h0_BH


@triton.jit(do_not_specialize=["num_rows", "T", "B"])
def _backward_all(
    exchange, counters, weight, d_states, cells, c0, gates, keep, zoneout, cell_zoneout, running_d_c, d_projected, d_h0,
    num_rows, T, B, H, UNITS: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr, CHUNKS: tl.constexpr,
    IN_FLIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    tiles = hold(weight, H, column, column < H, 4 * H, SLICES, SLICE, CHUNKS, FACTOR)
    unit = column[None, :]
    row, is_row = own_rows(num_rows, B, ROWS)
    inside, at, B = is_row & (unit < H), row * H + unit, B.to(tl.int64)
    d_h, d_c = tl.zeros([ROWS, UNITS], ACCUMULATE), load(running_d_c + at, inside, ACCUMULATE)
    PADDED: tl.constexpr = SLICES * SLICE * CHUNKS
    for number in range(T):
        t = T - 1 - number
        row_at_t = t * B + row
        step, survives = row_at_t * H + unit, survival(keep, row_at_t, is_row)
        d_h += load(d_states + step, inside, ACCUMULATE)
        is_first = row_at_t < B
        previous_c = load(cells + step - B * H, inside & ~is_first, ACCUMULATE) + load(c0 + at, inside & is_first, ACCUMULATE)
        d_i, d_f, d_g, d_o, direct_h, d_c = _backward_tile(
            d_h, d_c, previous_c, survives, cells, gates, zoneout, cell_zoneout, d_projected, row_at_t, unit, H,
            inside, ACCUMULATE,
        )  # fmt: skip
        slot = exchange + (t % 2) * B * PADDED
        store_gates(slot + row * PADDED + unit, H, inside, d_i, d_f, d_g, d_o)
        grid_barrier(counters + tl.program_id(1), (number + 1) * tl.num_programs(0))
        product = multiply_held(
            slot, row, is_row, tiles, UNITS, ROWS, SLICES, SLICE, CHUNKS, IN_FLIGHT, ACCUMULATE, FACTOR, PRECISION
        )
        d_h = survives * (product + direct_h)
    tl.store(d_h0 + at, d_h, mask=inside)
    tl.store(running_d_c + at, d_c, mask=inside)
