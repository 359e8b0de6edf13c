"""One step of training. The loop gives batches to a learner; only the learner knows how to learn from them.

    GradientLearner   forward, backward, clip, update; the model says what its loss on a batch is
    SequenceLearner   the same by truncated backpropagation through time (Werbos 1990; Williams and Peng 1990): forward from
                      the carried state, backward within the chunk, clip, update, detach
    CountLearner      counts n-grams in one pass over the text

`tensors()` and `document()` return everything that must survive a crash: weights, optimiser, averages, schedule, generator and
the carried state itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, Self, cast

import torch
from torch import Generator, Tensor

from lmtrain.data.stream import Chunk
from lmtrain.distributed.group import ALONE, Columns, Group
from lmtrain.expected import Leaf, Like, compare, shown, within
from lmtrain.machine import keep_freed_memory
from lmtrain.models.base import NeuralLanguageModel, State, detach
from lmtrain.models.dropout import ColumnGenerator
from lmtrain.models.ngram import NgramModel
from lmtrain.progress import watched
from lmtrain.training.averaging import Averaging
from lmtrain.training.optimizer import (
    clip_gradients,
    drop_gradients,
    expected_optimizer,
    load_optimizer,
    optimizer_tensors,
    set_rate,
)
from lmtrain.training.random_state import expected_random, load_random_document, random_document
from lmtrain.training.schedule import Progress, Schedule

Tensors = dict[str, dict[str, Tensor]]  # file name -> tensor name -> tensor


class StepReport(NamedTuple):
    """The numbers of a step. `loss` is None if a learner does not know it (counting). The loop adds `seconds`."""

    num_items: int
    loss: float | None = None  # total over the items of the batch
    penalty: float = 0.0
    grad_norm: float = 0.0
    clipped: bool = False
    learning_rate: float = 0.0
    seconds: float = 0.0

    @property
    def is_finite(self) -> bool:
        return self.loss is None or (math.isfinite(self.loss + self.penalty) and math.isfinite(self.grad_norm))


class Known(NamedTuple):
    """Facts about a saved state, with which the state of its learner is compared."""

    num_steps: int
    num_items: int
    best_cost: float | None  # of the validations that were finite
    batch_size: int


@dataclass
class Learner(ABC):
    """A model and the way in which it learns.

    rate_scale   multiplies the learning rate; each rollback halves it
    can_diverge  whether it is a fault if numbers of the model are not finite (the log 0 of an n-gram is no fault)
    has_gradients  whether it learns by gradients of a loss
    """

    model: Any
    rate_scale: float = field(default=1.0, kw_only=True)
    can_diverge: ClassVar[bool] = True
    has_gradients: ClassVar[bool] = True

    @abstractmethod
    def step(self, batch: Any, progress: Progress) -> StepReport:
        """Learns from one batch. If the report is not finite, nothing has been updated and no state is carried on."""

    @abstractmethod
    def evaluated(self) -> AbstractContextManager[Any]:
        """Opens the model as it should be evaluated (averaged weights, no dropout). Afterwards training goes on as before."""

    @abstractmethod
    def after_evaluation(self, cost: float) -> None:
        """Tells schedules and averages the cost of a validation: lower is better."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """Returns the tensors to save: `model` is what inference needs, `training` is the rest."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Returns the JSON-able rest of what must survive."""

    @abstractmethod
    def expected(self, names: Collection[str], known: Known) -> tuple[dict[str, dict[str, Like]], dict[str, Any]]:
        """Returns what `tensors()` and `document()` of another process return, if `training` has tensors of these names."""

    @abstractmethod
    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        """Goes on from `tensors()` and `document()` of another process, which are as `expected`."""

    def shared(self, group: Group, batch_size: int) -> Learner:
        """Returns the learner as one of the processes that learn together from batches of so many columns."""
        assert group.size == 1, f"{type(self).__name__} learns in one process"
        return self

    def own(self, batch: Any) -> Any:
        """Returns the part of a batch from which this process learns."""
        return batch

    def agree(self) -> None:  # noqa: B027 (only what several processes learn can differ)
        """Gives all processes what the first one has learnt, bit for bit. They call it at the same time."""

    def gathered(self) -> AbstractContextManager[None]:
        """Makes `tensors()` return what all processes have together. They open it at the same time."""
        return nullcontext()


