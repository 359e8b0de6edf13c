"""The page of runs: whole by itself, with every part that it promises, whatever the runs hold; and a browser shows it."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lmtrain.commands.report import report
from lmtrain.commands.report_page import Curve, bars, chart, table
from lmtrain.commands.report_words import predict
from lmtrain.commands.runs import read_runs
from lmtrain.saved import load_trained

Call = Callable[..., Any]


class Page(HTMLParser):
    """The tags that are open and every address; a page is balanced where none stays open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_every_part_and_asks_for_nothing(place: Path, call: Call) -> None:
    assert call("TRAIN", "tokenizer=word", "trainer.seed=2", "trainer.evaluate_every=2", "hydra.run.dir='<b>&w'").code == 0
    ended = call("report", "run", "<b>&w", "--output", "page.html")
    assert ended.code == 0, ended.err
    text = Path("page.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe"} & set(page.seen)
    assert not re.search(r"https?:|url\(|@import", text)
    for part in ("language: 2 runs", "Learning curves", "Learning rate", "Gradient norm", "Speed: tokens per second",
                 "Perplexity by frequency", "Perplexity by place in the line", "predicted worst", "Samples of run",
                 "Samples of &lt;b&gt;&amp;w"):  # fmt: skip
        assert part in text, part
    assert len(re.findall(r"<p>step \d+</p><pre>", text)) == 1 + 3, "each evaluation has a sample"
    assert "<b>&w" not in text, "names are escaped"
    refused = call("report", "run", "--output", "page.html")
    assert (refused.code, Path("page.html").read_text()) == (2, text)
    assert "Nothing is overwritten" in refused.err


def test_figures_of_words_are_those_of_the_exact_evaluation(place: Path, call: Call) -> None:
    assert call("TRAIN", "tokenizer=word", "hydra.run.dir=words").code == 0
    predicted = predict(Path("words"), 10**9, "cpu")
    assert predicted is not None
    trained = load_trained("words", prefer="best")
    ids = trained.texts["valid"].ids
    bill = json.loads(call("evaluate", "words", "--split", "valid", "--json").out)
    numbers = {"1 to 10": (ids < 10).sum(), "11 to 100": (ids >= 10).sum()}  # ids descend in frequency, from 0
    nats = sum(math.log(predicted.by_rank[name] or 1) * number for name, number in numbers.items())
    assert nats == pytest.approx(bill["total_nats"], rel=1e-5)
    assert all(count >= 3 for _, count, _, _ in predicted.worst)
    assert [mean for *_, mean, _ in predicted.worst] == sorted((mean for *_, mean, _ in predicted.worst), reverse=True)
    assert set(predicted.by_place) == {"1", "2", "3", "4 to 5", "6 to 10", "11 to 20", "above 20"}
    assert predicted.by_place["above 20"] is None


@pytest.mark.parametrize("way", ["a list of words", "new tokens"])
def test_ranks_are_by_frequency_where_ids_differ(way: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "c c c c c c a a a b b\n" * 100
    if way == "new tokens":
        Path("text.txt").write_text(text.replace("c", "a"))
        assert call("TRAIN", "tokenizer=word", "hydra.run.dir=start").code == 0
    Path("text.txt").write_text(text)
    Path("words.txt").write_text("b\na\nc\n")
    ways = {
        "a list of words": ("tokenizer=word", "tokenizer.vocabulary=words.txt"),
        "new tokens": ("start_from=start", "start_from_new_tokens=true"),
    }
    ended = call("TRAIN", *ways[way], "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    predicted = predict(Path("run"), 10**9, "cpu")
    assert predicted is not None
    assert {text: rank for text, *_, rank in predicted.worst} == {"c": 1, "a": 2, "b": 3, "<eos>": 4}


def test_other_tasks_and_runs_without_records_or_models_have_a_page(place: Path, call: Call, capsys: Any) -> None:
    Path("TAGS").mkdir()
    for name in ("train", "valid", "test"):
        Path(f"TAGS/{name}.txt").write_text("Ann I-PER\nsat O\nin O\nRome I-LOC\n\n" * 8)
    assert call("task=tag", "data.path=TAGS", "tokenizer.min_count=1", "trainer.num_steps=4", "trainer.log_every=1",
                "hydra.run.dir=tags").code == 0  # fmt: skip
    assert call("model=ngram", "data=text", "data.path=text.txt", "tokenizer=byte", "hydra.run.dir=counted").code == 0
    shutil.copytree("run", "bare")
    Path("bare/metrics.jsonl").unlink()
    shutil.rmtree("bare/checkpoints")
    shutil.rmtree("bare/tensorboard")
    Path("bare/run.json").write_text(Path("bare/run.json").read_text().replace('"finished"', '"SettingsError: \\u001b[31m<i>"'))
    shutil.copytree("run", "torn")
    Path("torn/metrics.jsonl").write_bytes(b'{"step": 1, "train/nats_per_token": null}\n{"step": 2, "val/nats\n\xff\n[]\n')
    for file in Path("torn/tensorboard").rglob("events*"):
        file.write_bytes(file.read_bytes()[:-7] + b"torn")
    text = report(read_runs(["."]))
    assert Page(text).open == []
    assert "The model of bare is left out" in capsys.readouterr().err
    assert "tag: 1 run" in text
    assert "<i>" not in text.replace("<i style", "")
    assert "\x1b" not in text


def test_charts_of_unusual_numbers() -> None:
    nan, inf = float("nan"), float("inf")
    assert chart([], "step", "loss") == ""
    assert chart([Curve("a", [(1, nan), (2, inf)], "red")], "step", "loss") == ""
    assert chart([Curve("a", [(1, 0.0), (2, -1.0)], "red")], "step", "norm", log=True) == "", "no logarithm"
    for points in ([(0, 1.0)], [(5, 2.0), (9, 2.0)], [(1, 1e-30), (2, 1e30)], [(n, n * 1.0) for n in range(5000)], [(1, -3.0)]):
        for log in (False, True):
            svg = chart([Curve("a", points, "red")], "step", "loss", log=log)
            assert not re.search(r"\b(nan|inf)\b", svg)
            assert Page(svg).open == []
            for x, y in re.findall(r"([\d.-]+),([\d.-]+)", " ".join(re.findall(r'points="([^"]*)"', svg))):
                assert -1 <= float(x) <= 861
                assert -1 <= float(y) <= 321
    assert bars(["a"], {"run": [None]}, "perplexity") == ""
    assert "<rect" in bars(["a", "b"], {"run": [1.0, inf]}, "perplexity")
    assert table(["<a>"], [["\x1b[31m"]]).count("<td>\\x1b[31m</td>") == 1


@pytest.mark.slow
def test_a_browser_shows_the_page_without_asking_for_anything(place: Path, call: Call) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium here")
    assert call("report", "run", "--output", "page.html").code == 0
    address = Path("page.html").resolve().as_uri()
    common = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'profile'}",
              "--virtual-time-budget=3000"]  # fmt: skip
    shown = subprocess.run([*common, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert len(re.findall(r"<svg ", shown.stdout)) >= 5
    size = ["--window-size=1000,1500", "--screenshot=page.png"]
    subprocess.run([*common, *size, address], capture_output=True, timeout=120, check=True)
    assert Path("page.png").stat().st_size > 30_000, "more than an empty page"
