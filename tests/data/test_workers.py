"""Processes that read shards end with the one that started them, and leave Ctrl-C to it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
SCRIPT = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as `trap "" TERM` bequeaths it
from lmtrain.data.workers import Call, run_all
try:
    run_all([Call(time.sleep, (60,), 10_000_000)] * 3, "Sleeping", 2)
except KeyboardInterrupt:
    print("interrupted")
"""


def workers_of(session: int) -> list[int]:
    """Those that live in the session of a process."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (directory / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z" and b"-m\0lmtrain.data.workers" in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.0, 1.5])  # while they start, and while they work
def test_they_end_with_the_process_that_started_them(number: signal.Signals, delay: float) -> None:
    """The terminal sends SIGINT to all of its foreground."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(SOURCE)}, start_new_session=True)  # fmt: skip
    end = time.monotonic() + 30
    while len(workers_of(process.pid)) < 2:
        assert time.monotonic() < end, os.popen(f"ps -s {process.pid} -o pid,ppid,stat,wchan:20,etime,cmd").read()
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=20)
    assert said[0] == ("interrupted\n" if number == signal.SIGINT else "")
    assert "Traceback" not in said[1]
    end = time.monotonic() + 10
    while workers_of(process.pid):
        assert time.monotonic() < end
        time.sleep(0.1)
