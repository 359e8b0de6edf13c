"""From settings to objects: the only file that turns one into the other, each choice one `match`.

Besides it and `config`, five files ask which kind they hold: `memory` (neural models are estimated, counts are not),
`inference/dynamic` (the neural parts of a mixture adapt), `models/direct` (hashed n-grams need the full softmax),
`training/graphed` (SparseAdam cannot be recorded) and `commands/train` (a range test ends with a drawing).
`tests/test_import_floors.py` lists them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import lmtrain.config as config
from lmtrain.data.corpus import Corpus, load_corpus
from lmtrain.data.overlap import MOST, Hashes
from lmtrain.data.pydocs import write_pydocs
from lmtrain.data.stream import Stream
from lmtrain.data.tokenizer import Tokenizer, WordTokenizer, load_tokenizer
from lmtrain.errors import SettingsError, UserError, as_typed
from lmtrain.expected import ANY_LENGTH, Anything, Each, Like, Number, Whole, agree, compare, joined, shown, within
from lmtrain.models.arpa import read_arpa, write_arpa
from lmtrain.models.base import LanguageModel, NeuralLanguageModel, StatePolicy
from lmtrain.models.direct import DirectNgramModel
from lmtrain.models.heads import AdaptiveSoftmax, FullSoftmax, Head, SampledSoftmax
from lmtrain.models.mixture import Mixture
from lmtrain.models.ngram import NgramModel
from lmtrain.models.recurrent import CELLS, RecurrentLanguageModel, RecurrentLayer
from lmtrain.models.window import WindowLanguageModel
from lmtrain.shell import expanded
from lmtrain.training.averaging import Averaging, ExponentialAverage, LastWeights, NonMonotonicAverage
from lmtrain.training.checkpoint import believing, load_checkpoint, read_named, save_checkpoint
from lmtrain.training.graphed import graphed, why_no_graph
from lmtrain.training.learner import CountLearner, GradientLearner, Learner, expected_weights, load_weights
from lmtrain.training.loop import Limits
from lmtrain.training.optimizer import group_parameters, make_optimizer
from lmtrain.training.schedule import Constant, Cosine, Exponential, Linear, OneCycle, Plateau, RangeTest, Schedule, Step
from lmtrain.training.strict_json import to_json

log = logging.getLogger("lmtrain")

COUNT_CHUNK = 1 << 18  # tokens counted in one step
MAX_COMPONENTS = 256  # of a mixture
TRAIN_START = 100_000  # tokens of the training split that a checkpoint carries


# ---- models


@as_typed(order="model.order=", smoothing="model.smoothing=", add_k="model.add_k=")
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


def sparse_gradients(num_tokens: int, vocab_size: int, device: torch.device) -> bool:
    """Whether gradients of word vectors had better name only the rows that a chunk of `num_tokens` uses: see
    `SpreadGradients`. On a GPU, where zeros cost nothing, they would make the host wait."""
    return device.type == "cpu" and num_tokens < vocab_size


def _build_neural(
    settings: config.NeuralConfig, policy: StatePolicy, vocab_size: int, eos_id: int, sparse: bool
) -> NeuralLanguageModel:
    embedding = _embedding(vocab_size, settings.embed_size, sparse)
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
    if settings.direct_order:
        with as_typed(order="model.direct_order=", table_size="model.direct_table="):
            return DirectNgramModel(model, order=settings.direct_order, table_size=settings.direct_table)
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
    vocab_size = embedding.num_embeddings
    weight = embedding.weight
    assert isinstance(weight, nn.Parameter)
    tied = weight if settings.tie_weights else None
    projection_size = settings.embed_size if settings.project else 0
    match settings.head:
        case config.HeadName.full:
            return FullSoftmax(input_size, vocab_size, tied_weight=tied, projection_size=projection_size,
                               init_range=settings.init_range)  # fmt: skip
        case config.HeadName.sampled:
            return SampledSoftmax(input_size, vocab_size, tied_weight=tied, projection_size=projection_size,
                                  num_samples=settings.num_samples, proposal=settings.proposal.name,
                                  init_range=settings.init_range, sparse=sparse)  # fmt: skip
        case config.HeadName.adaptive:
            cutoffs = [cutoff for cutoff in settings.cutoffs if cutoff < vocab_size]  # see check_cutoffs
            return AdaptiveSoftmax(input_size, vocab_size, cutoffs=cutoffs, div_value=settings.div_value, tied_weight=tied,
                                   init_range=settings.init_range)  # fmt: skip
    raise AssertionError(settings.head)


def check_cutoffs(settings: config.ModelConfig, vocab_size: int) -> None:
    """Warns of cutoffs of an adaptive softmax that the vocabulary does not reach; SettingsError where it reaches none."""
    if not isinstance(settings, config.NeuralConfig) or settings.head is not config.HeadName.adaptive:
        return
    dropped = [cutoff for cutoff in settings.cutoffs if cutoff >= vocab_size]
    if dropped == settings.cutoffs:
        raise SettingsError(
            f"model.cutoffs={settings.cutoffs} leaves no cluster of rare words: the vocabulary has {vocab_size:,} tokens.",
            f"A cutoff lies between 1 and {vocab_size - 1}.",
            f"Type model.head=full, which suits such a size, or for example model.cutoffs=[{vocab_size // 4 or 1}].",
        )
    if dropped:
        log.warning(
            "model.cutoffs=%s: the vocabulary has %s tokens, so %s is left out.",
            settings.cutoffs, f"{vocab_size:,}", ", ".join(map(str, dropped)),
        )  # fmt: skip


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


# ---- data


def build_corpus(data: config.DataConfig, tokenizer: config.TokenizerConfig) -> Corpus:
    """The corpus as token ids, from its cache where it is there."""
    match data:
        case config.PydocsConfig():
            path = write_pydocs(expanded(data.cache_dir))
        case config.TextConfig():
            path = Path(data.path)
        case _:
            raise AssertionError(f"no corpus for {type(data).__name__}")
    return load_corpus(
        path, tokenizer=tokenizer.name.name, min_count=tokenizer.min_count, max_size=tokenizer.max_size,
        valid_fraction=data.valid_fraction, test_fraction=data.test_fraction, cache_dir=expanded(data.cache_dir),
    )  # fmt: skip


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
    match settings.model:
        case config.NgramConfig():
            return Limits(num_epochs=1)
        case _:
            trainer = settings.trainer
            return Limits(trainer.num_steps, trainer.num_epochs, trainer.max_seconds)


# ---- learners


def build_learner(settings: config.Config, model: LanguageModel, corpus: Corpus, device: torch.device) -> Learner:
    """The model with the way in which it learns, on `device`."""
    match model:
        case NgramModel():
            return CountLearner(model)
        case NeuralLanguageModel():
            return _build_gradient_learner(settings, model, corpus, device)
    raise AssertionError(f"no learner for {type(model).__name__}")


def _build_gradient_learner(
    settings: config.Config, model: NeuralLanguageModel, corpus: Corpus, device: torch.device
) -> GradientLearner:
    trainer, optimizer, neural = settings.trainer, settings.optimizer, settings.model
    assert isinstance(neural, config.NeuralConfig)
    counts = torch.from_numpy(corpus.train.counts(corpus.tokenizer.vocab_size))
    if neural.unigram_bias:
        model.head.set_unigram_bias(counts)
    model.head.set_proposal(counts)
    model.to(device)
    groups = group_parameters(model.named_parameters(), optimizer.weight_decay)
    learner = GradientLearner(
        model=model,
        optimizer=make_optimizer(
            optimizer.name.name, groups, learning_rate=optimizer.learning_rate, momentum=optimizer.momentum,
            nesterov=optimizer.nesterov, beta1=optimizer.beta1, beta2=optimizer.beta2, alpha=optimizer.alpha,
            epsilon=optimizer.epsilon,
        ),
        schedule=build_schedule(settings.schedule, optimizer.learning_rate),
        averaging=build_averaging(optimizer, model),
        generator=torch.Generator(device).manual_seed(trainer.seed),
        learning_rate=optimizer.learning_rate,
        clip_norm=trainer.clip_norm,
        l1=optimizer.l1,
        overlap=max(0, trainer.backward_length - trainer.chunk_length),
        autocast=autocast(device, choose_precision(trainer, device)),
        full_length=trainer.chunk_length if trainer.random_chunk_length else None,
    )  # fmt: skip
    return _graphed(learner, trainer.cuda_graph, device)


def _graphed(learner: GradientLearner, choice: config.CudaGraph, device: torch.device) -> GradientLearner:
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


def build_schedule(settings: config.ScheduleConfig, learning_rate: float) -> Schedule:
    """The learning rate's way through the run, as multiples of `learning_rate`."""
    match settings:
        case config.ConstantConfig():
            return Constant()
        case config.CosineConfig():
            return Cosine(settings.warmup, settings.final)
        case config.LinearConfig():
            return Linear(settings.warmup, settings.final)
        case config.StepConfig():
            return Step(settings.factor, settings.every, settings.after)
        case config.ExponentialConfig():
            return Exponential(settings.factor)
        case config.PlateauConfig():
            return Plateau(settings.factor, settings.patience)
        case config.OneCycleConfig():
            return OneCycle(settings.up, settings.flat, settings.down, settings.div, settings.beta1_low, settings.beta1_high)
        case config.RangeTestConfig():
            return RangeTest(settings.low / learning_rate, settings.high / learning_rate)
    raise AssertionError(f"no schedule for {type(settings).__name__}")


