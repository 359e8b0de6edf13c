"""The contract of a task: everything that training needs to know about what is learnt, and nothing that all tasks share.

    language   the next token of a text (`lmtrain.tasks.language`)
    vectors    vectors of words, from the words around them (`lmtrain.tasks.vectors`)
    tag        a class for every word (`lmtrain.tasks.tag`)

A task reads its data, cuts them into batches, makes a learner, judges a model, and says what a checkpoint carries. The loop,
the optimisers, schedules, checkpoints, signals, records and limits are the same for every task and know no task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

import lmtrain.config as config
from lmtrain.data.batches import Batches
from lmtrain.distributed.group import Group
from lmtrain.errors import ResourceError
from lmtrain.tasks.inspection import Material
from lmtrain.training.checkpoint import Checkpoint
from lmtrain.training.learner import Learner
from lmtrain.training.score import TOKENS, Score, Wording
from lmtrain.vectors.table import Vectors

if TYPE_CHECKING:
    from lmtrain.tasks.baselines import Comparison

SplitName = Literal["train", "valid", "test"]


class Files(NamedTuple):
    """The files of a checkpoint besides weights and training: tensors by file and name, documents by file."""

    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, Any]


class Loaded(NamedTuple):
    """The best model of a run, as it was saved: where, after which step, and the model itself."""

    path: Path
    step: int
    model: Any


@dataclass(frozen=True)
class Reached:
    """The best validation of a run.

    value               nats per token, an F1 or an accuracy, by the task (`wording`)
    bits_per_character  of a language model, to compare vocabularies; None if the validation text has `<unk>`, whose
                        spelling costs nothing there
    num_unk             how many `<unk>` the validation text has
    vocabulary          the SHA-256 of the vocabulary
    """

    value: float
    bits_per_character: float | None = None
    num_unk: int = 0
    vocabulary: str = ""
    wording: Wording = TOKENS

    @property
    def nats_per_token(self) -> float:
        """Returns the value of a language model."""
        if self.wording is not TOKENS:
            raise AttributeError(f"this run was judged by its {self.wording.value.replace('_', ' ')}: see `value`")
        return self.value


class Task(ABC):
    """One thing to learn, with its data.

    wording           the words in which messages speak of it
    settings, device  of the run
    fingerprint       of the data: a run goes on only with the data that it was started with
    start             the model that the weights come from, as `open_saved` opens it; None if they are drawn
    most_lines        of what the model does are printed at the end
    begins            whether the run starts now; if it goes on, a checkpoint replaces the weights of the learner at once
    """

    wording: Wording
    settings: config.Config
    device: torch.device
    fingerprint: str
    start: Any = None
    most_lines: int = 40
    begins: bool = True

    @property
    @abstractmethod
    def batches(self) -> Batches:
        """Returns what is learnt from. Raises DataError if there is too little."""

    @abstractmethod
    def describe(self) -> str:
        """Returns the facts about the data to look at before a run, as lines."""

    def material(self) -> Material | None:
        """Returns what `python -m lmtrain inspect` looks at; None if there is no more to see than what `describe` says."""
        return None

    def iter_advice(self) -> Iterator[str]:
        """Yields what looks wrong with the data, in a sentence or two each."""
        return iter(())

    def check(self) -> None:
        """Raises a UserError if the settings, the data and the machine do not fit together."""
        assert self.batches

    def out_of_memory(self, error: BaseException, run: str) -> ResourceError:
        """Returns what to say when memory ran out during `run`."""
        words = str(error).partition("\n")[0] or "Python could get no more"
        return ResourceError(
            f"Memory ran out: {words}.", "The checkpoints of the run are as they were.",
            "Start a run with a smaller trainer.batch_size or a smaller model.",
        )  # fmt: skip

    @abstractmethod
    def learner(self) -> Learner:
        """Returns a new model with the way in which it learns, on the device of the run."""

    @abstractmethod
    def score(self, model: Any) -> Score:
        """Says how good `model` is on the validation split."""

    def num_validated(self, settings: config.Config) -> int:
        """Returns how many tokens the evaluations during training read at most under these settings; 0 for a task that reads
        all of validation always."""
        return 0

    def judge(self, model: Any, group: Group) -> Score:
        """Returns the same if several processes train together, which all call it. The first one scores, and all get the
        result."""
        return group.led(lambda: self.score(model))

    def judges(self, group: Group) -> int:
        """Returns how many processes score the validation split together."""
        return 1

    @abstractmethod
    def final_score(self, model: Any, split: SplitName) -> Score:
        """Returns the score on a split that exists, as exactly as possible."""

    @abstractmethod
    def has(self, split: SplitName) -> bool:
        """Tells whether there is such a split."""

    def vectors(self, model: Any) -> Vectors | None:
        """Returns the words with their vectors in `model`, the most frequent first; None if it has none."""
        return None

    @abstractmethod
    def show(self, model: Any) -> str:
        """Shows what `model` does: a sample, or its worst errors. Empty if there is nothing to show."""

    @abstractmethod
    def shown(self) -> str:
        """Returns the heading of what `show` shows."""

    def comparison(self, model: Any, final: Score | None = None) -> Comparison | None:
        """Compares `model`, whose final test gave `final`, with the simplest ones. None if there is nothing to compare."""
        return None

    @property
    def precision(self) -> torch.dtype:
        """Returns the type of matrix products."""
        return torch.float32

    @abstractmethod
    def files(self) -> Files:
        """Returns what a checkpoint carries, so that a model can be used and judged without its data."""

    @abstractmethod
    def check_saved(self, checkpoint: Checkpoint) -> config.ModelConfig:
        """Returns the settings of the model in a checkpoint. Raises UnfitError if it is of other data."""

    compared: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """The files (without their endings) that `check_saved` reads, besides model and training."""

    @abstractmethod
    def load(self, path: Path) -> Loaded:
        """Returns the best model of the run at `path`."""

    def vocabulary(self) -> str:
        """Returns the SHA-256 of the vocabulary; empty if values of different ones can be compared."""
        return ""

    def judged_on(self) -> dict[str, Any]:
        """Returns what the validations during training depend on besides the model, JSON-able: how much is read, and how."""
        return {}

    def reached(self, value: float) -> Reached:
        """Returns the best validation, with what it needs to be compared with that of other runs."""
        return Reached(value, wording=self.wording)

    @abstractmethod
    def next_steps(self, run: str) -> list[str]:
        """Returns commands that use the run (its name as it can be typed), a line each."""
