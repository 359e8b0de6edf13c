"""`torch.nn.LSTM`, `GRU` and `RNN` on this package's recurrences: change the name of the class and nothing else. And the loss
of an output layer, `linear_cross_entropy`, which is described there.

>>> import lmtrain
>>> lstm = lmtrain.nn.LSTM(10, 20, num_layers=2)  # was torch.nn.LSTM(10, 20, num_layers=2)
>>> outputs, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
>>> outputs.shape, h_n.shape
(torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
>>> torch.nn.LSTM(10, 20, num_layers=2).load_state_dict(lstm.state_dict())
<All keys matched successfully>

Each is a subclass of torch's class of its name. Constructor, parameters, the weights drawn for a seed, `state_dict` and
the dropout between layers are torch's own; what runs is ours. What torch lacks comes as keywords:

    weight_drop  probability with which an entry of the recurrent weights is dropped, drawn per call (Merity et al. 2017)
    zoneout      probability with which a unit keeps its previous state (Krueger et al. 2017)
    layer_norm   normalises the input product and, within the recurrence, the recurrent one (Ba et al. 2016); the gains
                 are the parameters `norm_ih_l0`, `norm_hh_l0`, ...
    backend      who computes the recurrence, see `lmtrain.ops.backends`; `reference` is plain PyTorch, slow, and the one
                 for forward-mode derivatives; `auto` takes it while PyTorch traces or counts operations

Dropout and weight_drop act in training alone; zoneout in evaluation takes expectations. All three draw from torch's own
generator of the device, which `torch.manual_seed` seeds. `RNN` also takes nonlinearity='sigmoid' and 'identity'.

Computes in float32, float64 and bfloat16. Autocast and `torch.compile` work as with torch's classes: under autocast to
bfloat16 the outputs have the types that torch's (2.13) have on the CPU, and compiled code calls the module as it is.
proj_size and float16 raise a ValueError.

`torch.jit.trace` and the ONNX exporter that traces record torch's own class, for any number of steps; with one of the keywords
above, the reference, for the number of steps that they see. `torch.jit.script` and `quantize_dynamic` know torch's classes
alone: give one of these the `state_dict`.

A packed sequence is read in few segments of steps (see `lmtrain.ops.packed`). How they are cut moves results by rounding alone,
except that zoneout in training draws other numbers.

    legend   T steps · B streams · N tokens, of a packed sequence or to be predicted · D size of a layer's input · H hidden ·
             Z gates x H · L layers, each direction counted
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lmtrain.models.dropout import weight_drop, zoneout_weights
from lmtrain.ops import backends
from lmtrain.ops.elman import NONLINEARITIES, elman
from lmtrain.ops.gru import gru
from lmtrain.ops.linear import linear
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy as total_cross_entropy
from lmtrain.ops.linear_cross_entropy import linear_nats
from lmtrain.ops.lstm import lstm
from lmtrain.ops.packed import Segment, State, run_packed, segments
from lmtrain.ops.recurrence import accumulate_dtype
from lmtrain.ops.transforms import follow, is_followed, needs_grad

__all__ = ["GRU", "LSTM", "RNN", "linear_cross_entropy"]

OWN = "lmtrain.nn.linear_cross_entropy"
UNBOUNDED = ("RNN_RELU", "RNN_IDENTITY")

Masks = list[Tensor | None]  # for each of them its zoneout


class _Layers(nn.RNNBase):
    """What the three share: all but the cell. The second parent of each is torch's class of its name."""

    num_states = 1

    def __init__(
        self,
        *args: Any,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.proj_size:
            raise ValueError(self._lacks(f"proj_size={self.proj_size}"))
        for name, p in (("weight_drop", weight_drop), ("zoneout", zoneout)):
            if not isinstance(p, int | float) or isinstance(p, bool):
                raise TypeError(f"{name} should be of type float, got: {type(p).__name__}")
            if not 0 <= p < 1:
                raise ValueError(f"{name} should be a probability of at least 0 and below 1, got {p}")
        if not isinstance(layer_norm, bool):
            raise TypeError(f"layer_norm should be of type bool, got: {type(layer_norm).__name__}")
        if backend not in backends.NAMES:
            raise ValueError(f"Unknown backend '{backend}'. Select from {', '.join(backends.NAMES)}.")
        self.weight_drop, self.zoneout, self.layer_norm, self.backend = weight_drop, zoneout, layer_norm, backend
        for layer, direction in product(range(self.num_layers if layer_norm else 0), self._directions):
            weight_ZH = getattr(self, f"weight_hh_l{layer}{direction}")
            for name in ("norm_ih", "norm_hh"):
                self.register_parameter(f"{name}_l{layer}{direction}", nn.Parameter(weight_ZH.new_ones(len(weight_ZH))))

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Outputs and final states, in the shapes and types in which torch's class of this name gives them."""
        if torch._C._get_tracing_state() is not None and not self._is_more_than_torchs:
            return super().forward(input, hx)
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and importing it would take a second
            return torch.compiler.disable(self._forward)(input, hx)
        return self._forward(input, hx)

    @property
    def _is_more_than_torchs(self) -> bool:
        """Tells whether torch's class computes something else."""
        return bool(
            (self.weight_drop and self.training)
            or self.zoneout
            or self.layer_norm
            or self.mode in ("RNN_SIGMOID", "RNN_IDENTITY")
        )

    @abstractmethod
    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, bias_Z: Tensor | None, gain_Z: Tensor | None,
        zone: Masks,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """One layer's recurrence: outputs [T, B, H], then its final states. `bias_Z` is torch's bias_hh."""

    def held(self, projected_NZ: Tensor) -> Tensor:
        """Projections [Z] with which a step leaves all states but h as they are."""
        return projected_NZ.new_zeros(projected_NZ.shape[1])

    def input_bias(self, bias_ih_Z: Tensor, bias_hh_Z: Tensor) -> Tensor:
        """What is added to the input product."""
        return bias_ih_Z + bias_hh_Z

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("norm_"):
                nn.init.ones_(parameter)

    def flatten_parameters(self) -> None:
        """Does nothing: there is no cuDNN here that wants the weights in one piece."""

    def extra_repr(self) -> str:
        defaults = {"weight_drop": 0, "zoneout": 0, "layer_norm": False, "backend": "auto"}
        own = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        return ", ".join([super().extra_repr(), *(f"{name}={value}" for name, value in own.items())])

    @property
    def _directions(self) -> tuple[str, ...]:
        """How the names of their parameters end."""
        return ("", "_reverse") if self.bidirectional else ("",)

    def _forward(self, input: Any, hx: Any) -> tuple[Any, Any]:
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        self._check_input(input, (2, 3))
        x_TBD = input.transpose(0, 1) if self.batch_first and input.dim() == 3 else input
        states = self._states(hx, x_TBD, x_TBD.shape[1:-1])
        if input.dim() == 2:
            x_TBD, *states = (tensor.unsqueeze(1) for tensor in (x_TBD, *states))
        num_streams = x_TBD.shape[1]
        if num_streams == 0:  # the kernels take no empty batch: one stream of zeros, of which nothing is returned
            x_TBD, *states = (F.pad(tensor, (0, 0, 0, 1)) for tensor in (x_TBD, *states))
        results = self._all_layers(x_TBD, states, None)
        if num_streams == 0:
            results = [tensor[:, :0] for tensor in results]
        if input.dim() == 2:
            results = [tensor.squeeze(1) for tensor in results]
        elif self.batch_first:
            results[0] = results[0].transpose(0, 1)
        return results[0], self._as_given(results[1:])

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        x_ND, batch_sizes_T, order_B, places_B = packed
        self._check_input(x_ND, (2,))
        states = self._states(hx, x_ND, batch_sizes_T[:1].tolist())
        if order_B is not None and hx is not None:
            states = [state_LBH.index_select(1, order_B) for state_LBH in states]
        parts = segments(batch_sizes_T.tolist(), self.hidden_size, joined=self.mode not in UNBOUNDED)
        results = self._all_layers(x_ND, states, parts)
        # Under autocast torch's LSTM gives these the type of hx.
        if self.num_states > 1 and batch_sizes_T[0] != batch_sizes_T[-1]:
            results = [tensor.to(states[0].dtype) for tensor in results]
        outputs_NH, *finals = results
        if places_B is not None:
            finals = [final_LBH.index_select(1, places_B) for final_LBH in finals]
        return PackedSequence(outputs_NH, batch_sizes_T, order_B, places_B), self._as_given(finals)

    def _as_given(self, states: Sequence[Tensor]) -> Any:
        return tuple(states) if self.num_states > 1 else states[0]

    def _all_layers(self, x: Tensor, states: Sequence[Tensor], parts: Sequence[Segment] | None) -> list[Tensor]:
        """The last layer's outputs and the final states [L, B, H] for x [T, B, D], or [N, D] where it has `parts`."""
        finals: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)  # the coins that torch's class throws
            outputs = []
            for direction in self._directions:
                output, *final = self._layer(
                    f"l{layer}{direction}", x, tuple(state_LBH[len(finals)] for state_LBH in states), parts
                )
                outputs.append(output)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return [x, *(torch.stack(of_layers).to(x.dtype) for of_layers in zip(*finals, strict=True))]

    def _layer(self, layer: str, x: Tensor, state: State, parts: Sequence[Segment] | None) -> tuple[Tensor, ...]:
        """One direction of a layer: its outputs and its final states."""
        names = "weight_ih", "weight_hh", "bias_ih", "bias_hh", "norm_ih", "norm_hh"
        weights: list[Any] = [getattr(self, f"{name}_{layer}", None) for name in names]
        weight_ih, weight_hh, bias_ih, bias_hh, norm_ih, norm_hh = weights
        bias = None if bias_ih is None else self.input_bias(bias_ih, bias_hh)
        if norm_ih is None:
            projected = linear(x, weight_ih, bias, backend=self.backend)
        else:
            projected = F.layer_norm(linear(x, weight_ih, backend=self.backend), norm_ih.shape, norm_ih)
            projected = (projected if bias is None else projected + bias).to(_dtypes(weight_ih)[0])
        device = x.device
        generator = _torchs_generator(device) if self.training and (self.weight_drop or self.zoneout) else None
        if generator is not None:
            weight_hh = weight_drop(weight_hh, self.weight_drop, generator)

        def recur(projected_TBZ: Tensor, state: State) -> tuple[Tensor, ...]:
            shape = (*projected_TBZ.shape[:2], self.hidden_size)
            zone: Masks = [
                zoneout_weights(shape, self.zoneout, generator, training=self.training, device=device) if self.zoneout else None
                for _ in state
            ]
            return self.recur(projected_TBZ, state, weight_hh, bias_hh, norm_hh, zone)

        backwards = layer.endswith("_reverse")
        if parts is not None:
            return run_packed(recur, projected, state, parts, self.held(projected), backwards=backwards)
        output_TBH, *after = recur(projected.flip(0) if backwards else projected, state)
        return output_TBH.flip(0) if backwards else output_TBH, *after

    def _check_input(self, input: Any, dimensions: tuple[int, ...]) -> None:
        """Raises what torch raises for an input (of a packed sequence its data) that does not fit, in its words."""
        own, weight = type(self).__name__, self.weight_ih_l0
        if not isinstance(input, Tensor):
            raise TypeError(f"{own}: input should be a tensor, got {type(input).__name__}")
        if input.dim() not in dimensions:
            expected = "D or ".join(map(str, dimensions))
            raise ValueError(f"{own}: Expected input to be {expected}D, got {input.dim()}D tensor instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}")
        if input.shape[1 if self.batch_first and input.dim() == 3 else 0] == 0:
            raise RuntimeError(f"Expected sequence length to be larger than 0 in {own}, got input of size {list(input.shape)}")
        if input.device != weight.device:
            raise RuntimeError(
                f"Input and parameter tensors are not at the same device, found input tensor at {input.device} and "
                f"parameter tensor at {weight.device}"
            )
        dtype, fitting = _dtypes(weight)
        if dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(self._lacks(f"{dtype} (but float32, float64 and bfloat16)"))
        if input.dtype not in fitting:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
            )

    def _states(self, hx: Any, x: Tensor, streams: Sequence[int]) -> list[Tensor]:
        """hx as tensors of their own number, [L, B, H], zeros for None. `streams` is [B], or empty where there is no batch.

        Raises what torch raises where it does not fit.
        """
        own = type(self).__name__
        size = (self.num_layers * len(self._directions), *streams, self.hidden_size)
        if hx is None:
            return [x.new_zeros(size)] * self.num_states
        if self.num_states == 1:
            named = {"hx": hx}
        elif isinstance(hx, (tuple, list)) and len(hx) == self.num_states:
            named = {f"hx[{number}]": state for number, state in enumerate(hx)}
        else:
            raise TypeError(f"{own}: hx should be a pair of tensors, (h_0, c_0), got {_described(hx)}")
        _, fitting = _dtypes(self.weight_ih_l0)
        for name, state in named.items():
            if not isinstance(state, Tensor):
                raise TypeError(f"{own}: {name} should be a tensor, got {_described(state)}")
            if state.dim() != len(size):
                kind = "batched 3-D" if streams else "unbatched 2-D"
                raise RuntimeError(f"For {kind} input, {name} should also be {len(size)}-D but got {state.dim()}-D tensor")
            if state.shape != size:
                raise RuntimeError(f"Expected {name} size {size}, got {list(state.shape)}")
            if state.device != x.device:
                raise RuntimeError(
                    f"Input and hidden tensors are not at the same device, found input tensor at {x.device} and {name} at "
                    f"{state.device}"
                )
            if state.dtype not in fitting:
                raise ValueError(f"{own}: {name} has dtype {state.dtype}, input has {x.dtype}. Convert {name}.to({x.dtype})")
        return list(named.values())

    def _lacks(self, what: str) -> str:
        return f"{type(self).__name__}: lmtrain.nn does not support {what}. Use torch.nn for that."


