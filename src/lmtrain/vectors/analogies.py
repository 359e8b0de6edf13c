"""Analogies: a is to b as c is to ...? The share that the nearest word to b - a + c answers (Mikolov et al. 2013), by section.

A file of questions has sections, `: name`, and lines of four words, a b c d; Google's questions-words.txt is one. Lines that
begin with # or // are comments. Sections whose names begin with "gram" are syntactic, the others semantic. A question with a
word that has no vector is not asked but counted: accuracy is over the questions that were asked, and coverage stands beside
it. The words a, b and c are no answers. Of words that score the same, the first one (the most frequent, as files of vectors
are ordered) is the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.text import iter_text
from lmtrain.errors import DataError
from lmtrain.quantity import counted
from lmtrain.shell import num_columns, one_line, padded
from lmtrain.vectors.table import Vectors, check_method, score_analogies

BLOCK_NUMBERS = 1 << 24  # scores that are computed at once: 64 MB


@dataclass(frozen=True)
class Section:
    """How the questions of one section, or of several together, were answered."""

    name: str
    num_questions: int
    num_answered: int  # those whose four words have vectors
    num_correct: int

    @property
    def accuracy(self) -> float:
        """Share of the answered questions that is correct; nan where none was answered."""
        return self.num_correct / self.num_answered if self.num_answered else float("nan")

    @property
    def coverage(self) -> float:
        """Share of the questions that could be answered."""
        return self.num_answered / self.num_questions if self.num_questions else float("nan")

    @property
    def is_syntactic(self) -> bool:
        return self.name.startswith("gram")

    def to_json(self) -> dict[str, Any]:
        """As a dictionary; null for a share of nothing."""
        return {
            "name": self.name, "accuracy": self.accuracy if self.num_answered else None,
            "coverage": self.coverage if self.num_questions else None,
            "num_questions": self.num_questions, "num_answered": self.num_answered, "num_correct": self.num_correct,
        }  # fmt: skip


@dataclass(frozen=True)
class Analogies:
    """The answers to a file of questions."""

    sections: tuple[Section, ...]
    method: str
    lower_case: bool  # whether the questions' words were looked up in lower case

    @property
    def semantic(self) -> Section:
        """All sections that are not syntactic, together."""
        return _together("semantic", [section for section in self.sections if not section.is_syntactic])

    @property
    def syntactic(self) -> Section:
        """All sections whose names begin with "gram", together."""
        return _together("syntactic", [section for section in self.sections if section.is_syntactic])

    @property
    def total(self) -> Section:
        """All sections together."""
        return _together("total", self.sections)

    def format(self) -> str:
        """A table: a line for each section, then the sums."""
        kinds = [self.semantic, self.syntactic] if all(kind.num_questions for kind in (self.semantic, self.syntactic)) else []
        shown = [*self.sections, *kinds, self.total]
        width = max(num_columns(one_line(section.name)) for section in shown)
        lines = [f"{'section':<{width}}  accuracy   correct  answered  questions  coverage"]
        for section in shown:
            accuracy = f"{section.accuracy:.2%}" if section.num_answered else "-"
            lines.append(
                f"{padded(one_line(section.name), width)}  {accuracy:>8}  {section.num_correct:>8,}  {section.num_answered:>8,}"
                f"  {section.num_questions:>9,}  {f'{section.coverage:.2%}' if section.num_questions else '-':>8}"
            )
        lines.insert(len(lines) - 1 - len(kinds), "")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return {
            "method": self.method, "lower_case": self.lower_case, "ties": "lowest index",
            "total": self.total.to_json(), "semantic": self.semantic.to_json(), "syntactic": self.syntactic.to_json(),
            "sections": [section.to_json() for section in self.sections],
        }  # fmt: skip


def _together(name: str, sections: Iterable[Section]) -> Section:
    sections = list(sections)
    sums = (sum(getattr(s, field) for s in sections) for field in ("num_questions", "num_answered", "num_correct"))
    return Section(name, *sums)


def read_questions(path: Path) -> list[tuple[str, list[tuple[str, ...]]]]:
    """The sections of a file with their questions. Raises DataError, with the line, for what is no question."""
    sections: list[tuple[str, list[tuple[str, ...]]]] = []
    for number, line in enumerate("".join(iter_text(path)).split("\n"), 1):
        words = tuple(line.split())
        if line.startswith(("#", "//")):
            continue
        if line.lstrip().startswith(":"):
            sections.append((line.strip()[1:].strip() or f"line {number}", []))
        elif words and not sections:
            raise DataError(
                f"Line {number} of {path} stands in no section: {one_line(repr(line[:60]))}.",
                "A file of analogies begins with a section, ': name', and has lines of four words.",
                "Give such a file (Google's questions-words.txt is one), or put  : all  in front of its first line.",
            )
        elif words and len(words) != 4:
            raise DataError(
                f"Line {number} of {path} has {counted(len(words), 'word')}: {one_line(repr(line[:60]))}.",
                "A question has four: a is to b as c is to d.",
                "Mend the line, or take it out.",
            )
        elif words:
            sections[-1][1].append(words)
    if not any(questions for _, questions in sections):
        raise DataError(
            f"{path} holds no question.",
            "A file of analogies has sections, ': name', and lines of four words.",
            "Give such a file; Google's questions-words.txt is one.",
        )
    return sections


def evaluate_analogies(
    vectors: Vectors, path: Path, *, method: str = "add", most_frequent: int | None = None, keep_case: bool = False
) -> Analogies:
    """Answers the questions of a file. See `Vectors.evaluate_analogies`."""
    check_method(method)
    sections = read_questions(path)
    lower_case = not keep_case and not vectors.has_capitals
    vectors = vectors.most_frequent(most_frequent)
    asked = [[_rows(vectors, question, lower_case) for question in questions] for _, questions in sections]
    known = [[rows for rows in section if rows is not None] for section in asked]
    correct = iter(_answer(vectors, np.array([rows for section in known for rows in section]).reshape(-1, 4), method).tolist())
    results = [
        Section(name, len(questions), len(rows), sum(next(correct) for _ in rows))
        for (name, questions), rows in zip(sections, known, strict=True)
    ]
    return Analogies(tuple(results), method, lower_case)


def _rows(vectors: Vectors, question: tuple[str, ...], lower_case: bool) -> list[int] | None:
    rows = [vectors.row(word.lower() if lower_case else word) for word in question]
    return None if None in rows else rows  # type: ignore[return-value]


def _answer(vectors: Vectors, questions_N4: NDArray[np.int64], method: str) -> NDArray[np.bool_]:
    """Whether each question is answered with its fourth word; in blocks, so that memory stays bounded."""
    comparable_V = vectors.matrix.any(axis=1)
    size = max(1, BLOCK_NUMBERS // (4 * max(len(vectors), 1)))
    correct = [np.zeros(0, np.bool_)]
    for start in range(0, len(questions_N4), size):
        block = questions_N4[start : start + size]
        scores_NV = score_analogies(vectors.unit, block[:, :3], method)
        scores_NV[:, ~comparable_V] = -np.inf
        np.put_along_axis(scores_NV, block[:, :3], -np.inf, axis=1)
        correct.append(scores_NV.argmax(axis=1) == block[:, 3])
    return np.concatenate(correct)
