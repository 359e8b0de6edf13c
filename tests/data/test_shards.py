"""Texts in many files: which are read and in which order, packed ones and records of JSON, and shards that are kept."""

import bz2
import gzip
import json
import lzma
import os
import re

import pytest

from lmtrain.data import parts, workers
from lmtrain.data.corpus import encode_file, load_corpus
from lmtrain.data.sources import find_sources
from lmtrain.data.text import iter_text
from lmtrain.errors import DataError

LINES = [f"line {number} of a text, Zeile {number % 7} é 世\n" for number in range(60)]
SIZES = {"valid_fraction": 0.2, "test_fraction": 0.2}
TOKENIZERS = {"char": {}, "byte": {}, "word": {"min_count": 2, "reverse": True}, "bpe": {"vocab_size": 270}}


@pytest.fixture
def shards(tmp_path):
    """Twelve shards of five lines each, among other files."""
    place = tmp_path / "shards"
    place.mkdir()
    for number in range(12):
        (place / f"part-{number}.txt").write_text("".join(LINES[5 * number : 5 * number + 5]))
    (place / "NOTES.md").write_text("no text")
    (place / ".hidden.txt").write_text("no text")
    return place


def ids_of(corpus):
    return [split.ids.tolist() for split in (corpus.train, corpus.valid, corpus.test)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_shards_give_the_ids_sizes_and_vocabulary_of_the_whole_text(name, shards, tmp_path):
    if name == "bpe":
        pytest.importorskip("tokenizers")
    (tmp_path / "whole.txt").write_text("".join(LINES))
    options = {"tokenizer": name, "cache_dir": tmp_path / "cache", **SIZES, **TOKENIZERS[name]}
    one, many = (load_corpus(path, **options) for path in (tmp_path / "whole.txt", shards))
    assert ids_of(one) == ids_of(many)
    assert one.tokenizer.to_json() == many.tokenizer.to_json()
    for split in ("train", "valid", "test"):
        for size in ("num_chars", "num_bytes", "num_lines", "num_unk", "num_filled"):
            assert getattr(getattr(one, split), size) == getattr(getattr(many, split), size)


def test_spelling_costs_the_same_in_shards(shards, tmp_path):
    (tmp_path / "whole.txt").write_text("".join(LINES))
    options = {"tokenizer": "word", "min_count": 9, "spelled": True, "cache_dir": tmp_path / "cache", **SIZES}
    one, many = (load_corpus(path, **options) for path in (tmp_path / "whole.txt", shards))
    assert one.test.spelling_micronats == many.test.spelling_micronats > 0


def test_a_changed_shard_is_redone_alone(shards, tmp_path, monkeypatch):
    done, tokenise = [], parts.tokenise_part

    def noted(part, passage, reading):
        done.append(passage.facts.path.name)
        tokenise(part, passage, reading)

    monkeypatch.setattr(parts, "tokenise_part", noted)
    directory = tmp_path / "text"
    (directory / "train").mkdir(parents=True)
    for file in shards.glob("part-*.txt"):
        (directory / "train" / file.name).write_bytes(file.read_bytes())
    for name in ("valid.txt", "test.txt"):
        (directory / name).write_text("line 1 of a text\nand more\n")
    for tokenizer in ("word", "char"):
        load_corpus(directory, tokenizer=tokenizer, cache_dir=tmp_path / "cache")
        assert len(done) == 13
        assert done[:3] == ["part-0.txt", "part-1.txt", "part-2.txt"]  # the same valid and test once
        done.clear()
        (directory / "train" / "part-7.txt").write_text(f"quite another {tokenizer}\n")
        changed = load_corpus(directory, tokenizer=tokenizer, cache_dir=tmp_path / "cache")
        assert done == ["part-7.txt"]
        assert "quite" in changed.tokenizer.decode(changed.train.ids)
        done.clear()
        load_corpus(directory, tokenizer=tokenizer, cache_dir=tmp_path / "cache")
        assert not done
        (directory / "train" / "part-7.txt").write_text("".join(LINES[35:40]))


def test_a_damaged_shard_in_the_cache_is_redone(shards, tmp_path):
    cache = tmp_path / "cache"
    first = load_corpus(shards, tokenizer="word", cache_dir=cache, **SIZES)
    expected = ids_of(first)
    for file in cache.glob("*.ids"):
        file.write_bytes(file.read_bytes()[:-1])
    assert ids_of(load_corpus(shards, tokenizer="word", cache_dir=cache, **SIZES)) == expected


def test_processes_give_the_same_ids_and_the_first_error(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "WORTHWHILE", 0)
    options = {"tokenizer": "word", **SIZES}
    alone = load_corpus(shards, cache_dir=tmp_path / "one", workers=1, **options)
    (shards / "part-3.txt").write_bytes((shards / "part-3.txt").read_bytes() + b"\0\n")
    (note,) = load_corpus(shards, cache_dir=tmp_path / "three", workers=3, **options).notes
    assert "contains 1 control character" in note
    (shards / "part-3.txt").write_text("".join(LINES[15:20]))
    assert ids_of(load_corpus(shards, cache_dir=tmp_path / "two", workers=2, **options)) == ids_of(alone)
    (shards / "part-4.txt").write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError, match=r"part-4\.txt is not UTF-8: byte 0xFF at offset 3, in line 2"):
        load_corpus(shards, cache_dir=tmp_path / "two", workers=2, **options)


