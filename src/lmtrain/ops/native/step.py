"""One token of each of some texts through a whole recurrent network in one C++ call (`step.h`): text written token by token.

    x = embedding[token];   for each stage   x = cell(W x + b, R h)   or   x = W x + b;   log p = log_softmax(x)

float32 or bfloat16. float32 weights are read where they lie; bfloat16 ones are copied once, when the network is
made: half as much to read at each token, on which alone the speed of a large vocabulary depends. Where the processor multiplies
pairs of bfloat16, the copy is packed as such products read it. Then products are of
bfloat16, sums, biases, cells and logits float32, and states are rounded to bfloat16, as in the recurrences. While a
network is in use, weights must not change: it may see them as they were or as they are.

With int8 weights there is half as much to read again. Every row of a weight has a scale s of its own, the weight is s q
with the whole number q from -127 to 127 that is nearest, and all else is float32: W x = s (q x).

    legend   B texts · E inputs of a stage · H its units · Z gates x H · V vocabulary
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lmtrain.ops.native.build import library
from lmtrain.ops.shapes import Sizes, check_dtype, check_shape
from lmtrain.ops.transforms import lies_here

WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)  # in the order of their numbers in `lmtrain_step`
KINDS = ("linear", "elman tanh", "elman relu", "elman sigmoid", "elman identity", "gru", "lstm")  # the order of Kind in step.h
SMALL = 1 << 18  # weights; below, threads that wait for each other cost more than they save


class Stage(NamedTuple):
    """A recurrent layer, its gates as in `lmtrain.ops`, or a matrix ("linear", without recurrent weight and state)."""

    kind: str
    weight_input_ZE: Tensor
    bias_Z: Tensor | None = None
    weight_recurrent_ZH: Tensor | None = None
    candidate_bias_H: Tensor | None = None  # of a GRU

    @property
    def num_gates(self) -> int:
        return {"gru": 3, "lstm": 4}.get(self.kind, 1)

    @property
    def num_states(self) -> int:
        """How many vectors [H] the stage carries from token to token: h, c."""
        return {"linear": 0, "lstm": 2}.get(self.kind, 1)


class Prepared(NamedTuple):
    """A stage as C++ reads it."""

    kind: str
    inputs: int
    units: int
    num_states: int
    num_weights: int  # from the inputs
    tensors: tuple[Tensor | None, ...]  # those of `_POINTERS` that are no states


class Network:
    """Stages behind an embedding matrix (float32, [V, E]); the last one is linear and makes the logits.

    dtype  of the products: float32 or bfloat16; or int8 for weights that are stored so, and products in float32

    Raises ValueError where stages do not fit together: C++ trusts their sizes.
    """

    def __init__(self, embedding_VE: Tensor, stages: Sequence[Stage], dtype: torch.dtype) -> None:
        if dtype not in WEIGHTS:
            raise ValueError(f"the native step computes in float32, bfloat16 and int8, not in {dtype}.")
        check_dtype("embedding_VE", embedding_VE.dtype, torch.float32)
        inputs = check_shape("embedding_VE", embedding_VE, "V E")["E"]
        if not stages or stages[-1].kind != "linear":
            raise ValueError("the last stage of a network is linear, and makes the logits.")
        for index, stage in enumerate(stages):
            inputs = _check_stage(index, stage, inputs)
        self.embedding_VE = embedding_VE.detach().contiguous()
        self.stages, self.dtype = [_prepared(stage, dtype) for stage in stages], dtype

    def streams(self, states: Sequence[Tensor]) -> Streams:
        """Texts that go on from these states (h, or h and c, [B, H], of every stage that has any), which are copied."""
        return Streams(self, states)


class Streams:
    """B texts that a network reads side by side. Those of one network do not disturb each other."""

    def __init__(self, network: Network, states: Sequence[Tensor]) -> None:
        self._network = network  # keeps the weights alive
        self._states = [state.detach().float().contiguous().clone() for state in states]
        if len(states) != sum(stage.num_states for stage in network.stages):
            raise ValueError(f"{len(states)} states; the network has {sum(stage.num_states for stage in network.stages)}.")
        left, self._sizes = iter(self._states), Sizes()
        self._stages = (_Stage * len(network.stages))(
            *(_laid_out(stage, [next(left) for _ in range(stage.num_states)], self._sizes) for stage in network.stages)
        )
        self._log_probs_BV = torch.empty(0, network.stages[-1].units, dtype=torch.float32, device="cpu")
        weights = sum(stage.num_weights for stage in network.stages)
        self._threads = torch.get_num_threads() if weights >= SMALL else 1
        self._step = library()["lmtrain_step"]
        self._step.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_void_p, ctypes.c_long,
        ]  # fmt: skip
        self._step.restype = None

    def read(self, tokens: Sequence[int], texts: Sequence[int]) -> Tensor:
        """Log-probabilities [n, V] (float32) of what follows each token in the text of that number; the next call overwrites
        them. They do not depend on which other texts are read with it.

        Raises IndexError for a token outside the vocabulary or a text that there is not, ValueError for one named twice.
        """
        embedding_VE, count = self._network.embedding_VE, len(tokens)
        if not count or not 0 <= min(tokens) <= max(tokens) < len(embedding_VE):
            raise IndexError(f"tokens {list(tokens)}; with V={len(embedding_VE)} they lie in 0 to {len(embedding_VE) - 1}.")
        num_texts = self._sizes.get("B", max(texts, default=0) + 1)
        if not 0 <= min(texts) <= max(texts) < num_texts:
            raise IndexError(f"texts {list(texts)}; with B={num_texts} they lie in 0 to {num_texts - 1}.")
        if len(set(texts)) != len(texts) or len(texts) != count:
            raise ValueError(f"{count} tokens for the texts {list(texts)}; expected one token for each, and each text once.")
        if len(self._log_probs_BV) < count:
            self._log_probs_BV = self._log_probs_BV.new_empty(count, self._log_probs_BV.shape[1])
        longs = ctypes.c_long * count
        self._step(
            WEIGHTS.index(self._network.dtype), self._stages, len(self._stages), count, longs(*texts), longs(*tokens),
            embedding_VE.data_ptr(), self._log_probs_BV.data_ptr(), self._threads,
        )  # fmt: skip
        return self._log_probs_BV[:count]

    def forget(self, text: int) -> None:
        """Every state of this text becomes zero."""
        for state in self._states:
            state[text].zero_()


_POINTERS = ("weight_input", "weight_recurrent", "scale_input", "scale_recurrent", "bias", "candidate_bias", "h", "c")


class _Stage(ctypes.Structure):
    """`Stage` of step.h."""

    _fields_ = (
        [(name, ctypes.c_long) for name in ("kind", "inputs", "units")]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
    )  # fmt: skip


def _check_stage(index: int, stage: Stage, inputs: int) -> int:
    """Compares the shapes of a stage with what the one before it gives; returns what it gives itself."""
    gates = stage.num_gates
    if stage.kind not in KINDS:
        raise ValueError(f'stage {index} is "{stage.kind}"; expected {", ".join(KINDS)}.')
    units = check_shape(f"weight_input_ZE of stage {index}", stage.weight_input_ZE, "Z E")["Z"] // gates
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...], bool]] = {
        "weight_input_ZE": (stage.weight_input_ZE, (gates * units, inputs), True),
        "bias_Z": (stage.bias_Z, (gates * units,), stage.bias_Z is not None),
        "weight_recurrent_ZH": (stage.weight_recurrent_ZH, (gates * units, units), stage.kind != "linear"),
        "candidate_bias_H": (stage.candidate_bias_H, (units,), stage.kind == "gru"),
    }
    for name, (tensor, shape, is_needed) in wanted.items():
        given, expected = None if tensor is None else tuple(tensor.shape), shape if is_needed else None
        if given != expected or 0 in shape:
            raise ValueError(f"{name} of stage {index} ({stage.kind}) has shape {given}; expected {expected}.")
        if tensor is not None:
            check_dtype(f"{name} of stage {index}", tensor.dtype, torch.float32, torch.bfloat16, torch.float64)
            if not lies_here(tensor):
                raise ValueError(f"{name} of stage {index} is {tensor.layout} on {tensor.device}; expected rows on a CPU.")
    return units


def _prepared(stage: Stage, dtype: torch.dtype) -> Prepared:
    """The stage with its weights of this type and its biases float32, each in one piece; and the scales of int8 weights."""
    weights: list[Tensor | None] = []
    scales: list[Tensor | None] = []
    packs = bool(library()["lmtrain_step_packs"](WEIGHTS.index(dtype)))
    units, inputs = len(stage.weight_input_ZE) // stage.num_gates, stage.weight_input_ZE.shape[1]
    for weight in (stage.weight_input_ZE, stage.weight_recurrent_ZH):
        weight, scale = None if weight is None else weight.detach(), None
        if weight is not None and dtype is torch.int8:
            weight, scale = _whole_numbers(weight)
        if weight is not None:
            weight = weight.to(dtype).contiguous()
            weight = _packed(weight, stage) if packs else weight
        weights.append(weight)
        scales.append(scale)
    biases = (None if x is None else x.detach().float().contiguous() for x in (stage.bias_Z, stage.candidate_bias_H))
    return Prepared(stage.kind, inputs, units, stage.num_states, stage.weight_input_ZE.numel(), (*weights, *scales, *biases))


LANES, GROUPS = 16, 4  # of a processor that multiplies pairs; step.h


def _packed(weight_ZE: Tensor, stage: Stage) -> Tensor:
    """A weight in bfloat16 as [block of units, pair of inputs, gate, unit, input of the pair], filled up with zeros.

    A block is 16 units; that of a matrix is 64 outputs, as if it had 4 gates. A pair is one number of 32 bits here.
    """
    weight_ZP = pad(weight_ZE, (0, weight_ZE.shape[1] % 2)).view(torch.int32)
    if stage.kind == "linear":
        blocks = pad(weight_ZP, (0, 0, 0, -len(weight_ZP) % (GROUPS * LANES))).unflatten(0, (-1, GROUPS, LANES))
    else:
        gates = weight_ZP.unflatten(0, (stage.num_gates, -1))
        blocks = pad(gates, (0, 0, 0, -gates.shape[1] % LANES)).unflatten(1, (-1, LANES)).transpose(0, 1)
    return blocks.permute(0, 3, 1, 2).contiguous()


def _whole_numbers(weight_ZE: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest whole numbers from -127 to 127, and what each row of them is to be multiplied by.

    A row that holds a number that is none stays without meaning: its scale is no number either.
    """
    weight_ZE = weight_ZE.float()
    scale_Z = weight_ZE.abs().amax(1) / 127
    return (weight_ZE / scale_Z.clamp(min=torch.finfo().tiny)[:, None]).round().nan_to_num(0, 127, -127), scale_Z.contiguous()


def _laid_out(stage: Prepared, states: Sequence[Tensor], sizes: Sizes) -> _Stage:
    """Sizes and addresses of a prepared stage and of its states; `sizes` holds the number of texts."""
    for state in states:
        sizes["H"] = stage.units
        check_shape("the states of the texts", state, "B H", sizes)
        if state.device.type != "cpu":
            raise ValueError(f"the states of the texts are on {state.device}; expected a CPU.")
    tensors = (*stage.tensors, *[*states, None, None][:2])
    return _Stage(KINDS.index(stage.kind), stage.inputs, stage.units, *(None if x is None else x.data_ptr() for x in tensors))
