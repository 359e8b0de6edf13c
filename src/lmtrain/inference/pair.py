"""Two models of whole lines as one: a forward and a backward model, say, which cannot be mixed token by token.

    P(line) = (1 - weight) P_1(line) + weight P_2(line)

The weight is given, or fitted (`fit_share`): that with which lines that neither model was trained on are likeliest.

Each model gives a probability to every line, whatever the order in which it reads the tokens, so this is a mixture like any
other (Jelinek and Mercer 1980), over lines. Both must count the same in a line (its end, say) for their numbers to be
comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lmtrain.errors import DataError, SettingsError
from lmtrain.models.mixture import fit_weights


def check_weight(weight: float) -> None:
    """Raises SettingsError for a weight of the second model that is no share."""
    if not 0 <= weight <= 1:
        raise SettingsError(
            f"other_weight is {weight}.",
            "It is the share of the second model, from 0 to 1.",
            "Type for example other_weight=0.5.",
        )


def mixed(first: float, second: float, weight: float) -> float:
    """The logarithm of the mixture of two probabilities, given by their logarithms."""
    parts = [log_prob + math.log(share) for log_prob, share in ((first, 1 - weight), (second, weight)) if share > 0]
    highest = max(parts)
    if highest == -math.inf:
        return highest
    return highest + math.log(math.fsum(math.exp(part - highest) for part in parts))


def fit_share(first: Sequence[float], second: Sequence[float]) -> float:
    """The share of the second model under which lines with these log-probabilities by each model are likeliest.

    Raises DataError for no lines, and for one that has probability zero under both.
    """
    if not len(first):
        raise DataError("There is no line to fit the share of the second model on.", "At least one is needed.", "Give a text.")
    return fit_weights(torch.tensor([first, second], dtype=torch.float64), lambda number: f"Line {number + 1:,} of the text")[1]
