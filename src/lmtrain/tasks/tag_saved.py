"""A tagger as a checkpoint holds it, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import lmtrain.config as config
from lmtrain.arguments import checked_methods
from lmtrain.data.columns import Scheme, Sentence, entities, parse_columns, read_columns, split_words
from lmtrain.data.features import read_features
from lmtrain.errors import DataError
from lmtrain.expected import ANY_LENGTH, Anything, Flag, Like, agree, compare, within
from lmtrain.saved import NoVectorsError
from lmtrain.settings import reading
from lmtrain.shell import expanded
from lmtrain.tasks.opening import training_settings
from lmtrain.tasks.restoring import (
    chosen_splits,
    lines_in,
    open_checkpoint,
    read_model_settings,
    read_word_tokenizer,
    run_settings,
)
from lmtrain.tasks.tag import build_tagger, judge, read_splits, vectors_in
from lmtrain.tasks.tag_model import Outputs, TagModel
from lmtrain.tasks.tag_score import TagScore
from lmtrain.training.checkpoint import believing
from lmtrain.training.learner import load_weights
from lmtrain.vectors.table import Vectors

JUDGED_BY = ("entity_f1", "accuracy", "average_precision")


@checked_methods
class Tagger:
    """A tagger as it was saved. `lmtrain.load` makes one of a run of task=tag.

    path, step  the checkpoint's directory, and the steps that it was trained for
    model       the network with its features, for code that wants scores
    """

    def __init__(
        self, path: Path, step: int, model: TagModel, settings: config.ModelConfig, splits: dict[str, list[Sentence]],
        known_entities: frozenset[tuple[str, ...]], judged_by: str,
    ) -> None:  # fmt: skip
        self.path, self.step, self.model = path, step, model
        self._settings, self._splits, self._known, self._judged_by = settings, splits, known_entities, judged_by

    def __repr__(self) -> str:
        names, sizes = self.model.outputs.names, self.model.features.sizes
        return f"<lmtrain.Tagger {self._settings.kind}, {len(names)} outputs, vocabulary {sizes[0]:,}, {self.path}>"

    def tag(self, sentences: str | Iterable[str | Sequence[str]]) -> list[TaggedSentence]:
        """Returns each sentence with its `tokens`, their `tags` and `probabilities`, and its `entities` (`TaggedSentence`).

        A sentence is a list of tokens, or a text with blanks between tokens. `entities` are pairs of text and class:

            tagger.tag("Kojima was born in Osaka .")[0].entities
        """
        given = [sentences] if isinstance(sentences, str) else list(sentences)
        tokens = [split_words(sentence) if isinstance(sentence, str) else list(sentence) for sentence in given]
        tagged = self.model.tag(tokens)
        return [
            TaggedSentence(tuple(words), tuple(each.tags), None if each.probabilities is None else tuple(each.probabilities))
            for words, each in zip(tokens, tagged, strict=True)
        ]

    @property
    def vectors(self) -> Vectors:
        """Returns the words with their vectors. Raises CheckpointError if there are none, as in logistic regression."""
        if (vectors := vectors_in(self.model.network, self.model.features)) is None:
            raise NoVectorsError(self.path)
        return vectors

    @property
    def splits(self) -> list[str]:
        """Returns the splits that were saved with it: valid, and test where there was one."""
        return list(self._splits)

    def evaluate(self, split: str | None = None) -> TagScore:
        """Says how well it tags a split that was saved with it. By default the test split, where there was one, else valid.

        Raises DataError, which is a KeyError here, if there is none of this name.
        """
        (sentences,) = chosen_splits(self._splits, [] if split is None else [split], self.path)
        return self._judge(sentences)

    def evaluate_file(self, path: str | Path) -> TagScore:
        """Says how well it tags the sentences of a file in columns, which are read as those of its training."""
        data = self.columns
        columns = read_columns(
            expanded(path), token_column=data.token_column, tag_column=data.tag_column, encoding=data.encoding, typed=None
        )
        return self._judge(list(columns.sentences))

    def evaluate_training(self) -> TagScore:
        """Says how well it tags what it was trained on, from the place where that was then."""
        settings = training_settings(self.path)
        assert isinstance(settings.data, config.ColumnsConfig)
        return self._judge(list(read_splits(settings.data)["train"].sentences))

    @property
    def columns(self) -> config.ColumnsConfig:
        """Returns the settings by which the data of its training were read: which columns, and the encoding."""
        problems: list[str] = []
        data = reading.read_settings(config.DataConfig, self.settings.get("data"), "data", problems)
        return data if isinstance(data, config.ColumnsConfig) else config.ColumnsConfig()

    def _judge(self, sentences: list[Sentence]) -> TagScore:
        scores_MC = self.model.scores([sentence.tokens for sentence in sentences])
        return judge(self.model, sentences, scores_MC, self._known, self._judged_by)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings of the run, as nested dictionaries."""
        return run_settings(self.path, self._settings)


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence with its tags, and the probability of each if the model has probabilities."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...] | None = None

    @property
    def entities(self) -> list[tuple[str, str]]:
        """Returns the text and the class of each entity, in their order."""
        return [(" ".join(self.tokens[entity.start : entity.end]), entity.cls) for entity in entities(self.tags)]


