"""What one step of training is. The loop feeds chunks and carries on; only a learner knows what learning means.

    GradientLearner  truncated backpropagation through time (Werbos 1990; Williams and Peng 1990): forward from the carried
                     state, backward within the chunk, clip, update, detach
    CountLearner     counts n-grams; one pass over the text

`tensors()` and `document()` are all that must survive a crash: weights, optimiser, averages, schedule, generator and the
carried state itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from lmtrain.data.stream import Chunk
from lmtrain.errors import CheckpointError
from lmtrain.models.base import LanguageModel, NeuralLanguageModel, State, detach
from lmtrain.models.ngram import NgramModel
from lmtrain.training.averaging import Averaging
from lmtrain.training.optimizer import clip_gradients, load_optimizer, optimizer_tensors, set_rate
from lmtrain.training.random_state import load_random_document, random_document
from lmtrain.training.schedule import Progress, Schedule

Tensors = dict[str, dict[str, Tensor]]  # file name -> tensor name -> tensor


class StepReport(NamedTuple):
    """What a step tells. `nats` is None where a learner does not know its loss (counting); `seconds` are the loop's to add."""

    num_tokens: int
    nats: float | None = None  # total over the chunk's targets
    penalty: float = 0.0
    grad_norm: float = 0.0
    clipped: bool = False
    learning_rate: float = 0.0
    seconds: float = 0.0

    @property
    def is_finite(self) -> bool:
        return self.nats is None or (math.isfinite(self.nats + self.penalty) and math.isfinite(self.grad_norm))


