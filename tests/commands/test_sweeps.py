"""A sweep compares, and a search makes small, only what can be compared."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lmtrain.application as application
from lmtrain.commands.train import Reached

Call = Callable[..., Any]
SPELT = Reached(1.5, 2.5, 0, "a")
UNSPELT = Reached(5.0, None, 7, "b")


@pytest.fixture
def unspelt(place: Path) -> None:
    """Validation has words that training has not."""
    lines = Path("text.txt").read_text().splitlines()
    Path("text.txt").write_text("\n".join([*lines, *(f"{line} odd{number}" for number, line in enumerate(lines[:9]))]) + "\n")


def test_bits_per_character_are_not_listed_for_models_that_do_not_spell_every_word(
    unspelt: None, place: Path, call: Call
) -> None:
    ended = call("-m", "TRAIN", "tokenizer=word,byte", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    table = ended.out.partition("Best validation of each job (")[2]
    assert "vocabularies differ: compare bits per character; jobs with <unk>, which they do not spell, compare with no" in table
    assert re.search(r"#0  tokenizer=word: \d\.\d+ nats per token, \d+ <unk>$", table, re.MULTILINE)
    assert re.search(r"#1  tokenizer=byte: \d\.\d+ nats per token, \d\.\d+ bits per character$", table, re.MULTILINE)


def test_jobs_of_one_vocabulary_are_compared_in_nats_per_token(unspelt: None, place: Path, call: Call) -> None:
    ended = call("-m", "TRAIN", "tokenizer=word", "trainer.seed=1,2", "hydra.sweep.dir=sweep")
    table = ended.out.partition("Best validation of each job (")[2]
    assert table.startswith("one vocabulary: compare nats per token)")
    assert "bits per character" not in table


@pytest.mark.parametrize(("tokenizer", "is_there"), [("word", False), ("byte", True)])
def test_neither_do_the_records_and_tensorboard_hold_them(
    tokenizer: str, is_there: bool, unspelt: None, place: Path, call: Call
) -> None:
    assert call("TRAIN", f"tokenizer={tokenizer}", "hydra.run.dir=unspelt").code == 0
    records = [json.loads(line) for line in Path("unspelt/metrics.jsonl").read_text().splitlines()]
    assert any("val/nats_per_token" in record for record in records)
    assert any("val/bits_per_character" in record for record in records) is is_there
    tensorboard = EventAccumulator("unspelt/tensorboard")
    tensorboard.Reload()
    assert ("val/bits_per_character" in tensorboard.Tags()["scalars"]) is is_there


@pytest.mark.parametrize(
    ("overrides", "varies"),
    [
        (["model.hidden_size=8,16"], False), (["optimizer=adam,sgd"], False), (["tokenizer=word,char"], True),
        (["tokenizer.min_count=1,2"], True), (["data.path=a,b"], True), (["data.valid_fraction=0.1,0.2"], True),
        (["data.cache_dir=a,b"], False), (["data=text,pydocs", "data.path=null"], True), (["tokenizer=word,word"], False),
        (["experiment=char_lstm,brown_lstm"], True), (["experiment=zaremba_small,zaremba_medium"], False),
    ],
)  # fmt: skip
def test_it_is_known_beforehand_whether_vocabularies_vary(overrides: list[str], varies: bool) -> None:
    application.register_schemas()
    base = [] if any(override.startswith(("data=", "experiment=")) for override in overrides) else ["data=text"]
    given = [*base, *[o for o in overrides if not o.endswith("=null")]]
    assert application._varies_vocabulary(given, []) is varies


def test_a_search_never_prefers_a_model_that_does_not_spell(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    searches = SimpleNamespace(sweeper={"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"})
    monkeypatch.setattr(application.HydraConfig, "get", lambda: searches)
    assert application._searched(SPELT, varies=False) == 1.5
    assert application._searched(UNSPELT, varies=False) == 5.0, "of one vocabulary they compare"
    assert application._searched(SPELT, varies=True) == 2.5
    assert capsys.readouterr().err == ""
    assert application._searched(UNSPELT, varies=True) == math.inf
    assert (
        "does not spell 7 <unk> of validation: it counts as infinitely bad. Search with tokenizer=byte"
        in capsys.readouterr().err
    )
