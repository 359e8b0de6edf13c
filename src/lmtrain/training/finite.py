"""Numbers that go wrong: weights that are not finite, a loss that jumps.

The loop looks at the loss and at the gradient's norm before each update; weights are looked at before they become `last`
or `best`, and before one samples from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those floating-point tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]


@dataclass(frozen=True)
class Spikes:
    """Running mean and variance of a loss, exponentially weighted over about `1 / (1 - decay)` steps.

        d = x - mean      mean' = mean + (1 - decay) d      variance' = decay (variance + (1 - decay) d^2)

    West (1979), "Updating mean and variance estimates". During the first `warm_up` values nothing is a spike.
    """

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0
    decay: float = 0.99
    warm_up: int = 100

    def is_spike(self, value: float, num_deviations: float = 6.0) -> bool:
        """Whether `value` lies more than `num_deviations` standard deviations above the mean."""
        return self.count >= self.warm_up and value > self.mean + num_deviations * math.sqrt(self.variance)

    def with_value(self, value: float) -> Spikes:
        """The same with `value` counted in; a value that is not finite is not."""
        if not math.isfinite(value):
            return self
        if self.count == 0:
            return replace(self, mean=value, count=1)
        weight = max(1 - self.decay, 1 / (self.count + 1))  # a plain mean until there are enough values
        difference = value - self.mean
        return replace(
            self,
            mean=self.mean + weight * difference,
            variance=(1 - weight) * (self.variance + weight * difference**2),
            count=self.count + 1,
        )
