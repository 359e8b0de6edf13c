"""A model as plain facts and tensors that nobody needs this package to understand.

The tensors bear the names that the layers would have in torch.nn:

    embedding.weight                                          nn.Embedding(V, E)
    layers.0.rnn.weight_ih_l0, ..weight_hh_l0, ..bias_ih_l0   nn.LSTM, nn.GRU or nn.RNN, one for each layer
    layers.0.norm_ih.weight, layers.0.norm_hh.weight          the gains of its two layer normalisations
    layers.0.linear.weight, .bias, layers.0.norm.weight       nn.Linear and nn.LayerNorm of a window model's layer
    layers.0.projection.weight, projection.weight             nn.Linear without a bias, behind a layer and before the head
    head.weight, head.bias                                    nn.Linear(D, V); without a weight of its own it is the embedding's
    tail.0.0.weight, tail.0.1.weight, tail.0.1.bias           cluster 0 of an adaptive softmax
    hashed.weight                                             the table of hashed n-grams
    order_2.keys, .log_probs, .log_rests                      n-grams: see `BackoffTable`
    0.embedding.weight                                        of a mixture's first part

The facts say how they are put together; `script.py` and `onnx_graph.py` read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmtrain.data.tokenizer import Tokenizer, WordTokenizer
from lmtrain.errors import CheckpointError, SettingsError
from lmtrain.models.base import LanguageModel, NeuralLanguageModel
from lmtrain.models.direct import DirectNgramHead, DirectNgramModel
from lmtrain.models.dropout import zoneout_weights
from lmtrain.models.heads import AdaptiveSoftmax, FullSoftmax, Head, SampledSoftmax
from lmtrain.models.mixture import Mixture
from lmtrain.models.ngram import NgramModel
from lmtrain.models.recurrent import CELLS, ElmanLayer, GRULayer, LSTMLayer, RecurrentLanguageModel, RecurrentLayer
from lmtrain.models.window import WindowLanguageModel
from lmtrain.ops.activations import GATED

Facts = dict[str, Any]
Weights = dict[str, Tensor]

KNOWN_CELLS: dict[type[RecurrentLayer], str] = {ElmanLayer: "elman", GRULayer: "gru", LSTMLayer: "lstm"}
"""The cells whose equations `script.py` and `onnx_layers.py` hold, by their layers; a subclass computes something else."""
KNOWN_TOKENS = ("byte", "char", "word", "subword")
"""The kinds of tokens for which `script.py` has the way from text and back."""


@dataclass(frozen=True)
class Plain:
    """What a model is made of: `facts` that JSON can hold, and tensors on the CPU."""

    facts: Facts
    weights: Weights

    def parts(self) -> list[Plain]:
        """The models of a mixture; none of any other."""
        return [
            Plain(part, {n.partition(".")[2]: w for n, w in self.weights.items() if n.startswith(f"{number}.")})
            for number, part in enumerate(self.facts.get("parts", []))
        ]

    def kinds(self) -> set[str]:
        """What occurs in it: kinds of models and cells, and "network", "hashed", "adaptive"."""
        own = {self.facts["kind"], self.facts.get("cell", "")}
        own |= {"network"} if self.facts["kind"] in ("window", "recurrent") else set()
        own |= {name for name in ("hashed", "adaptive") if self.facts.get({"hashed": "hashed_order"}.get(name, "cutoffs"))}
        return own.union(*(part.kinds() for part in self.parts())) - {""}


def plain(model: LanguageModel) -> Plain:
    """The facts and weights of any language model. CheckpointError where its weights are not finite."""
    facts: Facts = {"state_policy": model.state_policy.value, "vocab_size": model.vocab_size}
    match model:
        case Mixture():
            parts = [plain(part) for part in model.models]
            made = facts | {"kind": "mixture", "weights": model.weights, "parts": [part.facts for part in parts]}
            made |= {"eos_id": parts[0].facts["eos_id"], "start": [], "history": 1, "state_sizes": []}
            return Plain(made, {f"{i}.{name}": w for i, part in enumerate(parts) for name, w in part.weights.items()})
        case NgramModel():
            facts |= {"kind": "ngram", "eos_id": model.eos_id, "order": model.order, "start": [], "state_sizes": []}
            facts |= {"history": max(1, model.order - 1), "interpolates": model.smoothing != "add_k"}
            return Plain(facts | {"num_ngrams": [len(keys) for keys in model.table.keys]}, model.table.tensors())
        case NeuralLanguageModel():
            weights: Weights = {}
            facts = _network(model, facts | {"eos_id": model.eos_id}, weights)
            weights = {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
            _check_finite(weights)
            return Plain(facts, weights)
    raise _unknown("A model", type(model).__name__, "networks, n-grams and mixtures")


def _unknown(what: str, name: str, known: str) -> SettingsError:
    """Refuses a class that somebody has added: what is written for another one would be wrong."""
    return SettingsError(
        f"{what} of the kind {name} cannot be exported.", f"`export` knows {known}.",
        "Write its equations in export/script.py and export/onnx_layers.py, and name it in export/plain.py, as "
        "ops/README.md says of cells.",
    )  # fmt: skip


def _network(model: NeuralLanguageModel, facts: Facts, weights: Weights) -> Facts:
    order, head = 0, model.head
    if isinstance(model, DirectNgramModel):
        assert isinstance(head, DirectNgramHead)
        weights["hashed.weight"] = head.table
        order, head, model = model.order, head.softmax, model.inner
    weights["embedding.weight"] = model.embedding.weight
    facts |= {"hashed_order": order, "state_sizes": []}
    needed = 1
    match model:
        case RecurrentLanguageModel():
            facts |= _recurrent(model, weights)
        case WindowLanguageModel():
            facts |= _window(model, weights)
            needed = model.context + model.average_span
        case _:
            raise _unknown("A network", type(model).__name__, "recurrent ones and those of a window")
    history = max(needed, order - 1)
    return facts | {"start": [model.eos_id] * history, "history": history} | _head(head, model, weights)


def _recurrent(model: RecurrentLanguageModel, weights: Weights) -> Facts:
    layers, sizes = list[Facts](), list[int]()
    layer: Any  # PyTorch does not say what a list of modules holds
    cell = _cell(model.layers[0])
    for number, layer in enumerate(model.layers):
        own: Weights = {"rnn.weight_ih_l0": layer.weight_input_ZE, "rnn.weight_hh_l0": layer.weight_recurrent_ZH}
        own["rnn.bias_ih_l0"], second_bias = layer.bias_Z, torch.zeros_like(layer.bias_Z)
        if isinstance(layer, GRULayer):  # whose candidate has a bias that the reset gate multiplies
            second_bias[-layer.hidden_size :] = layer.candidate_bias_H.detach()
        own["rnn.bias_hh_l0"] = second_bias
        if layer.norm_input is not None and layer.norm_gain_Z is not None:
            own["norm_ih.weight"], own["norm_hh.weight"] = layer.norm_input.weight, layer.norm_gain_Z
        if layer.projection is not None:
            own["projection.weight"] = layer.projection.weight
        weights |= {f"layers.{number}.{name}": weight for name, weight in own.items()}
        zoneout = float(zoneout_weights((1,), layer.zoneout, None, training=False)) if layer.zoneout else 0.0
        layers.append({"hidden_size": layer.hidden_size, "residual": layer.residual, "zoneout": zoneout, "weights": [*own]})
        sizes += [layer.hidden_size] * layer.num_states
    nonlinearity = layer.nonlinearity if isinstance(layer, ElmanLayer) else "tanh"
    return {"kind": "recurrent", "cell": cell, "nonlinearity": nonlinearity, "layers": layers, "state_sizes": sizes}


def _cell(layer: Any) -> str:
    """The name of a layer's cell. SettingsError for one that is not known here."""
    if type(layer) not in KNOWN_CELLS:
        name = next((name for name, kind in CELLS.items() if type(layer) is kind), type(layer).__name__)
        raise _unknown("A cell", name, f"the cells {', '.join(KNOWN_CELLS.values())}")
    return KNOWN_CELLS[type(layer)]


