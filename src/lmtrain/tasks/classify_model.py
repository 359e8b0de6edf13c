"""A classifier with all that it needs to read texts: from texts to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import lmtrain.config as config
from lmtrain.data.indicators import Indicators, bags, pick
from lmtrain.models.base import evaluating
from lmtrain.models.classifier import (
    AveragingClassifier,
    ClassifierNetwork,
    CountedClassifier,
    EncoderClassifier,
    IndicatorClassifier,
)
from lmtrain.models.recurrent import CELLS
from lmtrain.progress import watched

TEXTS = 512  # that are scored at once


@dataclass(frozen=True)
class Encoded:
    """Texts as a classifier reads them: the numbers [M] of all texts, and the place where each begins, [N]."""

    numbers_M: NDArray[np.int64]
    offsets_N: NDArray[np.int64]

    def pick(self, which: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns numbers and offsets of some of the texts."""
        numbers, offsets = pick(self.numbers_M, self.offsets_N, which)
        return torch.from_numpy(numbers), torch.from_numpy(offsets)


@dataclass(frozen=True)
class TextModel:
    """Classifies texts.

    labels   of the classes
    """

    network: ClassifierNetwork
    indicators: Indicators
    labels: tuple[str, ...]
    device: torch.device | str = "cpu"

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Returns the texts as the network reads them."""
        return encode(texts, self.indicators, self.network.reads_words)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns the probability [N, C] of each class."""
        return self.probabilities_of(self.encode(texts))

    def probabilities_of(self, encoded: Encoded) -> NDArray[np.float64]:
        """Returns the same for encoded texts; texts of similar length are computed together."""
        sizes_N = np.diff(np.append(encoded.offsets_N, len(encoded.numbers_M)))
        order_N = np.argsort(sizes_N, kind="stable")
        probabilities_NC = np.empty((len(order_N), len(self.labels)))
        with evaluating(self.network), watched("Classifying", len(order_N), "texts") as advance:
            for start in range(0, len(order_N), TEXTS):
                which = order_N[start : start + TEXTS]
                ids_M, offsets_N = (tensor.to(self.device) for tensor in encoded.pick(which))
                scores_NC = self.network.scores(ids_M, offsets_N)
                probabilities_NC[which] = scores_NC.double().softmax(-1).cpu().numpy()
                advance(len(which))
        return probabilities_NC


def encode(texts: Sequence[str], indicators: Indicators, reads_words: bool) -> Encoded:
    """Returns the words of texts, or else the indicators of what is in them."""
    return Encoded(*bags(map(indicators.words if reads_words else indicators.of, texts)))


def build_classifier(
    settings: config.ModelConfig, indicators: Indicators, num_classes: int, *, seed: int = 0, sparse: bool = False
) -> ClassifierNetwork:
    """Returns a new classifier with freshly drawn weights (from `seed` alone; the global generator stays as it was).

    sparse   gradients of words and indicators name only the rows of a batch
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match settings:
            case config.AveragingConfig():
                return AveragingClassifier(
                    num_classes, _embedding(settings, indicators, sparse), hidden_sizes=settings.hidden_sizes,
                    activation=settings.activation.name, word_dropout=settings.word_dropout, dropout=settings.dropout,
                )  # fmt: skip
            case config.EncoderConfig():
                embedding, cell = _embedding(settings, indicators, sparse), CELLS[settings.cell.name]
                sizes = [settings.embed_size] + [settings.hidden_size] * settings.num_layers
                layers = [cell(size, settings.hidden_size, backend=settings.backend.name) for size in sizes[:-1]]
                return EncoderClassifier(
                    num_classes, embedding, layers, pooling=settings.pooling.name, dropout=settings.dropout
                )
            case config.LogisticConfig():
                return IndicatorClassifier(num_classes, indicators.size, sparse=sparse)
            case config.NaiveBayesConfig():
                return CountedClassifier(num_classes, indicators.tokenizer.vocab_size, add_k=settings.add_k)
            case config.FrequentConfig():
                return CountedClassifier(num_classes, indicators.tokenizer.vocab_size)
    raise AssertionError(f"no classifier for {type(settings).__name__}")


def _embedding(settings: config.AveragingConfig | config.EncoderConfig, indicators: Indicators, sparse: bool) -> nn.Embedding:
    """Returns the table of word vectors; what `model.embeddings` names is put into it when training begins."""
    table_VE = torch.empty(indicators.tokenizer.vocab_size, settings.embed_size)
    nn.init.uniform_(table_VE, -settings.init_range, settings.init_range)
    return nn.Embedding(len(table_VE), settings.embed_size, sparse=sparse, _weight=table_VE)
