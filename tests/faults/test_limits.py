"""What can be written can be read: large vocabularies, long words, long lists; what is too large is refused before training."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lmtrain.training.run_directory as run_directory
from lmtrain.data.tokenizer import MAX_DOCUMENT, WordTokenizer, learn_tokenizer, load_tokenizer
from lmtrain.data.vocabulary import MAX_WORD, whole_words
from lmtrain.errors import CheckpointError, DataError
from lmtrain.files import strict_json
from lmtrain.files.strict_json import parse_json, to_json
from lmtrain.training.averaging import NonMonotonicAverage
from lmtrain.training.checkpoint import find_checkpoint

Call = Callable[..., Any]
WORD = ("TRAIN", "tokenizer=word")
COUNTS = ("data=text", "data.path=text.txt", "tokenizer=word", "model=ngram", "model.order=2", "trainer.num_threads=1")


def nats(call: Call, run: str) -> float:
    ended = call("evaluate", run, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)["total_nats"]


# ---- vocabularies


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \t\n\v\f\r"), min_size=1), unique=True))
def test_a_packed_vocabulary_is_the_one_that_was_packed(words: list[str]) -> None:
    tokens = ["<eos>", *(word for word in words if word not in ("<eos>", "<unk>")), "<unk>"]
    document, arrays = WordTokenizer(tokens).pack()
    assert load_tokenizer(parse_json(to_json(document)), arrays).to_json() == WordTokenizer(tokens).to_json()


@given(st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FFFF), max_size=60))
def test_a_document_of_the_largest_size_that_is_not_packed_can_be_written(text: str) -> None:
    """Whatever its characters are, and however JSON escapes them."""
    tokens = [*sorted({*text} - {"\n"}), "\n", "<unk>"]
    document, size = {"tokens": tokens}, len(tokens) + sum(map(len, tokens))
    assert len(to_json(document)) <= 6 * size + 100
    assert 6 * MAX_DOCUMENT + 200 < strict_json.MAX_BYTES


def changed(arrays: dict[str, Any], name: str, place: int, value: int) -> dict[str, Any]:
    copy = {key: array.copy() for key, array in arrays.items()}
    copy[name][place] = value
    return copy


def test_a_packed_vocabulary_that_was_damaged_is_refused() -> None:
    document, arrays = learn_tokenizer("word", ["é b c\n"]).pack()
    assert bytes(arrays["bytes"]) == b"<eos>bc\xc3\xa9<unk>"
    for damaged in (
        {}, {"bytes": arrays["bytes"]}, arrays | {"more": arrays["ends"]}, arrays | {"ends": arrays["ends"][:-1]},
        arrays | {"ends": arrays["ends"].astype("int32")}, arrays | {"bytes": arrays["bytes"].astype("int8")},
        arrays | {"ends": arrays["ends"][:1]}, arrays | {"ends": arrays["ends"][None]}, changed(arrays, "ends", 1, 8),
        changed(arrays, "ends", 1, -1), changed(arrays, "ends", 1, 1 << 60), changed(arrays, "ends", 2, 8),
        changed(arrays, "bytes", 7, 0xFF), changed(arrays, "bytes", 5, 0x20), changed(arrays, "bytes", 5, ord("c")),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"its arrays are|bytes and ends|ends end|bytes are not|tokens\[\d+\] is"):
            load_tokenizer(document, damaged)


def test_a_vocabulary_too_large_for_json_is_saved_loaded_resumed_mixed_and_exported(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, limit in enumerate((MAX_DOCUMENT, 10)):  # the same run twice, the second one packed
        monkeypatch.setattr("lmtrain.data.tokenizer.MAX_DOCUMENT", limit)
        assert call(*WORD, f"hydra.run.dir=neural{number}").code == 0
        assert call(*COUNTS, f"hydra.run.dir=counts{number}").code == 0
    files = {path.name for path in find_checkpoint("neural1").iterdir()}
    assert {"tokenizer.json", "tokenizer.safetensors"} <= files
    assert json.loads((find_checkpoint("neural1") / "tokenizer.json").read_text()) == {"format": 2, "name": "word"}
    assert "tokenizer.safetensors" not in {path.name for path in find_checkpoint("neural0").iterdir()}
    assert nats(call, "neural1") == nats(call, "neural0")
    assert nats(call, "counts1") == nats(call, "counts0")
    assert call("resume=neural1", "trainer.num_steps=8").code == 0
    assert call("sample", "neural1").code == 0
    assert call("mix", "counts1", "counts0", "--output", "mixture").code == 0
    assert nats(call, "mixture") == pytest.approx(nats(call, "counts0"))
    assert call("arpa", "counts1", "--output", "counts.arpa").code == 0
    assert call("arpa", "counts.arpa", "--output", "again", "--like", "neural1").code == 0
    assert nats(call, "again") == pytest.approx(nats(call, "counts0"))


def test_words_of_a_million_characters_are_trained_on_saved_and_exported(place: Path, call: Call) -> None:
    words = [letter * 1_000_000 for letter in "abcdé"]
    Path("text.txt").write_text("".join(f"data {word} end\n" for word in [*words, *words[:1]]))
    ended = call(*COUNTS, "data.valid_fraction=0.2", "data.test_fraction=0", "trainer.sample_tokens=0", "hydra.run.dir=long")
    assert ended.code == 0, ended.err
    assert "characters on average" in ended.out, "and said to teach nothing"
    assert call("evaluate", "long", "--split", "valid").code == 0
    assert call("arpa", "long", "--output", "long.arpa").code == 0
    ended = call("arpa", "long.arpa", "--output", "again", "--like", "long")
    assert ended.code == 0, ended.err
    assert call("evaluate", "again", "--split", "valid").code == 0


@given(st.lists(st.integers(1, 12), max_size=5), st.integers(1, 30))
def test_a_word_is_too_long_wherever_the_text_is_cut(sizes: list[int], block: int) -> None:
    text = " ".join("a" * size for size in sizes)
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmtrain.data.vocabulary.MAX_WORD", 8)
        if max(sizes, default=0) <= 8:
            assert "".join(whole_words(blocks)) == text
        else:
            with pytest.raises(DataError, match="more than 8 characters without whitespace: 'aaaaaaaaa"):
                list(whole_words(blocks))


@pytest.mark.parametrize(("most", "code"), [(10, 0), (9, 3)])
def test_one_type_more_than_can_be_saved_is_refused_before_training(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, most: int, code: int
) -> None:
    """text.txt has ten words."""
    monkeypatch.setattr("lmtrain.data.vocabulary.MAX_TYPES", most)
    monkeypatch.setattr("lmtrain.data.token_lists.MAX_TYPES", most)
    ended = call(*WORD, "hydra.run.dir=many")
    assert ended.code == code
    if code:
        assert f"more than {most} different words" in ended.err
        assert "Type tokenizer=char or tokenizer=byte" in ended.err
        assert not Path("many").exists()
    else:
        assert nats(call, "many") > 0


def test_one_word_more_than_can_be_saved_is_refused_in_an_arpa_file(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*COUNTS, "hydra.run.dir=counts").code == 0
    assert call("arpa", "counts", "--output", "counts.arpa").code == 0
    monkeypatch.setattr("lmtrain.models.arpa.MAX_TYPES", 9)
    ended = call("arpa", "counts.arpa", "--output", "again")
    assert (ended.code, "counts.arpa lists 13 words. A model has at most 9" in ended.err) == (3, True)
    monkeypatch.setattr("lmtrain.models.arpa.MAX_TYPES", 10)
    monkeypatch.setattr("lmtrain.data.token_lists.MAX_TYPES", 10)
    assert call("arpa", "counts.arpa", "--output", "again").code == 0
    assert call("evaluate", "again", "--text", "text.txt").code == 0


# ---- mixtures


def test_more_parts_than_a_mixture_has_are_refused_before_any_is_scored(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtrain.saved.MAX_COMPONENTS", 2)
    ended = call("mix", "run", "run", "run", "--output", "mixture")
    assert (ended.code, "3 models were given. A mixture has at most 2 parts." in ended.err) == (2, True)
    assert "scores" not in ended.err
    assert not Path("mixture").exists()
    assert call("mix", "run", "run", "--output", "mixture").code == 0


def test_a_mixture_of_mixtures_that_is_too_deep_is_refused_before_any_is_scored(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "MAX_DEPTH", 7)
    deepest = "run"
    for level in range(9):
        ended = call("mix", deepest, "run", "--output", f"mixture{level}")
        if ended.code:
            break
        deepest = f"mixture{level}"
        assert call("evaluate", deepest).code == 0, "what was saved is read"
    assert (ended.code, level > 0, "scores" in ended.err) == (2, True, False)
    assert "cannot be saved: it is nested deeper than 7 levels. Mix the runs themselves" in ended.err


# ---- what grows with a run


def test_the_record_of_a_run_loses_its_oldest_sessions_rather_than_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "MAX_BYTES", 20_000)
    monkeypatch.setattr(run_directory, "MAX_BYTES", 20_000)
    for number in range(40):
        with run_directory.open_run_directory(tmp_path, ["lmtrain", str(number), "x" * 2000]) as run:
            sessions = json.loads(run.record.read_text())["sessions"]
            assert sessions[-1]["command_line"][1] == str(number)
    assert 1 < len(sessions) < 10
    assert not list(tmp_path.glob("run-damaged*"))


def test_losses_of_any_number_of_evaluations_start_the_average_as_if_all_were_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [3 + math.sin(number / 50) / (number + 1) ** 0.1 for number in range(400)]
    started = []
    for most in (5, 10_000):
        monkeypatch.setattr("lmtrain.training.averaging.MAX_LOSSES", most)
        for patience in (1, 3, 40):
            averaging = NonMonotonicAverage([("weight", nn.Parameter(nn.Linear(1, 1).weight))], patience)
            started.append([])
            for loss in losses:
                averaging.after_evaluation(loss)
                started[-1].append(averaging.started)
                assert len(averaging.document()["losses"]) <= most + patience
    assert started[:3] == started[3:]
    assert not started[0][0]
    assert started[0][-1]


# ---- the real size


@pytest.mark.slow
def test_ten_million_types_are_trained_on_saved_and_loaded_in_eight_gigabytes(tmp_path: Path) -> None:
    with open(tmp_path / "text.txt", "w") as file:
        for start in [*range(0, 10_000_000, 20), *range(0, 1_000_000, 20)]:
            file.write(" ".join(f"{number:08d}" for number in range(start, start + 20)) + "\n")
    code = (
        "import resource, sys; from lmtrain.__main__ import main\n"
        "sys.argv = ['lmtrain']\n"
        "main(['model=ngram', 'model.order=1', 'data=text', 'data.path=text.txt', 'tokenizer=word',\n"
        "      'data.valid_fraction=0.01', 'data.test_fraction=0.01', 'data.cache_dir=cache',\n"
        "      'trainer.sample_tokens=0', 'hydra.run.dir=run'])\n"
        "main(['evaluate', 'run', '--split', 'valid'])\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "vocabulary: 10,000,002 (word)" in done.stdout + done.stderr
    assert int(done.stdout.split("peak")[1]) < 8 << 30


@pytest.mark.slow
def test_fifty_words_of_the_longest_kind_are_saved_and_loaded(place: Path, call: Call) -> None:
    text = "".join(f"data {number:04d}{'é' * (MAX_WORD - 4)} end\n" for number in range(50))
    Path("text.txt").write_text(text + text[: 2 * MAX_WORD])
    assert (
        call(*COUNTS, "data.valid_fraction=0.1", "data.test_fraction=0", "trainer.sample_tokens=0", "hydra.run.dir=long").code
        == 0
    )
    assert call("evaluate", "long", "--split", "valid").code == 0
