"""`sample --beam` and what goes with it, as typed and from Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain


def test_the_best_continuations_are_written_with_their_scores(place: Path, call: Callable[..., Any]) -> None:
    end = call("sample", "run", "--prompt", "the", "--beam", "4", "--max-tokens", "5")
    assert end.code == 0, end.err
    header, *rows = end.out.splitlines()
    assert header == "score\tlog_prob\ttokens\ttext"
    scores = [float(row.split("\t")[0]) for row in rows]
    assert len(rows) == 4
    assert scores == sorted(scores, reverse=True)
    best = lmtrain.load("run").beam("the", beam=4, max_tokens=5)
    assert [row.split("\t")[3] for row in rows] == [each.text.replace("\n", "\\n") for each in best]
    end = call("sample", "run", "--prompt", "the", "--beam", "4", "--max-tokens", "5", "--num-samples", "2", "--json")
    (first, second) = map(json.loads, end.out.splitlines())
    assert first["score"] == pytest.approx(best[0].score)
    assert second["text"] == best[1].text


def test_samples_obey_a_list_of_words_and_say_what_is_copied(place: Path, call: Callable[..., Any]) -> None:
    (place / "words.txt").write_text("the\ncat\nsat\n", encoding="utf-8")
    options = ["--words", "words.txt", "--max-tokens", "40", "--num-samples", "2", "--no-repeat-ngram", "6"]
    end = call("sample", "run", *options, "--novelty", "text.txt")
    assert end.code == 0, end.err
    assert "0: longest copy " in end.err
    assert "1: longest copy " in end.err
    of_run = call("sample", "run", *options, "--novelty", "run", "--json")
    assert of_run.code == 0, of_run.err
    first, _ = json.loads(of_run.out.splitlines()[-1])["novelty"]
    model = lmtrain.load("run")
    texts = model.sample("", max_tokens=40, words=("the", "cat", "sat"), no_repeat_ngram=6)
    assert model.novelty(texts, "text.txt")[0].num_copied >= first["num_copied"] > 0
    assert {word for text in texts for word in text.split()[:-1]} <= {"the", "cat", "sat"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--beam", "0"], 2, "--beam is 0. Allowed are whole numbers from 1 to 4096."),
        (["--beam", "5000"], 2, "--beam is 5000. Allowed are whole numbers from 1 to 4096."),
        (["--next", "2"], 2, "--max-tokens was given together with --next"),
        (["--beam", "3", "--temperature", "0.5"], 2, "--temperature was given together with --beam"),
        (["--beam", "3", "--precision", "int8"], 2, "--precision int8 was given together with --beam"),
        (["--beam", "3", "--seed", "7"], 2, "--seed was given together with --beam"),
        (["--length-power", "1"], 2, "--length-power was given without --beam"),
        (["--beam", "3", "--length-power", "-1"], 2, "--length-power is -1"),
        (["--beam", "3", "--num-samples", "0"], 2, "--num-samples is 0"),
        (["--no-repeat-ngram", "0"], 2, "--no-repeat-ngram is 0"),
        (["--words", "nowhere"], 3, "nowhere"),
        (["--words", "empty.txt"], 3, "empty.txt has no words"),
        (["--novelty", "nowhere"], 3, "nowhere"),
        (["--words", "empty.txt", "--beam", "2"], 3, "empty.txt has no words"),
    ],
)
def test_what_does_not_fit_is_said_in_one_paragraph(
    options: list[str], code: int, message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., Any],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    end = call("sample", str(trained / "run"), "--max-tokens", "3", *options)
    assert end.code == code
    assert message in end.err
    assert "Traceback" not in end.err


def test_another_vocabulary_is_compared_as_a_text(place: Path, call: Callable[..., Any]) -> None:
    assert call("TRAIN", "tokenizer=word", "hydra.run.dir=words").code == 0
    end = call("sample", "run", "--max-tokens", "3", "--novelty", "words")
    assert end.code == 2
    assert "--novelty words has another vocabulary" in end.err


@pytest.mark.parametrize("option", ["--allow-unk", "--precision int8", "--temperature 0"])
def test_what_the_next_tokens_do_not_depend_on_is_refused(option: str, place: Path, call: Callable[..., Any]) -> None:
    end = call("sample", "run", "--next", "2", *option.split())
    assert (end.code, f"{option.removesuffix(' 0')} was given together with --next" in end.err) == (2, True)


def test_a_model_that_does_not_compute_with_8_bits_is_refused(place: Path, call: Callable[..., Any]) -> None:
    assert call("data=text", "data.path=text.txt", "model=ngram", "hydra.run.dir=counted").code == 0
    end = call("sample", "counted", "--precision", "int8")
    assert end.code == 2
    assert "--precision int8 was given for a model" in end.err
    assert "Take --precision bfloat16" in end.err


def test_a_beam_is_as_wide_from_python_as_typed(place: Path) -> None:
    with pytest.raises(lmtrain.SettingsError, match=r"beam is 1000000\. Allowed are whole numbers from 1 to 4096"):
        lmtrain.load("run").beam(beam=10**6)
