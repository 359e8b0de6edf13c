"""The learner of models that only count, in one pass over the data and without gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from lmtrain.expected import Like, within
from lmtrain.training.learner import Known, Learner, StepReport, Tensors, expected_weights, load_weights
from lmtrain.training.schedule import Progress


class Countable(Protocol):
    """The model of a `TallyLearner`, a module whose buffers are its counts."""

    def count(self, batch: Any) -> None:
        """Adds a batch to the counts."""


@dataclass
class TallyLearner(Learner):
    """Counts batch by batch; the model says what the counts mean."""

    model: torch.nn.Module
    device: torch.device
    can_diverge = has_gradients = False

    def step(self, batch: Any, progress: Progress) -> StepReport:
        cast(Countable, self.model).count(batch.to(self.device))
        return StepReport(batch.num_items)

    def evaluated(self) -> AbstractContextManager[torch.nn.Module]:
        return self._evaluated()

    @contextmanager
    def _evaluated(self) -> Iterator[torch.nn.Module]:
        yield self.model

    def after_evaluation(self, cost: float) -> None:
        """Does nothing: counting does not depend on validation."""

    def tensors(self) -> Tensors:
        return {"model": {name: counts.clone() for name, counts in self.model.state_dict().items()}, "training": {}}

    def document(self) -> dict[str, Any]:
        return {}

    def expected(self, names: Collection[str], known: Known) -> tuple[dict[str, dict[str, Like]], dict[str, Any]]:
        return {"model": expected_weights(self.model), "training": {}}, {}

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        with within("model.safetensors: "):
            load_weights(self.model, tensors["model"])