def build_averaging(settings: config.OptimizerConfig, model: NeuralLanguageModel) -> Averaging:
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


# ---- trained models


@dataclass(frozen=True)
class Text:
    """A split as a checkpoint carries it, so that a model can be evaluated without its corpus."""

    ids: np.ndarray
    num_chars: int
    num_bytes: int


@dataclass(frozen=True)
class Trained:
    """A model as it was saved, with its tokenizer and the splits to judge it by (those that were saved with it)."""

    path: Path
    step: int
    model: LanguageModel
    tokenizer: Tokenizer
    texts: dict[str, Text]
    document: dict[str, Any]  # model.json


def describe_model(settings: config.ModelConfig, vocab_size: int, eos_id: int) -> dict[str, Any]:
    """The document `model.json`: all that `load_trained` needs besides tensors."""
    return {"vocab_size": vocab_size, "eos_id": eos_id, "settings": config.config_to_json(settings)}


def describe_texts(corpus: Corpus) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint carries of its corpus: validation, test, and the start of training (for gradient statistics)."""
    start = corpus.train.ids[:TRAIN_START]
    tensors = {"train_start": torch.from_numpy(start.astype(np.int32))}
    sizes = {"train_start": {"num_chars": 0, "num_bytes": 0}}
    for name, split in (("valid", corpus.valid), ("test", corpus.test)):
        if split is not None:
            tensors[name] = torch.from_numpy(np.asarray(split.ids).astype(np.int32))
            sizes[name] = {"num_chars": split.num_chars, "num_bytes": split.num_bytes}
    return tensors, sizes


def describe_tokenizer(tokenizer: Tokenizer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The files `tokenizer.json` and, of a vocabulary too large for JSON, `tokenizer.safetensors`."""
    document, arrays = tokenizer.save()
    return {"tokenizer": {name: torch.from_numpy(array) for name, array in arrays.items()}} if arrays else {}, document


