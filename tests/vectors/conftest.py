"""A directory with small files: vectors of animals, questions and pairs about them."""

from pathlib import Path

import pytest

FILES = {
    "animals.txt": "cat 4 1\ndog 3 3\ncar -1 5\n",
    "questions.txt": ": all\ncat dog dog car\ncat dog cow cow\n",
    "pairs.tsv": "# two words, what people say\ncat\tdog\t9\ncat\tcar\t1\ndog\tcar\t5\ncow\tcat\t3\n",
}


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with these files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path
