"""Measures how well a model predicts words of different frequency and place in a line, and which it predicts worst."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import UserError
from lmtrain.progress import watched
from lmtrain.shell import one_line

RANKS = (10, 100, 1000, 10_000)
PLACES = (1, 2, 3, 5, 10, 20)
WORST = 20
MIN_SEEN = 3  # times; a word that was seen less often tells little


@dataclass(frozen=True)
class Predicted:
    """How one model predicts the validation text.

    by_rank, by_place  perplexities by frequency and by place in the line, with names; None if there are no such tokens
    worst              tokens with how often they were seen, their mean surprisal in nats, and their rank by frequency
    """

    by_rank: dict[str, float | None]
    by_place: dict[str, float | None]
    worst: list[tuple[str, int, float, int]]


def predict(run: Path, most_tokens: int, device: str) -> Predicted | None:
    """Reads the first `most_tokens` of validation; None for a run that is no language model, or keeps no text.

    Raises a UserError if the run has no checkpoint that can be read.
    """
    from lmtrain.inference.evaluate import iter_target_log_probs
    from lmtrain.saved import load_trained
    from lmtrain.tasks.opening import task_at

    if task_at(run) != "language":
        return None
    trained = load_trained(run, prefer="best", device=device)
    split = trained.texts.get("valid")
    if split is None or not len(split.ids):
        return None
    ids, tokenizer = np.asarray(split.ids[:most_tokens]), trained.tokenizer
    nats = np.empty(len(ids))
    with watched(f"Scoring with {one_line(str(run))}", len(ids), "tok") as advance:
        for scored in iter_target_log_probs(trained.model, ids, eos_id=tokenizer.eos_id, device=device):
            nats[scored.positions] = -scored.log_probs
            advance(scored.positions.size)
    ranks = _ranks(trained, int(ids.max()) + 1)[ids]
    return Predicted(
        _means(nats, ranks, RANKS), _means(nats, _places(ids, tokenizer.eos_id), PLACES), _worst(ids, nats, ranks, tokenizer)
    )


def _ranks(trained: Any, least: int) -> NDArray[np.int64]:
    """Returns the rank of every token by its frequency in training, from 1. Vocabularies of characters and words that were
    learnt there descend in it; of others, what is kept of the text is asked."""
    size = max(trained.tokenizer.vocab_size, least)
    start = trained.texts.get("train_start")
    if start is None or _descends(trained):
        return np.arange(1, size + 1)
    order = np.argsort(-np.bincount(start.ids, minlength=size), kind="stable")
    ranks = np.empty(size, np.int64)
    ranks[order] = np.arange(1, size + 1)
    return ranks


def _descends(trained: Any) -> bool:
    """Says whether ids descend in frequency: neither listed (tokenizer.vocabulary) nor learnt on another text (start_from)."""
    from lmtrain.tasks.opening import training_settings

    try:
        settings = training_settings(trained.path)
    except UserError:
        return False
    return trained.tokenizer.name in ("char", "word") and not settings.tokenizer.vocabulary and not settings.start_from


def _places(ids: NDArray[Any], eos_id: int) -> NDArray[np.int64]:
    """Returns the place of every token in its line, from 1. The end of a line belongs to it."""
    starts = np.concatenate([[0], np.flatnonzero(ids[:-1] == eos_id) + 1])
    lengths = np.diff([*starts, len(ids)])
    return np.arange(len(ids)) - np.repeat(starts, lengths) + 1


def _means(nats: NDArray[np.float64], values: NDArray[np.int64], bounds: tuple[int, ...]) -> dict[str, float | None]:
    """Returns perplexities of the tokens whose value is in the ranges that end at `bounds`."""
    found: dict[str, float | None] = {}
    for first, last in zip((1, *(bound + 1 for bound in bounds)), (*bounds, None), strict=True):
        name = f"above {bounds[-1]:,}" if last is None else f"{first:,}" if first == last else f"{first:,} to {last:,}"
        inside = nats[(values >= first) & (values <= last if last is not None else True)]
        with np.errstate(over="ignore"):
            found[name] = float(np.exp(inside.mean())) if len(inside) else None
    return found


def _worst(
    ids: NDArray[Any], nats: NDArray[np.float64], ranks: NDArray[np.int64], tokenizer: Any
) -> list[tuple[str, int, float, int]]:
    """Returns the tokens with the highest mean surprisal, of those seen often enough, or of all if none is."""
    counts, sums = np.bincount(ids), np.bincount(ids, weights=nats)
    seen = np.flatnonzero(counts >= min(MIN_SEEN, counts.max()))
    means = sums[seen] / counts[seen]
    rank_of = dict(zip(ids.tolist(), ranks.tolist(), strict=True))
    worst = seen[np.argsort(-means, kind="stable")[:WORST]]
    return [(tokenizer.token_text(int(i)), int(counts[i]), float(sums[i] / counts[i]), rank_of[int(i)]) for i in worst]