# ---- names


def test_names_are_read_in_the_order_of_their_numbers(shards):
    assert [file.name for file in find_sources(shards)[0]] == [f"part-{number}.txt" for number in range(12)]
    assert find_sources(f"{shards}/part-1*.txt") == [[shards / f"part-{number}.txt" for number in (1, 10, 11)]]
    listed = f"{shards}/part-11.txt\n  {shards}/part-2.txt\n"
    assert find_sources(listed) == [[shards / "part-11.txt", shards / "part-2.txt"]]


@pytest.mark.parametrize(
    "names", [["٣.txt", "a.txt"], ["1.txt", "01.txt", "001.txt"], ["a²b.txt", "a2b.txt", "aa.txt"], ["-x.txt", " .txt"]]
)
def test_odd_names_have_one_order(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text("a b\n")
    assert sorted(file.name for file in find_sources(tmp_path)[0]) == sorted(names)


def test_a_name_with_the_signs_of_a_pattern_is_a_name_where_there_is_such_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("a")
    assert find_sources(tmp_path / "a[1].txt") == [[tmp_path / "a[1].txt"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [("{}/none-*.txt", "No file fits the pattern"), ("{0}/part-1.txt\n{0}/part-1.txt", "is listed twice"),
     ("{0}/part-1.txt\n{0}/gone.txt", "There is no file or directory"), (" \n", "No text was given")],
)  # fmt: skip
def test_what_cannot_be_found_is_said(given, message, shards, tmp_path):
    with pytest.raises(DataError, match=message):
        load_corpus(given.format(shards), tokenizer="char", cache_dir=tmp_path / "cache")


def test_empty_shards_are_left_out_and_named(shards, tmp_path):
    (shards / "part-20.txt").write_text("")
    whole = load_corpus(shards, tokenizer="char", cache_dir=tmp_path / "cache", **SIZES)
    (note,) = whole.notes
    assert re.fullmatch(r"Left out, because they are empty: .*part-20\.txt\.", note)
    assert whole.tokenizer.decode([*whole.train.ids, *whole.valid.ids, *whole.test.ids]) == "".join(LINES)


def test_only_empty_shards_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n")
    with pytest.raises(DataError, match="nothing but whitespace"):
        load_corpus(tmp_path, tokenizer="char", cache_dir=tmp_path / "cache")


def test_a_shard_without_a_line_end_is_not_joined_with_the_next(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"word{number}")
    corpus = load_corpus(tmp_path, tokenizer="word", cache_dir=tmp_path / "cache", **SIZES)
    assert corpus.tokenizer.decode(corpus.train.ids).startswith("word0\nword1\nword2\n")


def test_a_pipe_among_shards_is_refused(shards, tmp_path):
    os.mkfifo(shards / "part-5b.txt")
    with pytest.raises(DataError, match="is a pipe"):
        load_corpus(shards, tokenizer="char", cache_dir=tmp_path / "cache")


# ---- packed texts and records

TEXT = "to be or not to be\n" * 30


def zstd(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_packed_texts_are_read(suffix, pack, tmp_path):
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(pack(TEXT[:100].encode()) + pack(TEXT[100:].encode()))  # two members or frames
    assert "".join(iter_text(path)) == TEXT
    path.write_bytes(pack(os.urandom(3000).hex().encode())[:-9])
    with pytest.raises(DataError, match=r"text\.txt\.\w+ cannot be unpacked.* to test it"):
        list(iter_text(path))
    path.write_bytes(b"plain")
    with pytest.raises(DataError, match=f"is not packed, though its name ends in {suffix}"):
        list(iter_text(path))


@pytest.mark.parametrize("pack", [None, gzip.compress])
def test_records_give_their_texts_as_lines(pack, tmp_path):
    records = [{"text": "one"}, {"text": "two\r\nlines\n", "id": 3}, {"id": 1, "text": ""}, {"text": "é"}]
    data = "\n".join(map(json.dumps, records)).encode() + b"\n\n"
    path = tmp_path / ("a.jsonl" if pack is None else "a.jsonl.gz")
    path.write_bytes(data if pack is None else pack(data))
    assert "".join(iter_text(path)) == "one\ntwo\nlines\n\né\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b"', r"line 2, is not JSON"), ("[1]", "line 2, is \\[1\\], no object"), ("3", "line 2, is 3, no object"),
        ('{"content": "b"}', "line 2, has no 'text'; it has content"), ('{"text": 5}', "line 2, has 5 as 'text', no text"),
        ('{"text": "\\ud800"}', "line 2, holds U\\+D800"), ("[" * 100_000, "line 2, is not JSON"),
        ('{"text": null, "\\u001b[31m": 1}', "line 2, has None as 'text'"),
    ],
)  # fmt: skip
def test_bad_records_are_named_by_file_and_line(line, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl, {message}") as caught:
        list(iter_text(path))
    assert "\x1b" not in str(caught.value)


def test_another_field_is_read_and_is_part_of_the_key(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"one {n}", "body": f"two {n}"}) + "\n" for n in range(40)))
    one, two = (load_corpus(path, tokenizer="word", field=field, cache_dir=tmp_path / "cache") for field in ("text", "body"))
    assert one.tokenizer.decode(one.train.ids)[:8] == "one 0\non"
    assert two.tokenizer.decode(two.train.ids)[:8] == "two 0\ntw"
    assert encode_file(path, two.tokenizer).num_unk > 40