def describe_lines(corpus: Corpus) -> dict[str, Tensor]:
    """What a checkpoint keeps of the lines of its texts, so that it can be told whether another text is among them."""
    splits = {"train.0": corpus.train, "valid": corpus.valid, "test": corpus.test}
    return {name: torch.from_numpy(np.array(split.lines)) for name, split in splits.items() if split is not None}


@dataclass(frozen=True)
class Lines:
    """Hashes of the lines of a model's texts, where they were kept: of each part's training text, of held-out texts by name."""

    train: list[Hashes | None]
    held_out: dict[str, Hashes]


def load_lines(trained: Trained) -> Lines:
    """The hashes that were saved with a model. Checkpoints of earlier versions and ARPA files have none."""
    tensors: Mapping[str, Tensor] = {}
    if (trained.path / "lines.safetensors").exists():
        tensors = load_checkpoint(trained.path, names=("lines",)).tensors["lines"]
    parts = [f"train.{part}" for part in range(_num_parts(trained.model))]
    held_out = [name for name in ("valid", "test") if name in trained.texts]
    names = [name for name in (*parts, *held_out) if name in tensors or (parts == ["train.0"] and "train.0" in tensors)]
    with believing(trained.path), within("lines.safetensors: "):
        compare({name: Like((range(MOST + 1),), torch.int64, least=0) for name in names}, tensors)
        for name, tensor in tensors.items():
            agree(bool((tensor[1:] > tensor[:-1]).all()), name, "does not ascend", "every hash once, in ascending order")
    hashes = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Lines([hashes.get(part) for part in parts], {name: hashes[name] for name in held_out if name in hashes})


