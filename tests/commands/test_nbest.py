"""N-best lists and keyed lines, as one types them: scored, weighed, picked."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain
from lmtrain.__main__ import main

Call = Callable[..., Any]

LIST = (
    "utt a\t-10.5\tthe cat sat\n"
    "utt a\t-10.25\tthe xyzzy sat\n"
    "utt a\t-11\tsat the cat\n"
    "übung\t-3e1\tran away\n"
    "übung\t-30\tran\n"
    "übung\t-31\t\n"
)
REFERENCES = "utt a\tthe cat sat\nübung\tran away\n"


@pytest.fixture(scope="module")
def ngram(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An n-gram model of words."""
    run = tmp_path_factory.mktemp("ngram") / "counted"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        patch.setattr(sys, "argv", ["lmtrain"])
        main(["data=text", "data.path=text.txt", "model=ngram", "tokenizer=word", f"hydra.run.dir={run}"])
    return run


@pytest.fixture
def counted(place: Path, ngram: Path) -> Path:
    """The model, a list and its references in the working directory."""
    (place / "counted").symlink_to(ngram)
    (place / "list").write_text(LIST, encoding="utf-8")
    (place / "references").write_text(REFERENCES, encoding="utf-8")
    return place


def table(out: str) -> list[dict[str, str]]:
    header, *rows = out.splitlines()
    return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


@pytest.mark.parametrize("run", ["counted", "run"])
def test_an_nbest_list_comes_back_in_its_order_with_its_columns(counted: Path, call: Call, run: str) -> None:
    ended = call("score", run, "list", "--nbest")
    assert ended.code == 0
    assert "perplexity" in ended.err, "the bill is no row of the table"
    rows = table(ended.out)
    given = [line.split("\t") for line in LIST.splitlines()]
    assert [[row["id"], row["score"], row["text"]] for row in rows] == given
    assert [row["words"] for row in rows] == ["3", "3", "3", "2", "1", "0"]
    if run == "counted":
        assert [row["unknown"] for row in rows] == ["0", "1", "0", "0", "0", "0"]
    ends = "\n" if run == "run" else ""  # a line of characters is ended by the file
    alone = lmtrain.load(run).score([text + ends for _, _, text in given])
    assert [float(row["log_prob"]) for row in rows] == pytest.approx([one.log_prob for one in alone], abs=2e-5)
    tens = table(call("score", run, "list", "--nbest", "--log-base", "10").out)
    assert [float(row["log10_prob"]) * math.log(10) for row in tens] == pytest.approx([one.log_prob for one in alone], abs=1e-4)
    *lines, _total = map(json.loads, call("score", run, "list", "--nbest", "--json", "--per-token").out.splitlines())
    assert [line["log_prob"] for line in lines] == pytest.approx([one.log_prob for one in alone], rel=1e-5)
    assert [(line["id"], line["score"], line["text"]) for line in lines][1] == ("utt a", -10.25, "the xyzzy sat")
    assert [token["text"] for token in lines[0]["tokens"]][:2] == (["the", "cat"] if run == "counted" else ["t", "h"])


def test_kaldi_lists_have_spaces_and_numbered_ids(counted: Path, call: Call) -> None:
    Path("kaldi").write_text("a-1 the cat sat\na-2  sat the cat\nb-1\nb-2 ran away\n", encoding="utf-8")
    rows = table(call("score", "counted", "kaldi", "--nbest", "--format", "kaldi").out)
    assert [(row["id"], row["words"], row["text"]) for row in rows] == [
        ("a-1", "3", "the cat sat"), ("a-2", "3", "sat the cat"), ("b-1", "0", ""), ("b-2", "2", "ran away"),
    ]  # fmt: skip
    Path("scored").write_text(call("score", "counted", "kaldi", "--nbest", "--format", "kaldi").out, encoding="utf-8")
    Path("said").write_text("b ran away\na the cat sat\n", encoding="utf-8")
    ended = call("rescore", "scored", "--format", "kaldi", "--references", "said")
    assert ended.out == "a the cat sat\nb ran away\n"
    assert "word errors 0 of 5 words" in ended.err
    assert "no hypothesis for 'b'" not in ended.err


