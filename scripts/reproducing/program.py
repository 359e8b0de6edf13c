"""The command line of the scripts that make tables of results: which rows, which seeds, and what to do where one fails."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lmtrain.errors import UserError
from lmtrain.training.provenance import processor_name
from reproducing.results import Number, Result, add_result, load_results, measured
from reproducing.running import FailedError
from reproducing.tables import Place, Row, Table, rendered, write_tables

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results.json"


def run(tables: Sequence[Table], description: str, output: str) -> None:
    """Makes the rows that are asked for and missing, one after the other, and keeps results.json and the READMEs up to date."""
    options = _parse(tables, description, output)
    asked = [table for table in tables if table.name in options.table]
    rows = _asked(asked, options)
    try:
        if options.list:
            _list(rows, load_results(RESULTS))
            return
        failed = [] if options.render else _make_all(rows, tables, options)
        results = load_results(RESULTS)
        for path in write_tables(ROOT, tables, results):
            print(f"{path.relative_to(ROOT)} has been written.")
        for table in [] if options.render else [table for table in asked if {*table.rows} & {*rows}]:
            print(f"\n{table.name}\n\n{rendered(table, results)}", end="", flush=True)
    except KeyboardInterrupt:
        print(f"\nStopped. What was finished is in {RESULTS.name}; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _parse(tables: Sequence[Table], description: str, output: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [table.name for table in tables]
    parser.add_argument(
        "data",
        type=Path,
        nargs="?",
        default=Path("../shared/data"),
        help="the directory of the data (default: %(default)s); what is needed of it is said where it is missing",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(output),
        help="where the runs go; those that are there are used again (default: %(default)s)",
    )
    parser.add_argument("--table", nargs="+", choices=names, default=names, help="which tables (default: all)")
    parser.add_argument("--only", "--rows", default="", metavar="TEXT", help="rows with this in their name or settings")
    parser.add_argument("--seed", type=int, nargs="+", metavar="SEED", help="only these of the seeds that a row has")
    parser.add_argument("--again", action="store_true", help="measure rows again that are in results.json")
    parser.add_argument("--list", action="store_true", help="show the rows and what is known of them, and make nothing")
    parser.add_argument("--render", action="store_true", help="only write the tables from results.json")
    options = parser.parse_args()
    if not (options.list or options.render or options.data.is_dir()):
        parser.error(f"{options.data} is no directory; name the one that holds brown, tinyshakespeare, cls_mr and the others")
    return options


def _asked(tables: Sequence[Table], options: argparse.Namespace) -> list[Row]:
    """The rows that are asked for; exits where there is none."""
    all_rows = [row for table in tables for row in table.rows]
    rows = [row for row in all_rows if options.only.lower() in f"{row.name} {row.command}".lower()]
    if not rows:
        sys.exit(f'--only "{options.only}": no row has this in its name or settings; --list shows them.')
    seeds = sorted({seed for row in rows for seed in row.seeds})
    if options.seed and (unknown := [seed for seed in options.seed if seed not in seeds]):
        sys.exit(f"--seed {unknown[0]}: these rows have the seeds {', '.join(map(str, seeds))}.")
    return rows


def _list(rows: Sequence[Row], results: Sequence[Result]) -> None:
    for row in rows:
        made = [str(seed) for seed in row.seeds if measured(results, row.name, seed)]
        wanted = ", ".join(map(str, row.seeds))
        print(f"{row.name}\n    seeds {wanted}; measured: {', '.join(made) or 'none'}\n    {row.command}")


def _make_all(rows: Sequence[Row], tables: Sequence[Table], options: argparse.Namespace) -> list[str]:
    """Makes what is missing, and returns the names of rows that failed: the others are worth having."""
    options.output.mkdir(parents=True, exist_ok=True)
    place, failed = Place(options.data.absolute(), options.output), []
    missing: dict[str, str] = {}
    for row in rows:
        absent = [name for name in row.needs if not (options.data / name).exists()]
        if absent:
            missing[row.name] = f"{options.data / absent[0]} is not there"
            continue
        for seed in row.seeds:
            if options.seed and seed not in options.seed:
                continue
            if not options.again and measured(load_results(RESULTS), row.name, seed):
                continue
            try:
                _make(row, seed, place, tables)
            except (FailedError, UserError) as error:
                print(f"\n{row.name}, seed {seed}: {error}\n", file=sys.stderr)
                failed.append(f"{row.name}, seed {seed}")
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}.")
    return failed


def _make(row: Row, seed: int, place: Place, tables: Sequence[Table]) -> None:
    made = row.make(place, seed)
    cores = os.cpu_count() or 1
    seconds = None if made.seconds is None else round(made.seconds, 1)
    numbers = {name: _rounded(value) for name, value in made.numbers.items()}
    result = Result(
        row.name, [seed], numbers, None, f"{processor_name()}, {cores} core{'s' * (cores > 1)}",
        datetime.now(UTC).date().isoformat(), version(ROOT), row.command, seconds,
    )  # fmt: skip
    results = add_result(RESULTS, result)
    write_tables(ROOT, tables, results)
    shown = ", ".join(f"{name} {value}" for name, value in numbers.items())
    print(f"{row.name}, seed {seed}: {shown}", flush=True)


def _rounded(value: Number) -> Number:
    """More digits than a table shows, and than two machines agree in."""
    return [round(each, 6) for each in value] if isinstance(value, list) else value if value is None else round(value, 6)


def version(root: Path) -> str | None:
    """The last commit that changed the program, and whether the checkout differs from it. Tables are no part of the program."""
    command, program = ["git", "-C", str(root)], ["--", "src", "conf", ":!*.md"]
    try:
        commit = subprocess.run([*command, "log", "-1", "--format=%H", *program], capture_output=True, text=True, check=True)
        differs = subprocess.run([*command, "diff", "--quiet", "HEAD", *program], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip()[:12] + (" with changes" if differs.returncode else "") or None
