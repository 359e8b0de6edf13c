"""A network as graphs of ONNX operations, put together from its facts and weights (`plain`).

    step       token [B], state ...           ->  log_probs [B, V], next state ...
    sequence   tokens [B, T], lengths [B]     ->  nats [B], token_nats [B, T]

The sequence graph runs the step over time (`Scan`), from the state before a text and behind `<eos>`, as every text begins.
Behind its length a text costs nothing. Both use the same weights by the same names, and forget as the state policy says.

    legend   T steps · B texts · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from lmtrain.export.onnx_layers import FLOAT, INT64, Graph, Part, StateTensor
from lmtrain.export.plain import Plain

OPSET, IR_VERSION = 17, 8  # which onnxruntime 1.13 and newer read


class Whole:
    """The model: its parts (of mixtures of mixtures, too) with their shares."""

    def __init__(self, graph: Graph, made: Plain, quantized: bool) -> None:
        self.graph = graph
        self.parts: list[tuple[float, Part]] = []
        self._add(made, 1.0, "", quantized)
        self.eos_id, self.vocab_size = made.facts["eos_id"], made.facts["vocab_size"]

    def _add(self, made: Plain, share: float, prefix: str, quantized: bool) -> None:
        if made.facts["kind"] != "mixture":
            self.parts.append((share, Part(self.graph, made, prefix, quantized)))
            return
        for number, (part, weight) in enumerate(zip(made.parts(), made.facts["weights"], strict=True)):
            if weight:
                self._add(part, share * weight, f"{prefix}{number}.", quantized)

    def state(self) -> list[StateTensor]:
        return [tensor for _, part in self.parts for tensor in part.state()]

    def step(self, token: str, state: Sequence[str]) -> tuple[str, list[str]]:
        """Log-probabilities [B, V] behind `token`, and the next state."""
        op, left, after, logs = self.graph.op, [*state], list[str](), []
        for share, part in self.parts:
            size = len(part.state())
            log_probs, own = part.step(token, left[:size])
            left, after = left[size:], after + own
            logs.append(log_probs if share == 1 else op("Add", log_probs, self.graph.constant(math.log(share), np.float32)))
        if len(logs) == 1:
            return logs[0], after
        peak = op("Max", *logs)
        total = op("Sum", *(op("Exp", op("Sub", log, peak)) for log in logs))
        return op("Add", op("Log", total), peak), after


def step_graph(made: Plain, *, quantized: bool = False) -> Any:
    """The graph that reads one token of each of B texts."""
    graph = Graph()
    whole = Whole(graph, made, quantized)
    state = whole.state()
    log_probs, after = whole.step("token", [tensor.name for tensor in state])
    inputs: list[Any] = [helper.make_tensor_value_info("token", INT64, ["batch"])]
    inputs += [helper.make_tensor_value_info(tensor.name, tensor.type, tensor.shape) for tensor in state]
    results: dict[str, tuple[str, Any, Any]] = {"log_probs": (log_probs, FLOAT, ["batch", whole.vocab_size])}
    results |= {f"next_{t.name}": (name, t.type, t.shape) for t, name in zip(state, after, strict=True)}
    outputs = []
    for name, (made_as, type_, shape) in results.items():
        graph.nodes.append(helper.make_node("Identity", [made_as], [name]))
        outputs.append(helper.make_tensor_value_info(name, type_, shape))
    return _finished(graph, "step", inputs, outputs)


def sequence_graph(made: Plain, *, quantized: bool = False) -> Any:
    """The graph that reads B whole texts."""
    graph = Graph()
    op, constant = graph.op, graph.constant
    whole = Whole(graph, made, quantized)
    state = whole.state()
    targets_TB = op("Transpose", "tokens", perm=[1, 0])
    sizes_2 = op("Shape", targets_TB)
    num_steps, batch = (op("Gather", sizes_2, constant([axis], np.int64)) for axis in (0, 1))
    row = op("Concat", constant([1], np.int64), batch, axis=0)
    first_1B = op("Expand", constant(whole.eos_id, np.int64), row)
    read_TB = op("Slice", op("Concat", first_1B, targets_TB, axis=0), constant([0], np.int64), constant([-1], np.int64))
    starts = []
    for tensor in state:
        sizes = [constant([size], np.int64) for size in tensor.shape[1:]]
        shape = op("Concat", batch, *sizes, axis=0) if sizes else batch
        starts.append(op("Expand", constant(tensor.start, np.int64 if tensor.type == INT64 else np.float32), shape))
    with graph.body() as nodes:
        log_probs, after = whole.step("read", [f"{tensor.name}_before" for tensor in state])
        chosen = op("GatherElements", log_probs, op("Unsqueeze", "target", constant([1], np.int64)), axis=1)
        nats = op("Neg", op("Squeeze", chosen, constant([1], np.int64)))
        after = [op("Identity", name) for name in after]
        inputs: list[Any] = [(f"{tensor.name}_before", tensor.type, tensor.shape) for tensor in state]
        inputs += [("read", INT64, ["batch"]), ("target", INT64, ["batch"])]
        outputs: list[Any] = [(name, tensor.type, tensor.shape) for name, tensor in zip(after, state, strict=True)]
        body = helper.make_graph(
            nodes, "step", [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(*each) for each in (*outputs, (nats, FLOAT, ["batch"]))],
        )  # fmt: skip
    scanned = op("Scan", *starts, read_TB, targets_TB, outputs=len(state) + 1, body=body, num_scan_inputs=2)
    nats_TB = scanned[-1] if state else scanned
    places = op("Range", constant(0, np.int64), op("Squeeze", num_steps), constant(1, np.int64))
    is_read = op("Less", op("Unsqueeze", places, constant([0], np.int64)), op("Unsqueeze", "lengths", constant([1], np.int64)))
    token_nats = op("Where", is_read, op("Transpose", nats_TB, perm=[1, 0]), constant(0, np.float32))
    graph.nodes.append(helper.make_node("Identity", [token_nats], ["token_nats"]))
    graph.nodes.append(helper.make_node("ReduceSum", ["token_nats", constant([1], np.int64)], ["nats"], keepdims=0))
    given: list[Any] = [("tokens", INT64, ["batch", "length"]), ("lengths", INT64, ["batch"])]
    results: list[Any] = [("nats", FLOAT, ["batch"]), ("token_nats", FLOAT, ["batch", "length"])]
    return _finished(
        graph, "sequence", [helper.make_tensor_value_info(*each) for each in given],
        [helper.make_tensor_value_info(*each) for each in results],
    )  # fmt: skip


def _finished(graph: Graph, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    made = helper.make_graph(graph.main, name, [*inputs], [*outputs], initializer=[*graph.initializers.values()])
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="lmtrain"
    )  # fmt: skip


def state_of(made: Plain) -> list[StateTensor]:
    """What the step graph carries."""
    return Whole(Graph(), made, False).state()
