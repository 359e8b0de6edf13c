import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lmtrain.data import text
from lmtrain.data.corpus import NAMES, describe, encode_file, load_corpus
from lmtrain.data.tokenizer import learn_tokenizer
from lmtrain.errors import DataError

BROWN = Path(__file__).parents[3] / "shared" / "data" / "brown"
SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"


@pytest.fixture
def splits(tmp_path):
    """Writes a directory of three splits."""

    def write(train="to be or not\nto be\n", valid="to see\n", test="not to be\n", name="text", suffix=".txt"):
        directory = tmp_path / name
        directory.mkdir()
        for split, content in zip(NAMES, (train, valid, test), strict=True):
            if content is not None:
                (directory / (split + suffix)).write_bytes(content.encode())
        return directory

    return write


@pytest.fixture
def file(tmp_path):
    def write(content, name="text.txt"):
        (tmp_path / name).write_bytes(content.encode())
        return tmp_path / name

    return write


@pytest.fixture
def load(tmp_path):
    def load(path, tokenizer="word", **options):
        return load_corpus(path, tokenizer=tokenizer, cache_dir=tmp_path / "cache", **options)

    return load


def texts_of(corpus):
    decode = corpus.tokenizer.decode
    return [split and decode(split.ids) for split in (corpus.train, corpus.valid, corpus.test)]


# ---- splits


@pytest.mark.parametrize("suffix", [".txt", ".tokens"])
def test_a_directory_gives_its_three_splits(splits, load, suffix):
    corpus = load(splits(suffix=suffix))
    assert texts_of(corpus) == ["to be or not\nto be\n", "to <unk>\n", "not to be\n"]


def test_the_vocabulary_comes_from_the_training_split_alone(splits, load):
    corpus = load(splits(), tokenizer="word")
    assert set(corpus.tokenizer.to_json()["tokens"]) == {"to", "be", "or", "not", "<eos>", "<unk>"}
    assert (corpus.train.num_unk, corpus.valid.num_unk, corpus.test.num_unk) == (0, 1, 0)


def test_sizes_are_those_of_the_text(splits, load):
    train = load(splits(train="é a\n\nb\n"), tokenizer="word").train
    assert (len(train.ids), train.num_chars, train.num_bytes, train.num_lines) == (6, 7, 8, 3)


def test_a_last_line_without_end_gets_its_eos_for_words(splits, load):
    open_end = load(splits(train="a b\nc"))
    closed = load(splits(train="a b\nc\n", name="closed"))
    assert open_end.train.ids.tolist() == closed.train.ids.tolist()
    assert open_end.train.num_chars == closed.train.num_chars == 6
    assert open_end.train.num_lines == closed.train.num_lines == 2


def test_a_last_line_without_end_stays_so_for_characters(splits, load):
    train = load(splits(train="a b\nc"), tokenizer="char").train
    assert (len(train.ids), train.num_chars, train.num_lines) == (5, 5, 2)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_windows_line_ends_and_byte_order_marks_give_the_same_corpus(splits, load, tokenizer):
    plain = load(splits(), tokenizer)
    windows = load(splits(train="\ufeffto be or not\r\nto be\r\n", valid="to see\r\n", name="windows"), tokenizer)
    assert plain.tokenizer.to_json() == windows.tokenizer.to_json()
    assert plain.train.ids.tolist() == windows.train.ids.tolist()
    assert plain.fingerprint == windows.fingerprint


def test_characters_are_cut_exactly_at_the_fractions_as_typed(file, load):
    path = file("abcdefghij" * 10)
    corpus = load(path, "char", valid_fraction=0.05, test_fraction=0.05)
    assert [len(split.ids) for split in (corpus.train, corpus.valid, corpus.test)] == [90, 5, 5]
    corpus = load(path, "char", valid_fraction=0.07, test_fraction=0)
    assert (len(corpus.train.ids), len(corpus.valid.ids), corpus.test) == (93, 7, None)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_the_parts_of_a_file_are_the_file(file, load, tokenizer):
    content = "one two é\nthree four\nfive six é\nseven eight\n"
    corpus = load(file(content), tokenizer, valid_fraction=0.3, test_fraction=0.3)
    parts = texts_of(corpus)
    if tokenizer == "word":
        assert [part.count("\n") for part in parts] == [2, 1, 1]
        assert corpus.train.num_chars + corpus.valid.num_chars + corpus.test.num_chars == len(content)
    else:
        assert "".join(parts)[: corpus.train.num_chars] == content[: corpus.train.num_chars]
        assert sum(len(s.ids) for s in (corpus.train, corpus.valid, corpus.test)) == len(
            content if tokenizer == "char" else content.encode()
        )


