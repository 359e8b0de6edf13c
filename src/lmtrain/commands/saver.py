"""Which checkpoints a training keeps, and what is in them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.data.batches import Batch
from lmtrain.errors import ResourceError
from lmtrain.settings import comparing
from lmtrain.tasks.base import Task
from lmtrain.training.checkpoint import mark, prune, save_checkpoint
from lmtrain.training.finite import nonfinite_names
from lmtrain.training.learner import Tensors
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")


@dataclass
class Saver:
    """Keeps checkpoints. A best model that cannot be written is held until it can be: training does not come back to it."""

    task: Task
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
        prune(self.run.path, self.task.settings.trainer.keep, state.saved_step)
        self._note_arithmetic()
        return ""

    def crash(self, state: TrainState, batch: Batch | None) -> Path:
        """The state that could not go on, and the batch that it could not take, in `crash/`: to look at, not to resume."""
        self.run.make_again_if_removed()
        tensors, documents = self._contents(state)
        if batch is not None:
            tensors |= {"batch": {name: tensor.clone() for name, tensor in batch.tensors().items()}}
            documents |= {"batch": {"epoch": batch.epoch, "index": batch.index}}
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
        files = self.task.files()
        training = {
            "corpus": self.task.fingerprint, "settings": comparing.config_to_json(self.task.settings),
            "state": state.document(),
        }  # fmt: skip
        return state.tensors() | files.tensors, files.documents | {"training": training}
