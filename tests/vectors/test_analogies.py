"""Accuracy on analogies: counted by section, in blocks, with what is not asked beside it; the known figures on real files."""

from pathlib import Path

import numpy as np
import pytest

import lmtrain.vectors.analogies as analogies
from lmtrain.errors import DataError
from lmtrain.vectors.analogies import evaluate_analogies
from lmtrain.vectors.table import METHODS, Vectors

SHARED = Path(__file__).parents[3] / "shared" / "data"

GRID = Vectors(  # two properties, each of which a number tells, and a word of zeros
    ("man", "woman", "king", "queen", "actor", "actress", "zero"),
    np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 0, -1], [1, 1, -1], [0, 0, 0]], np.float32),
)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_sections_are_counted_apart_and_questions_with_unknown_words_are_not_asked(tmp_path: Path) -> None:
    lines = (
        "// a comment", ": people", "man woman king queen", "Man Woman ACTOR Actress", "man woman king actress",
        "man woman dog bitch", "", "# another", ":gram1 nothing", "man woman zero queen", ": empty",
    )  # fmt: skip
    result = evaluate_analogies(GRID, write(tmp_path / "q", *lines))
    people, gram, empty = result.sections
    assert (people.num_questions, people.num_answered, people.num_correct) == (4, 3, 2)
    assert (gram.name, gram.num_questions, gram.num_answered, gram.is_syntactic) == ("gram1 nothing", 1, 0, True)
    assert (empty.num_questions, empty.to_json()["accuracy"]) == (0, None)
    assert (result.total.accuracy, result.total.coverage) == (2 / 3, 3 / 5)
    assert (result.semantic.num_answered, result.syntactic.num_answered) == (3, 0)
    assert result.lower_case
    assert "66.67%" in result.format()
    assert "60.00%" in result.format().splitlines()[-1]


def test_case_is_kept_where_the_vectors_have_capitals_or_when_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "q", ": all", "Man woman king queen")
    assert evaluate_analogies(GRID, path, keep_case=True).total.num_answered == 0
    capitals = Vectors(("Man", *GRID.words[1:]), GRID.matrix)
    assert evaluate_analogies(capitals, path).total.num_correct == 1


def test_only_the_most_frequent_words_answer_and_are_asked_of(tmp_path: Path) -> None:
    path = write(tmp_path / "q", ": all", "man woman king queen", "man woman actor actress")
    assert evaluate_analogies(GRID, path, most_frequent=4).total.num_answered == 1
    assert evaluate_analogies(GRID, path, most_frequent=100).total.num_answered == 2


def test_a_question_whose_answer_is_one_of_its_words_counts_as_wrong(tmp_path: Path) -> None:
    result = evaluate_analogies(GRID, write(tmp_path / "q", ": all", "man man king king"))
    assert (result.total.num_answered, result.total.num_correct) == (1, 0)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_answer_as_one_question_at_a_time(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    vectors = Vectors(tuple(f"w{i}" for i in range(30)), random.normal(size=(30, 3)).astype(np.float32))
    questions = [[vectors.words[i] for i in random.integers(30, size=4)] for _ in range(60)]
    correct = sum(vectors.analogy(a, b, c, 1, method=method)[0][0] == d for a, b, c, d in questions)
    path = write(tmp_path / "q", ": all", *map(" ".join, questions))
    assert 0 < correct < 60
    for numbers in (1, 4 * 30 * 7, 1 << 20):
        monkeypatch.setattr(analogies, "BLOCK_NUMBERS", numbers)
        assert evaluate_analogies(vectors, path, method=method).total.num_correct == correct


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["man woman king queen"], r"Line 1 of .* stands in no section: 'man woman king queen'"),
        ([": all", "man woman king"], r"Line 2 of .* has 3 words: 'man woman king'\. A question has four"),
        ([": all", "a b c d e"], r"Line 2 of .* has 5 words"),
        ([": all", "", ": more"], r"holds no question"),
        ([""], r"holds no question"),
    ],
)
def test_files_without_questions_are_refused(lines: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        evaluate_analogies(GRID, write(tmp_path / "q", *lines))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data of ../shared are not there")
@pytest.mark.parametrize(
    ("file", "method", "percent"),
    [
        ("glove.6B.50d.5k.txt", "add", 52.76), ("glove.6B.50d.5k.txt", "mul", 47.84),
        ("glove.6B.50d.tasks.bin", "add", 51.30), ("glove.6B.50d.tasks.bin", "mul", 45.74),
    ],
)  # fmt: skip
def test_glove_answers_googles_questions_as_others_measured(file: str, method: str, percent: float) -> None:
    result = Vectors.load(SHARED / "vectors" / file).evaluate_analogies(
        SHARED / "word_tests" / "questions-words.txt", method=method
    )
    assert (result.total.num_questions, result.total.coverage) == (19_544, 1)
    assert round(100 * result.total.accuracy, 2) == percent
