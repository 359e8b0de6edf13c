"""`lmtrain.load` and what a model can do from Python: the numbers of the commands, through their code."""

import doctest
import json
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmtrain
import lmtrain.trained
from lmtrain.errors import CheckpointError, DataError, SettingsError
from lmtrain.inference.dynamic import Adaptive, Cache, Dynamic
from lmtrain.inference.evaluate import Static
from lmtrain.vectors.files import FORMATS

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


def test_threads_share_a_model_and_get_what_each_gets_alone(lm: lmtrain.Model) -> None:
    texts = ["the cat sat on a mat\n" * count for count in range(1, 9)]

    def use(text: str) -> list[Any]:
        return [lm.score(text), lm.score(text, precision="bfloat16"), lm.perplexity([text]), lm.surprise(text),
                lm.sample(text, max_tokens=9, seed=3), lm.next(text)]  # fmt: skip

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(use, texts)) == [use(text) for text in texts]


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


def test_perplexity_of_a_saved_text_with_streams_and_adapting_is_that_of_the_command(lm: lmtrain.Model, call: Call) -> None:
    adaptive = Adaptive(dynamic=Dynamic(rate=0.2, decay=0.002), cache=Cache(window=30))
    for made, typed in (
        (lm.perplexity(), []),
        (lm.perplexity(split="valid", num_streams=2, method=Static(1.5)),
         ["--split", "valid", "--streams", "2", "--temperature", "1.5"]),
        (lm.perplexity(split="train"), ["--split", "train"]),
        (lm.perplexity("text.txt", method=adaptive), ["--text", "text.txt", "--dynamic", "sgd", "--dynamic-rate", "0.2",
                                                      "--cache", "30"]),
    ):  # fmt: skip
        shown = json.loads(call("evaluate", "run", *typed, "--json").out)
        assert made.to_json() == {key: shown[key] for key in made.to_json()}
    lm._trained.texts.clear()
    with pytest.raises(DataError, match=r"No test split.*Type text=FILE"):
        lm.perplexity()


def test_surprise_and_temperature_are_those_of_the_command(lm: lmtrain.Model, call: Call) -> None:
    typed = ["--unit", "word", "--json", "--temperature", "2"]
    for extra, own in (([], False), (["--independent"], True)):
        shown = [json.loads(row) for row in call("score", "run", "text.txt", *typed, *extra).out.splitlines()[:-1]]
        units = lm.surprise(Path("text.txt").read_text(encoding="utf-8"), unit="word", independent=own, temperature=2)
        assert [(row["text"], row["rank"]) for row in shown] == [(unit.text, unit.rank) for unit in units]
        assert [row["surprisal"] for row in shown] == pytest.approx([unit.surprisal for unit in units], rel=1e-5)
    rows = call("score", "run", "text.txt", "--independent", "--temperature", "2", "--json").out.splitlines()[:-1]
    lines = Path("text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    found = [line.log_prob for line in lm.score(lines, temperature=2)]
    assert [json.loads(row)["log_prob"] for row in rows] == pytest.approx(found, rel=1e-5)
    with pytest.raises(SettingsError, match="temperature is 0"):
        lm.score("a", temperature=0)


def test_lists_are_rescored_as_by_the_two_commands(counted: Path, call: Call) -> None:
    lists = {"a": [("mat a on", -1.0), ("the cat sat", -2.0)], "b": [("the mat", 0.0), ("", 0.5)]}
    references = {"a": "the cat sat", "b": "the mat"}
    lm = lmtrain.load("counted")
    rows = [f"{key}\t{score}\t{text}\n" for key, own in lists.items() for text, score in own]
    Path("list").write_text("".join(rows), encoding="utf-8")
    Path("references").write_text("".join(f"{key}\t{text}\n" for key, text in references.items()), encoding="utf-8")
    Path("scored").write_text(call("score", "counted", "list", "--nbest", "--unknown-cost", "2").out, encoding="utf-8")
    for typed, own in ((["--weights", "0.5", "-0.25"], {"weights": (0.5, -0.25)}), ([], {"references": references})):
        ended = call("rescore", "scored", *typed, *([] if typed else ["--references", "references"]))
        made = lm.rescore(lists, unknown_cost=2.0, **own)  # type: ignore[arg-type]
        assert ended.out == "".join(f"{key}\t{best.text}\n" for key, best in made.best.items())
        assert f"lm_weight {made.weights[0]:.4g}"[:14] in ended.err
    assert f"word errors {made.errors} of {made.num_words} words" in ended.err
    assert f"makes {made.errors_of_first}, the best that the lists hold {made.errors_of_best}" in ended.err
    for given, words in (({}, "no lists"), ({"a": []}, "'a' is empty"), ({"c": [("a", 0.0)]}, "no reference for 'c'")):
        with pytest.raises(DataError, match=words):
            lm.rescore(given, references=references)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="Neither weights nor references"):
        lm.rescore(lists)


