"""Words drawn on the two principal axes of their vectors, as SVG; pairs such as king and queen are joined.

The axes are those along which the drawn words differ most (principal components of their centred vectors); how much of the
variance each holds is written beside it, since what is far apart in all dimensions may lie together in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import DataError, unwritable
from lmtrain.files.unfinished import new_file
from lmtrain.shell import one_line
from lmtrain.vectors.table import Vectors

WIDTH, HEIGHT, MARGIN = 900, 640, 60
FONT = 13
BLUE, GREY, DARK = "#1f5fbf", "#bbb", "#222"


class Plane(NamedTuple):
    """Words as points: `points` [N, 2], and the share of the variance that each axis holds, [2]."""

    points: NDArray[np.float64]
    shares: NDArray[np.float64]


def principal_plane(matrix_NE: NDArray[np.float32]) -> Plane:
    """The rows on their two principal axes; the sign of each axis is such that its largest number is positive."""
    centred = matrix_NE.astype(np.float64) - matrix_NE.mean(axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(centred), 2))
    shares = np.zeros(2)
    number = min(2, len(singular))
    points[:, :number], shares[:number] = (left * singular)[:, :number], singular[:number] ** 2
    signs = np.sign(points[np.abs(points).argmax(axis=0), [0, 1]])
    return Plane(points * np.where(signs, signs, 1), shares / max(float(singular @ singular), np.finfo(float).tiny))


def draw_words(vectors: Vectors, words: Sequence[str], pairs: Sequence[tuple[str, str]] = ()) -> str:
    """The words, and those of the pairs, as an SVG. Raises DataError for unknown words, and for fewer than two."""
    shown = list(dict.fromkeys([*words, *(word for pair in pairs for word in pair)]))
    rows = vectors.rows(shown)
    if len(shown) < 2:
        raise DataError(
            f"{len(shown)} word{'s were' if len(shown) != 1 else ' was'} given.", "At least two are needed to draw axes.",
            "Give more words.",
        )  # fmt: skip
    plane = principal_plane(vectors.matrix[rows])
    low, high = plane.points.min(axis=0), plane.points.max(axis=0)
    scale = np.array([WIDTH - 3 * MARGIN, HEIGHT - 2 * MARGIN]) / np.where(high > low, high - low, 1)
    places = (plane.points - low) * scale * [1, -1] + [MARGIN, HEIGHT - MARGIN]
    place = dict(zip(shown, places.tolist(), strict=True))
    lines = [_line(place[first], place[second]) for first, second in pairs]
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{BLUE}"/>' for x, y in places]
    labels = _labels([one_line(word) for word in shown], places)
    axes = [
        _text(WIDTH / 2, HEIGHT - 18, f"first principal axis, {plane.shares[0]:.1%} of the variance", "middle", "#666"),
        f'<g transform="rotate(-90 22 {HEIGHT / 2})">'
        + _text(22, HEIGHT / 2, f"second, {plane.shares[1]:.1%}", "middle", "#666") + "</g>",
    ]  # fmt: skip
    body = "\n".join([f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *lines, *dots, *labels, *axes])
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n'


def write(svg: str, path: Path) -> None:
    """Writes a drawing so that it appears whole or not at all. Raises SettingsError where it cannot
    be made, and ResourceError where the disk is full."""
    try:
        with new_file(path) as file:
            file.write(svg.encode("utf-8", "replace"))
    except OSError as error:
        raise unwritable(str(path), error) from error


def _line(first: Sequence[float], second: Sequence[float]) -> str:
    ends = f'x1="{first[0]:.1f}" y1="{first[1]:.1f}" x2="{second[0]:.1f}" y2="{second[1]:.1f}"'
    return f'<line {ends} stroke="{GREY}" stroke-width="1.5" stroke-dasharray="5 3"/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str) -> str:
    style = f'font-family="sans-serif" font-size="{FONT}" text-anchor="{anchor}" fill="{colour}"'
    style += ' stroke="white" stroke-width="3" paint-order="stroke"'  # so that no line runs through it
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def _labels(words: Sequence[str], places: NDArray[np.float64]) -> list[str]:
    """A word beside each point: right, left, above or below it, where no earlier label is; right where all are taken."""
    taken: list[tuple[float, float, float, float]] = [(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    labels = []
    for number, (word, (x, y)) in enumerate(zip(words, places.tolist(), strict=True)):
        width = 0.58 * FONT * len(word)
        choices = [
            (x + 7, y + 4, "start", (x + 7, y - 8, x + 7 + width, y + 6)),
            (x - 7, y + 4, "end", (x - 7 - width, y - 8, x - 7, y + 6)),
            (x, y - 8, "middle", (x - width / 2, y - 20, x + width / 2, y - 6)),
            (x, y + 17, "middle", (x - width / 2, y + 5, x + width / 2, y + 19)),
        ]
        others = taken[:number] + taken[number + 1 :]
        free = [choice for choice in choices if choice[3][0] > 0 and choice[3][2] < WIDTH and not _overlaps(choice[3], others)]
        left, base, anchor, box = (free or choices)[0]
        taken.append(box)
        labels.append(_text(left, base, word, anchor, DARK))
    return labels


def _overlaps(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)
