"""A tagger with all that it needs to tag: its network, the features of words, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lmtrain.data.columns import OUTSIDE, Scheme, split_tag
from lmtrain.data.features import Features
from lmtrain.models.base import evaluating
from lmtrain.models.tagger import TaggerNetwork
from lmtrain.progress import watched

WINDOWS = 4096  # that are scored at once


class Outputs(NamedTuple):
    """What the outputs of a tagger mean.

    tags     softmax: the tag of each output
    classes  logistic, max_margin: the class of entities of each output
    scheme   how tags are written
    """

    tags: tuple[str, ...]
    classes: tuple[str, ...]
    scheme: Scheme

    @property
    def names(self) -> tuple[str, ...]:
        return self.tags or self.classes

    def to_json(self) -> dict[str, Any]:
        return {"tags": list(self.tags), "classes": list(self.classes), "scheme": self.scheme._asdict()}


class Tagged(NamedTuple):
    """The tags of a sentence, and the probability that the tagger gives to each. Max-margin scores have none."""

    tags: list[str]
    probabilities: list[float] | None


@dataclass(frozen=True)
class TagModel:
    """Tags sentences."""

    network: TaggerNetwork
    features: Features
    outputs: Outputs
    context: int
    device: torch.device | str = "cpu"

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[Tagged]:
        """Returns the tags of sentences, which are lists of tokens."""
        return self.tags_of(self.scores(sentences), list(map(len, sentences)))

    def scores(self, sentences: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Returns the scores [M, C] of all tokens."""
        rows_RF, centres_M = place(sentences, self.features, self.context)
        offsets_W = np.arange(-self.context, self.context + 1)
        parts = [np.empty((0, len(self.outputs.names)))]
        with evaluating(self.network), watched("Tagging", len(centres_M), "tok") as advance:
            for start in range(0, len(centres_M), WINDOWS):
                windows_NWF = rows_RF[centres_M[start : start + WINDOWS, None] + offsets_W]
                advance(len(windows_NWF))
                parts.append(self.network.scores(torch.from_numpy(windows_NWF).to(self.device)).double().cpu().numpy())
        return np.concatenate(parts)

    def tags_of(self, scores_MC: NDArray[np.float64], lengths: Sequence[int]) -> list[Tagged]:
        """Returns the tags that go with the scores of sentences of these lengths."""
        if self.outputs.tags:
            best_M = scores_MC.argmax(1)
            names = [self.outputs.tags[number] for number in best_M.tolist()]
            probabilities = softmax(scores_MC)[np.arange(len(best_M)), best_M].tolist()
            cut = _cut(names, lengths)
        else:
            above_MC = scores_MC - self.network.thresholds_C.double().cpu().numpy()
            best_M = above_MC.argmax(1)
            is_there = above_MC[np.arange(len(best_M)), best_M] > 0
            classes = [self.outputs.classes[n] if there else OUTSIDE for n, there in zip(best_M, is_there, strict=True)]
            cut = (self.outputs.scheme.tags(part) for part in _cut(classes, lengths))
            chances = 1 / (1 + np.exp(-np.clip(scores_MC, -700, 700).max(1)))
            probabilities = np.where(is_there, chances, 1 - chances).tolist()
        shares = _cut(probabilities, lengths)
        has = self.network.objective != "max_margin"
        return [Tagged(list(tags), list(part) if has else None) for tags, part in zip(cut, shares, strict=True)]

    def classes_of(self, tags: Sequence[str]) -> NDArray[np.int64]:
        """Returns the output of each tag: -1 for a tag without an output (softmax), or a tag outside the classes."""
        numbers = {name: number for number, name in enumerate(self.outputs.names)}
        names = tags if self.outputs.tags else [split_tag(tag).cls for tag in tags]
        return np.array([numbers.get(name, -1) for name in names], np.int64)


def place(sentences: Sequence[Sequence[str]], features: Features, context: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the features of all tokens, [R, F], with `context` rows of the border around each sentence, and the place [M]
    of each."""
    border = np.tile(features.border(), (context, 1))
    blocks, centres, end = [border], [], context
    for tokens in sentences:
        blocks += [features.of(tokens), border]
        centres.append(np.arange(end, end + len(tokens)))
        end += len(tokens) + context
    empty = np.empty(0, np.int64)
    return np.concatenate(blocks), np.concatenate([empty, *centres])


def softmax(scores_MC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns probabilities."""
    shifted = np.exp(scores_MC - scores_MC.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def _cut(items: Sequence[Any], lengths: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Cuts into stretches of these lengths."""
    start = 0
    for length in lengths:
        yield items[start : start + length]
        start += length
