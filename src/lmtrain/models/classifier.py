"""Classifiers of texts. All read bags of numbers, one after the other, and give a score for each class.

    averaging   a = mean of e(w) over the words     h = f(W a + b), or none     s = U h + d
                NBOW without hidden layers, else a deep averaging network (Iyyer et al. 2015)
    encoder     h_t = cell(e(w_t), h_(t-1))         last, mean or max over t    s = U h + d
    indicator   s = d + sum of the weights of the words and n-grams in the text: logistic regression
    counted     naive Bayes, s_c = log p(c) + sum over the words of log p(w | c), or log p(c) alone: the most frequent class

The first three learn by the softmax of s and its gradient; what is counted needs none. A text without a word is a bag of size
0: its average is 0, and so are its pooled states.

    legend   N texts · M numbers of all texts · V words (or indicators) · E size of a vector · D features · C classes
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from lmtrain.expected import MAX_COUNT
from lmtrain.models.dropout import dropout
from lmtrain.models.recurrent import RecurrentLayer
from lmtrain.models.window import WindowLayer
from lmtrain.ops.bags import average, bags_of, total
from lmtrain.ops.objectives import affine, softmax_loss


@dataclass(frozen=True)
class Texts:
    """A batch of texts.

    ids_M      int64: the numbers of their words (or indicators), text by text
    offsets_N  int64: where each text begins
    targets_N  int64: their classes
    """

    ids_M: Tensor
    offsets_N: Tensor
    targets_N: Tensor
    epoch: int = 0
    index: int = 0

    @property
    def num_items(self) -> int:
        return len(self.targets_N)

    def tensors(self) -> dict[str, Tensor]:
        return {"ids_M": self.ids_M, "offsets_N": self.offsets_N, "targets_N": self.targets_N}

    def to(self, device: torch.device) -> Texts:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)


class ClassifierNetwork(nn.Module):
    """What all classifiers share.

    reads_words   whether the numbers are those of the words in their order; else of the indicators, each once
    """

    reads_words = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def scores(self, ids_M: Tensor, offsets_N: Tensor, generator: Generator | None = None) -> Tensor:
        """A score [N, C] for each class; their softmax are the probabilities. Training with dropout takes a generator."""

    def loss(self, batch: Texts, generator: Generator) -> tuple[Tensor, Tensor]:
        """Total nats of the classes, and no penalty."""
        nats = softmax_loss(self.scores(batch.ids_M, batch.offsets_N, generator), batch.targets_N)
        return nats, nats.new_zeros(())


class FeatureClassifier(ClassifierNetwork):
    """Features of a text, then a linear layer.

    feature_size  D
    """

    def __init__(self, num_classes: int, feature_size: int) -> None:
        super().__init__(num_classes)
        self.weight_CD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, feature_size)))
        self.bias_C = nn.Parameter(torch.zeros(num_classes))

    @abstractmethod
    def features(self, ids_M: Tensor, offsets_N: Tensor, generator: Generator | None = None) -> Tensor:
        """What the linear layer reads, [N, D]."""

    def scores(self, ids_M: Tensor, offsets_N: Tensor, generator: Generator | None = None) -> Tensor:
        return affine(self.features(ids_M, offsets_N, generator), self.weight_CD, self.bias_C)

    def _drop(self, x: Tensor, p: float, generator: Generator | None) -> Tensor:
        if not self.training or not p:
            return x
        assert generator is not None, "training with dropout takes a generator"
        return dropout(x, p, generator)


class AveragingClassifier(FeatureClassifier):
    """The average of word vectors, and hidden layers behind it.

    embedding     the word vectors; `nn.Embedding(sparse=True)` gives them gradients that name only the rows of a batch
    word_dropout  probability that a word is left out of the average; of each text one word stays
    dropout       on the average and on the hidden layers
    """

    def __init__(
        self, num_classes: int, embedding: nn.Embedding, *, hidden_sizes: Sequence[int] = (), activation: str = "relu",
        word_dropout: float = 0.0, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        sizes = [embedding.embedding_dim, *hidden_sizes]
        super().__init__(num_classes, sizes[-1])
        self.embedding, self.word_dropout, self.dropout = embedding, word_dropout, dropout
        self.layers = nn.ModuleList(
            WindowLayer(inputs, units, activation=activation, layer_norm=False, residual=False)
            for inputs, units in pairwise(sizes)
        )
        for layer in self.layers:
            layer.initialise("xavier", 0.0)  # type: ignore[operator]

    def features(self, ids_M: Tensor, offsets_N: Tensor, generator: Generator | None = None) -> Tensor:
        keep_M = None
        if self.training and self.word_dropout:
            assert generator is not None, "training with word_dropout takes a generator"
            keep_M = kept_words(ids_M, offsets_N, self.word_dropout, generator)
        average_NE = average(self.embedding.weight, ids_M, offsets_N, keep_M, sparse=self.embedding.sparse)
        x_ND = self._drop(average_NE, self.dropout, generator)
        for layer in self.layers:
            x_ND = self._drop(layer(x_ND), self.dropout, generator)
        return x_ND


def kept_words(ids_M: Tensor, offsets_N: Tensor, p: float, generator: Generator) -> Tensor:
    """Which words [M] stay (bool) where each is dropped with probability `p`; of each text one always does."""
    draws_M = torch.rand(len(ids_M), generator=generator, device=offsets_N.device)
    texts_M = bags_of(ids_M, offsets_N)
    largest_N = draws_M.new_zeros(len(offsets_N)).scatter_reduce(0, texts_M, draws_M, "amax")
    return (draws_M >= p) | (draws_M == largest_N[texts_M])


class EncoderClassifier(FeatureClassifier):
    """Recurrent layers over the words of a text; their states are pooled.

    Texts stand side by side, the shorter ones filled up behind their ends, where nothing is read from any more.

    layers    from the embedding upwards; their sizes must fit together
    pooling   last, mean or max
    dropout   on vectors, between layers and before the softmax
    """

    def __init__(
        self, num_classes: int, embedding: nn.Embedding, layers: Sequence[RecurrentLayer], *, pooling: str = "max",
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, layers[-1].output_size)
        self.embedding, self.pooling, self.dropout = embedding, pooling, dropout
        self.layers = nn.ModuleList(layers)

    def features(self, ids_M: Tensor, offsets_N: Tensor, generator: Generator | None = None) -> Tensor:
        sizes_N = torch.diff(offsets_N, append=offsets_N.new_full((1,), len(ids_M)))
        steps_T = torch.arange(max(int(sizes_N.max()), 1), device=ids_M.device)
        is_there_TN = steps_T[:, None] < sizes_N
        places_TN = torch.where(is_there_TN, offsets_N + steps_T[:, None], 0)
        ids_TN = ids_M[places_TN] if len(ids_M) else places_TN  # of texts without a word any id will do
        x_TND = self._drop(self.embedding(ids_TN), self.dropout, generator)
        for layer in cast("Sequence[RecurrentLayer]", self.layers):
            zeros = x_TND.new_zeros(len(sizes_N), layer.hidden_size)
            x_TND, _ = layer(x_TND, (zeros,) * layer.num_states, None, generator)
            x_TND = self._drop(x_TND, self.dropout, generator)
        return pool(x_TND, is_there_TN, self.pooling)


def pool(states_TND: Tensor, is_there_TN: Tensor, how: str) -> Tensor:
    """The last, the mean or the largest [N, D] of the states that are there; 0 where there is none."""
    sizes_N1 = is_there_TN.sum(0)[:, None]
    if how == "mean":
        return torch.where(is_there_TN[..., None], states_TND, 0).sum(0) / sizes_N1.clamp(min=1)
    if how == "max":
        pooled_ND = torch.where(is_there_TN[..., None], states_TND, -torch.inf).amax(0)
    else:
        assert how == "last", how
        texts_N = torch.arange(states_TND.shape[1], device=states_TND.device)
        pooled_ND = states_TND[(sizes_N1[:, 0] - 1).clamp(min=0), texts_N]
    return torch.where(sizes_N1 > 0, pooled_ND, 0)


class IndicatorClassifier(ClassifierNetwork):
    """Logistic regression: scores are sums of the weights of what is in the text.

    sparse   gradients name only the rows of a batch
    """

    reads_words = False

    def __init__(self, num_classes: int, num_indicators: int, *, sparse: bool = False) -> None:
        super().__init__(num_classes)
        self.sparse = sparse
        self.weight_VC = nn.Parameter(torch.zeros(num_indicators, num_classes))
        self.bias_C = nn.Parameter(torch.zeros(num_classes))

    def scores(self, ids_M: Tensor, offsets_N: Tensor, generator: Generator | None = None) -> Tensor:
        return total(self.weight_VC, ids_M, offsets_N, sparse=self.sparse) + self.bias_C


class CountedClassifier(ClassifierNetwork):
    """How often each class occurs, and each word in it: naive Bayes (multinomial, with `add_k` added to each count).

    p(c) is the share of the texts, p(w | c) = (count of w in c + k) / (all words of c + k words). Words that training does not
    have say nothing. Without words (`add_k` None) only p(c) is left: the most frequent class.
    """

    counts_VC: Tensor
    texts_C: Tensor
    ranges = MappingProxyType({"counts_VC": (0, MAX_COUNT), "texts_C": (0, MAX_COUNT)})

    def __init__(self, num_classes: int, vocab_size: int, *, add_k: float | None = None) -> None:
        super().__init__(num_classes)
        self.add_k = add_k
        self.register_buffer("texts_C", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("counts_VC", torch.zeros(vocab_size if add_k else 0, num_classes, dtype=torch.int64))

    def count(self, batch: Texts) -> None:
        """Learns from a batch."""
        self.texts_C += torch.bincount(batch.targets_N, minlength=self.num_classes)
        if self.add_k is not None:
            places_M = batch.ids_M * self.num_classes + batch.targets_N[bags_of(batch.ids_M, batch.offsets_N)]
            self.counts_VC += torch.bincount(places_M, minlength=self.counts_VC.numel()).view(self.counts_VC.shape)

    def scores(self, ids_M: Tensor, offsets_N: Tensor, generator: Generator | None = None) -> Tensor:
        prior_C = (self.texts_C.double() / self.texts_C.sum().clamp(min=1)).clamp(min=1e-300).log()
        if self.add_k is None:
            return prior_C.expand(len(offsets_N), -1)
        is_known_V = self.counts_VC.sum(1) > 0
        smoothed_VC = self.counts_VC.double() + self.add_k
        totals_C = (smoothed_VC * is_known_V[:, None]).sum(0).clamp(min=1e-300)
        log_probs_VC = torch.where(is_known_V[:, None], (smoothed_VC / totals_C).log(), 0)
        return total(log_probs_VC, ids_M, offsets_N) + prior_C
