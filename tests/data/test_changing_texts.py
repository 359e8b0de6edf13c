"""Texts that change while they are read: the ids that are written are those of the text that was hashed, or there are none."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lmtrain.data import text
from lmtrain.data.corpus import Corpus, encode_file, load_corpus
from lmtrain.errors import DataError

OLD = "".join(f"to be or not {word} be\n" for word in ("to", "so", "he", "we", "me", "it", "us", "up")) * 2
NEW = OLD.replace("be", "go").replace("or", "if")  # as long as OLD, with other words
SHORTER, LONGER = OLD[:-40], OLD + "and more of it\n"
OPTIONS = {"char": {}, "byte": {}, "word": {"min_count": 2}}


def same(one: Corpus, other: Corpus) -> bool:
    return (
        one.fingerprint == other.fingerprint
        and one.tokenizer.to_json() == other.tokenizer.to_json()
        and all(np.array_equal(getattr(one, name).ids, getattr(other, name).ids) for name in ("train", "valid", "test"))
    )


def swap(path: Path, content: str) -> None:
    """Another text, with the same time of change."""
    mtime = path.stat().st_mtime_ns
    path.write_bytes(content.encode())
    os.utime(path, ns=(mtime, mtime))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
@pytest.mark.parametrize("is_directory", [False, True])
@pytest.mark.parametrize("other", [NEW, *(pytest.param(content, marks=pytest.mark.slow) for content in (SHORTER, LONGER))])
def test_no_cache_is_ever_of_another_text(tokenizer, is_directory, other, tmp_path, monkeypatch):
    """A change at every moment, between any two blocks of any reading, also one that is undone before the next reading."""
    place = tmp_path / "corpus"
    if is_directory:
        place.mkdir()
        for name in ("train", "valid", "test"):
            (place / f"{name}.txt").write_bytes(OLD.encode())
        path = place / "train.txt"
    else:
        path = place
        path.write_bytes(OLD.encode())
    monkeypatch.setattr(text, "BLOCK_BYTES", 300)
    monkeypatch.setattr("lmtrain.data.passages.WINDOW", 100)
    options = {"tokenizer": tokenizer, "valid_fraction": 0.2, "test_fraction": 0.2, **OPTIONS[tokenizer]}
    expected = {}
    for number, content in enumerate((OLD, other)):
        swap(path, content)
        expected[content] = load_corpus(place, cache_dir=tmp_path / f"right{number}", **options)
    read, num_believed, moment = text.iter_blocks, 0, 0
    while True:
        for undone in (False, True):
            swap(path, OLD)
            count = 0

            def disturbed(file, field, moment=moment, undone=undone):
                """Changes the text when so many blocks have been read in all."""
                nonlocal count
                changed_here = False
                for block in read(file, field):
                    if count == moment:
                        swap(path, other)
                        changed_here = True
                    count += 1
                    yield block
                if changed_here and undone:
                    swap(path, OLD)

            monkeypatch.setattr(text, "iter_blocks", disturbed)
            cache = tmp_path / f"cache{moment}{undone}"
            with suppress(DataError):
                load_corpus(place, cache_dir=cache, **options)
                num_believed += 1
            monkeypatch.setattr(text, "iter_blocks", read)
            for content, right in expected.items():
                swap(path, content)
                assert same(load_corpus(place, cache_dir=cache, **options), right), f"changed at block {moment}"
        if count <= moment:
            break
        moment += 1
    assert moment > 3
    assert num_believed <= 2 * (moment + 1) - 2, "a change before the last reading, which stays, is refused"


def test_a_text_that_changes_while_it_is_encoded_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(OLD)
    tokenizer = load_corpus(path, tokenizer="word", cache_dir=tmp_path).tokenizer
    read, changes = text.iter_blocks, iter([None, NEW])

    def changing(file, field):
        if content := next(changes):
            swap(path, content)
        yield from read(file, field)

    monkeypatch.setattr(text, "iter_blocks", changing)
    with pytest.raises(DataError, match="was changed while it was being read"):
        encode_file(path, tokenizer)


@pytest.mark.parametrize("name", ["pipe", "train.txt"])
def test_a_pipe_is_refused_because_it_cannot_be_read_twice(name, tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(OLD)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    given = tmp_path / name if name == "pipe" else tmp_path
    with pytest.raises(DataError, match=r"is a pipe\. .* Write the text to a file first"):
        load_corpus(given, tokenizer="char", cache_dir=tmp_path / "cache")
