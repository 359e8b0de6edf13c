"""`score --unit` and `--html`: tables for programs, a page for people."""

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import lmtrain

Call = Callable[..., Any]


def table(out: str) -> list[dict[str, str]]:
    header, *rows = out.splitlines()
    return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


@pytest.mark.parametrize("unit", ["token", "word", "line"])
def test_units_are_written_as_rows_and_as_json_and_given_to_python(unit: str, place: Path, call: Call) -> None:
    text = "the cat sat\n\nxyz &<b>\tmat\n"
    Path("given").write_text(text, encoding="utf-8")
    ended = call("score", "run", "given", "--unit", unit)
    assert ended.code == 0
    assert "perplexity" in ended.err
    rows, units = table(ended.out), lmtrain.load("run").surprise(text, unit=unit)  # type: ignore[arg-type]
    *objects, total = map(json.loads, call("score", "run", "given", "--unit", unit, "--json").out.splitlines())
    assert len(rows) == len(units) == len(objects)
    for row, found, values in zip(rows, units, objects, strict=True):
        assert float(row["surprisal"]) == pytest.approx(found.surprisal, abs=1e-5) == values["surprisal"]
        assert (int(row["line"]), int(row["tokens"])) == (found.line, found.num_tokens)
        assert (values["line"], values["entropy"]) == (found.line, found.entropy)
        if unit != "line":
            assert values["instead"] == [{"text": a.text, "probability": a.probability} for a in found.instead]
            assert float(row["probability1"]) >= float(row["probability2"]) >= float(row["probability3"]) > 0
            assert int(row["rank"]) == found.rank == values["rank"]
    assert sum(found.surprisal for found in units) == pytest.approx(total["total"]["total_nats"])
    whole = json.loads(call("score", "run", "given", "--json").out.splitlines()[-1])["total"]
    assert total["total"]["total_nats"] == pytest.approx(whole["total_nats"], rel=1e-5)
    bits = table(call("score", "run", "given", "--unit", unit, "--bits").out)
    assert float(bits[0]["surprisal"]) * math.log(2) == pytest.approx(units[0].surprisal, abs=1e-5)
    if unit == "word":
        assert [row["text"] for row in rows] == ["the", "cat", "sat", "<eos>", "xyz", "&<b>", "mat"]
        assert [row["position"] for row in rows] == ["1", "2", "3", "1", "1", "2", "3"]
        assert int(rows[4]["unknown"]) >= 1


def test_lines_by_themselves_and_keys(place: Path, call: Call) -> None:
    Path("given").write_text("k1\tthe cat\nk2\tthe cat\n", encoding="utf-8")
    rows = table(call("score", "run", "given", "--unit", "word", "--key-column", "--independent").out)
    assert [row["key"] for row in rows] == ["k1", "k1", "k2", "k2"]
    assert [row["surprisal"] for row in rows[:2]] == [row["surprisal"] for row in rows[2:]]
    objects = call("score", "run", "given", "--unit", "line", "--key-column", "--json").out.splitlines()
    assert [json.loads(line).get("key") for line in objects] == ["k1", "k2", None]


class Page(HTMLParser):
    """What a browser would show of a page, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.shown, self.titles, self.tags = "", [], set[str]()
        self.feed(text)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "main" in self.open:
            self.shown += data


@pytest.mark.parametrize("options", [[], ["--unit", "word"]])
def test_the_page_shows_the_text_and_what_was_expected_and_nothing_is_obeyed(
    options: list[str], place: Path, call: Call
) -> None:
    text = 'the <script>alert(1)</script> & cat\n\n"mat" \x1b[31m é\u0301 कि\n'
    Path("a<b>.txt").write_text(text, encoding="utf-8")
    ended = call("score", "run", "a<b>.txt", "--html", "page.html", *options)
    assert ended.code == 0
    assert "Saved in page.html" in ended.err
    assert ("perplexity" in ended.out) == (not options)
    written = Path("page.html").read_text(encoding="utf-8")
    found = Page(written)
    assert "script" not in found.tags
    assert "b" not in found.tags
    shown = text.replace("\x1b", "\\x1b").replace("\n", "\u23ce\n")
    if options:  # an empty line is a unit of its own, and words stand apart
        words = 'the <script>alert(1)</script> & cat\u23ce \u23ce "mat" \\x1b[31m é\u0301 कि\u23ce'
        assert " ".join(found.shown.split()) == words
    else:
        assert found.shown.strip("\n") == shown.strip("\n")
        assert len(found.titles) == len(lmtrain.load("run").surprise(text, unit="token"))
    assert all("nats, rank" in title and title.count("%") == 3 for title in found.titles)
    assert "<title>a&lt;b&gt;.txt, read by " in written
    assert "perplexity" in written
    assert "http" not in written, "the page needs nothing else"
    again = call("score", "run", "a<b>.txt", "--html", "page.html")
    assert again.code == 2
    assert "--html page.html is there already" in again.err


def test_a_page_of_words_has_them_apart_and_marks_the_unknown(place: Path, call: Call) -> None:
    assert call("data=text", "data.path=text.txt", "model=ngram", "tokenizer=word", "hydra.run.dir=counted").code == 0
    Path("given").write_text("the wombat sat\nran\n", encoding="utf-8")
    assert call("score", "counted", "given", "--html", "page.html").code == 0
    written = Path("page.html").read_text(encoding="utf-8")
    assert Page(written).shown.strip("\n") == "the wombat sat \u23ce\nran \u23ce"
    assert "<u>wombat</u>" in written


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--bits"], 2, "--bits was given without --unit"),
        (["--unit", "word", "--nbest"], 2, "--unit was given together with --nbest"),
        (["--unit", "word", "--independent", "--batch-tokens", "9"], 2, "--unit was given together with --batch-tokens"),
        (["--unit", "word", "--per-token"], 2, "--unit was given together with --per-token"),
        (["--html", "x", "--dynamic", "sgd"], 2, "--html was given together with --dynamic"),
        (["--unit", "line", "--html", "x"], 2, "--html was given together with --unit line"),
        (["--unit", "sentence"], 2, "invalid choice"),
        (["--html", "text.txt/x"], 2, "--html text.txt/x is below text.txt, which is no directory."),
        (["--html", ""], 2, "--html is empty"),
        (["--html", "-"], 2, "--html is -. It must be a new path: nothing is written to standard output here"),
        (["--html", "run"], 2, "--html run is there already"),
    ],
)
def test_what_does_not_fit_is_said(options: list[str], code: int, message: str, place: Path, call: Call) -> None:
    ended = call("score", "run", "text.txt", *options)
    assert ended.code == code
    assert message.lower() in ended.err.lower()
    assert not Path("x").exists()


def test_a_page_that_fails_leaves_nothing(place: Path, call: Call) -> None:
    Path("given").write_bytes(b"")
    before = sorted(path.name for path in Path().iterdir())
    assert call("score", "run", "given", "--html", "page.html").code == 3
    assert sorted(path.name for path in Path().iterdir()) == before
    with pytest.raises(ValueError, match="unit='sentence'"):
        lmtrain.load("run").surprise("the", unit="sentence")  # type: ignore[arg-type]
