"""The fixed-window neural language model (Bengio, Ducharme, Vincent and Jauvin 2003), also in its modern form.

    x_t = [e(w_{t-C+1}); ...; e(w_t)]        the embeddings of the last C tokens, side by side
    h   = f(H x_t + d)                       one or more hidden layers, optionally residual and layer-normalised
    logits = U h (+ W x_t) + b               W: direct connections, written here as features [h; x_t]

Grown up (Sun and Iyyer 2021): many residual layers with layer normalisation and gated non-linearities, a longer window,
and `num_averages` learnt weighted averages of the `average_span` tokens before the window, appended to x_t.

The state is the last tokens before the chunk, so a chunk is scored as if the whole text had been given at once. Before a
text (and, under a state policy, before the line or document) the context is padded with `<eos>`.

    legend   T steps · B streams · C context · E embedding · H hidden · A averages · S span of the averages
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn

from lmtrain.models.base import NeuralLanguageModel, State, keep_mask
from lmtrain.ops.activations import ACTIVATIONS, GATED, LEARNT
from lmtrain.ops.linear import Linear
from lmtrain.ops.transforms import multiply


class WindowLayer(nn.Module):
    """x -> f(W x + b), then layer normalisation, then (where the sizes agree) the input added."""

    def __init__(self, input_size: int, hidden_size: int, *, activation: str, layer_norm: bool, residual: bool) -> None:
        super().__init__()
        self.linear = Linear(input_size, hidden_size * (2 if activation in GATED else 1))
        self.norm = nn.LayerNorm(hidden_size) if layer_norm else None
        self.residual = residual and input_size == hidden_size
        self.activation = activation
        start = LEARNT.get(activation)
        self.slope = nn.Parameter(torch.tensor(start)) if start is not None else None

    def forward(self, x_TBD: Tensor) -> Tensor:
        function = ACTIVATIONS[self.activation]
        hidden_TBH = self.linear(x_TBD)
        hidden_TBH = function(hidden_TBH) if self.slope is None else function(hidden_TBH, self.slope)
        if self.norm is not None:
            hidden_TBH = self.norm(hidden_TBH)
        return hidden_TBH + x_TBD if self.residual else hidden_TBH

    def initialise(self, how: str, half_width: float) -> None:
        """Draws the weights: `xavier` (also for `identity`), `uniform` (+-half_width) or `fan` (+-1/sqrt(inputs))."""
        bound = {"uniform": half_width, "fan": 1 / math.sqrt(self.linear.in_features)}.get(how)
        weight, bias = self.linear.weight, self.linear.bias
        nn.init.xavier_uniform_(weight) if bound is None else nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(bias) if bound is None else nn.init.uniform_(bias, -bound, bound)


class WindowLanguageModel(NeuralLanguageModel):
    """Embeddings of the last `context` tokens, hidden layers, head.

    State: the last context + average_span - 1 token ids, then the id before them, int64 [B, n].

    direct        features are [last hidden layer; embeddings of the window], so the output layer sees both
    num_averages  A learnt averages of the `average_span` tokens before the window
    shared        what `NeuralLanguageModel` takes
    """

    def __init__(
        self,
        *,
        context: int,
        hidden_size: int,
        num_layers: int,
        activation: str,
        layer_norm: bool = False,
        residual: bool = False,
        direct: bool = False,
        num_averages: int = 0,
        average_span: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.context, self.direct = context, direct
        self.average_span = average_span if num_averages else 0
        self.average_weights_AS = (
            nn.Parameter(torch.full((num_averages, average_span), 1 / average_span)) if num_averages else None
        )
        first = (context + num_averages) * self.embedding.embedding_dim
        self.layers = nn.ModuleList(
            WindowLayer(
                hidden_size if number else first, hidden_size, activation=activation, layer_norm=layer_norm,
                residual=residual,
            )
            for number in range(num_layers)
        )  # fmt: skip

    def initialise(self, how: str, half_width: float) -> None:
        for layer in self.layers:
            layer.initialise(how, half_width)  # type: ignore[operator]

    def initial_state(self, batch_size: int) -> State:
        device = self.embedding.weight.device
        return (torch.full((batch_size, self.context + self.average_span), self.eos_id, device=device),)

    def state_names(self) -> tuple[str, ...]:
        return ("tokens",)

    def activations(
        self, tokens_TB: Tensor, state: State, generator: Generator | None = None, *, carry_after: int | None = None
    ) -> tuple[Tensor, State]:
        history_NB = torch.cat([state[0].T, tokens_TB])  # N = C + S + T; the first row is only the token before the rest
        embedded_NBE = self._embed(history_NB[1:], generator)
        keep_NB = keep_mask(self.state_policy, self.eos_id, history_NB[1:], history_NB[0])
        windows_TBCE, averages_TBAE = self._plain(embedded_NBE) if keep_NB is None else self._forgetful(embedded_NBE, keep_NB)
        inputs_TBD = windows_TBCE.flatten(2)
        x_TBD = inputs_TBD if averages_TBAE is None else torch.cat([inputs_TBD, averages_TBAE.flatten(2)], dim=-1)
        for number, layer in enumerate(self.layers):
            if number:
                x_TBD = self._drop(x_TBD, self.hidden_dropout, generator)
            x_TBD = layer(x_TBD)
        if self.direct:
            x_TBD = torch.cat([x_TBD, inputs_TBD], dim=-1)
        start = len(tokens_TB) if carry_after is None else carry_after
        return x_TBD, (history_NB[start : start + state[0].shape[1]].T.contiguous(),)

    def _plain(self, embedded_NBE: Tensor) -> tuple[Tensor, Tensor | None]:
        """The windows [T, B, C, E] and the averages of what lies before them, where nothing is ever forgotten."""
        windows_TBCE = embedded_NBE[self.average_span :].unfold(0, self.context, 1).movedim(-1, 2)
        if self.average_weights_AS is None:
            return windows_TBCE, None
        # One product with a band matrix, instead of a copy of every token for each of the S steps that average over it.
        T, (A, S) = len(windows_TBCE), self.average_weights_AS.shape
        N = S + T - 1
        band_ATN = F.pad(self.average_weights_AS, (0, T)).repeat(1, T)[:, : T * N].view(A, T, N)
        return windows_TBCE, multiply(partial(torch.einsum, "atn,nbe->tbae"), band_ATN, embedded_NBE[:N])

    def _forgetful(self, embedded_NBE: Tensor, keep_NB: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same with the embedding of `<eos>` for what a step has forgotten."""
        size = self.average_span + self.context
        # A token is forgotten where a reset stands behind it in the window: count the resets from the right.
        resets_TBC = (1 - keep_NB).unfold(0, size, 1)
        later_TBC = resets_TBC.flip(-1).cumsum(-1).flip(-1) - resets_TBC
        eos_E = self.embedding(torch.full((), self.eos_id, device=keep_NB.device))
        all_TBCE = torch.where((later_TBC > 0)[..., None], eos_E, embedded_NBE.unfold(0, size, 1).movedim(-1, 2))
        before_TBSE, windows_TBCE = all_TBCE[:, :, : self.average_span], all_TBCE[:, :, self.average_span :]
        if self.average_weights_AS is None:
            return windows_TBCE, None
        return windows_TBCE, multiply(partial(torch.einsum, "as,tbse->tbae"), self.average_weights_AS, before_TBSE)
