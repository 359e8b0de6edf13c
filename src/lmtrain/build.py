"""From settings to objects: the only file that turns one into the other, each choice one `match`.

Besides it, `config`, `settings/` and `tasks/` (each knows the settings of its own data and models), eight files ask which kind
they hold: `saved` (an ARPA file holds counts, a mixture has parts), `memory` (neural models are estimated, counts are not),
`export/plain` (each leaves the package in a form of its own), `inference/dynamic` (the neural parts of a mixture adapt),
`models/direct` (hashed n-grams need the full softmax), `models/growth` (where new tokens belong), `training/graphed`
(SparseAdam cannot be recorded) and `training/gradient_watch` (gradients are followed through recurrences).
`tests/test_import_floors.py` lists them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lmtrain.config as config
from lmtrain.data.characters import character_of
from lmtrain.data.corpus import Corpus, load_corpus
from lmtrain.data.pydocs import write_pydocs
from lmtrain.data.stream import Stream
from lmtrain.data.subword import read_library_file
from lmtrain.data.tokenizer import Tokenizer, load_tokenizer
from lmtrain.data.vocabulary import read_word_list
from lmtrain.errors import SettingsError, as_typed
from lmtrain.expected import within
from lmtrain.models.base import LanguageModel, NeuralLanguageModel
from lmtrain.models.direct import DirectNgramModel
from lmtrain.models.heads import AdaptiveSoftmax, FullSoftmax, Head, SampledSoftmax
from lmtrain.models.ngram import NgramModel
from lmtrain.models.recurrent import CELLS, RecurrentLanguageModel, RecurrentLayer
from lmtrain.models.window import WindowLanguageModel
from lmtrain.shell import expanded
from lmtrain.training.arithmetic import autocast, has_native_bfloat16
from lmtrain.training.averaging import Averaging, ExponentialAverage, LastWeights, NonMonotonicAverage
from lmtrain.training.checkpoint import believing, load_checkpoint, read_named
from lmtrain.training.graphed import graphed, why_no_graph
from lmtrain.training.learner import CountLearner, GradientLearner, Learner, SequenceLearner
from lmtrain.training.limits import Limits
from lmtrain.training.optimizer import group_parameters, make_optimizer
from lmtrain.training.schedule import Constant, Cosine, Exponential, Linear, OneCycle, Plateau, RangeTest, Schedule, Step

log = logging.getLogger("lmtrain")

COUNT_CHUNK = 1 << 18  # tokens counted in one step


# ---- models


@as_typed(order="model.order=", smoothing="model.smoothing=", add_k="model.add_k=", prune="model.prune=")
def build_model(
    settings: config.LanguageConfig, *, vocab_size: int, eos_id: int, seed: int = 0, sparse_embeddings: bool = False
) -> LanguageModel:
    """A new model with freshly drawn weights (from `seed` alone; the global generator stays as it was)."""
    match settings:
        case config.NgramConfig():
            return NgramModel(
                order=settings.order, vocab_size=vocab_size, eos_id=eos_id, smoothing=settings.smoothing.name,
                add_k=settings.add_k, prune=settings.prune, state_policy=settings.state_policy,
            )  # fmt: skip
        case config.NeuralConfig():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return _build_neural(settings, vocab_size, eos_id, sparse_embeddings)
    raise AssertionError(f"no model for {type(settings).__name__}")


def sparse_gradients(num_tokens: int, vocab_size: int, device: torch.device) -> bool:
    """Whether gradients of word vectors had better name only the rows that a chunk of `num_tokens` uses: see
    `SpreadGradients`. On a GPU, where zeros cost nothing, they would make the host wait."""
    return device.type == "cpu" and num_tokens < vocab_size


def _build_neural(settings: config.NeuralConfig, vocab_size: int, eos_id: int, sparse: bool) -> NeuralLanguageModel:
    embedding = _embedding(vocab_size, settings.embed_size, sparse)
    nn.init.uniform_(embedding.weight, -settings.init_range, settings.init_range)
    dropouts = {
        "input_dropout": settings.input_dropout, "hidden_dropout": settings.hidden_dropout,
        "output_dropout": settings.output_dropout,
    }  # fmt: skip
    common: dict[str, Any] = {
        "embedding": embedding,
        "eos_id": eos_id,
        "state_policy": settings.state_policy,
        **{name: settings.dropout if share is None else share for name, share in dropouts.items()},
        "embedding_dropout": settings.embedding_dropout,
        "locked_dropout": settings.locked_dropout,
        "activation_penalty": settings.activation_penalty,
        "temporal_penalty": settings.temporal_penalty,
    }
    model: NeuralLanguageModel
    match settings:
        case config.RecurrentConfig():
            layers = _build_recurrent_layers(settings)
            head = _build_head(settings, layers[-1].output_size, embedding, sparse)
            model = RecurrentLanguageModel(head=head, layers=layers, **common)
        case config.WindowConfig():
            size = settings.hidden_size + (settings.context * settings.embed_size if settings.direct else 0)
            model = WindowLanguageModel(
                head=_build_head(settings, size, embedding, sparse), context=settings.context,
                hidden_size=settings.hidden_size, num_layers=settings.num_layers, activation=settings.activation.name,
                layer_norm=settings.layer_norm, residual=settings.residual, direct=settings.direct,
                num_averages=settings.num_averages, average_span=settings.average_span, **common,
            )  # fmt: skip
        case _:
            raise AssertionError(f"no model for {type(settings).__name__}")
    model.initialise(settings.init.name, settings.init_range)
    if settings.maxent_order:
        with as_typed(order="model.maxent_order=", table_size="model.maxent_table="):
            return DirectNgramModel(model, order=settings.maxent_order, table_size=settings.maxent_table)
    return model


def _embedding(vocab_size: int, embed_size: int, sparse: bool) -> nn.Embedding:
    """A table whose weights are about to be drawn. On `meta`, PyTorch's own draw would import its compiler for a second."""
    is_meta = torch.get_default_device().type == "meta"
    return nn.Embedding(vocab_size, embed_size, sparse=sparse, _weight=torch.empty(vocab_size, embed_size) if is_meta else None)


