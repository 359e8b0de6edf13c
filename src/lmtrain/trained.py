"""A trained model as Python sees it: `lmtrain.load` opens it, a `Model` scores, predicts and writes text.

Every method does what the command of its name does, through the same code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lmtrain.arguments import checked, checked_methods
from lmtrain.data.corpus import encode_file
from lmtrain.data.encoded import EncodedText
from lmtrain.data.text import iter_text, with_line_ends
from lmtrain.data.tokenizer import Tokenizer
from lmtrain.data.vocabulary import split_words
from lmtrain.errors import CheckpointError
from lmtrain.export.files import Exported, Format, Quantized, export_model
from lmtrain.inference.batch import BATCH_TOKENS
from lmtrain.inference.beam import Hypothesis, beam_search
from lmtrain.inference.comparison import Comparison, same_but_for_direction
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.evaluate import STATIC, Evaluation, Method, Static, evaluate, make_tokens
from lmtrain.inference.novelty import Novelty, novelty_of
from lmtrain.inference.pair import check_weight, fit_share, mixed
from lmtrain.inference.rescore import Hypothesis as Scored
from lmtrain.inference.rescore import Rescored, rescore
from lmtrain.inference.sample import encode_prompt, next_tokens, sample
from lmtrain.inference.score import ScoredToken, score_text, score_texts
from lmtrain.inference.surprise import Unit, UnitName, score_units
from lmtrain.models.base import LanguageModel, evaluating
from lmtrain.ops.transforms import Products
from lmtrain.saved import NoVectorsError, Trained, load_trained, save_mixture, saved_text, vectors_of
from lmtrain.shell import one_line
from lmtrain.targets import new_directory
from lmtrain.tasks.comparing import SplitName, compare_saved, saved_lines
from lmtrain.tasks.mixing import fit_mixture
from lmtrain.tasks.opening import open_saved, text_field, training_corpus, training_ids
from lmtrain.training.checkpoint import load_document
from lmtrain.vectors.files import is_file_of_vectors
from lmtrain.vectors.table import Vectors

Precision = Literal["float32", "bfloat16"]
SamplePrecision = Literal["float32", "bfloat16", "int8"]
CHUNK = 256  # tokens whose distributions are computed at once


@dataclass(frozen=True)
class TextScore:
    """How likely a text is. Its end is counted where the model counts one (words: the end of the last line)."""

    total_nats: float  # minus the natural logarithm of the probability
    num_tokens: int
    num_unknown: int
    tokens: tuple[ScoredToken, ...] | None = None  # only where they were asked for
    log_probs: tuple[float, float] | None = None  # by each of two models, where `total_nats` are those of their mixture

    @property
    def log_prob(self) -> float:
        """The natural logarithm of the text's probability."""
        return -self.total_nats

    @property
    def nats_per_token(self) -> float:
        """Nats per token; 0 for a text without any."""
        return self.total_nats / self.num_tokens if self.num_tokens else 0.0


