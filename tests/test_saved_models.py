"""Checkpoints of an earlier version (tests/fixtures/saved) load, predict what they predicted, and go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAVED = Path(__file__).parent / "fixtures" / "saved"
EVALUATIONS: dict[str, dict[str, Any]] = json.loads((SAVED / "evaluations.json").read_text(encoding="utf-8"))
RUNS = [name for name in EVALUATIONS if (SAVED / name / "settings.json").exists()]


@pytest.fixture
def saved(place: Path) -> Path:
    """The working directory with a copy of the fixtures in it."""
    shutil.copytree(SAVED, place, dirs_exist_ok=True)
    return place


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_old_model_gives_the_perplexity_that_it_gave(name: str, saved: Path, call: Callable[..., Any]) -> None:
    ended = call("evaluate", name, "--text", "text.txt", "--json")
    assert ended.code == 0, ended.err
    now, then = json.loads(ended.out), EVALUATIONS[name]
    assert now["total_nats"] == pytest.approx(then["total_nats"], rel=1e-6)
    assert {key: now[key] for key in then if key.startswith("num_")} == {
        key: then[key] for key in then if key.startswith("num_")
    }


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_goes_on(name: str, saved: Path, call: Callable[..., Any]) -> None:
    further = [] if name == "ngram" else ["trainer.num_steps=12"]
    ended = call(f"resume={name}", *further)
    assert ended.code == 0, ended.err
    assert "perplexity" in ended.out
    assert "damaged" not in ended.err
    if further:
        assert '"step": 12' in (saved / name / "metrics.jsonl").read_text(encoding="utf-8")