def _build_recurrent_layers(settings: config.RecurrentConfig) -> list[RecurrentLayer]:
    sizes = settings.hidden_sizes or [settings.hidden_size] * settings.num_layers
    own: dict[str, Any] = {}
    match settings.cell:
        case config.Cell.elman:
            own = {"nonlinearity": settings.nonlinearity.name}
        case config.Cell.lstm:
            own = {"forget_bias": settings.forget_bias}
    layers: list[RecurrentLayer] = []
    for size in sizes:
        layers.append(
            CELLS[settings.cell.name](
                layers[-1].output_size if layers else settings.embed_size, size,
                projection_size=settings.projection_size, residual=settings.residual, layer_norm=settings.layer_norm,
                weight_drop=settings.weight_drop, zoneout=settings.zoneout, backend=settings.backend.name,
                draw=False, **own,  # the model draws them, when it is whole
            )
        )  # fmt: skip
    return layers


def _build_head(settings: config.NeuralConfig, input_size: int, embedding: nn.Embedding, sparse: bool) -> Head:
    sizes = input_size, embedding.num_embeddings
    weight = embedding.weight if settings.tie_weights else None
    tied: dict[str, Any] = {"tied_weight": weight, "init_range": settings.init_range}
    projected = tied | {"projection_size": settings.embed_size if settings.project else 0}
    match settings.head:
        case config.HeadName.full:
            return FullSoftmax(*sizes, **projected)
        case config.HeadName.sampled:
            samples, proposal = settings.num_samples, settings.proposal.name
            return SampledSoftmax(*sizes, num_samples=samples, proposal=proposal, sparse=sparse, **projected)
        case config.HeadName.adaptive:
            cutoffs = [cutoff for cutoff in settings.cutoffs if cutoff < sizes[1]]  # see `check_cutoffs` of tasks/language
            return AdaptiveSoftmax(*sizes, cutoffs=cutoffs, div_value=settings.div_value, **tied)
    raise AssertionError(settings.head)


# ---- data


@as_typed(min_count="tokenizer.min_count=", vocab_size="tokenizer.vocab_size=")
def build_corpus(
    data: config.DataConfig, tokenizer: config.TokenizerConfig, given: Tokenizer | None = None, add: bool | None = False
) -> Corpus:
    """The corpus as token ids, from its cache where it is there.

    given   the tokenizer of a model to start from; what the text adds to it is treated as `add` says
    """
    return _load_corpus(
        data, tokenizer, given=given, add=add, min_count=tokenizer.min_count, vocab_size=tokenizer.vocab_size,
        vocabulary=_read_vocabulary(tokenizer.vocabulary) if tokenizer.vocabulary and given is None else None,
        spelled=tokenizer.unknown is config.Unknown.spelled,
    )  # fmt: skip


