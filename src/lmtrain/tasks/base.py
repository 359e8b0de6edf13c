"""What a task is: all that the training of a model asks of what is learnt, and nothing that is common to whatever is learnt.

    language   the next token of a text (`lmtrain.tasks.language`)
    vectors    vectors of words, from the words around them (`lmtrain.tasks.vectors`)
    tag        a class for every word (`lmtrain.tasks.tag`)

A task reads its data, hands them out in batches, makes a learner, judges a model, and says what a checkpoint carries. The loop,
the optimisers, schedules, checkpoints, signals, records and limits are the same for every task and know none.
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
    """What a checkpoint carries besides weights and training: tensors by file and name, documents by file."""

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
    bits_per_character  of a language model, to compare vocabularies; None where the validation text has `<unk>`, whose
                        spelling is not paid for
    num_unk             how many of them it has
    vocabulary          the SHA-256 of the vocabulary
    """

    value: float
    bits_per_character: float | None = None
    num_unk: int = 0
    vocabulary: str = ""
    wording: Wording = TOKENS

    @property
    def nats_per_token(self) -> float:
        """The value of a language model."""
        if self.wording is not TOKENS:
            raise AttributeError(f"this run was judged by its {self.wording.value.replace('_', ' ')}: see `value`")
        return self.value


class Task(ABC):
    """One thing to learn, with its data.

    wording           the words in which it is spoken of
    settings, device  of the run
    fingerprint       of the data: a run goes on with the very data that it was started with
    start             the model that the weights come from, as `open_saved` opens it; None where they are drawn
    """

    wording: Wording
    settings: config.Config
    device: torch.device
    fingerprint: str
    start: Any = None

    @property
    @abstractmethod
    def batches(self) -> Batches:
        """What is learnt from. Raises DataError where there is too little."""

    @abstractmethod
    def describe(self) -> str:
        """The facts about the data to look at before a run, as lines."""

    def material(self) -> Material | None:
        """What `python -m lmtrain inspect` looks at; None where there is no more to see than what `describe` says."""
        return None

    def iter_advice(self) -> Iterator[str]:
        """What looks wrong with the data, a sentence or two each."""
        return iter(())

    def check(self) -> None:
        """Raises a UserError where the settings, the data and the machine do not fit together."""
        assert self.batches

    def out_of_memory(self, error: BaseException, run: str) -> ResourceError:
        """What to say when memory ran out in the midst of `run`."""
        words = str(error).partition("\n")[0] or "Python could get no more"
        return ResourceError(
            f"Memory ran out: {words}.", "The checkpoints of the run are as they were.",
            "Start a run with a smaller trainer.batch_size or a smaller model.",
        )  # fmt: skip

    @abstractmethod
    def learner(self) -> Learner:
        """A new model with the way in which it learns, on the device of the run."""

    @abstractmethod
    def score(self, model: Any) -> Score:
        """How good `model` is on the validation split."""

    @abstractmethod
    def final_score(self, model: Any, split: SplitName) -> Score:
        """The same on a split that there is, as exactly as can be."""

    @abstractmethod
    def has(self, split: SplitName) -> bool:
        """Whether there is such a split."""

    def vectors(self, model: Any) -> Vectors | None:
        """The words with their vectors in `model`, the most frequent first; None where it has none."""
        return None

    @abstractmethod
    def show(self, model: Any) -> str:
        """What `model` does, to look at: a sample, or its worst errors. Empty where there is nothing to show."""

    @abstractmethod
    def shown(self) -> str:
        """What `show` shows, as a heading."""

    def comparison(self, model: Any) -> Comparison | None:
        """`model` beside the simplest there are, on train and valid. None where there is nothing to compare."""
        return None

    @property
    def precision(self) -> torch.dtype:
        """Of matrix products."""
        return torch.float32

    @abstractmethod
    def files(self) -> Files:
        """What a checkpoint carries, so that a model can be used and judged without its data."""

    @abstractmethod
    def check_saved(self, checkpoint: Checkpoint) -> config.ModelConfig:
        """The settings of the model in a checkpoint; UnfitError where it is of other data."""

    compared: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """The files (without their endings) that `check_saved` looks at, besides model and training."""

    @abstractmethod
    def load(self, path: Path) -> Loaded:
        """The best model of the run at `path`."""

    def vocabulary(self) -> str:
        """The SHA-256 of the vocabulary; empty where values of different ones can be compared."""
        return ""

    def judged_on(self) -> dict[str, Any]:
        """What the validations during training depend on besides the model, JSON-able: how much is read, and how."""
        return {}

    def reached(self, value: float) -> Reached:
        """The best validation, with what it needs to be compared with that of other runs."""
        return Reached(value, wording=self.wording)

    @abstractmethod
    def next_steps(self, run: str) -> list[str]:
        """Commands that use the run (its name as it can be typed), a line each."""
