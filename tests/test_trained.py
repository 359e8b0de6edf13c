"""`lmtrain.load` and what a model can do from Python: the numbers of the commands, through their code."""

import doctest
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmtrain
import lmtrain.trained
from lmtrain.errors import CheckpointError, DataError, SettingsError

Call = Callable[..., Any]


@pytest.fixture
def lm(place: Path) -> lmtrain.Model:
    return lmtrain.load("run")


@pytest.fixture
def counted(place: Path, call: Call) -> Path:
    """An n-gram model of words beside `run`."""
    assert call("data=text", "data.path=text.txt", "model=ngram", "tokenizer=word", "hydra.run.dir=counted").code == 0
    return place / "counted"


def test_importing_lmtrain_imports_no_torch_and_names_what_there_is() -> None:
    program = "import lmtrain, sys; assert 'torch' not in sys.modules; print(*dir(lmtrain)); print(lmtrain.load.__module__)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"load", "train", "Model", "nn", "UserError"} <= set(shown[0].split())
    assert shown[1] == "lmtrain.trained"
    with pytest.raises(AttributeError, match="has no attribute 'trane'"):
        lmtrain.trane  # noqa: B018


@pytest.mark.parametrize("name", lmtrain.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lmtrain, name) is not None


def test_the_examples_in_the_docstrings_are_true(counted: Path) -> None:
    failed, tried = doctest.testmod(lmtrain.trained, extraglobs={"lm": lmtrain.load("counted")})
    assert tried >= 6
    assert failed == 0


def test_score_gives_the_numbers_of_the_command(counted: Path, call: Call) -> None:
    lines = ["the cat sat on a mat", "mat a", "", "the dog sat"]
    Path("lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = call("score", "counted", "lines.txt", "--independent", "--per-token", "--json").out.splitlines()[:-1]
    results = lmtrain.load("counted").score(lines, per_token=True)
    for row, result in zip(map(json.loads, rows), results, strict=True):
        assert (row["log_prob"], row["num_tokens"], row["num_unk"]) == (result.log_prob, result.num_tokens, result.num_unknown)
        assert result.tokens is not None
        assert [token["text"] for token in row["tokens"]] == [token.text for token in result.tokens]
    assert [result.num_unknown for result in results] == [0, 0, 0, 1]


def test_texts_are_independent_and_a_string_is_one_text(lm: lmtrain.Model) -> None:
    first, second = lm.score(["a cat\n", "the mat\n"])
    assert lm.score("the mat\n") == [second]
    assert lm.score(iter(["the mat\n", "a cat\n"])) == [second, first]
    assert lm.score([]) == []
    (empty,) = lm.score("")
    assert (empty.total_nats, empty.num_tokens, empty.nats_per_token) == (0.0, 0, 0.0)


def test_perplexity_is_that_of_the_command_for_a_path_and_for_blocks(lm: lmtrain.Model, call: Call) -> None:
    shown = json.loads(call("evaluate", "run", "--text", "text.txt", "--json").out)
    with open("text.txt", encoding="utf-8") as opened:
        for text in ("text.txt", Path("text.txt"), opened):
            assert lm.perplexity(text).to_json() == {key: shown[key] for key in lm.perplexity("text.txt").to_json()}
    assert lm.perplexity(["the ca", "t\n"]) == lm.perplexity(["the cat\n"])
    with pytest.raises(DataError, match=r"nosuch\.txt"):
        lm.perplexity("nosuch.txt")


def test_samples_are_those_of_the_command_and_repeat(lm: lmtrain.Model, call: Call) -> None:
    shown = call("sample", "run", "--prompt", "the ", "--max-tokens", "9", "--num-samples", "2", "--seed", "5").out
    texts = lm.sample("the ", max_tokens=9, num_samples=2, seed=5)
    assert shown == "\n---\n".join("the " + text for text in texts) + "\n"
    assert texts == lm.sample("the ", max_tokens=9, num_samples=2, seed=5)
    assert lm.sample("the ", max_tokens=9, seed=6) == texts[1:], "whether it is drawn alone or among others"
    assert len(lm.sample("the ", max_tokens=9, precision="int8")) == 1
    with pytest.raises(ValueError, match="expected 'float32', 'bfloat16' or 'int8'"):
        lm.sample(precision="int4")  # type: ignore[arg-type]
    assert lm.sample("the ", stop=" ", temperature=0.0)[0].count(" ") == 0


def test_next_words_and_whole_distributions_agree(lm: lmtrain.Model) -> None:
    text = "the cat sat on"
    log_probs = lm.log_probs(text)
    assert log_probs.shape == (len(text), lm.tokenizer.vocab_size)
    assert np.exp(log_probs.astype(np.float64)).sum(1) == pytest.approx(np.ones(len(text)), abs=1e-5)
    ids = lm.tokenizer.encode(text)
    (scored,) = lm.score(text)
    assert -log_probs[range(len(ids)), ids].sum(dtype=np.float64) == pytest.approx(scored.total_nats, rel=1e-5)
    token, probability = lm.next(text[:-1], top=1)[0]
    assert token == lm.tokenizer.token_text(int(log_probs[-1].argmax()))
    assert probability == pytest.approx(math.exp(log_probs[-1].max()), rel=1e-4)
    assert sum(p for _, p in lm.next(top=10_000)) == pytest.approx(1)
    assert lm.log_probs("").shape == (0, lm.tokenizer.vocab_size)
    with pytest.raises(ValueError, match="top=0"):
        lm.next(top=0)


def test_long_texts_are_read_in_pieces_that_join(lm: lmtrain.Model) -> None:
    text = Path("text.txt").read_text(encoding="utf-8")[:700]
    ids, log_probs = lm.tokenizer.encode(text), lm.log_probs(text)
    assert -log_probs[range(len(ids)), ids].sum(dtype=np.float64) == pytest.approx(lm.score(text)[0].total_nats, rel=1e-5)


def test_words_have_vectors(lm: lmtrain.Model, counted: Path) -> None:
    vectors = lm.vectors
    assert vectors.matrix.shape == (lm.tokenizer.vocab_size, 6)
    assert len(vectors) == lm.tokenizer.vocab_size
    assert "c" in vectors
    assert "nosuch" not in vectors
    assert vectors["c"].tolist() == lm.network.embedding.weight[int(lm.tokenizer.encode("c")[0])].tolist()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="has no word vectors"):
        lmtrain.load("counted").vectors  # noqa: B018


