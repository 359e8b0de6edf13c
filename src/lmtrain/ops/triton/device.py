"""What the kernels share on the device: two non-linearities, tiles of gates, and a barrier across the grid.

Everything is computed in the accumulating type of `lmtrain.ops.backends`; loads and stores convert.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), for negative x as e^x / (1 + e^x): the exponential never overflows."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def tanh(x):
    """sign(x) (1 - e^-2|x|) / (1 + e^-2|x|): the exponential never overflows."""
    e = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, e - 1, 1 - e) / (1 + e)


@triton.jit
def load(pointers, mask, ACCUMULATE: tl.constexpr):
    """A tile in the accumulating type, 0 outside the mask."""
    return tl.load(pointers, mask=mask, other=0.0).to(ACCUMULATE)


@triton.jit
def load_gates(pointers, H, mask, ACCUMULATE: tl.constexpr):
    """Four tiles that lie H apart: the gates of the same hidden units."""
    first = load(pointers, mask, ACCUMULATE)
    second = load(pointers + H, mask, ACCUMULATE)
    third = load(pointers + 2 * H, mask, ACCUMULATE)
    fourth = load(pointers + 3 * H, mask, ACCUMULATE)
    return first, second, third, fourth


@triton.jit
def store_gates(pointers, H, mask, first, second, third, fourth):
    """The inverse of `load_gates`; converts to the type of the memory."""
    tl.store(pointers, first, mask=mask)
    tl.store(pointers + H, second, mask=mask)
    tl.store(pointers + 2 * H, third, mask=mask)
    tl.store(pointers + 3 * H, fourth, mask=mask)


@triton.jit
def split_gates(tile, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """From [ROWS, 4 UNITS], where the four gates of a unit are neighbours, to one [ROWS, UNITS] per gate."""
    even, odd = tile.reshape(ROWS, UNITS, 2, 2).split()
    first, third = even.split()
    second, fourth = odd.split()
    return first, second, third, fourth


@triton.jit
def survival(keep, offsets, mask):
    """keep at the offsets, 0 outside the mask; 1 where nothing is ever forgotten."""
    if keep is None:
        return 1.0
    else:
        return tl.load(keep + offsets, mask=mask, other=0.0)


@triton.jit
def grid_barrier(counter, target):
    """Waits until `target` programs have arrived, counted from the launch; what they stored before is then visible.

    Release and acquire order the stores and loads of a whole program, because `debug_barrier` orders its threads. All
    programs must be on the chip at once, or this never returns: launch with `launch_cooperative_grid=True`.
    """
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < target:
        arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