def test_bytes_are_cut_between_characters(file, load):
    corpus = load(file("éééééééééé"), "byte", valid_fraction=0.25, test_fraction=0.25)
    assert [len(split.ids) for split in (corpus.train, corpus.valid, corpus.test)] == [10, 4, 6]
    assert texts_of(corpus) == ["ééééé", "éé", "ééé"]


def test_words_are_cut_at_the_nearest_line_end(file, load):
    for content, num_chars in {
        "a a\nb b\nc c\nd d\n": 8,  # the place is a line end
        "a\nb b b b b b\nc c c c\n": 14,  # the next one is nearer
        "a a a a a\nb b b b b b b b\n": 10,  # the one before is nearer
    }.items():
        corpus = load(file(content), valid_fraction=0.5, test_fraction=0)
        assert (corpus.train.num_chars, corpus.valid.num_chars) == (num_chars, len(content) - num_chars)


def test_words_of_a_text_without_lines_are_cut_at_whitespace(file, load):
    corpus = load(file("aaaa bbbb cccc dddd eeee"), valid_fraction=0.4, test_fraction=0)
    assert corpus.train.num_lines == corpus.valid.num_lines == 1
    assert [len(corpus.train.ids), len(corpus.valid.ids)] == [4, 3]
    assert texts_of(corpus)[0] == "aaaa bbbb cccc\n"


def test_ids_are_small_where_they_can_be(splits, load):
    few = load(splits())
    many = load(splits(train=" ".join(f"w{i}" for i in range(1 << 16)), name="many"))
    assert few.train.ids.dtype == np.uint16
    assert many.tokenizer.vocab_size > 1 << 16
    assert many.train.ids.dtype == np.int32
    assert int(many.train.ids.max()) == many.tokenizer.vocab_size - 2


def test_counts_are_the_unigrams_of_the_split(splits, load, monkeypatch):
    monkeypatch.setattr("lmtrain.data.corpus.BLOCK", 3)
    corpus = load(splits())
    counts = corpus.train.counts(corpus.tokenizer.vocab_size)
    texts = [corpus.tokenizer.token_text(token_id) for token_id in range(corpus.tokenizer.vocab_size)]
    assert dict(zip(texts, counts.tolist(), strict=True)) == {"<eos>": 2, "be": 2, "to": 2, "not": 1, "or": 1, "<unk>": 0}


def test_a_text_of_one_type_is_a_corpus(file, load):
    corpus = load(file("a" * 100), "char")
    assert corpus.train.counts(corpus.tokenizer.vocab_size).tolist() == [90, 0, 0]


# ---- fingerprint


def test_the_fingerprint_is_that_of_the_texts_alone(splits, file, load):
    directory = splits(train="abcd\n", valid="ef\n", test="gh\n")
    assert load(directory, "char").fingerprint == load(directory, "byte").fingerprint
    whole = load(file("abcd\nef\ngh\n"), "char", valid_fraction=3 / 11, test_fraction=3 / 11)
    assert texts_of(whole)[0] == "abcd\n"
    assert whole.fingerprint == load(directory, "char").fingerprint


@pytest.mark.parametrize("split", NAMES)
def test_the_fingerprint_changes_with_every_split(splits, load, split):
    directory = splits()
    before = load(directory).fingerprint
    (directory / f"{split}.txt").write_text("to be to be\n")
    assert load(directory).fingerprint != before


# ---- the cache


def cache_files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_the_cache_is_used_again(splits, load, tmp_path, monkeypatch):
    first = load(splits())
    monkeypatch.setattr("lmtrain.data.corpus.learn_tokenizer", None)
    second = load(tmp_path / "text")
    assert isinstance(second.train.ids, np.memmap)
    assert not second.train.ids.flags.writeable
    assert (first.train.ids.tolist(), first.fingerprint) == (second.train.ids.tolist(), second.fingerprint)


@pytest.mark.parametrize("options", [{"tokenizer": "char"}, {"min_count": 2}, {"vocab_size": 4}])
def test_other_options_are_another_cache(splits, load, options, tmp_path):
    load(splits())
    load(tmp_path / "text", **options)
    assert len(cache_files(tmp_path)) == 4


def test_another_text_is_another_cache(splits, load, tmp_path):
    before = load(splits()).train.ids.tolist()
    (tmp_path / "text" / "train.txt").write_text("to be or not\nto do\n")
    assert load(tmp_path / "text").train.ids.tolist() != before


def test_the_same_text_elsewhere_is_the_same_cache(splits, load, tmp_path):
    load(splits())
    load(splits(name="copy"))
    assert len(cache_files(tmp_path)) == 2