class LSTM(_Layers, nn.LSTM):
    """`torch.nn.LSTM` (Hochreiter and Schmidhuber 1997), with the keywords weight_drop, zoneout, layer_norm and backend.

    LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, device=None,
        dtype=None)
    """

    num_states = 2

    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, bias_Z: Tensor | None, gain_Z: Tensor | None,
        zone: Masks,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        h0_BH, c0_BH = state
        return lstm(
            projected_TBZ, h0_BH, c0_BH, weight_ZH, zoneout_TBH=zone[0], cell_zoneout_TBH=zone[1],
            norm_gain_Z=gain_Z, backend=self.backend,
        )  # fmt: skip

    def held(self, projected_NZ: Tensor) -> Tensor:
        far = torch.finfo(projected_NZ.dtype).max
        gates = projected_NZ.new_tensor([-far, far, 0, 0])  # input, forget, cell, output
        return gates.repeat_interleave(self.hidden_size)


class GRU(_Layers, nn.GRU):
    """`torch.nn.GRU` (Cho et al. 2014), with the keywords weight_drop, zoneout, layer_norm and backend.

    GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, device=None,
        dtype=None)
    """

    def input_bias(self, bias_ih_Z: Tensor, bias_hh_Z: Tensor) -> Tensor:
        return bias_ih_Z + F.pad(bias_hh_Z[: 2 * self.hidden_size], (0, self.hidden_size))

    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, bias_Z: Tensor | None, gain_Z: Tensor | None,
        zone: Masks,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        # the reset gate multiplies the candidate's bias_hh
        candidate_bias_H = weight_ZH.new_zeros(self.hidden_size) if bias_Z is None else bias_Z[2 * self.hidden_size :]
        states_TBH, h_BH = gru(
            projected_TBZ, state[0], weight_ZH, candidate_bias_H, zoneout_TBH=zone[0], norm_gain_Z=gain_Z,
            backend=self.backend,
        )  # fmt: skip
        return states_TBH.to(h_BH.dtype), h_BH  # under autocast torch's GRU gives the type of hx, its other two do not


