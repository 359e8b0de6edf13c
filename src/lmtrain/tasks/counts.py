"""Numbers by which both taggers and classifiers are judged: precision, recall and F1 of a class, and confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lmtrain.shell import num_columns, one_line, padded

MAX_CLASSES = 12  # of a table of confusions
HEAD = "is \\ taken for"


class Counts(NamedTuple):
    """How many of a class were right, how many were found, and how many there are."""

    num_right: int = 0
    num_found: int = 0
    num_there: int = 0

    @property
    def precision(self) -> float:
        return self.num_right / self.num_found if self.num_found else 0.0

    @property
    def recall(self) -> float:
        return self.num_right / self.num_there if self.num_there else 0.0

    @property
    def f1(self) -> float:
        """Returns the harmonic mean of precision and recall; 0 if nothing is right."""
        return 2 * self.num_right / (self.num_found + self.num_there) if self.num_right else 0.0

    def to_json(self) -> dict[str, float]:
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1, **self._asdict()}


def iter_classes(head: str, rows: Iterable[tuple[str, Counts]]) -> Iterator[str]:
    """Yields a table with a line for each class, in per cent; `head` says what the classes are of."""
    named = [(one_line(name), counts) for name, counts in rows]
    width = max(map(num_columns, [head, *(name for name, _ in named)]))
    yield f"{head:<{width}} precision  recall      F1   right   found   there"
    for name, counts in named:
        shares = f"{100 * counts.precision:>9.2f} {100 * counts.recall:>7.2f} {100 * counts.f1:>7.2f}"
        yield f"{padded(name, width)} {shares} {counts.num_right:>7,} {counts.num_found:>7,} {counts.num_there:>7,}"


def iter_confusion(classes: Sequence[str], counts: Mapping[tuple[str, str], int], unit: str) -> Iterator[str]:
    """Says how often a class (line) was taken for another (column), by `unit`; of many classes the most frequent mistakes."""
    if len(classes) > MAX_CLASSES:
        mistakes = Counter({pair: count for pair, count in counts.items() if pair[0] != pair[1] and count})
        yield f"most frequent mistakes, by {unit}:"
        for (right, taken), count in mistakes.most_common(MAX_CLASSES):
            yield f"  {one_line(right)} taken for {one_line(taken)}: {count:,}"
        return
    names = list(map(one_line, classes))
    first, width = max(map(num_columns, [HEAD, *names])) + 1, max([7, *map(num_columns, names)]) + 1
    yield f"{HEAD:<{first}}" + "".join(padded(name, width, right=True) for name in names)
    for row, name in zip(classes, names, strict=True):
        yield padded(name, first) + "".join(f"{counts.get((row, column), 0):>{width},}" for column in classes)
