"""`trainer.check_gradients=N` compares the gradients of a training with differences of its loss.

    slope(v)   (L(w + h v) - L(w - h v)) / 2h for single entries v of every parameter w, and for one random direction through
               all its entries. It is compared with the gradient by backpropagation, v . dL/dw
    L          what the learner minimises on the next batch: the mean loss and all penalties (weight decay belongs to the
               optimiser), from the carried state. A sampled softmax uses the same samples every time
    exact      a copy of the model computes in float64, without dropout (zoneout takes expectations). Its recurrences run
               through the functions of the backend eager, which `verify` compares with the compiled ones

Half of the entries are drawn from those with a gradient other than 0, as a batch has only some rows of a table of words; the
others are drawn from all. Frozen parameters are left out.

If the two are not CLOSE, the slope is extrapolated from h and h / 2 (Richardson 1911), exact up to h^4. The error is

    |gradient - slope| / (max(|gradient|, |slope|) + r / ALLOWED)       r = ROUNDING |L| / h, what rounding may do to a slope

so a small gradient raises no false alarm. If the slopes for h and h / 2 differ, there is a kink between them (a ReLU, a margin,
l1): h is made smaller until the error is at most CLOSE, and the gradient may also be that on one side of the kink. If many
kinks are at the weights themselves, as at weights of 0, the gradient may be that of no side. So before an alarm is raised,
everything is checked again with weights moved by normal numbers of deviation NEARBY.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lmtrain.data.batches import Batch, random_of
from lmtrain.errors import UserError
from lmtrain.progress import watched
from lmtrain.training.learner import GradientLearner, Learner
from lmtrain.training.session import GradientCheck
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")

ALLOWED = 1e-4
CLOSE = ALLOWED / 10  # with no larger error a slope is not looked at with a smaller h
STEPS = (1e-4, 1e-5, 1e-6, 1e-7)
ROUNDING = 64 * 2.0**-52
NEARBY = 1e-4
SMOOTH = 1e-5  # largest relative difference of two slopes between which there is no kink


class GradientError(UserError):
    """Is raised for a gradient that is not that of the loss: a bug in lmtrain, or in a change to it."""

    exit_code = 1


@dataclass(frozen=True)
class Difference:
    """One slope beside its gradient. `where` is the entry's index, counted from 0, or "a random direction"."""

    tensor: str
    where: str
    gradient: float
    slope: float
    error: float

    def __str__(self) -> str:
        return f"{self.tensor} ({self.where}: {self.gradient:.6g} by backpropagation, {self.slope:.6g} by differences)"


@dataclass(frozen=True)
class Checked:
    """What a check found: the largest difference, and how much was checked. `worst` is None if the loss is not finite."""

    worst: Difference | None
    num_tensors: int
    num_slopes: int

    def format(self, step: int) -> str:
        """Says it in one line."""
        if self.worst is None:
            return f"Gradients before step {step + 1} are not checked: the loss is not finite."
        return (
            f"Gradients before step {step + 1}: {self.num_slopes:,} slopes of {self.num_tensors} tensors checked; the largest "
            f"relative difference is {self.worst.error:.1e}, of {self.worst}."
        )

    def raise_if_wrong(self, step: int) -> None:
        """Raises GradientError if a gradient is wrong."""
        if self.worst is not None and not self.worst.error <= ALLOWED:
            raise GradientError(
                f"The gradient of {self.worst} is wrong before step {step + 1}: the relative difference is "
                f"{self.worst.error:.1e}.",
                f"Allowed is {ALLOWED:g}.",
                "This is an error in the program, not in the settings. Type  python -m lmtrain verify  to check each function "
                "by itself; trainer.check_gradients=0 trains without the check.",
            )


