"""Networks as ONNX operations: what one token does to one model, and the nodes in which that is written.

With `quantized`, products of weights are made in 8-bit integers: y = (x_q - z) W_q^T, times the scale of x and that of each row
of W. Activations are quantised as they come (ONNX's DynamicQuantizeLinear), which looks at the whole batch, so a result depends
a little on who else is in it. Weights lie between -64 and 64: some processors overflow beyond, silently.

    legend   B texts · N tokens of history, the newest included · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lmtrain.export.plain import Facts, Plain

MAX_LEVEL = 64  # magnitude of quantised weights: 255 * 64 * 2 fits into the 16 bits in which some processors add pairs
MULTIPLIER = 6364136223846793005  # of the hash: see `models.direct`
INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
Shape = list[str | int]


@dataclass(frozen=True)
class StateTensor:
    """A tensor that is carried: its shape begins with the batch, and `start` fills it before a text."""

    name: str
    type: int
    shape: Shape
    start: float


@dataclass
class Graph:
    """Nodes and initialisers as they are made; every result has a name of its own."""

    nodes: list[Any] = field(default_factory=list)
    main: list[Any] = field(default_factory=list)  # where `nodes` are the body of a loop, what stands before it
    initializers: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.main = self.nodes

    def op(self, kind: str, *inputs: str, outputs: int = 1, at_start: bool = False, **attributes: Any) -> Any:
        """Adds a node; the name of its result, or a list of them."""
        names = [f"{kind.lower()}_{self.count + i}" for i in range(outputs)]
        self.count += outputs
        (self.main if at_start else self.nodes).append(helper.make_node(kind, [*inputs], names, **attributes))
        return names[0] if outputs == 1 else names

    def named(self, name: str, array: NDArray[Any]) -> str:
        """An initialiser of this name, once."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def constant(self, values: Any, dtype: Any) -> str:
        """An initialiser that is found again by its values."""
        array = np.asarray(values, dtype)
        return self.named(
            f"{array.dtype}_{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.ravel().tolist()))}", array
        )

    @contextmanager
    def body(self) -> Iterator[list[Any]]:
        """Within it, nodes go to the body of a loop."""
        self.nodes = []
        try:
            yield self.nodes
        finally:
            self.nodes = self.main


