"""Backward models: what each command does with one, and a forward and a backward model as one."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain
from lmtrain.inference.pair import fit_share, mixed

TINY = ["data=text", "data.path=text.txt", "trainer.num_threads=1", "trainer.sample_tokens=5"]


@pytest.fixture(scope="module")
def both(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`forward` and `backward`, n-gram models of words; `network`, a backward LSTM of characters."""
    here = tmp_path_factory.mktemp("both") / "here"
    shutil.copytree(trained, here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name in ("forward", "backward"):
            reverse = f"data.reverse={str(name == 'backward').lower()}"
            lmtrain.train(*TINY, "tokenizer=word", "model=ngram", "model.order=3", reverse, f"hydra.run.dir={name}")
        lmtrain.train(*TINY, "data.reverse=true", "model.hidden_size=8", "model.embed_size=6", "trainer.num_steps=4",
                      "trainer.batch_size=4", "trainer.max_seconds=null", "hydra.run.dir=network")  # fmt: skip
    return here


@pytest.fixture
def here(both: Path, place: Path) -> Path:
    """A copy of it as the working directory."""
    shutil.copytree(both, place, dirs_exist_ok=True)
    return place


def test_a_backward_model_is_that_of_the_text_turned_round(here: Path, call: Callable[..., Any]) -> None:
    turned = [" ".join(line.split()[::-1]) for line in (here / "text.txt").read_text(encoding="utf-8").splitlines()]
    (here / "turned.txt").write_text("\n".join(turned) + "\n", encoding="utf-8")
    assert call(*TINY, "data.path=turned.txt", "tokenizer=word", "model=ngram", "model.order=3", "hydra.run.dir=t").code == 0
    one, other = lmtrain.load("backward"), lmtrain.load("t")
    assert one.score("the cat sat")[0].log_prob == pytest.approx(other.score("sat cat the")[0].log_prob, rel=1e-12)
    assert one.perplexity("text.txt").perplexity == pytest.approx(other.perplexity("turned.txt").perplexity, rel=1e-12)


@pytest.mark.parametrize("command", [["evaluate"], ["score"], ["score", "--independent"], ["sample", "--max-tokens", "5"]])
def test_every_command_says_that_the_model_is_a_backward_one(
    command: list[str], both: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(both)
    name, *options = command
    assert call(name, "network", *["text.txt"] * (name == "score"), *options).code == 0
    assert "This is a backward model: it reads each line from its last token to its first" in caplog.text


def test_a_text_and_its_tokens_in_blocks_cost_the_same(here: Path) -> None:
    model = lmtrain.load("network")
    text = "the cat\nsat on\n\na mat"
    whole = model.perplexity([text])
    assert model.perplexity([*text]).total_nats == whole.total_nats
    assert whole.num_tokens == len(text)


def test_a_sample_stands_before_its_prompt_and_is_a_line(here: Path, call: Callable[..., Any]) -> None:
    for run in ("backward", "network"):
        end = call("sample", run, "--prompt", "on a mat", "--max-tokens", "30", "--num-samples", "2", "--seed", "3")
        assert end.code == 0
        texts = end.out.removesuffix("\n").split("\n---\n")
        assert len(texts) == 2
        assert all(text.endswith("on a mat") and "\n" not in text for text in texts)
        assert all(len(text) > len("on a mat") for text in texts)
    (drawn,) = lmtrain.load("backward").sample("on a mat", temperature=0, max_tokens=30)
    assert drawn.endswith(" ")
    assert drawn.strip()
    end = call("sample", "backward", "--prompt", "the end", "--stop", "x")
    assert end.code == 2
    assert "stop was given for a backward model" in end.err.replace("--stop", "stop")


def test_units_of_surprise_are_refused(here: Path, call: Callable[..., Any]) -> None:
    end = call("score", "network", "text.txt", "--unit", "word")
    assert end.code == 2
    assert "reads lines from their last token to their first" in end.err


def test_opposite_directions_are_mixed_line_by_line_and_not_token_by_token(here: Path, call: Callable[..., Any]) -> None:
    end = call("mix", "forward", "backward", "--output", "mixture")
    assert end.code == 2
    assert "--with RUN" in end.err
    end = call("score", "forward", "text.txt", "--independent", "--with", "backward", "--other-weight", "0.25")
    assert end.code == 0, end.err
    header, *rows = end.out.split("\n\n")[0].split("\n")
    assert header == "line\tlog_prob\ttokens\tunknown\tlog_prob_1\tlog_prob_2"
    lines = (here / "text.txt").read_text(encoding="utf-8").splitlines()
    forward, backward = (lmtrain.load(run).score(lines) for run in ("forward", "backward"))
    for row, one, other in zip(rows, forward, backward, strict=True):
        total, first, second = (float(row.split("\t")[place]) for place in (1, 4, 5))
        assert (first, second) == pytest.approx((one.log_prob, other.log_prob), abs=1e-6)
        assert total == pytest.approx(mixed(first, second, 0.25), abs=2e-6)
    assert "nats per line: " in end.out
    results = lmtrain.load("forward").score(lines, other=lmtrain.load("backward"), other_weight=0.25)
    assert results[0].log_probs == (forward[0].log_prob, backward[0].log_prob)
    assert results[0].log_prob == pytest.approx(mixed(*results[0].log_probs, 0.25))


def test_the_share_of_the_second_model_is_fitted_on_text_that_is_new_to_both(here: Path, call: Callable[..., Any]) -> None:
    models = lmtrain.load("forward"), lmtrain.load("backward")
    lines = models[0].tokenizer.decode(models[0]._trained.texts["valid"].ids.tolist()).splitlines()
    assert lines == models[1].tokenizer.decode(models[1]._trained.texts["valid"].ids.tolist()).splitlines()
    pairs = list(zip(*([one.log_prob for one in model.score(lines)] for model in models), strict=True))
    end = call("score", "forward", "text.txt", "--independent", "--with", "backward", "--other-weight", "fit")
    assert end.code == 0, end.err
    found = float(re.search("--other-weight ([^,]*), fitted on the validation text", end.err)[1])  # type: ignore[index]
    likelihood = [sum(mixed(*pair, share) for pair in pairs) for share in (found, *(number / 50 for number in range(51)))]
    assert likelihood[0] >= max(likelihood[1:]) - 1e-6
    assert models[0].fit_share(models[1]) == pytest.approx(found, abs=1e-5)
    assert models[0].fit_share(models[1], lines) == pytest.approx(found, abs=1e-5)
    assert models[1].fit_share(models[0]) == pytest.approx(1 - found, abs=1e-4)
    (scored,) = models[0].score("the cat", other=models[1], other_weight="fit")
    assert scored.log_probs is not None
    assert scored.log_prob == pytest.approx(mixed(*scored.log_probs, found), abs=1e-4)
    (here / "lines").write_text("".join(f"{line}\n" for line in lines[:3]), encoding="utf-8")
    end = call(
        "score", "forward", "text.txt", "--independent", "--with", "backward", "--other-weight", "fit", "--fit-on", "lines"
    )
    assert end.code == 0, end.err
    assert "fitted on lines (3 lines)" in end.err


@pytest.mark.parametrize("other", ["backward", "network"])
def test_the_evaluation_below_mixed_lines_is_that_of_the_mixture(other: str, here: Path, call: Callable[..., Any]) -> None:
    (here / "own").write_text("the zebra sat\non a mat\n", encoding="utf-8")
    command = ("score", "forward", "own", "--independent", "--with", other, "--other-weight", "0.75")
    *rows, last = map(json.loads, call(*command, "--json").out.splitlines())
    total = last["total"]
    nats = -sum(row["log_prob"] for row in rows)
    assert nats != pytest.approx(-sum(row["log_prob_1"] for row in rows), rel=1e-4)
    assert total["total_nats"] == total["lines"]["mixed_nats"] == pytest.approx(nats, rel=1e-12)
    assert total["perplexity"] == pytest.approx(math.exp(nats / sum(row["num_tokens"] for row in rows)), rel=1e-12)
    assert total["bits_per_byte"] == pytest.approx(nats / math.log(2) / 23, rel=1e-12)
    assert [total[name] for name in ("unk_nats", "known_nats", "perplexity_without_unk", "num_impossible")] == [None] * 4
    own = "" if other == "backward" else ", tokens of the first one"
    assert total["method"] == f"static + mixture over lines with 0.75 of the second model{own}"
    below = call(*command).out.split("\n\n")[1]
    assert below.startswith(f"perplexity {total['perplexity']:.2f} · ")
    assert "without <unk>" not in below
    assert total["method"] in below


def test_models_of_different_tokens_are_mixed_with_the_spelling_of_unknown_words(here: Path, call: Callable[..., Any]) -> None:
    text = "the zebra sat zebra\nquick\non a mat\n"
    (here / "own").write_text(text, encoding="utf-8")
    spelled = ("tokenizer=word", "tokenizer.unknown=spelled", "model=ngram", "model.order=3", "hydra.run.dir=spelled")
    assert call(*TINY, *spelled).code == 0
    lines, model, other = text.splitlines(), lmtrain.load("spelled"), lmtrain.load("network")
    spelling = [model.tokenizer.spelling_of(line) / 1e6 for line in lines]
    assert spelling[0] > spelling[1] > spelling[2] == 0
    alone = [one.log_prob - nats for one, nats in zip(model.score(lines), spelling, strict=True)]
    others = [one.log_prob for one in other.score([f"{line}\n" for line in lines])]
    for runs, parts in ((("spelled", "network"), (alone, others)), (("network", "spelled"), (others, alone))):
        expected = [(*pair, mixed(*pair, 0.5)) for pair in zip(*parts, strict=True)]
        out = call("score", runs[0], "own", "--independent", "--with", runs[1], "--json")
        assert out.code == 0, out.err
        *rows, last = [json.loads(line) for line in out.out.splitlines() if line[0] == "{"]
        for row, values in zip(rows, expected, strict=True):
            assert [row[name] for name in ("log_prob_1", "log_prob_2", "log_prob")] == pytest.approx(values, rel=1e-6)
        total = last["total"]
        nats = -sum(row[-1] for row in expected)
        assert total["bits_per_character"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-6)
        assert total["perplexity"] == pytest.approx(math.exp(nats / total["num_tokens"]), rel=1e-6)
        assert total["method"].endswith("tokens of the first one, spelling of unknown words in all numbers")
        first, second = map(lmtrain.load, runs)
        found = first.score([f"{line}\n" for line in lines], other=second)
        assert [one.log_prob for one in found] == pytest.approx([row[-1] for row in expected], rel=1e-6)
        assert first.fit_share(second, text) == pytest.approx(fit_share(*parts), abs=1e-4)
    assert "not spelt" not in call("score", "spelled", "own", "--independent", "--with", "network").out
    (alike,) = model.score(lines[:1], other=model)
    assert alike.log_prob == pytest.approx(model.score(lines[:1])[0].log_prob), "one cost for both is left out"


def test_a_forward_and_a_backward_model_are_compared_by_line_though_both_lack_words(
    here: Path, call: Callable[..., Any]
) -> None:
    text = "the zebra sat\non a mat\nzebra\n"
    (here / "own").write_text(text, encoding="utf-8")
    end = call("compare", "forward", "backward", "own", "--independent", "--json")
    assert end.code == 0, end.err
    found = json.loads(end.out)
    models, lines = [lmtrain.load(run) for run in ("forward", "backward")], text.splitlines()
    assert sum(line.num_unknown for line in models[0].score(lines)) == 2
    nats = [sum(line.total_nats for line in model.score(lines)) for model in models]
    assert (found["unit"], found["num_lines"]) == ("character", 3)
    assert [found["total"][name] * len(text) for name in ("nats_a", "nats_b")] == pytest.approx(nats, rel=1e-6)
    assert call("compare", "forward", "backward").code == 0


SPELT = ["tokenizer=word", "tokenizer.unknown=spelled"]


@pytest.mark.parametrize(
    ("text", "one", "two", "unit"),
    [
        ("a c b\nc a\n", SPELT, [*SPELT, "data.reverse=true"], "character"),
        ("a zq b\nzq c\n", SPELT, [*SPELT, "data.reverse=true"], None),
        ("a hello b\nc\n", SPELT, [*SPELT, "data.reverse=true"], None),  # as long as <unk>
        ("a zq b\nzq c\n", ["tokenizer=word"], ["tokenizer=word", "data.reverse=true"], "token"),
        ("a  c b\nc a\n", SPELT, [*SPELT, "data.reverse=true"], "token"),
        ("a  c b\nc a\n", SPELT, ["tokenizer=char"], "character"),
    ],
)
def test_a_saved_text_is_compared_on_by_what_its_tokens_tell(
    text: str, one: list[str], two: list[str], unit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., Any],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, content in (("train", "a b c\nb c a\n" * 50), ("valid", "a b\n"), ("test", text)):
        Path(f"{name}.txt").write_text(content, encoding="utf-8")
    for run, settings in (("one", one), ("two", two)):
        assert call("data=text", "data.path=.", "model=ngram", *settings, f"hydra.run.dir={run}").code == 0
    saved, given = call("compare", "one", "two", "--json"), call("compare", "one", "two", "test.txt", "--json")
    bill = json.loads(call("evaluate", "one", "--json").out)
    total = json.loads(given.out.splitlines()[-1])["total"]
    if one == SPELT:
        assert total["nats_a"] == pytest.approx(bill["bits_per_character"] * math.log(2))
    if unit is None:
        assert (saved.code, "Give a file." in saved.err) == (3, True)
        return
    found = json.loads(saved.out.splitlines()[-1])
    assert (saved.code, found["unit"]) == (0, unit)
    if unit == "character":
        assert found["total"] == total
    else:
        assert found["total"]["nats_a"] == pytest.approx(bill["nats_per_token"])


def test_an_nbest_list_is_rescored_by_both(here: Path, call: Callable[..., Any]) -> None:
    (here / "list").write_text("u\t-3\tthe cat sat\nu\t-3\tsat mat the\nv\t-1\ton a mat\n", encoding="utf-8")
    end = call("score", "forward", "list", "--nbest", "--with", "backward", "--log-base", "10")
    assert end.code == 0, end.err
    rows = [line.split("\t") for line in end.out.splitlines()[1:]]
    (here / "scored").write_text(end.out, encoding="utf-8")
    assert end.out.startswith("id\tscore\tlog10_prob\tlog10_prob_1\tlog10_prob_2\twords\tunknown\ttext\n")
    end = call("rescore", "scored", "--weights", "1", "0")
    assert end.code == 0, end.err
    best = max(rows[:2], key=lambda row: float(row[2]))[-1]
    assert end.out == f"u\t{best}\nv\ton a mat\n"
    end = call("score", "forward", "list", "--nbest", "--with", "backward", "--json")
    first = json.loads(end.out.splitlines()[0])
    assert first["log_prob"] == pytest.approx(mixed(first["log_prob_1"], first["log_prob_2"], 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--with", "backward"], "--with was given without --independent"),
        (["--other-weight", "0.5"], "--other-weight was given without --with"),
        (["--independent", "--with", "backward", "--other-weight", "1.5"], "--other-weight is 1.5"),
        (["--independent", "--with", "backward", "--per-token"], "together with --per-token"),
        (["--independent", "--with", "nothing"], "nothing"),
        (["--independent", "--with", "backward", "--other-weight", "some"], "'some' is not a finite number"),
        (["--independent", "--with", "backward", "--fit-on", "text.txt"], "--fit-on was given without --other-weight fit"),
        (["--other-weight", "fit"], "--other-weight was given without --with"),
    ],
)
def test_options_of_two_models_that_do_not_go_together_are_refused(
    options: list[str], message: str, both: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    monkeypatch.chdir(both)
    end = call("score", "forward", "text.txt", *options)
    assert end.code in (2, 4)
    assert message in end.err


def test_a_mixture_of_probabilities_is_one() -> None:
    assert mixed(-1.0, -1.0, 0.3) == pytest.approx(-1.0)
    assert mixed(-math.inf, -math.inf, 0.5) == -math.inf
    assert mixed(-math.inf, -2.0, 0.5) == pytest.approx(-2.0 + math.log(0.5))
    assert mixed(-1000.0, -2000.0, 1.0) == -2000.0


def test_the_fitted_share_is_the_likeliest() -> None:
    assert fit_share([-1.0, -5.0], [-5.0, -1.0]) == pytest.approx(0.5)
    assert fit_share([-1.0, -2.0], [-9.0, -9.0]) == pytest.approx(0, abs=1e-6)
    first, second = [-1.0, -2.0, -4.0, -math.inf], [-2.0, -1.5, -4.5, -3.0]
    best = max((n / 1000 for n in range(1001)), key=lambda share: sum(map(mixed, first, second, [share] * 4)))
    assert fit_share(first, second) == pytest.approx(best, abs=0.001)
    with pytest.raises(lmtrain.DataError, match=r"Line 2 of the text has probability zero"):
        fit_share([-1.0, -math.inf], [-1.0, -math.inf])
    with pytest.raises(lmtrain.DataError, match="There is no line"):
        fit_share([], [])


def test_a_backward_run_resumes_and_starts_others(here: Path, call: Callable[..., Any]) -> None:
    assert call("resume=network", "trainer.num_steps=6").code == 0
    end = call(*TINY, "start_from=network", "trainer.num_steps=2", "trainer.batch_size=4", "trainer.max_seconds=null",
               "hydra.run.dir=next")  # fmt: skip
    assert end.code == 0, end.err
    assert lmtrain.load("next").tokenizer.reverse
    end = call("arpa", "backward", "--output", "backward.arpa")
    assert end.code == 0
    assert "its tokens must be turned round" in end.err
