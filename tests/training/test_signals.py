import os
import signal
import subprocess
import sys
import threading

import pytest

from lmtrain.training.signals import catch_signals

# A loop as training has it: it says when it is ready, and after each signal what it was asked for.
PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests' own parent made of them
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from lmtrain.training.signals import catch_signals
try:
    with catch_signals() as stop:
        print("ready", flush=True)
        while not stop.requested:
            if stop.take_save_request():
                print("save", flush=True)
            time.sleep(0.001)
        print(stop.reason, flush=True)
        if len(sys.argv) > 1:
            time.sleep(60)  # a save that takes long
    sys.exit(stop.exit_code)
finally:
    print("cleaned up", flush=True)
"""


def start(*arguments):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_the_loop_with_its_exit_code_and_says_what_happens(number, code):
    process = start()
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (code, f"{number.name}\ncleaned up\n")
    assert f"{number.name}: this step is finished and saved; once more ends at once" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_a_second_signal_ends_at_once_but_still_cleans_up(number, code):
    process = start("slow")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (code, "cleaned up\n")
    assert "Traceback" not in errors


def test_sigusr1_asks_for_a_save_each_time_and_training_goes_on():
    process = start()
    for _ in range(2):
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "save\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "SIGTERM\ncleaned up\n"


def test_handlers_are_as_before_afterwards_even_after_an_error():
    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    def fail():
        during.extend(handlers())
        raise ZeroDivisionError

    before, during = handlers(), []
    with pytest.raises(ZeroDivisionError), catch_signals():
        fail()
    assert handlers() == before
    assert all(one != other for one, other in zip(before, during, strict=True))


def test_a_signal_that_was_to_be_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with catch_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_signal_nothing_is_asked_for():
    with catch_signals() as stop:
        pass
    assert (stop.requested, stop.reason, stop.exit_code, stop.take_save_request()) == (False, "", 0, False)


def test_outside_the_main_thread_nothing_is_installed_and_nothing_breaks():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with catch_signals() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