def build_whole_corpus(data: config.DataConfig, tokenizer: config.TokenizerConfig) -> Corpus:
    """The same to look at: every character or word has an id of its own, whatever split it is in and however rare it is."""
    return _load_corpus(data, tokenizer, of_all_splits=True)


def _load_corpus(data: config.DataConfig, tokenizer: config.TokenizerConfig, **vocabulary: Any) -> Corpus:
    assert isinstance(data, config.CorpusConfig)
    path: str | Path
    shards: dict[str, Any]
    match data:
        case config.PydocsConfig():
            path, shards = write_pydocs(expanded(data.cache_dir)), {}
        case config.TextConfig():
            path, shards = data.path, {
                "split": data.split.name, "split_seed": data.split_seed, "field": data.field, "workers": data.workers,
            }  # fmt: skip
        case _:
            raise AssertionError(f"no corpus for {type(data).__name__}")
    form = "_".join([data.normalize.name] * (data.normalize is not config.Normalization.none) + ["lower"] * tokenizer.lowercase)
    return load_corpus(
        path, tokenizer=tokenizer.name.name, reverse=data.reverse,
        subword=read_library_file(tokenizer.path) if tokenizer.path and vocabulary.get("given") is None else None,
        separators="".join(dict.fromkeys(map(character_of, tokenizer.separators))), normalize=form or "none",
        valid_fraction=data.valid_fraction, test_fraction=data.test_fraction, cache_dir=expanded(data.cache_dir),
        **vocabulary, **shards,
    )  # fmt: skip


def _read_vocabulary(path: str) -> list[str]:
    """The words of a list, or those of a run in the order of its ids."""
    if not expanded(path).is_dir():
        return read_word_list(path)
    checkpoint = read_named(expanded(path), "best", lambda found: load_checkpoint(found, ("tokenizer",)))
    with believing(checkpoint.path), within("tokenizer.json: "):
        arrays = {name: tensor.numpy() for name, tensor in checkpoint.tensors.get("tokenizer", {}).items()}
        name = (checkpoint.documents.get("tokenizer") or {}).get("name")
        words = load_tokenizer(checkpoint.documents["tokenizer"], arrays) if name == "word" else None
    if words is None:
        raise SettingsError(
            f"tokenizer.vocabulary={path} is a run of tokenizer={name!s:.40}.", "A vocabulary of words is needed.",
            "Give a run of tokenizer=word, or a file with a word per line.",
        )  # fmt: skip
    return words.tokens


@as_typed(batch_size="trainer.batch_size=", chunk_length="trainer.chunk_length=")
def build_stream(settings: config.TrainerConfig, corpus: Corpus, model: config.ModelConfig) -> Stream:
    """The training split in B streams; counting takes one stream of long chunks, in order, to the last token."""
    ids, eos_id = corpus.train.ids, corpus.tokenizer.eos_id
    match model:
        case config.NgramConfig():
            return Stream(ids, batch_size=1, chunk_length=min(COUNT_CHUNK, len(ids) - 1), eos_id=eos_id,
                          random_offset=False, keep_tail=True)  # fmt: skip
        case _:
            return Stream(
                ids, batch_size=settings.batch_size, chunk_length=settings.chunk_length, eos_id=eos_id, seed=settings.seed,
                random_offset=settings.random_offset, random_chunk_length=settings.random_chunk_length,
            )  # fmt: skip


def build_limits(settings: config.Config) -> Limits:
    """When training ends; counting ends after one pass."""
    if isinstance(settings.model, config.COUNTED):
        return Limits(num_epochs=1)
    trainer = settings.trainer
    return Limits(trainer.num_steps, trainer.num_epochs, trainer.max_seconds, trainer.patience)


# ---- learners


def build_learner(settings: config.Config, model: LanguageModel, corpus: Corpus, device: torch.device) -> Learner:
    """The model with the way in which it learns, on `device`."""
    match model:
        case NgramModel():
            return CountLearner(model)
        case NeuralLanguageModel():
            return _build_sequence_learner(settings, model, corpus, device)
    raise AssertionError(f"no learner for {type(model).__name__}")


