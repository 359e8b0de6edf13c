"""How models lie on the disk: what a checkpoint says of a model and its texts, and the way back; mixtures; ARPA files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.corpus import Corpus
from lmtrain.data.encoded import EncodedText
from lmtrain.data.kinds import Kind
from lmtrain.data.overlap import MAX_HASHES, Hashes
from lmtrain.data.subword import Subwords
from lmtrain.data.tokenizer import Tokenizer, WordTokenizer, load_tokenizer
from lmtrain.data.vocabulary import EOS, UNK
from lmtrain.errors import CheckpointError, DataError, SettingsError, UserError
from lmtrain.expected import ANY_LENGTH, Anything, Each, Like, Number, Whole, agree, compare, joined, shown, within
from lmtrain.files.strict_json import to_json
from lmtrain.models.arpa import read_arpa, write_arpa
from lmtrain.models.base import LanguageModel, NeuralLanguageModel
from lmtrain.models.mixture import Mixture
from lmtrain.models.ngram import NgramModel
from lmtrain.settings import comparing, reading
from lmtrain.shell import one_line
from lmtrain.training.checkpoint import Checkpoint, believing, load_checkpoint, read_named, save_checkpoint
from lmtrain.training.learner import expected_weights, load_weights
from lmtrain.vectors.table import Vectors

MAX_COMPONENTS = 256  # of a mixture
TRAIN_START = 100_000  # tokens of the training split that a checkpoint carries


@dataclass(frozen=True)
class Trained:
    """A model as it was saved, with its tokenizer and the splits to judge it by (those that were saved with it)."""

    path: Path
    step: int
    model: LanguageModel
    tokenizer: Tokenizer
    texts: dict[str, EncodedText]
    document: dict[str, Any]  # model.json


def describe_model(settings: config.ModelConfig, vocab_size: int, eos_id: int) -> dict[str, Any]:
    """The document `model.json`: all that `load_trained` needs besides tensors."""
    return {"vocab_size": vocab_size, "eos_id": eos_id, "settings": comparing.config_to_json(settings)}


def describe_texts(corpus: Corpus) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint carries of its corpus: validation, test, and the start of training (for gradient statistics)."""
    start = corpus.train.ids[:TRAIN_START]
    tensors = {"train_start": torch.from_numpy(start.astype(np.int32))}
    sizes = {"train_start": {"num_chars": 0, "num_bytes": 0, "spelling_micronats": 0}}
    for name, split in (("valid", corpus.valid), ("test", corpus.test)):
        if split is not None:
            tensors[name] = torch.from_numpy(np.asarray(split.ids).astype(np.int32))
            sizes[name] = {name: getattr(split, name) for name in ("num_chars", "num_bytes", "spelling_micronats")}
    if corpus.tokenizer.rare is None:  # which has no cost to tell, as no other model had in the past
        for of_text in sizes.values():
            del of_text["spelling_micronats"]
    return tensors, sizes


