"""The score of a model, and the words in which a task speaks of it.

Whatever is learnt, one number tells whether a model is better than another. Language models have nats per token, where less
is better; taggers and classifiers have the fraction that is right, where more is better. Schedules and averages are told a
*cost*: the number itself if less is better, else 1 minus it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Score(Protocol):
    """The result of an evaluation."""

    @property
    def value(self) -> float:
        """Returns the number by which models are compared; NaN if the model has diverged."""

    def numbers(self) -> Mapping[str, float | None]:
        """Returns what is recorded at each evaluation, by names that become the tags `val/NAME`."""

    def line(self, mark: str = "") -> str:
        """Returns the score as one line for the log, with `mark` after the number."""

    def format(self) -> str:
        """Returns the score with everything that it depends on, as lines to read."""

    def to_json(self) -> dict[str, Any]:
        """Returns the same for programs."""


@dataclass(frozen=True)
class Wording:
    """The words of a task.

    items   what the loss sums over; a record counts them as `train/ITEMS` and `perf/ITEMS_per_second`
    loss    the mean loss: the tag `train/LOSS`
    value   the measure of validation: the tag `val/best_VALUE`
    higher_is_better  whether a model with a larger value is the better one; the value then lies between 0 and 1
    """

    items: str = "tokens"
    loss: str = "nats_per_token"
    value: str = "nats_per_token"
    higher_is_better: bool = False

    def cost(self, value: float) -> float:
        """Returns the number that falls as the model becomes better."""
        return 1 - value if self.higher_is_better else value


TOKENS = Wording()
