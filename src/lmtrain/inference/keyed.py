"""Lines that begin with columns which are no text: keys, and the scores of n-best lists.

    utterance-7 <tab> -812.4 <tab> the cat sat        columns id, score; separated by tabs
    utterance-7 the cat sat                           column id; separated by spaces

The columns are taken off while the text goes by in blocks, so that they are neither scored nor lost, and given back line by
line. The text is all that stands behind them; it may be empty.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lmtrain.errors import DataError
from lmtrain.shell import one_line

SEPARATORS = {"plain": ("tab", re.compile("[\t\n]")), "kaldi": ("space", re.compile("[ \t\n]"))}
LONGEST = 1 << 16  # characters of all columns of a line


class Keyed(NamedTuple):
    """What stood before a line's text, and the text itself where it was kept."""

    columns: dict[str, str]
    text: str


class KeyedLines:
    """The text of keyed lines in blocks, its last line ended; `take` gives the columns of one line after the other.

    blocks     the lines as they are read, cut anywhere
    columns    the names of those before the text; what is called `score` must be a finite number, what is called `_` is
               skipped
    style      "plain": columns end with a tab; "kaldi": with a space or more
    keep_text  whether `take` gives the text, too

    Raises DataError, with the line, where a column is missing or no number.
    """

    def __init__(self, blocks: Iterable[str], columns: Sequence[str], style: str, *, keep_text: bool = False) -> None:
        self._blocks, self._columns, self._keep_text = blocks, columns, keep_text
        self._name, self._end = SEPARATORS[style]
        self._taken: deque[tuple[dict[str, str], list[str]]] = deque()
        self._number = 0

    def take(self) -> Keyed:
        """The next line, whose text has been read to its end."""
        columns, parts = self._taken.popleft()
        return Keyed(columns, "".join(parts).removesuffix("\n"))

    def __iter__(self) -> Iterator[str]:
        held, in_text = "", False
        for block in self._blocks:
            text, place = held + block, 0
            shown: list[str] = []
            while place < len(text):
                if not in_text:
                    behind = self._take_columns(text, place)
                    if behind is None:
                        break
                    place, in_text = behind, True
                end = text.find("\n", place) + 1
                part = text[place : end or len(text)]
                self._show(part, shown)
                place, in_text = place + len(part), not end
            held = text[place:]
            if shown:
                yield "".join(shown)
        if held or in_text:  # the last line has no end
            shown, held = [], held + "\n"
            behind = 0 if in_text else self._take_columns(held, 0)
            assert behind is not None, "a line end ends every column"
            self._show(held[behind:], shown)
            yield "".join(shown)

    def _show(self, text: str, shown: list[str]) -> None:
        if self._keep_text:
            self._taken[-1][1].append(text)
        shown.append(text)

    def _take_columns(self, text: str, start: int) -> int | None:
        """Takes the columns of the line that begins at `start`: where its text begins; None where more must be read first."""
        values: list[str] = []
        place = start
        for column in self._columns:
            found = self._end.search(text, place)
            if found is None and len(text) - start <= LONGEST:
                return None
            may_end = self._name == "space" and len(values) == len(self._columns) - 1
            if found is None or found.start() == place or (found[0] == "\n" and not may_end):
                raise self._missing(text, start, column)
            values.append(text[place : found.start()])
            place = found.start()
            if found[0] != "\n":  # behind which the text is empty
                place += 1
                while self._name == "space" and place < len(text) and text[place] in " \t":
                    place += 1
                if self._name == "space" and place == len(text):
                    return None  # more spaces may follow
            if column == "score":
                self._check_number(values[-1])
        self._number += 1
        self._taken.append((dict(zip(self._columns, values, strict=True)), []))
        return place

    def _missing(self, text: str, start: int, column: str) -> DataError:
        shown = one_line(text[start : start + 60].partition("\n")[0])
        remedies = ["Mend the line"]
        if self._name == "tab":
            remedies.append("type --format kaldi where columns end with a space")
        if len(self._columns) > 1:
            remedies.append("give the names of other columns, for example --columns id,text")
        return DataError(
            f"Line {self._number + 1:,} has no column {column!r}: {shown!r}.",
            f"Each line is {' '.join([*self._columns, 'text'])}, with a {self._name} behind each column.",
            ", or ".join(remedies) + ".",
        )

    def _check_number(self, value: str) -> None:
        if not _is_finite(value):
            raise DataError(
                f"The score in line {self._number + 1:,} is {one_line(value[:40])!r}.",
                "A score is a finite number such as -812.4.",
                "Type --columns id,text where the lines hold no score.",
            )


def _is_finite(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
