"""Settings that go together, or do not."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain.config as config
from lmtrain.application import check_overrides, register_schemas
from lmtrain.settings import idle, reading

register_schemas()


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (["model=gru", "model.forget_bias=2"], "model.forget_bias has no effect here: it needs model=lstm."),
        (["model.num_samples=7"], "model.num_samples has no effect here: it needs model.head=sampled."),
        (["optimizer.ema_decay=0.5"], "optimizer.ema_decay has no effect here: it needs optimizer.averaging=ema."),
        (["model=ngram", "trainer.batch_size=7"], "trainer.batch_size has no effect here: it needs a model that is trained"),
        (["model=ngram", "optimizer.learning_rate=1"], "optimizer.learning_rate has no effect here"),
    ],
)
def test_a_setting_without_effect_is_said(settings: list[str], note: str, place: Path, call: Callable[..., Any]) -> None:
    ended = call("data=text", "data.path=nowhere.txt", *settings)
    assert ended.err.startswith(f"lmtrain: {note}")


def test_a_setting_with_effect_is_not_commented() -> None:
    settings = reading.read_config(check_overrides(["model.head=sampled", "model.num_samples=7", "model.forget_bias=2"]))
    assert list(idle.iter_idle(settings, ["model.head", "model.num_samples", "model.forget_bias", "data.path"])) == []


def names_of_settings() -> set[str]:
    """Every setting there is."""
    return {
        f"{group}.{field.name}"
        for group, classes in {
            "model": config.KINDS[config.ModelConfig], "data": config.KINDS[config.DataConfig],
            "tokenizer": (config.TokenizerConfig,), "optimizer": (config.OptimizerConfig,),
            "schedule": config.KINDS[config.ScheduleConfig], "trainer": (config.TrainerConfig,),
        }.items()
        for cls in classes
        for field in dataclasses.fields(cls)
        if field.name != "kind"
    }  # fmt: skip


def test_every_setting_that_may_be_idle_exists() -> None:
    """A misspelt key in the tables would never be commented."""
    settings = reading.read_config(check_overrides(["model=ngram"]))
    assert set(idle.needs_of(settings)) | set(idle.COUNTING_IGNORES) <= names_of_settings()
    assert len(list(idle.iter_idle(settings, idle.COUNTING_IGNORES))) == len(idle.COUNTING_IGNORES)


def test_every_setting_is_read_somewhere() -> None:
    """A setting whose name occurs nowhere else has no effect."""
    source = Path(config.__file__).parents[1]
    readers = [path for path in source.rglob("*.py") if path.parent.name not in ("config", "settings")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in readers)
    names = {key.partition(".")[2] for key in names_of_settings()}
    assert [name for name in sorted(names) if not re.search(rf"\.{name}\b", code)] == []


def test_every_value_of_a_sweep_is_checked_before_anything_starts() -> None:
    with pytest.raises(reading.SettingsProblemsError, match=r"trainer\.keep=-1 is out of range"):
        check_overrides(["trainer.keep=2,3,-1"])


@pytest.mark.parametrize(
    "override",
    ["model.hidden_sizes=[" + "1," * 1000 + "1]", "model.cutoffs=[0,5]", "model.hidden_sizes=[70000]",
     "trainer.num_steps=range(5,1)", "model@other=lstm", "trainer.seed=" + "9" * 400, "optimizer.learning_rate=1" + "0" * 400],
)  # fmt: skip
def test_lists_sweeps_and_numbers_have_bounds(override: str) -> None:
    with pytest.raises(reading.SettingsProblemsError):
        check_overrides([override])


@pytest.mark.parametrize("order", [["-m", "model=gru", "trainer.seed=1,2"], ["model=gru", "-m", "trainer.seed=1,2"]])
def test_options_may_stand_anywhere(order: list[str], place: Path, call: Callable[..., Any]) -> None:
    ended = call(*order, "data=text", "data.path=nowhere.txt", "hydra.sweep.dir=sweep")
    assert ended.code == 3
    assert "2 of 2 jobs failed" in ended.err


def test_cutoffs_beyond_the_vocabulary_are_named(place: Path, call: Callable[..., Any]) -> None:
    ended = call("TRAIN", "tokenizer=word", "model.head=adaptive", "model.cutoffs=[4,2000,10000]", "hydra.run.dir=other")
    assert ended.code == 0
    log = (place / "other" / "lmtrain.log").read_text(encoding="utf-8")
    assert log.count("so 2000, 10000 is left out") == 1


def test_cutoffs_that_leave_no_cluster_are_refused(place: Path, call: Callable[..., Any]) -> None:
    ended = call("TRAIN", "tokenizer=word", "model.head=adaptive", "hydra.run.dir=other")
    assert ended.code == 2
    assert "leaves no cluster of rare words" in ended.err
    assert "Type model.head=full" in ended.err
    assert not (place / "other").exists()


@pytest.mark.parametrize("name", ["hydra.run.dir", "hydra.sweep.dir"])
def test_an_empty_directory_is_not_where_one_is(name: str, place: Path, call: Callable[..., Any]) -> None:
    before = {*place.rglob("*")}
    ended = call("TRAIN", *(["-m", "trainer.seed=1,2"] if "sweep" in name else []), f"{name}=")
    assert ended.code == 2
    assert f"{name} is empty." in ended.err
    assert {*place.rglob("*")} == before


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (["model.backend=native", "model.layer_norm=true", "model.zoneout=0.1"], "model.layer_norm and no model.zoneout"),
        (["model.backend=native", "model.zoneout=0.1"], "model.zoneout"),
        (["model.backend=triton", "model.layer_norm=true"], "model.layer_norm"),
    ],
)
def test_what_a_backend_lacks_is_said_before_anything_starts(
    settings: list[str], missing: str, place: Path, call: Callable[..., Any]
) -> None:
    ended = call("TRAIN", "model=gru", *settings, "hydra.run.dir=other")
    assert ended.code == 2
    assert f"has no {missing}. Type model.backend=auto." in ended.err
    assert not (place / "other").exists()
