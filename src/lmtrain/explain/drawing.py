"""The drawing of the lectures as SVG: gates from left to right, on every edge its value above and its gradient below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from lmtrain.errors import UserError
from lmtrain.explain.gates import Array, short
from lmtrain.explain.graph import Graph, Node
from lmtrain.explain.layout import Item, place
from lmtrain.explain.values import number, show
from lmtrain.shell import num_columns, one_line

MAX_NODES = 150
WIDEST = 28  # characters of a value on an edge
SMALL, NORMAL, LARGE = 11.0, 13.0, 16.0  # font sizes
RADIUS = 21.0
CHANNEL, MERGE, MARGIN, HEAD = 44.0, 30.0, 28.0, 74.0
INK, VALUE, GRADIENT, QUIET = "#22272e", "#0b5fa5", "#c2410c", "#6b7280"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, monospace"
RULES = {"+": "distributes", "-": "distributes", "sum": "distributes", "*": "switches", "@": "switches", "max": "routes",
         "min": "routes", "relu": "routes"}  # fmt: skip


def draw(graph: Graph) -> str:
    """An SVG document of a graph that ran forward and backward. Raises UserError for more than MAX_NODES nodes."""
    nodes = graph.nodes_topologically_sorted()
    if len(nodes) > MAX_NODES:
        raise UserError(
            f"The graph has {len(nodes):,} nodes.", f"A drawing holds {MAX_NODES}, as more cannot be read.",
            "Draw a part of the expression, or leave --svg out.",
        )  # fmt: skip
    drawing = _Drawing(graph)
    title = one_line(graph.source.text) if graph.source else "A graph of gates"
    return svg_document(title, drawing.width, drawing.height, list(drawing.iter_elements()))


def svg_document(title: str, width: float, height: float, body: Sequence[str]) -> str:
    """A document on a white ground."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def text_width(text: str, size: float) -> float:
    """How wide a text is in a font whose characters are all of one width; wide characters take two."""
    return num_columns(text) * 0.61 * size


def brief(value: Array) -> str:
    """A value as it fits on an edge: small ones whole, others by their shape."""
    if value.ndim == 0:
        return number(float(value), 4)
    whole = show(value, digits=3)
    return whole if value.size <= 6 and len(whole) <= WIDEST else f"({short(value.shape)})"