def describe_tokenizer(tokenizer: Tokenizer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The files `tokenizer.json`; of subwords `subword.json`; of a vocabulary too large for JSON `tokenizer.safetensors`."""
    document, arrays = tokenizer.save()
    documents = {"tokenizer": document} | ({} if tokenizer.subword is None else {"subword": tokenizer.subword})
    return {"tokenizer": {name: torch.from_numpy(array) for name, array in arrays.items()}} if arrays else {}, documents


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint that was loaded with the names "tokenizer" and "subword"."""
    subwords = None
    if "subword" in checkpoint.documents:
        with within("subword.json: "):
            subwords = Subwords(checkpoint.documents["subword"], CheckpointError)
    with within("tokenizer.json: "):
        arrays = {name: tensor.numpy() for name, tensor in checkpoint.tensors.get("tokenizer", {}).items()}
        tokenizer = load_tokenizer(checkpoint.documents.get("tokenizer"), arrays, subwords)
        agree(
            subwords is not None or tokenizer.subword is None, "name", f"is {tokenizer.name!r}", "another without subword.json"
        )
        return tokenizer


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
        compare({name: Like((range(MAX_HASHES + 1),), torch.int64, least=0) for name in names}, tensors)
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
    checkpoint = read_named(path, prefer, lambda found: load_checkpoint(found, ("model", "tokenizer", "texts"), ("subword",)))
    if (task := task_in(checkpoint.path, checkpoint.documents.get("model"))) != "language":
        raise CheckpointError(
            f"{one_line(str(checkpoint.path))} holds a model of task={task}.", "A language model is needed here.",
            "Type  python -m lmtrain --help  for what can be done with it, or name a run of task=language.",
        )  # fmt: skip
    documents, tensors = checkpoint.documents, checkpoint.tensors
    with believing(checkpoint.path):
        tokenizer = read_tokenizer(checkpoint)
        model = _restore(documents.get("model"), tensors.get("model", {}), tokenizer)
        texts = _read_texts(tensors.get("texts", {}), documents.get("texts"), tokenizer)
    model.to(device).eval()
    return Trained(checkpoint.path, checkpoint.step, model, tokenizer, texts, documents["model"])


def saved_text(trained: Trained, split: str) -> EncodedText:
    """The text that was saved with the model as its `split`. Raises DataError where there is none."""
    if split not in trained.texts:
        raise DataError(
            f"No {split} split was saved with {one_line(str(trained.path))}.",
            f"Saved are: {', '.join(name for name in trained.texts if name != 'train_start') or 'none'}.",
            "Type split=valid, or text=FILE." if "valid" in trained.texts else "Type text=FILE.",
        )
    return trained.texts[split]


def task_in(path: Path, document: Any) -> str:
    """The task that the model of a checkpoint was trained for, which its model.json says of all but language models."""
    task = document.get("task", "language") if isinstance(document, dict) else "language"
    with believing(path), within("model.json: "):
        agree(isinstance(task, str) and task in config.TASKS, "task", f"is {shown(task)}", f"one of {', '.join(config.TASKS)}")
    return str(task)


def _read_texts(tensors: Mapping[str, Tensor], sizes: Any, tokenizer: Tokenizer) -> dict[str, EncodedText]:
    """The splits of a checkpoint; UnfitError where they cannot be those of a text."""
    names = [name for name in ("train_start", "valid", "test") if isinstance(sizes, dict) and name in sizes]
    with within("texts.safetensors: "):
        split = Like((range(2, ANY_LENGTH.stop),), torch.int32, least=0, most=tokenizer.vocab_size - 1)
        compare(dict.fromkeys(names, split), tensors)
    with within("texts.json: "):
        of_text = {"num_chars": Whole(), "num_bytes": Whole()}
        spelt = {} if tokenizer.rare is None else {"spelling_micronats": Whole()}
        compare(dict.fromkeys(names, of_text | spelt), sizes)
        for name in names:
            expected = _expected_sizes(name, len(tensors[name]), sizes[name]["num_chars"], tokenizer.kind)
            compare(expected | spelt, sizes[name], name)
    return {name: EncodedText(tensors[name].numpy(), **sizes[name]) for name in names}


def _expected_sizes(split: str, num_tokens: int, num_chars: int, kind: Kind) -> dict[str, Whole]:
    """What `num_chars` and `num_bytes` of a split can be: a token is one of them, or has some; a character has 1 to 4 bytes."""
    if split == "train_start":  # nobody scores it
        return {"num_chars": Whole(0, 0), "num_bytes": Whole(0, 0)}
    num_units = Whole(num_tokens, num_tokens) if kind.is_unit else Whole(num_tokens)
    if kind.unit == "char":
        return {"num_chars": num_units, "num_bytes": Whole(num_chars, 4 * num_chars)}
    num_bytes = num_units if kind.is_unit else Whole(max(num_tokens, num_chars), 4 * num_chars)
    return {"num_chars": Whole(-(-num_tokens // 4), num_units.most), "num_bytes": num_bytes}


def save_mixture(parts: Sequence[Trained], weights: Sequence[float], directory: Path) -> Path:
    """A mixture of `parts` as a model directory that needs none of them; returns its checkpoint."""
    saved = [load_checkpoint(part.path, ("model", "tokenizer", "texts"), ("subword",)) for part in parts]
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
        "texts": saved[told].documents["texts"],
    } | {name: document for name, document in saved[0].documents.items() if name in ("tokenizer", "subword")}
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
    write_arpa(trained.model, arpa_symbols(trained.tokenizer), path)
    return trained.model


def arpa_symbols(tokenizer: Tokenizer) -> list[str]:
    """How each token is written in an ARPA file, all of them different: the space as `<0x20>`, say, so that it survives.

    A token that reads as the name of another, as a subword `<eos>` or `<unk>` does, has its first character written so.
    """
    symbols: list[str] = []
    taken = {EOS} if tokenizer.unk_id is not None else {EOS, UNK, "<UNK>"}
    for number in range(tokenizer.vocab_size):
        symbol = EOS if number == tokenizer.eos_id else tokenizer.symbol(number)
        while symbol in taken and number != tokenizer.eos_id:
            symbol = f"<0x{ord(symbol[0]):02X}>{symbol[1:]}"
        symbols.append(symbol)
        taken.add(symbol)
    return symbols


def import_arpa(path: Path, directory: Path, like: Trained | None = None) -> NgramModel:
    """Saves the model of an ARPA file as a model directory and returns it.

    Its tokenizer has the words of the file, in the file's order. It is that of `like`, whose tokens are written as
    `arpa_symbols` says, and whose validation and test texts the model takes over too, so that both can be mixed.
    """
    model, tokens = read_arpa(path, None if like is None else arpa_symbols(like.tokenizer))
    tokenizer = WordTokenizer(tokens) if like is None else like.tokenizer
    tokenizer_tensors, tokenizer_documents = describe_tokenizer(tokenizer)
    texts: dict[str, Tensor] = {}
    lines: dict[str, Hashes] = {}
    documents = {
        "model": describe_model(config.NgramConfig(order=model.order), model.vocab_size, model.eos_id),
        "texts": {},
        **tokenizer_documents,
    }
    if like is not None:
        saved = load_checkpoint(like.path, names=("texts",))
        texts, documents["texts"] = saved.tensors.get("texts", {}), saved.documents["texts"]
        lines = load_lines(like).held_out
    tensors = {"model": model.tensors(), "texts": texts, "lines": {name: torch.from_numpy(row) for name, row in lines.items()}}
    save_checkpoint(directory, 0, tensors | tokenizer_tensors, documents)
    return model


class NoVectorsError(CheckpointError, ValueError):
    """A model without word vectors was asked for them."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{one_line(str(path))} has no word vectors.",
            "Networks over words have them; counts, indicators and mixtures have none.",
            "Give a run of one of these, or a file of vectors.",
        )


def vectors_of(model: Any, tokenizer: Tokenizer) -> Vectors | None:
    """The embedding of a model of any task with the texts of its tokens; None for a model that has none."""
    embedding = getattr(model, "embedding", None)
    if embedding is None:
        return None
    words = tuple(tokenizer.token_text(token) for token in range(tokenizer.vocab_size))
    return Vectors(words, embedding.weight.detach().float().cpu().numpy())


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


def read_model_settings(document: Any, tokenizer: Tokenizer, field: str = "") -> config.LanguageConfig:
    """The settings of the model that `document` (at `field` of model.json) describes, for this tokenizer."""
    with within("model.json: "):
        compare(
            {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "settings": Anything()}, document, field
        )  # fmt: skip
        problems: list[str] = []
        named = reading.with_new_names({"model": document["settings"]})["model"]
        settings = reading.read_settings(config.ModelConfig, named, "model", problems)
        if not problems and not isinstance(settings, config.LanguageConfig):
            problems = [f"model={settings.kind} is no language model"]
        if not problems:
            problems = _why_no_model(settings, tokenizer)
        agree(
            not problems, joined(field, "settings"), f"cannot be used: {'; '.join(problems)[:1000].rstrip('.')}",
            "what a run can be started with",
        )  # fmt: skip
    assert isinstance(settings, config.LanguageConfig)
    return settings


def _why_no_model(settings: config.LanguageConfig, tokenizer: Tokenizer) -> list[str]:
    """Which settings do not go together; no memory is taken for the model."""
    try:
        with torch.device("meta"):
            build_model(settings, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    except (UserError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        return [str(error)]
    return []


def restore_model(
    settings: config.LanguageConfig, vocab_size: int, eos_id: int, tensors: Mapping[str, Tensor]
) -> LanguageModel:
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
