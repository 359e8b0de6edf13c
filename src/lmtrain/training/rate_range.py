"""The learning-rate range test (Smith 2017): the rate rises geometrically, and one chooses from the curve of the loss.

`schedule=range_test` trains with rates from `schedule.low` to `schedule.high`; afterwards `range_test.svg` in the run
directory shows the loss over the rate, and two rates are named: the one where the smoothed loss falls fastest (a good peak for
a schedule that warms up), and the one where it is lowest (about the largest that still trains). Where the loss falls by no more
than batches differ, none is. Of a test that was resumed, and so began again, the longest part counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from operator import mul
from pathlib import Path
from statistics import fmean, median

Curve = list[tuple[float, float]]  # (learning rate, nats per token), the rate ascending

WIDTH, HEIGHT, MARGIN = 720, 420, 60
MEDIAN_OF_DIFFERENCES = 0.954  # of two draws from a normal distribution, in its standard deviations
LEAST_FALL = 11.5  # in standard deviations of a window's mean; chance comes to 6, and to 11 where batches are alike


def read_curve(metrics: Path) -> Curve:
    """Returns rates that ascend and their losses from a run's `metrics.jsonl`; none if it could not be written."""
    try:
        records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    points = [(r.get("optim/learning_rate"), r.get("train/nats_per_token")) for r in records]
    return _ascending([(rate, nats) for rate, nats in points if rate and nats is not None])


def _ascending(points: Curve) -> Curve:
    """Returns the longest stretch of rates each larger than the one before, the last one of several."""
    cuts = [index for index in range(1, len(points)) if points[index][0] <= points[index - 1][0]]
    start, end = max(pairwise([0, *cuts, len(points)]), key=lambda ends: (ends[1] - ends[0], ends[0]))
    return points[start:end]


def smooth(curve: Curve, reach: int | None = None) -> Curve:
    """Returns means over a window around each point, a tenth of the curve wide; it is cut off at both ends."""
    reach = reach or _reach(curve)
    return [
        (rate, fmean(nats for _, nats in curve[max(0, index - reach) : index + reach + 1]))
        for index, (rate, _) in enumerate(curve)
    ]


def suggest(curve: Curve) -> tuple[float, float] | None:
    """Returns the rate of the steepest fall of the smoothed loss per decade, and that of its minimum. It needs ten points.

    A fall is measured from one window to the next. The first points do not count, as their windows hold few batches. Returns
    None if the loss falls to its minimum by no more than such means of batches differ by chance.
    """
    curve = _ascending(curve)
    if len(curve) < 10:
        return None
    points, reach = smooth(curve), _reach(curve)
    lowest = min(range(reach, len(points)), key=lambda index: points[index][1])
    fall = max(nats for _, nats in points[reach : lowest + 1]) - points[lowest][1]
    if fall <= LEAST_FALL * _scatter(curve, lowest):
        return None

    def slope(index: int) -> float:
        before, after = points[index - reach], points[min(index + reach, lowest)]
        return (after[1] - before[1]) / math.log(after[0] / before[0])

    steepest = min(range(2 * reach, max(lowest - reach, 2 * reach) + 1), key=slope)
    return points[steepest][0], points[lowest][0]


def _scatter(curve: Curve, lowest: int) -> float:
    """Returns the standard deviation of a window's mean by chance, estimated from the points up to `lowest`.

    Where each batch is like the one before, means differ by more than neighbours tell. So it is the larger one of two: from the
    differences of neighbours, less the usual one, and from what is left around a curve smoothed twice as far, with its
    autocorrelations added up to the first that is not positive.
    """
    steps = [after[1] - before[1] for before, after in pairwise(curve[: lowest + 1])]
    slope = median(steps)
    between = median(abs(step - slope) for step in steps)
    variance, far = (between / MEDIAN_OF_DIFFERENCES) ** 2, 2 * _reach(curve)
    middles = smooth(curve, far)
    rest = [curve[index][1] - middles[index][1] for index in range(far, min(lowest + 1, len(curve) - far))]
    if rest:
        total = sum(value * value for value in rest) * (1 + 1 / (2 * far))  # a point moves its own mean
        for lag in range(1, 2 * far + 1):
            if (product := sum(map(mul, rest, rest[lag:]))) <= 0:
                break
            total += 2 * product
        variance = max(variance, total / len(rest))
    return math.sqrt(variance / (far + 1))


def _reach(curve: Curve) -> int:
    """Returns how many points a window reaches to each side."""
    return max(1, len(curve) // 20)


def draw_svg(curve: Curve) -> str:
    """Draws the loss (grey) and the smoothed loss (blue) over the logarithm of the rate. Losses above the first are cut off."""
    points = smooth(curve)
    top = max(nats for _, nats in points[: max(2, len(points) // 4)]) * 1.1
    bottom = min(nats for _, nats in points) * 0.95
    first, last = math.log10(curve[0][0]), math.log10(curve[-1][0])

    def place(rate: float, nats: float) -> str:
        x = MARGIN + (math.log10(rate) - first) / max(last - first, 1e-9) * (WIDTH - 2 * MARGIN)
        y = MARGIN + (top - min(max(nats, bottom), top)) / max(top - bottom, 1e-9) * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    def line(values: Sequence[tuple[float, float]], colour: str, width: float) -> str:
        return (
            f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{" ".join(place(*v) for v in values)}"/>'
        )

    def text(x: float, y: float, words: str) -> str:
        return f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="13" text-anchor="middle">{words}</text>'

    decades = range(math.ceil(first), math.floor(last) + 1)
    ticks = [text(float(place(10.0**d, bottom).split(",")[0]), HEIGHT - MARGIN + 20, f"1e{d}") for d in decades]
    losses = [bottom + (top - bottom) * i / 4 for i in range(5)]
    marks = [text(MARGIN - 28, float(place(curve[0][0], nats).split(",")[1]) + 4, f"{nats:.2f}") for nats in losses]
    area = f'x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}"'
    frame = f'<rect {area} fill="none" stroke="#999"/>'
    titles = [text(WIDTH / 2, 30, "nats per token over the learning rate"), text(WIDTH / 2, HEIGHT - 15, "learning rate")]
    body = "\n".join([frame, line(curve, "#bbb", 1), line(points, "#1f5fbf", 2.5), *ticks, *marks, *titles])
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
