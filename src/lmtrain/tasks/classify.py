"""Classification: a label for every text. A model learns from texts, which are shuffled anew in each epoch.

The vocabulary is that of the training split, and the labels are its labels. A model is judged by its accuracy, and compared
with the simplest models: the most frequent class, and naive Bayes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

import lmtrain.config as config
from lmtrain.build import build_gradient_learner, sparse_gradients
from lmtrain.data.batches import Position, Shuffled
from lmtrain.data.examples import find_splits
from lmtrain.data.indicators import learn_indicators
from lmtrain.data.labelled import Labelled, Splits, cut_folds, describe, fingerprint, iter_advice, labels_of, read_labelled
from lmtrain.expected import agree, compare, within
from lmtrain.memory import check_weights, count_parameters
from lmtrain.models.classifier import ClassifierNetwork, CountedClassifier, Texts
from lmtrain.saved import describe_tokenizer, vectors_of
from lmtrain.settings import comparing
from lmtrain.shell import expanded
from lmtrain.tasks.base import Files, Loaded, SplitName, Task
from lmtrain.tasks.baselines import Comparison
from lmtrain.tasks.classify_baselines import FREQUENT, NAIVE_BAYES, classes_of, lowercase_of, ngrams_of, others, predict_simply
from lmtrain.tasks.classify_baselines import compare as compare_classifiers
from lmtrain.tasks.classify_model import Encoded, TextModel, build_classifier, encode
from lmtrain.tasks.classify_score import ClassifyScore, worst_errors
from lmtrain.tasks.embeddings import given_vectors, put_vectors, say_coverage
from lmtrain.tasks.inspection import Material, material_of, shares_of
from lmtrain.tasks.language import check_tokenizer
from lmtrain.tasks.restoring import text_to_tensor
from lmtrain.tasks.starting import check_known
from lmtrain.training.checkpoint import Checkpoint
from lmtrain.training.learner import Learner, load_weights, shared_once
from lmtrain.training.score import Score, Wording
from lmtrain.training.tally import TallyLearner
from lmtrain.vectors.table import Vectors

if TYPE_CHECKING:
    from lmtrain.tasks.classify_saved import Classifier

WORST = 20  # errors that are shown


class Classify(Task):
    """The task of classifying texts, those of `splits` if they have been read already."""

    wording = Wording("texts", "nats_per_text", "accuracy", higher_is_better=True)
    compared: ClassVar[tuple[str, ...]] = ("tokenizer", "features")

    def __init__(
        self,
        settings: config.Config,
        device: torch.device,
        splits: Splits | None = None,
        start: Classifier | None = None,
    ) -> None:
        self.settings, self.device, self.start = settings, device, start
        assert isinstance(settings.data, config.LabelledConfig)
        self._given = None
        if isinstance(settings.model, config.AveragingConfig | config.EncoderConfig):
            self._given = given_vectors(settings.model, settings.model.embed_size)
        self.splits = splits or read_splits(settings.data)
        self.labels = labels_of(self.splits)
        if start is not None:
            check_known("label", self.labels, start.labels)
            self.labels = start.labels
        self.indicators = start.model.indicators if start is not None else learn_indicators(
            self.splits["train"].texts, max_length=ngrams_of(settings.model), lowercase=lowercase_of(settings.model),
            min_count=settings.tokenizer.min_count, vocab_size=settings.tokenizer.vocab_size,
            more=self._given.words if self._given else (),
        )  # fmt: skip
        self.fingerprint = fingerprint(self.splits)

    # ---- what is learnt from

    @cached_property
    def _encoded(self) -> dict[str, Encoded]:
        reads_words = not isinstance(self.settings.model, config.LogisticConfig)
        return {name: encode(split.texts, self.indicators, reads_words) for name, split in self.splits.items()}

    @cached_property
    def _targets(self) -> dict[str, NDArray[np.int64]]:
        return {name: classes_of(split, self.labels) for name, split in self.splits.items()}

    @cached_property
    def batches(self) -> Shuffled:
        trainer = self.settings.trainer
        return Shuffled(len(self.splits["train"]), self._batch, batch_size=trainer.batch_size, seed=trainer.seed)

    def _batch(self, numbers: NDArray[Any], position: Position) -> Texts:
        targets_N = torch.from_numpy(self._targets["train"][numbers])
        return Texts(*self._encoded["train"].pick(numbers), targets_N, position.epoch, position.index)

    def learner(self) -> Learner:
        settings, trainer = self.settings, self.settings.trainer
        train = self._encoded["train"]
        num_read = trainer.batch_size * len(train.numbers_M) // len(train.offsets_N)
        sparse = sparse_gradients(num_read, self.indicators.size, self.device)
        network = build_classifier(
            settings.model, self.indicators, len(self.labels), seed=trainer.seed,
            sparse=sparse or settings.optimizer.name is config.OptimizerName.sparse_adam,
        ).to(self.device)  # fmt: skip
        if isinstance(network, CountedClassifier):
            return TallyLearner(network, self.device)
        if isinstance(settings.model, config.EmbeddingsConfig):
            self._start_vectors(network.get_parameter("embedding.weight"), settings.model.embeddings)
        if self.start is not None:
            load_weights(network, shared_once(self.start.model.network))
        return build_gradient_learner(settings, network, self.device, "embedding.weight")

    def _start_vectors(self, table_VE: torch.Tensor, name: str) -> None:
        """Puts the vectors that were given into the table; a word that has none, and that training lacks, gets zeros."""
        words = self.indicators.tokenizer.tokens
        counts_V = np.bincount(self._encoded["train"].numbers_M, minlength=len(words))
        with torch.no_grad():
            table_VE[torch.from_numpy(counts_V == 0)] = 0
        if self._given is not None:
            say_coverage(name, put_vectors(table_VE, words, self._given), counts_V)

    def check(self) -> None:
        model, num_classes = self.settings.model, len(self.labels)
        num_parameters = count_parameters(lambda: build_classifier(model, self.indicators, num_classes))
        check_weights(self.settings, num_parameters, self.device)
        super().check()

    # ---- how good it is

    def _wrap(self, network: ClassifierNetwork) -> TextModel:
        return TextModel(network, self.indicators, self.labels, self.device)

    @cached_property
    def _baselines(self) -> dict[str, dict[str, NDArray[np.int64]]]:
        """Returns for each split what the simplest models say: by name the class of each text, or the only one of all texts."""
        return predict_simply(self.splits, self.labels, self.indicators)

    def score(self, model: ClassifierNetwork) -> ClassifyScore:
        return self._score(model, "valid")

    def final_score(self, model: ClassifierNetwork, split: SplitName) -> ClassifyScore:
        return self._score(model, split)

    def _score(self, model: ClassifierNetwork, split: str) -> ClassifyScore:
        probabilities_NC = self._wrap(model).probabilities_of(self._encoded[split])
        baselines = others(self.settings.model, self._baselines[split])
        return ClassifyScore(self.labels, self._targets[split], probabilities_NC, baselines, self.splits[split].num_empty)

    def has(self, split: SplitName) -> bool:
        return split in self.splits

    def vectors(self, model: ClassifierNetwork) -> Vectors | None:
        return vectors_of(model, self.indicators.tokenizer)

    def show(self, model: ClassifierNetwork) -> str:
        return "\n".join(worst_errors(self._score(model, "valid"), self.splits["valid"].texts, WORST))

    def shown(self) -> str:
        return "The worst errors on the validation split (how sure it was, what it is, what it was taken for, the text)"

    def comparison(self, model: ClassifierNetwork, final: Score | None = None) -> Comparison:
        """Compares the model with the simplest ones, on train, valid and the split of the final score."""
        return compare_classifiers(self, model)

    # ---- what is said, and what is saved

    def material(self) -> Material:
        unk_id = self.indicators.tokenizer.unk_id
        ids = {
            name: np.concatenate([self.indicators.words(text) for text in split.texts]) for name, split in self.splits.items()
        }
        return material_of(
            {name: [text.split() for text in split.texts] for name, split in self.splits.items()}, line="text",
            unknown={name: float((each == unk_id).mean()) if len(each) else None for name, each in ids.items()},
            sections=[shares_of("labels", "Labels, and their shares", {n: Counter(s.labels) for n, s in self.splits.items()})],
        )  # fmt: skip

    def describe(self) -> str:
        unknown = self.indicators.tokenizer.unk_id
        lines = describe(self.splits, self.labels)
        for name, split in self.splits.items():
            ids = np.concatenate([self.indicators.words(text) for text in split.texts])
            lines.append(f"{name}: {len(ids):,} words, {float((ids == unknown).mean()) if len(ids) else 0:.2%} of them unknown")
        longer = f" and {sum(map(len, self.indicators.keys)):,} longer n-grams" if self.indicators.keys else ""
        lines.append(f"vocabulary: {self.indicators.tokenizer.vocab_size:,} words{longer}, learnt from train alone")
        return "\n".join(lines)

    def iter_advice(self) -> Iterator[str]:
        return iter_advice(self.splits)

    def files(self) -> Files:
        tokenizer_tensors, tokenizer_documents = describe_tokenizer(self.indicators.tokenizer)
        keys = {name: torch.from_numpy(array) for name, array in self.indicators.arrays().items()}
        texts: dict[str, torch.Tensor] = {}
        for name in ("valid", "test"):
            if name in self.splits:
                texts[f"{name}.text"] = text_to_tensor("\n".join(self.splits[name].texts))
                texts[f"{name}.targets"] = torch.from_numpy(self._targets[name])
                texts[f"{name}.naive_bayes"] = torch.from_numpy(self._baselines[name][NAIVE_BAYES])
        model = {
            "task": "classify", "settings": comparing.config_to_json(self.settings.model), "labels": list(self.labels),
            "most_frequent": int(self._baselines["valid"][FREQUENT][0]),
        }  # fmt: skip
        return Files({"texts": texts, "features": keys, **tokenizer_tensors}, {"model": model, **tokenizer_documents})

    def check_saved(self, checkpoint: Checkpoint) -> config.ModelConfig:
        from lmtrain.tasks.classify_saved import read_classifier_settings, read_indicators

        check_tokenizer(checkpoint, self.indicators.tokenizer)
        with within("model.json: "):
            settings, labels, most_frequent = read_classifier_settings(checkpoint.documents.get("model"))
            compare(list(self.labels), list(labels), "labels")
            compare(int(self._baselines["valid"][FREQUENT][0]), most_frequent, "most_frequent")
        with within("features.safetensors: "):
            saved = read_indicators(checkpoint.tensors.get("features", {}), self.indicators.tokenizer, settings)
            for name, own in self.indicators.arrays().items():
                agree(
                    np.array_equal(saved.arrays()[name], own), name, "are of other n-grams", "those of the run's training split"
                )
        return settings

    def load(self, path: Path) -> Loaded:
        from lmtrain.tasks.classify_saved import load_classifier

        saved = load_classifier(path, device=str(self.device))
        return Loaded(saved.path, saved.step, saved.model.network)

    def next_steps(self, run: str) -> list[str]:
        return [f"python -m lmtrain predict {run} FILE", f"python -m lmtrain evaluate {run}"]


def read_splits(data: config.LabelledConfig) -> dict[str, Labelled]:
    """Returns the texts of every split. Raises DataError for files that cannot be used."""
    if data.folds and data.path and expanded(data.path).is_file():
        files = {"train": expanded(data.path)}
    else:
        named = {"train": data.train, "valid": data.valid, "test": data.test}
        files = find_splits(data.path, named, or_else="data.folds=10 to cut it into folds, or ")
    splits = {name: read_labelled(file, data.encoding) for name, file in files.items()}
    return cut_folds(splits, data.folds, data.fold) if data.folds else splits
