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

import lmtrain.training.checkpoint
from lmtrain.__main__ import main
from lmtrain.data.files import check_file
from lmtrain.errors import ResourceError, UserError, as_typed, current_directory, is_out_of_memory, unwritable
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


def test_what_a_full_disk_cannot_take_is_told_from_a_path_that_is_wrong() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        full = unwritable("--output x", OSError(code, os.strerror(code)))
        assert (full.exit_code, full.given) == (6, f"--output x cannot be written: {os.strerror(code)}.")
    wrong = unwritable("--output x", NotADirectoryError(errno.ENOTDIR, "Not a directory"))
    assert (wrong.exit_code, wrong.given) == (2, "--output x cannot be made: Not a directory.")


def test_a_word_of_a_sentence_is_no_argument() -> None:
    with (
        pytest.raises(UserError, match=r"^A text is read twice here\. --text is empty\. Type --text FILE\.$"),
        as_typed(text="--text "),
    ):
        raise UserError("A text is read twice here.", "text is empty.", "Type text=FILE.")


def test_a_directory_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    said = r"The current directory is gone: .* Type  cd DIRECTORY  with one that exists"
    with pytest.raises(ResourceError, match=said):
        current_directory()
    with pytest.raises(ResourceError, match=said):
        lmtrain.train("data=text", "data.path=x")
    with pytest.raises(ResourceError, match=said):
        check_file(Path("x.txt"))
    with pytest.raises(SystemExit, match="6"):
        main(["runs"])
