"""Splits of shuffled lines and documents."""

import json
from collections import Counter

import pytest

from lmtrain.data import shuffled as module
from lmtrain.data.corpus import load_corpus
from lmtrain.errors import DataError

WORDS = [f"{chr(97 + number // 20)}{number:03}" for number in range(520)]


def load(path, tmp_path, **options):
    options = {"split": "shuffled_lines", "valid_fraction": 0.2, "test_fraction": 0.2, "tokenizer": "char"} | options
    return load_corpus(path, cache_dir=tmp_path / "cache", **options)


def lines_of(corpus):
    return [corpus.tokenizer.decode(split.ids).splitlines() for split in (corpus.train, corpus.valid, corpus.test) if split]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS))
    return path


@pytest.mark.parametrize("bucket_bytes", [100, 1 << 24])
def test_every_line_is_in_one_split_and_the_alphabet_is_spread(bucket_bytes, words, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUCKET_BYTES", bucket_bytes)
    train, valid, test = lines_of(load(words, tmp_path))
    assert sorted(train + valid + test) == WORDS
    assert (len(train), len(valid), len(test)) == (312, 104, 104)
    for split in (valid, test):
        assert len(Counter(word[0] for word in split)) > 18  # of 26 letters
    assert train != sorted(train)


def test_the_seed_alone_determines_the_split(words, tmp_path):
    first, again, other = (
        lines_of(load(words, tmp_path / name, split_seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_a_damaged_copy_is_written_again(words, tmp_path):
    first = lines_of(load(words, tmp_path))
    next(tmp_path.glob("cache/shuffled-*/train.txt")).write_text("another text\n")
    assert lines_of(load(words, tmp_path)) == first


def test_documents_stay_whole(tmp_path):
    documents = [f"title {number}\nbody {number}\n" for number in range(40)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n\n".join(documents))
    corpus = load(path, tmp_path, split="shuffled_documents", tokenizer="byte")
    texts = [corpus.tokenizer.decode(split.ids) for split in (corpus.train, corpus.valid, corpus.test)]
    found = [text for split in texts for text in split.rstrip("\n").split("\n\n")]
    assert sorted(found) == sorted(document.rstrip("\n") for document in documents)


def test_records_are_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"a {number}\n\nb {number}"}) + "\n" for number in range(40)))
    lines = [line for split in lines_of(load(path, tmp_path, split="shuffled_documents")) for line in split]
    assert all(lines[place + 2] == f"b{lines[place][1:]}" for place in range(0, 120, 3))


def test_every_split_gets_a_line_or_it_is_said_that_there_are_too_few(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("one\ntwo\nthree\n")
    assert sorted(map(len, lines_of(load(path, tmp_path)))) == [1, 1, 1]
    path.write_text("one line\n")
    with pytest.raises(DataError, match=r"The text has 1 of the lines that data.split=shuffled_lines deals out to 3 splits"):
        load(path, tmp_path)
    assert len(lines_of(load(path.with_name("few.txt"), tmp_path, split="contiguous"))) == 3


def test_shards_are_shuffled_together_and_splits_of_their_own_stay(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(4):
        (shards / f"{number}.txt").write_text("\n".join(WORDS[130 * number : 130 * number + 130]))
    assert sorted(line for split in lines_of(load(shards, tmp_path)) for line in split) == WORDS
    own = tmp_path / "own"
    own.mkdir()
    for name in ("train", "valid", "test"):
        (own / f"{name}.txt").write_text(f"{name} b\na\n")
    assert lines_of(load(own, tmp_path, tokenizer="byte")) == [[f"{name} b", "a"] for name in ("train", "valid", "test")]