def test_a_model_says_in_one_line_what_it_is(lm: lmtrain.Model, counted: Path, call: Call) -> None:
    assert call("arpa", "counted", "--output", "counted.arpa").code == 0
    assert call("arpa", "counted.arpa", "--output", "imported", "--like", "counted").code == 0
    assert call("mix", "counted", "imported", "--output", "mixed").code == 0
    begins = {
        "run": "<lmtrain.Model lstm 1 x 8, vocabulary 1",
        "counted": "<lmtrain.Model 5-gram, kneser_ney, vocabulary 12 (word), best",
        "imported": "<lmtrain.Model 5-gram, kneser_ney, vocabulary 12 (word), imp",
        "mixed": "<lmtrain.Model mixture of 2, vocabulary 12",
    }
    for name, begin in begins.items():
        loaded = lmtrain.load(name)
        assert repr(loaded).startswith(begin)
        assert "\n" not in repr(loaded)
        assert loaded.score("the cat")[0].total_nats > 0
    assert "best validation perplexity" in repr(lm)
    assert lm.settings["trainer"]["batch_size"] == 4
    assert lmtrain.load("mixed").settings["model"]["components"][0]["order"] == 5


def test_what_is_no_model_is_refused_in_words(place: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        lmtrain.load("nosuch")
    with pytest.raises(ValueError, match="checkpoint='first'"):
        lmtrain.load("run", checkpoint="first")  # type: ignore[arg-type]
    assert lmtrain.load("run", checkpoint="last").step == 6


def test_a_value_out_of_range_names_pythons_argument(lm: lmtrain.Model) -> None:
    with pytest.raises(SettingsError, match=r"top_p"):
        lm.sample(top_p=2.0)
