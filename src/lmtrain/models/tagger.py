"""Window taggers: a token's class from the token and its neighbours.

    x = [e(w_{t-c}); ...; e(w_t); ...; e(w_{t+c})]     the vectors of a window, side by side (Collobert et al. 2011)
    h = f(W x + b)                                     hidden layers, or none
    s = U h + d                                        a score for each class

`WindowTagger` is this network. `IndicatorTagger` is logistic regression: every word of the window (its shape, its affixes) in
its place is an indicator, whose weights are added up. Both learn by one of three objectives:

    softmax     over all tags
    logistic    a yes or no for each class of entities: is the centre of the window a location?
    max_margin  the score of a window of a class above that of a corrupted window, by a margin of 1

    legend   N windows · W words of a window · F features of a word (itself, its shape, its affixes) · C classes · D inputs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lmtrain.models.dropout import dropout
from lmtrain.ops.activations import ACTIVATIONS, GATED, LEARNT
from lmtrain.ops.objectives import affine, logistic_loss, max_margin_loss, softmax_loss, window_vectors


@dataclass(frozen=True)
class Windows:
    """A batch of windows.

    features_NWF   int64: the numbers of each word's features
    targets_N      int64: the tag (softmax), or the class of entities, -1 for none (logistic)
    classes_N      max_margin: the class of each window; `corrupted_NWF` are the windows that are to score less for it
    """

    features_NWF: Tensor
    targets_N: Tensor
    epoch: int
    index: int
    corrupted_NWF: Tensor | None = None

    @property
    def num_items(self) -> int:
        return len(self.targets_N)

    def tensors(self) -> dict[str, Tensor]:
        corrupted = {} if self.corrupted_NWF is None else {"corrupted_NWF": self.corrupted_NWF}
        return {"features_NWF": self.features_NWF, "targets_N": self.targets_N} | corrupted

    def to(self, device: torch.device) -> Windows:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)


class TaggerNetwork(nn.Module):
    """What both taggers share: the objective, and the thresholds at which a class of entities is assigned.

    num_outputs   tags (softmax), or classes of entities (logistic, max_margin)
    thresholds    of the classes; max-margin scores have no natural one, so it is chosen on validation and saved
    """

    thresholds_C: Tensor

    def __init__(self, num_outputs: int, objective: str) -> None:
        super().__init__()
        self.num_outputs, self.objective = num_outputs, objective
        self.register_buffer("thresholds_C", torch.zeros(num_outputs))

    def scores(self, features_NWF: Tensor, generator: Generator | None = None) -> Tensor:
        """A score [N, C] for each class. Training with dropout takes a generator."""
        raise NotImplementedError

    def loss(self, batch: Windows, generator: Generator) -> tuple[Tensor, Tensor]:
        """The loss summed over the windows, and no penalty."""
        scores_NC = self.scores(batch.features_NWF, generator)
        none = scores_NC.new_zeros(())
        if self.objective == "softmax":
            return softmax_loss(scores_NC, batch.targets_N), none
        if self.objective == "logistic":
            return logistic_loss(
                scores_NC, batch.targets_N[:, None] == torch.arange(self.num_outputs, device=scores_NC.device)
            ), none
        assert batch.corrupted_NWF is not None, "max_margin learns from pairs of windows"
        corrupted_NC = self.scores(batch.corrupted_NWF, generator)
        of_class = batch.targets_N[:, None]
        return max_margin_loss(scores_NC.gather(1, of_class)[:, 0], corrupted_NC.gather(1, of_class)[:, 0]), none

    @torch.no_grad()
    def start_at(self, shares: Sequence[float]) -> None:
        """The output biases at log(p / (1 - p)) (logistic) or log p (softmax) of the shares p of the classes in training."""
        for bias, share in zip(self.bias_C, shares, strict=True):
            p = min(max(share, 1e-6), 1 - 1e-6)
            bias.fill_({"softmax": math.log(p), "logistic": math.log(p / (1 - p))}.get(self.objective, 0.0))

    bias_C: nn.Parameter


class WindowTagger(TaggerNetwork):
    """The network above.

    sizes         how many words, shapes and affixes of each kind there are: [words, F - 1 others]
    embed_sizes   the size of the vectors of each of them
    """

    def __init__(
        self,
        num_outputs: int,
        *,
        sizes: Sequence[int],
        embed_sizes: Sequence[int],
        context: int,
        hidden_sizes: Sequence[int],
        activation: str = "tanh",
        objective: str = "softmax",
        dropout: float = 0.0,
        init_range: float = 0.1,
    ) -> None:
        super().__init__(num_outputs, objective)
        self.activation, self.dropout, self.context = activation, dropout, context
        self.tables = nn.ParameterList(
            torch.empty(size, embed_size).uniform_(-init_range, init_range)
            for size, embed_size in zip(sizes, embed_sizes, strict=True)
        )
        size = (2 * context + 1) * sum(embed_sizes)
        self.weights, self.biases, self.slopes = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for hidden_size in hidden_sizes:
            units = hidden_size * (2 if activation in GATED else 1)
            self.weights.append(nn.init.xavier_uniform_(torch.empty(units, size)))
            self.biases.append(torch.zeros(units))
            if activation in LEARNT:
                self.slopes.append(torch.tensor(LEARNT[activation]))
            size = hidden_size
        self.weight_CD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_outputs, size)))
        self.bias_C = nn.Parameter(torch.zeros(num_outputs))

    def scores(self, features_NWF: Tensor, generator: Generator | None = None) -> Tensor:
        parts = [window_vectors(table, features_NWF[..., number]) for number, table in enumerate(self.tables)]
        x_ND = self._drop(torch.cat(parts, dim=1), generator)
        function = ACTIVATIONS[self.activation]
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x_ND = affine(x_ND, weight, bias)
            x_ND = self._drop(function(x_ND, self.slopes[number]) if len(self.slopes) else function(x_ND), generator)
        return affine(x_ND, self.weight_CD, self.bias_C)

    def _drop(self, x_ND: Tensor, generator: Generator | None) -> Tensor:
        if not self.training or not self.dropout:
            return x_ND
        assert generator is not None, "training with dropout takes a generator"
        return dropout(x_ND, self.dropout, generator)


class IndicatorTagger(TaggerNetwork):
    """Logistic regression: scores are sums of the weights of the features of every word in its place."""

    def __init__(self, num_outputs: int, *, sizes: Sequence[int], context: int, objective: str = "softmax") -> None:
        super().__init__(num_outputs, objective)
        num_places = 2 * context + 1
        starts_F = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        places_W = torch.arange(num_places) * sum(sizes)
        self.context = context
        self.register_buffer("offsets_WF", places_W[:, None] + starts_F, persistent=False)
        self.weight_IC = nn.Parameter(torch.zeros(num_places * sum(sizes), num_outputs))
        self.bias_C = nn.Parameter(torch.zeros(num_outputs))

    offsets_WF: Tensor

    def scores(self, features_NWF: Tensor, generator: Generator | None = None) -> Tensor:
        indicators_NI = (features_NWF + self.offsets_WF).flatten(1)
        return window_vectors(self.weight_IC, indicators_NI).view(len(indicators_NI), -1, self.num_outputs).sum(1) + self.bias_C
