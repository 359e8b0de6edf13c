"""What is to be known of texts: counted again in the plainest way."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.statistics import growth, lengths_of, sizes_of, sparsity, zipf_exponent

END = 2
TEXTS = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(lambda ids: np.array(ids, np.uint16))


def lines_of(ids: list[int]) -> list[list[int]]:
    """Each with the end before it and, where it has one, behind it."""
    lines = [[END]]
    for token in ids:
        lines[-1].append(token)
        if token == END:
            lines.append([END])
    return lines


def ngrams(ids: list[int], order: int) -> list[tuple[int, ...]]:
    found = []
    for line in lines_of(ids):
        line = line[1:] if order == 1 else line
        found += [tuple(line[i : i + order]) for i in range(len(line) - order + 1)]
    return found


@given(TEXTS, TEXTS)
def test_unseen_ngrams_are_those_of_a_plain_count(train: np.ndarray, other: np.ndarray) -> None:
    for found in sparsity(train, other, END):
        known, all_of_them = set(ngrams(train.tolist(), found.order)), ngrams(other.tolist(), found.order)
        unseen = [each for each in all_of_them if each not in known]
        assert (found.num, found.num_unseen) == (len(all_of_them), len(unseen))
        assert (found.num_types, found.num_unseen_types) == (len(set(all_of_them)), len(set(unseen)))


@given(TEXTS)
def test_sizes_lengths_and_growth_are_those_of_a_plain_count(ids: np.ndarray) -> None:
    words = [token for token in ids.tolist() if token != END]
    lines = [line[1:-1] if line[-1] == END and len(line) > 1 else line[1:] for line in lines_of(ids.tolist())]
    if ids[-1] == END:
        lines.pop()
    counts = Counter(words)
    assert sizes_of(ids, END) == (len(lines), len(words), len(counts), sum(n == 1 for n in counts.values()))
    lengths = lengths_of(ids, END)
    assert (lengths.shortest, lengths.longest) == (min(map(len, lines)), max(map(len, lines)))
    assert lengths.mean == pytest.approx(sum(map(len, lines)) / len(lines))
    assert growth(ids, END) == [
        (n, len(set(words[:n]))) for n in sorted({n for n in (10, 20) if n < len(words)} | {len(words)})
    ]


def test_zipfs_exponent_is_that_of_a_text_made_to_have_it_and_none_of_a_short_one() -> None:
    frequencies = np.round(1e6 / np.arange(1, 2000) ** 0.9).astype(np.int64)
    assert zipf_exponent(frequencies) == pytest.approx(0.9, abs=0.01)
    assert zipf_exponent(frequencies[:20]) is None
    assert not math.isnan(zipf_exponent(frequencies) or math.nan)
