"""`python -m lmtrain inspect`, as it is typed."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

Call = Callable[..., Any]
TAGGED = {
    "train": "Ann I-PER\nsat O\nin O\nRome I-LOC\n\nBob I-PER\nslept O\n",
    "dev": "Bob I-PER\nslept O\n\nAnn I-LOC\nRome I-LOC\n\x1b[2J O\n",
}


@pytest.fixture
def tagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name, text in TAGGED.items():
        (tmp_path / "data" / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_text_is_shown_and_drawn_and_no_run_is_made(place: Path, call: Call) -> None:
    before = {path.name for path in place.iterdir()}
    ended = call("inspect", "data=text", "data.path=text.txt", "tokenizer=word", "--svg", "zipf.svg")
    assert ended.code == 0, ended.err
    for heading in ("split ", "Lengths of lines", "Types among", "The most frequent", "n-grams never seen", "The beginning of"):
        assert f"\n{heading}" in f"\n{ended.out}"
    assert ElementTree.parse("zipf.svg").getroot().tag.endswith("svg")
    assert {path.name for path in place.iterdir()} == before | {"zipf.svg"}
    again = call("inspect", "data=text", "data.path=text.txt", "--svg", "zipf.svg")
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err


@pytest.mark.parametrize("tokenizer", ["word", "char", "byte", "bpe"])
def test_json_agrees_with_the_text_for_every_tokenizer(tokenizer: str, place: Path, call: Call) -> None:
    settings = ["tokenizer.vocab_size=270"] if tokenizer == "bpe" else []
    ended = call("inspect", "data=text", "data.path=text.txt", f"tokenizer={tokenizer}", *settings, "--json")
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    assert list(made["splits"]) == ["train", "valid", "test"]
    text = Path("text.txt").read_text(encoding="utf-8")
    assert sum(split["lines"] for split in made["splits"].values()) in range(text.count("\n"), text.count("\n") + 3)
    assert made["growth"][-1] == [made["splits"]["train"]["tokens"], made["splits"]["train"]["types"]]
    if tokenizer == "word":
        assert sum(split["tokens"] for split in made["splits"].values()) == len(text.split())
        assert made["examples"] == text.splitlines()[:5]
    assert [each["order"] for each in made["unseen_ngrams"]["test"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("settings", [(), ("tokenizer.min_count=2",), ("tokenizer.vocab_size=5", "data.workers=1")])
@pytest.mark.parametrize("tokenizer", ["word", "char"])
@pytest.mark.parametrize("data", ["directory", "shards"])
def test_what_the_vocabulary_lacks_is_counted_as_it_is_written(
    data: str, tokenizer: str, settings: tuple[str, ...], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"train": "the cat sat\nthe dog\n", "valid": "the bird sat\na bird\n", "test": "xylophone zebra quagga cat\n"}
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text)
    path = "."
    if data == "shards":
        for name, text in texts.items():
            Path(f"{name}.txt").unlink()
            Path(name).mkdir()
            for number, line in enumerate(text.splitlines(keepends=True)):
                Path(name, f"{number}.txt").write_text(line)
    ended = call("inspect", "data=text", f"data.path={path}", f"tokenizer={tokenizer}", *settings, "--json")
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    split = str.split if tokenizer == "word" else lambda text: list(text.replace("\n", ""))
    counts = {name: Counter(split(text)) for name, text in texts.items()}
    for name, counter in counts.items():
        assert made["splits"][name]["types"] == len(counter)
        assert made["splits"][name]["hapaxes"] == sum(count == 1 for count in counter.values())
    for name in ("valid", "test"):
        order = made["unseen_ngrams"][name][0]
        unseen = counts[name].keys() - counts["train"].keys()
        assert order["num_unseen_types"] == len(unseen)
        assert order["num_unseen"] == sum(counts[name][token] for token in unseen)
        if not settings:
            assert made["splits"][name]["unknown"] == order["num_unseen"] / counts[name].total()
        assert made["splits"][name]["unknown"] > 0
    assert "as it is written" in made["notes"][-1]


def test_tags_entities_and_shared_sentences_are_counted(tagged: Path, call: Call) -> None:
    made = json.loads(call("inspect", "task=tag", "data.path=data", "tokenizer.min_count=1", "--json").out)
    assert made["tags"] == {"train": {"I-PER": 2, "O": 3, "I-LOC": 1}, "valid": {"I-PER": 1, "O": 2, "I-LOC": 2}}
    assert made["entities"]["valid"] == {"entities": 2, "different": 2, "in_train": 1, "different_in_train": 1}
    assert made["overlaps"] == [{"split": "valid", "other": "train", "found": 1, "compared": 2}]
    assert made["unseen_ngrams"]["valid"][0] == {"order": 1, "num": 7, "num_unseen": 1, "num_types": 6, "num_unseen_types": 1}
    assert made["splits"]["valid"]["unknown"] == pytest.approx(1 / 5)
    shown = call("inspect", "task=tag", "data.path=data")
    assert shown.code == 0, shown.err
    assert "\x1b" not in shown.out
    assert "1 of 2 of valid (50.0%) are in train" in shown.out


def test_labels_are_counted(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        Path(f"{name}.txt").write_text("good a fine film\nbad dull\ngood fun\n", encoding="utf-8")
    ended = call("inspect", "task=classify", "data.path=.", "--json")
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    assert made["labels"]["train"] == {"good": 2, "bad": 1}
    assert made["splits"]["train"]["tokens"] == 5
    assert made["overlaps"] == [{"split": "valid", "other": "train", "found": 3, "compared": 3}]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("data=txt",), 2, "data=txt does not exist"), (("data=text",), 2, "data=text needs data.path"),
        (("text.txt",), 2, "'text.txt' is not key=value"), (("data.pth=x",), 2, "data.pth"),
        (("model=lstm,gru",), 2, "gives several values"), (("resume=run",), 2, "names a run"),
        (("hydra.run.dir=x",), 2, "setting of Hydra"), (("data=text", "data.path=nowhere.txt"), 3, "nowhere.txt"),
        (("--jsn",), 2, "Did you mean --json"),
        (("task=tag", "data.train=text.txt", "data.valid=text.txt"), 3, "Line 1 of text.txt"),
        (("data=text", "data.path=text.txt", "--svg", "text.txt/zipf.svg"), 2, "is below text.txt, which is no directory"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_paragraph(arguments: tuple[str, ...], code: int, said: str, place: Path, call: Call) -> None:
    Path("text.txt").write_text("a\n\nb\n" * 200, encoding="utf-8")
    ended = call("inspect", *arguments)
    assert (ended.code, ended.out) == (code, ""), ended
    assert re.search(said, ended.err), ended.err
