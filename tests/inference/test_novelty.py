"""What a text shares with another, against a search by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.tokenizer import learn_tokenizer
from lmtrain.inference import novelty
from lmtrain.inference.novelty import longest_copy, novelty_of

ids = st.lists(st.integers(0, 2), max_size=40).map(lambda numbers: np.array(numbers, np.int32))


def has(training: list[int], part: list[int]) -> bool:
    return any(training[start : start + len(part)] == part for start in range(len(training) - len(part) + 1))


@given(ids, ids)
def test_the_longest_copy_is_the_longest_stretch_that_both_have(own, training):
    start, size, place = longest_copy(own, training)
    text, other = own.tolist(), training.tolist()
    longest = max(
        (length for length in range(len(text) + 1) for begin in range(len(text) - length + 1)
         if has(other, text[begin : begin + length])), default=0,
    )  # fmt: skip
    assert size == longest
    if size:
        assert other[place : place + size] == text[start : start + size]
    else:
        assert place is None


def test_blocks_of_the_training_text_overlap_enough(monkeypatch):
    monkeypatch.setattr(novelty, "BLOCK", 4)
    training = np.arange(30, dtype=np.uint16)
    assert longest_copy(np.array([99, *range(3, 20), 99], np.int32), training) == (1, 17, 3)


def test_shares_are_those_of_different_ngrams():
    training = "the cat sat on the mat\n"
    tokenizer = learn_tokenizer("word", [training + "near dog\n"])
    (found,) = novelty_of(["the cat sat near the dog"], tokenizer, tokenizer.encode(training))
    assert found.num_tokens == 6
    assert (found.num_copied, found.copied, found.place) == (3, "the cat sat", 0)
    assert found.seen[0] == 3 / 5
    assert found.seen[1] == 2 / 5
    assert found.seen[2:] == (1 / 4, 0.0, 0.0)
    assert "longest copy 3 of 6 tokens 'the cat sat'" in found.format()


def test_an_empty_text_has_copied_nothing():
    tokenizer = learn_tokenizer("char", ["ab\n"])
    (found,) = novelty_of([""], tokenizer, tokenizer.encode("ab\n"))
    assert (found.num_copied, found.place, found.seen) == (0, None, (None,) * 5)
    assert found.to_json()["copied"] == ""