def test_packed_files_that_are_no_shards_by_their_names_are_named(shards, tmp_path):
    for name in ("more.gz", "b.csv.zst", ".hidden.gz", "README", "good.txt.gz"):
        (shards / name).write_bytes(gzip.compress(b"a line\n" * 40))
    (note,) = load_corpus(shards, tokenizer="word", cache_dir=tmp_path / "cache").notes
    assert note.startswith("Left out for their names: b.csv.zst, more.gz.")
    corpus = load_corpus(f"{shards}/part-*.txt", tokenizer="word", cache_dir=tmp_path / "cache")
    assert not corpus.notes, "they were not asked for"


def test_a_run_reads_packed_records_and_shards(shards, tmp_path, monkeypatch, call):
    for number, file in enumerate(sorted(shards.glob("part-*.txt"))):
        records = "".join(json.dumps({"body": line}) + "\n" for line in file.read_text().splitlines())
        (shards / f"r{number}.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    monkeypatch.chdir(tmp_path)
    ended = call("data=text", f"data.path={shards}/r*.jsonl.gz", "data.field=body",
                 "model=ngram", "tokenizer=word", "model.order=2", "trainer.num_threads=1")  # fmt: skip
    assert ended.code == 0, ended.err
    assert "Reading 12 files in this order: r0.jsonl.gz, r1.jsonl.gz, r2.jsonl.gz" in ended.out + ended.err


def test_a_directory_with_a_split_twice_says_to_remove_one(tmp_path):
    for name in ("train.txt", "train.tokens", "valid.txt", "test.txt"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(
        DataError, match=r"has both train\.txt and train\.tokens; .*\. Remove all but one of each, or give a single"
    ):
        find_sources(tmp_path)
