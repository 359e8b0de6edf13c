"""Scores texts that know nothing of each other side by side: sorted by length, in batches, with results in their own order.

    texts in the order given -> a window of them -> sorted by length -> batches -> log-probabilities, in the order given

A batch is [T, B], a column per text, the longest first. What fills up the shorter columns costs a recurrence a little and the
output layer nothing, because only places that hold a token are handed to it. Every text begins where a line begins. The
numbers are those that each text has alone, up to rounding. Memory is bounded by a window and a batch, whatever is given.

    legend   T steps in a chunk · B texts · N tokens of a chunk that are no filling
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lmtrain.data.tokenizer import Ids, Tokenizer
from lmtrain.inference.evaluate import CHUNK_TOKENS, STATIC, Static, check_numbers, make_tokens, next_inputs, tempered
from lmtrain.models.base import LanguageModel, evaluating

BATCH_TOKENS = 4096  # of a batch, filling included
WINDOW_BATCHES = 32  # among so many batches of texts those of one length are found

LogProbs = NDArray[np.float64]


def score_batches(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Iterable[Ids],
    *,
    method: Static = STATIC,
    batch_tokens: int = BATCH_TOKENS,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Ids, LogProbs]]:
    """Every text with the log-probabilities of its tokens, in the order given; a window of them is read before any is scored.

    Raises what `check_numbers` does.
    """
    window: list[Ids] = []
    num_tokens = 0
    for ids in texts:
        window.append(ids)
        num_tokens += len(ids) + 1
        if num_tokens >= WINDOW_BATCHES * batch_tokens:
            yield from zip(window, _score_window(model, tokenizer.eos_id, window, method, batch_tokens, device), strict=True)
            window, num_tokens = [], 0
    yield from zip(window, _score_window(model, tokenizer.eos_id, window, method, batch_tokens, device), strict=True)


def score_lines(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pieces: Iterable[Ids],
    *,
    method: Static = STATIC,
    batch_tokens: int = BATCH_TOKENS,
    at_once: bool = False,
    device: torch.device | str = "cpu",
) -> Generator[tuple[Ids, LogProbs], None, None]:
    """The same for the lines of one text that comes in pieces of ids: pieces of it in its order, cut anywhere.

    A line that is longer than a window is scored as it comes, in pieces. `at_once`: all lines that end in a piece are scored
    before the next piece is asked for. The model must forget at the end of lines (`forget_at`).
    """
    with ExitStack() as stack:
        long_line = None  # how the line goes on that is being read in parts
        for lines in windows(pieces, tokenizer.eos_id, WINDOW_BATCHES * batch_tokens, at_once):
            ends = lines[-1][-1] == tokenizer.eos_id
            if ends and long_line is None:
                scored = _score_window(model, tokenizer.eos_id, lines, method, batch_tokens, device)
                yield np.concatenate(lines), np.concatenate(scored)
                continue
            if long_line is None:
                before = make_tokens(np.array([tokenizer.eos_id]), model, device)
                long_line = stack.enter_context(method.scoring(model, before))
            for ids in np.split(lines[0], range(CHUNK_TOKENS, len(lines[0]), CHUNK_TOKENS)):
                log_probs = long_line(make_tokens(ids[:, None], model, device))[:, 0].double().cpu().numpy()
                check_numbers(log_probs, method)
                yield ids, log_probs
            if ends:
                long_line = None


def windows(pieces: Iterable[Ids], eos_id: int, most: int, at_once: bool) -> Iterator[list[Ids]]:
    """Whole lines, about `most` tokens of them; a line of more, or without an end, in parts, each alone in its list."""
    lines: list[Ids] = []
    held: list[Ids] = []  # the beginning of a line
    num_tokens = num_held = 0
    is_long = False
    for piece in pieces:
        ends = np.flatnonzero(piece == eos_id) + 1
        for start, end in pairwise([0, *ends.tolist(), len(piece)]):
            part = piece[start:end]
            held.append(part)
            num_held += len(part)
            ended = end > start and part[-1] == eos_id
            if num_held >= most or (ended and is_long):  # as what it is, alone
                if lines:
                    yield lines
                yield [np.concatenate(held)]
                lines, num_tokens, held, num_held, is_long = [], 0, [], 0, not ended
            elif ended:
                lines.append(np.concatenate(held))
                num_tokens, held, num_held = num_tokens + num_held, [], 0
                if num_tokens >= most:
                    yield lines
                    lines, num_tokens = [], 0
        if at_once and lines:
            yield lines
            lines, num_tokens = [], 0
    if lines:
        yield lines
    if num_held:
        yield [np.concatenate(held)]


def _score_window(
    model: LanguageModel, eos_id: int, texts: Sequence[Ids], method: Static, batch_tokens: int, device: torch.device | str
) -> list[LogProbs]:
    """The log-probabilities of each text's tokens, float64."""
    if method.temperature != 1:
        batch_tokens = min(batch_tokens, CHUNK_TOKENS)  # whole distributions are held
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]), reverse=True)
    results: list[LogProbs] = [np.empty(0)] * len(texts)
    while order:
        size = max(1, batch_tokens // max(1, len(texts[order[0]])))
        batch, order = order[:size], order[size:]
        scored = _score_batch(model, eos_id, [texts[number] for number in batch], method, batch_tokens, device)
        for number, log_probs in zip(batch, scored, strict=True):
            results[number] = log_probs
    return results


def _score_batch(
    model: LanguageModel, eos_id: int, texts: Sequence[Ids], method: Static, batch_tokens: int, device: torch.device | str
) -> list[LogProbs]:
    """The same for one batch, the longest text first."""
    lengths_B = np.array([len(ids) for ids in texts])
    targets_NB = np.full((lengths_B[0], len(texts)), eos_id, np.int64)
    for column, ids in enumerate(texts):
        targets_NB[: len(ids), column] = ids
    log_probs_NB = np.empty(targets_NB.shape)
    state, previous_B = model.initial_state(len(texts)), make_tokens(np.full(len(texts), eos_id), model, device)
    start = 0
    while start < len(targets_NB):
        going = int((lengths_B > start).sum())
        steps = min(CHUNK_TOKENS, max(1, batch_tokens // going), len(targets_NB) - start)
        chunk = slice(start, start + steps), slice(0, going)
        where_TB = np.arange(start, start + steps)[:, None] < lengths_B[:going]
        targets_TB = make_tokens(targets_NB[chunk], model, device)
        inputs_TB, state = next_inputs(previous_B, targets_TB, state)
        mask_TB = torch.from_numpy(where_TB).to(device)
        with evaluating(model):
            if method.temperature == 1:
                log_probs_N, state = model.target_log_probs_where(inputs_TB, targets_TB, mask_TB, state)
            else:
                log_probs_TBV, state = model.log_probs(inputs_TB, state)
                log_probs_N = tempered(log_probs_TBV, targets_TB, method.temperature)[mask_TB]
        log_probs_NB[chunk][where_TB] = log_probs_N.double().cpu().numpy()
        check_numbers(log_probs_NB[chunk][where_TB], method)
        previous_B, start = targets_TB[-1], start + steps
    return [log_probs_NB[:length, column] for column, length in enumerate(lengths_B.tolist())]
