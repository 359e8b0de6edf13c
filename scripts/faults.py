"""The faults that a trainer has to survive, how each ends here, and the tests that hold it.

    python scripts/faults.py            prints the list; exit code 1 where a test that it names does not exist
    python scripts/faults.py --run      and runs those tests (but for the slow ones)

The table itself: tests/faults/table.py.
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMANDS = "tests/faults/test_commands.py::test_a_command_ends_as_the_table_says"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="also run the tests")
    options = parser.parse_args()
    table = runpy.run_path(str(ROOT / "tests" / "faults" / "table.py"))
    for fault in table["FAULTS"]:
        print("\n".join(format_fault(fault)))
    missing = table["missing_tests"](ROOT)
    num_cases = sum(len(fault.cases) for fault in table["FAULTS"])
    num_tests = len({node for fault in table["FAULTS"] for node in fault.tests})
    print(f"\n{len(table['FAULTS'])} faults, {num_cases} commands, {num_tests} further tests; {len(missing)} of these missing.")
    if missing:
        sys.exit("missing: " + ", ".join(missing))
    if options.run:
        nodes = sorted({node for fault in table["FAULTS"] for node in fault.tests} | {COMMANDS})
        sys.exit(subprocess.run([sys.executable, "-m", "pytest", "-q", *nodes], cwd=ROOT, check=False).returncode)


def format_fault(fault: Any) -> list[str]:
    """A fault as lines: number and words; commands with their exit codes; tests; what was decided."""
    lines = [f"{fault.number:<3} {fault.words}"]
    for case in fault.cases:
        command = " ".join(argument if len(argument) < 60 else argument[:57] + "..." for argument in case.arguments)
        lines.append(f"      exit {case.exit_code}  {command}  ({COMMANDS.partition('::')[0]})")
    lines += [f"      {node}" for node in fault.tests]
    return lines + [f"      {line}" for line in textwrap.wrap(fault.why, 110)]


if __name__ == "__main__":
    main()
