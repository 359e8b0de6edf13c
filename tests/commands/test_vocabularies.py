"""What a text is read by, chosen on the command line: its form, its separators, a list of words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.data.tokenizer import load_tokenizer
from lmtrain.training.checkpoint import find_checkpoint


def tokenizer_of(run: Path) -> Any:
    return load_tokenizer(json.loads((find_checkpoint(run, "last") / "tokenizer.json").read_text()))


def test_models_of_different_texts_share_a_list_of_words_and_are_mixed(place: Path, call: Callable[..., Any]) -> None:
    (place / "words.txt").write_text("the\ncat\nsat\non\n", encoding="utf-8")
    (place / "other.txt").write_text("on the other the\n" * 90, encoding="utf-8")
    words = ["tokenizer=word", "tokenizer.vocabulary=words.txt"]
    assert call("TRAIN", *words, "hydra.run.dir=first").code == 0
    assert call("TRAIN", "data.path=other.txt", *words, "hydra.run.dir=second").code == 0
    of_run = ["tokenizer=word", "tokenizer.vocabulary=first", "hydra.run.dir=third"]
    assert call("TRAIN", "data.path=other.txt", *of_run).code == 0
    assert call("resume=third", "trainer.num_steps=8").code == 0
    assert tokenizer_of(place / "third").tokens == ["<eos>", "<unk>", "the", "cat", "sat", "on"]
    assert call("mix", "first", "second", "third", "--output", "mixture").code == 0


def test_a_given_vocabulary_is_not_said_to_be_learnt(place: Path, call: Callable[..., Any]) -> None:
    (place / "words.txt").write_text("the\n", encoding="utf-8")
    (place / "text.txt").write_text("cafe\u0301 the\n" * 90, encoding="utf-8")
    given = ["tokenizer=word", "tokenizer.vocabulary=words.txt", "data.normalize=nfc", "tokenizer.separators=[U+00A0]"]
    assert call("TRAIN", *given, "hydra.run.dir=made").code == 0
    log = (place / "made" / "lmtrain.log").read_text()
    assert "vocabulary: 3 (word)\n" in log
    counting = ["data=text", "data.path=text.txt", "model=ngram", "model.order=2", *given, "hydra.run.dir=counts"]
    assert call(*counting).code == 0
    assert call("arpa", "counts", "--output", "counts.arpa").code == 0
    assert call("arpa", "counts.arpa", "--like", "made", "--output", "imported").code == 0
    assert call("mix", "made", "imported", "--output", "mixture").code == 0


def test_counts_of_characters_are_written_with_blanks_escaped(place: Path, call: Callable[..., Any]) -> None:
    for name in ("char", "byte"):
        counting = ["data=text", "data.path=text.txt", "model=ngram", "model.order=3", f"tokenizer={name}"]
        assert call(*counting, f"hydra.run.dir={name}").code == 0
        assert call("arpa", name, "--output", f"{name}.arpa").code == 0
        assert "\t<0x20> t\t" in (place / f"{name}.arpa").read_text(encoding="utf-8")
        assert call("arpa", f"{name}.arpa", "--output", f"{name}-again").code == 0


def test_a_list_that_is_none_ends_in_a_paragraph(place: Path, call: Callable[..., Any]) -> None:
    (place / "words.txt").write_text("the\nthe\n", encoding="utf-8")
    for given, code, words in (
        ("words.txt", 3, "line 2 is 'the' again, as line 1"),
        ("none.txt", 3, "There is no file"),
        ("run", 2, "tokenizer.vocabulary=run is a run of tokenizer=char"),
        ("outputs", 4, "holds no checkpoint"),
    ):
        ended = call("TRAIN", "tokenizer=word", f"tokenizer.vocabulary={given}", "hydra.run.dir=made")
        assert (ended.code, words in ended.err) == (code, True), ended.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["tokenizer.vocabulary=words.txt"], "are for tokenizer=word"),
        (["tokenizer=byte", "tokenizer.separators=[U+00A0]"], "are for tokenizer=word"),
        (["tokenizer=word", "tokenizer.separators=[ab]"], "a character is itself, or its number such as U+00A0"),
        (["tokenizer=word", "tokenizer.separators=3"], "allowed is a list"),
        (["tokenizer=word", "tokenizer.vocabulary=w", "tokenizer.vocab_size=9"], "says which words there are"),
        (["data.normalize=nfkd"], "allowed are none, nfc, nfd, nfkc"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_refused_first(
    settings: list[str], words: str, place: Path, call: Callable[..., Any]
) -> None:
    ended = call("TRAIN", *settings)
    assert ended.code == 2
    assert words in ended.err


def test_a_form_and_separators_are_kept_with_a_run(place: Path, call: Callable[..., Any]) -> None:
    (place / "text.txt").write_text("cafe\u0301\xa0the cat\n" * 60, encoding="utf-8")
    ways = ["data.normalize=nfc", "tokenizer.separators=[U+00A0]"]
    assert call("TRAIN", "tokenizer=word", *ways, "hydra.run.dir=made").code == 0
    assert set(tokenizer_of(place / "made").tokens) == {"café", "the", "cat", "<eos>", "<unk>"}
    (place / "lines.txt").write_text("café the\ncafe\u0301\xa0the\n", encoding="utf-8")
    rows = call("score", "made", "lines.txt", "--independent").out.splitlines()[1:3]
    assert [row.split("\t")[1:] for row in rows] == [rows[0].split("\t")[1:]] * 2
    assert call("sample", "made", "--prompt", "cafe\u0301", "--strict", "--max-tokens", "2").code == 0
    assert call("resume=made", "trainer.num_steps=8").code == 0
    refused = call("resume=made", "data.normalize=none")
    assert refused.code == 2
    assert "data.normalize is nfc in this run" in refused.err
