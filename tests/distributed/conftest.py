"""Each test has a directory of its own with a small text."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"line {n} has {n * n % 17} cats and {n % 5} dogs" for n in range(200)]
    Path("text.txt").write_text("\n".join(lines) + "\n")
