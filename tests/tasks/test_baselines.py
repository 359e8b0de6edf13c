"""What stands beside a model in the end: who is named, what is left out, and that the linear model learns."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lmtrain
from lmtrain.application import read_settings
from lmtrain.files.strict_json import parse_json, to_json
from lmtrain.tasks import baselines, language_baselines
from lmtrain.tasks.baselines import THIS, Comparison
from lmtrain.tasks.choose import open_task

GIVEN = ["trainer.num_threads=1", "trainer.batch_size=7", "trainer.num_epochs=1"]
TAG = ["task=tag", "data.train=tags", "data.valid=tags", "model.hidden_sizes=[4]", "model.embed_size=3", *GIVEN]
CLASSIFY = ["task=classify", "data.train=texts", "data.valid=texts", "model.embed_size=3", *GIVEN]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tags that the shape of a word tells, and labels that only two words together tell."""
    monkeypatch.chdir(tmp_path)
    names = [f"{a}{b}" for a in "bcdfghklm" for b in "aeiou"]
    Path("tags").write_text("".join(f"{name.title()} I-PER\n{name} O\n\n" for name in names), encoding="utf-8")
    pairs = [("yes", "a b c d"), ("no", "b a d c"), ("yes", "c d a b"), ("no", "d c b a")]
    Path("texts").write_text("".join(f"{label} {words}\n" for label, words in pairs * 10), encoding="utf-8")
    return tmp_path


def test_models_that_are_as_good_are_named_and_a_perfect_one_shows_that_data_are_too_easy() -> None:
    rows = {THIS: (1.0, 0.5, 0.7), "first": (0.2, 0.5, 0.6), "second": (0.3, 0.6, 1.0), "third": (0.3, 0.5, 0.1)}
    shares = {name: dict(zip(("train", "valid", "test"), row, strict=True)) for name, row in rows.items()}
    lines = Comparison("accuracy", shares, ["Left out is a fourth."]).format().splitlines()  # type: ignore[arg-type]
    assert lines[0].split() == ["accuracy,", "%", "train", "valid", "test"]
    assert lines[3].split() == ["second", "30.00", "60.00", "100.00"]
    assert lines[5:] == [
        "On valid this model is no better than first, second and third.",
        "On test this model is no better than second.",
        "On test second can do all: it is too easy to tell good models from others.",
        "Left out is a fourth.",
    ]


def test_a_perplexity_beyond_all_numbers_is_none_in_json() -> None:
    compared = Comparison("perplexity", {THIS: {"train": 2.0, "valid": math.inf}, "unigrams": {"train": 3.0, "valid": 4.0}},
                          is_share=False)  # fmt: skip
    values = {THIS: {"train": 2.0, "valid": None}, "unigrams": {"train": 3.0, "valid": 4.0}}
    assert parse_json(to_json(compared.to_json())) == {"measure": "perplexity", "values": values}
    assert "inf" in compared.format()


@pytest.mark.parametrize("given", [TAG, CLASSIFY], ids=["tag", "classify"])
def test_logistic_regression_learns_what_words_alone_do_not_tell(given: list[str], place: Path) -> None:
    task = open_task(read_settings(given), torch.device("cpu"))
    compared = task.comparison(task.learner().model)
    assert compared is not None
    (name,) = (name for name in compared.values if name.startswith("logistic regression"))
    assert compared.values[name]["valid"] == 1
    assert list(compared.values[THIS]) == ["train", "valid"], "there is no test split"
    again = task.comparison(task.learner().model)
    assert again == compared, "it is the same every time"


def test_it_is_left_out_by_name_where_it_would_take_long(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "MAX_UPDATES", 10)
    for number, given in enumerate((TAG, CLASSIFY)):
        run = lmtrain.train(*given, f"hydra.run.dir=run{number}")
        shown = capsys.readouterr().out
        assert "Logistic regression is left out: " in shown
        assert "With trainer.baselines=true it is trained, too." in shown
        task = open_task(read_settings([*given, "trainer.baselines=true"]), torch.device("cpu"))
        compared = task.comparison(run.model.model.network)
        assert any(name.startswith("logistic") for name in compared.values)
        assert not compared.notes or "left out" not in compared.notes[0]
        unwanted = open_task(replace(task.settings, trainer=replace(task.settings.trainer, baselines=False)), task.device)
        compared = unwanted.comparison(run.model.model.network)
        assert not any(name.startswith("logistic") for name in compared.values)
        assert "left out" not in compared.format(), "it need not be said to who asked for it"


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A text whose next word is told by the one before; the settings that train a small model on it, for a few steps."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("a b c d e f\nb d f a c e\n" * 300, encoding="utf-8")
    sizes = ["model.embed_size=3", "model.hidden_size=4", "trainer.batch_size=2", "trainer.num_steps=2"]
    return ["data=text", "data.path=text", "tokenizer=word", "trainer.num_threads=1", *sizes]


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_language_model_stands_beside_what_model_ngram_reaches(
    text: list[str], split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lmtrain.train(*text, f"trainer.final_split={split}", "hydra.run.dir=run")
    shown = capsys.readouterr().out
    table = shown[shown.index("Beside the simplest models there are:") :].splitlines()
    assert table[1].split() == ["perplexity", split]
    assert [line.rsplit(maxsplit=1)[0].strip() for line in table[2:5]] == [THIS, "frequencies of tokens", "Kneser-Ney, order 5"]
    assert f"perplexity {table[2].split()[-1]} ·" in shown, "that of the final test"
    lmtrain.train("model=ngram", "model.order=5", *text[:3], f"trainer.final_split={split}", "hydra.run.dir=counted")
    counted = capsys.readouterr().out
    assert f"perplexity {table[4].split()[-1]} ·" in counted, "the same number as the model alone"
    assert "Beside" not in counted, "it is one of them"
    assert float(table[4].split()[-1]) < float(table[3].split()[-1]) < 9
    assert table[5].strip() == f"On {split} this model is no better than Kneser-Ney, order 5."
    compared = json.loads(Path("run/run.json").read_text(encoding="utf-8"))["sessions"][-1]["compared"]
    assert compared["values"][THIS][split] == pytest.approx(float(table[2].split()[-1]), abs=0.005)


def test_odd_counts_are_no_warning_beside_another_model(text: list[str]) -> None:
    """On the command line, whose log makes messages printable before others see them."""
    command = [sys.executable, "-m", "lmtrain", *text, "hydra.run.dir=run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Kneser-Ney, order 5" in ended.stdout
    assert "give no discounts" not in ended.stdout + ended.stderr


def test_nothing_is_counted_beside_a_long_text_or_if_it_is_not_wanted(text: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(wanted: str) -> object:
        task = open_task(read_settings([*text, f"trainer.baselines={wanted}"]), torch.device("cpu"))
        return task.comparison(task.learner().model)

    assert compared("null") is not None
    assert compared("false") is None
    monkeypatch.setattr(language_baselines, "MAX_TOKENS", 100)
    assert compared("null") is None
    assert compared("true") is not None


def test_that_there_is_no_memory_to_count_them_ends_no_training_that_did_not_ask_for_it(
    text: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(language_baselines.NgramModel, "finish", fail)
    run = lmtrain.train(*text, "hydra.run.dir=run")
    assert run.model.perplexity(split="test").perplexity > 1
    assert "no memory left to count them" in caplog.text
    with pytest.raises(lmtrain.UserError, match="memory"):
        lmtrain.train(*text, "trainer.baselines=true", "hydra.run.dir=asked")