class Trainable(Protocol):
    """The model of a `GradientLearner`, which is a module."""

    def loss(self, batch: Any, generator: Generator) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over the items of a batch, and the penalty to add to its mean; both are scalars."""


@dataclass
class GradientLearner(Learner):
    """Gradient descent on the mean loss of a batch. The model is a module and `Trainable`.

    learning_rate    the rate that the schedule multiplies
    clip_norm        largest norm of the whole gradient; 0 for none
    l1               weight of the sum of absolute matrix entries in the loss
    autocast         opens the precision under which the forward pass runs
    frozen           parameters by name that stay as they are before an epoch (from 0; infinity: always)
    group, columns   the processes that learn together, and the columns of this one; None if it has all
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    averaging: Averaging
    generator: Generator
    learning_rate: float
    clip_norm: float = 0.0
    l1: float = 0.0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    frozen: Mapping[str, float] = field(default_factory=dict)
    group: Group = ALONE
    columns: Columns | None = None

    @cached_property
    def _parameters(self) -> list[torch.nn.Parameter]:
        """Those of the model, which are looked for once: going through all modules takes time in every step."""
        return list(self.model.parameters())

    def step(self, batch: Any, progress: Progress) -> StepReport:
        batch = batch.to(self._parameters[0].device)
        if not self.model.training:
            self.model.train()
        self.freeze(self.model, batch.epoch)
        rate = self.learning_rate * self.schedule.rate(progress) * self._rate_of(batch) * self.rate_scale
        set_rate(self.optimizer, rate, self.schedule.beta1(progress))
        return self._learn(batch, rate)

    def freeze(self, model: torch.nn.Module, epoch: float) -> None:
        """Says which parameters of the model, or of a copy of it, are learnt in an epoch."""
        for name, first in self.frozen.items():
            model.get_parameter(name).requires_grad_(epoch >= first)

    def objective(self, model: torch.nn.Module, batch: Any, generator: Generator) -> Tensor:
        """Returns what a step minimises: the mean loss of the batch and all penalties. `model` is a copy of the learner's.

        The carried states are those with which the step would begin. Nothing of the learner changes.
        """
        loss, penalty = cast(Trainable, model).loss(batch, generator)
        return loss / batch.num_items + self._penalised(model, penalty)

    def _rate_of(self, batch: Any) -> float:
        """Returns the factor of the learning rate for one batch."""
        return 1.0

    def _learn(self, batch: Any, rate: float) -> StepReport:
        """Computes gradients, checks their norm, and updates the weights."""
        with self.autocast():
            loss, penalty = cast(Trainable, self.model).loss(batch, self.generator)
        loss, penalty, grad_norm = self._backward(loss, penalty, batch.num_items)
        return self._updated(self._report(batch.num_items, loss.item(), penalty.item(), grad_norm.item(), rate))

    def _backward(self, loss: Tensor, penalty: Tensor, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the gradients of the mean loss over `num_items` and of the penalties, which are means over columns.

        Returns the total loss, the penalty and the norm of the gradient before clipping, each of all processes together.
        """
        penalty = self._penalised(self.model, penalty)
        if self.columns is not None:
            penalty = penalty * self.columns.share
        drop_gradients(self.optimizer)
        with self.group.early_sums():
            (loss / num_items + penalty).backward()
        loss, penalty = self.group.sum_gradients(self._parameters, loss.detach(), penalty.detach())
        return loss, penalty, clip_gradients(self._parameters, self.clip_norm, self.group)

    def _penalised(self, model: torch.nn.Module, penalty: Tensor) -> Tensor:
        if not self.l1:
            return penalty
        matrices = [weight for weight in model.parameters() if weight.dim() > 1 and weight.requires_grad]
        return penalty + self.l1 * torch.stack([weight.abs().sum() for weight in matrices]).sum()

    def _updated(self, report: StepReport) -> StepReport:
        """Updates the weights if the report is finite; returns the report."""
        if report.is_finite:
            self.optimizer.step()
            self.averaging.update()
        return report

    def _report(self, num_items: int, loss: float, penalty: float, grad_norm: float, rate: float) -> StepReport:
        return StepReport(num_items, loss, penalty, grad_norm, 0 < self.clip_norm < grad_norm, rate)

    def evaluated(self) -> AbstractContextManager[Any]:
        return self._evaluated()

    @contextmanager
    def _evaluated(self) -> Iterator[Any]:
        was_training = self.model.training
        self.model.eval()
        try:
            with self.averaging.averaged():
                yield self.model
        finally:
            self.model.train(was_training)

    def after_evaluation(self, cost: float) -> None:
        self.schedule.after_evaluation(cost)
        self.averaging.after_evaluation(cost)

    def agree(self) -> None:
        moments, _ = optimizer_tensors(self.optimizer)
        self.group.take(*self.model.parameters(), *self.model.buffers(), *moments.values(), *self.averaging.tensors().values())

    def tensors(self) -> Tensors:
        moments, _ = optimizer_tensors(self.optimizer)
        training = {f"optimizer.{name}": tensor for name, tensor in moments.items()}
        training |= {f"averaging.{name}": tensor for name, tensor in self.averaging.tensors().items()}
        raw = {f"raw.{name}": tensor for name, tensor in shared_once(self.model).items()}
        with self.averaging.averaged():
            weights = {name: tensor.clone() for name, tensor in shared_once(self.model).items()}
        if self.averaging.differs:
            training |= raw  # the file `model` then holds the averaged weights
        return {"model": weights, "training": training}

    def document(self) -> dict[str, Any]:
        return {
            "optimizer": optimizer_tensors(self.optimizer)[1],
            "schedule": self.schedule.document(),
            "averaging": self.averaging.document(),
            "random": random_document({"dropout": self.generator}),
            "rate_scale": self.rate_scale,
        }

    def expected(self, names: Collection[str], known: Known) -> tuple[dict[str, dict[str, Like]], dict[str, Any]]:
        weights, num_steps = expected_weights(self.model), known.num_steps
        is_averaged = any(name.startswith("averaging.") for name in names)
        own = {name.removeprefix("optimizer.") for name in names if name.startswith("optimizer.")}
        moments, memory = expected_optimizer(self.optimizer, own, num_steps)
        parts = {
            "optimizer": moments,
            "averaging": self.averaging.expected_tensors(is_averaged),
            "raw": weights if is_averaged else {},
        }
        training = {f"{part}.{name}": like for part, members in parts.items() for name, like in members.items()}
        return {"model": weights, "training": training}, {
            "optimizer": memory,
            "schedule": self.schedule.expected_document(num_steps, known.best_cost),
            "averaging": self.averaging.expected_document(is_averaged, num_steps, known.best_cost),
            "random": expected_random({"dropout": self.generator}),
            "rate_scale": _Halved(),
        }

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        training = tensors["training"]
        raw = _part(training, "raw.")
        load_weights(self.model, raw or tensors["model"])
        load_optimizer(self.optimizer, _part(training, "optimizer."), document["optimizer"])
        self.averaging.load(_part(training, "averaging."), document["averaging"])
        self.schedule.load(document["schedule"])
        load_random_document(document["random"], {"dropout": self.generator})
        self.rate_scale = document["rate_scale"]


@dataclass
class SequenceLearner(GradientLearner):
    """Truncated backpropagation through time over the carried state of a language model.

    overlap      further steps before a chunk to which gradients reach back (k2 - k1): BPTT(k2; k1) of Williams and Peng
    full_length  the chunk length for which the learning rate is meant; the rate of other lengths is scaled (Merity 2017)
    """

    model: NeuralLanguageModel
    overlap: int = 0
    full_length: int | None = None
    state: State = ()
    earlier_TB: Tensor | None = field(default=None, repr=False)  # tokens after `state` that the next backward pass repeats

    def shared(self, group: Group, batch_size: int) -> Self:
        if group.size > 1:
            self.group, self.columns = group, group.columns(batch_size)
            self.agree()  # each has drawn or computed its own weights
            self.generator = ColumnGenerator(self.generator, self.columns)
        return self

    def own(self, chunk: Chunk) -> Chunk:
        if self.columns is None:
            return chunk
        inputs_TB, targets_TB = (self.columns.of(x_TB, 1).contiguous() for x_TB in (chunk.inputs_TB, chunk.targets_TB))
        return replace(chunk, inputs_TB=inputs_TB, targets_TB=targets_TB)

    def gathered(self) -> AbstractContextManager[None]:
        return nullcontext() if self.columns is None else self._gathered(self.columns)

    @contextmanager
    def _gathered(self, columns: Columns) -> Iterator[None]:
        own = self.state, self.earlier_TB
        self.state = tuple(self.group.whole(tensor, columns, 0) for tensor in self.state)
        self.earlier_TB = None if self.earlier_TB is None else self.group.whole(self.earlier_TB, columns, 1)
        try:
            yield
        finally:
            self.state, self.earlier_TB = own

    def _rate_of(self, batch: Chunk) -> float:
        return len(batch.targets_TB) / self.full_length if self.full_length else 1.0

    def objective(self, model: torch.nn.Module, batch: Chunk, generator: Generator) -> Tensor:
        state, earlier_TB = self.carried(batch)
        inputs_TB, carry_after = self._with_overlap(batch, earlier_TB)
        dtype = next(model.parameters()).dtype
        state = tuple(x.to(dtype) if x.is_floating_point() else x for x in state)
        nats, penalty, _ = cast(NeuralLanguageModel, model).training_loss(
            inputs_TB, batch.targets_TB, state, generator, carry_after=carry_after
        )
        return nats / batch.num_items + self._penalised(model, penalty)

    def _learn(self, batch: Chunk, rate: float) -> StepReport:
        batch = self.own(batch)
        self.state, self.earlier_TB = self.carried(batch)
        inputs_TB, carry_after = self._with_overlap(batch, self.earlier_TB)
        report = self._learn_chunk(inputs_TB, batch.targets_TB, carry_after, rate)
        if carry_after is not None and report.is_finite:
            self.earlier_TB = inputs_TB[carry_after:]  # they follow the state that is carried from now on
        return report

    def _learn_chunk(self, inputs_TB: Tensor, targets_TB: Tensor, carry_after: int | None, rate: float) -> StepReport:
        loss, penalty, grad_norm, state = self._gradients(inputs_TB, targets_TB, self.state, carry_after)
        report = self._updated(self._report(self._num_items(targets_TB), loss.item(), penalty.item(), grad_norm.item(), rate))
        if report.is_finite:
            self.state = detach(state)  # else the one before the chunk is carried on, which was finite
        return report

    def _gradients(
        self, inputs_TB: Tensor, targets_TB: Tensor, state: State, carry_after: int | None
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Runs forward and backward; returns total nats, penalty, the gradient's norm before clipping, the state to carry."""
        with self.autocast():
            nats, penalty, state = self.model.training_loss(
                inputs_TB, targets_TB, state, self.generator, carry_after=carry_after
            )
        nats, penalty, grad_norm = self._backward(nats, penalty, self._num_items(targets_TB))
        return nats.detach(), penalty, grad_norm, state

    def _num_items(self, targets_TB: Tensor) -> int:
        """Returns the number of tokens of the step in all processes."""
        return targets_TB.numel() if self.columns is None else len(targets_TB) * self.columns.total

    def tensors(self) -> Tensors:
        tensors = super().tensors()
        tensors["training"] |= {
            f"state.{name}": tensor for name, tensor in zip(self._state_names(), self.state, strict=bool(self.state))
        }
        if self.earlier_TB is not None:
            tensors["training"]["earlier"] = self.earlier_TB
        return tensors

    def _state_names(self) -> tuple[str, ...]:
        return self.model.state_names()

    def expected(self, names: Collection[str], known: Known) -> tuple[dict[str, dict[str, Like]], dict[str, Any]]:
        tensors, document = super().expected(names, known)
        if known.num_steps:
            tensors["training"] |= self._expected_state(known.batch_size, is_numbered="state.0" in names)
        if self.overlap and known.num_steps and "earlier" in names:  # not there while an epoch's first chunks were skipped
            tensors["training"]["earlier"] = self._ids(range(1, self.overlap + 1), known.batch_size)
        return tensors, document

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        super().load(tensors, document)
        training, device = tensors["training"], next(self.model.parameters()).device
        carried = _part(training, "state.")
        names = self._state_names() if "0" not in carried else map(str, range(len(carried)))
        state = tuple(carried[name].to(device) for name in names) if carried else ()
        earlier_TB = training["earlier"].to(device) if "earlier" in training else None
        if self.columns is not None:  # a checkpoint has those of all processes
            state = tuple(self.columns.of(tensor, 0).clone() for tensor in state)
            earlier_TB = None if earlier_TB is None else self.columns.of(earlier_TB, 1).clone()
        self.state, self.earlier_TB = state, earlier_TB

    def _expected_state(self, batch_size: int, *, is_numbered: bool) -> dict[str, Like]:
        """Returns what a saved state looks like: as the initial one, on any device. Its integers are ids of tokens.

        Its tensors have names; checkpoints of earlier versions have numbers instead (`is_numbered`).
        """
        likes = [
            Like.of(tensor) if tensor.is_floating_point() else self._ids(*tensor.shape)
            for tensor in self.model.initial_state(batch_size)
        ]
        names = map(str, range(len(likes))) if is_numbered else self._state_names()
        return {f"state.{name}": like for name, like in zip(names, likes, strict=True)}

    def _ids(self, *shape: int | range) -> Like:
        return Like(shape, torch.int64, least=0, most=self.model.vocab_size - 1)

    def carried(self, chunk: Chunk) -> tuple[State, Tensor | None]:
        """Returns the state with which a step on `chunk` begins, and the tokens after it that the backward pass repeats."""
        if chunk.starts_epoch or not self.state:
            return self.model.initial_state(chunk.inputs_TB.shape[1]), None
        return self.state, self.earlier_TB

    def _with_overlap(self, chunk: Chunk, earlier_TB: Tensor | None) -> tuple[Tensor, int | None]:
        """Returns the chunk's inputs after those to which gradients reach back, and how many inputs precede the carried state.

        The carried state is the one before the last `overlap` inputs; near the start of an epoch, with fewer, before all.
        """
        if not self.overlap:
            return chunk.inputs_TB, None
        inputs_TB = chunk.inputs_TB if earlier_TB is None else torch.cat([earlier_TB, chunk.inputs_TB])
        return inputs_TB, max(0, len(inputs_TB) - self.overlap)


@dataclass
class CountLearner(Learner):
    """Counts n-grams chunk by chunk. The model estimates when it is first asked."""

    model: NgramModel
    can_diverge = has_gradients = False

    def step(self, batch: Chunk, progress: Progress) -> StepReport:
        self.model.count(batch.targets_TB[:, 0].numpy())
        return StepReport(batch.num_items)

    def evaluated(self) -> AbstractContextManager[NgramModel]:
        return self._evaluated()

    @contextmanager
    def _evaluated(self) -> Iterator[NgramModel]:
        with watched("Estimating the probabilities of n-grams"):
            self.model.finish()
        keep_freed_memory(False)  # gives back what counting took besides its results
        yield self.model

    def after_evaluation(self, cost: float) -> None:
        """Does nothing: counting does not depend on validation."""

    def tensors(self) -> Tensors:
        model = self.model.tensors()
        return {"model": model, "training": {name: ids for name, ids in self.model.counted().items() if name not in model}}

    def document(self) -> dict[str, Any]:
        return {}

    def expected(self, names: Collection[str], known: Known) -> tuple[dict[str, dict[str, Like]], dict[str, Any]]:
        counted = {"counted_ids": Like((known.num_items,), torch.int32, least=0, most=self.model.vocab_size - 1)}
        if "counted_ids" in names:  # the table was estimated from them
            return {"model": self.model.expected_table(), "training": counted}, {}
        return {"model": counted, "training": {}}, {}

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        with within("model.safetensors: "):
            self.model.load({**tensors["model"], **tensors["training"]})


@dataclass(frozen=True)
class _Halved(Leaf):
    """The factor of the learning rate: 1, halved by each rollback."""

    def problem(self, value: Any) -> str:
        is_one = type(value) in (int, float) and 0 < value <= 1 and math.frexp(value)[0] == 0.5
        return "" if is_one else f"is {shown(value)}"

    def __str__(self) -> str:
        return "1, 1/2, 1/4 and so on"


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` into `model`. Raises UnfitError if they are of another model."""
    compare(expected_weights(model), weights)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def expected_weights(model: torch.nn.Module) -> dict[str, Like]:
    """Returns what a saved model of this kind consists of. A shared tensor is stored under the first of its names."""
    ranges = {
        f"{prefix}{'.' * bool(prefix)}{name}": bounds
        for prefix, module in model.named_modules()
        for name, bounds in getattr(module, "ranges", {}).items()
    }
    return {name: Like.of(tensor, *ranges.get(name, ())) for name, tensor in shared_once(model).items()}


def shared_once(model: torch.nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name, a shared one (a head tied to the embedding) under its first name only."""
    names = {id(tensor): name for name, tensor in reversed([*model.named_parameters(remove_duplicate=False)])}
    shared = {name for name, tensor in model.named_parameters(remove_duplicate=False) if names[id(tensor)] != name}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