def _num_parts(model: LanguageModel) -> int:
    """How many models that are no mixtures there are in `model`."""
    return sum(map(_num_parts, model.models)) if isinstance(model, Mixture) else 1


def load_trained(path: str | Path, *, prefer: Literal["best", "last"] = "best", device: str = "cpu") -> Trained:
    """The model in a run directory, a checkpoint directory or a mixture directory, wherever it lies.

    Raises CheckpointError for anything that is missing, damaged or does not fit together.
    """
    checkpoint = read_named(path, prefer, lambda found: load_checkpoint(found, names=("model", "tokenizer", "texts")))
    documents, tensors = checkpoint.documents, checkpoint.tensors
    with believing(checkpoint.path):
        with within("tokenizer.json: "):
            arrays = {name: tensor.numpy() for name, tensor in tensors.get("tokenizer", {}).items()}
            tokenizer = load_tokenizer(documents.get("tokenizer"), arrays)
        model = _restore(documents.get("model"), tensors.get("model", {}), tokenizer)
        texts = _read_texts(tensors.get("texts", {}), documents.get("texts"), tokenizer)
    if isinstance(model, nn.Module):
        model.to(device).eval()
    return Trained(checkpoint.path, checkpoint.step, model, tokenizer, texts, documents["model"])


def _read_texts(tensors: Mapping[str, Tensor], sizes: Any, tokenizer: Tokenizer) -> dict[str, Text]:
    """The splits of a checkpoint; UnfitError where they cannot be those of a text."""
    names = [name for name in ("train_start", "valid", "test") if isinstance(sizes, dict) and name in sizes]
    with within("texts.safetensors: "):
        split = Like((range(2, ANY_LENGTH.stop),), torch.int32, least=0, most=tokenizer.vocab_size - 1)
        compare(dict.fromkeys(names, split), tensors)
    with within("texts.json: "):
        compare({name: {"num_chars": Whole(), "num_bytes": Whole()} for name in names}, sizes)
        for name in names:
            compare(_expected_sizes(name, len(tensors[name]), sizes[name]["num_chars"], tokenizer.name), sizes[name], name)
    return {name: Text(tensors[name].numpy(), **sizes[name]) for name in names}


