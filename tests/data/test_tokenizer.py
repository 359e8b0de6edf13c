import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.tokenizer import ByteTokenizer, learn_tokenizer, load_tokenizer
from lmtrain.data.vocabulary import split_words
from lmtrain.errors import CheckpointError, DataError, SettingsError

fixed = settings(derandomize=True, deadline=None, database=None)
texts = st.text(st.one_of(st.sampled_from("ab \n\t\r\v\f\x1c\x85\xa0\u2028é😀<unk>"), st.characters(codec="utf-8")))
words = st.lists(st.sampled_from(["a", "b", "<unk>", "<eos>", " ", "\n", "\t", "\x1c", "\xa0", "é"])).map("".join)


def words_of(text, **options):
    return learn_tokenizer("word", [text], **options)


# ---- round trips


@fixed
@given(texts)
def test_characters_come_back_exactly(text):
    tokenizer = learn_tokenizer("char", [text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@fixed
@given(texts)
def test_bytes_come_back_exactly(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@fixed
@given(words, words)
def test_word_ids_come_back_exactly_also_with_unknown_words(training, text):
    tokenizer = words_of(training)
    ids = tokenizer.encode(text)
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids.tolist()


@fixed
@given(st.sampled_from(["char", "byte", "word"]), texts, texts)
def test_json_brings_back_the_same_tokenizer(name, training, text):
    tokenizer = learn_tokenizer(name, [training])
    again = load_tokenizer(json.loads(json.dumps(tokenizer.to_json())))
    assert (again.vocab_size, again.eos_id, again.unk_id) == (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.unk_id)
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.encode(text).dtype == np.int32


@fixed
@given(st.sampled_from(["char", "byte", "word"]), st.lists(texts))
def test_blocks_cut_anywhere_give_the_ids_of_the_whole_text(name, blocks):
    tokenizer = learn_tokenizer(name, blocks)
    assert tokenizer.to_json() == learn_tokenizer(name, ["".join(blocks)]).to_json()
    in_blocks = [token_id for ids in tokenizer.encode_blocks(blocks) for token_id in ids.tolist()]
    assert in_blocks == tokenizer.encode("".join(blocks)).tolist()


@fixed
@given(st.sampled_from(["char", "byte", "word"]), texts, texts)
def test_every_id_is_inside_the_vocabulary(name, training, text):
    tokenizer = learn_tokenizer(name, [training])
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in tokenizer.encode(text))
    assert all(isinstance(tokenizer.token_text(token_id), str) for token_id in range(tokenizer.vocab_size))


@fixed
@given(st.sampled_from(["char", "byte", "word"]), words | texts, st.integers(0, 20))
def test_words_are_counted_alike_whatever_the_tokens_are(name, text, cut):
    if name == "word" or "<eos>" not in text.split():  # where it is the end of a line
        tokenizer = learn_tokenizer(name, [text])
        ids = tokenizer.encode(text)
        first, rest = ids[:cut], ids[cut:]
        num_words = tokenizer.count_words(first) + tokenizer.count_words(rest, first[-1] if len(first) else None)
        assert num_words == tokenizer.count_words(ids) == len(split_words(text))


def test_an_unknown_character_belongs_to_a_word():
    tokenizer = learn_tokenizer("char", ["a b\n"])
    assert tokenizer.count_words(tokenizer.encode("xyz a\n\n")) == 4


# ---- what a token is


def test_only_the_line_feed_ends_a_line():
    text = "a\u2028b\x85c\x1cd\x1ee\n"
    assert words_of(text).encode(text).tolist().count(words_of(text).eos_id) == 1


def test_words_are_separated_by_ascii_whitespace_alone():
    text = "a\tb\vc\fd\re f\xa0g\u2003h\x1ci\u2028j"
    tokenizer = words_of(text)
    pieces = [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text)]
    assert pieces == ["a", "b", "c", "d", "e", "f\xa0g\u2003h\x1ci\u2028j"]


def test_every_line_feed_is_an_eos_and_nothing_else_is_added():
    tokenizer = words_of("a b\n")
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"
    assert [tokenizer.token_text(i) for i in tokenizer.encode("\n\na b\n")] == ["<eos>", "<eos>", "a", "b", "<eos>"]


def test_a_literal_unk_is_the_unknown_word():
    tokenizer = words_of("a <unk> b")
    assert tokenizer.encode("a <unk> zzz").tolist()[1:] == [tokenizer.unk_id, tokenizer.unk_id]
    assert tokenizer.unknown_pieces("zzz <unk> a zzz yyy\n<eos>") == ["zzz", "yyy"]


def test_a_literal_eos_is_the_end_of_a_line():
    tokenizer = words_of("a <eos> b\n")
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("a <eos> b\n").tolist() == tokenizer.encode("a\nb\n").tolist()
    assert tokenizer.decode(tokenizer.encode("a <eos> b")) == "a\nb"


def test_literals_are_ordinary_characters_for_char():
    tokenizer = learn_tokenizer("char", ["<unk> <eos>\n"])
    assert len(tokenizer.encode("<unk>")) == 5
    assert tokenizer.unk_id not in tokenizer.encode("<unk><eos>")
    assert tokenizer.decode([tokenizer.unk_id]) == "<unk>"


def test_unknown_characters_are_unk_and_are_listed_once():
    tokenizer = learn_tokenizer("char", ["ab"])
    assert tokenizer.encode("a\U0010ffffz").tolist()[1:] == [tokenizer.unk_id] * 2
    assert tokenizer.unknown_pieces("azbz\ny") == ["z", "y"]


def test_char_has_an_end_of_line_even_where_the_text_has_none():
    tokenizer = learn_tokenizer("char", ["ab"])
    assert tokenizer.token_text(tokenizer.eos_id) == "\n"
    assert tokenizer.encode("\n").tolist() == [tokenizer.eos_id]


def test_byte_has_256_ids_and_no_unknown():
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.unk_id) == (256, 10, None)
    assert [tokenizer.token_text(i) for i in (10, 65, 0xE2)] == ["\n", "A", "<0xE2>"]
    assert tokenizer.unknown_pieces("\x00😀") == []


