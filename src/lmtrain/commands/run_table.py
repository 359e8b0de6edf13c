"""Tables of runs: those of a task, best first, and the means and standard deviations over seeds.

A language model is compared in nats per token with others of its vocabulary. If vocabularies differ, models that spell every
token are compared in bits per character; the others come last, those of one vocabulary together, and a remark says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmtrain.quantity import counted
from lmtrain.settings.defaults import SEED, default_settings
from lmtrain.settings.quoting import written
from lmtrain.training.run_record import Result, RunRecord

ENDED_WELL = "finished"
NOTHING = "-"
MAX_LETTERS = 40  # of a setting in a table
OF_VALIDATION = " *"  # behind a number in a column of the test
NOTE_OF_VALIDATION = "* is of the whole validation split, as there is no test split: settings were chosen on that text."


@dataclass
class Table:
    """A heading, the names of columns, rows of cells, and remarks below."""

    heading: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measure:
    """A number by which runs are compared, with how it is written, and whether it compares within one vocabulary alone."""

    name: str
    of: Callable[[Result], float | None]
    write: Callable[[float], str]
    higher_is_better: bool = False
    of_one_vocabulary: bool = False

    def order(self, result: Result | None) -> tuple[bool, float]:
        """Returns what is smaller for a better result; results without the number come last."""
        value = None if result is None else self.of(result)
        return value is None, 0.0 if value is None else -value if self.higher_is_better else value


NATS = Measure("nats/token", lambda result: result.value, "{:.4f}".format, of_one_vocabulary=True)
PERPLEXITY = Measure(
    "ppl", lambda result: None if result.value is None else _exp(result.value), "{:.2f}".format, of_one_vocabulary=True
)
BITS = Measure("bits/char", lambda result: result.bits_per_character, "{:.4f}".format)


def by_task(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Returns the runs of each task, and of each measure, apart."""
    kinds: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        kinds.setdefault((record.task, record.measure), []).append(record)
    return [kinds[kind] for kind in sorted(kinds)]


def measures_of(records: Sequence[RunRecord]) -> list[Measure]:
    """Returns the measures by which runs of one task are compared; the first one gives the order."""
    first = records[0]
    if first.task != "language":
        name = first.measure.replace("_", " ")
        return [Measure(name, lambda result: result.value, "{:.4f}".format, higher_is_better=first.higher_is_better)]
    return [BITS, PERPLEXITY] if len({_vocabulary(record) for record in records}) > 1 else [NATS, PERPLEXITY]


def table_of_runs(records: Sequence[RunRecord], name: Callable[[RunRecord], str]) -> Table:
    """Returns the table of all runs of one task, best first. `name` names a run."""
    measures, settings = measures_of(records), varying(records)
    ordered = sorted(records, key=lambda record: (*_order(record, measures[0]), str(record.path)))
    columns = ["run", *settings, "seed", *_headings(measures), "parameters", ordered[0].items, "seconds",
               f"{ordered[0].items}/s", "ended"]  # fmt: skip
    rows = [
        [
            name(record), *(_setting(record, key) for key in settings), _text(record.seed), *_numbers(record, measures),
            _count(record.num_parameters or None), _count(record.num_items),
            _seconds(record.seconds), _count(record.items_per_second), _ended(record),
        ]
        for record in ordered
    ]  # fmt: skip
    return Table(
        f"{records[0].task}: {_count_of(records)}, best first ({_how(measures[0])})", columns, rows, notes_on(records, measures)
    )


def table_of_groups(records: Sequence[RunRecord], keys: Sequence[str] | None) -> Table | None:
    """Returns mean ± standard deviation over the runs that differ in the seed alone, or that agree in the settings `keys`.

    Only runs that have ended well count. None if there is no group of several runs and none was asked for. Numbers that
    compare within one vocabulary alone have no mean where the runs of a group have several.
    """
    finished = [record for record in records if record.status == ENDED_WELL]
    counted = [record for record in finished if record.valid is not None]
    groups = group(counted, keys)
    if not groups or (keys is None and max(map(len, groups)) < 2):
        return None
    measures = measures_of(records)
    settings = varying(counted) if keys is None else list(keys)
    ordered = sorted(groups, key=lambda runs: mean_order(runs, measures[0]))
    rows, without_mean = [], list[str]()
    for runs in ordered:
        mark = OF_VALIDATION if any(run.test_split == "valid" for run in runs) else ""
        has_several = len({_vocabulary(run) for run in runs}) > 1
        incomparable = [measure for measure in measures if has_several and measure.of_one_vocabulary]
        without_mean += [measure.name for measure in incomparable]
        spreads = [
            _marked(
                spread([None if r is None or measure in incomparable else measure.of(r) for r in results], measure.write),
                of_test,
            )
            for results, of_test in (([run.valid for run in runs], ""), ([run.test for run in runs], mark))
            for measure in measures
        ]
        seeds = len({_text(run.seed) for run in runs})
        rows.append([*(_setting(runs[0], key) for key in settings), str(len(runs)), str(seeds), *spreads])
    over = "over seeds" if keys is None else f"of the runs of each {', '.join(keys)}"
    heading = f"{records[0].task}: mean ± standard deviation {over}, best first ({_how(measures[0])})"
    notes = [
        f"{left_out} {what} {'is' if left_out == 1 else 'are'} not counted."
        for left_out, what in (
            (len(records) - len(finished), "that did not end well"),
            (len(finished) - len(counted), "without a finite validation"),
        )
        if left_out
    ]
    if without_mean:
        notes.append(f"{without_mean[0]} has no mean ({NOTHING}) where the runs of a row have different vocabularies.")
    if any(run.test_split == "valid" for run in counted):
        notes.append(NOTE_OF_VALIDATION)
    return Table(heading, [*settings, "runs", "seeds", *_headings(measures)], rows, notes)


