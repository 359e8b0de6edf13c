"""The lectures' experiment: windows classified one after the other in a Python loop, against one matrix product."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import numpy as np

NUM_WINDOWS, SIZE, CLASSES = 500, 300, 5
REPEATS, SECONDS = 5, 0.05


def speed_lines(seed: int = 1) -> list[str]:
    """Both timed with NumPy, and with PyTorch on a GPU where there is one."""
    import torch

    generator = np.random.default_rng(seed)
    weight, matrix = generator.random((CLASSES, SIZE)), generator.random((SIZE, NUM_WINDOWS))
    vectors = [np.ascontiguousarray(matrix[:, [i]]) for i in range(NUM_WINDOWS)]
    same = np.allclose(np.hstack([weight @ x for x in vectors]), weight @ matrix, rtol=1e-12)
    loop, product = _micros(lambda: [weight @ x for x in vectors]), _micros(lambda: weight @ matrix)
    lines = [
        f"{NUM_WINDOWS} windows of {SIZE} numbers, {CLASSES} classes: microseconds, best of {REPEATS}",
        f"  NumPy, a loop over the windows       {loop:10.1f}",
        f"  NumPy, one matrix product            {product:10.1f}   {loop / product:.1f} times as fast",
    ]
    if torch.cuda.is_available():
        on_gpu, all_on_gpu = torch.from_numpy(weight).float().cuda(), torch.from_numpy(matrix).float().cuda()
        each = [all_on_gpu[:, i : i + 1].contiguous() for i in range(NUM_WINDOWS)]
        slow = _micros(lambda: [on_gpu @ x for x in each], torch.cuda.synchronize)
        fast = _micros(lambda: on_gpu @ all_on_gpu, torch.cuda.synchronize)
        lines.append(f"  PyTorch on {torch.cuda.get_device_name()}, a loop    {slow:10.1f}")
        lines.append(f"  PyTorch on {torch.cuda.get_device_name()}, a product {fast:10.1f}   {slow / fast:.1f} times as fast")
    return [*lines, f"  Both give the same scores: {'yes' if same else 'NO'}"]


def _micros(function: Callable[[], object], finish: Callable[[], None] = lambda: None) -> float:
    """Microseconds of one call. `finish` waits for what a GPU has not yet done."""

    def whole() -> None:
        function()
        finish()

    timer = timeit.Timer(whole)
    once = max(timer.timeit(1), 1e-7)
    number = max(1, min(10_000, int(SECONDS / once)))
    return 1e6 * min(timer.repeat(REPEATS, number)) / number
