"""Indicators of words and n-grams: each once, those of training only, and none that a checkpoint made up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.indicators import bags, learn_indicators, load_indicators, pick
from lmtrain.errors import UnfitError

TEXTS = st.lists(st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join), min_size=1, max_size=6)


@given(TEXTS, TEXTS, st.integers(1, 4), st.integers(1, 3))
def test_the_indicators_of_a_text_are_its_ngrams_that_training_has(
    train: list[str], others: list[str], max_length: int, min_count: int
) -> None:
    def ngrams(text: str) -> list[tuple[str, ...]]:
        words = [word if word in known_words else "<unk>" for word in text.split()]
        return [tuple(words[i : i + n]) for n in range(1, max_length + 1) for i in range(len(words) - n + 1)]

    learnt = learn_indicators(train, max_length=max_length, min_count=min_count)
    known_words = set(learnt.tokenizer.tokens)
    counts: dict[tuple[str, ...], int] = {}
    for text in train:
        for gram in ngrams(text):
            counts[gram] = counts.get(gram, 0) + 1
    known = {gram for gram, count in counts.items() if len(gram) == 1 or count >= min_count}
    numbers: dict[tuple[str, ...], set[int]] = {}
    for text in [*train, *others]:
        found = learnt.of(text).tolist()
        assert found == sorted(set(found))
        expected = {gram for gram in ngrams(text) if gram in known or len(gram) == 1}
        assert len(found) == len(expected)
        for gram in expected:
            numbers.setdefault(gram, set(found)).intersection_update(found)
    assert all(numbers.values()), "an n-gram has the same number wherever it stands"
    assert all(number < learnt.size for found in numbers.values() for number in found)


def test_words_are_looked_up_in_lower_case_where_that_is_set_and_a_line_end_is_no_word() -> None:
    learnt = learn_indicators(["The cat", "the Dog"], lowercase=True)
    assert learnt.words("THE\nCat").tolist() == learnt.words("the cat").tolist()
    assert learnt.tokenizer.unk_id not in learnt.words("the dog CAT")
    assert learnt.words("").tolist() == []


def test_what_was_saved_comes_back_and_what_nobody_saved_is_refused() -> None:
    learnt = learn_indicators(["a b c", "b c a"], max_length=3)
    arrays = learnt.arrays()
    loaded = load_indicators(arrays, learnt.tokenizer, lowercase=False, max_length=3)
    assert loaded.of("a b c a").tolist() == learnt.of("a b c a").tolist()
    size = learnt.tokenizer.vocab_size
    for forged in (
        {}, {"keys_2": arrays["keys_2"]}, arrays | {"keys_4": arrays["keys_2"]}, arrays | {"keys_2": arrays["keys_2"][::-1]},
        arrays | {"keys_2": arrays["keys_2"].astype(np.int32)}, arrays | {"keys_2": np.array([-1])},
        arrays | {"keys_2": np.array([size**2])}, arrays | {"keys_3": arrays["keys_3"][:, None]},
        arrays | {"keys_3": np.array([len(arrays["keys_2"]) * size])},
    ):  # fmt: skip
        with pytest.raises(UnfitError):
            load_indicators(forged, learnt.tokenizer, lowercase=False, max_length=3)


@given(st.lists(st.integers(0, 4), max_size=8), st.data())
def test_rows_are_picked_from_bags(sizes: list[int], data: st.DataObject) -> None:
    rows = [np.arange(size) + 10 * number for number, size in enumerate(sizes)]
    which = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    numbers, offsets = pick(*bags(rows), np.array(which, np.int64))
    expected_numbers, expected_offsets = bags([rows[i] for i in which])
    assert numbers.tolist() == expected_numbers.tolist()
    assert offsets.tolist() == expected_offsets.tolist()
