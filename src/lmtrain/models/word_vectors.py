"""Networks whose weights are word vectors: skip-gram and CBOW, by negative sampling or an exact softmax, and GloVe.

They are `Trainable` (`lmtrain.training.learner`): `loss(batch, generator)` is the total over the batch's items, with no
penalty. `vectors` is what is used afterwards.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from lmtrain.ops.bags import average
from lmtrain.ops.glove import glove_loss
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy
from lmtrain.ops.negative_sampling import negative_sampling


class _Predictions(Protocol):
    contexts_NC: Tensor
    targets_N: Tensor
    samples_NK: Tensor


class _Pairs(Protocol):
    words_N: Tensor
    contexts_N: Tensor
    counts_N: Tensor
    scale: float


class PredictedVectors(nn.Module):
    """Skip-gram or CBOW, as its batches are. Vectors begin as in word2vec: small at random, and zero as targets.

    Where no noise is drawn, the target is told from all words, by a softmax (Mikolov et al. 2013, the first of their papers).
    """

    def __init__(self, vocab_size: int, size: int, generator: Generator) -> None:
        super().__init__()
        self.input_VE = nn.Parameter(_uniform(generator, vocab_size, size))
        self.output_VE = nn.Parameter(torch.zeros(vocab_size, size))

    def loss(self, batch: _Predictions, generator: Generator) -> tuple[Tensor, Tensor]:
        """Nats of the batch's predictions; there is no penalty."""
        if not batch.samples_NK.shape[1]:
            hidden_NE = average(self.input_VE, *_bags(batch.contexts_NC))
            total = linear_cross_entropy(hidden_NE, self.output_VE, None, batch.targets_N)
            return total, total.new_zeros(())
        total = negative_sampling(self.input_VE, self.output_VE, batch.contexts_NC, batch.targets_N, batch.samples_NK)
        return total, total.new_zeros(())

    @property
    def vectors(self) -> Tensor:
        """The vectors [V, E] of words as contexts."""
        return self.input_VE.detach()


class GloveVectors(nn.Module):
    """GloVe: vectors of words and of contexts, which differ by their start alone, with a bias each.

    x_max, power  of the weight min((x / x_max)^power, 1) of a pair that was seen x times
    """

    def __init__(self, vocab_size: int, size: int, generator: Generator, *, x_max: float = 100.0, power: float = 0.75) -> None:
        super().__init__()
        self.x_max, self.power = x_max, power
        self.word_VE = nn.Parameter(_uniform(generator, vocab_size, size))
        self.context_VE = nn.Parameter(_uniform(generator, vocab_size, size))
        self.word_bias_V = nn.Parameter(torch.zeros(vocab_size))
        self.context_bias_V = nn.Parameter(torch.zeros(vocab_size))

    def loss(self, batch: _Pairs, generator: Generator) -> tuple[Tensor, Tensor]:
        """The weighted squared error of the batch's pairs; there is no penalty.

        The biases stand for counts of the training text. For a text of another length the products are compared with the
        counts as they would be in one of that length; what a pair weighs stays what its own count says.
        """
        word_bias_V = self.word_bias_V - math.log(batch.scale) if batch.scale != 1 else self.word_bias_V
        total = glove_loss(
            self.word_VE, self.context_VE, word_bias_V, self.context_bias_V, batch.words_N, batch.contexts_N,
            batch.counts_N, x_max=self.x_max, power=self.power,
        )  # fmt: skip
        return total, total.new_zeros(())

    @property
    def vectors(self) -> Tensor:
        """The sum [V, E] of both vectors of each word (section 4.2 of the paper)."""
        return (self.word_VE + self.context_VE).detach()


def _bags(contexts_NC: Tensor) -> tuple[Tensor, Tensor]:
    """The contexts of all rows behind each other, and where those of each begin."""
    there_NC = contexts_NC >= 0
    return contexts_NC[there_NC], there_NC.sum(1).cumsum(0) - there_NC.sum(1)


def _uniform(generator: Generator, vocab_size: int, size: int) -> Tensor:
    return (torch.rand(vocab_size, size, generator=generator) - 0.5) / size