def _expected_sizes(split: str, num_tokens: int, num_chars: int, tokenizer: str) -> dict[str, Whole]:
    """What `num_chars` and `num_bytes` of a split can be: a character is one token, or a byte is, or a word has some."""
    if split == "train_start":  # nobody scores it
        return {"num_chars": Whole(0, 0), "num_bytes": Whole(0, 0)}
    match tokenizer:
        case "char":
            return {"num_chars": Whole(num_tokens, num_tokens), "num_bytes": Whole(num_chars, 4 * num_chars)}
        case "byte":
            return {"num_chars": Whole(-(-num_tokens // 4), num_tokens), "num_bytes": Whole(num_tokens, num_tokens)}
    return {"num_chars": Whole(num_tokens), "num_bytes": Whole(num_chars, 4 * num_chars)}


def save_mixture(parts: Sequence[Trained], weights: Sequence[float], directory: Path) -> Path:
    """A mixture of `parts` as a model directory that needs none of them; returns its checkpoint."""
    saved = [load_checkpoint(part.path, names=("model", "tokenizer", "texts")) for part in parts]
    told = told_by(parts)
    lines = [load_lines(part) for part in parts]
    kept = dict(enumerate(hashes for part in lines for hashes in part.train))
    tensors = {
        "model": {f"{i}.{name}": t for i, part in enumerate(saved) for name, t in part.tensors["model"].items()},
        "texts": saved[told].tensors["texts"],
        "lines": {f"train.{part}": torch.from_numpy(np.array(hashes)) for part, hashes in kept.items() if hashes is not None}
        | {name: torch.from_numpy(hashes) for name, hashes in lines[told].held_out.items()},
    } | {name: members for name, members in saved[0].tensors.items() if name == "tokenizer"}
    documents = {
        "model": _describe_mixture(parts, weights),
        "tokenizer": saved[0].documents["tokenizer"],
        "texts": saved[told].documents["texts"],
    }
    return save_checkpoint(directory, 0, tensors, documents)


def _describe_mixture(parts: Sequence[Trained], weights: Sequence[float]) -> dict[str, Any]:
    return {"components": [part.document for part in parts], "weights": list(weights)}


def check_mixture(parts: Sequence[Trained]) -> None:
    """SettingsError, before anything is computed, where the mixture of `parts` could be saved but not be read back."""
    if len(parts) > MAX_COMPONENTS:
        raise SettingsError(
            f"{len(parts)} models were given.", f"A mixture has at most {MAX_COMPONENTS} parts.",
            "Mix some of them first, and then the mixtures.",
        )  # fmt: skip
    try:
        to_json(_describe_mixture(parts, [1 / len(parts)] * len(parts)))
    except ValueError as error:
        raise SettingsError(
            f"This mixture of mixtures cannot be saved: {error}.", "", "Mix the runs themselves instead of their mixtures."
        ) from None


def told_by(parts: Sequence[Trained]) -> int:
    """Which part of a mixture gives it its validation and test text: the first that has any."""
    return next((number for number, part in enumerate(parts) if part.texts), 0)


def export_arpa(trained: Trained, path: Path) -> NgramModel:
    """Writes an n-gram model as an ARPA file and returns it; SettingsError for any other model."""
    if not isinstance(trained.model, NgramModel):
        raise SettingsError(
            f"{trained.path} holds no n-gram model.", "ARPA files hold nothing else.", "Give a run of model=ngram."
        )
    write_arpa(trained.model, [trained.tokenizer.token_text(number) for number in range(trained.tokenizer.vocab_size)], path)
    return trained.model


def import_arpa(path: Path, directory: Path, like: Trained | None = None) -> NgramModel:
    """Saves the model of an ARPA file as a model directory and returns it.

    Its tokenizer has the words of the file, in the file's order; those of `like`, whose validation and test texts it
    takes over too, in that model's order, so that both can be mixed.
    """
    if like is not None and like.tokenizer.name != "word":
        raise SettingsError(
            f"{like.path} is a model of tokenizer={like.tokenizer.name}.", "The tokens of ARPA files are words.",
            "Give a model of tokenizer=word.",
        )  # fmt: skip
    wanted = None if like is None else [like.tokenizer.token_text(number) for number in range(like.tokenizer.vocab_size)]
    model, tokens = read_arpa(path, wanted)
    tokenizer_tensors, tokenizer = describe_tokenizer(WordTokenizer(tokens))
    texts: dict[str, Tensor] = {}
    lines: dict[str, Hashes] = {}
    documents = {
        "model": describe_model(config.NgramConfig(order=model.order), model.vocab_size, model.eos_id),
        "tokenizer": tokenizer,
        "texts": {},
    }
    if like is not None:
        saved = load_checkpoint(like.path, names=("texts",))
        texts, documents["texts"] = saved.tensors.get("texts", {}), saved.documents["texts"]
        lines = load_lines(like).held_out
    tensors = {"model": model.tensors(), "texts": texts, "lines": {name: torch.from_numpy(row) for name, row in lines.items()}}
    save_checkpoint(directory, 0, tensors | tokenizer_tensors, documents)
    return model


def _restore(
    document: Any, tensors: Mapping[str, Tensor], tokenizer: Tokenizer, field: str = "", prefix: str = ""
) -> LanguageModel:
    """The model that `document` (at `field` of model.json) describes, with its weights (those behind `prefix`)."""
    if not isinstance(document, dict) or document.keys().isdisjoint({"components", "weights"}):
        settings = read_model_settings(document, tokenizer, field)
        with within(f"model.safetensors: {prefix}"):
            return restore_model(settings, tokenizer.vocab_size, tokenizer.eos_id, tensors)
    with within("model.json: "):
        compare({"components": Each(Anything(), 1, MAX_COMPONENTS), "weights": Anything()}, document, field)
        components, weights = document["components"], document["weights"]
        compare([Number(0, 1 + 1e-6) for _ in components], weights, joined(field, "weights"))
        total = math.fsum(weights)
        agree(abs(total - 1) <= 1e-6, joined(field, "weights"), f"come to {total}", "a sum of 1")
    owners = {name: name.partition(".")[0] for name in tensors}
    strays = [name for name, owner in owners.items() if owner not in map(str, range(len(components)))]
    agree(not strays, f"model.safetensors: {prefix}{shown(strays[:1])}", "is of none of the components", "what belongs to one")
    models = [
        _restore(
            part, {n.removeprefix(f"{i}."): tensors[n] for n, owner in owners.items() if owner == str(i)}, tokenizer,
            joined(field, f"components.{i}"), f"{prefix}{i}.",
        )
        for i, part in enumerate(components)
    ]  # fmt: skip
    return Mixture(models, weights)


def read_model_settings(document: Any, tokenizer: Tokenizer, field: str = "") -> config.ModelConfig:
    """The settings of the model that `document` (at `field` of model.json) describes, for this tokenizer."""
    with within("model.json: "):
        compare(
            {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "settings": Anything()}, document, field
        )  # fmt: skip
        problems: list[str] = []
        settings = config.read_settings(config.ModelConfig, document["settings"], "model", problems)
        if not problems:
            problems = _why_no_model(settings, tokenizer)
        agree(
            not problems, joined(field, "settings"), f"cannot be used: {'; '.join(problems)[:1000].rstrip('.')}",
            "what a run can be started with",
        )  # fmt: skip
    assert isinstance(settings, config.ModelConfig)
    return settings


def _why_no_model(settings: config.ModelConfig, tokenizer: Tokenizer) -> list[str]:
    """Which settings do not go together; no memory is taken for the model."""
    try:
        with torch.device("meta"):
            build_model(settings, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    except (UserError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        return [str(error)]
    return []


def restore_model(settings: config.ModelConfig, vocab_size: int, eos_id: int, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """A model with saved weights; its sizes are compared with the tensors before any memory is taken for it."""
    with torch.device("meta"):
        empty = build_model(settings, vocab_size=vocab_size, eos_id=eos_id)
    match empty:
        case NgramModel():
            empty.load(tensors)
            return empty
        case _:
            assert isinstance(empty, NeuralLanguageModel)
            compare(expected_weights(empty), tensors)
            model = build_model(settings, vocab_size=vocab_size, eos_id=eos_id)
            assert isinstance(model, NeuralLanguageModel)
            load_weights(model, tensors)
            return model
