"""Subwords: the library's own encoding is the reference, and the text itself."""

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.kinds import BPE
from lmtrain.data.subword import PIECES, PRE_TOKENIZER, Subwords, learn_bpe, read_library_file, sha256_of
from lmtrain.data.tokenizer import SubwordTokenizer, learn_tokenizer, load_tokenizer
from lmtrain.data.vocabulary import split_words
from lmtrain.errors import CheckpointError, DataError, SettingsError, UnfitError

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers, which the extra `subword` installs")

TEXTS = [
    "to be or not to be,\nthat is the question: don't they're we'll 'tis 1234 times\n" * 5,
    "Η γλώσσα μου έδωσαν ελληνική· το σπίτι φτωχικό στις αμμουδιές του Ομήρου;\n" * 3,
    "मैं हिन्दी में लिखता हूँ। यह एक वाक्य है॥ १२३ बार\n" * 3,
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 3,
    "if x:\r\n\treturn  [1, 22,  333]   \n\n\n    👩‍👩‍👧 🇬🇷 e\u0301\x00\x1b\u200b\u2028\ufeff\n",
]
PARTS = [
    *" \t\n\r\v\f.,'09_-aZéα९हि日。",
    "  ",
    "\r\n",
    "'s",
    "'re",
    "'ll",
    "न्",
    "👩‍👩‍👧",
    "\u200d",
    "\u200b",
    "\xa0",
    "<unk>",
    "\x85",
]
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.characters(codec="utf-8"), st.sampled_from(["a" * 70, " " * 70]))).map(
    "".join
)


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return Subwords(learn_bpe(TEXTS, vocab_size=500, min_count=1))