def _window(model: WindowLanguageModel, weights: Weights) -> Facts:
    layers = list[Facts]()
    layer: Any
    for number, layer in enumerate(model.layers):
        own: Weights = {"linear.weight": layer.linear.weight, "linear.bias": layer.linear.bias}
        if layer.norm is not None:
            own |= {"norm.weight": layer.norm.weight, "norm.bias": layer.norm.bias}
        if layer.slope is not None:
            own["slope"] = layer.slope
        weights |= {f"layers.{number}.{name}": weight for name, weight in own.items()}
        size = layer.linear.out_features // (2 if layer.activation in GATED else 1)
        layers.append({"hidden_size": size, "residual": layer.residual, "weights": [*own]})
    if model.average_weights_AS is not None:
        weights["averages.weight"] = model.average_weights_AS
    facts = {"kind": "window", "context": model.context, "average_span": model.average_span, "direct": model.direct}
    return facts | {"activation": layer.activation, "layers": layers}


def _head(head: Head, model: NeuralLanguageModel, weights: Weights) -> Facts:
    match head:
        case FullSoftmax() | SampledSoftmax():
            if head.projection is not None:
                weights["projection.weight"] = head.projection.weight
            if head.weight_VE is not model.embedding.weight:
                weights["head.weight"] = head.weight_VE
            weights["head.bias"] = head.bias_V
            return {"cutoffs": []}
        case AdaptiveSoftmax():
            if head.projection is not None:
                weights["projection.weight"] = head.projection.weight
            (weights["head.weight"], *tails), (weights["head.bias"], *biases) = head.parameters_by_cluster()
            for k, (tail, bias) in enumerate(zip(tails, biases, strict=True)):
                if head.tied_weight is None:
                    weights[f"tail.{k}.0.weight"] = head.projections[k].get_parameter("weight")
                weights[f"tail.{k}.1.weight"], weights[f"tail.{k}.1.bias"] = tail, bias
            return {"cutoffs": head.cutoffs}
    raise _unknown("A head", type(head).__name__, "the full, the sampled and the adaptive softmax")


