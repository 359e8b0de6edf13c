"""A comparison of two models as a person reads it, and as a table for programs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from lmtrain.inference.comparison import Comparison, Occurrence, Row
from lmtrain.inference.evaluate import number_text, perplexity_text
from lmtrain.inference.graphemes import belong_together
from lmtrain.quantity import counted
from lmtrain.shell import one_line, padded

TSV_HEADER = "section\tgroup\tline\tcount\tnats_a\tnats_b\tdifference\tbefore\tbehind"
MAX_SHOWN = 80  # characters of a line


def format_comparison(comparison: Comparison) -> str:
    """The numbers, who wins, then where: group by group, and in context."""
    return "\n".join([*_head(comparison), *_tables(comparison), *_contexts(comparison)])


def _head(comparison: Comparison) -> Iterator[str]:
    unit, total = comparison.unit, comparison.total
    for letter, label, nats in zip("AB", comparison.labels, (total.nats_a, total.nats_b), strict=True):
        perplexity = f" · perplexity {perplexity_text(nats)}" if unit == "token" else ""
        yield f"{letter}  {one_line(label)}: {number_text(nats, 4)} nats per {unit}{perplexity}"
    if comparison.interval is None:
        sure = "one line gives no interval"
    else:
        low, high = comparison.interval
        sure = f"95 % interval {low:+.4f} to {high:+.4f} (paired bootstrap over {comparison.num_lines:,} lines)"
    yield f"A - B: {total.difference:+.4f} nats per {unit} over {counted(total.count, unit)}; {sure}: {comparison.verdict}"
    resampled = ""
    if comparison.interval is not None and total.difference:
        winner, share = ("B", comparison.better_b) if total.difference > 0 else ("A", 1 - comparison.better_b)
        resampled = f"; {winner} is better in {100 * share:.4g} % of the resampled texts"
    yield f"A is better in {counted(comparison.lines_a, 'line')}, B in {comparison.lines_b:,}{resampled}"
    if comparison.impossible_a or comparison.impossible_b:
        what = "tokens" if unit == "token" else "lines"
        yield (
            f"{what.capitalize()} of probability zero are left out: {comparison.impossible_a:,} of A, "
            f"{comparison.impossible_b:,} of B"
        )


def _tables(comparison: Comparison) -> Iterator[str]:
    for section, rows in groupby(comparison.rows, key=lambda row: row.section):
        heading = section if section != "token" else "tokens that make most of the difference"
        unit = "bytes" if section == "unit" else f"{comparison.unit}s"
        yield f"\n{one_line(heading)}\n{unit:>48}{'A':>10}{'B':>10}{'A - B':>10}"
        yield from map(_row, rows)


def _row(row: Row) -> str:
    name = _cut(row.group, 34)
    return f"  {padded(name, 34)}{row.count:>12,}{row.nats_a:>10.4f}{row.nats_b:>10.4f}{row.difference:>+10.4f}"


def _contexts(comparison: Comparison) -> Iterator[str]:
    if not comparison.shown:
        return
    what = "tokens in context" if comparison.unit == "token" else "lines"
    yield f"\nThe {what} that differ most:\n{'line':>8}{'A':>10}{'B':>10}{'A - B':>10}"
    for one in comparison.shown:
        yield f"{one.line:>8,}{one.nats_a:>10.4f}{one.nats_b:>10.4f}{one.difference:>+10.4f}  {_in_context(one)}"


def _in_context(one: Occurrence) -> str:
    if not one.before and not one.behind:
        return _cut(one.text, MAX_SHOWN)
    before, behind = _shown(one.before), _shown(one.behind)
    return f"{_end(before, MAX_SHOWN // 2)}[{_shown(one.text)}]{_start(behind, MAX_SHOWN // 4)}"


def _shown(text: str) -> str:
    return one_line(text).replace("\t", "\\t")


def _cut(text: str, most: int) -> str:
    text = _shown(text)
    return text if len(text) <= most else f"{_start(text, most - 3)}..."


def _start(text: str, most: int) -> str:
    """At most so many characters from the start, none of them parted from its accents."""
    while 0 < most < len(text) and belong_together(text[:most], text[most]):
        most -= 1
    return text[:most]


def _end(text: str, most: int) -> str:
    first = max(0, len(text) - most)
    while 0 < first < len(text) and belong_together(text[:first], text[first]):
        first += 1
    return text[first:]


def tsv(comparison: Comparison) -> Iterator[str]:
    """Rows under TSV_HEADER; line ends and tabs within a text as escape sequences."""
    yield TSV_HEADER
    for row in (comparison.total, *comparison.rows):
        yield _fields(row.section, row.group, "", str(row.count), row.nats_a, row.nats_b)
    for one in comparison.shown:
        section = "occurrence" if comparison.unit == "token" else "line"
        yield _fields(section, one.text, str(one.line), "1", one.nats_a, one.nats_b, one.before, one.behind)


def _fields(
    section: str, group: str, line: str, count: str, nats_a: float, nats_b: float, before: str = "", behind: str = ""
) -> str:
    numbers = [number_text(value, 6) for value in (nats_a, nats_b, nats_a - nats_b)]
    return "\t".join([section, _shown(group), line, count, *numbers, _shown(before), _shown(behind)])
