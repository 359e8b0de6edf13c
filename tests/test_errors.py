"""Errors: they survive being sent to another process, and what is out of memory is told from bugs."""

import copy
import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmtrain.training.checkpoint  # noqa: F401 (it has errors of its own)
from lmtrain.errors import UserError, is_out_of_memory
from lmtrain.inference.drawing import OnlyUnknownError
from lmtrain.saved import NoVectorsError
from lmtrain.settings import reading


def all_errors(cls: type[UserError] = UserError) -> Iterator[type[UserError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from all_errors(child)


def made(cls: type[UserError]) -> UserError:
    if cls is reading.SettingsProblemsError:
        return reading.SettingsProblemsError(["one", "two"])
    if cls is OnlyUnknownError:
        return OnlyUnknownError()
    if cls is NoVectorsError:
        return NoVectorsError(Path("run"))
    return cls("It was given.", "It is allowed.", "Type this.")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", dict.fromkeys(all_errors()), ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling_and_copying(cls: type[UserError], protocol: int) -> None:
    error = made(cls)
    error.add_note("a note")
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert again.exit_code == cls.exit_code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (ImportError("cannot import name 'x' from 'y'"), False),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (SystemError("error return without exception set"), False),
        (RuntimeError("a bug"), False),
    ],
)
def test_what_lacks_memory_is_told_from_a_bug(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("kilobytes", [200_000, 400_000, 550_000])
def test_too_little_memory_to_load_pytorch_ends_with_one_paragraph(kilobytes: int) -> None:
    """With 400 and 550 MB, libraries that PyTorch loads would end the process by abort()."""
    command = f'ulimit -v {kilobytes}; exec "$0" -m lmtrain sample run'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("lmtrain: PyTorch cannot be loaded: the address space of this process is limited")
    assert done.stderr.count("\n") == 1
