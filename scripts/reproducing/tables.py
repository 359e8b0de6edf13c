"""Tables of results as Markdown, between two marks in a README, so that nobody copies a number by hand.

<!-- table brown, made from scripts/results.json -->
| model | valid | ...
<!-- end of table brown -->
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.errors import DataError
from lmtrain.files.unfinished import write_atomically
from reproducing.results import Number, Result, chosen

SEEDS = (1, 2, 3)


class Place(NamedTuple):
    """Where data lie, and where runs go."""

    data: Path
    output: Path


class Made(NamedTuple):
    """What a row gave with one seed. `seconds`: of the training, or of the row's own command; None where they are not told."""

    numbers: Mapping[str, Number]
    seconds: float | None


def as_typed(settings: str) -> str:
    """Settings as a README has them: DATA is the directory of Brown."""
    return settings.replace("{data}/brown", "DATA").replace("{data}/tiny", "tiny").replace("{data}", "../shared/data")


@dataclass(frozen=True)
class Row:
    """Something that is measured once per seed.

    name      unique among all tables; the first word is the table's
    command   as one types it, with DATA, LSTM and so on for places
    make      trains and evaluates what is missing in a place
    seeds     that belong in the table; one where nothing is drawn, or where a run takes more than half an hour
    needs     below the directory of the data
    """

    name: str
    command: str
    make: Callable[[Place, int], Made]
    seeds: tuple[int, ...] = SEEDS
    needs: tuple[str, ...] = ()


class Cell(NamedTuple):
    """A template of `str.format`, whose arguments are the numbers of rows: "{0[valid]:.2f} / {0[test]:.2f}"."""

    template: str
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of a README (a path below the repository; none for a table that is only printed)."""

    name: str
    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    readme: str = ""

    @property
    def rows(self) -> list[Row]:
        """Every row once, in the order of the table."""
        return list({row.name: row for line in self.lines for cell in line for row in cell.rows}.values())


@dataclass
class Spread:
    """Values of several seeds. As text: mean and standard deviation; with `each ` before the format, all; `mean `: that."""

    values: Sequence[float] = ()
    told_deviation: float | None = None
    _none: str = field(default="-", repr=False)

    def __format__(self, spec: str) -> str:
        if not self.values:
            return self._none
        if spec.startswith("each "):
            return ", ".join(format(value, spec[5:]) for value in self.values)
        mean = format(statistics.fmean(self.values), spec.removeprefix("mean "))
        deviation = self.told_deviation if len(self.values) == 1 else statistics.stdev(self.values)
        return mean if deviation is None or spec.startswith("mean ") else f"{mean} ± {deviation:{spec}}"


class Numbers(dict[str, Any]):
    """The numbers of a row by name; besides, `time` and `measured` in words. A name that was not measured is a dash."""

    def __init__(self, results: Sequence[Result]) -> None:
        names = dict.fromkeys(name for each in results for name in each.numbers)
        super().__init__({name: _spread(results, name) for name in names})
        seconds = [each.seconds for each in results if each.seconds is not None]
        self["time"] = _duration(statistics.median(seconds)) if seconds else "-"
        self["measured"] = _circumstances(results)

    def __missing__(self, name: str) -> Spread:
        return Spread()


def _spread(results: Sequence[Result], name: str) -> Spread:
    values: list[float] = []
    for each in results:
        value = each.numbers.get(name)
        values += value if isinstance(value, list) else [value] if value is not None else []
    told = next((each.deviations[name] for each in results if each.deviations and name in each.deviations), None)
    return Spread(values, told)


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes".replace(".0 ", " ")


def _circumstances(results: Sequence[Result]) -> str:
    """Where and when, and of how many runs where there are several."""
    if not results:
        return "not yet"
    machines = dict.fromkeys(each.machine for each in results if each.machine)
    date = max((each.date for each in results if each.date), default=None)
    count = sum(each.num_runs for each in results)
    return ", ".join([*machines, *([date] if date else []), *([f"{count} seeds"] if count > 1 else [])]) or "-"


def rendered(table: Table, results: Sequence[Result]) -> str:
    """The Markdown of a table."""

    def shown(cell: Cell) -> str:
        return cell.template.format(*(Numbers(chosen(results, row.name)) for row in cell.rows))

    lines = [table.columns, *([shown(cell) for cell in line] for line in table.lines)]
    head, *body = ("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|\n" for line in lines)
    return head + "|" + "---|" * len(table.columns) + "\n" + "".join(body)


def placed(text: str, table: Table, results: Sequence[Result]) -> str:
    """The text of a README with this table in its place. Raises DataError where the place is not marked exactly once."""
    begin, end = marks(table)
    pattern = re.compile(f"(?s)(?<={re.escape(begin)}\n).*?(?={re.escape(end)}\n)")
    if len(pattern.findall(text)) != 1 or text.count(begin) != 1:
        raise DataError(
            f"{table.readme} has no single place for the table {table.name}.",
            "A table stands between two lines, which stand there once.",
            f"Write them:  {begin}  and  {end}",
        )
    return pattern.sub(lambda _: rendered(table, results), text)


def marks(table: Table) -> tuple[str, str]:
    return f"<!-- table {table.name}, made from scripts/results.json -->", f"<!-- end of table {table.name} -->"


def write_tables(root: Path, tables: Sequence[Table], results: Sequence[Result]) -> list[Path]:
    """Brings the READMEs below `root` up to date; those that changed."""
    changed = []
    for readme in dict.fromkeys(table.readme for table in tables if table.readme):
        path = root / readme
        if not path.exists():  # only scripts/ and src/ were copied
            continue
        before = text = path.read_text(encoding="utf-8")
        for table in tables:
            if table.readme == readme:
                text = placed(text, table, results)
        if text != before:
            write_atomically(path, text)
            changed.append(path)
    return changed
