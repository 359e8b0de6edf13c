import os
import re

import pytest

from lmtrain.data.cache import new_file
from lmtrain.errors import ResourceError


def test_a_file_appears_whole_with_its_directory(tmp_path):
    path = tmp_path / "a" / "b"
    with new_file(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert os.listdir(path.parent) == ["b"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "b"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), new_file(path) as file:
        file.write({}[b"half"])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b"]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a)))
    with new_file(tmp_path / "b") as file:
        file.write(b"content")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught, new_file(tmp_path / "b") as file:
        file.write(b"content")
    assert str(caught.value) == (
        f"{tmp_path}/b cannot be written: No space left on device. The cache needs a directory that can be written, and "
        "about two bytes per token. Type data.cache_dir=DIRECTORY with one that has room."
    )
    assert os.listdir(tmp_path) == []


def test_a_cache_directory_that_is_a_file_is_said_in_words(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with (
        pytest.raises(ResourceError, match=re.escape("cache/b cannot be written: File exists.")),
        new_file(tmp_path / "cache" / "b"),
    ):
        pass
