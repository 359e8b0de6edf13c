"""How processes end: with the one that started them, and by signals that come at bad moments."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtrain.terminal import end_in_order, signal_to_end
from lmtrain.training.signals import catch_signals

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


ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGHUP: SystemExit}
MODULE = """
import os, signal, time
for _ in range({times}):
    try:
        os.kill(os.getpid(), {number})
        time.sleep(0.05)
    except BaseException:
        raise ImportError("what is raised here is lost")
whole = True
"""


@pytest.fixture(autouse=True)
def _signals_are_not_ignored() -> Iterator[None]:
    """As `nohup` and background jobs of a shell have them."""
    usual = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1), signal.SIG_DFL)
    before = {each: signal.signal(each, handler) for each, handler in usual.items()}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDS)
def test_a_module_is_imported_to_its_end_before_a_signal_ends_what_is_done(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"imported_{number.name}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(times=1, number=int(number)), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = [signal.getsignal(each) for each in (*ENDS, signal.SIGUSR1, signal.SIGALRM)]
    with pytest.raises(ENDS[number]) as ended, end_in_order():  # noqa: PT012
        importlib.import_module(name)
        assert signal_to_end() == number
        time.sleep(5)
        pytest.fail("nothing was raised")
    assert sys.modules.pop(name).whole
    assert number == signal.SIGINT or ended.value.code == 128 + number  # type: ignore[attr-defined]
    assert [signal.getsignal(each) for each in (*ENDS, signal.SIGUSR1, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_second_signal_waits_for_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_twice.py").write_text(MODULE.format(times=2, number=int(signal.SIGTERM)), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="is lost"), end_in_order():
        importlib.import_module("imported_twice")


def test_a_signal_whose_exception_is_lost_ends_the_process_later() -> None:
    with pytest.raises(SystemExit) as ended, end_in_order():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException:
            pass
        with catch_signals() as stop:
            assert (stop.requested, stop.reason) == (True, "SIGTERM")
    assert ended.value.code == 143
    assert signal_to_end() == 0


def test_a_save_that_nothing_can_answer_is_not_asked_for() -> None:
    with end_in_order():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)


def test_alarms_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of time (`alarm`) ends a process as ever; a signal during an import is answered where alarms are ignored, too."""
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        with end_in_order():
            assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN
        (tmp_path / "imported_ignoring.py").write_text(MODULE.format(times=1, number=int(signal.SIGTERM)), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(SystemExit), end_in_order():  # noqa: PT012
            importlib.import_module("imported_ignoring")
            time.sleep(5)
            pytest.fail("nothing was raised")
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGALRM, before)
