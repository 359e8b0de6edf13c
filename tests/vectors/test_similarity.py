"""Correlation with human judgements: every form of file, ties, what is missing; SciPy's numbers; the published figures."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from lmtrain.errors import DataError
from lmtrain.vectors.similarity import Pair, average_ranks, correlation, evaluate_similarity, read_pairs
from lmtrain.vectors.table import Vectors

SHARED = Path(__file__).parents[3] / "shared" / "data"

FORMS = {
    "tabs": "cat\tdog\t9\nsea\tbus\t0.5\n",
    "commas": "cat,dog,9\nsea,bus,0.5\n",
    "semicolons": "cat;dog;9\nsea;bus;0.5\n",
    "blanks": "cat dog 9\n sea  bus  0.5 \n",
    "comments": "# pairs\n\ncat\tdog\t9\n#sea\tdog\t1\nsea\tbus\t0.5\n",
    "header": "Word 1,Word 2,Human (mean)\ncat,dog,9\nsea,bus,0.5\n",
    "index": ",word1,word2,similarity\n0,cat,dog,9\n1,sea,bus,0.5\n",
    "part of speech": "word1\tword2\tPOS\tSimLex999\tconc\ncat\tdog\tN\t9\t3\nsea\tbus\tN\t0.5\t2\n",
    "quotes": '"cat","dog","9"\n"sea","bus",0.5\n',
    "suffixes": "cat-n dog-n 9\nsea-n bus-n 0.5\n",
    "Windows": "\ufeffcat\tdog\t9\r\nsea\tbus\t0.5\r\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_pairs(form: str, tmp_path: Path) -> None:
    (tmp_path / "pairs").write_bytes(FORMS[form].encode())
    assert read_pairs(tmp_path / "pairs") == [Pair("cat", "dog", 9), Pair("sea", "bus", 0.5)]


def test_words_that_are_numbers_and_one_suffix_alone_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("1984\t1985\t9\ncat-n\tdog\t1\n", encoding="utf-8")
    assert read_pairs(tmp_path / "pairs") == [Pair("1984", "1985", 9), Pair("cat-n", "dog", 1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"holds no pair"),
        ("cat dog\n", r"holds no pair"),
        ("cat dog 1\nsea bus\n", r"Line 2 of .* is no pair with a score: 'sea bus'"),
        ("cat dog 1\n\nsea bus much\n", r"Line 3 of .* is no pair with a score: 'sea bus much'"),
        ("cat dog 1\nsea bus nan\n", r"Line 2 of .* is no pair"),
        ("t\ttiger\tjaguar\t8.0\nx\tlove\tsex\t7\n", r"Line 2 of .* is no pair"),
        (": family\nboy girl brother sister\n", r"Line 2 of .* is no pair"),
    ],
)
def test_files_without_pairs_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_pairs(tmp_path / "pairs")


def test_ranks_and_correlations_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    for size in (2, 3, 17, 100):
        first, second = random.integers(5, size=size).astype(float), random.normal(size=size)
        assert average_ranks(first).tolist() == stats.rankdata(first).tolist()
        if np.ptp(first):
            spearman = correlation(average_ranks(first), average_ranks(second))
            assert spearman == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
            assert correlation(first, second) == pytest.approx(stats.pearsonr(first, second).statistic, abs=1e-12)


def test_pairs_without_vectors_are_counted_and_a_word_with_itself_is_compared(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("Cat cat 10\ncat dog 5\ndog car 1\ncow cat 7\nzero cat 1\n", encoding="utf-8")
    vectors = Vectors(("cat", "dog", "car", "zero"), np.array([[1, 0], [1, 1], [-1, 1], [0, 0]], np.float32))
    result = evaluate_similarity(vectors, tmp_path / "pairs")
    assert [pair.cosine for pair in result.pairs] == pytest.approx([1, 0.5**0.5, 0], abs=1e-7)
    assert (result.spearman, result.num_pairs, result.coverage, result.missing) == (1.0, 5, 0.6, ("cow", "zero"))
    assert "Spearman 1.0000" in result.format()
    assert "on 3 of 5 pairs (60.00%)" in result.format()
    assert evaluate_similarity(vectors, tmp_path / "pairs", keep_case=True).missing == ("Cat", "cow", "zero")


def test_a_correlation_that_is_not_defined_is_none_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("cat dog 5\ncat cow 5\n", encoding="utf-8")
    for vectors in (
        Vectors(("dog", "sea"), np.ones((2, 1), np.float32)), Vectors(("cat", "dog", "cow"), np.ones((3, 1), np.float32)),
    ):  # fmt: skip
        result = evaluate_similarity(vectors, tmp_path / "pairs")
        assert math.isnan(result.spearman)
        assert result.to_json()["spearman"] is None
        assert "Spearman -" in result.format()


def test_the_worst_pairs_are_those_whose_ranks_are_furthest_apart(tmp_path: Path) -> None:
    angles = np.linspace(0, 1.5, 13)
    vectors = Vectors(("a", *(f"w{i}" for i in range(12))), np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
    lines = [f"a w{i} {100 if i == 11 else 12 - i}" for i in range(12)]
    (tmp_path / "pairs").write_text("\n".join(lines), encoding="utf-8")
    worst = evaluate_similarity(vectors, tmp_path / "pairs").worst
    assert len(worst) == 10
    assert (worst[0].second, worst[0].human_rank, worst[0].cosine_rank) == ("w11", 1, 12)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data of ../shared are not there")
@pytest.mark.parametrize(
    ("vectors", "pairs", "spearman", "compared"),
    [
        ("glove.6B.50d.5k.txt", "wordsim353.tsv", 0.5033, 353), ("glove.6B.50d.5k.txt", "simlex999.txt", 0.2646, 999),
        ("glove.6B.50d.5k.txt", "rg-65.csv", 0.6190, 48), ("glove.6B.50d.5k.txt", "mc-30.csv", 0.5623, 30),
        ("glove.6B.50d.tasks.bin", "wordsim353.tsv", 0.5033, 353), ("glove.6B.50d.tasks.bin", "simlex999.txt", 0.2646, 999),
    ],
)  # fmt: skip
def test_glove_correlates_as_others_measured(vectors: str, pairs: str, spearman: float, compared: int) -> None:
    result = Vectors.load(SHARED / "vectors" / vectors).evaluate_similarity(SHARED / "word_tests" / pairs)
    assert (round(result.spearman, 4), len(result.pairs)) == (spearman, compared)


def test_pairs_of_the_same_cosine_tie_and_none_is_above_one(tmp_path: Path) -> None:
    matrix = np.random.default_rng(2).normal(size=(60, 30)).astype(np.float32)
    vectors = Vectors(tuple(f"w{i}" for i in range(60)), matrix)
    assert {vectors.similarity(word, word) for word in vectors.words} == {1.0}
    assert all(vectors.similarity(a, b) == vectors.similarity(b, a) for a, b in itertools.pairwise(vectors.words))
    same = [f"w{i} w{i} 10\n" for i in range(60)]
    turned = [f"w{i} w{i + 1} 1\nw{i + 1} w{i} 1\n" for i in range(20)]
    (tmp_path / "pairs").write_text("".join([*same, *turned]), encoding="utf-8")
    pairs = evaluate_similarity(vectors, tmp_path / "pairs").pairs
    assert {pair.cosine_rank for pair in pairs[:60]} == {30.5}
    assert all(first.cosine_rank == second.cosine_rank for first, second in zip(pairs[60::2], pairs[61::2], strict=True))
