"""Vectors by counting: pairs as the definition counts them, whatever the blocks; the same numbers on every run."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtrain.errors import DataError, ResourceError, SettingsError
from lmtrain.vectors.batches import window_batches
from lmtrain.vectors.text import BREAK, GAP, Text, read_words

pytest.importorskip("scipy")

import lmtrain.vectors.svd as svd
from lmtrain.vectors.svd import COUNTS, WEIGHTINGS, count_pairs, decompose, train_svd, weigh

SHARED = Path(__file__).parents[3] / "shared" / "data"


def random_text(num_words: int = 30, size: int = 500) -> Text:
    random = np.random.default_rng(1)
    ids = np.minimum(random.geometric(0.1, size=size) - 1, num_words - 1).astype(np.int32)
    ids[random.random(size) < 0.1] = BREAK
    ids[random.random(size) < 0.1] = GAP
    return Text(tuple(f"w{i}" for i in range(num_words)), ids, np.bincount(ids[ids >= 0], minlength=num_words))


def counted_by_hand(text: Text, window: int, weighting: str) -> np.ndarray:
    counts = np.zeros((len(text.words),) * 2)
    for i, word in enumerate(text.ids):
        for j in range(i + 1, min(i + window + 1, len(text.ids))):
            if text.ids[j] == BREAK:
                break
            if word >= 0 and text.ids[j] >= 0:
                counts[word, text.ids[j]] += 1 / (j - i) if weighting == "harmonic" else 1
    return counts + counts.T


def test_words_are_those_of_the_tokenizer_with_gaps_and_breaks(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("b a A b\na rare b\n\nb a <unk>", encoding="utf-8")
    text = read_words(tmp_path / "text.txt", min_count=2)
    assert text.words == ("b", "a")
    assert text.ids.tolist() == [0, 1, GAP, 0, BREAK, 1, GAP, 0, BREAK, BREAK, 0, 1, GAP]
    assert (text.counts.tolist(), text.num_tokens) == ([4, 3], 10)
    text = read_words(tmp_path / "text.txt", min_count=2, lowercase=True)
    assert (text.words, text.counts.tolist()) == (("a", "b"), [4, 4])
    text = read_words(tmp_path / "text.txt", min_count=2, max_words=1)
    assert (text.words, text.ids.tolist()[:4]) == (("b",), [0, GAP, GAP, 0])


def test_of_a_directory_the_training_split_alone_is_read(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} {name}\n", encoding="utf-8")
    assert read_words(tmp_path, min_count=1).words == ("train",)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("window", [1, 2, 7, 60])
def test_pairs_are_counted_as_the_definition_says_in_blocks_of_any_size(
    window: int, weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = random_text(size=150)
    expected = counted_by_hand(text, window, weighting)
    for block in (3, 64, 1 << 20):
        monkeypatch.setattr(svd, "BLOCK", block)
        assert count_pairs(text, window=window, weighting=weighting).toarray() == pytest.approx(expected, abs=1e-9)


def test_weights_are_those_of_the_definition() -> None:
    counts = count_pairs(random_text(), window=3)
    dense = counts.toarray()
    assert weigh(counts, "raw").toarray() == pytest.approx(dense)
    assert weigh(counts, "sqrt").toarray() == pytest.approx(np.sqrt(dense))
    assert weigh(counts, "log").toarray() == pytest.approx(np.log(1 + dense))
    contexts = dense.sum(0) ** 0.75
    with np.errstate(divide="ignore"):
        information = np.log(dense / dense.sum(1, keepdims=True) / (contexts / contexts.sum())) - math.log(2)
    found = weigh(counts, "ppmi", shift=2)
    assert found.toarray() == pytest.approx(np.maximum(information, 0))
    assert found.nnz == (information > 0).sum()
    assert (weigh(counts, "ppmi").toarray() >= 0).all()


def test_the_iteration_finds_what_the_whole_decomposition_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = weigh(count_pairs(random_text(), window=3), "log")
    whole, values = decompose(matrix, 5)
    monkeypatch.setattr(svd, "DENSE", 0)
    left, singular = decompose(matrix, 5)
    assert singular == pytest.approx(values)
    assert left == pytest.approx(whole, abs=1e-8)
    assert (left[np.abs(left).argmax(0), range(5)] > 0).all()


@pytest.mark.parametrize("dense", [0, 1000])
@pytest.mark.parametrize("counts", COUNTS)
def test_every_run_gives_the_same_numbers(counts: str, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svd, "DENSE", dense)
    first, second = (train_svd(random_text(), size=4, counts=counts) for _ in range(2))
    assert first.matrix.shape == (30, 4)
    assert np.array_equal(first.matrix, second.matrix)


def test_a_dimension_that_is_not_there_is_zero_and_not_noise() -> None:
    text = Text(("a", "b", "c", "d"), np.array([0, 1, BREAK] * 20, np.int32), np.array([20, 20, 0, 0]))
    for power in (0.0, 0.5):
        matrix = train_svd(text, size=3, counts="raw", power=power).matrix
        assert matrix[:2, :2].any(axis=1).all()
        assert (matrix[2:] == 0).all()
        assert (matrix[:, 2] == 0).all()


@pytest.mark.parametrize("size", [30, 31, 0])
def test_a_size_that_there_is_not_is_refused(size: int) -> None:
    with pytest.raises(SettingsError, match=rf"size={size} was given for 30 words\. Allowed are 1 to 29\."):
        train_svd(random_text(), size=size)


def test_texts_without_pairs_or_words_are_refused(tmp_path: Path) -> None:
    lonely = Text(("a", "b"), np.array([0, BREAK, 1], np.int32), np.array([1, 1]))
    with pytest.raises(DataError, match=r"No two of the 2 words stand together"):
        train_svd(lonely, size=1)
    (tmp_path / "text.txt").write_text("a b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no word that is there at least 2 times.*min_count=1"):
        read_words(tmp_path / "text.txt", min_count=2)
    for nothing in ("\n \n", ""):
        (tmp_path / "text.txt").write_text(nothing, encoding="utf-8")
        with pytest.raises(DataError, match=r"text\.txt has no word\. .* Give a text with words"):
            read_words(tmp_path / "text.txt", min_count=1)


def test_words_that_do_not_end_are_said_instead_of_other_advice(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{'书' * 30}{number}\n" for number in range(9)), encoding="utf-8")
    advice = r"words of the training text have 31 characters on average\. Only spaces, .* Put spaces between the words first\.$"
    with pytest.raises(DataError, match=rf"at least 5 times\. .*{advice}"):
        read_words(tmp_path / "text.txt")
    text = read_words(tmp_path / "text.txt", min_count=1)
    with pytest.raises(DataError, match=rf"No two of the 9 words stand together .*{advice}"):
        train_svd(text, size=2)
    with pytest.raises(DataError, match=rf"No two of the 9 words stand together\. .*{advice}"):
        window_batches(text, "skipgram", batch_size=2)


def test_without_scipy_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ResourceError, match=r"SciPy is not installed\..*pip install 'lmtrain\[vectors\]'"):
        train_svd(random_text(), size=2)


def test_two_words_are_merged_into_one() -> None:
    text = Text(("a", "b", "c"), np.array([0, 1, BREAK, 2, GAP, 1], np.int32), np.array([1, 2, 1]))
    merged = text.merged("c", "a", "c+a")
    assert (merged.words, merged.ids.tolist(), merged.counts.tolist()) == (("b", "c+a"), [1, 0, BREAK, 1, GAP, 0], [2, 2])
    with pytest.raises(DataError, match="'x' is not among the 3 words"):
        text.merged("x", "a", "y")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data of ../shared are not there")
def test_on_brown_ppmi_is_best_and_square_roots_and_logarithms_help() -> None:
    text = read_words(SHARED / "brown", lowercase=True)
    assert (len(text.words), text.num_tokens) == (10_862, 790_013)
    found: dict[str, Any] = {counts: train_svd(text, counts=counts) for counts in COUNTS}
    results = {name: v.evaluate_similarity(SHARED / "word_tests" / "wordsim353.tsv") for name, v in found.items()}
    assert all(len(result.pairs) == 245 for result in results.values())
    raw, root, logarithm, ppmi = (results[name].spearman for name in COUNTS)
    assert raw < root < ppmi
    assert raw < logarithm < ppmi
    assert ppmi >= 0.36
    analogies = found["ppmi"].evaluate_analogies(SHARED / "word_tests" / "questions-words.txt").total
    assert (analogies.num_answered, analogies.accuracy >= 0.075) == (4357, True)