@checked_methods
class Model:
    """A model as it was saved, with its tokenizer. `lmtrain.load` makes one.

    path       the checkpoint's directory
    step       steps that it was trained for
    network    the `LanguageModel` itself, for PyTorch code
    tokenizer  text to token ids and back
    device     where the network is

    Several threads may use one at once, unless one of them evaluates dynamically: that changes the weights while it reads.
    """

    def __init__(self, trained: Trained, device: str = "cpu") -> None:
        self._trained = trained
        self.path, self.step = trained.path, trained.step
        self.network: LanguageModel = trained.model
        self.tokenizer: Tokenizer = trained.tokenizer
        self.device = device

    def __repr__(self) -> str:
        sizes, best = _describe(self.settings["model"]), _best(self._training)
        reached = "" if best is None else f", best validation perplexity {np.exp(best):.2f}"
        return (
            f"<lmtrain.Model {sizes}, vocabulary {self.tokenizer.vocab_size:,} ({self.tokenizer.name}){reached}, {self.path}>"
        )

    def score(
        self,
        texts: str | Iterable[str],
        *,
        per_token: bool = False,
        precision: Precision = "float32",
        batch_tokens: int = BATCH_TOKENS,
        unknown_cost: float = 0.0,
        temperature: float = 1.0,
        other: Model | None = None,
        other_weight: float | Literal["fit"] | None = None,
    ) -> list[TextScore]:
        """How likely each text is: one result per text, in their order. A string is one text.

        Texts know nothing of each other, and `batch_tokens` of them are scored side by side. Each begins where a line begins,
        and where words are tokens its last line is ended, as `lmtrain score --independent` does. With `per_token` the results
        hold every token with its nats, unknown words as they stood. `precision` of products: "float32" or "bfloat16".
        `unknown_cost`: nats that each unknown word costs besides what the model asks for `<unk>`.
        `temperature` divides the log-probabilities of all tokens before they are normalised again.
        `other`: a second model, a backward one, say; the numbers are then those of the mixture over texts (`inference.pair`),
        in which it has the share `other_weight` (by default 0.5; "fit": that of `fit_share`), and `log_probs` those of each.
        Where the tokenizers differ, what spelling unknown words costs (tokenizer.unknown=spelled) is a part of all numbers.

        >>> [round(result.log_prob, 1) for result in lm.score(["the cat sat on a mat", "mat a on sat cat the"])]
        [-19.6, -19.3]
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens={batch_tokens}; expected at least 1")
        if not math.isfinite(unknown_cost):
            raise ValueError(f"unknown_cost={unknown_cost}; expected a finite number of nats")
        method = Static(temperature)
        if other is None and other_weight is not None:
            raise ValueError(f"other_weight={other_weight!r} was given without other; expected the second model, too")
        if isinstance(other_weight, str) and other_weight != "fit":
            raise ValueError(f"other_weight={other_weight!r}; expected a number or 'fit'")
        share = 0.5 if other_weight is None or other_weight == "fit" else other_weight
        check_weight(share)
        if other is not None and other_weight == "fit":
            share = self.fit_share(other, precision=precision)
        read = map(_as_read, [texts] if isinstance(texts, str) else texts)
        options: dict[str, Any] = {"method": method, "batch_tokens": batch_tokens, "unknown_cost": unknown_cost}
        if other is None:
            return self._score(read, precision, per_token=per_token, **options)
        both = [*read]
        options["spelt"] = not same_but_for_direction(self.tokenizer, other.tokenizer)
        results = self._score(both, precision, per_token=per_token, **options)
        others = other._score(both, precision, **options)
        pairs = [(result.log_prob, second.log_prob) for result, second in zip(results, others, strict=True)]
        return [
            replace(result, total_nats=-mixed(*pair, share), log_probs=pair)
            for result, pair in zip(results, pairs, strict=True)
        ]

    def _score(self, texts: Iterable[str], precision: str, **options: Any) -> list[TextScore]:
        """The same of texts whose lines end in "\\n"."""
        with self._computing(precision):
            scored = score_texts(self.network, self.tokenizer, texts, device=self.device, **options)
            return [TextScore(text.total_nats, text.num_tokens, text.num_unk, text.tokens) for text in scored]

    def fit_share(self, other: Model, lines: str | Iterable[str] | None = None, *, precision: Precision = "float32") -> float:
        """The share of `other` in a mixture over lines under which `lines` (a text or its lines) are likeliest.

        Without any, those of the validation text that was saved with one of the models. They should be new to both models.
        Raises DataError where there is none.
        """
        if lines is None:
            texts = _lines(saved_lines(self._trained, other._trained, "valid"))
        else:
            texts = _lines(_as_read(lines)) if isinstance(lines, str) else [*map(_as_read, lines)]
        spelt = not same_but_for_direction(self.tokenizer, other.tokenizer)
        first, second = ([one.log_prob for one in model._score(texts, precision, spelt=spelt)] for model in (self, other))
        return fit_share(first, second)

    def rescore(
        self,
        lists: Mapping[str, Sequence[tuple[str, float]]],
        *,
        weights: tuple[float, float] | None = None,
        references: Mapping[str, str] | None = None,
        **scoring: Any,
    ) -> Rescored:
        """The best hypothesis of each n-best list, by its id, as `lmtrain score --nbest` and `lmtrain rescore` find it.

        lists       hypotheses of each id: (text, score), the score the logarithm of a probability: more is better. A text is
                    a line, and its end is scored with it
        weights     (lm_weight, word_penalty) of  score + lm_weight * log-probability + word_penalty * words
        references  what was said, by id; without weights, those with the fewest word errors on it are taken
        scoring     arguments of `score`

        >>> lm.rescore({"utt": [("sat the cat", -1.0), ("the cat sat", -1.5)]}, weights=(1, 0)).best["utt"].text
        'the cat sat'
        """
        lines = (text if text.endswith("\n") else f"{text}\n" for own in lists.values() for text, _ in own)
        scored = iter(self.score(lines, **scoring))
        hypotheses = {
            key: [Scored(text, float(score), next(scored).log_prob, len(split_words(text))) for text, score in own]
            for key, own in lists.items()
        }
        return rescore(hypotheses, weights=weights, references=references)

    def surprise(
        self,
        text: str | Iterable[str],
        *,
        unit: UnitName = "word",
        independent: bool = False,
        unknown_cost: float = 0.0,
        temperature: float = 1.0,
        precision: Precision = "float32",
    ) -> list[Unit]:
        """Where the model is surprised, as `lmtrain score --unit` says it, for every "token", "word" or "line" of `text`.

        Each has its surprisal (nats), the entropy of what was expected, the rank of what came and the likeliest others.
        `text` may come in blocks that are cut anywhere. `independent`: no line sees the lines before it. The other arguments
        are those of `score`.

        >>> [(word.text, word.rank) for word in lm.surprise("the cat a")]
        [('the', 5), ('cat', 8), ('a', 1), ('<eos>', 1)]
        """
        if unit not in ("token", "word", "line"):
            raise ValueError(f"unit={unit!r}; expected 'token', 'word' or 'line'")
        units: list[Unit] = []
        with self._computing(precision):
            score_units(
                self.network, self.tokenizer, with_line_ends([text] if isinstance(text, str) else text), unit, units.append,
                method=Static(temperature), unknown_cost=unknown_cost, side_by_side=independent or None, device=self.device,
            )  # fmt: skip
        return units

    @contextmanager
    def _computing(self, precision: str, *others: str) -> Iterator[None]:
        allowed = ("float32", "bfloat16", *others)
        if precision not in allowed:
            raise ValueError(f"precision={precision!r}; expected {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}")
        with Products(self.device, torch.bfloat16, enabled=precision == "bfloat16"):
            yield

    def perplexity(
        self,
        text: str | os.PathLike[str] | Iterable[str] | None = None,
        *,
        split: Literal["test", "valid", "train"] | None = None,
        num_streams: int = 1,
        method: Method = STATIC,
        precision: Precision = "float32",
    ) -> Evaluation:
        """What `lmtrain evaluate` prints, as an object; its `perplexity` is the number.

        text         the path of a file, or the text itself in blocks that are cut anywhere (an open file, a list of lines);
                     without it the `split` that was saved with the model (by default "test"; "train" is read from where it was)
        num_streams  more are faster and slightly pessimistic; a text in blocks is read as one
        method       `inference.evaluate.Static(temperature)`, or  `inference.dynamic.Adaptive(dynamic=Dynamic(rate=0.1,
                     decay=0.002), cache=Cache(window=2000))`, which adapts while it reads
        precision    of products: "float32" or "bfloat16"

        >>> round(lm.perplexity("text.txt").perplexity, 1)
        1.5
        """
        if num_streams < 1:
            raise ValueError(f"num_streams={num_streams}; expected at least 1")
        _check_one_text(text, split)
        with self._computing(precision):
            if text is not None and not isinstance(text, str | os.PathLike):
                return score_text(self.network, self.tokenizer, with_line_ends(text), method=method, device=self.device)
            given: EncodedText
            if text is not None:
                given = encode_file(Path(text), self.tokenizer, text_field(self.path))
            elif split == "train":
                given = training_corpus(self.path).train
            else:
                given = saved_text(self._trained, "test" if split is None else split)
            return evaluate(self.network, given, self.tokenizer, num_streams=num_streams, method=method, device=self.device)

    def sample(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        num_samples: int = 1,
        stop: str | Sequence[str] = (),
        allow_unk: bool = False,
        no_repeat_ngram: int | None = None,
        words: Sequence[str] | None = None,
        seed: int = 1,
        precision: SamplePrecision = "float32",
    ) -> list[str]:
        r"""`num_samples` continuations of `prompt`, which they do not repeat. The same seed gives the same texts.

        They are drawn side by side. The first one is that of `seed`, the next that of seed + 1, and so on, however many.

        temperature          0 takes the likeliest token always; 1 draws as the model predicts
        top_k, top_p, min_p  leave out unlikely tokens: see `lmtrain.inference.sample`
        stop                 texts that end a continuation, and are not part of it
        allow_unk            lets the unknown token be drawn, too
        no_repeat_ngram      no so many tokens in a row occur twice, those of the prompt counted
        words                only these words are written
        precision            of products: "float32" or "bfloat16"; or "int8": weights of 8 bits, for recurrent models on a CPU

        >>> lm.sample("the cat", stop="\n", temperature=0)
        [' a']
        """
        settings = SampleSettings(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop), allow_unk=allow_unk, no_repeat_ngram=no_repeat_ngram,
            words=words, statistics=False,
        )  # fmt: skip
        with self._computing(precision, "int8"):
            samples = sample(
                self.network, self.tokenizer, _as_read(prompt), settings, num_samples=num_samples, seed=seed,
                device=self.device, int8=precision == "int8",
            )  # fmt: skip
            return ["".join(draw.text for draw in draws) for draws in samples]

    def beam(
        self,
        prompt: str = "",
        *,
        beam: int = 8,
        num_best: int | None = None,
        max_tokens: int = 200,
        stop: str | Sequence[str] = (),
        length_power: float = 1.0,
        allow_unk: bool = False,
        no_repeat_ngram: int | None = None,
        words: Sequence[str] | None = None,
        precision: Precision = "float32",
    ) -> list[Hypothesis]:
        r"""The likeliest continuations of `prompt` that a beam search finds, best first, with scores (`inference.beam`).

        beam          how many beginnings are kept at each length
        num_best      how many continuations are returned (by default as many as `beam`)
        length_power  scores are log-probabilities divided by the number of tokens to this power

        The other arguments are those of `sample`.

        >>> [best.text for best in lm.beam("the cat", stop="\n", beam=8, length_power=0)][:2]
        [' a', ' ran mat sat away and']
        """
        settings = SampleSettings(
            max_tokens=max_tokens, stop=(stop,) if isinstance(stop, str) else tuple(stop), allow_unk=allow_unk,
            no_repeat_ngram=no_repeat_ngram, words=words, statistics=False,
        )  # fmt: skip
        with self._computing(precision):
            return beam_search(
                self.network, self.tokenizer, _as_read(prompt), settings, beam=beam, num_best=num_best,
                length_power=length_power, device=self.device,
            )  # fmt: skip

    def novelty(self, texts: str | Sequence[str], training: str | os.PathLike[str]) -> list[Novelty]:
        """What each text shares with a training text, which `training` names: a file, or a run. See `inference.novelty`.

        >>> lm.novelty("the cat a", "text.txt")[0].num_copied
        2
        """
        ids = training_ids(os.fspath(training), self.tokenizer, text_field(self.path))
        return novelty_of([texts] if isinstance(texts, str) else texts, self.tokenizer, ids)

    def next(self, prompt: str = "", *, top: int = 5, precision: Precision = "float32") -> list[tuple[str, float]]:
        """The `top` likeliest tokens behind `prompt` with their probabilities, the likeliest first: `lmtrain sample --next`.

        >>> [token for token, _ in lm.next("the cat", top=2)]
        ['a', 'ran']
        """
        if top < 1:
            raise ValueError(f"top={top}; expected at least 1")
        with self._computing(precision):
            return next_tokens(self.network, self.tokenizer, _as_read(prompt), top, device=self.device)

    def log_probs(self, text: str, *, precision: Precision = "float32") -> NDArray[np.float32]:
        """Log-probabilities [N, V] (nats): row i is the distribution of token i of `text`, given the tokens before it.

        >>> log_probs = lm.log_probs("the cat sat")
        >>> log_probs.shape == (3, lm.tokenizer.vocab_size)
        True
        """
        ids = self._ids_behind_eos(text)
        tokens_TB = make_tokens(ids[:-1, None], self.network, self.device)
        state, rows = self.network.initial_state(1), []
        with self._computing(precision), evaluating(self.network):
            for chunk_TB in tokens_TB.split(CHUNK):
                if len(chunk_TB):
                    log_probs_TBV, state = self.network.log_probs(chunk_TB, state)
                    rows.append(log_probs_TBV[:, 0].float().cpu())
        return torch.cat(rows).numpy() if rows else np.empty((0, self.tokenizer.vocab_size), np.float32)

    def compare(
        self,
        other: Model,
        text: str | os.PathLike[str] | Iterable[str] | None = None,
        *,
        split: SplitName | None = None,
        independent: bool = False,
        seed: int = 1,
        precision: Precision = "float32",
    ) -> Comparison:
        """Where `other` (B) is better than this model (A), and where it is worse, as `lmtrain compare` says it.

        `text` is the path of a file, or the text itself in blocks that are cut anywhere; without it, the `split` (by default
        "test") that was saved with one of the models. `independent`: no line sees the lines before it. `seed` is that of the
        bootstrap.

        >>> lm.compare(lm).total.difference
        0.0
        """
        if other.device != self.device:
            raise ValueError(f"one model is on {self.device}, the other on {other.device}; expected the same device")
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed={seed}; expected a whole number from 0 to {(1 << 32) - 1}")
        _check_one_text(text, split)
        blocks: Iterable[str] | None = None
        if isinstance(text, str | os.PathLike):
            blocks = iter_text(Path(text), text_field(self.path))
        elif text is not None:
            blocks = with_line_ends(text)
        with self._computing(precision):
            return compare_saved(
                self._trained, other._trained, blocks, labels=(str(self.path), str(other.path)),
                split="test" if split is None else split, independent=independent, seed=seed, device=self.device,
            )  # fmt: skip

    def export(
        self, directory: str | os.PathLike[str], *, format: Format = "torch", quantize: Quantized | None = None
    ) -> Exported:
        """Writes the model to a new `directory`, as files that need nothing of lmtrain: see `lmtrain.export`.

        format    "torch" (plain weights and a script), "safetensors" (weights under the names of torch.nn) or "onnx"
        quantize  "int8", of "onnx" alone

        Raises SettingsError where something is at `directory` already, and for what the format cannot hold.
        """
        with new_directory(os.fspath(directory), option="directory") as unfinished:
            return export_model(
                self._trained, unfinished, corpus_of=training_corpus, format=format, quantize=quantize, name=str(self.path),
                device=self.device,
            )  # fmt: skip

    @property
    def vectors(self) -> Vectors:
        """The words with their vectors, from the model's embedding. Raises CheckpointError where it has none."""
        vectors = vectors_of(self.network, self.tokenizer)
        if vectors is None:
            raise NoVectorsError(self.path)
        return vectors

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run, as nested dictionaries; of a mixture or an imported model those of the model alone."""
        return dict(self._training.get("settings") or {"model": _settings_of(load_document(self.path, "model"))})

    @cached_property
    def _training(self) -> Mapping[str, Any]:
        """What training noted beside the model; empty where there was none."""
        document = load_document(self.path, "training")
        return document if isinstance(document, dict) else {}

    def _ids_behind_eos(self, text: str) -> NDArray[np.int32]:
        ids = encode_prompt(self.tokenizer, _as_read(text), called="text")
        return np.concatenate([[self.tokenizer.eos_id], ids]).astype(np.int32)


def _check_one_text(text: object, split: str | None) -> None:
    """ValueError where a text and a split are given: either says what is read."""
    if text is not None and split is not None:
        raise ValueError(f"split={split!r} was given together with text; expected one of them")


def _as_read(text: str) -> str:
    """A caller's string as a file of it is read."""
    return "".join(with_line_ends([text]))


