"""Records: what is given to a model as .jsonl is read from the field that the model was trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain
from lmtrain.errors import DataError

LINES = ["the cat sat", "the dog sat", "a cat ran", "the cat ran", "a dog sat"] * 8
OVERRIDES = ["model=ngram", "model.order=2", "data=text", "tokenizer=word"]


def write(name: str, field: str, lines: list[str]) -> None:
    Path(name).write_text("".join(json.dumps({"id": "x", field: line}) + "\n" for line in lines))


@pytest.fixture
def records(place: Path, call: Callable[..., Any]) -> None:
    """A run of which the text is in the field `body`, and other texts."""
    write("train.jsonl", "body", LINES)
    assert call(*OVERRIDES, "data.path=train.jsonl", "data.field=body", "hydra.run.dir=counted").code == 0
    write("new.jsonl", "body", LINES[:3])
    Path("new.txt").write_text("".join(line + "\n" for line in LINES[:3]))
    write("other.jsonl", "text", LINES[:3])


@pytest.mark.usefixtures("records")
def test_a_text_in_records_is_read_from_the_field_of_the_training(call: Callable[..., Any]) -> None:
    for command in (["evaluate", "counted", "--text"], ["score", "counted"], ["compare", "counted", "counted"]):
        said = [call(*command, name).out.replace(name, "FILE") for name in ("new.txt", "new.jsonl")]
        assert said[0] == said[1] != ""
        refused = call(*command, "other.jsonl")
        assert refused.code == 3
        assert "other.jsonl, line 1, has no 'body'; it has id, text." in refused.err
        assert """jq -c '{"body": .NAME}' other.jsonl > renamed.jsonl""" in refused.err


@pytest.mark.usefixtures("records")
def test_python_reads_the_same_field() -> None:
    model = lmtrain.load("counted")
    assert model.perplexity(Path("new.jsonl")) == model.perplexity(Path("new.txt"))
    assert model.compare(model, Path("new.jsonl")).total.difference == 0
    assert model.novelty("the cat sat", Path("new.jsonl"))[0].num_copied == 3
    with pytest.raises(DataError, match="has no 'body'"):
        model.perplexity(Path("other.jsonl"))


@pytest.mark.usefixtures("records")
def test_a_field_is_said_to_be_idle_where_no_records_are_read(call: Callable[..., Any]) -> None:
    Path("plain.txt").write_text("".join(line + "\n" for line in LINES))
    for path, is_idle in (("plain.txt", True), ("train.jsonl", False)):
        ended = call(*OVERRIDES, f"hydra.run.dir={path}.run", f"data.path={path}", "data.field=body")
        assert ended.code == 0
        said = "data.field has no effect here: it needs a text in .jsonl files." in ended.out + ended.err
        assert said == is_idle


def test_what_is_odd_about_a_text_is_said_when_it_is_first_trained_on_and_never_again(
    place: Path, call: Callable[..., Any]
) -> None:
    text = Path("text.txt").read_text(encoding="utf-8")
    Path("text.txt").write_text(f"a\0b <eos>\n{text}", encoding="utf-8")
    odd = ("Is it text?", "holds the literal <eos>")

    def said(*command: str) -> list[int]:
        ended = call(*command)
        assert ended.code == 0, ended.err
        return [(ended.out + ended.err).count(words) for words in odd]

    assert said("TRAIN", "tokenizer=word", "hydra.run.dir=odd") == [1, 1]
    assert said("resume=odd", "trainer.num_steps=8") == [0, 0]
    for command in (["compare", "odd", "odd"], ["export", "odd", "--output", "out"], ["evaluate", "odd", "--split", "train"],
                    ["mix", "odd", "odd", "--output", "mixed"], ["report", "odd", "--output", "page.html"]):  # fmt: skip
        assert said(*command) == [0, 0], command
    assert said("evaluate", "odd", "text.txt") == [1, 1]  # a file that is given now
    assert said("score", "odd", "text.txt") == [1, 0]
    assert said("inspect", "data=text", "data.path=text.txt", "tokenizer=word") == [1, 1]
    vectors = ["task=vectors", "model=skipgram", "tokenizer.min_count=1", "hydra.run.dir=vectors"]
    assert said("data=text", "data.path=text.txt", "trainer.num_steps=2", "trainer.num_epochs=null", *vectors) == [1, 1]
    assert said("resume=vectors", "trainer.num_steps=3") == [0, 0]
