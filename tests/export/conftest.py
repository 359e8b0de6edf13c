"""Small models of every kind for the tests of this directory: drawn at random, never trained, with a tokenizer of words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import Tokenizer, learn_tokenizer
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


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """What is above, for tests."""
    return SimpleNamespace(TEXT=TEXT, WORDS=WORDS, model=model, counts=counts, opened=opened, every_kind=every_kind)