class ExactCopy:
    """A learner's model in float64 without dropout, and its loss on one batch; the learner stays as it is, bit for bit."""

    def __init__(self, learner: GradientLearner, batch: Any) -> None:
        self._learner = learner
        self._device = next(learner.model.parameters()).device
        self.batch = batch.to(self._device)
        self.model = copy.deepcopy(learner.model).double().eval()
        learner.freeze(self.model, batch.epoch)
        for module in self.model.modules():
            if getattr(module, "estimates", False):
                module.train()  # a head whose loss is another one in evaluation
            if hasattr(module, "backend"):
                vars(module)["backend"] = "eager"

    def loss(self) -> Tensor:
        """Returns what the learner minimises."""
        generator = torch.Generator(self._device).manual_seed(0)  # the same samples every time
        return self._learner.objective(self.model, self.batch, generator)

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Moves every weight that is learnt a little, away from kinks."""
        random = random_of("move", step)
        for weight in self.model.parameters():
            if weight.requires_grad:
                numbers = torch.from_numpy(random.standard_normal(weight.numel())).to(weight)
                weight.add_(numbers.view(weight.shape), alpha=NEARBY)

    def gradients(self) -> dict[str, Tensor]:
        """Returns the gradient of every parameter that is learnt, by backpropagation; 0 if the loss does not depend on it."""
        learnt = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        made = torch.autograd.grad(self.loss(), list(learnt.values()), allow_unused=True)
        return {
            name: torch.zeros_like(weight) if gradient is None else gradient.detach().to_dense()
            for (name, weight), gradient in zip(learnt.items(), made, strict=True)
        }


def gradient_check(learner: Learner, num_entries: int) -> GradientCheck | None:
    """Checks `num_entries` entries of every parameter and logs what was found. None if there is nothing to check."""
    if not (num_entries and learner.has_gradients):
        return None

    def check(state: TrainState, batch: Batch) -> None:
        checked = check_gradients(cast(GradientLearner, learner), learner.own(batch), num_entries, state.step)
        log.info("%s", checked.format(state.step))
        checked.raise_if_wrong(state.step)

    return check


def check_gradients(learner: GradientLearner, batch: Any, num_entries: int, step: int) -> Checked:
    """Compares `num_entries` entries of every parameter. `step` says which are drawn; nothing of the learner changes."""
    exact = ExactCopy(learner, batch)
    with torch.no_grad():
        if not math.isfinite(float(exact.loss())):
            return Checked(None, 0, 0)
    checked = _look(exact, num_entries, step)
    if checked.worst is not None and not checked.worst.error <= ALLOWED:
        exact.move(step)
        checked = _look(exact, num_entries, step)
    return checked


def _look(exact: ExactCopy, num_entries: int, step: int) -> Checked:
    gradients = exact.gradients()
    num_slopes = sum(min(gradient.numel(), num_entries) + (gradient.numel() > num_entries) for gradient in gradients.values())
    differences = []
    with torch.no_grad(), watched("Checking gradients", num_slopes, "slopes") as advance:
        loss = float(exact.loss())
        for number, (name, gradient) in enumerate(gradients.items()):
            for difference in _iter_differences(exact, name, gradient, num_entries, (step, number), loss):
                differences.append(difference)
                advance(1)
    worst = max(differences, key=lambda difference: difference.error, default=None)
    return Checked(worst, len(gradients), len(differences))


def _iter_differences(
    exact: ExactCopy, name: str, gradient: Tensor, num_entries: int, place: tuple[int, int], loss: float
) -> Iterator[Difference]:
    weight = exact.model.get_parameter(name)
    flat, d_flat = weight.data.view(-1), gradient.reshape(-1)
    random = random_of("check gradients", *place)
    for entry in _entries(d_flat, num_entries, random):
        before = flat[entry].clone()

        def at(shift: float, entry: int = entry, before: Tensor = before) -> float:
            flat[entry] = before + shift
            value = float(exact.loss())
            flat[entry] = before
            return value

        index = [int(i) for i in torch.unravel_index(torch.tensor(entry), weight.shape)]
        yield _compare(name, f"entry {index}", float(d_flat[entry]), at, loss)
    if len(flat) > num_entries:
        signs = torch.from_numpy(random.randint(0, 2, len(flat)) * 2.0 - 1).to(flat) / math.sqrt(len(flat))
        whole = flat.clone()

        def along(shift: float) -> float:
            flat.copy_(whole + shift * signs)
            value = float(exact.loss())
            flat.copy_(whole)
            return value

        typical = float(d_flat.norm()) / math.sqrt(len(flat))  # the sum over the entries may well be 0
        yield _compare(name, "a random direction", float(d_flat @ signs), along, loss, typical)


def _entries(d_flat: Tensor, num_entries: int, random: Any) -> list[int]:
    """Draws the entries that are checked, each at most once."""
    if len(d_flat) <= num_entries:
        return list(range(len(d_flat)))
    used = d_flat.nonzero()[:, 0].cpu().numpy()
    chosen = [int(used[i]) for i in random.choice(len(used), min(len(used), (num_entries + 1) // 2), replace=False)]
    while len(chosen) < num_entries:
        entry = int(random.randint(len(d_flat)))
        if entry not in chosen:
            chosen.append(entry)
    return chosen


def _compare(
    name: str, where: str, gradient: float, loss_at: Callable[[float], float], loss: float, typical: float = 0.0
) -> Difference:
    """Compares the gradient with the slope of `loss_at`, whose value at 0 is `loss`."""
    best = Difference(name, where, gradient, math.nan, math.inf)
    for h in STEPS:
        far = loss_at(-h), loss_at(h)
        whole, rounding = (far[1] - far[0]) / (2 * h), ROUNDING * max(map(abs, (loss, *far))) / h
        best = min(best, _difference(name, where, gradient, whole, rounding, typical), key=lambda d: d.error)
        if best.error <= CLOSE:
            break
        near = loss_at(-h / 2), loss_at(h / 2)
        half = (near[1] - near[0]) / h
        after, before = ((sign * (4 * near[i] - far[i] - 3 * loss) / h) for i, sign in ((1, 1), (0, -1)))
        for slope in ((4 * half - whole) / 3, after, before):
            best = min(best, _difference(name, where, gradient, slope, rounding, typical), key=lambda d: d.error)
        if best.error <= CLOSE or abs(half - whole) <= rounding + SMOOTH * max(abs(half), abs(whole)):
            break
    return best


def _difference(name: str, where: str, gradient: float, slope: float, rounding: float, typical: float) -> Difference:
    scale = max(abs(gradient), abs(slope), typical) + rounding / ALLOWED
    error = abs(gradient - slope) / scale if scale else 0.0
    return Difference(name, where, gradient, slope, math.inf if math.isnan(error) else error)