class _Drawing:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        grid = place(graph, {node: self._room(node) for node in graph.nodes_topologically_sorted()})
        self.items = [item for column in grid for item in column]
        self.labels = [max((text_width(t, NORMAL) for t in self._labels_of(column)), default=0) + 12 for column in grid]
        self.bodies = [max((self._body_width(item) for item in column if not item.is_passing), default=0) for column in grid]
        self.starts = [MARGIN]  # where a column's channel begins
        for column in range(len(grid)):
            before = CHANNEL + self.labels[column] + MERGE if column else 0.0
            self.starts.append(self.starts[-1] + before + self.bodies[column])
        self.title = one_line(graph.source.text) if graph.source else ""
        output = next(item for item in self.items if item.node is graph.output and not item.is_passing)
        self.end_label = max(text_width(t, NORMAL) for t in self._edge_texts(graph.output, graph.output.gradient)) + 16
        self.width = self.starts[-1] + 20 + self.end_label + 14 + text_width(graph.output.name, LARGE) + MARGIN
        self.width = max(self.width, 520.0)
        self.height = HEAD + max(item.row + item.below for item in self.items) + MARGIN
        self.output = output

    # ---- sizes

    def _room(self, node: Node) -> tuple[float, float]:
        if node.gate is None:
            return (18.0, 16.0 if node.is_constant else 28.0)
        below = RADIUS + 8 + 15.0 * len(self._below(node))
        return RADIUS + 22, below

    def _body_width(self, item: Item) -> float:
        node = item.node
        if node.gate is None:
            return max(text_width(node.name, LARGE), text_width(self._total(node), SMALL)) + 8
        words = max([text_width(word, SMALL) for word in (node.name, *self._below(node))])
        return max(2 * RADIUS, words, text_width(_symbol(node), self._symbol_size(node))) + 8

    def _symbol_size(self, node: Node) -> float:
        assert node.gate is not None
        return LARGE if len(_symbol(node)) < 3 else SMALL if len(_symbol(node)) < 6 else 9.0

    def _below(self, node: Node) -> list[str]:
        """What stands below a gate: its rule, and the sum of the gradients at a branch."""
        assert node.gate is not None
        rule = RULES.get(node.gate.symbol)
        return [*([rule] if rule else []), *([self._total(node)] if len(node.branches) > 1 else [])]

    def _total(self, node: Node) -> str:
        """The gradient of a node, as the sum over its branches where there are several."""
        if node.gradient is None or (len(node.branches) < 2 and node.gradient.ndim):
            return ""  # what stands below its only edge says it
        name = f"d{self.graph.output.name}/d{node.name} = "
        if node.gradient.size == 1 and 1 < len(node.branches) <= 3:
            parts = [brief(part) for part in node.branches]
            return name + " + ".join(f"({p})" if p.startswith("-") else p for p in parts) + f" = {brief(node.gradient)}"
        return name + brief(node.gradient)

    def _labels_of(self, column: list[Item]) -> list[str]:
        return [
            text
            for item in column
            if not item.is_passing
            for which, parent in enumerate(item.node.inputs)
            for text in self._edge_texts(parent, self._sent(item.node, which))
        ]

    def _sent(self, node: Node, which: int) -> Array | None:
        return node.downstream[which] if node.downstream else None

    def _edge_texts(self, node: Node, gradient: Array | None) -> list[str]:
        assert node.value is not None
        value = "" if node.is_constant and node.name == brief(node.value) else brief(node.value)
        return [value, "" if gradient is None else brief(gradient)]

    # ---- elements

    def iter_elements(self) -> Iterator[str]:
        most = max(int((self.width - 2 * MARGIN) / (0.61 * LARGE)) - 3, 10)
        title = self.title if len(self.title) <= most else self.title[:most] + "..."
        yield svg_text(MARGIN, 32, title, LARGE, INK, "start", bold=True)
        yield svg_text(MARGIN, 52, "values above the edges", SMALL, VALUE, "start")
        yield svg_text(
            MARGIN + text_width("values above the edges", SMALL) + 16, 52, "gradients below", SMALL, GRADIENT, "start"
        )
        for item in self.items:
            yield from self._iter_edges(item)
        for item in self.items:
            if not item.is_passing:
                yield from self._iter_input(item) if item.node.gate is None else self._iter_gate(item)
        yield from self._iter_output()

    def _right(self, item: Item) -> float:
        """Where an item's outgoing edges begin."""
        end = self.starts[item.column + 1]
        if item.is_passing:
            return end
        return self._centre(item) + RADIUS if item.node.gate is not None else end

    def _centre(self, item: Item) -> float:
        return self.starts[item.column + 1] - self.bodies[item.column] / 2

    def _iter_edges(self, item: Item) -> Iterator[str]:
        column_start = self.starts[item.column]
        for which, before in enumerate(item.left):
            y0, y1 = HEAD + before.row, HEAD + item.track(which)
            x0, turn = self._right(before), column_start
            label_start = turn + CHANNEL
            path = f"M{x0:.1f},{y0:.1f} H{turn:.1f} "
            path += f"C{turn + CHANNEL / 2:.1f},{y0:.1f} {turn + CHANNEL / 2:.1f},{y1:.1f} {label_start:.1f},{y1:.1f} "
            if item.is_passing:
                yield _path(path + f"H{self.starts[item.column + 1]:.1f}")
                continue
            label_end = label_start + self.labels[item.column]
            centre, y = self._centre(item), HEAD + item.row
            tip = y + max(-0.6 * RADIUS, min(0.6 * RADIUS, (y1 - y) / 3))
            reach = centre - (RADIUS**2 - (tip - y) ** 2) ** 0.5 - 1
            path += f"H{label_end:.1f} C{label_end + MERGE / 2:.1f},{y1:.1f} "
            path += f"{reach - MERGE / 2:.1f},{tip:.1f} {reach:.1f},{tip:.1f}"
            yield _path(path) + _arrow(reach, tip)
            middle = (label_start + label_end) / 2
            yield from self._iter_labels(middle, y1, self._edge_texts(before.node, self._sent(item.node, which)))

    def _iter_labels(self, x: float, y: float, texts: list[str]) -> Iterator[str]:
        value, gradient = texts
        if value:
            yield svg_text(x, y - 6, value, NORMAL, VALUE, "middle")
        if gradient:
            yield svg_text(x, y + 16, gradient, NORMAL, GRADIENT, "middle")

    def _iter_gate(self, item: Item) -> Iterator[str]:
        node, x, y = item.node, self._centre(item), HEAD + item.row
        assert node.gate is not None
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="#f3f6fa" stroke="{INK}" stroke-width="1.4"/>'
        size = self._symbol_size(node)
        yield svg_text(x, y + size * 0.35, _symbol(node), size, INK, "middle", bold=True)
        if node is not self.graph.output:
            yield svg_text(x, y - RADIUS - 7, node.name, SMALL, INK, "middle", italic=True)
        for line, words in enumerate(self._below(node)):
            colour = GRADIENT if "=" in words else QUIET
            yield svg_text(x, y + RADIUS + 15 + 15 * line, words, SMALL, colour, "middle")

    def _iter_input(self, item: Item) -> Iterator[str]:
        node, x, y = item.node, self.starts[item.column + 1] - 6, HEAD + item.row
        yield svg_text(x, y + 5, node.name, LARGE, QUIET if node.is_constant else INK, "end", bold=not node.is_constant)
        if total := self._total(node):
            yield svg_text(x, y + 22, total, SMALL, GRADIENT, "end")

    def _iter_output(self) -> Iterator[str]:
        output, y = self.output, HEAD + self.output.row
        start = self._right(output)
        label = self.starts[-1] + 20
        end = label + self.end_label
        yield _path(f"M{start:.1f},{y:.1f} H{end:.1f}") + _arrow(end, y)
        yield from self._iter_labels((label + end) / 2, y, self._edge_texts(output.node, output.node.gradient))
        yield svg_text(end + 12, y + 5, output.node.name, LARGE, INK, "start", bold=True)


def _symbol(node: Node) -> str:
    assert node.gate is not None
    return "σ" if node.gate.symbol == "sigmoid" else node.gate.symbol


def svg_text(
    x: float, y: float, text: str, size: float, colour: str, anchor: str, *, bold: bool = False, italic: bool = False
) -> str:
    style = ' font-weight="bold"' * bold + ' font-style="italic"' * italic
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="{MONO}" font-size="{size:g}" fill="{colour}" '
        f'text-anchor="{anchor}"{style}>{escape(text)}</text>'
    )


def _path(d: str) -> str:
    return f'<path d="{d.strip()}" fill="none" stroke="#9aa4b2" stroke-width="1.3"/>'


def _arrow(x: float, y: float) -> str:
    return f'<path d="M{x:.1f},{y:.1f} l-8,-3.6 v7.2 z" fill="#9aa4b2"/>'
