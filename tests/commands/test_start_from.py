"""`start_from=RUN`: what a run takes over from another model, what it refuses, and that it goes on without it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain
from lmtrain.application import check_overrides, register_schemas
from lmtrain.tasks.choose import open_task
from lmtrain.tasks.opening import training_settings
from lmtrain.tasks.start_settings import with_start
from lmtrain.training.checkpoint import find_checkpoint

TINY = [
    "model.embed_size=6", "model.hidden_size=8", "trainer.batch_size=4", "trainer.chunk_length=10", "trainer.num_steps=6",
    "trainer.max_seconds=null", "trainer.sample_tokens=5", "trainer.num_threads=1", "trainer.precision=float32",
]  # fmt: skip
NEW = ["data=text", "data.path=other.txt", "trainer.batch_size=4", "trainer.chunk_length=10", "trainer.num_steps=6",
       "trainer.max_seconds=null", "trainer.log_every=2", "trainer.sample_tokens=5", "trainer.num_threads=1",
       "trainer.precision=float32"]  # fmt: skip


def slow(*settings: str) -> Any:
    """A case for the long tests."""
    return pytest.param([*settings], marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def trained_words(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, a run of words; and other.txt, which has two words more."""
    here = tmp_path_factory.mktemp("words") / "here"
    shutil.copytree(trained, here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        lmtrain.train("data=text", "data.path=text.txt", *TINY, "tokenizer=word", "model.embed_size=8",
                      "model.tie_weights=true", "hydra.run.dir=base")  # fmt: skip
    text = (here / "text.txt").read_text(encoding="utf-8")
    (here / "other.txt").write_text(text.replace("cat", "dog").replace("mat and", "rug and"), encoding="utf-8")
    return here


@pytest.fixture
def words(trained_words: Path, place: Path) -> Path:
    """A copy of it as the working directory."""
    shutil.copytree(trained_words, place, dirs_exist_ok=True)
    return place


def settings_of(run: str) -> dict[str, Any]:
    return dict(json.loads((Path(run) / "settings.json").read_text(encoding="utf-8")))


def test_a_run_starts_from_the_weights_and_the_vocabulary_of_another(words: Path, call: Callable[..., Any]) -> None:
    end = call(*NEW, "start_from=base", "start_from_new_tokens=false", "trainer.num_steps=0", "hydra.run.dir=next")
    assert end.code == 0, end.err
    base, started = lmtrain.load("base"), lmtrain.load("next")
    assert started.tokenizer.to_json() == base.tokenizer.to_json()
    texts = ["the cat sat", "dog on a mat"]
    assert [t.log_prob for t in started.score(texts)] == [t.log_prob for t in base.score(texts)]
    settings = settings_of("next")
    assert settings["start_from"] == "base"
    assert settings["model"] == settings_of("base")["model"]


def test_what_the_text_adds_is_refused_unless_it_is_said_what_becomes_of_it(words: Path, call: Callable[..., Any]) -> None:
    end = call(*NEW, "start_from=base", "hydra.run.dir=next")
    assert end.code == 3
    assert "has 2 words that the model to start from does not know" in end.err
    assert "start_from_new_tokens=true" in end.err
    assert "start_from_new_tokens=false" in end.err
    assert not (words / "next").exists()


def test_a_text_that_adds_nothing_needs_no_word_about_it(words: Path, call: Callable[..., Any]) -> None:
    assert call(*NEW, "data.path=text.txt", "start_from=base", "hydra.run.dir=next").code == 0


def test_new_words_get_rows_behind_the_old_ones_which_stay_as_they_were(words: Path, call: Callable[..., Any]) -> None:
    end = call(*NEW, "start_from=base", "start_from_new_tokens=true", "trainer.num_steps=0", "hydra.run.dir=next")
    assert end.code == 0, end.err
    base, started = lmtrain.load("base"), lmtrain.load("next")
    size = base.tokenizer.vocab_size
    assert started.tokenizer.tokens[:size] == base.tokenizer.tokens
    assert sorted(started.tokenizer.tokens[size:]) == ["dog", "rug"]
    old, new = base.network.embedding.weight, started.network.embedding.weight
    torch.testing.assert_close(new[:size], old, rtol=0, atol=0)
    # all old words, <unk> too, keep their odds; the new ones share what <unk> has
    before, after = base.log_probs("the cat sat on"), started.log_probs("the cat sat on")
    odds = after[:, :size] - after[:, :1] - (before - before[:, :1])
    np.testing.assert_allclose(odds, 0, atol=1e-5)
    unk = base.tokenizer.unk_id
    np.testing.assert_allclose(np.exp(after[:, size:]).sum(1), np.exp(after[:, unk]), rtol=1e-4)


def test_a_run_that_was_started_from_another_goes_on_without_it_bit_for_bit(words: Path, call: Callable[..., Any]) -> None:
    start = ["start_from=base", "start_from_new_tokens=true", "model.dropout=0.2", "optimizer=sgd", "schedule=constant"]
    assert call(*NEW, *start, "optimizer.learning_rate=0.5", "hydra.run.dir=whole").code == 0
    assert call(*NEW, *start, "optimizer.learning_rate=0.5", "trainer.num_steps=2", "hydra.run.dir=cut").code == 0
    shutil.rmtree("base")
    assert call("resume=cut", "trainer.num_steps=6").code == 0
    whole, cut = (find_checkpoint(run, "last") for run in ("whole", "cut"))
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert settings_of("cut")["model"]["dropout"] == 0.2
    sessions = json.loads(Path("cut/run.json").read_text(encoding="utf-8"))["sessions"]
    assert all(session["started_from"]["step"] == 6 for session in sessions)
    assert call("evaluate", "cut", "--split", "train").code == 0


def test_a_run_that_ended_before_its_first_checkpoint_begins_again_without_the_other(
    words: Path, call: Callable[..., Any]
) -> None:
    assert call(*NEW, "start_from=base", "start_from_new_tokens=true", "hydra.run.dir=next").code == 0
    last = (find_checkpoint("next", "last") / "model.safetensors").read_bytes()
    shutil.rmtree("next/checkpoints")
    shutil.rmtree("base")
    assert call("resume=next").code == 0
    assert (find_checkpoint("next", "last") / "model.safetensors").read_bytes() == last


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model.hidden_size=9", "model.hidden_size is 8 in base, whose model is started from, and cannot become 9"),
        ("model=gru", "model=gru was given; in base it is lstm"),
        ("tokenizer=char", "tokenizer=char was given; in base it is word"),
        ("tokenizer.min_count=3", "tokenizer.min_count is 1 in base"),
        ("data.normalize=nfc", "data.normalize is none in base"),
        ("data.reverse=true", "data.reverse is false in base"),
        ("model.init=uniform", "model.init is xavier in base"),
        ("model.embeddings=vectors.txt", "model.embeddings is '' in base"),
        ("start_from=nothing", "nothing"),
        ("start_from=''", "start_from= names no run"),
    ],
)
def test_what_contradicts_the_model_is_refused_by_name(
    typed: str, message: str, trained_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_words)
    register_schemas()
    with pytest.raises((lmtrain.SettingsError, lmtrain.CheckpointError), match=re.escape(message)):
        check_overrides([*NEW, "start_from=base", "start_from_new_tokens=false", typed])


