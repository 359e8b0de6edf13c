"""The parts of a report: charts as SVG, tables, and the page that holds them. Text from elsewhere is escaped.

The page needs nothing besides itself: no script, no style sheet, no font and no picture from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lmtrain.shell import printable

COLOURS = ("#2166ac", "#d6604d", "#1b7837", "#8a5fbf", "#b8860b", "#3aa6a0", "#c2478e", "#5a5a5a", "#8c510a", "#74add1")
WIDTH, HEIGHT = 860.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 16.0, 14.0, 44.0
MAX_POINTS = 600  # of a curve; more cannot be seen
MAX_RUNS_NAMED = 30

Points = Sequence[tuple[float, float]]

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; color: #111; background: #fff }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem } p { margin: .4rem 0 }
svg { width: 100%; height: auto; display: block } svg text { font: 12px system-ui, sans-serif; fill: #444 }
.table { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } th { font-weight: 600; border-bottom-color: #888 }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem }
.key { display: inline-block; margin-right: 1.2rem; white-space: nowrap }
.key i { display: inline-block; width: 1.4rem; height: 3px }
.key i { vertical-align: middle; margin-right: .4rem } .note { color: #555; font-size: .9rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .6rem .8rem; font-size: .85rem }
"""


@dataclass(frozen=True)
class Curve:
    """One line of a chart: whose it is (`name`), in which colour, and whether it is dashed."""

    name: str
    points: Points
    colour: str
    is_dashed: bool = False


def colour_of(number: int) -> str:
    """Returns the colour of the run of this number, from 0."""
    return COLOURS[number % len(COLOURS)]


def page(title: str, sections: Sequence[str]) -> str:
    """Returns the whole document."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{shown(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n<h1>{shown(title)}</h1>\n'
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def shown(text: str) -> str:
    """Escapes text from elsewhere for the page."""
    return escape(printable(text))


def heading(words: str, note: str = "") -> str:
    """Returns the title of a section, and a sentence below it."""
    return f"<h2>{shown(words)}</h2>" + (f'\n<p class="note">{shown(note)}</p>' if note else "")


def legend(names: Sequence[str]) -> str:
    """Says which colour is whose."""
    keys = [f'<span class="key"><i style="background:{colour_of(n)}"></i>{shown(name)}</span>' for n, name in enumerate(names)]
    more = len(keys) - MAX_RUNS_NAMED
    return f"<p>{''.join(keys[:MAX_RUNS_NAMED])}{f'and {more} more' if more > 0 else ''}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Lays out rows below their headings."""
    head = "".join(f"<th>{shown(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{shown(cell)}</td>' for cell in row)}</tr>" for row in rows)
    below = "".join(f'\n<p class="note">{shown(note)}</p>' for note in notes)
    return f'<div class="table"><table><tr>{head}</tr>\n{body}</table></div>{below}'


def beside(parts: Sequence[str]) -> str:
    """Lays out parts of the page beside each other, as far as there is room."""
    return f'<div class="beside">{"".join(parts)}</div>'


def chart(curves: Sequence[Curve], x_label: str, y_label: str, *, log: bool = False) -> str:
    """Draws curves in one system of axes; empty if there is nothing to draw. With `log` the vertical axis is logarithmic."""
    curves = [Curve(c.name, _usable(c.points, log), c.colour, c.is_dashed) for c in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_axis, y_axis = _Axis(min(0.0, *xs), max(xs), LEFT, WIDTH - RIGHT), _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log)
    parts = [f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{shown(y_label)} over {shown(x_label)}">']
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(f'<line x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e2e2"/>')
        parts.append(f'<text x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{tick(value)}</text>')
    for value in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18:g}" text-anchor="middle">{tick(value)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 6:g}" text-anchor="middle">{shown(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{middle:g}" text-anchor="middle" transform="rotate(-90 14 {middle:g})">{shown(y_label)}</text>'
    )
    for curve in curves:
        places = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in curve.points)
        dash = ' stroke-dasharray="2 3" stroke-opacity=".6"' if curve.is_dashed else ""
        parts.append(
            f'<polyline points="{places}" fill="none" stroke="{curve.colour}" stroke-width="1.8"{dash}>'
            f"<title>{shown(curve.name)}</title></polyline>"
        )
        if len(curve.points) < 30 and not curve.is_dashed:
            parts += [f'<circle cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="2.6" fill="{curve.colour}"/>'
                      for x, y in curve.points]  # fmt: skip
    return "\n".join([*parts, "</svg>"])


def bars(names: Sequence[str], groups: Mapping[str, Sequence[float | None]], y_label: str) -> str:
    """Draws for each of `names` a bar per run; None if a run has none. The vertical axis is logarithmic."""
    values = [value for row in groups.values() for value in row if value is not None and 0 < value < math.inf]
    if not values:
        return ""
    low = 10 ** math.floor(math.log10(min(values)) - 0.05)
    axis = _Axis(low, max(values) * 1.05, HEIGHT - BOTTOM, TOP, log=True)
    wide = (WIDTH - LEFT - RIGHT) / len(names)
    each = min(0.8 * wide / len(groups), 60.0)
    parts = [f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{shown(y_label)}">']
    for value in axis.ticks():
        y = axis.place(value)
        parts.append(f'<line x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e2e2"/>')
        parts.append(f'<text x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{tick(value)}</text>')
    for place, name in enumerate(names):
        centre = LEFT + (place + 0.5) * wide
        parts.append(f'<text x="{centre:.1f}" y="{HEIGHT - BOTTOM + 18:g}" text-anchor="middle">{shown(name)}</text>')
        for number, (run, row) in enumerate(groups.items()):
            height = row[place]
            if height is None or not 0 < height < math.inf:
                continue
            x, y = centre + (number - len(groups) / 2) * each, axis.place(height)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(each - 1, 1):.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
                f'fill="{colour_of(number)}"><title>{shown(run)}: {height:,.4g}</title></rect>'
            )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle:g}" text-anchor="middle" transform="rotate(-90 14 {middle:g})">{shown(y_label)}</text>'
    )
    return "\n".join([*parts, "</svg>"])


def tick(value: float) -> str:
    """Returns a number beside an axis."""
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True)
class _Axis:
    """Maps values from `low` to `high` to places from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def ticks(self) -> list[float]:
        """Returns round values: about five, or for a logarithm 1, 2 and 5 times the powers of ten, fewer if they are many."""
        if self.log and self.high > 1.5 * self.low:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
                inside = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
                if 2 <= len(inside) <= 8:
                    return inside
            if len(inside) > 8:
                return inside[:: -(-len(inside) // 6)]
        span = (self.high - self.low) or abs(self.high) or 1.0
        unit = 10.0 ** math.floor(math.log10(span / 4))
        step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * n, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _usable(points: Points, log: bool) -> Points:
    """Returns the points that can be drawn, thinned out evenly if they are many."""
    there = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]
    every = -(-len(there) // MAX_POINTS)
    return there if every <= 1 else [*there[:-1:every], there[-1]]
