"""Lines read from their last token to their first, by every tokenizer, however the text is cut."""

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.corpus import encode_file, load_corpus
from lmtrain.data.tokenizer import Tokenizer, learn_tokenizer, load_tokenizer, reversed_lines

TEXT = "the cat sat on a mat\n\na dog, then ran\nκαι Ω e\u0301\n" * 3
KINDS = ["char", "byte", "word", *["bpe", "unigram"] * (find_spec("tokenizers") is not None)]


def tokenizer_of(name: str, *, reverse: bool) -> Tokenizer:
    return learn_tokenizer(name, [TEXT], vocab_size=270 if name in ("bpe", "unigram") else 0, reverse=reverse)


@given(st.lists(st.integers(0, 2), max_size=30))
def test_lines_are_turned_round_and_turning_twice_changes_nothing(ids: list[int]) -> None:
    array = np.array(ids, np.int32)
    lines = "".join(map(str, ids)).split("0")
    assert "".join(map(str, reversed_lines(array, 0))) == "0".join(line[::-1] for line in lines)
    np.testing.assert_array_equal(reversed_lines(reversed_lines(array, 0), 0), array)


@pytest.mark.parametrize("name", KINDS)
def test_a_backward_tokenizer_has_the_tokens_of_each_line_turned_round(name: str) -> None:
    forward, backward = (tokenizer_of(name, reverse=reverse) for reverse in (False, True))
    ids = forward.encode(TEXT)
    np.testing.assert_array_equal(backward.encode(TEXT), reversed_lines(ids, forward.eos_id))
    assert backward.decode(backward.encode(TEXT)) == forward.decode(ids)
    assert backward.fingerprint() != forward.fingerprint()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_text_in_blocks_cut_anywhere_gives_the_same(name: str, size: int) -> None:
    backward = tokenizer_of(name, reverse=True)
    text = TEXT + "no end"
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    np.testing.assert_array_equal(np.concatenate([*backward.encode_blocks(blocks)]), backward.encode(text))
    assert sum(map(len, (backward.encode(block) for block in backward.whole(blocks)))) == len(backward.encode(text))


@pytest.mark.parametrize("name", KINDS)
def test_words_are_counted_as_those_of_a_forward_model(name: str) -> None:
    forward, backward = (tokenizer_of(name, reverse=reverse) for reverse in (False, True))
    assert backward.count_words(backward.encode(TEXT)) == forward.count_words(forward.encode(TEXT))


@pytest.mark.parametrize("name", KINDS[:3])
def test_the_direction_is_saved_with_the_tokenizer(name: str) -> None:
    backward = tokenizer_of(name, reverse=True)
    document, arrays = backward.save()
    assert document["reverse"] is True
    assert load_tokenizer(document, arrays).reverse
    assert "reverse" not in tokenizer_of(name, reverse=False).to_json()
    with pytest.raises(Exception, match="reverse is 1"):
        load_tokenizer({**document, "reverse": 1}, arrays)


def test_unknown_words_and_their_spelling_are_those_of_the_text(tmp_path) -> None:
    forward, backward = (
        learn_tokenizer("word", [TEXT], vocab_size=6, spelled=True, separators=",", reverse=reverse)
        for reverse in (False, True)
    )
    assert backward.spelling_of("an owl, a dog\n") == forward.spelling_of("an owl, a dog\n") > 0
    assert backward.pieces("an owl, a\nfox b\n") == ["a", "owl", "an", "<eos>", "b", "fox", "<eos>"]
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    one, other = (encode_file(tmp_path / "text.txt", each) for each in (forward, backward))
    assert (one.num_unk, one.spelling_micronats) == (other.num_unk, other.spelling_micronats)


def test_a_corpus_has_a_cache_of_its_own_for_each_direction(tmp_path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    ids = []
    for reverse in (False, True, True):
        corpus = load_corpus(tmp_path / "text.txt", tokenizer="word", reverse=reverse, cache_dir=tmp_path / "cache")
        assert corpus.tokenizer.reverse is reverse
        ids.append(np.array(corpus.train.ids))
    np.testing.assert_array_equal(ids[1], reversed_lines(ids[0], corpus.tokenizer.eos_id))
    np.testing.assert_array_equal(ids[1], ids[2])
    assert len([*(tmp_path / "cache").glob("*.json")]) == 2
