"""The checkpoints that a training keeps, and what is in them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmtrain.commands.cost import MIN_KEPT
from lmtrain.commands.resuming import earlier_checkpoint, load_state
from lmtrain.data.batches import Batch
from lmtrain.distributed.group import Group
from lmtrain.errors import CheckpointError, ResourceError
from lmtrain.settings import comparing
from lmtrain.tasks.base import Task
from lmtrain.training.checkpoint import find_checkpoint, mark, prune, save_checkpoint
from lmtrain.training.finite import nonfinite_names
from lmtrain.training.learner import Tensors
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")


@dataclass
class Saver:
    """Saves checkpoints. A best model that cannot be written is held in memory until it can be.

    on_disk   what the newest checkpoint holds, and where it is, so that nothing is saved twice
    """

    task: Task
    run: RunDirectory
    arithmetic: Mapping[str, Any]
    unsaved_best: tuple[int, Tensors, dict[str, Any]] | None = None
    on_disk: tuple[Any, Path] | None = None

    def __call__(self, state: TrainState, is_best: bool) -> str:
        """Saves a checkpoint and returns ''. If the model is not finite, returns a sentence that says so instead."""
        self.run.make_again_if_removed()
        if not is_best and self.unsaved_best is None and self._is_on_disk(state):
            return ""
        tensors, documents = self._contents(state)
        everything = {name: tensor for file in ("training", "model") for name, tensor in tensors[file].items()}
        broken = nonfinite_names(everything) if state.learner.can_diverge else []
        if broken:
            return f"The model is not finite at step {state.step}: {', '.join(broken[:3])}."
        if is_best:
            self.unsaved_best = state.step, tensors, documents
        try:
            path = self._save_best()
            if not is_best:
                path = save_checkpoint(self.run.path, state.step, tensors, documents)
                if state.step == state.best_step == state.evaluated_step:  # the best one so far holds the same model
                    mark(self.run.path, "best", path)
        except ResourceError:
            if is_best:
                copies = {file: {name: t.clone() for name, t in members.items()} for file, members in tensors.items()}
                self.unsaved_best = state.step, copies, documents
            raise
        if path is not None:
            self.remember(state, path)
        prune(self.run.path, max(self.task.settings.trainer.keep, MIN_KEPT), state.saved_step)
        self._note_arithmetic()
        return ""

    def remember(self, state: TrainState, path: Path) -> None:
        """Notes that `path` holds the state as it is."""
        self.on_disk = self._identity(state), path

    def tidy(self, state: TrainState) -> None:
        """Removes the checkpoints that `trainer.keep` does not ask for, after the run has ended well."""
        keep, path = self.task.settings.trainer.keep, self.run.path
        if keep >= MIN_KEPT:
            return
        try:
            if keep == 0 and state.best_step is not None:
                best = find_checkpoint(path, "best")
                mark(path, "last", best)
                if state.best_step != state.step:
                    log.info("Only the best checkpoint stays (trainer.keep=0): resume= goes on from step %d.", state.best_step)
            prune(path, keep)
        except (CheckpointError, ResourceError) as error:
            log.warning("%s All checkpoints stay.", error)

    def crash(self, state: TrainState, batch: Batch | None) -> Path:
        """Saves in `crash/` the state that could not go on, and the batch that it could not take: to look at, not to resume."""
        self.run.make_again_if_removed()
        tensors, documents = self._contents(state)
        if batch is not None:
            tensors |= {"batch": {name: tensor.clone() for name, tensor in batch.tensors().items()}}
            documents |= {"batch": {"epoch": batch.epoch, "index": batch.index}}
        return save_checkpoint(self.run.path / "crash", state.step, tensors, documents)

    def _is_on_disk(self, state: TrainState) -> bool:
        return self.on_disk is not None and self.on_disk[0] == self._identity(state) and self.on_disk[1].is_dir()

    def _identity(self, state: TrainState) -> Any:
        """Returns what distinguishes two states of a run. Time does if it is a limit, which must not count twice."""
        seconds = state.elapsed_seconds if self.task.settings.trainer.max_seconds is not None else None
        steps = state.step, state.evaluated_step, state.saved_step, state.best_step
        return *steps, state.trouble, state.learner.rate_scale, seconds

    def _note_arithmetic(self) -> None:
        """Notes the arithmetic in `run.json`, from the first checkpoint on. If that cannot be written, training goes on."""
        if self.run.session.get("arithmetic") != self.arithmetic:
            try:
                self.run.note(arithmetic=copy.deepcopy(self.arithmetic))
            except (OSError, ResourceError) as error:
                log.warning("%s cannot be written (%s); training goes on.", self.run.record, error)

    def _save_best(self) -> Path | None:
        """Saves the best model if it is not on the disk yet; returns where."""
        if self.unsaved_best is None:
            return None
        path = save_checkpoint(self.run.path, *self.unsaved_best)
        mark(self.run.path, "best", path)
        self.unsaved_best = None
        return path

    def _contents(self, state: TrainState) -> tuple[Tensors, dict[str, Any]]:
        """Returns the files of a checkpoint."""
        files = self.task.files()
        training = {
            "corpus": self.task.fingerprint, "settings": comparing.config_to_json(self.task.settings),
            "state": state.document(),
        }  # fmt: skip
        return state.tensors() | files.tensors, files.documents | {"training": training}


@dataclass
class SharedSaver:
    """A `Saver` for several processes. All give the states of their columns, the first one writes, and all learn the result.

    All of them go on with what is saved: processors that round otherwise give updates with other last bits.
    """

    saver: Saver
    group: Group

    def __call__(self, state: TrainState, is_best: bool) -> str:
        state.learner.agree()
        with state.learner.gathered():
            return self.group.led(lambda: self.saver(state, is_best))

    def crash(self, state: TrainState, batch: Batch | None) -> Path:
        with state.learner.gathered():
            return self.group.led(lambda: self.saver.crash(state, batch))

    def go_back(self, state: TrainState, which: Literal["last", "best"]) -> None:
        """Puts the last scheduled checkpoint, or the best one, into the state."""
        run = self.saver.run.path
        load_state(state, self.group.led(lambda: earlier_checkpoint(run, state, which)), self.saver.task, self.group)

    def remember(self, state: TrainState, path: Path) -> None:
        self.saver.remember(state, path)

    def tidy(self, state: TrainState) -> None:
        if self.group.leads:
            self.saver.tidy(state)