class RNN(_Layers, nn.RNN):
    """`torch.nn.RNN` (Elman 1990), with the keywords weight_drop, zoneout, layer_norm and backend.

    RNN(input_size, hidden_size, num_layers=1, nonlinearity='tanh', bias=True, batch_first=False, dropout=0.0,
        bidirectional=False, device=None, dtype=None); nonlinearity is 'tanh', 'relu', 'sigmoid' or 'identity'.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", *args: Any, **kwargs: Any
    ) -> None:
        if nonlinearity not in NONLINEARITIES:
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from {', '.join(NONLINEARITIES)}.")
        super().__init__(input_size, hidden_size, num_layers, "tanh", *args, **kwargs)  # torch's class knows tanh and relu
        self.nonlinearity, self.mode = nonlinearity, f"RNN_{nonlinearity.upper()}"

    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, bias_Z: Tensor | None, gain_Z: Tensor | None,
        zone: Masks,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return elman(
            projected_TBZ, state[0], weight_ZH, nonlinearity=self.nonlinearity, zoneout_TBH=zone[0],
            norm_gain_H=gain_Z, backend=self.backend,
        )  # fmt: skip


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """The cross entropy of an output layer in nats, for which the logits of all tokens are never in memory at once.

    >>> import lmtrain
    >>> hidden, output = torch.randn(35, 20, 200), torch.nn.Linear(200, 10000)
    >>> target = torch.randint(10000, (35, 20))
    >>> loss = lmtrain.nn.linear_cross_entropy(hidden, output.weight, target, linear_bias=output.bias)
    >>> torch.testing.assert_close(loss, F.cross_entropy(output(hidden).flatten(0, 1), target.flatten()))

    input            what goes into the output layer, [..., D]
    linear_weight    its weight, [V, D], which may be that of the embedding
    target           int64, [...]: the class of each
    linear_bias      its bias, [V], or None
    weight           what each class counts, [V], or None for 1; `mean` then divides by what the targets count together
    reduction        `mean` over the targets that count, their `sum`, or `none`, the loss of each
    ignore_index     targets with this value do not count; with `none` their loss is 0
    label_smoothing  what part of each target, from 0 to 1, is spread evenly over all classes
    backend          see `lmtrain.ops.backends`

    The name and the arguments are those of `torch.nn.functional.linear_cross_entropy` (PyTorch 2.13). Targets that are
    probabilities are not among them. The loss is float32 (float64 of float64), also where the input is bfloat16; under autocast
    to bfloat16 the products are. How it works is told in `lmtrain.ops.linear_cross_entropy`.

    With `weight`, with `label_smoothing`, for gradients of `none`, within `torch.func` and in traces PyTorch computes it, with
    the logits of all tokens in memory.

    Raises ValueError for what does not fit; IndexError for a target that is not a class.
    """
    run = _cross_entropy if "torch._dynamo" not in sys.modules else torch.compiler.disable(_cross_entropy)
    of_classes = {"weight": weight, "label_smoothing": label_smoothing}
    return run(input, linear_weight, target, linear_bias, of_classes, reduction, ignore_index, backend)


def _cross_entropy(
    input: Tensor,
    weight_VD: Tensor,
    target: Tensor,
    bias_V: Tensor | None,
    of_classes: dict[str, Any],
    reduction: str,
    ignore_index: int,
    backend: str,
) -> Tensor:
    dtype = _checked(input, weight_VD, target, bias_V, of_classes, reduction, backend)
    features_ND, targets_N = input.reshape(-1, input.shape[-1]), target.reshape(-1)
    counts_N = targets_N != ignore_index
    tensors = input, weight_VD, target, bias_V
    is_plain = is_followed() or torch._C._are_functorch_transforms_active() or follow(*tensors) or input.is_meta
    is_plain = is_plain or of_classes["weight"] is not None or of_classes["label_smoothing"] > 0
    is_plain = is_plain or (reduction == "none" and any(x is not None and needs_grad(x) for x in tensors))
    if not is_plain and reduction != "none" and not counts_N.any():
        features_ND, targets_N, is_plain = features_ND[:1], targets_N[:1], True  # torch's mean of nothing, gradients of zero
    if is_plain:
        wide_dtype = accumulate_dtype(dtype)
        logits_NV = linear(features_ND, weight_VD, bias_V, backend="eager").to(wide_dtype)
        if of_classes["weight"] is not None:
            of_classes = {**of_classes, "weight": of_classes["weight"].to(wide_dtype)}
        losses = F.cross_entropy(logits_NV, targets_N, reduction=reduction, ignore_index=ignore_index, **of_classes)
        return losses.view(target.shape) if reduction == "none" else losses
    if not counts_N.all():
        features_ND, targets_N = features_ND[counts_N], targets_N[counts_N]
    if reduction == "none":
        nats_N = torch.zeros(counts_N.shape, dtype=accumulate_dtype(dtype), device=input.device)
        if len(targets_N):
            nats_N[counts_N] = linear_nats(features_ND, weight_VD, bias_V, targets_N, compute_dtype=dtype)
        return nats_N.view(target.shape)
    total = total_cross_entropy(features_ND, weight_VD, bias_V, targets_N, compute_dtype=dtype, backend=backend)
    return total / len(targets_N) if reduction == "mean" else total


def _checked(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    of_classes: dict[str, Any],
    reduction: str,
    backend: str,
) -> torch.dtype:
    """In which type they are multiplied."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{OWN}: reduction should be 'mean', 'sum' or 'none', got {reduction!r}")
    if backend not in backends.NAMES:
        raise ValueError(f"Unknown backend '{backend}'. Select from {', '.join(backends.NAMES)}.")
    if input.dim() == 0 or linear_weight.dim() != 2 or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            f"{OWN}: for an input [..., D] linear_weight should be [V, D]; input is {list(input.shape)}, linear_weight "
            f"{list(linear_weight.shape)}"
        )
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"{OWN}: target should be {list(input.shape[:-1])}, as input without its last size, got {list(target.shape)}"
        )
    if target.dtype != torch.int64:
        raise ValueError(f"{OWN}: target should be int64, got {target.dtype}")
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        raise ValueError(f"{OWN}: linear_bias should be [{len(linear_weight)}], got {list(linear_bias.shape)}")
    weight, smoothing = of_classes["weight"], of_classes["label_smoothing"]
    if weight is not None and weight.shape != linear_weight.shape[:1]:
        raise ValueError(f"{OWN}: weight should be [{len(linear_weight)}], one of each class, got {list(weight.shape)}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{OWN}: label_smoothing should lie in 0 to 1, got {smoothing}")
    dtype, fitting = _dtypes(linear_weight)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"{OWN} computes in float32, float64 and bfloat16, got {dtype}")
    if input.dtype not in fitting:
        raise ValueError(f"{OWN}: input has dtype {input.dtype}, linear_weight has {linear_weight.dtype}")
    if linear_bias is not None and linear_bias.dtype not in fitting:
        raise ValueError(f"{OWN}: linear_bias has dtype {linear_bias.dtype}, linear_weight has {linear_weight.dtype}")
    return dtype


def _torchs_generator(device: torch.device) -> Generator:
    """The generator of the device that `torch.manual_seed` seeds."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.get_device_module(device).default_generators[device.index]


def _dtypes(weight: Any) -> tuple[torch.dtype, tuple[torch.dtype, ...]]:
    """In which type is computed with a weight, and which types inputs and states may have. Autocast leaves float64 alone."""
    kind = weight.device.type
    if weight.dtype == torch.float64 or not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return weight.dtype, (weight.dtype,)
    return torch.get_autocast_dtype(kind), (torch.float32, torch.bfloat16)


def _described(value: object) -> str:
    return f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
