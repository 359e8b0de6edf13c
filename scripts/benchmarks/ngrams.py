"""Contestants that score a text with one n-gram model: KenLM's reader on its ARPA file, and ours; neither reads nor prints.

KenLM reads whole lines of words, and looks the words up; ours read ids. KenLM has one thread, ours have PyTorch's.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import Contestant, LeftOutError
from benchmarks.pieces import Numbers
from benchmarks.presets import Preset
from lmtrain.inference.batch import score_batches
from lmtrain.models.arpa import write_arpa
from lmtrain.models.ngram import NgramModel

CHUNK = 1 << 14  # tokens of one call; `evaluate` takes about as many


def make_ngram_scorers(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """KenLM's reader, then ours: independent lines in batches, and one text after the other as `evaluate` reads it."""
    try:
        kenlm = import_module("kenlm")
    except ImportError:
        raise LeftOutError("kenlm is not installed; type  pip install kenlm") from None
    folder = Path(preset.data)
    if not preset.data or not all((folder / name).is_file() for name in ("train.txt", "test.txt")):
        raise LeftOutError("it needs a text; type  --data DIR  with a directory that holds train.txt and test.txt")
    train, test = ((folder / name).read_text(encoding="utf-8").splitlines() for name in ("train.txt", "test.txt"))
    vocabulary = {"<eos>": 0, "<unk>": 1}
    for line in train:
        for word in line.split():
            vocabulary.setdefault(word, len(vocabulary))
    model = NgramModel(vocab_size=len(vocabulary), eos_id=0, order=preset.order)
    model.count(np.concatenate(_ids(train, vocabulary)))
    with tempfile.TemporaryDirectory() as place:
        write_arpa(model, list(vocabulary), f"{place}/model.arpa")
        reader = kenlm.LanguageModel(f"{place}/model.arpa")
    texts = _ids(test, vocabulary)

    def theirs() -> float:
        return sum(map(reader.score, test)) * math.log(10)

    def in_batches() -> float:
        tokenizer: Any = Numbers(model.vocab_size)
        return sum(float(log_probs.sum()) for _, log_probs in score_batches(model, tokenizer, texts))

    targets_TB = torch.from_numpy(np.concatenate(texts))[:, None]
    tokens_TB = torch.cat([torch.zeros_like(targets_TB[:1]), targets_TB[:-1]])

    def as_one_text() -> float:
        state, sums = model.initial_state(1), 0.0
        for inputs_TB, of_chunk_TB in zip(tokens_TB.split(CHUNK), targets_TB.split(CHUNK), strict=True):
            log_probs_TB, state = model.target_log_probs(inputs_TB, of_chunk_TB, state)
            sums += float(log_probs_TB.sum())
        return sums

    def probe(score: Callable[[], float]) -> Callable[[], dict[str, Tensor]]:
        return lambda: {"loss": torch.tensor(-score() / len(targets_TB))}

    for name, precision, score in (
        ("kenlm 1 thread", "float32", theirs),
        ("lmtrain lines in batches", "float64", in_batches),
        ("lmtrain one text", "float64", as_one_text),
    ):
        yield Contestant(name, precision, score, probe(score), num_tokens=len(targets_TB))


def _ids(lines: list[str], vocabulary: dict[str, int]) -> list[Any]:
    """The ids of each line with the end of the line."""
    return [np.array([*(vocabulary.get(word, 1) for word in line.split()), 0], np.int64) for line in lines]
