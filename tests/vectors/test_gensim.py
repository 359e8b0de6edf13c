"""The same files and the same figures as gensim's, where it is installed (pip install gensim); it is no dependency."""

from pathlib import Path

import numpy as np
import pytest

from lmtrain.vectors.table import Vectors

pytest.importorskip("gensim", reason="gensim is not installed")

from gensim.models import KeyedVectors

RANDOM = np.random.default_rng(1)
WORDS = [f"w{i}" for i in range(200)]


@pytest.fixture
def theirs() -> KeyedVectors:
    vectors = KeyedVectors(vector_size=20)
    vectors.add_vectors(WORDS, RANDOM.normal(size=(200, 20)).astype(np.float32))
    return vectors


@pytest.mark.parametrize("binary", [False, True])
def test_files_of_gensim_are_read_and_gensim_reads_ours(binary: bool, theirs: KeyedVectors, tmp_path: Path) -> None:
    theirs.save_word2vec_format(str(tmp_path / "theirs"), binary=binary)
    ours = Vectors.load(tmp_path / "theirs")
    assert list(ours.words) == theirs.index_to_key
    assert np.allclose(ours.matrix, theirs.vectors, rtol=0, atol=0 if binary else 1e-6)
    ours.save(tmp_path / "ours", format="word2vec-binary" if binary else "word2vec")
    again = KeyedVectors.load_word2vec_format(str(tmp_path / "ours"), binary=binary)
    assert again.index_to_key == theirs.index_to_key
    assert np.array_equal(again.vectors, ours.matrix)


def test_similarity_and_analogies_are_those_of_gensim(theirs: KeyedVectors, tmp_path: Path) -> None:
    ours = Vectors(tuple(theirs.index_to_key), theirs.vectors)
    pairs = [(*RANDOM.choice(WORDS, 2), RANDOM.integers(10)) for _ in range(60)]
    (tmp_path / "pairs").write_text("\n".join("\t".join(map(str, pair)) for pair in pairs), encoding="utf-8")
    pearson, spearman, _ = theirs.evaluate_word_pairs(str(tmp_path / "pairs"))
    result = ours.evaluate_similarity(tmp_path / "pairs")
    assert result.pearson == pytest.approx(pearson.statistic, abs=1e-6)
    assert result.spearman == pytest.approx(spearman.statistic, abs=1e-6)
    questions = []
    for _ in range(100):  # half of them with the answer that gensim gives
        a, b, c, d = RANDOM.choice(WORDS, 4, replace=False)
        questions.append(
            (a, b, c, theirs.most_similar(positive=[b, c], negative=[a], topn=1)[0][0] if RANDOM.random() < 0.5 else d)
        )
    (tmp_path / "questions").write_text(": all\n" + "\n".join(map(" ".join, questions)), encoding="utf-8")
    accuracy, _ = theirs.evaluate_word_analogies(str(tmp_path / "questions"))
    assert ours.evaluate_analogies(tmp_path / "questions").total.accuracy == pytest.approx(accuracy)
    assert 0.3 < accuracy < 0.8
    a, b, c, _ = questions[0]
    expected = dict(theirs.most_similar(positive=[b, c], negative=[a], topn=5))
    assert dict(ours.analogy(a, b, c, 5)) == pytest.approx(expected, abs=1e-6)