def damage_ids(base):
    data = bytearray(base.with_suffix(".ids").read_bytes())
    data[3] ^= 1
    base.with_suffix(".ids").write_bytes(data)


def damage_manifest(base):
    document = json.loads(base.with_suffix(".json").read_text())
    document["manifest"]["splits"]["valid"]["num_chars"] += 1
    base.with_suffix(".json").write_text(json.dumps(document))


DAMAGES = {
    "a flipped bit": damage_ids,
    "a truncated file": lambda base: os.truncate(base.with_suffix(".ids"), 5),
    "an odd size": lambda base: os.truncate(base.with_suffix(".ids"), 6),
    "an empty file": lambda base: os.truncate(base.with_suffix(".ids"), 0),
    "a changed manifest": damage_manifest,
    "an empty manifest": lambda base: os.truncate(base.with_suffix(".json"), 0),
    "half a manifest": lambda base: os.truncate(base.with_suffix(".json"), 40),
    "a manifest that is no object": lambda base: base.with_suffix(".json").write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_cache_is_built_again_with_a_line_in_the_log(splits, load, tmp_path, caplog, kind):
    good = load(splits())
    base = next((tmp_path / "cache").glob("*.ids")).with_suffix("")
    DAMAGES[kind](base)
    again = load(tmp_path / "text")
    assert [m for m in caplog.messages if f"The cached ids {base} are damaged and are built again" in m]
    assert texts_of(again) == ["to be or not\nto be\n", "to <unk>\n", "not to be\n"]
    assert again.fingerprint == good.fingerprint
    caplog.clear()
    load(tmp_path / "text")
    assert caplog.messages == []


@pytest.mark.parametrize("suffix", [".ids", ".json"])
def test_a_cache_of_which_a_file_is_lost_is_built_again(splits, load, tmp_path, suffix):
    load(splits())
    next((tmp_path / "cache").glob("*" + suffix)).unlink()
    assert texts_of(load(tmp_path / "text"))[0] == "to be or not\nto be\n"


def test_a_reader_keeps_its_ids_while_the_cache_is_built_again(splits, load, tmp_path):
    reader = load(splits())
    next((tmp_path / "cache").glob("*.json")).unlink()
    load(tmp_path / "text")
    assert texts_of(reader)[0] == "to be or not\nto be\n"


def test_two_processes_may_build_the_same_cache_at_once(splits, tmp_path):
    directory = splits(train="to be or not to be\n" * 20000)
    code = (
        "import sys; from lmtrain.data.corpus import load_corpus\n"
        "sys.stdin.readline()\n"
        "for _ in range(3):\n"
        "    print(load_corpus(sys.argv[1], tokenizer='word', cache_dir=sys.argv[2]).train.ids.sum())\n"
    )
    command = [sys.executable, "-c", code, str(directory), str(tmp_path / "cache")]
    started = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert len({line for output, _ in outputs for line in output.split()}) == 1
    assert [name.split(".")[-1] for name in cache_files(tmp_path)] == ["ids", "json"]


def test_a_text_that_is_refused_leaves_no_cache(splits, load, tmp_path):
    directory = splits(test="a")
    with pytest.raises(DataError):
        load(directory, "char")
    assert cache_files(tmp_path) == []


def test_a_long_line_needs_little_memory(file, load, monkeypatch):
    content = "word " * 600_000
    path = file(content)
    monkeypatch.setattr(text, "BLOCK_BYTES", 1 << 14)
    tracemalloc.start()
    corpus = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(corpus.train.ids) == 540_001
    assert peak < len(content) / 2


# ---- what is refused, in words


def test_a_directory_without_the_three_files_says_what_it_lacks_and_holds(tmp_path, load):
    directory = tmp_path / "text"
    directory.mkdir()
    with pytest.raises(DataError) as caught:
        load(directory)
    assert f"The directory {directory} lacks train, valid, test; it holds nothing." in str(caught.value)
    for name in ("train.txt", "dev.txt", "test.tokens"):
        (directory / name).write_text("x")
    with pytest.raises(DataError) as caught:
        load(directory)
    assert str(caught.value) == (
        f"The directory {directory} lacks valid; it holds dev.txt, test.tokens, train.txt. "
        "Allowed is a directory with one file each for train, valid and test, ending in .txt or .tokens. "
        "Rename the files (for example to train.txt, valid.txt, test.txt), or give a single file: data.path=FILE."
    )


def test_a_split_that_is_there_twice_is_refused(splits, load):
    directory = splits()
    (directory / "valid.tokens").write_text("x")
    with pytest.raises(DataError, match=re.escape("has both valid.txt and valid.tokens")):
        load(directory)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "is empty."), ("\ufeff", "is empty."), (" \n\t\r\n", "holds nothing but whitespace.")],
)
@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_a_blank_text_is_refused(file, load, content, said, tokenizer):
    path = file(content)
    with pytest.raises(DataError) as caught:
        load(path, tokenizer)
    assert f"{path} {said} A text needs at least 2 tokens." in str(caught.value)