def _build_sequence_learner(
    settings: config.Config, model: NeuralLanguageModel, corpus: Corpus, device: torch.device
) -> SequenceLearner:
    trainer, neural = settings.trainer, settings.model
    assert isinstance(neural, config.NeuralConfig)
    counts = torch.from_numpy(corpus.train.counts(corpus.tokenizer.vocab_size))
    if neural.unigram_bias and not settings.start_from:
        model.head.set_unigram_bias(counts)
    model.head.set_proposal(counts)
    model.to(device)
    learner = SequenceLearner(
        model=model,
        **_gradient_parts(settings, model, device, next(n for n, p in model.named_parameters() if p is model.embedding.weight)),
        autocast=autocast(device, choose_precision(trainer, device)),
        overlap=max(0, trainer.backward_length - trainer.chunk_length),
        full_length=trainer.chunk_length if trainer.random_chunk_length else None,
    )
    return _graphed(learner, trainer.cuda_graph, device)


def build_gradient_learner(
    settings: config.Config, model: nn.Module, device: torch.device, vectors: str = ""
) -> GradientLearner:
    """A model of any task, on `device`, with the way in which it learns, in float32; `vectors` names the table of its words."""
    return GradientLearner(model=model, **_gradient_parts(settings, model, device, vectors))


@as_typed(
    name="optimizer=", learning_rate="optimizer.learning_rate=", weight_decay="optimizer.weight_decay=",
    momentum="optimizer.momentum=", nesterov="optimizer.nesterov=",
)  # fmt: skip
def _gradient_parts(settings: config.Config, model: nn.Module, device: torch.device, vectors: str) -> dict[str, Any]:
    """What every learner by gradients has."""
    trainer, optimizer = settings.trainer, settings.optimizer
    return {
        "optimizer": make_optimizer(
            optimizer.name.name, group_parameters(model.named_parameters(), optimizer.weight_decay),
            learning_rate=optimizer.learning_rate, **asdict(optimizer.options),
        ),
        "schedule": build_schedule(settings.schedule, optimizer.learning_rate),
        "averaging": build_averaging(optimizer, model),
        "generator": torch.Generator(device).manual_seed(trainer.seed),
        "learning_rate": optimizer.learning_rate,
        "clip_norm": trainer.clip_norm,
        "l1": optimizer.l1,
        "frozen": {vectors: epochs} if vectors and (epochs := _frozen_epochs(settings.model)) else {},
    }  # fmt: skip


def _frozen_epochs(model: config.ModelConfig) -> float:
    """Before which epoch the word vectors that were given stay as they are."""
    if not isinstance(model, config.EmbeddingsConfig) or not model.embeddings:
        return 0
    return math.inf if model.freeze_embeddings is None else model.freeze_embeddings


def _graphed(learner: SequenceLearner, choice: config.CudaGraph, device: torch.device) -> SequenceLearner:
    """The learner that records its step, where the settings ask for it and it can."""
    if choice is config.CudaGraph.off or (choice is config.CudaGraph.auto and device.type != "cuda"):
        return learner
    reason = f"the device is {device.type}" if device.type != "cuda" else why_no_graph(learner)
    if reason is None:
        return graphed(learner)
    if choice is config.CudaGraph.on:
        raise SettingsError(f"trainer.cuda_graph=on cannot be done: {reason}.", "", "Type trainer.cuda_graph=auto.")
    log.info("Steps are not recorded as a CUDA graph: %s.", reason)
    return learner


SCHEDULES: dict[type[config.ScheduleConfig], type[Schedule]] = {
    config.ConstantConfig: Constant, config.CosineConfig: Cosine, config.LinearConfig: Linear, config.StepConfig: Step,
    config.ExponentialConfig: Exponential, config.PlateauConfig: Plateau, config.OneCycleConfig: OneCycle,
    config.RangeTestConfig: RangeTest,
}  # fmt: skip
"""A schedule takes its settings by their names."""


def build_schedule(settings: config.ScheduleConfig, learning_rate: float) -> Schedule:
    """The learning rate's way through the run, as multiples of `learning_rate`."""
    values = {name: value for name, value in asdict(settings).items() if name != "kind"}
    if isinstance(settings, config.RangeTestConfig):  # whose rates are rates, and no multiples
        values = {name: rate / learning_rate for name, rate in values.items()}
    return SCHEDULES[type(settings)](**values)


def build_averaging(settings: config.OptimizerConfig, model: nn.Module) -> Averaging:
    """Which weights are evaluated: the last ones, or an average of them."""
    match settings.averaging:
        case config.Averaging.none:
            return LastWeights()
        case config.Averaging.ema:
            return ExponentialAverage(model.named_parameters(), settings.ema_decay)
        case config.Averaging.nt_asgd:
            return NonMonotonicAverage(model.named_parameters(), settings.patience)
    raise AssertionError(settings.averaging)


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
