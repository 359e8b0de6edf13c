"""Small models of every kind for the tests of this directory: drawn at random, never trained, with a tokenizer of words."""

from dataclasses import fields
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import Tokenizer, learn_tokenizer
from lmtrain.errors import UserError
from lmtrain.models.base import StatePolicy
from lmtrain.models.mixture import Mixture
from lmtrain.models.ngram import NgramModel
from lmtrain.saved import Trained
from lmtrain.settings import reading
from lmtrain.trained import Model

CHECKPOINT = next((Path(__file__).parents[1] / "fixtures" / "saved" / "lstm" / "checkpoints").glob("step-00000008-*"))
TEXT = "the cat sat on a mat\n\nand then ran away\nthe mat ran\n\n\na dog sat\n"
WORDS = learn_tokenizer("word", [TEXT.replace("dog", "cat")])
SMALL: dict[str, Any] = {"embed_size": 6, "hidden_size": 6, "init": "uniform", "init_range": 0.7}
MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "recurrent", "num_layers": 2, "residual": True},
    "lstm line": {"kind": "recurrent", "state_policy": "line", "projection_size": 6, "residual": True},
    "lstm norm": {"kind": "recurrent", "layer_norm": True, "zoneout": 0.3, "state_policy": "document", "weight_drop": 0.5},
    "lstm tied": {"kind": "recurrent", "tie_weights": True, "hidden_sizes": [5, 7], "project": True, "dropout": 0.5},
    "gru": {"kind": "recurrent", "cell": "gru", "head": "sampled", "num_samples": 3, "zoneout": 0.2},
    "gru norm": {"kind": "recurrent", "cell": "gru", "layer_norm": True, "head": "adaptive", "cutoffs": [3, 7],
                 "div_value": 2.0},
    "gru tied": {"kind": "recurrent", "cell": "gru", "head": "adaptive", "cutoffs": [2, 6], "tie_weights": True},
    "elman": {"kind": "recurrent", "cell": "elman", "nonlinearity": "relu", "maxent_order": 4, "maxent_table": 1024},
    "elman norm": {"kind": "recurrent", "cell": "elman", "nonlinearity": "sigmoid", "layer_norm": True, "num_layers": 2},
    "elman none": {"kind": "recurrent", "cell": "elman", "nonlinearity": "identity", "maxent_order": 2, "maxent_table": 1024,
                   "state_policy": "document"},
    "window": {"kind": "window", "context": 3, "direct": True, "num_averages": 2, "average_span": 4, "maxent_order": 3,
               "maxent_table": 1024, "state_policy": "line"},
    "window deep": {"kind": "window", "context": 1, "num_layers": 3, "residual": True, "layer_norm": True,
                    "activation": "swish", "state_policy": "document"},
    **{f"window {name}": {"kind": "window", "context": 2, "activation": name, "head": "adaptive", "cutoffs": [5]}
       for name in config.Activation.__members__ if name not in ("tanh", "swish")},
}  # fmt: skip


def model(settings: dict[str, Any], tokenizer: Tokenizer = WORDS) -> Any:
    """A model drawn from a seed, with biases that are not zero."""
    problems: list[str] = []
    read: Any = reading.read_settings(config.ModelConfig, SMALL | settings, "model", problems)
    assert not problems, problems
    made: Any = build_model(read, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, seed=1)
    for name, weight in made.named_parameters():
        if "bias" in name or "table" in name or "norm" in name:
            weight.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(len(name)))
    return made


def counts(tokenizer: Tokenizer = WORDS, **settings: Any) -> NgramModel:
    """An n-gram model of TEXT."""
    made = NgramModel(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, **settings)
    made.count(tokenizer.encode(TEXT))
    made.finish()
    return made


def opened(network: Any, tokenizer: Tokenizer = WORDS) -> Model:
    """As `lmtrain.load` gives it, with TEXT as its validation text."""
    ids = np.asarray(tokenizer.encode(TEXT))
    texts = {"valid": EncodedText(ids, len(TEXT), len(TEXT.encode()))}
    return Model(Trained(CHECKPOINT, 8, network, tokenizer, texts, {"settings": {"kind": "any"}}))