def test_the_unknown_word_costs_what_is_asked_and_is_shown_as_it_stood(counted: Path, call: Call) -> None:
    free, dear = (
        table(call("score", "counted", "list", "--nbest", "--unknown-cost", cost).out) for cost in ("0", "2.5")
    )  # fmt: skip
    change = [float(one["log_prob"]) - float(other["log_prob"]) for one, other in zip(free, dear, strict=True)]
    assert change == pytest.approx([0, 2.5, 0, 0, 0, 0], abs=1e-5)
    lm = lmtrain.load("counted")
    (one,), (other,) = lm.score("the xyzzy"), lm.score("the xyzzy", unknown_cost=2.5, per_token=True)
    assert other.total_nats - one.total_nats == pytest.approx(2.5)
    assert [(token.text, token.is_unk) for token in other.tokens or ()] == [
        ("the", False), ("xyzzy", True), ("<eos>", False),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown_cost=nan"):
        lm.score("the", unknown_cost=math.nan)
    Path("line").write_text("the Ünknown\tcat\x1b[31m sat\n", encoding="utf-8")
    ended = call("score", "counted", "line", "--per-token", "--unknown-cost", "1")
    assert "\tÜnknown\t" in ended.out
    assert "\tcat\\x1b[31m\t" in ended.out
    assert ended.out.count("\tunknown\n\t") == 2
    assert "static + 1 nats for each unknown word" in ended.out


def test_keys_are_neither_scored_nor_lost(counted: Path, call: Call) -> None:
    lines = ["the cat sat", "", "ran away"]
    Path("bare").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("keyed").write_text("\n".join(f"k {n}\t{line}" for n, line in enumerate(lines)), encoding="utf-8")
    for options in ([], ["--independent"]):
        bare, keyed = (
            call("score", "counted", name, *options, *more) for name, more in (("bare", []), ("keyed", ["--key-column"]))
        )
        assert keyed.out.startswith("key\tlog_prob\ttokens\tunknown\nk 0\t")
        assert [row.split("\t")[1:] for row in keyed.out.splitlines()[:4]] == [
            row.split("\t")[1:] for row in bare.out.splitlines()[:4]
        ]
        assert [row.split("\t")[0] for row in keyed.out.splitlines()[1:4]] == ["k 0", "k 1", "k 2"]
    rows = [json.loads(row) for row in call("score", "run", "keyed", "--key-column", "--json").out.splitlines()]
    assert [row.get("key") for row in rows] == ["k 0", "k 1", "k 2", None]
    Path("keyed").write_text("k0 the cat\nk1\nk2 ran", encoding="utf-8")
    ended = call("score", "run", "keyed", "--key-column", "--format", "kaldi")
    assert [row.split("\t")[0] for row in ended.out.splitlines()[1:4]] == ["k0", "k1", "k2"]


def test_weights_are_used_or_found_and_the_best_is_picked(counted: Path, call: Call) -> None:
    Path("scored").write_text(call("score", "counted", "list", "--nbest", "--unknown-cost", "9").out, encoding="utf-8")
    ended = call("rescore", "scored", "--weights", "0", "0")
    assert ended.out == "utt a\tthe xyzzy sat\nübung\tran away\n"
    assert "2 lists, 1 with a tie" in ended.err
    assert call("rescore", "scored", "--weights", "0", "-1.5").out == "utt a\tthe xyzzy sat\nübung\t\n"
    found = call("rescore", "scored", "--references", "references")
    assert found.out == REFERENCES
    assert "word errors 0 of 5 words (0.00 %); the first of each list makes 0, the best that the lists hold 0" in found.err
    judged = call("rescore", "scored", "--references", "references", "--weights", "0", "0", "--json")
    *rows, total = map(json.loads, judged.out.splitlines())
    assert [row["text"] for row in rows] == ["the xyzzy sat", "ran away"]
    assert [row["ties"] for row in rows] == [0, 1]
    assert total["total"] == {
        "lm_weight": 0, "word_penalty": 0, "ties": 1, "words": 5, "errors": 1, "errors_of_the_first": 0,
        "errors_of_the_best": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["score", "run", "text.txt", "--nbest"],
            3,
            "Line 1 has no column 'id'.*--format kaldi where columns end with a space",
        ),
        (["score", "run", "list", "--nbest", "--columns", "id,text"], 0, ""),
        (["score", "run", "list", "--nbest", "--columns", "text,id"], 2, "--columns text,id was given"),
        (["score", "run", "list", "--nbest", "--columns", "id,id,text"], 2, "--columns id,id,text was given"),
        (["score", "run", "list", "--nbest", "--columns", "id"], 2, "--columns id was given"),
        (["score", "run", "list", "--columns", "id,text"], 2, "--columns was given without --nbest"),
        (["score", "run", "list", "--log-base", "10"], 2, "--log-base was given without --nbest"),
        (["score", "run", "list", "--format", "kaldi"], 2, "--format was given without"),
        (["score", "run", "list", "--nbest", "--per-token"], 2, "Type --json as well"),
        (["score", "run", "list", "--nbest", "--cache", "5"], 2, "--nbest was given together with --dynamic or --cache"),
        (["score", "run", "list", "--nbest", "--key-column"], 2, "not allowed with"),
        (["score", "run", "list", "--unknown-cost", "nan"], 2, "'nan' is not a finite number"),
        (["score", "run", "empty", "--nbest"], 3, "The text to score is empty"),
        (["score", "counted", "eos", "--nbest"], 0, ""),
        (["rescore", "list", "--weights", "1", "0"], 3, "does not name the columns of a scored n-best list"),
        (["rescore", "scored"], 2, "Neither --weights nor --references"),
        (["rescore", "scored", "--weights", "1", "nan"], 2, "'nan' is not a finite number"),
        (["rescore", "empty", "--weights", "1", "0"], 3, "holds no hypotheses"),
        (["rescore", "spoilt", "--weights", "1", "0"], 3, "Line 2 of spoilt is no row"),
        (["rescore", "halves", "--weights", "1", "0"], 3, "Line 2 of halves is no row"),
        (["export", "run", "--output", ""], 2, "--output is empty. It must be a path"),
        (["rescore", "nowhere", "--weights", "1", "0"], 3, "There is no file"),
        (["rescore", "scored", "--weights", "1", "0", "--format", "kaldi"], 3, "ids end with the number of the hypothesis"),
        (["rescore", "scored", "--references", "text.txt"], 3, "Line 1 of text.txt is"),
        (["rescore", "scored", "--references", "fewer"], 3, "There is no reference for 'übung'"),
        (["rescore", "scored", "--references", "fewer"], 3, "With --format kaldi, hypotheses are utterance-1"),
        (["rescore", "scored", "--references", "more"], 3, "There is no hypothesis for 'x'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_paragraph(
    arguments: list[str], code: int, message: str, counted: Path, call: Call
) -> None:
    files = {
        "empty": "", "eos": "a\t1\tthe\nb\t2\tthe <eos> cat\n", "fewer": "utt a\tx\n", "more": REFERENCES + "x\ty\n",
        "scored": call("score", "counted", "list", "--nbest").out,
        "halves": "id\tlog_prob\twords\tunknown\ttext\na\t-1\t1.5\t0\tx\n",
        "spoilt": "id\tlog_prob\twords\tunknown\ttext\na\tnan\t1\t0\tx\n",
    }  # fmt: skip
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    ended = call(*arguments)
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert re.search(message, ended.err)