def test_a_hypothesis_is_a_line_with_its_end_for_every_tokenizer(lm: lmtrain.Model, call: Call) -> None:
    """`run` is a model of characters, and "the ca" is a beginning that goes on rather than ends."""
    lists = {"u": [("the cat", -1.0), ("the ca", -1.0), ("", -1.0), ("a mat\n", -1.0)]}
    Path("list").write_text("".join(f"u\t-1\t{text.strip()}\n" for text, _ in lists["u"]), encoding="utf-8")
    rows = [json.loads(row) for row in call("score", "run", "list", "--nbest", "--json").out.splitlines()[:-1]]
    for row, hypothesis in zip(rows, lists["u"], strict=True):
        best = lm.rescore({"u": [hypothesis]}, weights=(1, 0)).best["u"]
        assert (best.text, best.lm) == (hypothesis[0], pytest.approx(row["log_prob"], rel=1e-5))


def test_a_mixture_from_python_is_that_of_the_command(counted: Path, call: Call) -> None:
    start = ("data=text", "data.path=text.txt", "model=ngram", "model.order=1", "tokenizer=word", "hydra.run.dir=other")
    assert call(*start).code == 0
    assert call("mix", "counted", "other", "--output", "typed").code == 0
    made = lmtrain.mix([lmtrain.load("counted"), "other"], "made")
    typed = lmtrain.load("typed")
    assert made.settings["model"]["weights"] == typed.settings["model"]["weights"]
    assert made.perplexity() == typed.perplexity()
    for models, directory, words in (
        ([made], "new", "One model was given"), ([], "new", "No models were given"),
        ([made, "run"], "new", "another vocabulary"), ([made, typed], "made", "directory=?.*made is there already"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=words):
            lmtrain.mix(models, directory)  # type: ignore[arg-type]
    assert not Path("new").exists()


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


def test_next_words_are_those_of_the_command(lm: lmtrain.Model, call: Call) -> None:
    rows = [json.loads(row) for row in call("sample", "run", "--prompt", "the ca", "--next", "3", "--json").out.splitlines()]
    assert [(row["text"], row["probability"]) for row in rows] == lm.next("the ca", top=3)
    ended = call("sample", "run", "--next", "2")
    assert (ended.code, ended.out.splitlines()[0], len(ended.out.splitlines())) == (0, "probability\ttoken", 3)
    for typed in (["--temperature", "0"], ["--beam", "2"], ["--num-samples", "2"], ["--stop", "a"]):
        ended = call("sample", "run", "--next", "2", *typed)
        assert (ended.code, f"{typed[0]} was given together with --next" in ended.err) == (2, True)


def test_what_is_copied_from_the_text_of_a_run_or_a_file_is_said(lm: lmtrain.Model) -> None:
    text = Path("text.txt").read_text(encoding="utf-8")[:30]
    assert lm.novelty(text, "run")[0].num_copied == lm.novelty(text, "text.txt")[0].num_copied
    Path("text.txt").write_text("another text\n" * 30, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"has changed.*training=FILE"):
        lm.novelty(text, "run")


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
    with pytest.raises(lmtrain.CheckpointError, match="has no word vectors"):
        lmtrain.load("counted").vectors  # noqa: B018


def test_an_empty_path_is_said_and_a_file_of_vectors_has_its_own_door(lm: lmtrain.Model, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"text is empty\. It must be the path"):
        lm.perplexity("")
    vectors = lmtrain.Vectors(("the", "cat"), np.ones((2, 3), np.float32))
    for format in FORMATS:
        vectors.save(file := tmp_path / "file", format=format)
        with pytest.raises(lmtrain.CheckpointError, match=r"is a file of word vectors\..*lmtrain\.load_vectors\("):
            lmtrain.load(file)
    (tmp_path / "text").write_text("no vectors 1\n", encoding="utf-8")
    with pytest.raises(lmtrain.CheckpointError, match=r"text is a file\."):
        lmtrain.load(tmp_path / "text")


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
    with pytest.raises(SettingsError, match="seed is 18446744073709551616"):
        lm.sample(seed=2**64)
    with pytest.raises(ValueError, match="num_streams=0"):
        lm.perplexity(num_streams=0)
    with pytest.raises(ValueError, match="device='tpu'"):
        lmtrain.load("run", device="tpu")
    with pytest.raises(TypeError, match=r"models='run'; expected several"):
        lmtrain.mix("run", "mixture")


@pytest.mark.parametrize("cut", [1, 2, 3, 100])
def test_lines_may_end_as_they_do_elsewhere(cut: int, lm: lmtrain.Model) -> None:
    text, blocks = "to be\nor\n", "to be\r\nor\r\n"
    assert lm.perplexity([blocks[i : i + cut] for i in range(0, len(blocks), cut)]) == lm.perplexity([text])
    assert lm.score(blocks) == lm.score(text)
    assert lm.sample("to\r\n", max_tokens=5) == lm.sample("to\n", max_tokens=5)


@pytest.mark.parametrize("end", ["\r\r\n", "\r\n", "\r", "\n"])
def test_a_file_is_scored_in_the_tokens_in_which_it_is_evaluated(end: str, place: Path, call: Call) -> None:
    text = end.join(("to be", "or", ""))
    Path("text").write_bytes(text.encode())
    assert call("TRAIN", "tokenizer=byte", "hydra.run.dir=byte").code == 0
    num_tokens = len(text.replace("\r\n", "\n"))
    commands = (["evaluate"], ["score"], ["score", "--cache", "9"], ["score", "--dynamic", "sgd"], ["score", "--independent"],
                ["score", "--unit", "token"])  # fmt: skip
    for command, *options in commands:
        bill = json.loads(call(command, "byte", "text", *options, "--json").out.splitlines()[-1])
        assert bill.get("total", bill)["num_tokens"] == num_tokens, (command, *options)
    Path("list").write_bytes(f"u\t0\tto be{end}".encode())
    row = call("score", "byte", "list", "--nbest", "--json").out.splitlines()[-2]
    assert json.loads(row)["num_tokens"] == len(f"to be{end}".replace("\r\n", "\n").removesuffix("\n")) + 1
    lm = lmtrain.load("byte")
    assert lm.perplexity("text") == lm.perplexity([text])
    assert lm.compare(lm, "text").total.count == lm.compare(lm, [text]).total.count == num_tokens
    assert [len(lm.log_probs(text)), lm.score(text)[0].num_tokens] == [num_tokens] * 2
    assert sum(unit.num_tokens for unit in lm.surprise(text, unit="token")) == num_tokens


def test_only_a_line_feed_ends_a_line_on_which_a_share_is_fitted(lm: lmtrain.Model, call: Call) -> None:
    assert call("TRAIN", "tokenizer=byte", "hydra.run.dir=byte").code == 0
    text, other = "the cat\u2028sat\non a\rmat\r\n", lmtrain.load("byte")
    assert lm.fit_share(other, text) == lm.fit_share(other, ["the cat\u2028sat\n", "on a\rmat\n"])


def test_distributions_come_in_the_precision_that_was_asked_for(lm: lmtrain.Model) -> None:
    exact, rounded = lm.log_probs("to be"), lm.log_probs("to be", precision="bfloat16")
    assert 0 < np.abs(exact - rounded).max() < 0.1


def test_what_would_change_nothing_is_refused(lm: lmtrain.Model) -> None:
    for share in (0.3, "fit"):
        with pytest.raises(ValueError, match=r"other_weight=.* was given without other"):
            lm.score("the", other_weight=share)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other_weight='most'; expected a number or 'fit'"):
        lm.score("the", other=lm, other_weight="most")  # type: ignore[arg-type]
    for ask in (lm.perplexity, lambda text, split: lm.compare(lm, text, split=split)):
        with pytest.raises(ValueError, match="split='valid' was given together with text"):
            ask("text.txt", split="valid")  # type: ignore[operator]


def test_numbers_out_of_range_are_refused_by_their_names(lm: lmtrain.Model) -> None:
    with pytest.raises(ValueError, match="num_streams=0; expected at least 1"):
        lmtrain.mix([lm, lm], "mixed", num_streams=0)
    with pytest.raises(ValueError, match="seed=-1; expected a whole number"):
        lm.compare(lm, seed=-1)


def test_messages_speak_of_python_alone(lm: lmtrain.Model, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"Give a text that has one\.$"):
        lm.perplexity([])
    with pytest.raises(DataError, match=r"Correct the ids\.$"):
        lm.rescore({"a": [("the", 0.0)]}, references={"b": "the"})
    lm.log_probs("ß")
    assert caplog.messages == ["The text contains 'ß', unknown to this model and read as <unk>."]
    with pytest.raises(SettingsError, match=r"rate is -1\. .* Type for example rate=0\.1\.$"):
        Dynamic(rate=-1)
    for open_ in (lmtrain.load, lmtrain.load_vectors, lm.perplexity, lm.compare):
        with pytest.raises(SettingsError, match="is empty"):
            open_("") if open_ != lm.compare else lm.compare(lm, "")
