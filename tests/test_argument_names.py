"""Errors name what was given: from Python its arguments, on the command line what was typed there."""

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain.config as config
import lmtrain.errors
from lmtrain.build import build_corpus, build_learner, build_model, build_stream
from lmtrain.data.stream import Stream
from lmtrain.data.tokenizer import learn_tokenizer
from lmtrain.errors import DataError, SettingsError, UserError, as_typed
from lmtrain.inference.drawing import SampleSettings, draw
from lmtrain.inference.dynamic import Adaptive, Cache, Dynamic
from lmtrain.models.ngram import NgramModel
from lmtrain.rules import MAX_TABLE_SIZE
from lmtrain.settings.reading import read_config
from lmtrain.training.optimizer import make_optimizer

FROM_PYTHON: dict[str, Callable[[], object]] = {
    "order=12 was given": lambda: NgramModel(vocab_size=5, eos_id=0, order=12),
    "smoothing=none was given": lambda: NgramModel(vocab_size=5, eos_id=0, smoothing="none"),
    "add_k=0 was given": lambda: NgramModel(vocab_size=5, eos_id=0, add_k=0),
    "top_p is 2": lambda: SampleSettings(top_p=2),
    "window is 0": lambda: Cache(window=0),
    "segment_length is 0": lambda: Dynamic(rate=0.1, segment_length=0),
    "temperature is 0": lambda: Adaptive(temperature=0),
    "allow_unk=True": lambda: draw(torch.tensor([0.0, -torch.inf]), SampleSettings(), 0.5, excluded=0),
    "vocab_size=2 leaves": lambda: learn_tokenizer("word", ["a"], vocab_size=2),
    "min_count=2 and vocab_size=0": lambda: learn_tokenizer("byte", ["a"], min_count=2),
    "learning_rate=30 is": lambda: make_optimizer("adam", [], learning_rate=30),
    "Type batch_size=3 or less, or chunk_length=1.": lambda: Stream(np.arange(9), batch_size=4, chunk_length=2, eos_id=0),
}  # fmt: skip


@pytest.mark.parametrize("words", FROM_PYTHON)
def test_from_python_errors_name_arguments(words: str) -> None:
    with pytest.raises(UserError) as caught:
        FROM_PYTHON[words]()
    assert words in str(caught.value)
    assert "--" not in str(caught.value)
    assert not re.search(r"(model|tokenizer|trainer|optimizer)[.=]", str(caught.value))


def test_models_that_are_built_from_settings_name_settings() -> None:
    with pytest.raises(
        SettingsError, match=r"^model\.order=12 was given\. Allowed is 1 to 10\. Type model\.order=5, the usual"
    ):
        build_model(config.NgramConfig(order=12), vocab_size=5, eos_id=0)
    settings = config.RecurrentConfig(embed_size=3, hidden_size=3, maxent_order=3, maxent_table=MAX_TABLE_SIZE + 1)
    words = (
        rf"^model\.maxent_order=3 and model\.maxent_table={MAX_TABLE_SIZE + 1} were given\..*Type for example model\.maxent_t"
    )
    with pytest.raises(SettingsError, match=words) as caught:
        build_model(settings, vocab_size=5, eos_id=0)
    assert caught.value.given.startswith("model.maxent_order=3")


def test_what_is_built_beside_the_model_names_settings(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b\n" * 20)
    neural = {"kind": "recurrent", "embed_size": 3, "hidden_size": 3}
    text = {"kind": "text", "path": str(tmp_path / "text.txt"), "cache_dir": str(tmp_path)}
    given = {"model": neural, "data": text, "schedule": {"kind": "constant"}, "trainer": {"num_steps": 1}}
    settings = read_config(given)
    corpus = build_corpus(settings.data, settings.tokenizer)
    with pytest.raises(
        DataError, match=r"too few for trainer\.batch_size=64 and trainer\.chunk_length=35.*Type trainer\.batch_s"
    ):
        build_stream(settings.trainer, corpus, settings.model)
    settings.tokenizer.vocab_size = 1
    with pytest.raises(SettingsError, match=r"^tokenizer\.vocab_size=1 leaves .* Type for example tokenizer\.vocab_size=10000"):
        build_corpus(settings.data, settings.tokenizer)
    settings.optimizer.learning_rate = 30
    model = build_model(settings.model, vocab_size=corpus.tokenizer.vocab_size, eos_id=0)
    with pytest.raises(SettingsError, match=r"^optimizer\.learning_rate=30 is too large.*Type optimizer\.learning_rate=0"):
        build_learner(settings, model, corpus, torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["sample", "--num-samples", "0"],
            "--num-samples is 0. Allowed are whole numbers of at least 1. Type for example --num-s",
        ),
        (["sample", "--min-p", "-1"], "--min-p is -1.0. Allowed are numbers from 0 to 1. Type for example --min-p 0.05."),
        (["sample", "--stop", ""], "--stop is an empty string."),
        (["evaluate", "--temperature", "0"], "--temperature is 0.0."),
        (["evaluate", "--cache", "9", "--cache-weight", "1"], "--cache-weight is 1.0. Allowed are numbers from 0 to below 1."),
        (["evaluate", "--dynamic", "sgd", "--dynamic-decay", "2"], "Type for example --dynamic-decay 0.008."),
        (["evaluate", "--dynamic", "sgd", "--streams", "2"], "Type --streams 1."),
    ],
    ids=" ".join,
)
def test_on_the_command_line_errors_name_what_is_typed(
    options: list[str], words: str, place: Path, call: Callable[..., Any]
) -> None:
    command, *rest = options
    ended = call(command, "run", *rest)
    assert ended.code == 2
    assert words in ended.err


def test_a_switch_is_named_alone_and_other_words_stay() -> None:
    with pytest.raises(SettingsError) as caught, as_typed(order="--order ", allow="--allow"):  # noqa: SIM117
        with as_typed(order="model.order="):
            raise SettingsError("order=3, border=3 and my.order=3.", "order is in order.", "Type allow=True or --order=4.")
    assert str(caught.value) == "model.order=3, border=3 and my.order=3. model.order is in order. Type --allow or --order=4."


def test_the_docstring_runs() -> None:
    result = doctest.testmod(lmtrain.errors, extraglobs={"SettingsError": SettingsError})
    assert (result.attempted, result.failed) == (1, 0)
