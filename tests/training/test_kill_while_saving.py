"""`kill -9` and a full disk, in processes of their own, against the real file system."""

import subprocess
import sys
import textwrap

import pytest

# Each child saves step after step; whatever moment it is killed at, the newest checkpoint must be whole.
PROGRAM = """
import logging, os, random, resource, signal, sys, time
from pathlib import Path
import torch
from lmtrain.errors import ResourceError
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint, mark, newest_valid_checkpoint, prune, save_checkpoint
from lmtrain.training.left_over import remove_temporaries

torch.set_num_threads(1)
run, damage = Path(sys.argv[1]), []
handler = logging.Handler()
handler.emit = damage.append  # a fallback or a failed removal is a warning, and none may come
logging.getLogger("lmtrain").addHandler(handler)

def save(step):
    path = save_checkpoint(run, step, {"model": {"weight": torch.full((100,), float(step))}}, {"training": {"step": step}})
    mark(run, "best", path)
    prune(run, keep=2)

def check():
    newest = load_checkpoint(newest_valid_checkpoint(run))
    for path in (newest.path, find_checkpoint(run, "last"), find_checkpoint(run, "best")):
        checkpoint = load_checkpoint(path)
        assert checkpoint.documents["training"]["step"] == checkpoint.step
        assert checkpoint.tensors["model"]["weight"].eq(checkpoint.step).all()
    assert not damage, damage[0].getMessage()
    return newest.step

def killed(child):
    process = os.fork()
    if process == 0:
        child()
        os._exit(0)
    return process

for step in (1, 2, 3):
    save(step)
"""

KILL_AT_EVERY_CALL = """
def die_at(number):
    calls = iter(range(1 << 30))
    def wrap(module, name):
        original = getattr(module, name)
        def call(*given, **named):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **named)
        setattr(module, name, call)
    for name in ("open", "mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir"):
        wrap(os, name)
    import builtins
    wrap(builtins, "open")

number, status, newest = 0, None, 3
while status != 0:
    step = newest + 1
    def child():
        die_at(number)
        save(step)
    status = os.waitpid(killed(child), 0)[1]
    assert status in (0, signal.SIGKILL), status
    assert check() in (newest, step)
    newest, number = check(), number + 1
    prune(run, keep=2)  # which also removes what is half done; so that every round makes the same calls
    left = [path.name for path in (run / "checkpoints").iterdir() if ".tmp" in path.name]
    assert not left, left
assert newest > 5, "some kills came after the rename"
print(number - 1, "kills")
"""

KILL_AT_RANDOM = """
random.seed(1)
newest, kills = 3, 0
while kills < int(sys.argv[2]) or newest < 10:  # at least some saves were completed, however slow the disk is
    def child():
        for step in range(newest + 1, 1 << 20):
            save(step)
    process = killed(child)
    time.sleep(random.uniform(0.001, 0.1) * (1 + kills / 100))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert check() >= newest
    newest, kills = check(), kills + 1
    remove_temporaries(run / "checkpoints")
print(newest, "steps")
"""

FULL_DISK = """
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # a file of more is EFBIG, as a full disk is ENOSPC
before = sorted(os.listdir(run / "checkpoints"))
try:
    save_checkpoint(run, 4, {"model": {"weight": torch.ones(10_000)}}, {})
except ResourceError as error:
    print(error)
assert sorted(os.listdir(run / "checkpoints")) == before
assert check() == 3
save(4)  # what is small enough can still be saved: training goes on
assert check() == 4
"""


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM + textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_kill_at_any_call_that_touches_the_disk_leaves_whole_checkpoints(tmp_path):
    num_kills = int(run(KILL_AT_EVERY_CALL, tmp_path).split()[0])
    assert num_kills > 30


@pytest.mark.parametrize("num_kills", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path, num_kills):
    run(KILL_AT_RANDOM, tmp_path, num_kills)


def test_a_full_disk_costs_only_the_checkpoint_being_written(tmp_path):
    words = run(FULL_DISK, tmp_path)
    assert "The checkpoint of step 4 cannot be saved" in words
    assert "File too large" in words
    assert "The checkpoints before it are as they were" in words
