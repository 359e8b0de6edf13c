"""A whole training step, recorded once and replayed: on a GPU a CUDA graph, which starts hundreds of kernels in one launch.

    eager    the first steps, and every chunk of another shape: `SequenceLearner`, kernel by kernel
    record   is done once: forward, backward, clipping, update and the state to carry, over buffers that keep their place
    replay   copies a chunk into these buffers and plays the record; the host gets three numbers, in one transfer

What the host decides in an eager step is decided on the device here: if the loss or the gradient is not finite, the update
is left out (`found_inf` of PyTorch's fused optimisers) and the carried state stays. The learning rate is a tensor. The random
generator is registered with the graph, so each replay draws what an eager step would have drawn. So a
replayed step computes what the eager one does, with the same kernels in the same order, and a run that is resumed (and is
eager again for its first steps) goes on as if it had not been interrupted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from lmtrain.distributed.group import Group
from lmtrain.errors import ResourceError, is_out_of_memory
from lmtrain.models.base import State
from lmtrain.ops.cuda_graph import Record, record_cuda_graph
from lmtrain.training.learner import SequenceLearner, StepReport, Tensors
from lmtrain.training.optimizer import SparseAdam
from lmtrain.training.schedule import Progress

log = logging.getLogger("lmtrain")

EAGER_STEPS = 3  # eager ones of a shape: then libraries, compiled kernels and the optimiser's memory exist

Shape = tuple[torch.Size, torch.Size, int | None]  # of inputs and targets, and after how many inputs the state is carried


@dataclass
class GraphedLearner(SequenceLearner):
    """A `SequenceLearner` that records its step and replays it; one shape of chunk is recorded, others run eagerly."""

    record: Record = record_cuda_graph
    num_replayed: int = 0
    _seen: Counter[Shape] = field(default_factory=Counter, repr=False)
    _recorded: RecordedStep | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (reason := why_no_graph(self)) is None, reason
        self._make_capturable()

    def shared(self, group: Group, batch_size: int) -> SequenceLearner:  # type: ignore[override]
        """Returns an eager learner: several processes exchange their gradients within a step, which cannot be recorded."""
        if group.size == 1:
            return self
        log.info("Steps are not recorded as a CUDA graph: several processes train together.")
        learner = SequenceLearner(**{f.name: getattr(self, f.name) for f in fields(SequenceLearner)})
        return learner.shared(group, batch_size)

    def load(self, tensors: Tensors, document: Mapping[str, Any]) -> None:
        super().load(tensors, document)
        self._make_capturable()
        self._seen.clear()
        self._recorded = None  # the optimiser's memory has moved

    def _learn_chunk(self, inputs_TB: Tensor, targets_TB: Tensor, carry_after: int | None, rate: float) -> StepReport:
        shape = inputs_TB.shape, targets_TB.shape, carry_after
        if self._recorded is None:
            if self._seen[shape] < EAGER_STEPS:
                # Copies begin where a record's buffers would: kernels are compiled for the alignment of their arguments.
                report = super()._learn_chunk(inputs_TB.clone(), targets_TB.clone(), carry_after, rate)
                self._seen[shape] += report.is_finite  # a step without an update makes no memory for the optimiser
                return report
            self._recorded = self._record_step(inputs_TB, targets_TB, carry_after)
        if self._recorded.shape != shape:
            return super()._learn_chunk(inputs_TB, targets_TB, carry_after, rate)
        nats, penalty, grad_norm = self._recorded.play(inputs_TB, targets_TB, self.state)
        self.state = self._recorded.state
        self.num_replayed += 1
        report = self._report(targets_TB.numel(), nats, penalty, grad_norm, rate)
        if report.is_finite:
            self.averaging.update()
        return report

    def _record_step(self, inputs_TB: Tensor, targets_TB: Tensor, carry_after: int | None) -> RecordedStep:
        try:
            return RecordedStep(self, inputs_TB, targets_TB, carry_after)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ResourceError(  # the generator and the weights may be in the middle of a step, and unfit for use
                f"The step cannot be recorded as a CUDA graph: {str(error).partition(chr(10))[0]}.",
                "",
                "Type trainer.cuda_graph=off; steps are then computed kernel by kernel.",
            ) from error

    def _make_capturable(self) -> None:
        """Makes the rate a tensor and keeps the number of steps on the device, in eager steps too, for the same arithmetic."""
        device = next(self.model.parameters()).device
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
            if "capturable" in group:
                group["capturable"] = True


class RecordedStep:
    """One step over buffers that keep their place: inputs, targets, carried state, and the three numbers for the host."""

    def __init__(self, learner: GraphedLearner, inputs_TB: Tensor, targets_TB: Tensor, carry_after: int | None) -> None:
        self.shape = inputs_TB.shape, targets_TB.shape, carry_after
        self.inputs_TB, self.targets_TB = inputs_TB.clone(), targets_TB.clone()
        self.state: State = tuple(tensor.clone() for tensor in learner.state)
        self.numbers_3 = torch.zeros(3, dtype=torch.float64, device=inputs_TB.device)

        def work() -> None:
            nats, penalty, grad_norm, state = learner._gradients(self.inputs_TB, self.targets_TB, self.state, carry_after)
            torch.stack([nats.double(), penalty.double(), grad_norm.double()], out=self.numbers_3)
            is_finite = self.numbers_3.isfinite().all()
            update_where(is_finite, learner.optimizer)
            for old, new in zip(self.state, state, strict=True):
                old.copy_(torch.where(is_finite, new.detach(), old))

        self._play = learner.record(work, learner.generator)

    def play(self, inputs_TB: Tensor, targets_TB: Tensor, state: State) -> list[float]:
        """Learns from a chunk and returns the numbers. `state` is the one before it, unless the buffers have it already."""
        self.inputs_TB.copy_(inputs_TB)
        self.targets_TB.copy_(targets_TB)
        for buffer, tensor in zip(self.state, state, strict=True):
            if buffer is not tensor:
                buffer.copy_(tensor)
        self._play()
        numbers: list[float] = self.numbers_3.tolist()
        return numbers


def update_where(is_finite: Tensor, optimizer: Optimizer) -> None:
    """Takes the optimiser's step, which its fused kernel leaves out if `is_finite` is not true."""
    vars(optimizer)["found_inf"] = 1.0 - is_finite.float()
    try:
        optimizer.step()
    finally:
        del vars(optimizer)["found_inf"]


def graphed(learner: SequenceLearner) -> GraphedLearner:
    """Returns the same learner, but one that records."""
    return GraphedLearner(**{f.name: getattr(learner, f.name) for f in fields(learner)})


def why_no_graph(learner: SequenceLearner) -> str | None:
    """Says why the learner's step cannot be recorded and replayed, as a clause without a full stop; None if it can."""
    optimizer, head = learner.optimizer, learner.model.head
    if not isinstance(optimizer, (Adam, SGD)) or not all(group.get("fused") for group in optimizer.param_groups):
        return f"{type(optimizer).__name__} has no fused kernel that can leave out an update"
    if isinstance(optimizer, SparseAdam):
        return "SparseAdam updates another number of rows in every step"
    if not head.can_be_recorded:
        return f"what {type(head).__name__} does depends on the words of a chunk"
    if learner.schedule.beta1(Progress(step=0, epoch=0.0, fraction=0.0)) is not None:
        return f"{type(learner.schedule).__name__} moves beta1, which would be recorded"
    if learner.frozen:
        return "word vectors that are frozen at first take no part in the first steps"
    if learner.full_length:
        return "chunks of random length have no common shape"
    return None