def _check_finite(weights: Weights) -> None:
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"The weights {name} hold numbers that are not finite.", "A model that is exported must give probabilities.",
                "Name an earlier checkpoint, or train again with a lower learning rate or stronger clipping.",
            )  # fmt: skip


def describe(tokenizer: Tokenizer) -> Facts:
    """What text becomes, for config.json; the file of subwords is written beside it."""
    kind = "subword" if tokenizer.subword is not None else tokenizer.name
    if kind not in KNOWN_TOKENS:
        raise _unknown("A tokenizer", kind, f"{', '.join(KNOWN_TOKENS)} tokens")
    form, lower, _ = tokenizer.normalize.replace("none", "").upper().partition("LOWER")
    steps = [form.strip("_")] * bool(form) + ["lower", form.strip("_")][: 1 + bool(form)] * bool(lower)
    spelt = {}
    if isinstance(tokenizer, WordTokenizer) and tokenizer.rare is not None:
        spelt = {"spelling": {"words": tokenizer.rare, "nats_per_word": tokenizer.spelling.nats_per_word}}
    return {
        "kind": kind, "eos_id": tokenizer.eos_id, "unk_id": tokenizer.unk_id, "normalize": tokenizer.normalize,
        "separators": tokenizer.separators, "ends_last_line": tokenizer.kind.ends_last_line, "tokens": tokenizer.tokens,
        "reverse": tokenizer.reverse, "normalize_steps": steps, **spelt,
    }  # fmt: skip