def _lines(text: str) -> list[str]:
    return [*StringIO(text, newline="\n")]  # splitlines() would end lines at "\r" and U+2028, too


def _best(training: Mapping[str, Any]) -> float | None:
    """Nats per token of the best validation, where training noted one."""
    state = training.get("state", {})
    best = state.get("best_value", state.get("best_nats"))  # as earlier versions called it
    return best if isinstance(best, float) else None


def _settings_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The model settings that the document `model.json` holds; those of a mixture are its parts' and their weights."""
    if "components" in document:
        parts = [_settings_of(part) for part in document["components"]]
        return {"kind": "mixture", "components": parts, "weights": document["weights"]}
    return dict(document["settings"])


def _describe(settings: Mapping[str, Any]) -> str:
    """A model in a few words, such as "lstm 2 x 650"."""
    match settings:
        case {"kind": "mixture", "components": components}:
            return f"mixture of {len(components)}"
        case {"kind": "ngram", "order": order, "smoothing": smoothing}:
            pruned = f", pruned {' '.join(map(str, settings['prune']))}" if any(settings.get("prune", ())) else ""
            return f"{order}-gram, {smoothing}{pruned}"
        case {"hidden_sizes": [_, *_] as sizes}:
            layers = "-".join(map(str, sizes))
        case _:
            layers = f"{settings['num_layers']} x {settings['hidden_size']}"
    return f"{settings.get('cell') or settings['kind']} {layers}"


