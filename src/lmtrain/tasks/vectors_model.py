"""What word vectors are learnt from and judged by, the windows or counted pairs of a text; and the network.

Validation measures what training minimises: the mean loss of the predictions in the held-out text's windows, or the mean
weighted error of its pairs. Whatever is drawn for it (windows, noise words) is the same at each evaluation and in every run.
Counts of pairs are compared as if the held-out text were as long as the training text, whose counts the vectors stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

import lmtrain.config as config
from lmtrain.data.batches import Position, Shuffled
from lmtrain.models.base import evaluating
from lmtrain.models.word_vectors import GloveVectors, PredictedVectors
from lmtrain.progress import watched
from lmtrain.training.score import Wording
from lmtrain.vectors.batches import pair_batches, window_batches
from lmtrain.vectors.svd import count_pairs
from lmtrain.vectors.text import Text

BATCH = 1024  # centres or pairs that are judged at once
SEED = 0  # the seed of what is drawn for an evaluation

PREDICTIONS = Wording("predictions", "nats_per_prediction", "nats_per_prediction")
PAIRS = Wording("pairs", "error_per_pair", "error_per_pair")


@dataclass(frozen=True)
class VectorScore:
    """The loss over a held-out text. There is no perplexity: a word is told from drawn words, not from all."""

    total: float
    num_items: int
    wording: Wording

    @property
    def value(self) -> float:
        """Returns the mean loss of a prediction (nats) or of a pair (weighted squared error of log counts)."""
        return self.total / self.num_items

    def numbers(self) -> Mapping[str, float | None]:
        return {self.wording.value: self.value}

    def line(self, mark: str = "") -> str:
        return f"{self.value:.4f} {self.wording.value.replace('_', ' ')}{mark}"

    def format(self) -> str:
        drawn = " · what is random in windows was drawn once for all" if self.wording is PREDICTIONS else ""
        return f"{self.line()}\n{self.num_items:,} {self.wording.items}{drawn}"

    def to_json(self) -> dict[str, Any]:
        return {self.wording.value: self.value, f"num_{self.wording.items}": self.num_items}


def wording_of(settings: config.WordVectorsConfig) -> Wording:
    return PAIRS if isinstance(settings, config.GloveConfig) else PREDICTIONS


def build_vectors(settings: config.ModelConfig, num_words: int, seed: int = 0) -> nn.Module:
    """Returns a new network, with vectors drawn from `seed`."""
    generator = Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):
        match settings:
            case config.NegativeSamplingConfig():
                return PredictedVectors(num_words, settings.embed_size, generator)
            case config.GloveConfig():
                return GloveVectors(num_words, settings.embed_size, generator, x_max=settings.x_max, power=settings.power)
    raise AssertionError(f"no word vectors for {type(settings).__name__}")


def make_batches(settings: config.WordVectorsConfig, text: Text, *, batch_size: int, seed: int, scale: float = 1.0) -> Shuffled:
    """Returns what is learnt from `text`; the training text is `scale` times as long. Raises DataError if no two words
    stand together."""
    match settings:
        case config.NegativeSamplingConfig():
            return window_batches(
                text, settings.kind, batch_size=batch_size, window=settings.window, num_negatives=settings.num_negatives,
                subsample=settings.subsample, noise_power=settings.noise_power, seed=seed,
            )  # fmt: skip
        case config.GloveConfig():
            return pair_batches(count_pairs(text, window=settings.window), batch_size=batch_size, seed=seed, scale=scale)
    raise AssertionError(f"no word vectors for {type(settings).__name__}")


def held_out(settings: config.WordVectorsConfig, text: Text) -> Shuffled:
    """Returns the batches by which a network is judged; `counts` are those of the training text."""
    num_words = int((text.ids >= 0).sum())
    return make_batches(settings, text, batch_size=BATCH, seed=SEED, scale=int(text.counts.sum()) / max(num_words, 1))


def judge(network: nn.Module, batches: Shuffled, wording: Wording, device: torch.device | str) -> VectorScore:
    """Returns the loss of `network` over one epoch of `batches`."""
    total, num_items = 0.0, 0
    generator = Generator("cpu")  # nothing is drawn from it
    number = batches.num_batches(0)
    with evaluating(network), watched("Evaluating", number, "batches") as advance:
        for index in range(number):
            batch = batches.batch(Position(0, index)).to(torch.device(device))
            loss: tuple[Tensor, Tensor] = network.loss(batch, generator)  # type: ignore[operator]
            total, num_items = total + loss[0].double().item(), num_items + batch.num_items
            advance(1)
    return VectorScore(total, num_items, wording)