def test_a_split_of_fewer_than_two_tokens_is_refused(file, load):
    path = file("abcdefghij")
    with pytest.raises(DataError) as caught:
        load(path, "char", valid_fraction=0.1, test_fraction=0)
    assert str(caught.value) == (
        f"The valid split of {path} has 1 token. Every split needs at least 2. "
        "Give more text, or other shares: data.valid_fraction and data.test_fraction."
    )


def test_a_directory_with_a_short_split_asks_for_more_text(splits, load):
    with pytest.raises(DataError, match=re.escape("test.txt has 1 token. Every split needs at least 2. Give more text.")):
        load(splits(test="a"), "char")


def test_no_path_is_refused(load):
    with pytest.raises(DataError, match=re.escape("No text was given.")):
        load("")


def test_a_missing_path_is_refused(tmp_path, load):
    with pytest.raises(DataError, match=re.escape(f"There is no file or directory {tmp_path}/none/x.")):
        load(tmp_path / "none" / "x")


# ---- what is warned of


def test_splits_with_the_same_text_are_warned_of(splits, load):
    directory = splits(test="to see\n")
    warning = f"{directory}/valid.txt and {directory}/test.txt are the same text: results on one say nothing about the other."
    for _ in range(2):  # also where the cache is used
        assert load(directory).notes == (warning,)


def test_a_literal_eos_is_warned_of_for_words_only(splits, load):
    directory = splits(train="a <eos> b\n")
    assert load(directory, "char").notes == ()
    assert load(directory, "word").notes == (
        f"{directory}/train.txt holds the literal <eos>: it is read as an end of line, as the line end itself is. "
        r"A word of this name is written \<eos>.",
    )


# ---- one file for a tokenizer that exists


@pytest.mark.parametrize("name", ["char", "byte", "word"])
def test_a_file_for_a_trained_model_is_read_as_the_training_text_was(splits, load, name):
    directory = splits(valid="to see é\r\nor")
    corpus = load(directory, name)
    split = encode_file(directory / "valid.txt", corpus.tokenizer)
    assert split.ids.tolist() == corpus.valid.ids.tolist()
    assert split.ids.dtype == corpus.valid.ids.dtype
    sizes = ("num_chars", "num_bytes", "num_lines", "num_unk")
    assert [getattr(split, size) for size in sizes] == [getattr(corpus.valid, size) for size in sizes]


def test_a_file_for_a_trained_model_may_be_blank_but_not_empty(file):
    tokenizer = learn_tokenizer("word", ["a"])
    assert encode_file(file("\n"), tokenizer).ids.tolist() == [tokenizer.eos_id]
    assert encode_file(file("  "), tokenizer).ids.tolist() == [tokenizer.eos_id]
    with pytest.raises(DataError, match=r"is empty\. At least one token is needed"):
        encode_file(file(""), tokenizer)


# ---- facts before a run


def test_the_description_holds_the_facts(splits, load):
    assert describe(load(splits())).splitlines() == [
        "split         tokens       lines    characters      types    <unk>",
        "train              8           2            19          5    0.00%",
        "valid              3           1             7          3   33.33%",
        "test               4           1            10          4    0.00%",
        "vocabulary: 6 (word), learnt from train alone",
    ]
    assert "-" in describe(load(splits(name="again"), "byte"))


@pytest.mark.skipif(not BROWN.is_dir(), reason=f"the Brown corpus is not at {BROWN}")
def test_brown_has_its_published_sizes(load):
    corpus = load(BROWN)
    assert [len(split.ids) for split in (corpus.train, corpus.valid, corpus.test)] == [800_047, 199_979, 177_333]
    assert corpus.tokenizer.vocab_size == 17_112
    assert corpus.train.counts(17_112).min() > 0


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason=f"tiny-shakespeare is not at {SHAKESPEARE}")
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_tiny_shakespeare_is_cut_as_published(load, tokenizer):
    corpus = load(SHAKESPEARE, tokenizer, valid_fraction=0.1, test_fraction=0)
    assert (len(corpus.train.ids), len(corpus.valid.ids), corpus.test) == (1_003_854, 111_540, None)
    assert np.count_nonzero(corpus.train.counts(corpus.tokenizer.vocab_size)) == 65