@dataclass
class Learner(ABC):
    """A model and the way in which it learns.

    rate_scale   multiplies the learning rate; each rollback halves it
    can_diverge  whether numbers of the model that are not finite are a fault (an n-gram's log 0 is none)
    """

    model: LanguageModel
    rate_scale: float = field(default=1.0, kw_only=True)
    can_diverge: ClassVar[bool] = True

    @abstractmethod
    def step(self, chunk: Chunk, progress: Progress) -> StepReport:
        """Learns from one chunk; where the report is not finite, nothing has been updated and no state carried on."""

    @abstractmethod
    def evaluated(self) -> AbstractContextManager[LanguageModel]:
        """The model as it should be evaluated (averaged weights, no dropout); training goes on as before afterwards."""

    @abstractmethod
    def after_evaluation(self, nats_per_token: float) -> None:
        """Tells schedules and averages what validation said."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """`model`: what inference needs. `training`: the rest."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """The JSON-able rest of what must survive."""

    @abstractmethod
    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        """Goes on from `tensors()` and `document()` of another process. Raises CheckpointError where they do not fit."""


@dataclass
class GradientLearner(Learner):
    """Truncated backpropagation through time over the carried state.

    learning_rate    the rate that the schedule multiplies
    clip_norm        largest norm of the whole gradient; 0 for none
    l1               weight of the sum of absolute matrix entries in the loss
    overlap          steps before a chunk that gradients reach back in addition (k2 - k1): BPTT(k2; k1) of Williams and Peng
    autocast         opens the precision under which the forward pass runs
    full_length      chunk length that the learning rate is meant for; the rate of other lengths is scaled (Merity 2017)
    """

    model: NeuralLanguageModel
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    averaging: Averaging
    generator: Generator
    learning_rate: float
    clip_norm: float = 0.0
    l1: float = 0.0
    overlap: int = 0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    full_length: int | None = None
    state: State = ()
    earlier_TB: Tensor | None = field(default=None, repr=False)  # tokens behind `state` that the next backward pass repeats

    def step(self, chunk: Chunk, progress: Progress) -> StepReport:
        device = next(self.model.parameters()).device
        chunk = replace(chunk, inputs_TB=chunk.inputs_TB.to(device), targets_TB=chunk.targets_TB.to(device))
        inputs_TB, carry_after = self._with_overlap(chunk)
        self.model.train()
        rate = self._rate(chunk, progress)
        set_rate(self.optimizer, rate, self.schedule.beta1(progress))
        report = self._learn(inputs_TB, chunk.targets_TB, carry_after, rate)
        if carry_after is not None and report.is_finite:
            self.earlier_TB = inputs_TB[carry_after:]  # they follow the state that is carried from now on
        return report

    def _learn(self, inputs_TB: Tensor, targets_TB: Tensor, carry_after: int | None, rate: float) -> StepReport:
        """Gradients, their norm looked at, and the update."""
        nats, penalty, grad_norm, state = self._gradients(inputs_TB, targets_TB, self.state, carry_after)
        report = self._report(targets_TB.numel(), nats.item(), penalty.item(), grad_norm.item(), rate)
        if report.is_finite:
            self.optimizer.step()
            self.averaging.update()
            self.state = detach(state)  # else that before the chunk is carried on: it was finite
        return report

    def _gradients(
        self, inputs_TB: Tensor, targets_TB: Tensor, state: State, carry_after: int | None
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Forward and backward: total nats, penalty, norm of the gradient (clipped after that), the state to carry."""
        with self.autocast():
            total_nats, penalty, state = self.model.training_loss(
                inputs_TB, targets_TB, state, self.generator, carry_after=carry_after
            )
        if self.l1:
            matrices = [weight for weight in self.model.parameters() if weight.dim() > 1]
            penalty = penalty + self.l1 * torch.stack([weight.abs().sum() for weight in matrices]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        (total_nats / targets_TB.numel() + penalty).backward()
        return total_nats.detach(), penalty.detach(), clip_gradients(self.model.parameters(), self.clip_norm), state

    def _report(self, num_tokens: int, nats: float, penalty: float, grad_norm: float, rate: float) -> StepReport:
        return StepReport(num_tokens, nats, penalty, grad_norm, 0 < self.clip_norm < grad_norm, rate)

    def evaluated(self) -> AbstractContextManager[LanguageModel]:
        return self._evaluated()

    @contextmanager
    def _evaluated(self) -> Iterator[LanguageModel]:
        was_training = self.model.training
        self.model.eval()
        try:
            with self.averaging.averaged():
                yield self.model
        finally:
            self.model.train(was_training)

    def after_evaluation(self, nats_per_token: float) -> None:
        self.schedule.after_evaluation(nats_per_token)
        self.averaging.after_evaluation(nats_per_token)

    def tensors(self) -> Tensors:
        moments, _ = optimizer_tensors(self.optimizer)
        training = {f"optimizer.{name}": tensor for name, tensor in moments.items()}
        training |= {f"averaging.{name}": tensor for name, tensor in self.averaging.tensors().items()}
        training |= {f"state.{number}": tensor for number, tensor in enumerate(self.state)}
        if self.earlier_TB is not None:
            training["earlier"] = self.earlier_TB
        raw = {f"raw.{name}": tensor for name, tensor in shared_once(self.model).items()}
        with self.averaging.averaged():
            weights = {name: tensor.clone() for name, tensor in shared_once(self.model).items()}
        if self.averaging.differs:
            training |= raw  # the file `model` then holds the averaged weights
        return {"model": weights, "training": training}

    def document(self) -> dict[str, Any]:
        return {
            "optimizer": optimizer_tensors(self.optimizer)[1],
            "schedule": self.schedule.state(),
            "averaging": self.averaging.document(),
            "random": random_document({"dropout": self.generator}),
            "rate_scale": self.rate_scale,
        }

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        training = tensors["training"]
        raw = _part(training, "raw.")
        load_weights(self.model, raw or tensors["model"])
        load_optimizer(self.optimizer, _part(training, "optimizer."), document["optimizer"])
        self.averaging.load(_part(training, "averaging."), document["averaging"])
        self.schedule.load_state(document["schedule"])
        load_random_document(document["random"], {"dropout": self.generator})
        self.rate_scale = document["rate_scale"]
        if not 0 < self.rate_scale <= 1:
            raise ValueError(f"a learning rate multiplied by {self.rate_scale}")
        device = next(self.model.parameters()).device
        carried = _part(training, "state.")
        self.state = tuple(carried[str(number)].to(device) for number in range(len(carried)))
        self.earlier_TB = training["earlier"].to(device) if "earlier" in training else None

    def _with_overlap(self, chunk: Chunk) -> tuple[Tensor, int | None]:
        """The chunk's inputs behind those that gradients reach back over, and after how many of them the state is carried.

        The carried state lies before the last `overlap` inputs; near the start of an epoch, where there are fewer, before all.
        """
        if chunk.starts_epoch or not self.state:
            self.state, self.earlier_TB = self.model.initial_state(chunk.inputs_TB.shape[1]), None
        if not self.overlap:
            return chunk.inputs_TB, None
        inputs_TB = chunk.inputs_TB if self.earlier_TB is None else torch.cat([self.earlier_TB, chunk.inputs_TB])
        return inputs_TB, max(0, len(inputs_TB) - self.overlap)

    def _rate(self, chunk: Chunk, progress: Progress) -> float:
        scale = len(chunk.targets_TB) / self.full_length if self.full_length else 1.0
        return self.learning_rate * self.schedule.rate(progress) * scale * self.rate_scale


@dataclass
class CountLearner(Learner):
    """Counts n-grams chunk by chunk; the model estimates when it is first asked."""

    model: NgramModel
    can_diverge = False

    def step(self, chunk: Chunk, progress: Progress) -> StepReport:
        self.model.count(chunk.targets_TB[:, 0].numpy())
        return StepReport(chunk.targets_TB.numel())

    def evaluated(self) -> AbstractContextManager[LanguageModel]:
        return self._evaluated()

    @contextmanager
    def _evaluated(self) -> Iterator[LanguageModel]:
        self.model.finish()
        yield self.model

    def after_evaluation(self, nats_per_token: float) -> None:
        """Counting depends on nothing that validation could say."""

    def tensors(self) -> Tensors:
        model = self.model.tensors()
        return {"model": model, "training": {name: ids for name, ids in self.model.counted().items() if name not in model}}

    def document(self) -> dict[str, Any]:
        return {}

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        self.model.load({**tensors["model"], **tensors["training"]})


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` into `model`. Raises CheckpointError where they are of another model."""
    check_weights(model, weights)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def check_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Compares names and shapes; a tensor that a model shares is stored under the first of its names."""
    own = shared_once(model)
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in own]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise CheckpointError(
            f"The weights are of another model: {'; '.join(wrong[:4])}{more}.",
            "Allowed are exactly the tensors of the model that the settings describe.",
            "Use the checkpoint with its own settings, or train a new model.",
        )


def shared_once(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a shared one (a head tied to the embedding) under its first name only."""
    names = {id(tensor): name for name, tensor in reversed([*model.named_parameters(remove_duplicate=False)])}
    shared = {name for name, tensor in model.named_parameters(remove_duplicate=False) if names[id(tensor)] != name}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
