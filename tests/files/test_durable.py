import errno
import os

import pytest

from lmtrain.errors import ResourceError
from lmtrain.files.durable import sync_directory, write_durably
from lmtrain.files.unfinished import write_atomically
from lmtrain.training.left_over import check_free_space


def test_a_file_is_replaced_whole(tmp_path):
    write_atomically(tmp_path / "last", "one")
    write_atomically(tmp_path / "last", "zwei\n")
    assert (tmp_path / "last").read_bytes() == b"zwei\n"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_replacement_that_fails_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomically(tmp_path / "last", "one")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "last", "two")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("last", "one")]


def test_what_is_not_a_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # stands for a device, which no test should ever aim at
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "link", "directory"):
        with pytest.raises(ResourceError, match=f"{name} is not a regular file"):
            write_atomically(tmp_path / name, "text")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "model").touch()
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "model", [b"new"])


def test_a_file_system_that_cannot_sync_a_directory_is_no_error_but_a_failing_disk_is(tmp_path, monkeypatch):
    for code, fails in ((errno.EINVAL, False), (errno.EIO, True)):

        def fail(_, code=code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        if fails:
            with pytest.raises(OSError, match="Input/output"):
                sync_directory(tmp_path)
        else:
            sync_directory(tmp_path)


def test_too_little_free_space_is_told_in_gigabytes(tmp_path):
    check_free_space(tmp_path, 1)
    with pytest.raises(ResourceError, match=r"GB free\. This run's checkpoints need 1e\+09 GB\. Free some space, or run else"):
        check_free_space(tmp_path, 10**18)
    with pytest.raises(ResourceError, match=r"keep fewer checkpoints with trainer\.keep=2, or run elsewhere"):
        check_free_space(tmp_path, 10**18, can_keep_fewer=True)
    with pytest.raises(ResourceError, match="or copy the run to a larger disk and resume the copy"):
        check_free_space(tmp_path, 10**18, is_resumed=True)
