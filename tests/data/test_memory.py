"""Texts are tokenised in bounded memory of the process's own (RssAnon of Linux, which leaves mapped pages out)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "tokenise.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is read from /proc")


def rows(*arguments: str) -> dict[str, int]:
    """The anonymous memory of each tokenizer, in MB."""
    ended = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return {name: int(most) for name, most in re.findall(r"(?m)^\| (\w+) \| \d+ \| \d+ \| (\d+) \|$", ended.stdout)}


def test_a_text_of_a_few_megabytes_takes_less_than_150_megabytes() -> None:
    found = rows("--megabytes", "8", "--tokenizers", "byte", "word")
    assert set(found) == {"byte", "word"}
    assert max(found.values()) < 150


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["1", "8"])
def test_200_megabytes_take_less_than_500(shards: str) -> None:
    found = rows("--megabytes", "200", "--shards", shards)
    assert set(found) == {"char", "byte", "word", "bpe", "unigram"}
    assert max(found.values()) < 500
