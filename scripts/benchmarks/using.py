"""Contestants that use a trained model: many lines scored, many texts written; side by side, plainly, and one at a time.

Lines are as long as those of Brown: the logarithms of their lengths have a standard deviation of 1. The plain way takes batches
of 64 in the order of the lines, filled up to the longest; its texts are drawn 64 side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.measuring import Contestant, autocast
from benchmarks.models import draw_tokens, our_model, plain_model
from benchmarks.pieces import Numbers
from benchmarks.presets import Preset
from lmtrain.inference.batch import score_batches
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.sample import sample

PLAIN_BATCH = 64
PRECISIONS = ("float32", "bfloat16")


def make_lines(preset: Preset) -> list[np.ndarray]:
    """`batch_size` lines of `chunk_length` tokens on average, each ended by token 0."""
    weights = np.exp(np.random.RandomState(1).standard_normal(preset.batch_size))
    free = preset.num_tokens - preset.batch_size  # every line has one token
    ends = np.round(np.cumsum(weights) / weights.sum() * free).astype(np.int64)
    lengths = 1 + np.diff(ends, prepend=0)
    ids = draw_tokens(preset, torch.device("cpu"), preset.chunk_length).flatten().numpy().astype(np.int32)
    lines = np.split(ids, np.cumsum(lengths)[:-1])
    for line in lines:
        line[line == 0] = 1
        line[-1] = 0
    return lines


def make_scorers(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Every line by itself: its log-probability."""
    ours = our_model(preset, "auto", device).eval()
    plain = plain_model(preset, ours, device).eval()
    lines, tokenizer = make_lines(preset), Numbers(preset.vocab_size)

    @torch.inference_mode()
    def plainly(precision: str) -> Tensor:
        total = 0.0
        for start in range(0, len(lines), PLAIN_BATCH):
            targets = [torch.from_numpy(line).long() for line in lines[start : start + PLAIN_BATCH]]
            targets_TB = torch.nn.utils.rnn.pad_sequence(targets, padding_value=-100).to(device)
            inputs_TB = torch.cat([torch.zeros_like(targets_TB[:1]), targets_TB[:-1].clamp(min=0)])
            with autocast(precision, device):
                logits_TBV, _ = plain(inputs_TB, None)
            total += float(F.cross_entropy(logits_TBV.flatten(0, 1).float(), targets_TB.flatten(), reduction="sum"))
        return torch.tensor(total)

    def score(precision: str, groups: list[list[np.ndarray]]) -> Tensor:
        total = 0.0
        with autocast(precision, device):
            for group in groups:
                scored: Any = score_batches(ours, tokenizer, group, device=device)  # type: ignore[arg-type]
                total -= sum(float(log_probs.sum()) for _, log_probs in scored)
        return torch.tensor(total)

    for precision in PRECISIONS:
        yield _of("torch.nn", precision, partial(plainly, precision))
    for precision in PRECISIONS:
        yield _of("lmtrain one by one", precision, partial(score, precision, [[line] for line in lines]))
        yield _of("lmtrain", precision, partial(score, precision, [lines]))


def _of(name: str, precision: str, run: Any) -> Contestant:
    return Contestant(name, precision, run, lambda: {"loss": run()})


def make_samplers(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """`batch_size` texts of `chunk_length` tokens each."""
    ours = our_model(preset, "auto", device).eval()
    plain = plain_model(preset, ours, device).eval()
    tokenizer: Any = Numbers(preset.vocab_size)
    settings = SampleSettings(max_tokens=preset.chunk_length, allow_unk=True, statistics=False)

    @torch.no_grad()
    def plainly(precision: str) -> None:
        tokens, state = torch.zeros(1, preset.batch_size, dtype=torch.long, device=device), None
        for _ in range(preset.chunk_length):
            with autocast(precision, device):
                logits, state = plain(tokens, state)
            tokens = torch.multinomial(logits[0].float().softmax(-1), 1).T

    def write(precision: str, side_by_side: int) -> None:
        with autocast(precision, device):
            texts = sample(
                ours, tokenizer, "", settings, num_samples=preset.batch_size, side_by_side=side_by_side, device=device
            )
            for draws in texts:
                for _ in draws:
                    pass

    for precision in PRECISIONS:
        yield Contestant("torch.nn", precision, partial(plainly, precision))
    for precision in PRECISIONS:
        yield Contestant("lmtrain one by one", precision, partial(write, precision, 1))
        yield Contestant("lmtrain", precision, partial(write, precision, preset.batch_size))
