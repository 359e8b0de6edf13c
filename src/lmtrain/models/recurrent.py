"""Recurrent language models: embeddings, layers of Elman, GRU or LSTM cells, a head.

    x_t = embedding[token_t]      layer l: h_t = cell(W_l x_t + b_l, h_{t-1}; R_l)      features_t = h_t of the last

The input product W x of a whole chunk is one matrix product, in the first layer over words where there are fewer of them than
tokens; the recurrence itself is `lmtrain.ops`. Weights are laid out
and ordered as in `torch.nn.RNN`, `GRU` and `LSTM` (Elman and LSTM keep one bias, the sum of PyTorch's two).

Regularisers, each an argument, each drawn from the caller's generator: dropout on embedding rows (Gal 2016), between
layers, locked over time (Gal and Ghahramani 2016), DropConnect on the recurrent weight once per chunk (Wan 2013; Merity
2017), zoneout (Krueger 2017).

    legend   T steps in a chunk · B streams · E embedding · H hidden · Z gates x H · D size of a layer's output
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lmtrain.models.base import NeuralLanguageModel, Reader, State, keep_mask
from lmtrain.models.dropout import weight_drop, zoneout_weights
from lmtrain.ops import native
from lmtrain.ops.backends import Call
from lmtrain.ops.elman import NONLINEARITIES, elman
from lmtrain.ops.gru import gru
from lmtrain.ops.linear import Linear, linear
from lmtrain.ops.lookup import lookup
from lmtrain.ops.lstm import lstm
from lmtrain.ops.native.step import Network, Stage
from lmtrain.ops.recurrence import recurrent_term


class RecurrentLayer(nn.Module):
    """One recurrent layer: `(inputs, state) -> (outputs, next state)`; a cell says how many gates and states it has.

    projection_size  size of a linear layer behind the cell; 0 for none
    residual         adds the inputs to the outputs; needs them to be of one size
    layer_norm       normalises the input product and, within the recurrence, the recurrent one (Ba et al. 2016)
    draw             draws the weights as `initialise` does for `xavier`; False leaves them to a caller who draws them himself
    """

    num_gates: int
    num_states: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        projection_size: int = 0,
        residual: bool = False,
        layer_norm: bool = False,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        backend: str = "auto",
        draw: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.output_size = projection_size or hidden_size
        self.residual = residual and input_size == self.output_size
        self.weight_drop, self.zoneout, self.backend = weight_drop, zoneout, backend
        gates_size = self.num_gates * hidden_size
        self.weight_input_ZE = nn.Parameter(torch.empty(gates_size, input_size))
        self.weight_recurrent_ZH = nn.Parameter(torch.empty(gates_size, hidden_size))
        self.bias_Z = nn.Parameter(torch.empty(gates_size))
        self.norm_input = nn.LayerNorm(gates_size, bias=False) if layer_norm else None
        self.norm_gain_Z = nn.Parameter(torch.ones(gates_size)) if layer_norm else None
        self.projection = Linear(hidden_size, projection_size, bias=False) if projection_size else None
        if draw:
            self.initialise("xavier", 0.0)

    def forward(
        self,
        inputs_TBE: Tensor,
        state: State,
        keep_TB: Tensor | None,
        generator: Generator | None,
        carry_after: int | None = None,
    ) -> tuple[Tensor, State]:
        """Outputs [T, B, D] and the state after the first `carry_after` steps (all by default).

        `keep_TB` is 0 where the state before a step is forgotten.
        """
        outputs_TBD, state = self.run(self.project(inputs_TBE), state, keep_TB, generator, carry_after)
        return (outputs_TBD + inputs_TBE if self.residual else outputs_TBD), state

    def project(self, inputs: Tensor) -> Tensor:
        """What inputs (any leading axes) add to the gates before their activations, [..., Z]."""
        if self.norm_input is None:
            return linear(inputs, self.weight_input_ZE, self.bias_Z, backend=self.backend)
        normed: Tensor = self.norm_input(linear(inputs, self.weight_input_ZE, backend=self.backend))
        return normed + self.bias_Z

    def run(
        self,
        projected_TBZ: Tensor,
        state: State,
        keep_TB: Tensor | None,
        generator: Generator | None,
        carry_after: int | None = None,
    ) -> tuple[Tensor, State]:
        """`forward` behind `project`, without the residual."""
        weight_ZH: Tensor = self.weight_recurrent_ZH
        if self.training and self.weight_drop:
            assert generator is not None, "training with weight_drop takes a generator"
            weight_ZH = weight_drop(weight_ZH, self.weight_drop, generator)
        zoneout = self._zoneout_weights(projected_TBZ, generator)
        if carry_after is None or not 0 < carry_after < len(projected_TBZ):  # a slice of all would cost a copy on the way back
            states_TBH, last = self.recur(projected_TBZ, state, weight_ZH, keep_TB, zoneout)
            carried = state if carry_after == 0 else last
        else:

            def run_part(part: slice, state: State) -> tuple[Tensor, State]:
                keep_of_part, zoneout_of_part = None if keep_TB is None else keep_TB[part], [_of(z, part) for z in zoneout]
                return self.recur(projected_TBZ[part], state, weight_ZH, keep_of_part, zoneout_of_part)

            before_TBH, carried = run_part(slice(carry_after), state)
            states_TBH = torch.cat([before_TBH, run_part(slice(carry_after, None), carried)[0]])
        return (states_TBH if self.projection is None else self.projection(states_TBH)), carried

    @abstractmethod
    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, keep_TB: Tensor | None, zoneout: list[Tensor | None]
    ) -> tuple[Tensor, State]:
        """The recurrence alone: hidden states [T, B, H] and the state after the last step."""

    @abstractmethod
    def gates(self, projected_TBZ: Tensor, previous_TBH: Tensor, weight_ZH: Tensor) -> dict[str, tuple[str, Tensor]]:
        """Every gate by name (an Elman layer's units under the empty one): its non-linearity, and its values [T, B, H].

        `previous_TBH` are the states before every step. For whoever wants to look at them; `recur` keeps its own.
        """

    def _recurrent_term(self, previous_TBH: Tensor, weight_ZH: Tensor) -> Tensor:
        return recurrent_term(previous_TBH.flatten(0, 1), weight_ZH, self.norm_gain_Z).unflatten(0, previous_TBH.shape[:2])

    def stages(self) -> list[Stage] | None:
        """The layer as stages of a native step, as it evaluates; None where it does what they do not."""
        if self.residual or self.zoneout or self.norm_input is not None or self.backend not in ("auto", "native"):
            return None
        cell = self.cell_stage()
        projection = [] if self.projection is None else [Stage("linear", self.projection.weight)]
        return None if cell is None else [cell, *projection]

    def cell_stage(self) -> Stage | None:
        """The cell alone, with its weights; None for one that the native step does not know."""
        return None

    def initialise(self, how: str, half_width: float) -> None:
        """Draws the weights: `xavier`, `uniform` (+-half_width), `fan` (+-1/sqrt(H)), `identity` (recurrent; else xavier)."""
        bound = self._bound(how, half_width)
        for weight in (self.weight_input_ZE, self.weight_recurrent_ZH):
            for gate in weight.chunk(self.num_gates):
                nn.init.xavier_uniform_(gate) if bound is None else nn.init.uniform_(gate, -bound, bound)
        if how == "identity":
            nn.init.eye_(self.weight_recurrent_ZH)
        nn.init.zeros_(self.bias_Z) if bound is None else nn.init.uniform_(self.bias_Z, -bound, bound)

    def initialise_last(self, how: str, half_width: float) -> None:
        """Draws what came to be drawn later than the rest: behind all layers, so that all else is drawn as before."""

    def _bound(self, how: str, half_width: float) -> float | None:
        """Of the uniform distribution that weights and biases are drawn from; None where biases are 0."""
        return {"uniform": half_width, "fan": 1 / math.sqrt(self.hidden_size)}.get(how)

    def _zoneout_weights(self, projected_TBZ: Tensor, generator: Generator | None) -> list[Tensor | None]:
        """For every state the weights [T, B, H] of its previous value, or None without zoneout."""
        if not self.zoneout:
            return [None] * self.num_states
        shape = (*projected_TBZ.shape[:2], self.hidden_size)
        return [
            zoneout_weights(shape, self.zoneout, generator, training=self.training, device=projected_TBZ.device)
            for _ in range(self.num_states)
        ]


def _of(zoneout: Tensor | None, part: slice) -> Tensor | None:
    """The weights of the steps in `part`; in evaluation one stands for all steps."""
    return zoneout if zoneout is None or len(zoneout) == 1 else zoneout[part]


class ElmanLayer(RecurrentLayer):
    """h_t = f(W x_t + b + R h_{t-1}) (Elman 1990), f = tanh, relu, sigmoid or identity."""

    num_gates, num_states = 1, 1

    def __init__(self, input_size: int, hidden_size: int, *, nonlinearity: str = "tanh", **rest: object) -> None:
        super().__init__(input_size, hidden_size, **rest)  # type: ignore[arg-type]
        self.nonlinearity = nonlinearity

    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, keep_TB: Tensor | None, zoneout: list[Tensor | None]
    ) -> tuple[Tensor, State]:
        (h0_BH,) = state
        states_TBH, h_BH = elman(
            projected_TBZ, h0_BH, weight_ZH, nonlinearity=self.nonlinearity, keep_TB=keep_TB, zoneout_TBH=zoneout[0],
            norm_gain_H=self.norm_gain_Z, backend=self.backend,
        )  # fmt: skip
        return states_TBH, (h_BH,)

    def gates(self, projected_TBZ: Tensor, previous_TBH: Tensor, weight_ZH: Tensor) -> dict[str, tuple[str, Tensor]]:
        a_TBH = projected_TBZ + self._recurrent_term(previous_TBH, weight_ZH)
        return {"": (self.nonlinearity, NONLINEARITIES[self.nonlinearity](a_TBH))}

    def cell_stage(self) -> Stage:
        return Stage(f"elman {self.nonlinearity}", self.weight_input_ZE, self.bias_Z, self.weight_recurrent_ZH)


class GRULayer(RecurrentLayer):
    """Gated recurrent unit (Cho et al. 2014), in the form of `torch.nn.GRU`."""

    num_gates, num_states = 3, 1

    def __init__(self, input_size: int, hidden_size: int, **rest: object) -> None:
        super().__init__(input_size, hidden_size, **rest)  # type: ignore[arg-type]
        self.candidate_bias_H = nn.Parameter(torch.zeros(hidden_size))  # the reset gate multiplies this one

    def initialise_last(self, how: str, half_width: float) -> None:
        bound = self._bound(how, half_width)
        nn.init.zeros_(self.candidate_bias_H) if bound is None else nn.init.uniform_(self.candidate_bias_H, -bound, bound)

    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, keep_TB: Tensor | None, zoneout: list[Tensor | None]
    ) -> tuple[Tensor, State]:
        (h0_BH,) = state
        states_TBH, h_BH = gru(
            projected_TBZ, h0_BH, weight_ZH, self.candidate_bias_H, keep_TB=keep_TB, zoneout_TBH=zoneout[0],
            norm_gain_Z=self.norm_gain_Z, backend=self.backend,
        )  # fmt: skip
        return states_TBH, (h_BH,)

    def gates(self, projected_TBZ: Tensor, previous_TBH: Tensor, weight_ZH: Tensor) -> dict[str, tuple[str, Tensor]]:
        p_r, p_z, p_n = projected_TBZ.chunk(3, dim=-1)
        q_r, q_z, q_n = self._recurrent_term(previous_TBH, weight_ZH).chunk(3, dim=-1)
        r_TBH, z_TBH = (p_r + q_r).sigmoid(), (p_z + q_z).sigmoid()
        n_TBH = (p_n + r_TBH * (q_n + self.candidate_bias_H)).tanh()
        return {"reset": ("sigmoid", r_TBH), "update": ("sigmoid", z_TBH), "candidate": ("tanh", n_TBH)}

    def cell_stage(self) -> Stage:
        return Stage("gru", self.weight_input_ZE, self.bias_Z, self.weight_recurrent_ZH, self.candidate_bias_H)


class LSTMLayer(RecurrentLayer):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000)."""

    num_gates, num_states = 4, 2

    def __init__(self, input_size: int, hidden_size: int, *, forget_bias: float = 1.0, **rest: object) -> None:
        self.forget_bias = forget_bias  # before the weights are drawn
        super().__init__(input_size, hidden_size, **rest)  # type: ignore[arg-type]

    def initialise(self, how: str, half_width: float) -> None:
        super().initialise(how, half_width)
        with torch.no_grad():
            self.bias_Z[self.hidden_size : 2 * self.hidden_size] += self.forget_bias

    def recur(
        self, projected_TBZ: Tensor, state: State, weight_ZH: Tensor, keep_TB: Tensor | None, zoneout: list[Tensor | None]
    ) -> tuple[Tensor, State]:
        h0_BH, c0_BH = state
        states_TBH, h_BH, c_BH = lstm(
            projected_TBZ, h0_BH, c0_BH, weight_ZH, keep_TB=keep_TB, zoneout_TBH=zoneout[0], cell_zoneout_TBH=zoneout[1],
            norm_gain_Z=self.norm_gain_Z, backend=self.backend,
        )  # fmt: skip
        return states_TBH, (h_BH, c_BH)

    def gates(self, projected_TBZ: Tensor, previous_TBH: Tensor, weight_ZH: Tensor) -> dict[str, tuple[str, Tensor]]:
        a_TBZ = projected_TBZ + self._recurrent_term(previous_TBH, weight_ZH)
        i_TBH, f_TBH, g_TBH, o_TBH = a_TBZ.chunk(4, dim=-1)
        return {
            "input": ("sigmoid", i_TBH.sigmoid()),
            "forget": ("sigmoid", f_TBH.sigmoid()),
            "candidate": ("tanh", g_TBH.tanh()),
            "output": ("sigmoid", o_TBH.sigmoid()),
        }

    def cell_stage(self) -> Stage:
        return Stage("lstm", self.weight_input_ZE, self.bias_Z, self.weight_recurrent_ZH)


CELLS: dict[str, type[RecurrentLayer]] = {"elman": ElmanLayer, "gru": GRULayer, "lstm": LSTMLayer}
"""The layers by the names that `model.cell` takes."""


class RecurrentLanguageModel(NeuralLanguageModel):
    """Embedding, recurrent layers (from the embedding upwards; their sizes must fit together), head.

    State: the last token id [B] (which tells whether an empty line begins), then every layer's states, float32 [B, H].
    `shared`: what `NeuralLanguageModel` takes.
    """

    def __init__(self, *, layers: Sequence[RecurrentLayer], **shared: Any) -> None:
        super().__init__(**shared)
        self.layers = nn.ModuleList(layers)

    def initialise(self, how: str, half_width: float) -> None:
        for layer in self._iter_layers():
            layer.initialise(how, half_width)
        for layer in self._iter_layers():
            layer.initialise_last(how, half_width)

    def initial_state(self, batch_size: int) -> State:
        device = self.embedding.weight.device
        previous_B = torch.full((batch_size,), self.eos_id, device=device)
        zeros = [
            torch.zeros(batch_size, layer.hidden_size, device=device, dtype=self.embedding.weight.dtype)
            for layer in self._iter_layers()
            for _ in range(layer.num_states)
        ]
        return (previous_B, *zeros)

    def state_names(self) -> tuple[str, ...]:
        parts = [f"layers.{i}.{part}" for i, layer in enumerate(self._iter_layers()) for part in "hc"[: layer.num_states]]
        return ("previous", *parts)

    def activations(
        self, tokens_TB: Tensor, state: State, generator: Generator | None = None, *, carry_after: int | None = None
    ) -> tuple[Tensor, State]:
        previous_B, *layer_states = state
        keep_TB = keep_mask(self.state_policy, self.eos_id, tokens_TB, previous_B)
        first, *others = self._iter_layers()
        own = tuple(layer_states[: first.num_states])
        if self._projects_words(tokens_TB):
            projected_TBZ = lookup(first.project(self.embedding.weight), tokens_TB)
            x_TBD, own = first.run(projected_TBZ, own, keep_TB, generator, carry_after)
        else:
            x_TBD, own = first(self._embed(tokens_TB, generator), own, keep_TB, generator, carry_after)
        next_states = [*own]
        for layer in others:
            x_TBD = self._drop(x_TBD, self.hidden_dropout, generator)
            own = tuple(layer_states[len(next_states) : len(next_states) + layer.num_states])
            x_TBD, own = layer(x_TBD, own, keep_TB, generator, carry_after)
            next_states.extend(own)
        last_B = previous_B if carry_after == 0 else tokens_TB[(carry_after or len(tokens_TB)) - 1]
        return x_TBD, (last_B, *next_states)

    def _projects_words(self, tokens_TB: Tensor) -> bool:
        """Whether the first layer's input product is made once for every word of a small vocabulary, not for every token."""
        first = next(self._iter_layers())
        is_noisy = self.training and bool(self.input_dropout or self.embedding_dropout)
        is_small = 2 * self.vocab_size <= tokens_TB.numel() and self.vocab_size <= 2 * self.embedding.embedding_dim
        return is_small and not is_noisy and not first.residual and not self.embedding.sparse

    def reader_factory(self, device: torch.device | str = "cpu", *, int8: bool = False) -> Callable[[State], Reader]:
        """One C++ call for a token of all texts where the native backend can: in float32 or, within an autocast, bfloat16;
        or with int8 weights."""
        network = self._network(int8)
        return (
            super().reader_factory(device, int8=int8) if network is None else lambda state: self._native_reader(network, state)
        )

    def _network(self, int8: bool = False) -> Network | None:
        """The whole model for the native step, or None where a part of it is not made for that."""
        weight_VE = self.embedding.weight
        kind = weight_VE.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VE.dtype
        parts = [*(layer.stages() for layer in self._iter_layers()), self.head.stages()]
        stages = [stage for part in parts if part is not None for stage in part]
        if None in parts or weight_VE.dtype != torch.float32 or native.why_not(Call("step", kind, dtype, {})):
            return None
        return Network(weight_VE, stages, torch.int8 if int8 else dtype)

    def _native_reader(self, network: Network, state: State) -> Reader:
        previous_B, *layer_states = state
        streams, previous = network.streams(layer_states), previous_B.tolist()

        def read(tokens: Sequence[int], texts: Sequence[int]) -> Tensor:
            for token, text in zip(tokens, texts, strict=True):
                if token == self.eos_id:  # elsewhere no policy forgets
                    before = torch.tensor([previous[text]])
                    keep_TB = keep_mask(self.state_policy, self.eos_id, torch.tensor([[token]]), before)
                    if keep_TB is not None and not keep_TB.all():
                        streams.forget(text)
                previous[text] = token
            return streams.read(tokens, texts)

        return read

    def _iter_layers(self) -> Iterator[RecurrentLayer]:
        return iter(self.layers)  # type: ignore[arg-type]
