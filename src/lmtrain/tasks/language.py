"""Language modelling: the next token of a text. The data are a corpus, the score is the perplexity of its validation split."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lmtrain.config as config
from lmtrain.build import (
    build_corpus,
    build_learner,
    build_model,
    build_stream,
    build_whole_corpus,
    choose_precision,
    sparse_gradients,
)
from lmtrain.choices import HeadName
from lmtrain.data.advice import iter_advice
from lmtrain.data.corpus import Corpus, Split, describe
from lmtrain.data.stream import Stream
from lmtrain.data.tokenizer import Tokenizer
from lmtrain.distributed.group import ALONE, Group
from lmtrain.errors import ResourceError, SettingsError, UserError
from lmtrain.expected import Like, agree, compare, within
from lmtrain.inference.blocks import default_bound, evenly_spaced
from lmtrain.inference.drawing import OnlyUnknownError, SampleSettings
from lmtrain.inference.evaluate import Evaluation, evaluate, usable_streams
from lmtrain.inference.sample import sample_text
from lmtrain.memory import check_memory, device_bytes, gigabytes, out_of_memory
from lmtrain.models.base import LanguageModel, NeuralLanguageModel
from lmtrain.progress import watched
from lmtrain.saved import (
    Trained,
    describe_lines,
    describe_model,
    describe_texts,
    describe_tokenizer,
    load_trained,
    read_model_settings,
    vectors_of,
)
from lmtrain.tasks.base import Files, Loaded, Reached, SplitName, Task
from lmtrain.tasks.baselines import Comparison
from lmtrain.tasks.embeddings import given_vectors, put_vectors, say_coverage, vectors_of_text
from lmtrain.tasks.inspection import Material, material_of_corpus
from lmtrain.tasks.language_baselines import compare as compare_counted
from lmtrain.tasks.starting import put_weights, with_lines_of
from lmtrain.training.checkpoint import Checkpoint
from lmtrain.training.learner import Learner
from lmtrain.training.score import TOKENS, Score
from lmtrain.vectors.table import Vectors

log = logging.getLogger("lmtrain")

MANY_TOKENS, SHORT_TRAINING = 16_384, 900.0  # a vocabulary and seconds, with which samples are known to learn more
SAMPLED = "model.head=sampled model.num_samples=4096"
LARGE = 100_000  # tokens of validation, from which on several processes share its streams


class Language(Task):
    """A language model of a text."""

    wording = TOKENS
    most_lines = 12

    def __init__(self, settings: config.Config, device: torch.device, start: Trained | None = None) -> None:
        self.settings, self.device, self.start = settings, device, start
        neural = settings.model if isinstance(settings.model, config.NeuralConfig) else None
        self._given = given_vectors(neural, neural.embed_size) if neural else None  # refused before a long text is read
        given = None if start is None else start.tokenizer
        self.corpus = build_corpus(settings.data, settings.tokenizer, given, settings.start_from_new_tokens)
        self.fingerprint = self.corpus.fingerprint

    @cached_property
    def batches(self) -> Stream:
        return build_stream(self.settings.trainer, self.corpus, self.settings.model)

    def describe(self) -> str:
        return describe(self.corpus)

    def material(self) -> Material:
        data, tokenizer = self.settings.data, self.settings.tokenizer
        is_counted = self.start is None and tokenizer.name in (config.TokenizerName.char, config.TokenizerName.word)
        return material_of_corpus(self.corpus, partial(build_whole_corpus, data, tokenizer) if is_counted else None)

    def iter_advice(self) -> Iterator[str]:
        yield from self.corpus.notes
        yield from iter_advice(self.corpus)
        if self._would_gain_from_samples():
            yield (
                f"The output layer of {self.corpus.tokenizer.vocab_size:,} tokens takes most of each step. In so short a "
                f"training {SAMPLED} reaches a lower perplexity: it learns from samples, and is evaluated on all tokens."
            )

    def _would_gain_from_samples(self) -> bool:
        """Tells whether a sampled softmax would learn more in the time given. Measured in scripts/README.md."""
        model, most = self.settings.model, self.settings.trainer.max_seconds
        if not isinstance(model, config.NeuralConfig) or model.head is not HeadName.full or model.maxent_order:
            return False
        is_short = most is not None and most <= SHORT_TRAINING
        return is_short and self.start is None and self.device.type == "cpu" and self.corpus.tokenizer.vocab_size >= MANY_TOKENS

    def check(self) -> None:
        super().check()
        vocab_size = self.corpus.tokenizer.vocab_size
        check_cutoffs(self.settings.model, vocab_size)
        need, available = check_memory(self.settings, vocab_size, self.device), device_bytes(self.device)
        if need is not None and need.total_bytes > available / 10:
            log.info("Memory: at least %s of the %s of %s.", gigabytes(need.total_bytes), gigabytes(available), self.device)
        if (part := len(self._judged.ids)) < (whole := len(self.corpus.valid.ids)):
            log.info("Evaluations during training read %s of the %s tokens of validation, in evenly spaced blocks "
                     "(trainer.evaluation_tokens=0: all of them).", f"{part:,}", f"{whole:,}")  # fmt: skip

    def out_of_memory(self, error: BaseException, run: str) -> ResourceError:
        return out_of_memory(self.settings, self.corpus.tokenizer.vocab_size, error, run)

    def learner(self) -> Learner:
        settings, trainer, tokenizer = self.settings, self.settings.trainer, self.corpus.tokenizer
        assert isinstance(settings.model, config.LanguageConfig)
        sparse = sparse_gradients(trainer.batch_size * trainer.chunk_length, tokenizer.vocab_size, self.device)
        model = build_model(
            settings.model, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, seed=trainer.seed,
            sparse_embeddings=sparse or settings.optimizer.name is config.OptimizerName.sparse_adam,
        )  # fmt: skip
        if self.begins and isinstance(model, NeuralLanguageModel):
            self._start_vectors(model.embedding.weight)
        if self.start is not None:
            assert isinstance(model, NeuralLanguageModel), "counts are no start"
            counts = self.corpus.train.counts(tokenizer.vocab_size)
            put_weights(model, self.start.model, unk_id=tokenizer.unk_id, counts_V=torch.from_numpy(counts))
        return build_learner(settings, model, self.corpus, self.device)

    def _start_vectors(self, table_VE: torch.Tensor) -> None:
        """Puts the vectors that `model.embeddings` asks for into the table."""
        assert isinstance(self.settings.model, config.NeuralConfig)
        name, train, tokenizer = self.settings.model.embeddings, self.corpus.train, self.corpus.tokenizer
        vectors = self._given
        if name == config.FROM_TEXT:
            vectors = vectors_of_text(train.ids, tokenizer, like_VE=table_VE)
        if vectors is not None:
            words = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
            say_coverage(name, put_vectors(table_VE, words, vectors), train.counts(tokenizer.vocab_size))

    @cached_property
    def _judged(self) -> Split:
        """Returns what the evaluations during training read of validation: all of it, or blocks."""
        valid, streams = self.corpus.valid, self.settings.trainer.evaluation_streams
        return part_of(valid, evenly_spaced(valid.ids, self.num_validated(self.settings), streams), self.corpus.tokenizer)

    def num_validated(self, settings: config.Config) -> int:
        trainer, whole = settings.trainer, len(self.corpus.valid.ids)
        between = trainer.evaluate_every * self.batches.batch_size * self.batches.chunk_length or len(self.corpus.train.ids)
        most = default_bound(between) if trainer.evaluation_tokens is None else trainer.evaluation_tokens or whole
        return min(most, whole)

    @cached_property
    def _num_streams(self) -> int:
        """Of validation during training. Where they are fewer than asked for, that is said once."""
        return usable_streams(len(self._judged.ids), self.settings.trainer.evaluation_streams)

    def score(self, model: LanguageModel) -> Evaluation:
        return evaluate_split(model, self._judged, self.corpus, self._num_streams, self.device)

    def judge(self, model: LanguageModel, group: Group) -> Score:
        if self.judges(group) == 1:
            return super().judge(model, group)
        return evaluate_split(model, self._judged, self.corpus, self._num_streams, self.device, group)

    def judges(self, group: Group) -> int:
        """Streams are independent of each other: as many processes share them, where the text is large."""
        return min(group.size, self._num_streams) if len(self._judged.ids) >= LARGE else 1

    def has(self, split: SplitName) -> bool:
        return getattr(self.corpus, split) is not None

    def final_score(self, model: LanguageModel, split: SplitName) -> Evaluation:
        return evaluate_split(model, getattr(self.corpus, split), self.corpus, 1, self.device)

    def vectors(self, model: LanguageModel) -> Vectors | None:
        return vectors_of(model, self.corpus.tokenizer)

    def comparison(self, model: LanguageModel, final: Score | None = None) -> Comparison | None:
        return compare_counted(self, model, final)

    def show(self, model: LanguageModel) -> str:
        return write_sample(model, self.corpus, self.settings.trainer, self.device)

    def shown(self) -> str:
        temperature = self.settings.trainer.sample_temperature
        return f"A little of the validation text, continued at temperature {temperature:g}"

    @property
    def precision(self) -> torch.dtype:
        return choose_precision(self.settings.trainer, self.device)

    def files(self) -> Files:
        corpus, tokenizer = self.corpus, self.corpus.tokenizer
        text_tensors, texts = describe_texts(corpus)
        tokenizer_tensors, tokenizer_documents = describe_tokenizer(tokenizer)
        documents = {
            "model": describe_model(self.settings.model, tokenizer.vocab_size, tokenizer.eos_id),
            **tokenizer_documents,
            "texts": texts,
        }
        lines = describe_lines(corpus)
        if self.start is not None:
            lines["train.0"] = with_lines_of(lines["train.0"], self.start)
        return Files({"texts": text_tensors, "lines": lines, **tokenizer_tensors}, documents)

    def check_saved(self, checkpoint: Checkpoint) -> config.ModelConfig:
        check_tokenizer(checkpoint, self.corpus.tokenizer)
        return read_model_settings(checkpoint.documents.get("model"), self.corpus.tokenizer)

    def load(self, path: Path) -> Loaded:
        trained = load_trained(path, device=str(self.device))
        return Loaded(trained.path, trained.step, trained.model)

    def vocabulary(self) -> str:
        return self.corpus.tokenizer.fingerprint()

    def judged_on(self) -> dict[str, Any]:
        valid, model = self._judged, self.settings.model
        assert isinstance(model, config.LanguageConfig)
        return {
            "num_tokens": len(valid.ids), "of_num_tokens": len(self.corpus.valid.ids), "num_unk": valid.num_unk,
            "num_chars": valid.num_chars, "num_bytes": valid.num_bytes, "num_streams": self._num_streams,
            "state_policy": model.state_policy.name, "method": "static",
            "spelling_nats": None if self.corpus.tokenizer.rare is None else valid.spelling_micronats / 1e6,
        }  # fmt: skip

    def reached(self, value: float) -> Reached:
        valid, tokenizer = self._judged, self.corpus.tokenizer
        nats = value * len(valid.ids) + valid.spelling_micronats / 1e6
        bits = None if valid.num_unk and tokenizer.rare is None else nats / math.log(2) / valid.num_chars
        return Reached(value, bits, valid.num_unk, self.vocabulary())

    def next_steps(self, run: str) -> list[str]:
        return [f"python -m lmtrain sample {run}{prompt_option(prompt_of(self.corpus))}", f"python -m lmtrain score {run} FILE"]


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """UnfitError where a checkpoint holds another tokenizer than that of the run."""
    with within("tokenizer.json: "):
        document, arrays = tokenizer.save()
        compare(document, checkpoint.documents.get("tokenizer"))
    with within("subword.json: "):
        _check_subword(tokenizer.subword, checkpoint.documents.get("subword"))
    with within("tokenizer.safetensors: "):
        saved = checkpoint.tensors.get("tokenizer", {})
        compare({name: Like.of(torch.from_numpy(array)) for name, array in arrays.items()}, saved)
        for name, array in arrays.items():
            agree(np.array_equal(saved[name].numpy(), array), name, "is of another vocabulary", "that of the run's tokenizer")


def _check_subword(own: Any, saved: Any) -> None:
    if own is None or saved is None:
        agree(own is saved, "it", "is missing" if saved is None else "is there", "what the run's tokenizer writes")
    else:
        compare(own, saved)


def part_of(split: Split, ids: NDArray[Any], tokenizer: Tokenizer) -> Split:
    """Returns a split with some of its ids alone.

    Its characters and bytes are that share of the whole which its tokens write, so they are exact where each token is one; its
    lines go by their ends, and what the spelling of unknown words costs by how many there are.
    """
    if len(ids) == len(split.ids):
        return split
    counts_V = np.bincount(ids, minlength=tokenizer.vocab_size)
    whole_V = split.counts(tokenizer.vocab_size)
    written = tokenizer.token_bytes()
    lengths_V = np.array([len(text) for text in written])
    letters_V = np.array([sum(byte & 0xC0 != 0x80 for byte in text) for text in written])  # the others go on with a character

    def share(number: int, weights_V: NDArray[Any]) -> int:
        part, whole = int(counts_V @ weights_V), int(whole_V @ weights_V)
        return number * part // whole if whole else 0

    is_end_V, is_unk_V = (np.arange(tokenizer.vocab_size) == token for token in (tokenizer.eos_id, tokenizer.unk_id))
    return dataclasses.replace(
        split, ids=ids, num_unk=int(counts_V @ is_unk_V), num_chars=max(share(split.num_chars, letters_V), 1),
        num_bytes=max(share(split.num_bytes, lengths_V), 1), num_lines=share(split.num_lines, is_end_V),
        num_filled=share(split.num_filled, is_end_V), spelling_micronats=share(split.spelling_micronats, is_unk_V),
    )  # fmt: skip


def evaluate_split(
    model: LanguageModel, split: Split, corpus: Corpus, num_streams: int, device: torch.device, group: Group = ALONE
) -> Evaluation:
    """Says how well `model` predicts a split of its corpus."""
    with watched("Evaluating", len(split.ids), "tok") as advance:
        return evaluate(model, split, corpus.tokenizer, num_streams=num_streams, device=device, progress=advance, group=group)


def write_sample(model: LanguageModel, corpus: Corpus, trainer: config.TrainerConfig, device: torch.device) -> str:
    """Returns a little of the validation text, and how the model goes on. Of empty lines in a row one is kept."""
    num_tokens = corpus.tokenizer.kind.sample_length if trainer.sample_tokens is None else trainer.sample_tokens
    if not num_tokens:
        return ""
    prompt = "" if corpus.tokenizer.reverse else prompt_of(corpus)
    settings = SampleSettings(max_tokens=num_tokens, temperature=trainer.sample_temperature)
    for allow_unk in (False, True):
        settings = dataclasses.replace(settings, allow_unk=allow_unk)
        try:
            with watched("Writing a sample", settings.max_tokens, "tok") as advance:
                written = sample_text(
                    model, corpus.tokenizer, prompt, settings, seed=trainer.seed, device=device, progress=advance
                )
            return re.sub(r"\n(?:[^\S\n]*\n){2,}", "\n\n", prompt + written)
        except OnlyUnknownError:
            continue
        except UserError as error:  # no reason to end a training
            log.warning("There is no sample to show. %s", error)
            break
    return ""


def prompt_of(corpus: Corpus) -> str:
    """Returns the first stretch of the validation text that is known from beginning to end; the longest if all are short."""
    tokenizer, ids = corpus.tokenizer, np.asarray(corpus.valid.ids)
    size = tokenizer.kind.prompt_length
    unknown = [] if tokenizer.unk_id is None else np.flatnonzero(ids == tokenizer.unk_id).tolist()
    before, after = max(pairwise([-1, *unknown, len(ids)]), key=lambda gap: min(gap[1] - gap[0] - 1, size))
    text = tokenizer.decode(ids[before + 1 : min(after, before + 1 + size)].tolist())
    return text.rstrip("\ufffd")  # bytes may end within a character


def prompt_option(text: str) -> str:
    """Returns an option for `sample`, as it can be typed: up to three words of `text`, whole ones, which a word model knows."""
    words = re.search(r"(?<!\S)\w+(?: \w+){0,2}(?!\S)", text)
    return f' --prompt "{words[0]}"' if words else ""


def check_cutoffs(settings: config.ModelConfig, vocab_size: int) -> None:
    """Warns of cutoffs of an adaptive softmax that the vocabulary does not reach. Raises SettingsError if it reaches none."""
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
