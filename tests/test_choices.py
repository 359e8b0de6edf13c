"""Closed lists stand once, in `choices`: what stands behind each name is complete; and rules say the same at both doors."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

import lmtrain.config as config
from lmtrain import choices, rules, trained
from lmtrain.data import characters, corpus, kinds, shuffled
from lmtrain.errors import SettingsError
from lmtrain.models.recurrent import CELLS
from lmtrain.ops import activations, backends, elman, native
from lmtrain.ops.native import ngrams
from lmtrain.settings import reading
from lmtrain.training.optimizer import make_optimizer

OPS = Path(native.__file__).parent

TABLES: dict[str, tuple[type, Collection[str]]] = {
    "cells": (choices.Cell, CELLS),
    "activations": (choices.Activation, activations.ACTIVATIONS),
    "non-linearities of elman": (choices.Nonlinearity, elman.NONLINEARITIES),
    "the same in place": (choices.Nonlinearity, elman.IN_PLACE),
    "their derivatives": (choices.Nonlinearity, elman.DERIVATIVES),
    "backends": (choices.Backend, backends.NAMES),
    "tokenizers": (choices.TokenizerName, kinds.KINDS),
    "forms of Unicode": (choices.Normalization, ("none", *characters.FORMS)),
    "splits": (choices.SplitWay, typing.get_args(typing.get_type_hints(corpus.load_corpus)["split"])),
    "shuffled splits": (choices.SplitWay, ("contiguous", *typing.get_args(shuffled.Units))),
    "optimisers": (choices.OptimizerName, rules.OPTIONS),
    "precisions": (choices.Precision, ("auto", *typing.get_args(trained.Precision))),
}


@pytest.mark.parametrize("table", TABLES)
def test_what_stands_behind_the_names_of_a_list_is_complete(table: str) -> None:
    choice, names = TABLES[table]
    assert tuple(names) == tuple(getattr(choice, "__members__"))


@pytest.mark.parametrize(("choice", "file", "kind"), [
    (choices.StatePolicy, "ngrams.h", "Policy"), (choices.Nonlinearity, "elman.h", "Nonlinearity"),
])  # fmt: skip
def test_an_enumeration_in_c_has_the_order_of_the_list(choice: type, file: str, kind: str) -> None:
    found = re.search(rf"enum (?:class )?{kind}[^{{]*{{([^}}]*)}}", (OPS / file).read_text(encoding="utf-8"))
    assert found, f"{file} has no enumeration {kind}"
    assert found[1].lower().replace(" ", "").split(",") == list(getattr(choice, "__members__"))


def test_every_policy_of_the_compiled_code_is_one_of_the_list() -> None:
    assert choices.names(choices.StatePolicy) == ngrams.POLICIES == tuple(policy.value for policy in choices.StatePolicy)


def test_the_defaults_of_optimisers_stand_once() -> None:
    parameters = inspect.signature(make_optimizer).parameters
    for option, value in dataclasses.asdict(rules.OptimizerOptions()).items():
        assert parameters[option].default == value == getattr(config.OptimizerConfig(), option)
    assert {option for options in rules.OPTIONS.values() for option in options} == dataclasses.asdict(
        rules.OptimizerOptions()
    ).keys()


BOTH_DOORS: dict[str, tuple[dict[str, dict[str, object]], Callable[[], object], str]] = {
    "rate": (
        {"optimizer": {"learning_rate": 30.0}}, lambda: make_optimizer("adam", [], learning_rate=30),
        r"is too large for adam\. It divides",
    ),
    "ignored": (
        {"optimizer": {"momentum": 0.5}}, lambda: make_optimizer("adam", [], learning_rate=0.1, momentum=0.5),
        r"momentum=0\.5 would be ignored by adam\. It is read by sgd, rmsprop",
    ),
    "nesterov": (
        {"optimizer": {"name": "sgd", "nesterov": True}},
        lambda: make_optimizer("sgd", [], learning_rate=0.1, nesterov=True), r"nesterov=true was given without momentum",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", BOTH_DOORS)
def test_settings_and_python_refuse_in_the_same_words(rule: str) -> None:
    given, in_python, words = BOTH_DOORS[rule]
    minimal = {"model": {"kind": "recurrent"}, "data": {"kind": "pydocs"}, "schedule": {"kind": "constant"}}
    with pytest.raises(SettingsError, match=words) as typed:
        reading.read_config(minimal | given)
    with pytest.raises(SettingsError) as called:
        in_python()
    said = str(typed.value).lower().replace("optimizer.", "").replace("optimizer=", "name=")
    assert str(called.value).lower() in said


def test_every_mistake_of_an_optimiser_is_said_at_once_under_the_names_of_settings() -> None:
    mapping = {
        "model": {"kind": "recurrent", "embed_size": 384, "tie_weights": True}, "data": {"kind": "pydocs"},
        "schedule": {"kind": "constant"},
        "optimizer": {"name": "sparse_adam", "learning_rate": 2.0, "alpha": 0.5, "l1": 0.1},
    }  # fmt: skip
    with pytest.raises(reading.SettingsProblemsError) as caught:
        reading.read_config(mapping)
    assert len(caught.value.problems) == 3
    words = "optimizer=sparse_adam was given with optimizer.l1=0.1, model.tie_weights=true."
    assert caught.value.problems[2].startswith(words)
