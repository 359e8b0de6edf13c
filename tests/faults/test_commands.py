"""Every command of the table ends as it says: with its exit code and words, without a traceback, with nothing left behind."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TABLE = runpy.run_path(str(Path(__file__).with_name("table.py")))
CASES = [(fault, case) for fault in TABLE["FAULTS"] for case in fault.cases]


def name(fault: Any, case: Any) -> str:
    return f"{fault.number}: {' '.join(case.arguments)}"[:100]


@pytest.mark.parametrize(("fault", "case"), CASES, ids=[name(*row) for row in CASES])
def test_a_command_ends_as_the_table_says(
    fault: Any, case: Any, place: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, content in case.files.items():
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_bytes(content)
    for variable, value in case.environment.items():
        monkeypatch.setenv(variable, value)
    before = {path for path in place.rglob("*") if "outputs" not in path.parts}
    ended = call(*case.arguments)
    shown = ended.err if case.exit_code else ended.out
    assert ended.code == case.exit_code, ended.err
    assert re.search(case.message, shown), f"not {case.message!r} in {shown!r}"
    assert "Traceback" not in ended.err
    if case.exit_code:
        assert {path for path in place.rglob("*") if "outputs" not in path.parts} == before
        assert [path.name for path in place.glob("outputs/*") if path.name != "cache"] == [], "a run was begun"