def group(records: Sequence[RunRecord], keys: Sequence[str] | None) -> list[list[RunRecord]]:
    """Groups the runs that agree in the settings `keys`, or without keys in all but the seed."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        names = sorted({*record.settings} - {SEED}) if keys is None else keys
        groups.setdefault(repr([(name, value_of(record, name)) for name in names]), []).append(record)
    return list(groups.values())


def varying(records: Sequence[RunRecord]) -> list[str]:
    """Returns the settings, but for the seed, in which these runs differ from each other."""
    keys = dict.fromkeys(key for record in records for key in record.differing)
    several = [key for key in keys if len({repr(value_of(record, key)) for record in records}) > 1]
    return [key for key in several if key != "trainer.chunk_length" or "tokenizer" not in several]


def value_of(record: RunRecord, key: str) -> Any:
    """Returns a setting of a run: the default if its version had none of this name, None if its model has none."""
    return record.settings[key] if key in record.settings else default_settings(record.settings).get(key)


def spread(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    """Returns mean ± standard deviation (of a sample: over n - 1) of the numbers that exist, and says how many they are."""
    there = [value for value in values if value is not None]
    if not there:
        return NOTHING
    text = write(statistics.fmean(there))
    if len(there) > 1:
        text += f" ± {write(statistics.stdev(there))}"
    return text if len(there) == len(values) else f"{text} ({len(there)} of {len(values)})"


def notes_on(records: Sequence[RunRecord], measures: Sequence[Measure]) -> list[str]:
    """Says what limits the comparison."""
    notes = []
    if measures[0] is BITS:
        notes.append(
            "Vocabularies differ: compare bits per character. A perplexity (ppl) compares within one vocabulary alone."
        )
        if any(record.valid is not None and record.valid.bits_per_character is None for record in records):
            notes.append(
                "Runs with <unk>, which they do not spell, have no bits per character: compare them within one vocabulary."
            )
    texts = {key for key in varying(records) if key == "data" or key.startswith("data.")}
    if texts:
        notes.append(f"The runs differ in {', '.join(sorted(texts))}: numbers on different texts do not compare.")
    lengths = {record.valid.facts.get("num_tokens") for record in records if record.valid is not None} - {None}
    if len(lengths) > 1 and measures[0] is NATS and not texts:
        notes.append("Some were validated on a part of the validation text (trainer.evaluation_tokens), some on another.")
    if any(record.test_split == "valid" for record in records):
        notes.append(NOTE_OF_VALIDATION)
    return notes


def iter_failures(records: Sequence[RunRecord], name: Callable[[RunRecord], str]) -> Iterator[str]:
    """Yields a line for each run that failed."""
    for record in records:
        if record.status == "failed":
            at = f" (step {record.num_steps})" if record.num_steps else ""
            yield f"{name(record)}{at}: {record.reason}"


def _headings(measures: Sequence[Measure]) -> list[str]:
    return [f"{split} {measure.name}" for split in ("valid", "test") for measure in measures]


def _numbers(record: RunRecord, measures: Sequence[Measure]) -> list[str]:
    def written(result: Result | None, mark: str) -> list[str]:
        values = [None if result is None else measure.of(result) for measure in measures]
        return [
            NOTHING if value is None else measure.write(value) + mark for value, measure in zip(values, measures, strict=True)
        ]

    return [*written(record.valid, ""), *written(record.test, OF_VALIDATION if record.test_split == "valid" else "")]


def _marked(text: str, mark: str) -> str:
    return text if text == NOTHING else text + mark


def _order(record: RunRecord, measure: Measure) -> tuple[Any, ...]:
    """Returns what is smaller for a better run; of those without bits per character, one vocabulary stands together."""
    order = measure.order(record.valid)
    if measure is not BITS or not order[0]:
        return order
    return *order, record.valid is None, str(_vocabulary(record)), NATS.order(record.valid)


def mean_order(runs: Sequence[RunRecord], measure: Measure) -> tuple[bool, float]:
    """Returns what is smaller for a better group: the mean of `measure` on validation."""
    orders = [measure.order(run.valid) for run in runs]
    known = [value for is_lacking, value in orders if not is_lacking]
    return not known, statistics.fmean(known) if known else 0.0


def _vocabulary(record: RunRecord) -> object:
    """Returns what distinguishes vocabularies; for runs of earlier versions, the settings by which they were learnt."""
    return record.vocabulary or repr(
        [(k, v) for k, v in sorted(record.settings.items()) if k.split(".")[0] in ("tokenizer", "data")]
    )


def _how(measure: Measure) -> str:
    return f"by validation, {'more' if measure.higher_is_better else 'less'} is better"


def _ended(record: RunRecord) -> str:
    if record.status in ("killed", "running") and record.num_steps:
        return (
            f"{record.status} at step {record.num_steps}" if record.status == "killed" else f"running, step {record.num_steps}"
        )
    return "failed, see below" if record.status == "failed" else record.reason


def _setting(record: RunRecord, key: str) -> str:
    value = value_of(record, key)
    return NOTHING if value is None and key not in record.settings else _text(value)


def _text(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else written(value)
    return text if len(text) <= MAX_LETTERS else f"...{text[3 - MAX_LETTERS :]}"


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _count_of(records: Sequence[RunRecord]) -> str:
    return counted(len(records), "run")


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
