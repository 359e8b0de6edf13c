"""From settings to objects: the only file that turns one into the other, each choice one `match`.

Nothing else in the package asks which kind of model, optimiser or schedule it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lmtrain.config as config
from lmtrain.data.corpus import Corpus, load_corpus
from lmtrain.data.stream import Stream
from lmtrain.data.tokenizer import Tokenizer, load_tokenizer
from lmtrain.errors import CheckpointError, SettingsError
from lmtrain.models.base import LanguageModel, NeuralLanguageModel, StatePolicy
from lmtrain.models.heads import AdaptiveSoftmax, FullSoftmax, Head, SampledSoftmax
from lmtrain.models.mixture import Mixture
from lmtrain.models.ngram import NgramModel
from lmtrain.models.recurrent import ElmanLayer, GRULayer, LSTMLayer, RecurrentLanguageModel, RecurrentLayer
from lmtrain.models.window import WindowLanguageModel
from lmtrain.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from lmtrain.training.learner import CountLearner, GradientLearner, Learner, load_weights


# ---- models


def build_model(
    settings: config.ModelConfig, *, vocab_size: int, eos_id: int, seed: int = 0, sparse_embeddings: bool = False
) -> LanguageModel:
    """A new model with freshly drawn weights (from `seed` alone; the global generator stays as it was)."""
    policy = StatePolicy[settings.state_policy.name]
    match settings:
        case config.NgramConfig():
            return NgramModel(
                order=settings.order, vocab_size=vocab_size, eos_id=eos_id, smoothing=settings.smoothing.name,
                add_k=settings.add_k, state_policy=policy,
            )  # fmt: skip
        case config.NeuralConfig():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return _build_neural(settings, policy, vocab_size, eos_id, sparse_embeddings)
    raise AssertionError(f"no model for {type(settings).__name__}")


def _build_neural(
    settings: config.NeuralConfig, policy: StatePolicy, vocab_size: int, eos_id: int, sparse: bool
) -> NeuralLanguageModel:
    embedding = nn.Embedding(vocab_size, settings.embed_size, sparse=sparse)
    nn.init.uniform_(embedding.weight, -settings.init_range, settings.init_range)
    common: dict[str, Any] = {
        "embedding": embedding,
        "eos_id": eos_id,
        "state_policy": policy,
        "input_dropout": _or(settings.input_dropout, settings.dropout),
        "hidden_dropout": _or(settings.hidden_dropout, settings.dropout),
        "output_dropout": _or(settings.output_dropout, settings.dropout),
        "embedding_dropout": settings.embedding_dropout,
        "locked_dropout": settings.locked_dropout,
        "activation_penalty": settings.activation_penalty,
        "temporal_penalty": settings.temporal_penalty,
    }
    model: NeuralLanguageModel
    match settings:
        case config.RecurrentConfig():
            layers = _build_recurrent_layers(settings)
            head = _build_head(settings, layers[-1].output_size, vocab_size, embedding)
            model = RecurrentLanguageModel(head=head, layers=layers, **common)
        case config.WindowConfig():
            size = settings.hidden_size + (settings.context * settings.embed_size if settings.direct else 0)
            model = WindowLanguageModel(
                head=_build_head(settings, size, vocab_size, embedding), context=settings.context,
                hidden_size=settings.hidden_size, num_layers=settings.num_layers, activation=settings.activation.name,
                layer_norm=settings.layer_norm, residual=settings.residual, direct=settings.direct,
                num_averages=settings.num_averages, average_span=settings.average_span, **common,
            )  # fmt: skip
        case _:
            raise AssertionError(f"no model for {type(settings).__name__}")
    for layer in model.layers:
        layer.initialise(settings.init.name, settings.init_range)
    return model


def _build_recurrent_layers(settings: config.RecurrentConfig) -> list[RecurrentLayer]:
    sizes = settings.hidden_sizes or [settings.hidden_size] * settings.num_layers
    cells: dict[config.Cell, Callable[..., RecurrentLayer]] = {
        config.Cell.elman: ElmanLayer,
        config.Cell.gru: GRULayer,
        config.Cell.lstm: LSTMLayer,
    }
    own: dict[str, Any] = {}
    match settings.cell:
        case config.Cell.elman:
            own = {"nonlinearity": settings.nonlinearity.name}
        case config.Cell.lstm:
            own = {"forget_bias": settings.forget_bias}
    layers: list[RecurrentLayer] = []
    for size in sizes:
        layers.append(
            cells[settings.cell](
                layers[-1].output_size if layers else settings.embed_size, size,
                projection_size=settings.projection_size, residual=settings.residual, layer_norm=settings.layer_norm,
                weight_drop=settings.weight_drop, zoneout=settings.zoneout, backend=settings.backend.name, **own,
            )
        )  # fmt: skip
    return layers


def _build_head(settings: config.NeuralConfig, input_size: int, vocab_size: int, embedding: nn.Embedding) -> Head:
    tied = embedding.weight if settings.tie_weights else None
    projection_size = settings.embed_size if settings.project else 0
    match settings.head:
        case config.HeadName.full:
            return FullSoftmax(input_size, vocab_size, tied_weight=tied, projection_size=projection_size,
                               init_range=settings.init_range)  # fmt: skip
        case config.HeadName.sampled:
            return SampledSoftmax(input_size, vocab_size, tied_weight=tied, projection_size=projection_size,
                                  num_samples=settings.num_samples, proposal=settings.proposal.name,
                                  init_range=settings.init_range)  # fmt: skip
        case config.HeadName.adaptive:
            cutoffs = [cutoff for cutoff in settings.cutoffs if cutoff < vocab_size]
            return AdaptiveSoftmax(input_size, vocab_size, cutoffs=cutoffs, div_value=settings.div_value, tied_weight=tied)
    raise AssertionError(settings.head)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


# ---- data


def build_corpus(data: config.DataConfig, tokenizer: config.TokenizerConfig) -> Corpus:
    """The corpus as token ids, from its cache where it is there."""
    raise NotImplementedError


def build_stream(settings: config.TrainerConfig, corpus: Corpus, model: config.ModelConfig) -> Stream:
    """The training split in B streams; counting takes one stream of long chunks, once, in order."""
    raise NotImplementedError


# ---- devices and precision


def choose_device(settings: config.TrainerConfig) -> torch.device:
    """The device asked for. Raises SettingsError where there is no GPU but one was asked for."""
    if settings.device is config.Device.cuda and not torch.cuda.is_available():
        raise SettingsError(
            f"trainer.device=cuda was given, but this PyTorch ({torch.__version__}) finds no CUDA device.",
            "Allowed are cpu, cuda (where there is one) and auto.",
            "Type trainer.device=auto to take what there is.",
        )
    if settings.device is config.Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device.name)


def choose_precision(settings: config.TrainerConfig, device: torch.device) -> torch.dtype:
    """The type of matrix products: `auto` takes bfloat16 where the device has instructions for it."""
    if settings.precision is config.Precision.auto:
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    return torch.bfloat16 if settings.precision is config.Precision.bfloat16 else torch.float32


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones there, not merely emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, precision: torch.dtype) -> Callable[[], AbstractContextManager[Any]]:
    """Opens the precision under which a forward pass runs."""
    if precision is torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=precision)
