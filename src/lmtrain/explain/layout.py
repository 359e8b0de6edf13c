"""Where the nodes of a drawing stand: columns from left to right, rows within a column (Sugiyama, Tagawa and Toda 1981).

    columns   a gate stands right of all its inputs; an input stands just left of its first consumer
    order     an edge that passes a column gets a place of its own in it; sweeps sort each column by its neighbours' rows
    rows      each item is drawn to the mean row of its neighbours, as near as the others in its column let it

Every edge ends in a track of its own before its gate. There its labels stand, above and below, where nothing crosses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lmtrain.explain.gates import Add, Maximum, Multiply
from lmtrain.explain.graph import Graph, Node

TRACK = 46.0  # between two edges into one gate: room for a value above and a gradient below
GAP = 14.0  # between two items of a column
SWEEPS = 24


@dataclass(eq=False)
class Item:
    """A node, or an edge of `node` that passes a column; `above` and `below` are what it takes of the column around its row."""

    node: Node
    column: int
    is_passing: bool
    above: float
    below: float
    row: float = 0.0
    left: list[Item] = field(default_factory=list)  # what its edges come from, in the order of its tracks
    right: list[Item] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)  # of each edge from the left the number of its track, from the top

    def offset(self, which: int) -> float:
        """How far below its row its edge number `which` arrives, in tracks."""
        return self.tracks[which] - (len(self.tracks) - 1) / 2

    def track(self, which: int) -> float:
        """The row in which its edge number `which` arrives."""
        return self.row + self.offset(which) * TRACK


def place(graph: Graph, sizes: dict[Node, tuple[float, float]]) -> list[list[Item]]:
    """The columns with their items from top to bottom. `sizes` is what a node takes above and below its row."""
    columns = _columns(graph)
    grid: list[list[Item]] = [[] for _ in range(max(columns.values()) + 1)]
    items = {node: Item(node, columns[node], False, *_room(node, sizes[node])) for node in columns}
    passing: dict[tuple[Node, int], Item] = {}
    for node, item in items.items():
        grid[item.column].append(item)
        for parent in node.inputs:
            before = items[parent]
            for column in range(before.column + 1, item.column):
                key = parent, column
                if key not in passing:
                    passing[key] = Item(parent, column, True, 10.0, 10.0)
                    grid[column].append(passing[key])
                    _join(before, passing[key])
                before = passing[key]
            _join(before, item)
    _sort(grid)
    _settle(grid)
    return grid


def _columns(graph: Graph) -> dict[Node, int]:
    columns: dict[Node, int] = {}
    nodes = graph.nodes_topologically_sorted()
    for node in nodes:
        columns[node] = max((columns[parent] + 1 for parent in node.inputs), default=0)
    consumers: dict[Node, list[int]] = {node: [] for node in nodes}
    for node in nodes:
        for parent in node.inputs:
            consumers[parent].append(columns[node])
    return {node: min(consumers[node], default=1) - 1 if node.gate is None else columns[node] for node in nodes}


def _room(node: Node, size: tuple[float, float]) -> tuple[float, float]:
    tracks = len(node.inputs) * TRACK / 2
    return max(size[0], tracks), max(size[1], tracks)


def _join(before: Item, behind: Item) -> None:
    before.right.append(behind)
    behind.tracks.append(len(behind.left))
    behind.left.append(before)


def _sort(grid: Sequence[list[Item]]) -> None:
    """Sorts every column by the mean place of its neighbours, to and fro, and keeps the order with the fewest crossings."""
    best, fewest = [list(column) for column in grid], _crossings(grid)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for column in grid if forward else reversed(grid):
            places = {item: (place + 0.5) / len(other) for other in grid for place, item in enumerate(other)}
            means = {item: _mean(item, places, forward) for item in column}
            column.sort(key=means.__getitem__)
        for item in (item for column in grid for item in column):
            _sort_tracks(item, grid)
        if (crossings := _crossings(grid)) < fewest:
            best, fewest = [list(column) for column in grid], crossings
    for column, kept in zip(grid, best, strict=True):
        column[:] = kept
    for item in (item for column in grid for item in column):
        _sort_tracks(item, grid)


def _mean(item: Item, places: dict[Item, float], forward: bool) -> float:
    """The mean place of the neighbours on one side, or on the other where there are none on this."""
    behind = [places[other] + 1e-3 * other.offset(other.left.index(item)) for other in item.right]
    before = [places[other] for other in item.left]
    near = (before or behind) if forward else (behind or before)
    return sum(near) / len(near) if near else places[item]


def _sort_tracks(item: Item, grid: Sequence[list[Item]]) -> None:
    """Where a gate's inputs may change places, the upper one arrives in the upper track."""
    if item.is_passing or not isinstance(item.node.gate, Add | Multiply | Maximum):
        return
    column = grid[item.column - 1]
    order = sorted(range(len(item.left)), key=lambda which: column.index(item.left[which]))
    for track, which in enumerate(order):
        item.tracks[which] = track


def _crossings(grid: Sequence[list[Item]]) -> int:
    total = 0
    for left, right in pairwise(grid):
        at = {item: place for place, item in enumerate(left)}
        ends = [at[item.left[which]] for item in right for which in sorted(range(len(item.left)), key=item.tracks.__getitem__)]
        total += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return total


def _settle(grid: Sequence[list[Item]]) -> None:
    for column in grid:
        row = 0.0
        for item in column:
            row += item.above
            item.row = row
            row += item.below + GAP
    for sweep in range(SWEEPS):
        for column in grid if sweep % 2 == 0 else reversed(grid):
            wished = [_wish(item) for item in column]
            for item, row in zip(column, _apart(column, wished), strict=True):
                item.row = row
    top = min(item.row - item.above for column in grid for item in column)
    for column in grid:
        for item in column:
            item.row -= top


def _wish(item: Item) -> float:
    """The mean row of its neighbours: of those behind it the track in which it arrives."""
    rows = [before.row for before in item.left]
    rows += [behind.track(behind.left.index(item)) for behind in item.right]
    return sum(rows) / len(rows) if rows else item.row


def _apart(column: Sequence[Item], wished: Sequence[float]) -> list[float]:
    """The rows nearest to those wished (least squares) that keep the order and the distances: pooled adjacent violators."""
    shifts = [0.0]
    for upper, lower in pairwise(column):
        shifts.append(shifts[-1] + upper.below + GAP + lower.above)
    pools: list[tuple[float, int]] = []
    for wish, shift in zip(wished, shifts, strict=True):
        mean, size = wish - shift, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    return [mean + shift for mean, shift in zip(flat, shifts, strict=True)]
