"""What whole distributions say of the tokens that came: read as one stream, or many lines side by side.

    ids of a text in pieces -> (ids, their log-probabilities, entropies, ranks and likeliest others), in the order of the text

Only a few numbers of each distribution are kept, so at most ROWS distributions are in memory, whatever is given. Lines are read
side by side as in `batch`: a window of them, sorted by length, in batches; what fills up short ones is never looked at.

    legend   T steps in a chunk · B lines · N tokens · K likeliest · V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmtrain.data.tokenizer import Ids
from lmtrain.inference.batch import windows
from lmtrain.inference.evaluate import make_tokens, next_inputs, tempered_all
from lmtrain.inference.score import equal_chunks
from lmtrain.models.base import LanguageModel, State, evaluating

ROWS = 256  # distributions that are held at once
WINDOW = 1 << 13  # tokens among which lines of one length are found
NUM_INSTEAD = 3


@dataclass(frozen=True)
class Described:
    """What the distributions of N tokens say of those that came; without ranks, only surprisal and entropy were asked for."""

    log_probs: NDArray[np.float64]  # [N]
    entropies: NDArray[np.float64]  # [N]
    ranks: NDArray[np.int64]  # [N], or empty
    likeliest: NDArray[np.int64]  # [N, K] ids of the NUM_INSTEAD + 1 likeliest tokens
    probabilities: NDArray[np.float64]  # [N, K]

    def of(self, place: int, token: int) -> tuple[int | None, list[tuple[int, float]]]:
        """The rank of the token that came, and the likeliest others with their probabilities."""
        if not len(self.ranks):
            return None, []
        pairs = zip(self.likeliest[place].tolist(), self.probabilities[place].tolist(), strict=True)
        return int(self.ranks[place]), [pair for pair in pairs if pair[0] != token][:NUM_INSTEAD]


def describe_stream(
    model: LanguageModel, eos_id: int, pieces: Iterable[Ids], *, temperature: float, in_full: bool, at_once: bool,
    device: torch.device | str,
) -> Iterator[tuple[Ids, Described]]:  # fmt: skip
    """The tokens of one text, one behind the other; `at_once`: those of a piece before the next piece is asked for."""
    state, previous_B = model.initial_state(1), make_tokens(np.array([eos_id]), model, device)
    for ids in equal_chunks(pieces, ROWS, at_once):
        described, state, previous_B = _read_part(model, ids, state, previous_B, temperature, in_full)
        yield ids, described


def describe_lines(
    model: LanguageModel, eos_id: int, pieces: Iterable[Ids], *, temperature: float, in_full: bool, at_once: bool,
    device: torch.device | str,
) -> Iterator[tuple[Ids, Described]]:  # fmt: skip
    """The same for a model that forgets at the end of each line, many lines side by side; a very long one by itself."""
    fresh = make_tokens(np.array([eos_id]), model, device)
    state, previous_B = model.initial_state(1), fresh
    in_long_line = False
    for lines in windows(pieces, eos_id, WINDOW, at_once):
        ends = int(lines[-1][-1]) == eos_id
        if ends and not in_long_line:
            yield np.concatenate(lines), _describe_window(model, eos_id, lines, temperature, in_full, device)
            continue
        for ids in np.split(lines[0], range(ROWS, len(lines[0]), ROWS)):
            described, state, previous_B = _read_part(model, ids, state, previous_B, temperature, in_full)
            yield ids, described
        in_long_line = not ends
        if ends:
            state, previous_B = model.initial_state(1), fresh


def _read_part(
    model: LanguageModel, ids: Ids, state: State, previous_B: Tensor, temperature: float, in_full: bool
) -> tuple[Described, State, Tensor]:
    """The next tokens of one text, with the state and the token behind them."""
    targets_TB = make_tokens(ids[:, None], model, previous_B.device)
    inputs_TB, state = next_inputs(previous_B, targets_TB, state)
    with evaluating(model):
        log_probs_TBV, state = model.log_probs(inputs_TB, state)
        return describe(log_probs_TBV[:, 0], targets_TB[:, 0], temperature, in_full), state, targets_TB[-1]


def _describe_window(
    model: LanguageModel, eos_id: int, lines: Sequence[Ids], temperature: float, in_full: bool, device: torch.device | str
) -> Described:
    """Whole lines, in their order."""
    lengths = np.array([len(ids) for ids in lines])
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")
    places: list[NDArray[np.int64]] = []
    parts: list[Described] = []
    width = max(1, ROWS // 8)  # lines of a batch: enough for the products, few enough to be of about one length
    for first in range(0, len(order), width):
        batch = order[first : first + width]
        for where, described in _describe_batch(
            model, eos_id, [lines[number] for number in batch.tolist()], temperature, in_full, device
        ):
            steps, columns = where
            places.append(starts[batch[columns]] + steps)
            parts.append(described)
    back = np.argsort(np.concatenate(places))
    rest = back if in_full else slice(0)  # where nothing more was asked for
    return Described(
        np.concatenate([part.log_probs for part in parts])[back], np.concatenate([part.entropies for part in parts])[back],
        np.concatenate([part.ranks for part in parts])[rest], np.concatenate([part.likeliest for part in parts])[rest],
        np.concatenate([part.probabilities for part in parts])[rest],
    )  # fmt: skip


def _describe_batch(
    model: LanguageModel, eos_id: int, lines: Sequence[Ids], temperature: float, in_full: bool, device: torch.device | str
) -> Iterator[tuple[tuple[NDArray[np.int64], NDArray[np.int64]], Described]]:
    """Lines side by side, the longest first: (steps, columns) of the tokens of each chunk, and what is said of them."""
    lengths_B = np.array([len(ids) for ids in lines])
    targets_NB = np.full((lengths_B[0], len(lines)), eos_id, np.int64)
    for column, ids in enumerate(lines):
        targets_NB[: len(ids), column] = ids
    state, previous_B = model.initial_state(len(lines)), make_tokens(np.full(len(lines), eos_id), model, device)
    start = 0
    while start < len(targets_NB):
        going = int((lengths_B > start).sum())
        steps = min(max(1, ROWS // going), len(targets_NB) - start)
        where_TB = np.arange(start, start + steps)[:, None] < lengths_B[:going]
        targets_TB = make_tokens(targets_NB[start : start + steps, :going], model, device)
        inputs_TB, state = next_inputs(previous_B, targets_TB, state)
        mask_TB = torch.from_numpy(where_TB).to(device)
        with evaluating(model):
            log_probs_TBV, state = model.log_probs(inputs_TB, state)
            described = describe(log_probs_TBV[mask_TB], targets_TB[mask_TB], temperature, in_full)
        found_steps, columns = where_TB.nonzero()
        yield (start + found_steps, columns), described
        previous_B, start = targets_TB[-1], start + steps


def describe(log_probs_NV: Tensor, targets_N: Tensor, temperature: float, in_full: bool) -> Described:
    """What distributions say, in few passes over them: sums are float64, powers of the type that the model gives."""
    if temperature != 1:
        log_probs_NV = tempered_all(log_probs_NV, temperature)
    chosen_N1 = log_probs_NV.gather(1, targets_N[:, None])
    log_probs, entropies = chosen_N1[:, 0].double().cpu().numpy(), _entropies(log_probs_NV)
    if not in_full:
        nothing = np.empty(0, np.int64)
        return Described(log_probs, entropies, nothing, nothing[:, None], np.empty((0, 1)))
    ranks = (1 + (log_probs_NV > chosen_N1).count_nonzero(1)).cpu().numpy()
    likeliest = log_probs_NV.topk(min(NUM_INSTEAD + 1, log_probs_NV.shape[1]), dim=1)
    return Described(
        log_probs, entropies, ranks, likeliest.indices.cpu().numpy(), likeliest.values.double().exp().cpu().numpy()
    )


def _entropies(log_probs_NV: Tensor) -> NDArray[np.float64]:
    """-sum p log p of each row; what is impossible adds nothing."""
    terms_NV = log_probs_NV.exp().mul_(log_probs_NV)
    if len(log_probs_NV) and log_probs_NV.amin() == -torch.inf:
        terms_NV.masked_fill_(log_probs_NV == -torch.inf, 0.0)
    return (-terms_NV.sum(1, dtype=torch.float64) + 0.0).cpu().numpy()
