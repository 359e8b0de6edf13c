"""A process ends with the one that started it, whatever it makes of SIGTERM."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from lmtrain.terminal import end_with
signal.signal(signal.SIGTERM, {handler})
parent = os.getpid()
if os.fork() == 0:
    end_with(parent, 0.5)
    time.sleep(60)
"""
HANDLERS = {
    "signal.SIG_DFL": "",
    "signal.SIG_IGN": "",
    "lambda *_: print('asked', flush=True)": "asked\n",
    "lambda *_: sys.exit(print('saved'))": "saved\n",
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_process_ends_with_its_parent_whatever_it_makes_of_sigterm(handler: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(handler=handler)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=20)[0] == HANDLERS[handler], "the pipe ends with the last of both"
