"""How much of a held-out text is in the training text of a model: what `mix` and `evaluate` print and warn of.

A fraction of 1 % of the lines is suspicious. But texts repeat themselves a little by nature, so twice the fraction of the
model's other held-out texts is added to the 1 %, though no more than 5 %. Of several parts, the one with the least counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lmtrain.data.overlap import Hashes, Overlap, find_overlap
from lmtrain.quantity import counted

SUSPICIOUS = 0.01
MAX_NATURAL = 0.05


class Part(NamedTuple):
    """A model that is no mixture: its name in messages, and the hashes of its training lines, if they were kept."""

    name: str
    train: Hashes | None


def name_parts(name: str, train: Sequence[Hashes | None]) -> list[Part]:
    """Returns the parts of the model `name`: itself, or those of a mixture by number."""
    if len(train) == 1:
        return [Part(name, train[0])]
    return [Part(f"part {number} of {name}", hashes) for number, hashes in enumerate(train, 1)]


class Finding(NamedTuple):
    """How much of one text is in the training text of each part; None if that is not known."""

    text: str
    overlaps: list[tuple[str, Overlap | None]]
    limit: float  # the fraction from which on it is suspicious

    def format(self) -> str:
        """Says in one line what is known."""
        known = [(name, overlap) for name, overlap in self.overlaps if overlap is not None]
        unknown = ", ".join(name for name, overlap in self.overlaps if overlap is None)
        sentences = []
        if known and not (compared := max(overlap.num_compared for _, overlap in known)):
            sentences.append(f"Too few lines of {self.text} are long enough to be looked for in the training text.")
        elif known:
            first, *others = (f"{overlap.share:.1%}" for _, overlap in known)
            shares = [f"{first} are in the training text of {known[0][0]}"]
            shares += [f"{share} in that of {name}" for share, (name, _) in zip(others, known[1:], strict=True)]
            sentences.append(f"Of {counted(compared, 'distinct line')} of {self.text}, {', '.join(shares)}.")
        if unknown:
            sentences.append(
                f"Whether {self.text} is in the training text of {unknown} cannot be told: no hashes of its lines were saved."
            )
        return " ".join(sentences)

    def warn(self, consequence: str, remedy: str) -> None:
        """Warns of each part in whose training text there is too much of the text."""
        for name, overlap in self.overlaps:
            if overlap is not None and overlap.share >= self.limit:
                print(
                    f"lmtrain: {overlap.share:.1%} of the distinct lines of {self.text} are in the training text of {name}: "
                    f"{consequence}. {remedy}",
                    file=sys.stderr,
                )


def look_for(text: str, lines: Hashes | None, parts: Sequence[Part], others: Iterable[Hashes]) -> Finding:
    """Looks for `lines` (None: not kept), those of a text called `text`, in what `parts` were trained on.

    `others` are the lines of the model's other held-out texts.
    """
    others = list(others)
    trains = [part.train for part in parts if part.train is not None]
    natural = min((max((find_overlap(other, train).share for other in others), default=0.0) for train in trains), default=0.0)
    overlaps = [(part.name, None if lines is None or part.train is None else find_overlap(lines, part.train)) for part in parts]
    return Finding(text, overlaps, SUSPICIOUS + min(2 * natural, MAX_NATURAL))
