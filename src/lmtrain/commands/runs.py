"""`python -m lmtrain runs [DIR ...]` prints the table of all runs below directories, best first, with the means over seeds.

Each task has a table of its own. Killed runs appear with their last record; failed ones are listed with
their reason. Without DIR, the runs in outputs/.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmtrain.commands.options import Parser, new_path
from lmtrain.commands.run_table import (
    Table,
    by_task,
    group,
    iter_failures,
    mean_order,
    measures_of,
    table_of_groups,
    table_of_runs,
    value_of,
)
from lmtrain.errors import SettingsError, unwritable
from lmtrain.files.unfinished import new_file
from lmtrain.settings.reading import nearest
from lmtrain.shell import expanded, num_columns, one_line, padded, shown
from lmtrain.terminal import warn
from lmtrain.training.run_record import NoRecordError, RunRecord, find_runs, read_run

EPILOG = """examples:
  runs                                       all runs in outputs/
  runs outputs/sweep --group-by model        one row for each model, mean and standard deviation over its runs (seeds, folds)
  runs outputs --csv runs.csv                also everything that is known of each run, one per line"""


def main(arguments: list[str]) -> None:
    """Prints the tables."""
    parser = Parser("runs", __doc__, EPILOG)
    parser.add_argument("directories", metavar="DIR", nargs="*", default=["outputs"], help="(default: outputs)")
    parser.add_argument("--group-by", metavar="SETTING,...", type=_names,
                        help="settings such as model,optimizer.learning_rate: one row for each of their values (default: all "
                        "settings but the seed)")  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="writes the runs as comma-separated values")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="runs and groups as JSON; null stands for what is not known")
    options = parser.parse_args(arguments)
    if options.json and options.markdown:
        raise SettingsError("--json was given with --markdown.", "Each says how it is shown.", "Leave one of them out.")
    file = None if options.csv is None else new_path(options.csv, option="--csv")
    records = read_runs(options.directories)
    if options.group_by:
        check_settings(options.group_by, records)
    if file is not None:
        write_csv(file, records)
    if options.json:
        document = {"runs": [record.to_json() for record in records], "groups": groups_to_json(records, options.group_by)}
        print(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1))
    else:
        print(format_runs(records, options.group_by, markdown=options.markdown))


def read_runs(directories: Sequence[str]) -> list[RunRecord]:
    """Returns the runs at and below `directories`, and says what is no run. Raises SettingsError if there is none."""
    paths = [expanded(directory) for directory in directories]
    for path in paths:
        if not path.is_dir():
            raise SettingsError(
                f"{one_line(str(path))} is {'no directory' if path.exists() else 'not there'}.",
                "Runs are in directories: a training writes one under outputs/.", "Give a directory that exists.",
            )  # fmt: skip
    records = []
    for path in find_runs(paths, lambda error: warn(f"{error.filename} cannot be read ({error.strerror}); it is left out.")):
        try:
            records.append(read_run(path))
        except NoRecordError as problem:
            warn(f"{one_line(shown(path))} is left out: {one_line(str(problem))}.")
    if not records:
        raise SettingsError(
            f"There is no run below {', '.join(one_line(str(path)) for path in paths)}.",
            "A run is a directory with settings.json and run.json, as a training writes it.",
            "Give the directory of a sweep, or one that holds runs.",
        )  # fmt: skip
    return records


def check_settings(names: Sequence[str], records: Sequence[RunRecord]) -> None:
    """Raises SettingsError for a setting that no run has."""
    known = sorted({key for record in records for key in record.settings})
    for name in names:
        if name not in known:
            raise SettingsError(
                f"--group-by {one_line(name)}: no run has such a setting.",
                "Settings have names such as model, optimizer.learning_rate or trainer.seed.",
                f"Check the name{nearest(name, known)}",
            )  # fmt: skip


def format_runs(
    records: Sequence[RunRecord], keys: Sequence[str] | None = None, *, markdown: bool = False, failures: bool = True
) -> str:
    """Returns the tables of all tasks, and below them the runs that failed, unless another place says that."""
    write, parts = (as_markdown if markdown else as_text), []
    for runs in by_task(records):
        parts.append(write(table_of_runs(runs, _name)))
        if (groups := table_of_groups(runs, keys)) is not None:
            parts.append(write(groups))
    if failures and (failed := list(iter_failures(records, _name))):
        lines = [f"{'* ' if markdown else '  '}{one_line(line)}" for line in failed]
        parts.append("\n".join([f"{len(failed)} failed:", *([""] if markdown else []), *lines]))
    return "\n\n".join(parts)


def as_text(table: Table) -> str:
    """Lays out columns beside each other: the first to the left, numbers to the right."""
    rows = [table.columns, *table.rows]
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(num_columns(row[column]) for row in cells) for column in range(len(table.columns))]
    is_last = [column == len(widths) - 1 and table.columns[column] == "ended" for column in range(len(widths))]
    lines = [
        "  ".join(
            padded(cell, width, right=column > 0 and not last)
            for column, (cell, width, last) in enumerate(zip(row, widths, is_last, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([f"{table.heading}:", *(f"  {line}" for line in lines), *table.notes])


def as_markdown(table: Table) -> str:
    """Returns a table as Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(one_line(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"{table.heading}:", "", *lines, *(f"\n{note}" for note in table.notes)])


def groups_to_json(records: Sequence[RunRecord], keys: Sequence[str] | None) -> list[dict[str, Any]]:
    """Returns the groups with the numbers of their runs, in the order of the table."""
    import statistics

    found = []
    for runs in by_task(records):
        measure = measures_of(runs)[0]
        counted = [run for run in runs if run.status == "finished" and run.valid is not None]
        for members in sorted(group(counted, keys), key=lambda members: mean_order(members, measure)):
            settings = members[0].differing if keys is None else {key: value_of(members[0], key) for key in keys}
            entry: dict[str, Any] = {
                "task": runs[0].task, "measure": measure.name, "settings": dict(settings),
                "seeds": [run.seed for run in members], "runs": [str(run.path) for run in members],
            }  # fmt: skip
            for split in ("valid", "test"):
                results = [getattr(run, split) for run in members]
                values = [value for r in results if r is not None and (value := measure.of(r)) is not None]
                entry[split] = {
                    "n": len(values), "mean": statistics.fmean(values) if values else None,
                    "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
                }  # fmt: skip
            found.append(entry)
    return found


def write_csv(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes everything that is known of each run, one per line, without settings that are everywhere at their defaults."""
    settings = sorted({key for record in records for key in record.differing})
    rows = []
    for record in records:
        document = record.to_json()
        row = {name: value for name, value in document.items() if name not in ("settings", "valid", "test")}
        for split in ("valid", "test"):
            result = getattr(record, split)
            row[split] = None if result is None else result.value
            row[f"{split}_bits_per_character"] = None if result is None else result.bits_per_character
        rows.append(row | {key: _csv_value(value_of(record, key)) for key in settings})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        with new_file(path) as file:
            file.write(stream.getvalue().encode(errors="backslashreplace"))
    except OSError as error:
        raise unwritable(f"--csv {path}", error) from error


def _csv_value(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | bool) else value


def _name(record: RunRecord) -> str:
    return shown(record.path)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
