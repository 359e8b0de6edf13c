"""The table is whole and true: 122 faults and more, each with a test that exists or a line saying why it cannot occur."""

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = runpy.run_path(str(Path(__file__).with_name("table.py")))


def test_all_faults_are_there_and_each_is_tested_or_explained() -> None:
    faults = TABLE["FAULTS"]
    numbers = [fault.number for fault in faults]
    assert numbers[:122] == list(range(1, 123))
    assert numbers == sorted(set(numbers)), "there may be gaps"
    assert [fault.number for fault in faults if not (fault.cases or fault.tests)] == []


def test_every_named_test_exists() -> None:
    assert TABLE["missing_tests"](ROOT) == []


def test_a_named_test_that_does_not_exist_is_found(tmp_path: Path) -> None:
    assert len(TABLE["missing_tests"](tmp_path)) == sum(len(fault.tests) for fault in TABLE["FAULTS"])


def test_the_list_is_printed_with_its_tests() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "faults.py")], capture_output=True, text=True, timeout=60, check=True
    )
    assert "\n122 " in result.stdout
    assert "tests/faults/test_commands.py" in result.stdout