def every_kind() -> dict[str, Model]:
    """A model of each kind by name."""
    made = {name: opened(model(settings)) for name, settings in MODELS.items()}
    made |= {
        f"ngram {smoothing} {order} {policy.name}": opened(counts(order=order, smoothing=smoothing, state_policy=policy))
        for smoothing, order, policy in (
            ("kneser_ney", 4, StatePolicy.line), ("kneser_ney", 1, StatePolicy.carry),
            ("add_k", 3, StatePolicy.document), ("maximum_likelihood", 2, StatePolicy.carry),
        )
    }  # fmt: skip
    parts = [made["lstm line"].network, made["ngram kneser_ney 4 line"].network, made["window"].network]
    made["mixture"] = opened(Mixture([Mixture(parts[:2], [0.25, 0.75]), parts[2]], [0.6, 0.4]))
    names = ("lstm tied", "lstm norm", "gru", "gru tied", "elman", "window", "window swiglu", "ngram add_k 3 document")
    made["mixture of all"] = opened(Mixture([made[name].network for name in names], [0.125] * len(names)))
    return made


def drawn(random: Random, tokenizer: Tokenizer = WORDS, *, ngrams: bool = True) -> tuple[Any, Any]:
    """A model of settings drawn at random from all that change what it predicts, and these settings; mixtures, too."""
    size = random.choice([1, 1, 1, 2, 3, 4])
    parts: list[tuple[Any, Any]] = []
    while len(parts) < size:
        try:
            parts.append(_drawn(random, tokenizer, ngrams))
        except (UserError, ValueError, AssertionError):  # settings that do not go together
            continue
    if size == 1:
        return parts[0]
    shares = [random.choice((0, 1, 2, 5)) for _ in range(size - 1)] + [1]
    weights = [share / sum(shares) for share in shares]
    made = Mixture([part for part, _ in parts], weights), (weights, [settings for _, settings in parts])
    return made if random.random() < 0.8 else (Mixture([made[0], parts[0][0]], [0.5, 0.5]), made[1])


def _drawn(random: Random, tokenizer: Tokenizer, ngrams: bool) -> tuple[Any, Any]:
    """One model that is no mixture. Raises what settings that do not go together raise."""
    pick, chance = random.choice, random.random
    policy = pick(["carry", "line", "document"])
    kind = pick(["recurrent", "window", "ngram"][: 2 + ngrams])
    if kind == "ngram":
        settings: dict[str, Any] = {
            "order": random.randint(1, 5), "smoothing": pick(["kneser_ney", "add_k", "maximum_likelihood"]),
            "prune": pick([(), (), (0, 1)]),
        }  # fmt: skip
        return counts(tokenizer, **settings, state_policy=StatePolicy[policy]), settings
    size = tokenizer.vocab_size
    settings = {
        "kind": kind, "state_policy": policy, "embed_size": pick([1, 3, 6]), "hidden_size": pick([1, 4, 6]),
        "num_layers": pick([1, 1, 2, 3]), "layer_norm": chance() < 0.3, "residual": chance() < 0.3,
        "tie_weights": chance() < 0.3, "project": chance() < 0.3, "dropout": pick([0.0, 0.5]),
        "head": pick(["full", "full", "adaptive", "sampled"]), "div_value": pick([1.0, 2.0, 4.0]),
        "cutoffs": sorted(random.sample(range(1, size), pick([1, 2, 3]))), "num_samples": 3,
        "maxent_order": pick([0, 0, 2, 3, 6]), "maxent_table": 1024,
    }  # fmt: skip
    if kind == "recurrent":
        settings |= {
            "cell": pick(["elman", "gru", "lstm"]), "nonlinearity": pick(["tanh", "relu", "sigmoid", "identity"]),
            "zoneout": pick([0.0, 0.0, 0.3]), "projection_size": pick([0, 0, 3, 6]), "weight_drop": pick([0.0, 0.5]),
            "hidden_sizes": pick([[], [], [4, 2], [1, 6, 1]]),
        }  # fmt: skip
    else:
        averages = pick([0, 0, 2])
        settings |= {
            "context": random.randint(1, 5), "activation": pick([*config.Activation.__members__]), "direct": chance() < 0.4,
            "num_averages": averages, "average_span": averages and pick([1, 7]),
        }  # fmt: skip
    known = {field.name for field in fields(config.RecurrentConfig if kind == "recurrent" else config.WindowConfig)} | {"kind"}
    settings = {name: value for name, value in settings.items() if name in known}
    return model(settings, tokenizer), settings


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """What is above, for tests."""
    return SimpleNamespace(
        TEXT=TEXT, WORDS=WORDS, model=model, counts=counts, opened=opened, every_kind=every_kind, drawn=drawn
    )
