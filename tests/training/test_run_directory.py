import errno
import fcntl
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from lmtrain.errors import ResourceError, SettingsError
from lmtrain.files.run_lock import RunLock
from lmtrain.training import run_directory
from lmtrain.training.checkpoint import save_checkpoint
from lmtrain.training.run_directory import open_run_directory

PROGRAM = """
import logging, os, signal, sys, time
from pathlib import Path
from lmtrain.errors import SettingsError
from lmtrain.files.run_lock import RunLock
logging.disable()
directory = Path(sys.argv[1])
"""
HOLD = "lock = RunLock(directory / 'run.lock')\nprint('held', flush=True)\nsys.stdin.read()\nlock.release()"


def start(program, directory):
    """A process of its own. The lock of a directory alone is taken without PyTorch, whose import takes two seconds."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM + program, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def sessions(directory):
    return json.loads((directory / "run.json").read_text())["sessions"]


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
        open_run_directory(tmp_path / place, new=True),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize(("new", "remedy"), [(True, r"hydra\.run\.dir="), (False, "resume the copy: resume=COPY")])
def test_a_directory_that_may_not_be_written_is_refused_before_work_begins(tmp_path, monkeypatch, new, remedy):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SettingsError, match=f"Permission denied.*{remedy}"), open_run_directory(tmp_path, new=new):
        pytest.fail("opened")
    assert not (tmp_path / "run.lock").exists()


def test_a_full_disk_is_told_before_work_begins_and_leaves_no_lock(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 400):  # no room for the lock; room for the lock, but not for run.json
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(ResourceError, match="File too large") as refused, open_run_directory(tmp_path):
                pytest.fail("opened")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "cannot be written: [Errno 27] File too large" in str(refused.value)
        assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"]


def test_what_a_killed_process_left_half_done_is_removed_at_the_start_and_nothing_else(tmp_path):
    """Under the lock it is that of a dead process, whatever number it has."""
    path = save_checkpoint(tmp_path, 1, {"model": {}}, {})
    crash = save_checkpoint(tmp_path / "crash", 1, {"model": {}}, {})
    for name in (f"step-00000002.tmp-{os.getppid()}-0123abcd", f"step-00000002-2.tmp-{os.getpid()}-0123abcd"):
        for folder in (path.parent, crash.parent):
            (folder / name).mkdir()
            (folder / name / "model.safetensors").touch()
    (path.parent / "last.tmp-1-0123abcd").touch()
    (tmp_path / "run.json.tmp-1-0123abcd").symlink_to(path)
    foreign = ["my.tmp-1-0123abcd", "notes.tmp-old", "step-2.tmp-1-0123abcd"]
    for name in foreign:
        (path.parent / name).touch()
    with open_run_directory(tmp_path) as run:
        left = sorted(entry.name for entry in run.checkpoints.iterdir())
    assert left == sorted(["last", "step-00000001", *foreign])
    assert sorted(entry.name for entry in crash.parent.iterdir()) == ["last", "step-00000001"]
    shutil.rmtree(tmp_path / "crash")
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
    with open_run_directory(tmp_path):
        pass
    holding = start(HOLD, tmp_path)
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
    program = "from lmtrain.training.run_directory import open_run_directory\n"
    killed = start(f"{program}with open_run_directory(directory):\n    os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    killed.communicate()
    assert (tmp_path / "run.lock").exists()
    with caplog.at_level(logging.WARNING, "lmtrain"), open_run_directory(tmp_path):
        pass
    assert "was left by a process that is dead" in caplog.text
    assert str(killed.pid) in caplog.text
    assert [session["exit_reason"] for session in sessions(tmp_path)] == [None, "finished"]


def test_of_processes_in_two_containers_with_one_host_name_only_one_trains(tmp_path):
    """Each sees only its own processes, in both of them it is number 1."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine makes no containers")
    program = f"{PROGRAM}print(os.getpid(), flush=True)\n{HOLD}"
    command = [*alone, sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert (first.stdout.readline(), first.stdout.readline()) == ("1\n", "held\n")
    second = subprocess.run(command, input="", capture_output=True, text=True)
    assert second.stdout == "1\n"
    assert f"{tmp_path} is in use by process 1 on " in second.stderr
    first.communicate("")
    assert subprocess.run(command, input="", capture_output=True, text=True).stdout == "1\nheld\n"


def test_a_lock_is_free_the_moment_its_process_is_killed_even_where_a_child_of_it_lives_on(tmp_path):
    program = """
lock = RunLock(directory / "run.lock")
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""
    process = start(program, tmp_path)
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()
    try:
        with open_run_directory(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_ends_does_not_give_up_the_lock_of_its_parent(tmp_path):
    program = """
lock = RunLock(directory / "run.lock")
if os.fork() == 0:
    lock.release()
    os._exit(0)
os.wait()
try:
    RunLock(directory / "run.lock")
except SettingsError:
    print("still held")
lock.release()
"""
    assert start(program, tmp_path).communicate()[0] == "still held\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"process": 1', "[]\n", '{"process": "1"}\n', "\0" * 100, "\xff" * 10000])
def test_a_torn_lock_that_nobody_holds_is_taken_over(tmp_path, text):
    (tmp_path / "run.lock").write_text(text)
    with open_run_directory(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize("kind", ["directory", "link", "dangling link", "pipe"])
def test_what_stands_in_the_way_of_the_lock_is_renamed_and_nothing_is_written_through_it(tmp_path, kind):
    victim, path = tmp_path / "victim.txt", tmp_path / "run.lock"
    victim.write_text("precious")
    {
        "directory": path.mkdir,
        "link": lambda: path.symlink_to(victim),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(path),
    }[kind]()
    with open_run_directory(tmp_path):
        assert path.is_file()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert len([*tmp_path.glob("run-damaged-*.lock")]) == 1


def test_who_locks_the_directory_or_holds_the_lock_file_for_himself_makes_nobody_wait(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with open_run_directory(tmp_path):
        pass
    os.close(descriptor)
    with open(tmp_path / "run.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="in use by a process that it does not name"), open_run_directory(tmp_path):
            pytest.fail("opened")
    with open_run_directory(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EACCES])
def test_a_file_system_without_locks_is_said_once_and_nobody_is_refused(tmp_path, code, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "checkpoints").mkdir()
    half_done = tmp_path / "checkpoints" / "last.tmp-1-0123abcd"
    half_done.touch()
    with caplog.at_level(logging.WARNING, "lmtrain"), open_run_directory(tmp_path) as run:
        assert json.loads((tmp_path / "run.lock").read_text()).keys() == {"process", "host", "since"}
        run.make_again_if_removed()
        assert caplog.text.count("has no locks (flock)") == 1
        assert half_done.exists(), "it may be of a process that lives"
        with open_run_directory(tmp_path):
            assert f"names process {os.getpid()} on {socket.gethostname()}, since 20" in caplog.text
    assert not (tmp_path / "run.lock").exists()


def test_what_a_lock_says_reaches_the_terminal_as_text_alone(tmp_path):
    with open(tmp_path / "run.lock", "w") as file:
        json.dump({"process": 7, "host": "\x1b[31m\n", "since": "now"}, file)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match=r"process 7 on \?\[31m\?, since now"):
            RunLock(tmp_path / "run.lock")


def test_a_lock_that_somebody_else_put_there_is_not_removed(tmp_path):
    with open_run_directory(tmp_path) as run:
        (run.path / "run.lock").unlink()
        (run.path / "run.lock").touch()
    assert (tmp_path / "run.lock").exists()


def test_the_lock_of_another_user_who_is_dead_is_taken_over(tmp_path, monkeypatch):
    """His file may not be written, but another one can be made."""
    real = os.open
    (tmp_path / "run.lock").write_text("his")
    his = os.open(tmp_path / "run.lock", os.O_RDONLY)  # so that its number is not given to another file

    def opened(path, flags, *mode, **named):
        if flags & os.O_RDWR and os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(his)):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode, **named)

    monkeypatch.setattr(os, "open", opened)
    with open_run_directory(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    os.close(his)


def test_of_processes_that_race_for_one_lock_exactly_one_gets_it(tmp_path):
    """Whatever its last holder left, and while it is just ending."""
    program = """
for number in range(25):
    (directory / "run.lock").unlink(missing_ok=True)
    if number % 3 == 0:
        (directory / "run.lock").write_text("torn")
    begin, go, release, end, answers, answer = *os.pipe(), *os.pipe(), *os.pipe()
    ending = RunLock(directory / "run.lock") if number % 3 == 1 else None
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.close(end)
            os.read(begin, 1)  # returns when the parent closes its end
            try:
                lock = RunLock(directory / "run.lock")
                os.write(answer, b"w" if lock.is_in_place() else b"?")
            except SettingsError:
                os.write(answer, b"l")
            os.read(release, 1)
            os._exit(0)
        children.append(child)
    os.close(answer)  # so that a child that dies is no answer, and no endless wait
    os.close(go)
    if ending is not None:
        ending.release()  # while they look: none or one of them gets it
    said = sorted(os.read(answers, 1) for _ in children)
    os.close(end)
    for child in children:
        os.waitpid(child, 0)
    for descriptor in (begin, release, answers):
        os.close(descriptor)
    assert said == [b"l", b"l", b"w"] or (ending is not None and said == [b"l", b"l", b"l"]), (number, said)
print("ok")
"""
    assert start(program, tmp_path).communicate()[0] == "ok\n"


# ---- a directory that is removed while its run trains


def test_a_directory_that_was_removed_is_made_again_before_something_is_saved_and_can_be_resumed(tmp_path, caplog):
    path = tmp_path / "run"
    with open_run_directory(path, new=True) as run:
        run.keep_settings("{}\n")
        run.make_again_if_removed()
        assert caplog.text == ""
        shutil.rmtree(path)
        run.note(num_parameters=1)
        assert "run.json cannot be written" in caplog.text
        run.make_again_if_removed()
        assert run.settings.read_text() == "{}\n"
        assert "was removed while its run trains; it is made again" in caplog.text
        with pytest.raises(SettingsError, match="in use"), open_run_directory(path):
            pytest.fail("opened")
    assert sorted(entry.name for entry in path.iterdir()) == ["checkpoints", "run.json", "settings.json"]


@pytest.mark.parametrize("is_over", [True, False])
def test_a_directory_in_which_another_run_is_by_now_is_left_alone(tmp_path, is_over):
    path = tmp_path / "run"
    with open_run_directory(path, new=True) as run, ExitStack() as stack:
        run.keep_settings("{}\n")
        os.rename(path, tmp_path / "elsewhere")
        with ExitStack() as first:
            other = (first if is_over else stack).enter_context(open_run_directory(path, new=True))
            other.keep_settings('{"other": 1}\n')
        before = sorted(entry.name for entry in path.iterdir())
        with pytest.raises(ResourceError, match="was removed while its run trains, and cannot be made again"):
            run.make_again_if_removed()
        assert sorted(entry.name for entry in path.iterdir()) == before


# ---- what stands in the way


PLACES = ["run.json", "metrics.jsonl", "lmtrain.log", "checkpoints/last", "checkpoints/best", "tensorboard"]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["directory", "dangling link", "circle", "pipe", "file"])
def test_what_stands_where_a_run_writes_is_renamed_and_not_lost(tmp_path, name, kind):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    {
        "directory": path.mkdir,
        "dangling link": lambda: path.symlink_to("nowhere"),
        "circle": lambda: path.symlink_to(path),
        "pipe": lambda: os.mkfifo(path),
        "file": path.touch,
    }[kind]()
    with open_run_directory(tmp_path) as run:
        run.note(num_parameters=1)
    is_right = kind == ("directory" if name == "tensorboard" else "file")
    is_empty_record = name == "run.json" and kind == "file"
    assert len([*path.parent.glob(f"{path.stem}-damaged-*")]) == (not is_right or is_empty_record)
    assert sessions(tmp_path)[-1]["num_parameters"] == 1
