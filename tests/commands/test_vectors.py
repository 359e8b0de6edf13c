"""`python -m lmtrain vectors ...` as one types it: on runs and on files, its JSON, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmtrain
from lmtrain.commands.vectors import COMMANDS

Call = Callable[..., Any]

ROYAL = "man 1 0 0\nwoman 1 1 0\nking 1 0 1\nqueen 1 1 1\nactor 1 0 -1\nactress 1 1 -1\n"


@pytest.fixture
def files(place: Path) -> Path:
    """The working directory with a run of characters, one of words, vectors, questions and pairs."""
    (place / "royal.vec").write_text(ROYAL, encoding="utf-8")
    (place / "questions.txt").write_text(": family\nman woman king queen\nman woman boy girl\n", encoding="utf-8")
    (place / "pairs.tsv").write_text("man\twoman\t9\nking\tactor\t1\nqueen\tking\t8\nboy\tman\t5\n", encoding="utf-8")
    return place


def test_a_run_is_exported_in_every_format_and_read_anywhere_a_run_is(files: Path, call: Call) -> None:
    assert call("TRAIN", "tokenizer=word", "hydra.run.dir=words").code == 0
    vectors = lmtrain.load("words").vectors
    for format in ("word2vec", "word2vec-binary", "glove", "npz"):
        ended = call("vectors", "export", "words", "--format", format, "--output", f"{format}.out")
        assert (ended.code, ended.err) == (0, "")
        assert f"{len(vectors)} words, 6 numbers each" in ended.out
        again = lmtrain.load_vectors(f"{format}.out")
        assert again.words == vectors.words
        assert np.array_equal(again.matrix, vectors.matrix)
        asked = [call("vectors", "neighbours", path, "cat", "mat", "--json").out for path in ("words", f"{format}.out")]
        assert asked[0] == asked[1]
        assert [len(near) for near in json.loads(asked[0]).values()] == [10, 10]


def test_a_run_of_characters_can_be_looked_at_and_is_exported_as_npz_alone(files: Path, call: Call) -> None:
    assert call("vectors", "neighbours", "run", "a", "--checkpoint", "last").code == 0
    ended = call("vectors", "export", "run", "--output", "chars.txt")
    assert ended.code == 3
    assert "Type --format npz" in ended.err
    assert not Path("chars.txt").exists()
    assert call("vectors", "export", "run", "--output", "chars.npz", "--format", "npz").code == 0


def test_analogies_show_coverage_and_the_same_numbers_as_json(files: Path, call: Call) -> None:
    shown = call("vectors", "analogies", "royal.vec", "questions.txt").out
    assert re.search(r"total +100\.00% +1 +1 +2 +50\.00%", shown)
    document = json.loads(call("vectors", "analogies", "royal.vec", "questions.txt", "--method", "mul", "--json").out)
    assert document["total"] == {
        "name": "total", "accuracy": 1.0, "coverage": 0.5, "num_questions": 2, "num_answered": 1, "num_correct": 1,
    }  # fmt: skip
    assert document["method"] == "mul"
    document = json.loads(call("vectors", "analogies", "royal.vec", "questions.txt", "--most-frequent", "3", "--json").out)
    assert (document["total"]["accuracy"], document["total"]["num_answered"]) == (None, 0)


def test_similarity_shows_coverage_and_the_same_numbers_as_json(files: Path, call: Call) -> None:
    shown = call("vectors", "similarity", "royal.vec", "pairs.tsv").out
    assert re.search(r"Spearman 0\.\d{4} .* on 3 of 4 pairs \(75\.00%\)\nwithout a vector: boy\n", shown)
    document = json.loads(call("vectors", "similarity", "royal.vec", "pairs.tsv", "--json").out)
    assert f"Spearman {document['spearman']:.4f}" in shown
    assert (document["num_compared"], document["missing"]) == (3, ["boy"])


def test_the_scores_of_words_with_accents_stand_below_each_other(files: Path, call: Call) -> None:
    lmtrain.Vectors(("tea", "cafe\u0301", "日本"), np.float32([[1, 0], [1, 0], [1, 0]])).save("wide.vec")
    shown = call("vectors", "neighbours", "wide.vec", "tea").out
    assert shown == "tea\n  cafe\u0301  1.0000\n  日本  1.0000\n"


def test_a_word_without_a_vector_is_named_behind_the_neighbours_of_the_others(files: Path, call: Call) -> None:
    alone = call("vectors", "neighbours", "royal.vec", "man", "queen")
    both = call("vectors", "neighbours", "royal.vec", "man", "Zebra", "queen", "gnu")
    assert (both.code, both.out) == (3, alone.out)
    assert "'Zebra', 'gnu' are not among these words." in both.err
    document = call("vectors", "neighbours", "royal.vec", "man", "Zebra", "--json")
    assert (document.code, list(json.loads(document.out))) == (3, ["man"])
    assert call("vectors", "neighbours", "royal.vec", "Zebra", "--json").out == ""


def test_an_analogy_of_ones_own(files: Path, call: Call) -> None:
    assert call("vectors", "analogy", "royal.vec", "man", "woman", "king").out.splitlines()[:2] == [
        "man : woman :: king : ?", "  queen    0.9753",
    ]  # fmt: skip
    found = json.loads(call("vectors", "analogy", "royal.vec", "man", "woman", "king", "--number", "2", "--json").out)
    assert [entry["word"] for entry in found] == ["queen", "actress"]


def test_vectors_are_trained_from_a_text_the_same_file_each_time(files: Path, call: Call) -> None:
    pytest.importorskip("scipy")
    for name in ("first.vec", "second.vec"):
        ended = call("vectors", "train", "text.txt", "--method", "svd", "--size", "4", "--output", name)
        assert (ended.code, ended.err) == (0, "623 words read, 10 different ones seen 5 times or more (100.00% of the text).\n")
        assert "vectors neighbours" in ended.out
    assert Path("first.vec").read_bytes() == Path("second.vec").read_bytes()
    assert lmtrain.load_vectors("first.vec").matrix.shape == (10, 4)


def test_words_are_drawn_with_their_pairs(files: Path, call: Call) -> None:
    ended = call("vectors", "plot", "royal.vec", "man:woman", "king:queen", "actor", "--output", "words.svg")
    assert (ended.code, ended.out) == (0, "Saved in words.svg.\n")
    drawn = Path("words.svg").read_text(encoding="utf-8")
    assert (drawn.count("<line"), drawn.count("<circle")) == (2, 5)
    assert call("vectors", "plot", "royal.vec", "--most-frequent", "3", "--output", "first.svg").code == 0
    assert Path("first.svg").read_text(encoding="utf-8").count("<circle") == 3


def test_senses_by_windows_by_atoms_and_of_words_made_of_two(files: Path, call: Call) -> None:
    pytest.importorskip("scipy")
    assert call("vectors", "train", "text.txt", "--method", "svd", "--size", "4", "--output", "text.vec").code == 0
    found = json.loads(call("vectors", "senses", "text.vec", "mat", "--data", "text.txt", "--k", "2", "--json").out)
    assert (found["word"], len(found["senses"])) == ("mat", 2)
    assert "senses of" in call("vectors", "senses", "text.vec", "mat", "--data", "text.txt").out
    again = (
        "vectors",
        "senses",
        "text.vec",
        "mat",
        "--data",
        "text.txt",
        "--k",
        "2",
        "--retrain",
        "--min-count",
        "1",
        "--size",
        "3",
    )
    assert "Vectors trained again" in call(*again, "--output", "again.vec").out
    assert json.loads(call(*again, "--json").out)["retrained"]["names"].keys() == {"mat_1", "mat_2"}
    assert "mat_1" in lmtrain.load_vectors("again.vec")
    pseudo = json.loads(
        call("vectors", "senses", "text.vec", "--pseudo-word", "cat", "mat", "--data", "text.txt", "--json").out
    )
    assert -1 <= pseudo["adjusted_rand_index"] <= 1
    atoms = ("vectors", "senses", "text.vec", "cat", "--method", "atoms", "--num-atoms", "6", "--sparsity", "2")
    assert 1 <= len(json.loads(call(*atoms, "--json").out)["atoms"]) <= 2
    assert call(*atoms).out.startswith("cat: its atoms of 6")
    merged = json.loads(
        call("vectors", "senses", "--check-superposition", "cat", "mat", "--data", "text.txt", "--size", "4", "--json").out
    )
    assert 0 < merged["frequency_share"] < 1


def test_how_far_words_moved_between_two_checkpoints(files: Path, call: Call) -> None:
    first, *_, last = sorted(str(path) for path in files.glob("run/checkpoints/step-*"))
    document = json.loads(call("vectors", "moved", first, last, "--json").out)
    assert document["num_common"] == len(lmtrain.load("run").vectors)
    assert document["mean_cosine"] < 1
    assert "never moved" in call("vectors", "moved", first, last).out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["analogys"], 2, r"Did you mean  python -m lmtrain vectors analogy\?"),
        (["analogy", "royal.vec", "man", "woman"], 2, r"The analogy was given 2 words\. An analogy has three"),
        (["analogy", "royal.vec", "man", "woman", "kind"], 3, r"'kind' is not among these words\..*Did you mean king"),
        (["neighbours", "nowhere", "man"], 3, r"There is no file or directory .*nowhere"),
        (["neighbours", "text.txt", "man"], 3, r"text\.txt ends with '\w+', which is no number"),
        (["neighbours", "royal.vec", "man", "--format", "word2vec"], 3, r"does not begin with the two numbers"),
        (["neighbours", "royal.vec"], 2, r"required: WORD"),
        (["neighbours", "royal.vec", "man", "--number", "0"], 2, r"whole number from 1"),
        (["analogies", "royal.vec", "nowhere.txt"], 3, r"nowhere\.txt"),
        (["analogies", "royal.vec", "pairs.tsv"], 3, r"stands in no section"),
        (["analogies", "nowhere", "text.txt"], 3, r"stands in no section"),
        (["similarity", "royal.vec", "questions.txt"], 3, r"is no pair with a score"),
        (["export", "royal.vec", "--output", "text.txt"], 2, r"--output text\.txt is there already"),
        (["export", "royal.vec", "--output", "text.txt/new"], 2, r"is below text\.txt, which is no directory"),
        (["export", "royal.vec", "--output", "-"], 2, r"--output is -\."),
        (["similarity", "royal.vec", "-"], 3, r"no file of this name\. Standard input is not read here"),
        (["export", "royal.vec", "--output", "new", "--format", "csv"], 2, r"invalid choice"),
        (["export", "royal.vec"], 2, r"required: --output"),
        (["plot", "royal.vec", "man", "king", "--output", "words.png"], 2, r"does not end in \.svg.*Type --output words\.svg"),
        (["plot", "royal.vec", "man", "--output", "words.svg"], 3, r"1 word was given"),
        (["plot", "royal.vec", "man:womam", "--output", "words.svg"], 3, r"'womam' is not among .* Did you mean woman"),
        (["senses", "royal.vec", "king"], 2, r"--data TEXT is missing"),
        (["senses"], 2, r"RUN\|FILE and WORD and --data TEXT are missing"),
        (["senses", "royal.vec", "king", "--data", "text.txt", "--output", "x"], 2, r"--output was given without --retrain"),
        (["senses", "royal.vec", "king", "--method", "atoms", "--retrain"], 2, r"--retrain was given with --method atoms"),
        (["senses", "royal.vec", "king", "--data", "text.txt", "--k", "x"], 2, r"nor auto"),
        (["senses", "royal.vec", "king", "--data", "text.txt"], 3, r"'king' is not among the 10 words that were read"),
        (["senses", "royal.vec", "king", "--method", "atoms"], 2, r"--num-atoms 500 was given for 6 words"),
        (["senses", "royal.vec", "--pseudo-word", "cat", "cat", "--data", "text.txt"], 2, r"was given one word twice"),
        (["senses", "royal.vec", "--check-superposition", "a", "b", "--data", "text.txt"], 2, r"trains vectors of its own"),
        (["moved", "royal.vec", "run"], 3, r"The vectors have the sizes 3 and 6"),
        (["train", "text.txt", "--output", "new"], 2, r"required: --method"),
        (["train", "text.txt", "--method", "svd", "--output", "new"], 2, r"--size 100 was given for 10 words.* --size 5"),
        (["train", "text.txt", "--method", "svd", "--output", "new", "--min-count", "999"], 3, r"at least 999 .*--min-count 1"),
        (["train", "nowhere", "--method", "svd", "--output", "new"], 3, r"There is no file or directory"),
        (["train", "run", "--method", "svd", "--output", "new"], 3, r"lacks train, valid, test"),
        (["train", "text.txt", "--method", "svd", "--output", "new", "--power", "nan"], 2, r"is not a number from 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    arguments: list[str], code: int, words: str, files: Path, call: Call
) -> None:
    before = sorted(files.iterdir())
    ended = call("vectors", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert re.search(words, ended.err), ended.err
    assert len(ended.err.splitlines()) == 1 + ("words read" in ended.err)
    assert sorted(files.iterdir()) == before


def test_a_model_without_vectors_and_vectors_that_are_not_finite_are_refused(
    files: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("data=text", "data.path=text.txt", "model=ngram", "tokenizer=word", "hydra.run.dir=counted").code == 0
    ended = call("vectors", "neighbours", "counted", "cat")
    assert ended.code == 4
    assert "counted" in ended.err
    assert "has no word vectors" in ended.err
    diverged = lmtrain.load_vectors("run")
    diverged.matrix[0, 0] = np.nan
    monkeypatch.setattr("lmtrain.tasks.opening.vectors_of", lambda *_: diverged)
    ended = call("vectors", "neighbours", "run", "a")
    assert ended.code == 4
    assert "hold numbers that are not finite" in ended.err


def test_every_command_has_its_help_and_is_in_the_overview(call: Call) -> None:
    overview = call("vectors").out
    assert call("vectors", "--help").out == overview
    for command in COMMANDS:
        assert f"vectors {command} " in overview
        assert call("vectors", command, "--help").out.startswith(f"usage: python -m lmtrain vectors {command}")
