"""Taggers and classifiers that start from others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lmtrain

SMALL = ["trainer.num_steps=8", "trainer.max_seconds=null", "trainer.num_threads=1", "trainer.batch_size=4"]


def write_tags(path: Path, names: dict[str, str]) -> None:
    path.mkdir()
    for split in ("train", "valid", "test"):
        rows = [f"{word}\t{tag}\nsaw\tO\nhim\tO\n" for word, tag in names.items()]
        (path / f"{split}.txt").write_text("\n".join(rows * 4), encoding="utf-8")


def write_texts(path: Path, texts: dict[str, str]) -> None:
    path.mkdir()
    for split in ("train", "valid", "test"):
        (path / f"{split}.txt").write_text("".join(f"{label}\t{text}\n" for text, label in texts.items()) * 4, encoding="utf-8")


def test_a_tagger_goes_on_with_other_sentences(place: Path, call: Callable[..., Any]) -> None:
    write_tags(place / "one", {"Ann": "B-PER", "Rome": "B-LOC"})
    write_tags(place / "two", {"Eve": "B-PER", "Oslo": "B-LOC"})
    write_tags(place / "three", {"Eve": "B-PER", "IBM": "B-ORG"})
    assert call("task=tag", "data.path=one", *SMALL, "hydra.run.dir=first").code == 0
    end = call("task=tag", "data.path=two", *SMALL, "start_from=first", "trainer.num_steps=0", "hydra.run.dir=second")
    assert end.code == 0, end.err
    first, second = lmtrain.load("first"), lmtrain.load("second")
    one = [model.model.scores([["Ann", "saw", "Rome"]]) for model in (first, second)]
    np.testing.assert_array_equal(*one)
    assert call("resume=second", "trainer.num_steps=4").code == 0
    end = call("task=tag", "data.path=three", *SMALL, "start_from=first", "hydra.run.dir=third")
    assert end.code == 3
    assert "have a tag that the model to start from does not know: B-ORG" in end.err
    end = call("task=tag", "data.path=two", *SMALL, "start_from=first", "start_from_new_tokens=true", "hydra.run.dir=third")
    assert end.code == 2
    assert "start_from_new_tokens=true is for language models" in end.err
    end = call("task=tag", "data.path=two", *SMALL, "start_from=run", "hydra.run.dir=third")
    assert end.code == 2
    assert "model=lstm is no model for data=columns" in end.err


def test_a_classifier_goes_on_with_other_texts(place: Path, call: Callable[..., Any]) -> None:
    write_texts(place / "one", {"a good film": "good", "a bad film": "bad"})
    write_texts(place / "two", {"such good food": "good", "such bad food": "bad"})
    write_texts(place / "three", {"such good food": "good", "such food": "fair"})
    for model in ("averaging", "logistic"):
        assert call("task=classify", f"model={model}", "data.path=one", *SMALL, f"hydra.run.dir={model}").code == 0
        end = call("task=classify", "data.path=two", *SMALL, f"start_from={model}", "trainer.num_steps=0",
                   f"hydra.run.dir={model}-2")  # fmt: skip
        assert end.code == 0, end.err
        first, second = lmtrain.load(model), lmtrain.load(f"{model}-2")
        rows = [each.model.probabilities(["a good film", "food"]) for each in (first, second)]
        np.testing.assert_array_equal(*rows)
        assert call(f"resume={model}-2", "trainer.num_steps=4").code == 0
    end = call("task=classify", "data.path=three", *SMALL, "start_from=averaging", "hydra.run.dir=third")
    assert end.code == 3
    assert "have a label that the model to start from does not know: fair" in end.err


def test_word_vectors_are_no_start(place: Path, call: Callable[..., Any]) -> None:
    end = call("task=vectors", "model=skipgram", "data.path=text.txt", *SMALL, "hydra.run.dir=vectors")
    assert end.code == 0, end.err
    end = call("task=vectors", "model=skipgram", "data.path=text.txt", *SMALL, "start_from=vectors", "hydra.run.dir=again")
    assert end.code == 2
    assert "Word vectors are learnt from one text" in end.err