def test_an_experiment_has_a_model_of_its_own(trained_words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained_words)
    mapping = {"start_from": "base", "start_from_new_tokens": None, "model": {}, "tokenizer": {}, "data": {}}
    with pytest.raises(lmtrain.SettingsError, match="experiment= chooses a model, and start_from= another one"):
        with_start(mapping, ["start_from", "experiment"])


def test_new_tokens_without_a_model_to_add_them_to_are_refused() -> None:
    register_schemas()
    with pytest.raises(lmtrain.SettingsError, match="start_from_new_tokens is about start_from=RUN"):
        check_overrides(["start_from_new_tokens=true"])


def test_counts_and_mixtures_are_no_start(words: Path, call: Callable[..., Any]) -> None:
    assert call("data=text", "data.path=text.txt", "tokenizer=word", "model=ngram", "trainer.num_threads=1",
                "trainer.sample_tokens=0", "hydra.run.dir=counts").code == 0  # fmt: skip
    assert call("mix", "base", "counts", "--output", "both").code == 0
    for run, words_of_it in (("counts", "is a run of model=ngram"), ("both", "is a mixture")):
        end = call(*NEW, f"start_from={run}", "start_from_new_tokens=false", "hydra.run.dir=next")
        assert end.code == 2
        assert words_of_it in end.err


def test_a_start_cannot_change_when_a_run_goes_on(words: Path, call: Callable[..., Any]) -> None:
    assert call(*NEW, "start_from=base", "start_from_new_tokens=true", "hydra.run.dir=next").code == 0
    end = call("resume=next", "start_from=run")
    assert end.code == 2
    assert "start_from is base in this run and cannot become run" in end.err


@pytest.mark.parametrize("model", [
    slow("model=window", "model.context=3"), slow("model.head=sampled", "model.num_samples=5", "model.proposal=unigram"),
    ["model.head=adaptive", "model.cutoffs=[4,11]"],
    slow("model.head=adaptive", "model.cutoffs=[4]", "model.tie_weights=true", "model.embed_size=8"),
    slow("model=gru", "model.num_layers=2", "optimizer.averaging=ema"),
])  # fmt: skip
def test_every_kind_of_model_takes_new_words_and_resumes(model: list[str], words: Path, call: Callable[..., Any]) -> None:
    assert call("TRAIN", "tokenizer=word", *model, "hydra.run.dir=from").code == 0
    averaged = [setting for setting in model if setting.startswith("optimizer")]
    end = call(*NEW, *averaged, "start_from=from", "start_from_new_tokens=true", "trainer.num_steps=3", "hydra.run.dir=next")
    assert end.code == 0, end.err
    assert call("resume=next", "trainer.num_steps=5").code == 0
    model_of_run = lmtrain.load("next")
    assert {"dog", "rug"} <= {*model_of_run.tokenizer.tokens}
    np.testing.assert_allclose(np.exp(model_of_run.log_probs("the dog").astype(np.float64)).sum(1), 1, rtol=1e-5)


