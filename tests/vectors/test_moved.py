"""How far words moved: cosines of a word with itself, those that never moved, rotations taken away."""

import numpy as np
import pytest

from lmtrain.errors import DataError
from lmtrain.vectors.moved import compare_vectors, rotation
from lmtrain.vectors.table import Vectors


def table(**rows: list[float]) -> Vectors:
    return Vectors(tuple(rows), np.array([*rows.values()], np.float32))


def test_words_are_compared_with_themselves_and_those_that_never_moved_counted() -> None:
    before = table(still=[1, 2], turned=[1, 0], longer=[1, 1], zero=[0, 0], gone=[1, 1])
    after = table(turned=[0, 1], longer=[2, 2], still=[1, 2], new=[1, 1], zero=[1, 0])
    result = compare_vectors(before, after)
    assert dict(result.cosines) == pytest.approx({"turned": 0, "longer": 1, "still": 1})
    assert [word for word, _ in result.furthest] == ["turned", "longer"]
    assert (result.num_still, result.num_without_direction, result.num_only_before, result.num_only_after) == (1, 1, 1, 1)
    assert "1 never moved (25.00%)" in result.format()
    assert result.to_json(1)["furthest"] == [{"word": "turned", "cosine": 0.0}]


def test_a_rotation_of_all_words_is_taken_away() -> None:
    random = np.random.default_rng(1)
    matrix, turn = random.normal(size=(30, 5)), np.linalg.qr(random.normal(size=(5, 5)))[0]
    assert rotation(matrix, matrix @ turn) == pytest.approx(turn)
    names = tuple(f"w{i}" for i in range(30))
    first, second = (Vectors(names, m.astype(np.float32)) for m in (matrix, matrix @ turn))
    assert min(cosine for _, cosine in compare_vectors(first, second).cosines) < 0.5
    assert min(cosine for _, cosine in compare_vectors(first, second, align=True).cosines) == pytest.approx(1)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="have the sizes 2 and 3"):
        compare_vectors(table(a=[1, 2]), table(a=[1, 2, 3]))
    with pytest.raises(DataError, match="No word is in both"):
        compare_vectors(table(a=[1, 2]), table(b=[1, 2]))