# ---- the vocabulary


def test_ids_descend_in_frequency_and_ties_are_in_code_point_order():
    tokenizer = words_of("b a c c\nd d é e\n")
    assert tokenizer.to_json()["tokens"] == ["<eos>", "c", "d", "a", "b", "e", "é", "<unk>"]
    assert learn_tokenizer("char", ["bbaé\nz"]).to_json()["tokens"] == ["b", "\n", "a", "z", "é", "<unk>"]


def test_unk_is_placed_by_the_count_of_what_it_stands_for():
    assert words_of("a a a b b c d\n", min_count=2).to_json()["tokens"] == ["a", "<unk>", "b", "<eos>"]


def test_vocab_size_bounds_the_whole_vocabulary():
    tokenizer = words_of("a a a b b c d\n", vocab_size=3)
    assert tokenizer.to_json()["tokens"] == ["<unk>", "a", "<eos>"]
    assert words_of("a b\n", vocab_size=100).vocab_size == 4


def test_min_count_and_vocab_size_hold_for_characters_and_spare_the_line_end():
    assert learn_tokenizer("char", ["aabbc\n"], min_count=2).to_json()["tokens"] == ["a", "b", "\n", "<unk>"]


def test_vocab_size_below_three_is_refused():
    with pytest.raises(SettingsError, match=re.escape("vocab_size=2 leaves no token")):
        words_of("a b", vocab_size=2)


def test_byte_refuses_options_that_would_do_nothing():
    with pytest.raises(SettingsError, match=re.escape("cannot change the vocabulary of name=byte, which is fixed")):
        learn_tokenizer("byte", ["a"], min_count=2)


def test_too_many_types_are_refused(monkeypatch):
    monkeypatch.setattr("lmtrain.data.vocabulary.MAX_TYPES", 3)
    with pytest.raises(DataError, match="more than 3 different words"):
        words_of("a b c d")


def test_a_word_without_end_is_refused_instead_of_held_in_memory(monkeypatch):
    monkeypatch.setattr("lmtrain.data.vocabulary.MAX_WORD", 10)
    with pytest.raises(DataError, match="more than 10 characters without whitespace: 'aaaa"):
        learn_tokenizer("word", ["aaaa"] * 4)


@pytest.mark.parametrize("name", ["char", "byte", "word"])
def test_half_a_surrogate_pair_is_refused_with_its_place(name):
    with pytest.raises(DataError, match=r"holds U\+DC80, half a surrogate pair, at character 2"):
        learn_tokenizer(name, ["ab"]).encode("ab\udc80")