@checked
def mix(models: Sequence[Model | str | os.PathLike[str]], directory: str | os.PathLike[str], *, num_streams: int = 16) -> Model:
    """The mixture of several models, as `lmtrain mix` makes it, saved in a new `directory` and opened.

    `models` are opened ones or their paths. Its weights are fitted on the validation text of the first model that has one, in
    `num_streams` streams; they stand in `settings["model"]["weights"]`. Raises SettingsError for models of different
    vocabularies or directions, and where something is at `directory` already; DataError without a validation text.
    """
    if num_streams < 1:
        raise ValueError(f"num_streams={num_streams}; expected at least 1")
    opened = [model if isinstance(model, Model) else Model(load_trained(os.fspath(model))) for model in models]
    parts, devices = [model._trained for model in opened], {model.device for model in opened}
    if len(devices) > 1:
        raise ValueError(f"the models are on {' and '.join(sorted(devices))}; expected one device")
    with new_directory(os.fspath(directory), option="directory") as unfinished:
        names = [one_line(str(model.path)) for model in opened]
        fitted = fit_mixture(parts, names, num_streams=num_streams, device=opened[0].device if opened else "cpu")
        save_mixture(parts, fitted.weights, unfinished)
    return Model(load_trained(os.fspath(directory), device=opened[0].device), opened[0].device)


@checked
def load(path: str | os.PathLike[str], *, device: str = "cpu", checkpoint: Literal["best", "last"] = "best") -> Any:
    """The model at `path`: a run directory, a checkpoint of one, a mixture, or an imported ARPA file.

    A language model is a `Model`, a tagger a `Tagger`, a classifier a `Classifier`; of word vectors it is a
    `TrainedVectors`. `checkpoint` says which one of a run.
    Raises `lmtrain.CheckpointError` for what is missing, damaged or no model of ours.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint={checkpoint!r}; expected 'best' or 'last'")
    if device != "cpu" and not (device.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"device={device!r}; expected 'cpu'{', or a GPU such as cuda' * torch.cuda.is_available()}")
    if is_file_of_vectors(Path(path)):
        raise CheckpointError(
            f"{one_line(str(path))} is a file of word vectors.", "lmtrain.load takes directories: runs and checkpoints.",
            f"Type  lmtrain.load_vectors({str(path)!r})  .",
        )  # fmt: skip
    saved = open_saved(Path(path), prefer=checkpoint, device=device)
    return Model(saved, device) if isinstance(saved, Trained) else saved
