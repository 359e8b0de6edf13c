"""Which checkpoints a training keeps, and what is in them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmtrain.config as config
from lmtrain.data.corpus import Corpus
from lmtrain.data.stream import Chunk
from lmtrain.errors import (
    ResourceError,
)
from lmtrain.saved import describe_lines, describe_model, describe_texts, describe_tokenizer
from lmtrain.settings import comparing
from lmtrain.training.checkpoint import (
    mark,
    prune,
    save_checkpoint,
)
from lmtrain.training.finite import nonfinite_names
from lmtrain.training.learner import Tensors
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")


@dataclass
class Saver:
    """Keeps checkpoints. A best model that cannot be written is held until it can be: training does not come back to it."""

    settings: config.Config
    corpus: Corpus
    run: RunDirectory
    arithmetic: Mapping[str, Any]
    unsaved_best: tuple[int, Tensors, dict[str, Any]] | None = None

    def __call__(self, state: TrainState, is_best: bool) -> str:
        """Keeps a checkpoint; what is not finite in the model, if anything: then it is not kept."""
        self.run.make_again_if_removed()
        tensors, documents = self._contents(state)
        everything = {name: tensor for file in ("training", "model") for name, tensor in tensors[file].items()}
        broken = nonfinite_names(everything) if state.learner.can_diverge else []
        if broken:
            return f"The model is not finite at step {state.step}: {', '.join(broken[:3])}."
        if is_best:
            self.unsaved_best = state.step, tensors, documents
        try:
            self._save_best()
            if not is_best:
                save_checkpoint(self.run.path, state.step, tensors, documents)
        except ResourceError:
            if is_best:
                copies = {file: {name: t.clone() for name, t in members.items()} for file, members in tensors.items()}
                self.unsaved_best = state.step, copies, documents
            raise
        prune(self.run.path, self.settings.trainer.keep, state.saved_step)
        self._note_arithmetic()
        return ""

    def crash(self, state: TrainState, chunk: Chunk | None) -> Path:
        """The state that could not go on, and the chunk that it could not take, in `crash/`: to look at, not to resume."""
        self.run.make_again_if_removed()
        tensors, documents = self._contents(state)
        if chunk is not None:
            tensors |= {"chunk": {"inputs_TB": chunk.inputs_TB.clone(), "targets_TB": chunk.targets_TB.clone()}}
            documents |= {"chunk": {"epoch": chunk.epoch, "index": chunk.index}}
        return save_checkpoint(self.run.path / "crash", state.step, tensors, documents)

    def _note_arithmetic(self) -> None:
        """In `run.json`, with which nothing ends training; from the first checkpoint on, because a run goes on from there."""
        if self.run.session.get("arithmetic") != self.arithmetic:
            try:
                self.run.note(arithmetic=copy.deepcopy(self.arithmetic))
            except (OSError, ResourceError) as error:
                log.warning("%s cannot be written (%s); training goes on.", self.run.record, error)

    def _save_best(self) -> None:
        if self.unsaved_best is not None:
            mark(self.run.path, "best", save_checkpoint(self.run.path, *self.unsaved_best))
            self.unsaved_best = None

    def _contents(self, state: TrainState) -> tuple[Tensors, dict[str, Any]]:
        """The files of a checkpoint."""
        text_tensors, texts = describe_texts(self.corpus)
        tokenizer = self.corpus.tokenizer
        tokenizer_tensors, tokenizer_document = describe_tokenizer(tokenizer)
        documents = {
            "model": describe_model(self.settings.model, tokenizer.vocab_size, tokenizer.eos_id),
            "tokenizer": tokenizer_document,
            "texts": texts,
            "training": {
                "corpus": self.corpus.fingerprint, "settings": comparing.config_to_json(self.settings),
                "state": state.document(),
            },
        }  # fmt: skip
        text_files = {"texts": text_tensors, "lines": describe_lines(self.corpus), **tokenizer_tensors}
        return state.tensors() | text_files, documents
