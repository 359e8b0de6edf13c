import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtrain.errors import ResourceError, SettingsError
from lmtrain.training import run_directory
from lmtrain.training.checkpoint import save_checkpoint
from lmtrain.training.run_directory import open_run_directory

PROGRAM = """
import logging, os, signal, sys, time
from pathlib import Path
from lmtrain.errors import SettingsError
from lmtrain.training.run_directory import _lock, _lock_text, _unlock, open_run_directory
logging.disable()
directory = Path(sys.argv[1])
"""


def start(program, directory):
    command = [sys.executable, "-W", "error", "-c", PROGRAM + program, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def sessions(directory):
    return json.loads((directory / "run.json").read_text())["sessions"]


def lock_of(directory, **changes):
    """A lock file as this process would write it, but for `changes`."""
    directory.mkdir(exist_ok=True)
    (directory / "run.lock").write_text(json.dumps(json.loads(run_directory._lock_text()) | changes) + "\n")


@pytest.fixture
def dead_process():
    """The number of a process that has just ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


# ---- the directory


def test_a_run_directory_is_made_locked_and_released(tmp_path):
    with open_run_directory(tmp_path / "runs" / "one") as run:
        holder = json.loads((run.path / "run.lock").read_text())
        assert holder["process"] == os.getpid()
        assert run.checkpoints.is_dir()
    assert sorted(entry.name for entry in run.path.iterdir()) == ["checkpoints", "run.json"]


def test_the_members_lie_where_the_design_says(tmp_path):
    with open_run_directory(tmp_path) as run:
        places = [run.settings, run.record, run.metrics, run.log, run.tensorboard, run.checkpoints]
    expected = ["settings.json", "run.json", "metrics.jsonl", "lmtrain.log", "tensorboard", "checkpoints"]
    assert [str(place.relative_to(tmp_path)) for place in places] == expected


@pytest.mark.parametrize("place", ["file", "file/below", "n" * 300, "x/" * 3000])
def test_a_place_that_cannot_be_a_directory_is_refused_at_once(tmp_path, place):
    (tmp_path / "file").touch()
    with (
        pytest.raises(SettingsError, match=r"cannot be used as a run directory.*Choose another with hydra\.run\.dir="),
        open_run_directory(tmp_path / place),
    ):
        pytest.fail("opened")


def test_a_directory_that_may_not_be_written_is_refused_before_work_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SettingsError, match="Permission denied"), open_run_directory(tmp_path):
        pytest.fail("opened")
    assert not (tmp_path / "run.lock").exists()


def test_a_full_disk_is_told_before_work_begins_and_leaves_no_lock(tmp_path):
    program = """
import resource
from lmtrain.errors import ResourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.stdin.read()), -1))
try:
    with open_run_directory(directory):
        print("opened")
except ResourceError as error:
    print(error)
