"""Runs whose tokens are subwords: trained, resumed, sampled, scored, mixed, exported; and what is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint

pytest.importorskip("tokenizers", reason="needs tokenizers, which the extra `subword` installs")

TEXT = "το σπίτι φτωχικό στις αμμουδιές\nमैं हिन्दी में लिखता हूँ।\n吾輩は猫である。名前はまだ無い。\nthe cat  sat 👩‍👩‍👧\n"
BPE = ["TRAIN", "tokenizer=bpe", "tokenizer.vocab_size=300", "schedule=constant"]


@pytest.fixture
def here(place: Path) -> Path:
    lines = TEXT.splitlines(keepends=True)
    (place / "text.txt").write_text("".join(lines[(i * i) % 4] for i in range(60)), encoding="utf-8")
    return place


def test_a_run_goes_on_bit_for_bit_and_does_what_others_do(here: Path, call: Callable[..., Any]) -> None:
    assert call(*BPE, "hydra.run.dir=whole").code == 0
    assert call(*BPE, "hydra.run.dir=part", "trainer.num_steps=3").code == 0
    shutil.rmtree("outputs/cache")  # the vocabulary is learnt again, and is the same
    assert call("resume=part", "trainer.num_steps=6").code == 0
    whole, part = (load_checkpoint(find_checkpoint(here / run, "last")) for run in ("whole", "part"))
    assert all(tensor.equal(part.tensors["model"][name]) for name, tensor in whole.tensors["model"].items())
    assert whole.documents["subword"] == part.documents["subword"]
    (here / "line.txt").write_text("το σπίτι 日本\n", encoding="utf-8")
    scored = call("score", "whole", "line.txt", "--per-token")
    assert scored.code == 0
    assert scored.out.splitlines()[1].startswith("1\t-")
    assert call("evaluate", "whole", "--text", "line.txt").code == 0
    sampled = call("sample", "whole", "--prompt", "मैं 👩‍👩‍👧", "--max-tokens", "5")
    assert sampled.out.startswith("मैं 👩‍👩‍👧")
    model = lmtrain.load("whole")
    assert "(bpe)" in repr(model)
    texts = ["", "ab", "a\nb\n", " \t日本"]
    for text, result in zip(texts, model.score(texts), strict=True):
        assert result.num_tokens == len(model.tokenizer.encode(text))
        assert result.num_unknown == 0


def test_a_unigram_run_goes_on_without_its_cache(here: Path, call: Callable[..., Any]) -> None:
    unigram = ["TRAIN", "tokenizer=unigram", "tokenizer.vocab_size=300", "schedule=constant", "trainer.num_steps=2"]
    assert call(*unigram, "hydra.run.dir=part").code == 0
    shutil.rmtree("outputs/cache")  # the vocabulary is learnt again, and is the same
    assert call("resume=part", "trainer.num_steps=3").code == 0
    refused = call(*unigram, "tokenizer.min_count=2")
    assert refused.code == 2
    assert "tokenizer.min_count=2 would be ignored by tokenizer=unigram" in refused.err


def test_counts_are_mixed_with_networks_and_written_as_arpa(here: Path, call: Callable[..., Any]) -> None:
    assert call(*BPE, "hydra.run.dir=net").code == 0
    counting = ["data=text", "data.path=text.txt", *BPE[1:3], "model=ngram", "model.order=2", "hydra.run.dir=counts"]
    assert call(*counting).code == 0
    assert call("mix", "net", "counts", "--output", "mixture").code == 0
    assert call("evaluate", "mixture").code == 0
    refused = call("mix", "net", "run", "--output", "other")
    assert refused.code == 2
    assert "another vocabulary" in refused.err
    assert call("arpa", "counts", "--output", "counts.arpa").code == 0
    symbols = {line.split("\t")[1] for line in (here / "counts.arpa").read_text().splitlines() if "\t" in line}
    assert {"<s>", "</s>"} <= symbols
    assert any("Ġ" in symbol for symbol in symbols)
    read = call("arpa", "counts.arpa", "--output", "again")
    assert read.code == 0


def test_a_saved_vocabulary_serves_another_text(here: Path, call: Callable[..., Any]) -> None:
    assert call(*BPE, "hydra.run.dir=first").code == 0
    file = find_checkpoint(here / "first", "last") / "subword.json"
    (here / "other.txt").write_text("日本 the cat\n" * 90, encoding="utf-8")
    again = ["TRAIN", "data.path=other.txt", "tokenizer=file", f"tokenizer.path={file}", "hydra.run.dir=second"]
    assert call(*again).code == 0
    assert json.loads((find_checkpoint(here / "second", "last") / "subword.json").read_text()) == json.loads(file.read_text())
    assert call("resume=second", "trainer.num_steps=8").code == 0
    (here / "bad.json").write_text("{}")
    for path, words in (("bad.json", "model.vocab is missing"), ("none.json", "There is no file"), ("text.txt", "is not JSON")):
        ended = call("TRAIN", "tokenizer=file", f"tokenizer.path={path}", "hydra.run.dir=third")
        assert ended.code == 3
        assert words in ended.err
    assert "do not go together" in call("TRAIN", "tokenizer=file").err
    assert "do not go together" in call("TRAIN", "tokenizer=bpe", "tokenizer.path=bad.json").err
    assert "leaves no token besides the 256 bytes" in call("TRAIN", "tokenizer=bpe", "tokenizer.vocab_size=0").err


def test_damaged_and_foreign_vocabularies_are_refused(here: Path, call: Callable[..., Any]) -> None:
    assert call(*BPE, "hydra.run.dir=made").code == 0
    file = find_checkpoint(here / "made", "best") / "subword.json"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"merges"', b'"mergeS"'))
    ended = call("evaluate", "made")
    assert ended.code == 4
    assert "subword.json is damaged" in ended.err
    file.unlink()
    ended = call("evaluate", "made")
    assert ended.code == 4
    assert "subword.json is damaged. It is missing" in ended.err


def test_without_the_library_every_door_names_the_extra(
    here: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*BPE, "hydra.run.dir=made").code == 0
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for arguments, code in ((["evaluate", "made"], 4), (BPE, 2), (["resume=made", "trainer.num_steps=8"], 2)):
        ended = call(*arguments)
        assert ended.code == code
        assert "extra `subword`" in ended.err
        assert "pip install tokenizers" in ended.err