class Part:
    """One model of a mixture, or the only one."""

    def __init__(self, graph: Graph, made: Plain, prefix: str, quantized: bool) -> None:
        self.graph, self.facts, self.weights, self.prefix, self.quantized = graph, made.facts, made.weights, prefix, quantized

    def state(self) -> list[StateTensor]:
        """What is carried from token to token."""
        facts, eos = self.facts, self.facts["eos_id"]
        tensors = []
        if facts["state_policy"] == "document":
            tensors.append(StateTensor(f"{self.prefix}previous", INT64, ["batch"], eos))
        if facts["history"] > 1:
            tensors.append(StateTensor(f"{self.prefix}history", INT64, ["batch", facts["history"] - 1], eos))
        names = "hc"[: self._num_states()]
        for number, size in enumerate(facts["state_sizes"]):
            name = f"{self.prefix}{names[number % len(names)]}{number // len(names)}"
            tensors.append(StateTensor(name, FLOAT, ["batch", size], 0.0))
        return tensors

    def _num_states(self) -> int:
        """States of each layer of recurrent cells."""
        return len(self.facts["state_sizes"]) // len(self.facts["layers"])

    def step(self, token: str, state: Sequence[str]) -> tuple[str, list[str]]:
        """Log-probabilities [B, V] behind `token`, and the next state."""
        op, facts = self.graph.op, self.facts
        left, after = [*state], list[str]()
        eos, forgets = self.graph.constant(facts["eos_id"], np.int64), ""
        if facts["state_policy"] != "carry":
            forgets = op("Equal", token, eos)
        if facts["state_policy"] == "document":
            forgets = op("And", forgets, op("Equal", left.pop(0), eos))
            after.append(op("Identity", token))
        column = op("Unsqueeze", token, self.graph.constant([1], np.int64))
        history = column
        if facts["history"] > 1:
            before = left.pop(0)
            if forgets:
                before = op("Where", op("Unsqueeze", forgets, self.graph.constant([1], np.int64)), eos, before)
            history = op("Concat", before, column, axis=1)
            after.append(self._slice(history, 1, facts["history"]))
        if forgets and left:
            kept = op("Unsqueeze", op("Cast", op("Not", forgets), to=FLOAT), self.graph.constant([1], np.int64))
            left = [op("Mul", tensor, kept) for tensor in left]
        if facts["kind"] == "window":
            x = self._window(history)
        else:
            x, memory = self._recurrent(token, left)
            after += memory
        return self._head(x, history), after

    # ---- layers

    def _window(self, history: str) -> str:
        op, facts = self.graph.op, self.facts
        size, span = self.facts["history"], self.facts["average_span"]
        seen = self._slice(history, size - facts["context"] - span, size)
        embedded = self._embed(seen)
        flat = self.graph.constant([0, -1], np.int64)
        inputs = x = op("Reshape", self._slice(embedded, span, span + facts["context"]), flat)
        if span:
            averages = op("MatMul", self._weight("averages.weight"), self._slice(embedded, 0, span))
            x = op("Concat", x, op("Reshape", averages, flat), axis=1)
        for number, layer in enumerate(facts["layers"]):
            name = f"layers.{number}"
            y = self._activated(self._linear(x, f"{name}.linear.weight", f"{name}.linear.bias"), name)
            if "norm.weight" in layer["weights"]:
                y = op("LayerNormalization", y, self._weight(f"{name}.norm.weight"), self._weight(f"{name}.norm.bias"), axis=-1)
            x = op("Add", y, x) if layer["residual"] else y
        return str(op("Concat", x, inputs, axis=1)) if facts["direct"] else x

    def _activated(self, x: str, layer: str) -> str:
        op, name = self.graph.op, self.facts["activation"]
        if name in ("glu", "swiglu"):
            half = self.weights[f"{layer}.linear.bias"].numel() // 2
            a, b = op("Split", x, self.graph.constant([half, half], np.int64), outputs=2, axis=1)
            return str(op("Mul", a, op("Sigmoid", b)) if name == "glu" else op("Mul", self._swish(a, 1.0), b))
        match name:
            case "hard_tanh":
                return str(op("Clip", x, self.graph.constant(-1, np.float32), self.graph.constant(1, np.float32)))
            case "leaky_relu":
                return str(op("LeakyRelu", x, alpha=0.01))
            case "parametric_relu":
                return str(op("PRelu", x, op("Reshape", self._weight(f"{layer}.slope"), self.graph.constant([1], np.int64))))
            case "silu":
                return self._swish(x, 1.0)
            case "gelu_logistic":
                return self._swish(x, 1.702)
            case "swish":
                return str(op("Mul", x, op("Sigmoid", op("Mul", x, self._weight(f"{layer}.slope")))))
            case "gelu":
                erf = op("Erf", op("Mul", x, self.graph.constant(math.sqrt(0.5), np.float32)))
                half_x = op("Mul", x, self.graph.constant(0.5, np.float32))
                return str(op("Add", half_x, op("Mul", half_x, erf)))
        return self._function(name, x)

    def _swish(self, x: str, beta: float) -> str:
        return str(self.graph.op("Mul", x, self._function("sigmoid", self._times(x, beta))))

    def _function(self, name: str, x: str) -> str:
        return x if name == "identity" else str(self.graph.op({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[name], x))

    def _times(self, x: str, factor: float) -> str:
        return x if factor == 1 else str(self.graph.op("Mul", x, self.graph.constant(factor, np.float32)))

    def _recurrent(self, token: str, memory: Sequence[str]) -> tuple[str, list[str]]:
        op, facts, left = self.graph.op, self.facts, [*memory]
        x, after = self._embed(token), list[str]()
        for number, layer in enumerate(facts["layers"]):
            name, size = f"layers.{number}", layer["hidden_size"]
            old = [left.pop(0) for _ in range(self._num_states())]
            p, q = self._gates(x, old[0], name, layer)
            new = self._cell(p, q, old, size)
            if layer["zoneout"]:
                pairs = zip(new, old, strict=True)
                new = [op("Add", own, self._times(op("Sub", before, own), layer["zoneout"])) for own, before in pairs]
            after += new
            y = self._linear(new[0], f"{name}.projection.weight") if "projection.weight" in layer["weights"] else new[0]
            x = op("Add", y, x) if layer["residual"] else y
        return x, after

    def _gates(self, x: str, h: str, name: str, layer: Facts) -> tuple[str, str]:
        """The input and the recurrent product, normalised where the layer does that, with their biases."""
        op, of = self.graph.op, f"{name}.rnn"
        if "norm_ih.weight" not in layer["weights"]:
            p = self._linear(x, f"{of}.weight_ih_l0", f"{of}.bias_ih_l0")
            return p, self._linear(h, f"{of}.weight_hh_l0", f"{of}.bias_hh_l0")
        size, num_gates = layer["hidden_size"], self.weights[f"{of}.bias_hh_l0"].numel() // layer["hidden_size"]
        p = op("LayerNormalization", self._linear(x, f"{of}.weight_ih_l0"), self._weight(f"{name}.norm_ih.weight"), axis=-1)
        blocks = op("Reshape", self._linear(h, f"{of}.weight_hh_l0"), self.graph.constant([0, num_gates, size], np.int64))
        q = op("LayerNormalization", blocks, self.graph.named(f"ones_{size}", np.ones(size, np.float32)), axis=-1)
        q = op("Mul", op("Reshape", q, self.graph.constant([0, -1], np.int64)), self._weight(f"{name}.norm_hh.weight"))
        return op("Add", p, self._weight(f"{of}.bias_ih_l0")), op("Add", q, self._weight(f"{of}.bias_hh_l0"))

    def _cell(self, p: str, q: str, old: Sequence[str], size: int) -> list[str]:
        op = self.graph.op
        match self.facts["cell"]:
            case "lstm":
                i, f, g, o = op("Split", op("Add", p, q), self.graph.constant([size] * 4, np.int64), outputs=4, axis=1)
                c = op("Add", op("Mul", op("Sigmoid", f), old[1]), op("Mul", op("Sigmoid", i), op("Tanh", g)))
                return [op("Mul", op("Sigmoid", o), op("Tanh", c)), c]
            case "gru":
                thirds = self.graph.constant([size] * 3, np.int64)
                p_r, p_z, p_n = op("Split", p, thirds, outputs=3, axis=1)
                q_r, q_z, q_n = op("Split", q, thirds, outputs=3, axis=1)
                r, z = op("Sigmoid", op("Add", p_r, q_r)), op("Sigmoid", op("Add", p_z, q_z))
                n = op("Tanh", op("Add", p_n, op("Mul", r, q_n)))
                return [op("Add", n, op("Mul", z, op("Sub", old[0], n)))]
            case "elman":
                return [self._function(self.facts["nonlinearity"], op("Add", p, q))]
        raise AssertionError(f"the cell {self.facts['cell']} is in KNOWN_CELLS and not here")

    # ---- the softmax

    def _head(self, x: str, history: str) -> str:
        op, cutoffs = self.graph.op, self.facts["cutoffs"]
        if "projection.weight" in self.weights:
            x = self._linear(x, "projection.weight")
        logits = self._linear(x, "head.weight" if "head.weight" in self.weights else "embedding.weight", "head.bias")
        if self.facts["hashed_order"]:
            logits = op("Add", logits, self._hashed(history))
        log_probs = op("LogSoftmax", logits, axis=1)
        if not cutoffs:
            return str(log_probs)
        sizes = self.graph.constant([cutoffs[0], *[1] * len(cutoffs)], np.int64)
        shortlist, *clusters = op("Split", log_probs, sizes, outputs=1 + len(cutoffs), axis=1)
        parts = [shortlist]
        for number, cluster in enumerate(clusters):
            tail = f"tail.{number}"
            narrow = self._linear(x, f"{tail}.0.weight") if f"{tail}.0.weight" in self.weights else x
            within = op("LogSoftmax", self._linear(narrow, f"{tail}.1.weight", f"{tail}.1.bias"), axis=1)
            parts.append(op("Add", within, cluster))
        return str(op("Concat", *parts, axis=1))

    def _hashed(self, history: str) -> str:
        """What hashed n-grams add to the logits: int64 products wrap around, as the hash wants."""
        op, constant = self.graph.op, self.graph.constant
        table, size, length = self.weights["hashed.weight"], self.facts["vocab_size"], self.facts["history"]
        words, total = self.graph.named("word_ids", np.arange(size)[None]), ""
        bucket = constant([0], np.int64)
        for place in range(length - 1, length - self.facts["hashed_order"], -1):
            token = op("Squeeze", self._slice(history, place, place + 1), constant([1], np.int64))
            bucket = op("Mul", op("Add", op("Add", bucket, token), constant(1, np.int64)), constant(MULTIPLIER, np.int64))
            high = op("BitShift", op("Cast", bucket, to=TensorProto.UINT64), constant(32, np.uint64), direction="RIGHT")
            start = op("Mod", op("Cast", high, to=INT64), constant(2**31, np.int64))
            start = op("Mod", start, constant(len(table) - size + 1, np.int64))
            places = op("Add", op("Unsqueeze", start, constant([1], np.int64)), words)
            part = op("Gather", self._weight("hashed.weight"), places)
            total = op("Add", total, part) if total else part
        return total

    # ---- weights

    def _slice(self, x: str, start: int, end: int) -> str:
        """x[:, start:end]."""
        bounds = (self.graph.constant([number], np.int64) for number in (start, end, 1))
        return str(self.graph.op("Slice", x, *bounds))

    def _weight(self, name: str) -> str:
        return self.graph.named(f"{self.prefix}{name}", self.weights[name].numpy())

    def _embed(self, ids: str) -> str:
        if not self.quantized:
            return str(self.graph.op("Gather", self._weight("embedding.weight"), ids))
        rows, scales = self._quantized("embedding.weight")
        whole = self.graph.op("Cast", self.graph.op("Gather", rows, ids), to=FLOAT)
        scale = self.graph.op("Gather", self.graph.named(f"{scales}_V1", self._scales("embedding.weight")[:, None]), ids)
        return str(self.graph.op("Mul", whole, scale))

    def _linear(self, x: str, name: str, bias: str | None = None) -> str:
        """x W^T (+ bias); x [B, D]."""
        op = self.graph.op
        if not self.quantized:
            return str(op("Gemm", x, self._weight(name), *([] if bias is None else [self._weight(bias)]), transB=1))
        rows, scales = self._quantized(name)
        columns = op("Transpose", rows, perm=[1, 0], at_start=True)
        x_q, x_scale, x_zero = op("DynamicQuantizeLinear", x, outputs=3)
        product = op("Cast", op("MatMulInteger", x_q, columns, x_zero, self.graph.constant(0, np.int8)), to=FLOAT)
        y = op("Mul", product, op("Mul", x_scale, scales))
        return str(y if bias is None else op("Add", y, self._weight(bias)))

    def _quantized(self, name: str) -> tuple[str, str]:
        """The names of a matrix [V, D] as whole numbers, and of the scales [V] of its rows."""
        weight, scales = self.weights[name].numpy(), self._scales(name)
        whole = np.clip(np.rint(weight / scales[:, None]), -MAX_LEVEL, MAX_LEVEL).astype(np.int8)
        return self.graph.named(f"{self.prefix}{name}_q", whole), self.graph.named(f"{self.prefix}{name}_scale", scales)

    def _scales(self, name: str) -> NDArray[np.float32]:
        largest = self.weights[name].abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        scales: NDArray[np.float32] = (largest / MAX_LEVEL).numpy()
        return scales
