"""Names of files that are hard to write down: bytes that are not UTF-8, letters and marks that settings have to quote."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
NOT_UTF8 = os.fsdecode(b"B\xe4r")


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and a text in it, whose names are not UTF-8."""
    try:
        (place / NOT_UTF8).mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    shutil.copy(place / "text.txt", place / NOT_UTF8 / NOT_UTF8)
    monkeypatch.chdir(place / NOT_UTF8)
    return place / NOT_UTF8


def test_names_that_are_not_utf8_survive_a_run_and_its_resuming(there: Path, call: Call) -> None:
    setting = f'data.path="{NOT_UTF8}"'
    ended = call("TRAIN", setting, "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    assert "cannot be written" not in ended.out + ended.err, "nor is TensorBoard lost"
    assert json.loads((there / "run" / "settings.json").read_bytes())["data"]["path"] == NOT_UTF8
    session = json.loads((there / "run" / "run.json").read_bytes())["sessions"][0]
    assert setting in session["command_line"]
    assert session["working_directory"] == str(there)
    assert r"B\udce4r" in (there / "run" / "lmtrain.log").read_text(encoding="utf-8")
    assert call("resume=run", "trainer.num_steps=8").code == 0


def test_a_run_directory_whose_name_is_not_utf8_does_without_tensorboard(there: Path, call: Call) -> None:
    ended = call("TRAIN", "data.path=../text.txt", f'hydra.run.dir="{NOT_UTF8}.run"')
    assert ended.code == 0, ended.err
    assert ended.out.count("Telemetry cannot be written") == 1
    assert (there / f"{NOT_UTF8}.run" / "metrics.jsonl").read_text(encoding="utf-8").count("\n") >= 3
    assert call("score", f"{NOT_UTF8}.run", NOT_UTF8).code == 0


@pytest.mark.slow
def test_where_the_locale_knows_ascii_alone_other_names_are_names_too(place: Path) -> None:
    shutil.copy("text.txt", "ελληνικά.txt")
    settings = ['data.path="ελληνικά.txt"', "model.hidden_size=8", "trainer.num_steps=2", "trainer.batch_size=4"]
    command = [sys.executable, "-m", "lmtrain", "data=text", *settings, "hydra.run.dir=plain"]
    ascii_alone = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    subprocess.run(command, env=os.environ | ascii_alone, capture_output=True, timeout=120, check=True)
    subprocess.run([*command[:3], "resume=plain", "trainer.num_steps=4"], capture_output=True, timeout=120, check=True)


@pytest.mark.parametrize("name", ["ελληνικά.txt", "a'b.txt", 'a"b.txt', "a\\'b{.txt", "a,b=[c].txt", "été 1.txt"])
def test_a_name_that_settings_must_quote_is_refused_with_the_line_to_type(name: str, place: Path, call: Call) -> None:
    shutil.copy("text.txt", name)
    ended = call("data=text", f"data.path={name}")
    assert ended.code == 2
    line = re.search(r"Quote a value .* twice, .*: ('data\.path=.*)$", ended.err, re.MULTILINE)
    assert line, ended.err
    assert call("TRAIN", *shlex.split(line[1]), "trainer.num_steps=1").code == 0


def test_a_line_that_begins_with_no_name_is_not_said_to_need_quotes(call: Call) -> None:
    ended = call("ключ=1")
    assert "'ключ=1' does not begin with the name of a setting." in ended.err
