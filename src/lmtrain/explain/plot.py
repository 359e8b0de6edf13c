"""Curves over a logarithmic axis, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lmtrain.explain.drawing import GRADIENT, INK, NORMAL, QUIET, SMALL, VALUE, svg_document, svg_text, text_width

WIDTH, HEIGHT = 620.0, 380.0
LEFT, TOP, BOTTOM, RIGHT = 76.0, 64.0, 52.0, 28.0
LINE = 18.0  # between two names at the right
COLOURS = (VALUE, GRADIENT, "#15803d", "#7c3aed", "#b45309", "#0f766e", "#be185d")
MIN_SHOWN = 1e-12  # what is smaller is left out, as 0 is


def plot(title: str, x_label: str, curves: Mapping[str, Sequence[float]]) -> str:
    """One curve for each name, over 0, 1, ...; each is named at its right end."""
    shown = [y for values in curves.values() for y in values if y >= MIN_SHOWN and math.isfinite(y)] or [1.0]
    low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    high = max(high, low + 1)
    num = max(len(values) for values in curves.values())
    names = max(text_width(name, NORMAL) for name in curves) + 16
    body = [svg_text(LEFT, 30, title, NORMAL, INK, "start", bold=True)]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(y) - low) / (high - low)
        return LEFT + x / max(num - 1, 1) * WIDTH, TOP + (1 - share) * HEIGHT

    step = max(1, math.ceil((high - low) / 10))
    for exponent in range(low, high + 1, step):
        y = place(0, 10.0**exponent)[1]
        body.append(f'<path d="M{LEFT:.1f},{y:.1f} h{WIDTH:.1f}" stroke="#e5e7eb" stroke-width="1"/>')
        body.append(svg_text(LEFT - 10, y + 4, f"1e{exponent}" if exponent else "1", SMALL, QUIET, "end"))
    for x in range(0, num, max(1, 5 * math.ceil(num / 60))):
        body.append(svg_text(place(x, 10.0**low)[0], TOP + HEIGHT + 20, str(x), SMALL, QUIET, "middle"))
    body.append(svg_text(LEFT + WIDTH / 2, TOP + HEIGHT + 40, x_label, SMALL, INK, "middle"))
    ends = []
    for number, (name, values) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(x, y) if y >= MIN_SHOWN and math.isfinite(y) else None for x, y in enumerate(values)]
        path, is_down = "", False
        for point in points:
            path += f"{'L' if is_down else 'M'}{point[0]:.1f},{point[1]:.1f} " if point else ""
            is_down = point is not None
        if path:
            body.append(f'<path d="{path.strip()}" fill="none" stroke="{colour}" stroke-width="2"/>')
        last = next((point for point in reversed(points) if point), (LEFT, TOP + HEIGHT))
        ends.append((last[1], name, colour))
    row = -math.inf
    rows = []
    for y, name, colour in sorted(ends):
        row = max(y + 4, row + LINE)
        rows.append((row, name, colour))
    over = max(0.0, rows[-1][0] - TOP - HEIGHT)
    for y, name, colour in rows:
        body.append(svg_text(LEFT + WIDTH + 10, y - over, name, NORMAL, colour, "start"))
    width = max(LEFT + WIDTH + names + RIGHT, LEFT + text_width(title, NORMAL) + RIGHT)
    return svg_document(title, width, TOP + HEIGHT + BOTTOM, body)
