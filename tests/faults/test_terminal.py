"""Where the output goes: pipes that close, terminals that lack characters, no terminal, a clock that jumps."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain.training.telemetry as telemetry

SAMPLE = [sys.executable, "-m", "lmtrain", "sample", "run", "--max-tokens"]


def test_a_reader_that_goes_away_ends_sampling_quietly(place: Path) -> None:
    process = subprocess.Popen([*SAMPLE, "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(20)) == 20
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
    process.stderr.close()


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["settings"], ["score", "--help"], ["--cfg", "job"], ["sample", "run"]], ids=" ".join
)
def test_output_that_cannot_be_written_is_said_in_one_line(arguments: list[str], unbuffered: str, place: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        result = subprocess.run(
            [*SAMPLE[:3], *arguments], env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, stdout=full, stderr=subprocess.PIPE,
            timeout=60, check=False,
        )  # fmt: skip
    assert result.returncode == 6
    assert result.stderr.startswith(b"lmtrain: Standard output cannot be written: No space left on device. Free some space")
    assert result.stderr.count(b"\n") == 1


def test_characters_that_the_terminal_lacks_are_written_as_escapes(place: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [*SAMPLE, "3", "--prompt", "thé ☃"]
    result = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert result.stdout.startswith(rb"th\xe9 \u2603")


def test_without_a_terminal_there_are_plain_lines_and_no_bar(
    place: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "PLAIN_LINE_SECONDS", 0.0)
    ended = call("TRAIN", "hydra.run.dir=plain")
    lines = ended.err.splitlines()
    assert len(lines) == 6, "one for every step"
    assert all(f"step={number} " in line and "loss=" in line for number, line in enumerate(lines, 1))
    assert all(" tokens/s=" in line for line in lines[1:])
    assert "\r" not in ended.err


def test_durations_do_not_depend_on_the_time_of_day(
    place: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes backwards an hour with every look neither ends a run early nor makes a duration negative."""
    now = time.time()

    def backwards() -> float:
        nonlocal now
        now -= 3600
        return now

    monkeypatch.setattr(time, "time", backwards)
    assert call("TRAIN", "hydra.run.dir=back", "trainer.num_steps=null", "trainer.max_seconds=0.3").code == 0
    from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint

    state = load_checkpoint(find_checkpoint("back", "last")).documents["training"]["state"]
    assert 0.3 <= state["elapsed_seconds"] < 30