def test_hashed_ngrams_refuse_new_words_by_name(words: Path, call: Callable[..., Any]) -> None:
    assert call("TRAIN", "tokenizer=word", "model.maxent_order=2", "model.maxent_table=2048", "hydra.run.dir=from").code == 0
    end = call(*NEW, "start_from=from", "start_from_new_tokens=true", "hydra.run.dir=next")
    assert end.code == 2
    assert "hashed n-grams (model.maxent_order)" in end.err
    assert call(*NEW, "start_from=from", "start_from_new_tokens=false", "hydra.run.dir=next").code == 0


def test_characters_are_added_as_words_are(place: Path, call: Callable[..., Any]) -> None:
    (place / "other.txt").write_text("the cät\nsat on a ﬁne mat\n" * 30, encoding="utf-8")
    end = call(*NEW, "start_from=run", "hydra.run.dir=next")
    assert end.code == 3
    assert "has 2 characters that the model to start from does not know" in end.err
    assert call(*NEW, "start_from=run", "start_from_new_tokens=true", "hydra.run.dir=next").code == 0
    assert {"ä", "ﬁ"} <= {*lmtrain.load("next").tokenizer.tokens}


def test_bounds_are_about_what_is_added(words: Path, call: Callable[..., Any]) -> None:
    size = lmtrain.load("base").tokenizer.vocab_size
    bounded = [f"tokenizer.vocab_size={size + 1}", "start_from_new_tokens=true"]
    assert call(*NEW, "start_from=base", *bounded, "hydra.run.dir=next").code == 0
    assert lmtrain.load("next").tokenizer.vocab_size == size + 1


def test_the_lines_of_both_texts_count_as_learnt_from(words: Path, call: Callable[..., Any]) -> None:
    assert call(*NEW, "start_from=base", "start_from_new_tokens=true", "hydra.run.dir=next").code == 0
    end = call("evaluate", "next", "--text", "text.txt")
    assert end.code == 0
    assert "%" in end.out + end.err
    assert call("evaluate", "base", "--text", "other.txt").code == 0


def test_training_from_python_takes_the_same_settings(words: Path) -> None:
    run = lmtrain.train(*NEW, "start_from=base", "start_from_new_tokens=true", "hydra.run.dir=next")
    assert "dog" in run.model.tokenizer.tokens
    with pytest.raises(lmtrain.SettingsError, match="cannot become 9"):
        lmtrain.train(*NEW, "start_from=base", "model.hidden_size=9")


def test_a_sweep_checks_every_start(words: Path, call: Callable[..., Any]) -> None:
    end = call(*NEW, "-m", "start_from=base,nothing", "start_from_new_tokens=false")
    assert end.code == 4
    assert "nothing" in end.err


def test_the_settings_that_are_read_are_those_of_the_run(words: Path) -> None:
    mapping = {"start_from": "base", "start_from_new_tokens": False, "model": {"kind": "recurrent", "cell": "lstm"},
               "tokenizer": {"name": "char"}, "data": {"kind": "text", "path": "other.txt"}}  # fmt: skip
    started = with_start(mapping, ["start_from", "data.path"])
    assert started["model"]["hidden_size"] == 8
    assert started["tokenizer"]["name"] == "word"
    task = open_task(training_settings(find_checkpoint("base", "best")), torch.device("cpu"))
    assert task.start is None


def test_runs_that_start_from_others_are_no_runs_of_other_seeds(words: Path) -> None:
    from lmtrain.settings.defaults import differing_settings

    plain = settings_of("base")
    assert not {"start_from", "start_from_new_tokens"} & differing_settings(plain).keys()
    started = {**plain, "start_from": "base", "start_from_new_tokens": True}
    assert differing_settings(started)["start_from"] == "base"
    assert differing_settings(started)["start_from_new_tokens"] is True


def test_a_name_that_does_not_exist_is_said_once(trained_words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained_words)
    register_schemas()
    with pytest.raises(lmtrain.SettingsError, match=r"^One setting cannot be used") as caught:
        check_overrides([*NEW, "start_from=base", "start_from_new_tokens=false", "model.dropuot=0.1"])
    assert "did you mean model.dropout?" in str(caught.value)
    with pytest.raises(lmtrain.SettingsError, match=r"model.context does not exist for the model of base, which is lstm"):
        with_start(
            {"start_from": "base", "model": {"kind": "recurrent", "cell": "lstm", "context": 3}, "tokenizer": {}, "data": {}},
            ["model.context"],
        )  # fmt: skip
