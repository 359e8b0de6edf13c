"""How good a model is by validation, and the words in which a task speaks of that.

Whatever is learnt, one number tells whether a model is better than another. Language models have nats per token, where less
is better; taggers and classifiers have shares of what is right, where more is. What schedules and averages are told is a
*cost*: the number itself where less is better, else 1 minus it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Score(Protocol):
    """What an evaluation gives."""

    @property
    def value(self) -> float:
        """The number by which models are compared; NaN where the model has diverged."""

    def numbers(self) -> Mapping[str, float | None]:
        """What is recorded at each evaluation, by names that become the tags `val/NAME`."""

    def line(self, mark: str = "") -> str:
        """The score in the log: one line, with `mark` behind the number."""

    def format(self) -> str:
        """The score with everything that it depends on, as lines to read."""

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""


@dataclass(frozen=True)
class Wording:
    """The words of a task.

    items   what the loss is a sum over; a record counts them as `train/ITEMS` and `perf/ITEMS_per_second`
    loss    the mean loss: the tag `train/LOSS`
    value   what validation is judged by: the tag `val/best_VALUE`
    higher_is_better  whether a model with a larger value is the better one; the value then lies between 0 and 1
    """

    items: str = "tokens"
    loss: str = "nats_per_token"
    value: str = "nats_per_token"
    higher_is_better: bool = False

    def cost(self, value: float) -> float:
        """What becomes less as the model becomes better."""
        return 1 - value if self.higher_is_better else value


TOKENS = Wording()
