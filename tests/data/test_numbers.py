"""Ids, sizes and hashes of lines are those of a slow and plain reading, whatever a text holds and whatever the blocks are."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from lmtrain.data import lookup, overlap, text
from lmtrain.data.corpus import Corpus, Split, load_corpus
from lmtrain.data.lookup import WordLookup
from lmtrain.data.numbers import add_counts
from lmtrain.data.vocabulary import split_words
from lmtrain.errors import DataError

MASK = (1 << 64) - 1


def plain_words(content: str) -> list[str]:
    return re.findall("\n|[^ \t\n\v\f\r]+", content)


def plain_ids(train: str, other: str, kind: str, min_count: int) -> tuple[list[int], list[int]]:
    """The ids of two texts by the vocabulary of the first, the slow way."""
    if kind == "byte":
        return list(train.encode()), list(other.encode())
    end, cut = ("<eos>", plain_words) if kind == "word" else ("\n", list)
    first, second = (["<eos>" if piece == "\n" and kind == "word" else piece for piece in cut(part)] for part in (train, other))
    counts = Counter(first)
    kept = {piece: count for piece, count in counts.items() if count >= min_count and piece not in (end, "<unk>")}
    kept[end] = counts[end]
    kept["<unk>"] = len(first) - sum(kept.values())
    order = sorted(kept, key=lambda piece: (-kept[piece], piece))
    ids = {piece: number for number, piece in enumerate(order)}
    return tuple([ids.get(piece, ids["<unk>"]) for piece in pieces] for pieces in (first, second))


def plain_mix(number: int) -> int:
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & MASK
    return number ^ number >> 31


def plain_hashes(content: str) -> list[int]:
    """Of a text without long lines: of each piece of at least SHORT bytes, from its polynomial."""
    lines = [b" ".join(line.split()) for line in content.encode().split(b"\n")]
    lines = [line for line in lines if line]
    found = set()
    for start in range(len(lines)):
        piece = b""
        for line in lines[start:]:
            piece += (b"\n" if piece else b"") + line
            if len(piece) >= overlap.SHORT:
                total = sum(plain_mix(byte + 1) * pow(overlap.RATIO, place, 1 << 64) for place, byte in enumerate(piece))
                found.add(plain_mix(total & MASK) >> 1)
                break
    return sorted(found)


def sizes(split: Split) -> tuple[int, ...]:
    return split.num_chars, split.num_bytes, split.num_lines


ODD = st.sampled_from(
    ["the ", "cat ", "ab\n", "\n", "\r\n", "\r", " ", "  \t", "\v", "\f", "é ", "日本 ", "😀", "\u2028", "\x85", "\0",
     "\u00a0x ", "<unk> ", "<eos> ", "a_word_of_more_than_16_bytes ", "exactly8", "exactly_16_bytes ", "Σς ",
     "\x1c", "<s> ", " </s>\n"]
)  # fmt: skip
TEXTS = st.lists(ODD, min_size=1, max_size=60).map("".join)


def read(place, train: str, other: str, **options) -> Corpus:
    place.mkdir()
    for name, content in (("train", train), ("valid", other), ("test", other)):
        (place / f"{name}.txt").write_bytes(content.encode())
    return load_corpus(place, cache_dir=place / "cache", **options)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(TEXTS, TEXTS, st.sampled_from(["char", "byte", "word"]), st.integers(1, 40), st.integers(1, 2))
def test_odd_texts_have_the_ids_of_a_plain_reading(tmp_path_factory, train, other, kind, block_bytes, min_count):
    place = tmp_path_factory.mktemp("odd") / "text"
    options = {"min_count": min_count} if kind != "byte" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block_bytes)
        patch.setattr(lookup, "FEW", 0)
        try:
            corpus = read(place, train, other, tokenizer=kind, **options)
        except DataError:
            reject()  # a split that is blank or too small
    contents = [content.replace("\r\n", "\n") for content in (train, other)]
    if kind == "word":
        contents = [content if content.endswith("\n") else content + "\n" for content in contents]
    expected = plain_ids(*contents, kind, min_count)
    for split, content, ids in zip((corpus.train, corpus.valid), contents, expected, strict=True):
        assert split.ids.tolist() == ids
        num_lines = content.count("\n") + (not content.endswith("\n"))
        assert sizes(split) == (len(content), len(content.encode()), num_lines)
        assert split.lines.tolist() == plain_hashes(content)
        if corpus.tokenizer.unk_id is not None:
            assert split.num_unk == ids.count(corpus.tokenizer.unk_id)


def test_a_long_text_is_looked_up_as_word_by_word(monkeypatch):
    draw = np.random.default_rng(1)
    alphabet = np.array(list("abcdefghijkl日é"))
    words = ["".join(draw.choice(alphabet, draw.integers(1, 20))) for _ in range(3000)]
    monkeypatch.setattr(lookup, "MIN_BITS", 1)
    monkeypatch.setattr(lookup, "MAX_BITS", 10)  # so that many words have no slot

    class Numbers(dict[bytes, int]):
        def __missing__(self, word: bytes) -> int:
            self[word] = len(self)
            return self[word]

    plain, fast = Numbers({b"<eos>": 0}), Numbers({b"<eos>": 0})
    found = WordLookup(fast)
    for ends in ([" "], [" ", "\n"], [" ", "  ", "\r", "\n\n", "\t \n"]):
        content = "".join(words[n] + str(draw.choice(ends)) for n in draw.zipf(1.3, 9000) % 3000).encode()
        for part in (content, content.rstrip() + b"!"):
            assert found.of(part).tolist() == [plain[word] for word in split_words(part)]
    assert list(plain.items()) == list(fast.items())


@pytest.mark.parametrize("numbers", [[], [0], [5, 5, 1], [10**6, 2, 10**6], [7] * 300 + [9]])
def test_counts_grow_with_the_numbers(numbers):
    totals = np.zeros(1, np.int64)
    for dtype in (np.uint8, np.int32, np.uint32):
        part = np.array([number for number in numbers if number < 256 or dtype is not np.uint8], dtype)
        totals = add_counts(totals, part)
    expected = Counter(numbers * 2 + [number for number in numbers if number < 256])
    assert {number: int(totals[number]) for number in np.flatnonzero(totals)} == dict(expected)


def test_a_cache_is_the_same_byte_by_byte_as_it_always_was(tmp_path):
    """The checksum of a cache that an earlier version wrote: ids, hashes of lines and vocabulary."""
    content = "The cat sat on the mat.\nA café, naïve and 日本 — 😀!\n\n  two  spaces\tand a tab\r\n" * 7 + "the <unk> end"
    (tmp_path / "text.txt").write_bytes(content.encode())
    found = {}
    for kind in ("char", "byte", "word"):
        load_corpus(tmp_path / "text.txt", tokenizer=kind, cache_dir=tmp_path / kind, valid_fraction=0.2, test_fraction=0.2)
        (ids,) = (tmp_path / kind).glob("*.ids")
        found[kind] = f"{ids.stem[:8]} {hashlib.sha256(ids.read_bytes()).hexdigest()[:16]}"
    assert found == {
        "char": "7c287441 f93e9be2b254814c", "byte": "99828c15 7cac261f22516ff7", "word": "e61a4ca8 ef20243373761274",
    }  # fmt: skip
