"""Bounded evaluation: a function of settings and token counts, the same blocks each time, small texts whole."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lmtrain.inference.blocks as blocks
from lmtrain.data.tokenizer import learn_tokenizer
from lmtrain.inference.blocks import default_bound, evenly_spaced
from lmtrain.training.run_record import read_run

Call = Callable[..., Any]


@pytest.mark.parametrize(("between", "bound"), [(0, 10**6), (9_999_999, 10**6), (10**7, 10**6), (10**8 + 9, 10**7)])
def test_the_bound_is_a_tenth_of_what_is_trained_but_a_million_at_the_least(between: int, bound: int) -> None:
    assert default_bound(between) == bound


@pytest.mark.parametrize("num_streams", [1, 2, 7, 16, 20])
@pytest.mark.parametrize(("size", "most"), [(1000, 160), (1003, 500), (1000, 777), (100, 3), (50, 50), (5, 9)])
def test_blocks_are_parts_of_the_text_evenly_spaced_and_no_more_than_asked_for(size: int, most: int, num_streams: int) -> None:
    ids = np.arange(size, dtype=np.uint16)
    part = evenly_spaced(ids, most, num_streams)
    if size <= most:
        assert part is ids
        return
    assert 0 < len(part) <= most
    assert len(part) > most - max(16, num_streams + 16), "little is given away"
    assert len(np.unique(part)) == len(part), "no token is read twice"
    starts = part[np.flatnonzero(np.diff(part.astype(int), prepend=-2) != 1)]
    if len(starts) > 1:
        gaps = np.diff(starts.astype(int))
        assert gaps.max() - gaps.min() <= 1
        assert len(part) % len(starts) == 0, "blocks are of one length"
        assert most < 16 or len(starts) % num_streams == 0, "a stream holds whole blocks"
    assert (evenly_spaced(ids, most, num_streams) == part).all()


def bills(run: str) -> list[float]:
    records = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [record["val/nats_per_token"] for record in records if "val/nats_per_token" in record]


def test_evaluations_read_so_many_tokens_and_the_final_test_all(place: Path, call: Call) -> None:
    ended = call("TRAIN", "trainer.evaluate_every=2", "trainer.evaluation_tokens=50", "hydra.run.dir=part")
    assert ended.out.count("Evaluations during training read 48 of the 116 tokens of validation") == 1
    run, whole = read_run(Path("part")), read_run(Path("run"))
    assert run.valid is not None
    assert (run.valid.facts["num_tokens"], run.valid.facts["of_num_tokens"]) == (48, 116)
    assert run.test is not None
    assert whole.test is not None
    assert run.test.facts["num_tokens"] == whole.test.facts["num_tokens"]
    session = json.loads(Path("part/run.json").read_text())["sessions"][-1]
    assert session["results"]["evaluation"]["num_tokens"] == 48
    assert call("TRAIN", "trainer.evaluate_every=2", "hydra.run.dir=small").out.count("Evaluations during training read") == 0
    assert call("TRAIN", "trainer.evaluate_every=2", "trainer.evaluation_tokens=0", "hydra.run.dir=all").code == 0
    assert bills("small") == bills("all") != bills("part"), "small texts are read whole"


@pytest.mark.parametrize("name", ["char", "byte", "word"])
def test_a_part_has_the_characters_bytes_and_lines_that_its_tokens_write(name: str) -> None:
    """Long words come first, so the same share of the whole would be wrong."""
    from lmtrain.data.corpus import Split
    from lmtrain.tasks.language import part_of

    text = "größere überlängliche wörter\n" * 40 + "a b ccccc d e\n" * 30
    tokenizer = learn_tokenizer(name, [text.replace("ccccc", "z")])
    ids = tokenizer.encode(text)
    num_unk = 0 if tokenizer.unk_id is None else int((ids == tokenizer.unk_id).sum())
    lines = np.zeros(0, np.uint64)
    whole = Split(
        ids, len(text), len(text.encode()), 3000, num_lines=70, num_unk=num_unk, num_filled=70, num_marked=0, lines=lines
    )
    assert part_of(whole, ids, tokenizer) is whole
    half = len(tokenizer.encode(text[: text.index("a b")]))
    long, short = part_of(whole, ids[:half], tokenizer), part_of(whole, ids[half:], tokenizer)
    assert (long.num_lines, short.num_lines, long.num_filled) == (40, 30, 40)
    assert (long.num_unk, long.spelling_micronats, short.spelling_micronats) == (0, 0, 3000 if num_unk else 0)
    at_most = 0 if name != "word" else 20  # there is no blank at the end of a line
    for field, size in (("num_chars", 40 * 29), ("num_bytes", 40 * 34)):
        assert abs(getattr(long, field) - size) <= at_most
        assert getattr(long, field) + getattr(short, field) == pytest.approx(getattr(whole, field), abs=1)


def test_every_evaluation_of_a_run_reads_the_same_whenever_it_was_interrupted(place: Path, call: Call) -> None:
    settings = ["trainer.evaluate_every=2", "trainer.evaluation_tokens=50"]
    assert call("TRAIN", *settings, "trainer.num_steps=8", "schedule=constant", "hydra.run.dir=once").code == 0
    assert call("TRAIN", *settings, "trainer.num_steps=4", "schedule=constant", "hydra.run.dir=twice").code == 0
    assert call("resume=twice", "trainer.num_steps=8").code == 0
    assert bills("once") == bills("twice")


def test_a_run_does_not_go_on_with_validations_of_another_text(place: Path, call: Call) -> None:
    """Its best model would be chosen by numbers that do not compare."""
    few = ["trainer.evaluate_every=2", "trainer.evaluation_tokens=50"]
    assert call("TRAIN", *few, "trainer.num_steps=4", "schedule=constant", "hydra.run.dir=few").code == 0
    before = [(path, path.read_bytes()) for path in sorted(Path("few/checkpoints").rglob("*")) if path.is_file()]
    ended = call("resume=few", "trainer.num_steps=6", "trainer.evaluation_tokens=0")
    assert ended.code == 2
    assert "up to 116 tokens" in ended.err
    assert "trainer.evaluation_tokens=50 to go on as before" in ended.err
    assert [(path, path.read_bytes()) for path in sorted(Path("few/checkpoints").rglob("*")) if path.is_file()] == before
    assert call("resume=few", "trainer.num_steps=6", "trainer.evaluation_streams=2").code == 0, "as memory may ask for it"
    assert call("resume=few", "trainer.num_steps=8", "trainer.evaluate_every=1").code == 0, "the tokens are given"
    own = ["trainer.evaluate_every=2", "trainer.evaluation_tokens=null"]
    assert call("TRAIN", *own, "trainer.num_steps=4", "schedule=constant", "hydra.run.dir=small").code == 0
    assert call("resume=small", "trainer.num_steps=6", "trainer.evaluation_tokens=0").code == 0, "both are the whole text"


def test_a_run_of_an_earlier_version_reads_all_when_it_goes_on(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MIN_BOUND", 50)
    settings = json.loads(Path("run/settings.json").read_text())
    del settings["trainer"]["evaluation_tokens"]
    Path("run/settings.json").write_text(json.dumps(settings))
    ended = call("resume=run", "trainer.num_steps=8")
    assert (ended.code, ended.out.count("Evaluations during training read")) == (0, 0)
    ended = call("TRAIN", "trainer.evaluate_every=2", "hydra.run.dir=new")
    assert ended.out.count("Evaluations during training read 48 of the 116 tokens") == 1, "a new one keeps to the bound"


def test_an_epoch_lies_between_two_evaluations_where_none_is_asked_for_otherwise(place: Path) -> None:
    """And chunk by chunk where it is: what limits the run does not matter, so a longer run reads the same."""
    from lmtrain.data.corpus import Split
    from lmtrain.tasks.language import Language

    ids = np.zeros(3_000_000, np.uint16)
    split = Split(ids, 1, 1, num_lines=1, num_unk=0, num_filled=1, num_marked=0, lines=np.zeros(0, np.uint64))
    for every, expected in ((0, 2_000_000), (1, 1_000_000), (20_000, 3_000_000)):
        task = object.__new__(Language)
        trainer = SimpleNamespace(evaluate_every=every, evaluation_tokens=None, evaluation_streams=16)
        task.__dict__ |= {
            "settings": SimpleNamespace(trainer=trainer), "batches": SimpleNamespace(batch_size=64, chunk_length=35),
            "corpus": SimpleNamespace(
                valid=split, train=SimpleNamespace(ids=range(20_000_000)), tokenizer=learn_tokenizer("char", ["a\n"])
            ),
        }  # fmt: skip
        assert len(task._judged.ids) == expected
