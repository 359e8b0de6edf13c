"""What is done when a loss, a gradient or a weight is not finite.

The loop checks the loss and the gradient's norm before each update. Weights are checked before they become `last` or `best`,
and before one samples from them. `trainer.on_nonfinite` says what happens then:

    stop      saves all there is in `crash/` of the run, and ends with exit code 5
    skip      leaves the batch out: neither weights nor the carried state change
    rollback  goes back to the newest scheduled checkpoint, with half the learning rate from there on. If training then comes
              no further, it goes back to the best one, which has been validated

If a validation is not a number, the model has diverged, and there is nothing to skip.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from lmtrain.data.batches import Batch
from lmtrain.errors import CheckpointError, DivergedError, ResourceError
from lmtrain.training.state import TrainState, Trouble

log = logging.getLogger("lmtrain")

MAX_SKIPPED = 100  # steps in a row; a model that cannot take a single one will not recover
MAX_ROLLBACKS = 10  # without coming any further; the learning rate is then a thousandth of what it was


@dataclass
class Nonfinite:
    """Does what `policy` says about numbers that are not finite.

    policy       stop, skip or rollback
    save_crash   keeps the state and the batch that it could not take, to be looked at; returns where
    load         puts the last scheduled (or the best) checkpoint into the state; raises CheckpointError if there is none
    remedy       what to type instead, by the settings of the run
    """

    policy: str
    save_crash: Callable[[TrainState, Batch | None], Path]
    load: Callable[[TrainState, Literal["last", "best"]], object]
    remedy: str = "Resume with a smaller optimizer.learning_rate."

    def __call__(self, state: TrainState, problem: str, batch: Batch | None) -> None:
        """Raises DivergedError, or leaves a state from which training can go on; see the top of this file."""
        if self.policy == "skip" and batch is not None:
            self._skip(state, problem, batch)
        elif self.policy == "rollback":
            self._roll_back(state, problem, batch)
        else:
            self.stop(state, problem, batch)

    def stop(self, state: TrainState, problem: str, batch: Batch | None, tried: str = "") -> None:
        """Saves the crash and raises DivergedError."""
        try:
            kept = f"The state before it{' and the batch are' if batch else ' is'} in {self.save_crash(state, batch)}."
        except ResourceError as error:
            kept = f"The crash itself could not be saved: {error}"
        raise DivergedError(
            f"{problem}{tried}",
            f"No weight was changed by it. {kept}",
            self.remedy,
        )

    def _skip(self, state: TrainState, problem: str, batch: Batch) -> None:
        in_a_row = state.step == state.trouble.last_step + 1
        state.trouble = Trouble(state.step, state.trouble.count + 1 if in_a_row else 1)
        if state.trouble.count >= MAX_SKIPPED:
            self.stop(state, problem, batch, f" {MAX_SKIPPED} steps in a row were skipped.")
        log.warning("%s This batch is skipped.", problem)

    def _roll_back(self, state: TrainState, problem: str, batch: Batch | None) -> None:
        came_further = state.step > state.trouble.last_step
        trouble = Trouble(max(state.step, state.trouble.last_step), 1 if came_further else state.trouble.count + 1)
        if trouble.count > MAX_ROLLBACKS:
            self.stop(state, problem, batch, f" Going back was tried {MAX_ROLLBACKS} times.")
        scale = state.learner.rate_scale
        try:
            self.load(state, "last" if trouble.count == 1 else "best")
        except CheckpointError as error:
            self.stop(state, problem, batch, f" Going back is not possible: {error}")
        state.trouble = trouble  # not the one of the checkpoint
        state.learner.rate_scale = min(scale, state.learner.rate_scale) / 2
        log.warning(
            "%s Going back to step %d, from where the learning rate is multiplied by %g.",
            problem, state.step, state.learner.rate_scale,
        )  # fmt: skip


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of those floating-point tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