"""
    for limit in ("0", "400"):  # no room for the lock; room for the lock, but not for run.json
        output = start(program, tmp_path).communicate(limit)[0]
        assert "cannot be written: [Errno 27] File too large" in output
        assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"]


def test_what_a_killed_process_left_half_done_is_removed_at_the_start_and_nothing_else(tmp_path, dead_process):
    living = os.getppid()
    path = save_checkpoint(tmp_path, 1, {"model": {}}, {})
    for name in (f"step-00000002.tmp-{dead_process}-0123abcd", f"step-00000002.tmp-{os.getpid()}-0123abcd"):
        (path.parent / name).mkdir()
        (path.parent / name / "model.safetensors").touch()
    (path.parent / f"last.tmp-{dead_process}-0123abcd").touch()
    (tmp_path / f"run.json.tmp-{dead_process}-0123abcd").symlink_to(path)
    (path.parent / f"step-00000003.tmp-{living}-0123abcd").mkdir()
    (path.parent / "notes.tmp-old").touch()
    with open_run_directory(tmp_path) as run:
        left = sorted(entry.name for entry in run.checkpoints.iterdir())
    assert left == ["last", "notes.tmp-old", "step-00000001", f"step-00000003.tmp-{living}-0123abcd"]
    assert path.is_dir(), "a link is removed, not what it points to"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoints", "run.json"]


def test_a_new_run_is_refused_where_another_one_left_checkpoints_and_a_resumed_one_is_not(tmp_path):
    with open_run_directory(tmp_path, new=True):
        path = save_checkpoint(tmp_path, 1, {}, {})
    with (
        pytest.raises(SettingsError, match=rf"checkpoints of another run.*Type resume={tmp_path} "),
        open_run_directory(tmp_path, new=True),
    ):
        pytest.fail("opened")
    assert path.is_dir()
    assert len(sessions(tmp_path)) == 1
    with open_run_directory(tmp_path):
        pass


# ---- the record


def test_every_process_leaves_a_record_of_what_it_ran_on_and_why_it_ended(tmp_path):
    with open_run_directory(tmp_path, ["python", "-m", "lmtrain", "model=lstm"]) as run:
        run.note(num_parameters=7)
        assert sessions(tmp_path)[-1]["exit_reason"] is None, "still running, or killed"
        run.note(exit_reason="SIGTERM")
    with pytest.raises(ZeroDivisionError), open_run_directory(tmp_path):
        raise ZeroDivisionError("one over nothing")
    with open_run_directory(tmp_path):
        pass
    first, second, third = sessions(tmp_path)
    assert (first["exit_reason"], third["exit_reason"]) == ("SIGTERM", "finished")
    assert second["exit_reason"] == "ZeroDivisionError: one over nothing"
    assert first["command_line"] == ["python", "-m", "lmtrain", "model=lstm"]
    assert first["num_parameters"] == 7
    for name in ("started_at", "stopped_at", "elapsed_seconds", "lmtrain", "python", "packages", "host", "processor", "git",
                 "num_threads", "num_processors", "memory_bytes", "cuda", "environment", "working_directory"):  # fmt: skip
        assert name in first, name
    assert first["packages"]["torch"]


def test_the_record_holds_no_other_environment_variable_than_the_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "secret-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with open_run_directory(tmp_path):
        pass
    assert "secret-value" not in (tmp_path / "run.json").read_text()
    assert sessions(tmp_path)[0]["environment"]["OMP_NUM_THREADS"] == "1"


def test_a_fact_that_json_does_not_have_is_refused_and_the_record_goes_on(tmp_path):
    with open_run_directory(tmp_path) as run:
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.note(best_nats=float("nan"))
        run.note(num_parameters=7)
    assert sessions(tmp_path)[0]["num_parameters"] == 7


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sessions": 1}', b'{"sessions": [1]}', b"\xff" * 100])
def test_a_damaged_record_is_set_aside_not_lost_and_not_in_the_way(tmp_path, content, caplog):
    (tmp_path / "run.json").write_bytes(content)
    with caplog.at_level(logging.WARNING, "lmtrain"), open_run_directory(tmp_path):
        pass
    aside = next(tmp_path.glob("run-damaged-*.json"))
    assert aside.read_bytes() == content
    assert f"it is now called {aside.name}" in caplog.text
    assert len(sessions(tmp_path)) == 1


def test_a_disk_that_is_full_at_the_end_is_a_warning_that_hides_no_other_error(tmp_path, monkeypatch, caplog):
    def exhaust(patch):
        patch.setattr(run_directory, "write_atomically", fail)
        raise ResourceError("the error itself", "", "")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        caplog.at_level(logging.WARNING, "lmtrain"),
        pytest.raises(ResourceError, match="the error itself"),
        open_run_directory(tmp_path),
    ):
        exhaust(monkeypatch)
    assert "No space left on device" in caplog.text
    assert not (tmp_path / "run.lock").exists()


# ---- the lock


def test_a_directory_that_another_process_trains_in_is_refused_with_who_since_when_and_what_to_do(tmp_path):
    holding = start("with open_run_directory(directory):\n    print('held', flush=True)\n    sys.stdin.read()", tmp_path)
    assert holding.stdout.readline() == "held\n"
    words = rf"in use by process {holding.pid} on .*, since 20.*kill {holding.pid} .*hydra\.run\.dir="
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(SettingsError, match=words), open_run_directory(tmp_path):
        pytest.fail("opened")
    assert (tmp_path / "run.json").read_bytes() == before
    holding.communicate("")
    with open_run_directory(tmp_path):
        pass


def test_the_same_process_is_refused_as_well(tmp_path):
    with (
        open_run_directory(tmp_path),
        pytest.raises(SettingsError, match=f"process {os.getpid()}"),
        open_run_directory(tmp_path),
    ):
        pytest.fail("opened twice")


def test_the_lock_of_a_killed_process_is_taken_over_and_the_log_says_so(tmp_path, caplog):
    killed = start("with open_run_directory(directory):\n    os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    killed.communicate()
    assert (tmp_path / "run.lock").exists()
    with caplog.at_level(logging.WARNING, "lmtrain"), open_run_directory(tmp_path):
        pass
    assert "was left by a process that is dead" in caplog.text
    assert str(killed.pid) in caplog.text
    assert [session["exit_reason"] for session in sessions(tmp_path)] == [None, "finished"]


def test_a_process_number_that_is_used_again_does_not_hold_the_lock(tmp_path):
    lock_of(tmp_path, process=os.getppid(), started="another boot/12345")
    with open_run_directory(tmp_path):
        pass


def test_a_process_that_has_ended_and_is_not_waited_for_does_not_hold_the_lock(tmp_path):
    zombie = subprocess.Popen(["true"])
    while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    lock_of(tmp_path, process=zombie.pid, started=None)
    with open_run_directory(tmp_path):
        pass
    zombie.wait()


def test_a_process_on_another_host_cannot_be_seen_so_its_lock_is_not_taken(tmp_path, dead_process):
    lock_of(tmp_path, process=dead_process, host="far-away")
    with (
        pytest.raises(SettingsError, match=rf"on far-away, .*cannot be seen from .*type: rm {tmp_path}/run\.lock"),
        open_run_directory(tmp_path),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize("text", ["", "{", '{"process": 1', "[]\n", '{"process": "1"}\n', "\0" * 100])
def test_a_torn_lock_is_taken_over(tmp_path, text, monkeypatch):
    monkeypatch.setattr(run_directory, "UNREADABLE_SECONDS", 0.05)
    (tmp_path / "run.lock").write_text(text)
    with open_run_directory(tmp_path):
        pass


def test_a_lock_that_somebody_else_put_there_is_not_removed(tmp_path):
    with open_run_directory(tmp_path) as run:
        (run.path / "run.lock").unlink()
        lock_of(tmp_path)
    assert (tmp_path / "run.lock").exists()


def test_of_two_processes_that_race_for_one_lock_exactly_one_gets_it(tmp_path):
    program = """
def race(number, lock):
    '''Both start at the same moment and say who got it; neither ends before both have tried.'''
    begin, go, release, end, answers, answer = *os.pipe(), *os.pipe(), *os.pipe()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.close(end)
            os.read(begin, 1)  # returns when the parent closes its end
            text = _lock_text()
            try:
                _lock(lock, text)
                os.write(answer, b"w" if lock.read_text() == text else b"?")
            except SettingsError:
                os.write(answer, b"l")
            os.read(release, 1)
            os._exit(0)
        children.append(child)
    os.close(go)
    os.close(answer)  # so that a child that dies is no answer, and no endless wait
    said = sorted((os.read(answers, 1), os.read(answers, 1)))
    os.close(end)
    for child in children:
        os.waitpid(child, 0)
    for descriptor in (begin, release, answers):
        os.close(descriptor)
    assert said == [b"l", b"w"], (number, said)

for number in range(25):
    race(number, directory / "run.lock")  # the lock of the dead winner before, but for the first round
    if number % 5 == 0:
        (directory / "run.lock").unlink()
    if number % 5 == 2:
        (directory / "run.lock").write_text("torn but whole line\\n")
print("ok")
"""
    assert start(program, tmp_path).communicate()[0] == "ok\n"