def load_tagger(path: str | Path, *, prefer: Literal["best", "last"] = "best", device: str = "cpu") -> Tagger:
    """Returns the tagger in a run or checkpoint directory. Raises CheckpointError for anything that does not fit together."""
    checkpoint = open_checkpoint(path, prefer, "tag", ("model", "tokenizer", "features", "texts"))
    documents, tensors = checkpoint.documents, checkpoint.tensors
    with believing(checkpoint.path):
        tokenizer = read_word_tokenizer(checkpoint)
        with within("features.json: "):
            features = read_features(documents.get("features"), tokenizer)
        with within("model.json: "):
            settings, outputs = read_tag_settings(documents.get("model"))
        with within("model.safetensors: "):
            network = build_tagger(settings, features, len(outputs.names))
            load_weights(network, tensors.get("model", {}))
        sentences = _read_sentences(tensors.get("texts", {}))
        known, judged_by = _read_texts(documents.get("texts"))
    network.to(device).eval()
    context = getattr(settings, "context")
    model = TagModel(network, features, outputs, context, device)
    return Tagger(checkpoint.path, checkpoint.step, model, settings, sentences, known, judged_by)


def read_tag_settings(document: Any) -> tuple[config.ModelConfig, Outputs]:
    """Returns the settings of the tagger, and what its outputs mean. Raises UnfitError."""
    expected = {"task": "tag", "settings": Anything(), "tags": Anything(), "classes": Anything(), "scheme": Anything()}
    compare(expected, document)
    settings: config.ModelConfig = read_model_settings(
        document["settings"], (config.TaggerConfig, config.LogisticConfig), "a tagger"
    )
    compare({"name": Anything(), "is_marked": Flag(), "begins": Flag(), "ends": Flag()}, document["scheme"], "scheme")
    agree(isinstance(document["scheme"]["name"], str), "scheme.name", "is no text", "a text")
    for name in ("tags", "classes"):
        items = document[name]
        is_fit = (
            isinstance(items, list) and all(isinstance(item, str) and item for item in items) and len(set(items)) == len(items)
        )
        agree(is_fit, name, "is no list of names", "names, each once")
    is_softmax = getattr(settings, "objective", config.Objective.softmax) is config.Objective.softmax
    has = bool(document["tags"]), bool(document["classes"])
    agree(has == (is_softmax, not is_softmax), "tags", "do not go with the objective", "tags for a softmax, else classes")
    return settings, Outputs(tuple(document["tags"]), tuple(document["classes"]), Scheme(**document["scheme"]))


def _read_sentences(tensors: Mapping[str, Tensor]) -> dict[str, list[Sentence]]:
    with within("texts.safetensors: "):
        names = [name for name in ("valid", "test") if name in tensors]
        compare({name: Like((range(1, ANY_LENGTH.stop),), torch.uint8, least=0, most=255) for name in names}, tensors)
        found = {}
        for name in names:
            try:
                found[name] = parse_columns(lines_in(tensors[name], name), name)
            except DataError:
                found[name] = []
            agree(bool(found[name]), name, "holds no sentences", "tokens with their tags")
        return found


def _read_texts(document: Any) -> tuple[frozenset[tuple[str, ...]], str]:
    with within("texts.json: "):
        compare({"train_entities": Anything(), "judged_by": Anything()}, document)
        listed, judged_by = document["train_entities"], document["judged_by"]
        is_fit = isinstance(listed, list) and all(
            isinstance(entity, list) and all(isinstance(token, str) for token in entity) for entity in listed
        )
        agree(is_fit, "train_entities", "is no list of entities", "lists of tokens")
        agree(judged_by in JUDGED_BY, "judged_by", "is unknown", f"one of {', '.join(JUDGED_BY)}")
        return frozenset(map(tuple, listed)), judged_by