@pytest.fixture(scope="module")
def foreign(subwords: Subwords) -> dict[str, Any]:
    """A file that cuts as GPT-2's does, and has a token that stands for itself."""
    document = copy.deepcopy(subwords.document)
    document["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made = tokenizers.Tokenizer.from_str(json.dumps(document))
    made.add_special_tokens(["<|endoftext|>"])
    return dict(json.loads(made.to_str()))


def text_of(subwords: Subwords, ids: Any) -> str:
    return b"".join(subwords.bytes[number] for number in ids).decode()


@given(texts)
def test_ids_are_those_of_the_library_and_write_the_text_again(subwords: Subwords, text: str) -> None:
    ids = subwords.encode(text).tolist()
    assert ids == subwords._library.encode(text, add_special_tokens=False).ids
    assert text_of(subwords, ids) == text


def test_ids_of_long_texts_of_many_languages_are_those_of_the_library(subwords: Subwords) -> None:
    draw = random.Random(1)
    text = "".join(draw.choice([*TEXTS, *PARTS, chr(draw.randrange(0xD800))]) for _ in range(3000))
    assert subwords.encode(text).tolist() == subwords._library.encode(text, add_special_tokens=False).ids
    assert "".join(PIECES.findall(text)) == text


@given(texts, st.integers(0, 20))
def test_words_are_counted_as_where_they_are_tokens(subwords: Subwords, text: str, cut: int) -> None:
    tokenizer = SubwordTokenizer(BPE, subwords)
    ids = tokenizer.encode(text)
    before = int(ids[cut - 1]) if 0 < cut <= len(ids) else None
    assert tokenizer.count_words(ids[:cut]) + tokenizer.count_words(ids[cut:], before) == len(split_words(text))


@given(st.lists(texts, max_size=5))
def test_blocks_cut_anywhere_give_the_ids_of_the_whole_text(subwords: Subwords, blocks: list[str]) -> None:
    ids = [number for block in subwords.encode_blocks(blocks) for number in block.tolist()]
    assert ids == subwords.encode("".join(blocks)).tolist()
    assert learn_bpe(blocks, vocab_size=260, min_count=1) == learn_bpe(["".join(blocks)], vocab_size=260, min_count=1)


def test_a_block_that_ends_within_a_contraction_waits_for_the_rest(subwords: Subwords) -> None:
    for text in ("they're", "they'rex", "we'll  x", "it's", "it'sy", "a   b", "a \t b"):
        for cut in range(len(text)):
            ids = [number for block in subwords.encode_blocks([text[:cut], text[cut:]]) for number in block.tolist()]
            assert ids == subwords.encode(text).tolist()


def test_forgetting_pieces_changes_nothing(subwords: Subwords, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Subwords(subwords.document)
    monkeypatch.setattr("lmtrain.data.subword.MAX_PIECES", 3)
    monkeypatch.setattr("lmtrain.data.subword.AT_ONCE", 7)
    text = "".join(TEXTS)
    assert again.encode(text).tolist() == subwords.encode(text).tolist()


def test_every_line_ends_with_one_token_and_ids_descend_in_frequency(subwords: Subwords) -> None:
    text = "".join(TEXTS) + "\n\n\n  \n"
    assert subwords.encode(text).tolist().count(subwords.eos_id) == text.count("\n")
    counts = np.bincount(subwords.encode("".join(TEXTS)), minlength=len(subwords.bytes))
    assert (np.diff(counts) <= 0).all()


def test_pieces_keep_vowel_signs_and_joined_emoji_with_what_they_belong_to() -> None:
    assert PIECES.findall("यह हिन्दी में।") == ["यह", " हिन्दी", " में", "।"]
    assert PIECES.findall("don't 12 x's   y\n\n") == ["don", "'t", " 12", " x", "'s", "  ", " y", "\n", "\n"]


def test_learning_twice_gives_the_same_document(subwords: Subwords) -> None:
    assert learn_bpe(TEXTS, vocab_size=500, min_count=1) == subwords.document
    assert len(subwords.bytes) == 500
    assert subwords.document["pre_tokenizer"] == PRE_TOKENIZER


def test_a_few_pieces_at_a_time_are_encoded_and_none_twice(subwords: Subwords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtrain.data.subword.BATCH", 3)
    assert learn_bpe(TEXTS, vocab_size=300, min_count=1)["model"]["vocab"].keys() <= subwords.document["model"]["vocab"].keys()
    again = Subwords(subwords.document)
    ids = again.encode(TEXTS[0]).tolist()
    monkeypatch.setattr(again._lookup, "_encode_all", lambda pieces: pytest.fail(f"again: {pieces}"))
    assert again.encode(TEXTS[0]).tolist() == ids == subwords.encode(TEXTS[0]).tolist()


def test_a_tokenizer_comes_back_from_a_checkpoint_and_from_a_cache(subwords: Subwords) -> None:
    tokenizer = learn_tokenizer("bpe", TEXTS, vocab_size=300)
    assert isinstance(tokenizer, SubwordTokenizer)
    assert (tokenizer.unk_id, tokenizer.unknown_pieces("\ufffd")) == (None, [])
    document = json.loads(json.dumps(tokenizer.to_json()))
    beside = load_tokenizer(document, subwords=Subwords(json.loads(json.dumps(tokenizer.subword))))
    cached = load_tokenizer(*tokenizer.pack())
    for again in (beside, cached):
        assert again.encode(TEXTS[2]).tolist() == tokenizer.encode(TEXTS[2]).tolist()
        assert again.fingerprint() == tokenizer.fingerprint()
        assert again.decode(again.encode(TEXTS[4])) == TEXTS[4]
    with pytest.raises(UnfitError, match=r"^sha256 is"):
        load_tokenizer(document, subwords=subwords)
    with pytest.raises(UnfitError, match="name is 'bpe'"):
        load_tokenizer(document)
    with pytest.raises(UnfitError, match=r"name is 'byte'\. Allowed is 'bpe', 'unigram' or 'file'"):
        load_tokenizer({"format": 1, "name": "byte"}, subwords=subwords)
    with pytest.raises(UnfitError, match="'more' is not known here"):
        load_tokenizer(document | {"more": 1}, subwords=beside._subwords)  # type: ignore[attr-defined]


def test_text_is_written_in_whole_characters(subwords: Subwords) -> None:
    tokenizer = learn_tokenizer("bpe", ["ab\n"], vocab_size=257)
    decoder = tokenizer.make_decoder()
    pieces = [decoder.push(number) for number in tokenizer.encode("é日a")]
    assert pieces == ["", "é", "", "", "日", "a"]
    assert [tokenizer.token_text(number) for number in tokenizer.encode(" \né")] == [" ", "\n", "<0xC3>", "<0xA9>"]
    assert [tokenizer.symbol(number) for number in tokenizer.encode(" \n")] == ["Ġ", "Ċ"]


def test_half_a_surrogate_pair_is_refused(subwords: Subwords) -> None:
    with pytest.raises(DataError, match=r"holds U\+DC80, half a surrogate pair, at character 2"):
        learn_tokenizer("bpe", ["ab"], vocab_size=257).encode("ab\udc80")


def test_the_same_settings_are_refused_as_on_the_command_line() -> None:
    with pytest.raises(SettingsError, match=r"^vocab_size=256 leaves no token .* at least 257"):
        learn_tokenizer("bpe", ["ab"], vocab_size=256)


# ---- files of the library


def test_a_file_of_other_origin_is_encoded_line_by_line_as_the_library_does(foreign: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(foreign), encoding="utf-8")
    tokenizer = learn_tokenizer("file", [], subword=read_library_file(tmp_path / "tokenizer.json"))
    library = tokenizers.Tokenizer.from_str(json.dumps(foreign))
    text = "a  b\n\n\n x <|endoftext|>y\n"
    ids = tokenizer.encode(text).tolist()
    lines = [library.encode(line, add_special_tokens=False).ids for line in text.split("\n")]
    assert ids == [number for line in lines for number in [*line, tokenizer.eos_id]][:-1]
    assert tokenizer.decode(ids) == text
    blocks = [number for block in tokenizer.encode_blocks([text[:3], text[3:7], text[7:]]) for number in block.tolist()]
    assert blocks == ids


@given(texts)
def test_a_file_of_other_origin_loses_nothing(foreign: dict[str, Any], text: str) -> None:
    subwords = Subwords(foreign)
    assert text_of(subwords, subwords.encode(text)) == text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "it changes text: 'Ab' comes back as 'ab'"),
        ({"normalizer": {"type": "NFC"}}, "it changes text"),
        ({"decoder": None}, "decoder is None. Allowed is 'ByteLevel'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "model.vocab writes"),
        ({"pre_tokenizer": {"type": "nonsense"}}, "model cannot be used"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "model.vocab has 1 tokens"),
        ({"model": None}, "model.vocab is missing"),
        ({"added_tokens": 3}, "model cannot be used"),
    ],
)
def test_a_file_that_changes_text_or_is_none_is_refused(
    change: dict[str, Any], words: str, subwords: Subwords, tmp_path: Path
) -> None:
    (tmp_path / "my.json").write_text(json.dumps(subwords.document | change), encoding="utf-8")
    with pytest.raises(DataError, match=r"my\.json cannot be used: ") as caught:
        read_library_file(tmp_path / "my.json")
    assert words in str(caught.value)
    assert "or type tokenizer=bpe" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"3"])
