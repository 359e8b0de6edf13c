"""Variant (b): one launch runs all steps, with the recurrent weight held in shared memory (Diamos et al. 2016).

A program owns 16 hidden units of some streams and loads its part of the weight once. Then every step is

    what all programs made in the step before, times the part held · the cell, point by point · a barrier of the grid

The eight warps of a program divide the product by its length K, a slice each, and add up at the end: so every number of the
weight lies in shared memory once, however short the product's other sides are. A chunk is what all slices take at a time.

What programs owe each other after a step, h_t forward and the gradients of the gates backward, goes through a buffer of two
slots. While slot t + 1 is written nobody still reads it, because the barrier of step t lies between. Its rows are padded to
whole chunks and zero there, so loads need no mask along K and are 16 bytes wide whatever H is. They bypass the L1 cache
(`.cg`), which other programs' stores do not reach. Streams are independent: each block of rows has a barrier of its own.

    legend   T steps · B streams · H hidden · K length of the product (forward H, backward gates x H) · N columns held
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmtrain.ops.recurrence import accumulate_dtype
from lmtrain.ops.triton.launch import INTERPRETED, OPTIONS, TYPES, chosen_variant

UNITS = 16  # hidden units of a program
SLICES = 8  # warps of a program, among which K is divided
SLICE_BYTES = 64  # of a row, in one chunk of one slice
MAX_ROWS = 32  # streams of a program
ROWS_IN_FLIGHT = 128  # rows of chunks that are loaded at once, to hide the latency of the L2 cache: 64 registers a thread


@dataclass(frozen=True)
class Plan:
    """How one recurrence is spread over the chip; `tile_rows` are `rows` padded to a power of two."""

    units: int
    num_unit_blocks: int
    rows: int
    num_row_blocks: int
    tile_rows: int
    slice_length: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.num_unit_blocks, self.num_row_blocks

    @property
    def chunk(self) -> int:
        return SLICES * self.slice_length

    def options(self, dtype: torch.dtype, length: int) -> dict[str, Any]:
        """What a kernel with a product over `length` numbers is compiled and launched with.

        The interpreter multiplies in the accumulating type: it knows neither bfloat16 products nor TF32.
        """
        accumulate = accumulate_dtype(dtype)
        return OPTIONS | {
            "num_warps": SLICES, "num_stages": 1, "launch_cooperative_grid": True,
            "UNITS": self.units, "ROWS": self.tile_rows, "SLICES": SLICES, "SLICE": self.slice_length,
            "CHUNKS": -(-length // self.chunk), "IN_FLIGHT": max(1, ROWS_IN_FLIGHT // self.tile_rows),
            "ACCUMULATE": TYPES[accumulate], "FACTOR": TYPES[accumulate if INTERPRETED else dtype],
            "PRECISION": "ieee" if INTERPRETED else "tf32",
        }  # fmt: skip

    def shared_bytes(self, dtype: torch.dtype, num_gates: int, hidden_size: int) -> int:
        """Shared memory of a program, forward or backward, whichever takes more: the part held and what is in flight.

        In flight are chunks of the other factor, later the sums of the slices. Three gates are held as four.
        """
        num_columns = self.units * (4 if num_gates == 3 else num_gates)
        forward = -(-hidden_size // self.chunk) * num_columns
        backward = -(-num_gates * hidden_size // self.chunk) * self.units
        chunks = ROWS_IN_FLIGHT * self.chunk * dtype.itemsize
        sums = SLICES * self.tile_rows * num_columns * 4
        return max(forward, backward) * self.chunk * dtype.itemsize + max(chunks, sums) + 1024


def choose_plan(like: Tensor, num_gates: int, H: int) -> Plan | None:
    """The plan for a recurrence over `like` [T, B, ...], or None where it runs step by step."""
    if chosen_variant() == "steps":
        return None
    plan = make_plan(like.device, like.dtype, num_gates, like.shape[1], H)
    assert plan is not None or chosen_variant() != "persistent", "this recurrence does not fit the chip"
    return plan


def make_plan(device: torch.device, dtype: torch.dtype, num_gates: int, B: int, H: int) -> Plan | None:
    """The plan for a recurrence whose weight is [num_gates H, H], or None where it does not fit: variant (a) serves then.

    An H200 has 132 multiprocessors, each with 227 KB of shared memory for one program and 65536 registers, 255 for each of
    its 256 threads. With 16 units a program holds 16 rows of R for every gate forward, and 16 columns backward:

        LSTM, GRU   16 x 4 x H x 2 bytes in bfloat16 = 128 H     H = 650: 96 KB (padded to 768)    1024: 128 KB    1280: 160 KB
        Elman       32 H                                         in float32 twice as much

    and 64 KB for what is in flight, so H may go up to 1280 (float32: 640). Registers: 64 for loads in flight and 64 for the
    sums of 32 rows x 64 columns; so a program takes at most 32 streams. With fewer blocks of units than multiprocessors, as
    many blocks of streams as fit share the work (H = 512: 32 x 4 programs, so B up to 128; H = 1024: 64 x 2, B up to 64).

    Beyond that the product of one step fills the chip by itself. Only bfloat16, and float32 where TF32 is allowed: exact
    float32 products do not run on tensor cores.
    """
    if INTERPRETED:
        return Plan(triton.next_power_of_2(H), 1, B, 1, triton.next_power_of_2(B), 2)
    num_multiprocessors, shared_bytes = _describe(device)
    num_unit_blocks = -(-H // UNITS)
    if not _has_tensor_cores_for(dtype) or num_unit_blocks > num_multiprocessors:
        return None
    rows = -(-B // min(B, num_multiprocessors // num_unit_blocks))
    plan = Plan(UNITS, num_unit_blocks, rows, -(-B // rows), 16 if rows <= 16 else MAX_ROWS, SLICE_BYTES // dtype.itemsize)
    return plan if rows <= MAX_ROWS and plan.shared_bytes(dtype, num_gates, H) <= shared_bytes else None


def make_exchange(plan: Plan, like: Tensor, B: int, length: int) -> tuple[Tensor, Tensor]:
    """The buffer of two slots [2, B, K padded], zero, and the counters of the barriers, zero."""
    exchange_2BK = like.new_zeros(2, B, -(-length // plan.chunk) * plan.chunk)
    return exchange_2BK, torch.zeros(plan.num_row_blocks, dtype=torch.int32, device=like.device)


@triton.jit
def own_rows(num_rows, B, ROWS: tl.constexpr):
    """The streams of this program [ROWS, 1], and which of these rows it really has."""
    local_row = tl.arange(0, ROWS)[:, None]
    row = tl.program_id(1) * num_rows + local_row
    return row.to(tl.int64), (local_row < num_rows) & (row < B)


@triton.jit
def hold(
    weight, stride, columns, is_column, K, SLICES: tl.constexpr, SLICE: tl.constexpr, CHUNKS: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    """Columns [K, N] of a factor as a tuple of tiles [SLICES, SLICE, N]: loaded before the loop, they stay on the chip."""
    in_chunk = tl.arange(0, SLICES)[:, None, None] * SLICE + tl.arange(0, SLICE)[None, :, None]
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        k = chunk * SLICES * SLICE + in_chunk
        pointers = weight + k * stride + columns[None, None, :]
        tile = tl.load(pointers, mask=(k < K) & is_column[None, None, :], other=0.0)
        tiles = tiles + (tile.to(FACTOR),)  # type: ignore[assignment]  # noqa: RUF005 (Triton does not unpack)
    return tiles


@triton.jit
def multiply_held(
    slot, row, is_row, tiles, N: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr,
    CHUNKS: tl.constexpr, IN_FLIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[ROWS, N]: the rows of a slot of the exchange times the factor held."""
    sums = tl.zeros([SLICES, ROWS, N], ACCUMULATE)
    in_chunk = tl.arange(0, SLICES)[:, None, None] * SLICE + tl.arange(0, SLICE)[None, None, :]
    pointers = slot + row[None, :, :] * (SLICES * SLICE * CHUNKS) + in_chunk
    for first in tl.static_range(0, CHUNKS, IN_FLIGHT):
        loaded = ()
        for number in tl.static_range(IN_FLIGHT):
            if first + number < CHUNKS:
                chunk = pointers + (first + number) * SLICES * SLICE
                tile = tl.load(chunk, mask=is_row[None, :, :], other=0.0, cache_modifier=".cg")
                loaded = loaded + (tile.to(FACTOR),)  # type: ignore[assignment]  # noqa: RUF005
        for number in tl.static_range(IN_FLIGHT):
            if first + number < CHUNKS:
                sums = tl.dot(loaded[number], tiles[first + number], sums, input_precision=PRECISION, out_dtype=ACCUMULATE)
    return tl.sum(sums, axis=0)


@cache
def _describe(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and the shared memory of one program in bytes; none where a grid has no barrier (not NVIDIA)."""
    properties = torch.cuda.get_device_properties(device)
    is_nvidia = torch.version.cuda is not None and properties.major >= 8
    return properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin") if is_nvidia else 0


def _has_tensor_cores_for(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 or (dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32")
