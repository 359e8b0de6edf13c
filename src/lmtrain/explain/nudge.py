"""What a gradient predicts, and what happens: every input is nudged a little, and the graph runs forward again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lmtrain.errors import UserError
from lmtrain.explain.element import find_entry
from lmtrain.explain.gates import at
from lmtrain.explain.graph import Graph
from lmtrain.explain.values import number

SHOWN = 40  # entries that are nudged


def iter_nudges(graph: Graph, step: float, element: str | None = None) -> Iterator[str]:
    """The final value after each entry has been nudged by `step`, beside what the gradient predicts."""
    output = graph.output
    value = float(np.sum(graph.forward()))
    what = f"the sum of {output.name}'s entries" if output.named.shape else output.name
    entries = [(node, tuple(map(int, index))) for node in graph.inputs for index in np.ndindex(node.named.shape)]
    if element is not None:
        entries = [find_entry(graph, element)]
    yield f"Nudged by {number(step)}: {what} was {number(value, 10)}; change / nudge nears the gradient for small ones"
    for node, index in entries[:SHOWN]:
        assert node.value is not None
        assert node.gradient is not None
        kept, name = node.value, at(node.named, index)
        node.value = kept.copy()
        node.value[index] += step
        try:
            nudged = float(np.sum(graph.forward()))
            change = nudged - value
            yield (
                f"  {f'{name} + {number(step)}':16} {output.name} = {number(nudged, 10):14} change {number(change, 8):12} "
                f"change / nudge {number(change / step, 8):12} gradient {number(float(node.gradient[index]), 8)}"
            )
        except UserError as error:
            yield f"  {name} + {number(step)}: {output.name} has no value there. {error.given.partition(chr(10))[0]}"
        finally:
            node.value = kept
    graph.forward()
    if len(entries) > SHOWN:
        yield f"  ... and {len(entries) - SHOWN} more; --element names one of them"