def test_what_is_no_document_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "my.json").write_bytes(content)
    with pytest.raises(DataError, match=r"my\.json (is not JSON|cannot be used)"):
        read_library_file(tmp_path / "my.json")
    with pytest.raises(DataError, match="There is no file"):
        read_library_file(tmp_path / "other.json")


def test_forged_documents_are_refused_whatever_they_hold(subwords: Subwords) -> None:
    """Numbers that skip, tokens twice, merges of what is not there: never a panic, never an index outside."""
    draw = random.Random(1)
    values: list[Any] = [None, -1, 0, 2**40, 1.5, "x", "", [], {}, True, "日"]
    refused = 0
    for _ in range(300):
        document = copy.deepcopy(subwords.document)
        node: Any = document
        while True:
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.2:
                break
            node = node[key]
        node[key] = draw.choice(values)
        try:
            forged = Subwords(document)
        except UnfitError:
            refused += 1
        else:
            ids = forged.encode("ab é\n日")
            assert 0 <= ids.min() <= ids.max() < len(forged.bytes)
    assert refused > 100


# ---- without the library


def test_without_the_library_the_extra_is_named(subwords: Subwords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SettingsError, match=r"extra `subword`\. Type  pip install tokenizers"):
        learn_bpe(["ab"], vocab_size=257, min_count=1)
    with pytest.raises(CheckpointError, match="extra `subword`"):
        Subwords(subwords.document, CheckpointError)
    assert sha256_of({"b": 1, "a": 2}) == sha256_of({"a": 2, "b": 1})


def test_a_byte_level_tokenizer_that_puts_a_space_before_text_is_refused_by_that_setting(
    subwords: Subwords, tmp_path: Path
) -> None:
    document = copy.deepcopy(subwords.document)
    document["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"add_prefix_space of pre_tokenizer is true.* Allowed is false\. Write false there"):
        read_library_file(tmp_path / "tokenizer.json")