# ---- decoding one by one


@fixed
@given(texts)
def test_the_byte_decoder_gives_whole_characters_only(text):
    decoder = ByteTokenizer().make_decoder()
    pieces = [decoder.push(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert decoder.flush() == ""


def test_the_byte_decoder_shows_a_broken_character():
    decoder = ByteTokenizer().make_decoder()
    assert decoder.push(0xE2) == ""
    assert decoder.push(0x28) == "\ufffd("
    assert decoder.push(0xE2) == ""
    assert decoder.flush() == "\ufffd"


def test_words_have_single_spaces_between_and_none_at_line_ends():
    tokenizer = words_of("a b\nc\n")
    decoder = tokenizer.make_decoder()
    assert [decoder.push(i) for i in tokenizer.encode("a  b\n\nc\n")] == ["a", " b", "\n", "\n", "c", "\n"]


@pytest.mark.parametrize(
    ("before", "continued"),
    [("", "b a"), ("a", " b a"), ("a ", "b a"), ("a\t", "b a"), ("a\n", "b a"), ("a \n ", "b a"), ("?", " b a")],
)
def test_words_are_separated_from_the_text_before_them_once(before: str, continued: str):
    tokenizer = words_of("a b\nc\n")
    decoder = tokenizer.make_decoder(before)
    assert "".join(decoder.push(i) for i in tokenizer.encode("b a")) == continued


def test_an_id_outside_the_vocabulary_is_never_decoded():
    tokenizer = words_of("a")
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(AssertionError, match="outside"):
            tokenizer.decode([token_id])


# ---- hostile documents


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "it is None. Allowed is a JSON object"),
        ([], "it is []"),
        ({}, "format is None. Allowed is 1 or 2"),
        ({"format": True, "name": "byte"}, "format is True"),
        ({"format": 2, "name": "byte"}, "format is 2. Allowed is 1 for bytes"),
        ({"format": 1, "name": ["byte"]}, "name is ['byte']"),
        (
            {"format": 1, "name": "bpe"},
            "name is 'bpe'. Allowed is 'char', 'byte' or 'word' where no subword.json lies beside it",
        ),
        ({"format": 1, "name": "word"}, "tokens has no values. Allowed is a list"),
        ({"format": 1, "name": "word", "tokens": "<eos><unk>"}, "tokens has no values. Allowed is a list"),
        ({"format": 1, "name": "word", "tokens": ["<unk>"]}, "tokens has 1 values. Allowed is a list of 2 to 10,000,002"),
        ({"format": 1, "name": "word", "tokens": ["<unk>", "<eos>", 3]}, "tokens[2] is 3. Allowed is a word"),
        ({"format": 1, "name": "word", "tokens": ["<unk>", "<eos>", ""]}, "tokens[2] is ''"),
        ({"format": 1, "name": "word", "tokens": ["<unk>", "<eos>", "a b"]}, "tokens[2] is 'a b'"),
        ({"format": 1, "name": "word", "tokens": ["<unk>", "<eos>", "\ud800"]}, r"tokens[2] is '\ud800'"),
        ({"format": 1, "name": "word", "tokens": ["<unk>", "<eos>", "a", "a"]}, "tokens[3] is 'a' again"),
        ({"format": 1, "name": "word", "tokens": ["<unk>", "a"]}, "tokens lacks '<eos>'"),
        ({"format": 1, "name": "char", "tokens": ["<unk>", "a"]}, r"tokens lacks '\n'"),
        ({"format": 1, "name": "char", "tokens": ["\n", "a"]}, "tokens lacks '<unk>'"),
        ({"format": 1, "name": "char", "tokens": ["\n", "<unk>", "ab"]}, "tokens[2] is 'ab'. Allowed is a char"),
        ({"format": 1, "name": "char", "tokens": ["\n", "<unk>", "\udfff"]}, r"tokens[2] is '\udfff'"),
    ],
)
def test_what_to_json_cannot_have_written_is_refused(document, said):
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        load_tokenizer(document)
    assert "Use a checkpoint as lmtrain wrote it." in str(caught.value)


def test_more_than_ten_million_tokens_are_refused_before_they_are_read():
    with pytest.raises(CheckpointError, match=r"tokens has 10,000,003 values\. Allowed is a list of 2 to 10,000,002"):
        load_tokenizer({"format": 1, "name": "word", "tokens": [None] * 10_000_003})
