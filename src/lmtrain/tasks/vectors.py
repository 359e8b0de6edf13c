"""Word vectors: a model learns the vectors of words from the words around each (skip-gram, CBOW, GloVe).

The text is that of a language model, read by the same tokenizer. An unknown word leaves a gap, and no window reaches over the
end of a line. The score is the mean loss on the held-out text; `lmtrain vectors` measures how useful vectors are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

import lmtrain.config as config
from lmtrain.build import build_corpus, build_gradient_learner, build_whole_corpus
from lmtrain.data.advice import endless_words_of
from lmtrain.data.batches import Shuffled
from lmtrain.data.corpus import describe
from lmtrain.errors import DataError
from lmtrain.expected import within
from lmtrain.memory import check_weights
from lmtrain.quantity import counted
from lmtrain.saved import describe_texts, describe_tokenizer
from lmtrain.settings import comparing
from lmtrain.shell import one_line, quoted_for_shell
from lmtrain.tasks.base import Files, Loaded, SplitName, Task
from lmtrain.tasks.inspection import Material, material_of_corpus
from lmtrain.tasks.language import check_tokenizer
from lmtrain.tasks.vectors_model import VectorScore, build_vectors, held_out, judge, make_batches, wording_of
from lmtrain.tasks.vectors_saved import load_word_vectors, read_vector_settings, vectors_in
from lmtrain.training.checkpoint import Checkpoint
from lmtrain.training.learner import GradientLearner
from lmtrain.vectors.table import Vectors
from lmtrain.vectors.text import as_text, spaced

SHOWN = (20, 50, 100, 200, 500, 1000, 2000, 5000)  # ranks of the words whose neighbours are shown


class WordVectors(Task):
    """The task of learning vectors of the words of a text."""

    compared: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(self, settings: config.Config, device: torch.device) -> None:
        self.settings, self.device = settings, device
        assert isinstance(settings.model, config.WordVectorsConfig)
        self.model = settings.model
        self.wording = wording_of(self.model)
        self.corpus = build_corpus(settings.data, settings.tokenizer)
        self.fingerprint = self.corpus.fingerprint
        self.text = as_text(self.corpus.train.ids, self.corpus.tokenizer)
        if not self.text.words:
            least, problem = settings.tokenizer.min_count, endless_words_of(self.corpus)
            raise DataError(
                "The training text has no word" + (f" that is there {least} times or more." if least > 1 else "."),
                "Vectors are learnt of words that are frequent enough.",
                spaced(problem)
                if problem
                else "Give a longer text" + (", or type tokenizer.min_count=1." if least > 1 else "."),
            )

    @cached_property
    def batches(self) -> Shuffled:
        trainer = self.settings.trainer
        return make_batches(self.model, self.text, batch_size=trainer.batch_size, seed=trainer.seed)

    def _held_out(self, split: SplitName) -> Shuffled:
        return held_out(self.model, as_text(getattr(self.corpus, split).ids, self.corpus.tokenizer, counts=self.text.counts))

    @cached_property
    def _valid(self) -> Shuffled:
        try:
            return self._held_out("valid")
        except DataError as error:
            raise DataError(
                "In the validation text no two words of the vocabulary stand together.",
                f"They must stand within {counted(self.model.window, 'word')} of each other, in one line.",
                "Give a longer validation text, or a smaller tokenizer.min_count.",
            ) from error

    def material(self) -> Material:
        return material_of_corpus(self.corpus, partial(build_whole_corpus, self.settings.data, self.settings.tokenizer))

    def iter_advice(self) -> Iterator[str]:
        return iter(self.corpus.notes)

    def describe(self) -> str:
        known = int(self.text.counts.sum()) / max(self.text.num_tokens, 1)
        return (
            f"{describe(self.corpus)}\n{len(self.text.words):,} words get a vector; they are {known:.2%} of the training text"
        )

    def check(self) -> None:
        check_weights(self.settings, 2 * len(self.text.words) * self.model.embed_size, self.device)
        super().check()
        assert self._valid

    def learner(self) -> GradientLearner:
        network = build_vectors(self.model, len(self.text.words), self.settings.trainer.seed)
        return build_gradient_learner(self.settings, network.to(self.device), self.device)

    def score(self, model: nn.Module) -> VectorScore:
        return judge(model, self._valid, self.wording, self.device)

    def final_score(self, model: nn.Module, split: SplitName) -> VectorScore:
        return judge(model, self._valid if split == "valid" else self._held_out(split), self.wording, self.device)

    def has(self, split: SplitName) -> bool:
        if getattr(self.corpus, split) is None:
            return False
        try:
            return bool(self._held_out(split))
        except DataError:
            return False

    def vectors(self, model: nn.Module) -> Vectors:
        return vectors_in(model, self.text.words)

    def show(self, model: nn.Module) -> str:
        vectors, lines = self.vectors(model), []
        for word in [vectors.words[rank] for rank in SHOWN if rank < len(vectors)] or vectors.words[:3]:
            near = vectors.neighbours(word, 6) if vectors.row(word) is not None else []
            lines.append(f"{one_line(word)}: {', '.join(one_line(other) for other, _ in near)}")
        return "\n".join(lines)

    def shown(self) -> str:
        return "The nearest words of some frequent ones"

    def files(self) -> Files:
        texts, _ = describe_texts(self.corpus)
        texts["train_counts"] = torch.from_numpy(self.text.counts)
        del texts["train_start"]
        tokenizer_tensors, tokenizer_documents = describe_tokenizer(self.corpus.tokenizer)
        model = {"task": "vectors", "settings": comparing.config_to_json(self.model)}
        return Files({"texts": texts, **tokenizer_tensors}, {"model": model, **tokenizer_documents})

    def check_saved(self, checkpoint: Checkpoint) -> config.ModelConfig:
        check_tokenizer(checkpoint, self.corpus.tokenizer)
        with within("model.json: "):
            return read_vector_settings(checkpoint.documents.get("model"))

    def load(self, path: Path) -> Loaded:
        saved = load_word_vectors(path, device=str(self.device))
        return Loaded(saved.path, saved.step, saved.network)

    def next_steps(self, run: str) -> list[str]:
        word = quoted_for_shell(self.text.words[min(100, len(self.text.words) - 1)])
        return [
            f"python -m lmtrain vectors neighbours {run} {word}",
            f"python -m lmtrain vectors export {run} --output FILE",
        ]
