"""Models that start from word vectors: which rows are set, that frozen ones stay, and that runs go on bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain
from lmtrain.tasks.embeddings import projected, put_vectors
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.vectors.svd import train_svd
from lmtrain.vectors.text import read_words

WORDS = ("the", "cat", "rome", "sat", "zebra", "<eos>")
LANGUAGE = [
    "data=text", "data.path=text.txt", "tokenizer=word", "model=gru", "model.hidden_size=5", "trainer.batch_size=2",
    "trainer.chunk_length=6", "trainer.max_seconds=null", "trainer.num_epochs=4", "trainer.evaluate_every=5",
    "trainer.sample_tokens=3", "trainer.precision=float32",
]  # fmt: skip
TAGGER = ["task=tag", "data.path=data", "tokenizer.min_count=1", "trainer.num_epochs=4", "trainer.batch_size=3"]
COMMON = ["model.embed_size=4", "model.embeddings=vectors.txt", "trainer.num_threads=1", "schedule=constant"]
RUNS = {"language": (LANGUAGE, "embedding.weight"), "tag": (TAGGER, "tables.0")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(1).normal(size=(len(WORDS), 4)).round(3)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(WORDS, rows, strict=True)]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text("the cat sat in Rome\na dog ran off\n" * 20, encoding="utf-8")
    (tmp_path / "data").mkdir()
    for name in ("train", "valid"):
        (tmp_path / "data" / name).write_text("The O\ncat O\nsat O\nRome I-LOC\n\na O\ndog O\n\n" * 3, encoding="utf-8")
    return tmp_path


def table_of(run: str, name: str, which: Any = "last") -> dict[str, Any]:
    checkpoint = load_checkpoint(find_checkpoint(run, which))
    return dict(zip(checkpoint.documents["tokenizer"]["tokens"], checkpoint.tensors["model"][name].tolist(), strict=True))


def given() -> dict[str, list[float]]:
    rows = [line.split() for line in Path("vectors.txt").read_text(encoding="utf-8").splitlines()]
    return {word: [pytest.approx(float(number), rel=1e-6) for number in numbers] for word, *numbers in rows}


@pytest.mark.parametrize("task", ["language", pytest.param("tag", marks=pytest.mark.slow)])
def test_frozen_vectors_stay_and_the_others_move(task: str, place: Path) -> None:
    settings, name = RUNS[task]
    lmtrain.train(*settings, *COMMON, "hydra.run.dir=frozen", "model.freeze_embeddings=null")
    lmtrain.train(*settings, *COMMON, "hydra.run.dir=tuned")
    frozen, tuned = table_of("frozen", name), table_of("tuned", name)
    for word in ("the", "cat", "sat"):
        place_of = word if word in frozen else word.capitalize()
        assert frozen[place_of] == given()[word]
        assert tuned[place_of] != given()[word]
    assert frozen["Rome" if task == "language" else "rome"] == given()["rome"], "where case differs, the lower one is taken"
    assert frozen["<eos>"] == given()["<eos>"], "the border of sentences has the vector of a language model's line end"
    assert ("zebra" in frozen) is (task == "tag"), "a tagger also knows words that training lacks"
    assert "have one, " in Path("frozen/lmtrain.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("stops", [("1.5", "2.4"), pytest.param(("1.0", "2.0"), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("task", ["tag", pytest.param("language", marks=pytest.mark.slow)])
def test_vectors_that_are_frozen_at_first_go_on_bit_for_bit(
    task: str, stops: tuple[str, ...], place: Path, same: Callable[[str, str], bool]
) -> None:
    settings, name = RUNS[task]
    later = [*settings, *COMMON, "model.freeze_embeddings=2"]
    lmtrain.train(*later, "hydra.run.dir=whole")
    for number, epochs in enumerate(stops):
        run = f"parts{number}"
        lmtrain.train(*later, f"hydra.run.dir={run}", f"trainer.num_epochs={epochs}")
        moved = table_of(run, name)["the"] != given()["the"]
        assert moved is (float(epochs) > 2)
        lmtrain.train(f"resume={run}", "trainer.num_epochs=4")
        assert same("whole", run)


def test_a_tagger_starts_from_a_language_model(place: Path) -> None:
    lmtrain.train(*LANGUAGE, *COMMON[:1], *COMMON[2:], "hydra.run.dir=lm")
    lmtrain.train(*TAGGER, "model.embed_size=4", "model.embeddings=lm", "model.freeze_embeddings=null", "model.lowercase=false",
                  "hydra.run.dir=tagger")  # fmt: skip
    first, second = table_of("lm", "embedding.weight", "best"), table_of("tagger", "tables.0")
    assert all(second[word] == row for word, row in first.items() if word != "<unk>")


def test_vectors_of_another_size_are_refused_or_projected(place: Path) -> None:
    with pytest.raises(lmtrain.SettingsError, match=r"Type model\.embed_size=4, or model\.project_embeddings=true"):
        lmtrain.train(*TAGGER, "model.embed_size=2", "model.embeddings=vectors.txt")
    with pytest.raises(lmtrain.SettingsError, match=r"Type model\.embed_size=4\."):
        lmtrain.train(*TAGGER, "model.embed_size=9", "model.embeddings=vectors.txt")
    run = lmtrain.train(*TAGGER, "model.embed_size=2", "model.embeddings=vectors.txt", "model.project_embeddings=true")
    assert run.best is not None
    with pytest.raises(lmtrain.SettingsError, match=r"Type model\.freeze_embeddings=0"):
        lmtrain.train(*LANGUAGE, *COMMON, "model.hidden_size=4", "model.tie_weights=true", "model.freeze_embeddings=1")
    with pytest.raises(lmtrain.UserError, match="nosuch"):
        lmtrain.train(*TAGGER, "model.embeddings=nosuch")


@pytest.mark.parametrize("task", RUNS)
def test_vectors_that_do_not_fit_are_refused_before_a_long_text_is_read(
    task: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "cut.bin").write_bytes(b"9 4\nword " + bytes(7))
    monkeypatch.setattr("lmtrain.tasks.language.build_corpus", lambda *given: pytest.fail("the text is read"))
    monkeypatch.setattr("lmtrain.tasks.tag.read_splits", lambda *given: pytest.fail("the text is read"))
    with pytest.raises(lmtrain.DataError, match=r"cut\.bin ends within row 1 of 9"):
        lmtrain.train(*RUNS[task][0], *COMMON, "model.embeddings=cut.bin")


def test_a_projection_keeps_distances_as_well_as_it_can() -> None:
    plane = np.random.default_rng(2).normal(size=(30, 2))
    matrix = (plane @ np.random.default_rng(3).normal(size=(2, 6)) + 5).astype(np.float32)
    short = projected(matrix, 2)
    pairs = [(i, j) for i in range(30) for j in range(i)]
    before, after = (np.array([np.linalg.norm(m[i] - m[j]) for i, j in pairs]) for m in (matrix, short))
    assert np.allclose(before, after, rtol=1e-4), "points of a plane lose nothing"
    assert np.array_equal(short, projected(matrix, 2))


def test_of_two_rows_of_one_word_the_first_counts() -> None:
    table = torch.zeros(3, 2)
    vectors = lmtrain.Vectors(("a", "b"), np.float32([[1, 2], [3, 4]]))
    assert put_vectors(table, ["A", "c", "b"], vectors) == [True, False, True]
    assert table.tolist() == [[1, 2], [0, 0], [3, 4]]


def test_a_language_model_starts_from_vectors_of_its_own_text(place: Path, same: Callable[[str, str], bool]) -> None:
    own = [*LANGUAGE, "model.embed_size=3", "model.embeddings=svd", "trainer.num_threads=1"]
    lmtrain.train(*own, "hydra.run.dir=frozen", "model.freeze_embeddings=null")
    lmtrain.train(*own[:-2], "trainer.num_threads=1", "hydra.run.dir=drawn", "trainer.num_epochs=0.1")
    table, drawn = table_of("frozen", "embedding.weight"), table_of("drawn", "embedding.weight")
    text = read_words("text.txt", min_count=1)
    vectors = train_svd(text, size=3)
    own_rows, svd_rows = np.array([table[word] for word in text.words]), vectors.matrix
    scale = np.sqrt(np.square(svd_rows).mean() / np.square(own_rows).mean())
    np.testing.assert_allclose(own_rows * scale, svd_rows, rtol=1e-5, atol=1e-6)
    assert table["<eos>"] == pytest.approx(drawn["<eos>"], abs=0.05), "it has no neighbours in its line, and stays as drawn"


def test_a_run_from_vectors_of_its_text_goes_on_bit_for_bit_and_makes_them_once(
    place: Path, same: Callable[[str, str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [*LANGUAGE, "model.embed_size=3", "model.embeddings=svd", "trainer.num_threads=1", "schedule=constant"]
    lmtrain.train(*own, "hydra.run.dir=whole")
    lmtrain.train(*own, "hydra.run.dir=parts", "trainer.num_epochs=1.5")
    monkeypatch.setattr("lmtrain.tasks.embeddings.train_svd", lambda *given, **named: pytest.fail("made again"))
    lmtrain.train("resume=parts", "trainer.num_epochs=4")
    assert same("whole", "parts")


def test_a_text_with_too_few_tokens_for_vectors_is_refused(place: Path) -> None:
    svd = ["model.embeddings=svd"]
    with pytest.raises(
        lmtrain.SettingsError, match=r"9 numbers \(model\.embed_size\) for 9 tokens.*Leave model\.embeddings out"
    ):
        lmtrain.train(*LANGUAGE, *svd, "model.embed_size=9")
    Path("text.txt").write_text("".join(f"{word}\n" for word in "abcdefgh" * 9), encoding="utf-8")
    with pytest.raises(lmtrain.DataError, match=r"too little in the training text.*Leave model\.embeddings out"):
        lmtrain.train(*LANGUAGE, *svd, "model.embed_size=3")
    with pytest.raises(lmtrain.SettingsError, match=r"is for language models.*--method svd"):
        lmtrain.train(*TAGGER, *svd)
