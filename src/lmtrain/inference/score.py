"""Scores text as it comes in: log-probabilities per line and per token, then the bill of the whole.

    blocks of text -> tokens -> chunks of equal length -> log-probabilities -> lines, which end with the tokenizer's `<eos>`

The chunks are cut as `evaluate` cuts them with one stream, whatever the lines are, so both give the same number to the
last bit; short lines share a chunk and a long line takes several. Memory does not grow with the length of the text,
nor (unless its tokens are kept) with that of a line. Between lines the state goes on as the model's policy says; for lines that
are to be compared with each other, `model.forget_at(StatePolicy.line)` makes each start afresh.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from lmtrain.data.characters import spaced
from lmtrain.data.kinds import Kind
from lmtrain.data.tokenizer import Tokenizer
from lmtrain.data.vocabulary import EOS, utf8
from lmtrain.errors import DataError
from lmtrain.inference.evaluate import CHUNK_TOKENS, STATIC, Bill, Method, Tally, check_numbers, make_tokens, number_text
from lmtrain.models.base import LanguageModel

EOS_WORD = re.compile(rf"\s{re.escape(EOS)}(?=\s)", re.ASCII)  # whitespace as words are split by
HEADER = "line\tlog_prob\ttokens\tunknown"


class ScoredToken(NamedTuple):
    """One token of a line; `nats` is minus its log-probability."""

    text: str
    nats: float
    is_unk: bool


@dataclass(frozen=True)
class ScoredLine:
    """A line (from number 1), its end included in every count; `tokens` only where they were asked for.

    `total_nats` are infinite where a token has probability zero.
    """

    number: int
    total_nats: float
    num_tokens: int
    num_unk: int
    tokens: tuple[ScoredToken, ...] | None = None


def score_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    blocks: Iterable[str],
    *,
    on_line: Callable[[ScoredLine], object] = lambda line: None,
    per_token: bool = False,
    method: Method = STATIC,
    chunk_length: int | None = None,
    device: torch.device | str = "cpu",
) -> Bill:
    """The bill of a text, given in blocks cut anywhere (lines, say), after calling `on_line` for each of its lines.

    As in a corpus, a last line of words is ended where it is not. `chunk_length` is how many tokens are read before any
    of them is scored. Raises what `check_numbers` does, and DataError for an empty text and where `<eos>` stands in it as
    a word, which would end a line.
    """
    text = _Counted(tokenizer.read(blocks), tokenizer.kind, tokenizer.separators)
    micronats = 0

    def encoded() -> Iterator[np.ndarray]:
        nonlocal micronats
        for ids, spelling in tokenizer.encode_spelt(text):
            micronats += spelling
            yield ids

    chunks = _equal_chunks(encoded(), method.segment_length or chunk_length or CHUNK_TOKENS)
    total, line = Tally(tokenizer.eos_id, tokenizer.unk_id), _Line(tokenizer, per_token)
    num_words, before = 0, tokenizer.eos_id
    with method.scoring(model, make_tokens(np.array([tokenizer.eos_id]), model, device)) as score:
        for ids in chunks:
            log_probs = score(make_tokens(ids[:, None], model, device))[:, 0].double().cpu().numpy()
            check_numbers(log_probs, method)
            total.add(ids, log_probs)
            num_words, before = num_words + tokenizer.count_words(ids, before), int(ids[-1])
            for scored in line.add(ids, log_probs):
                on_line(scored)
    for scored in line.end():
        on_line(scored)
    if not total.num_tokens:
        raise DataError("The text to score is empty.", "At least one line is needed.", "Give a file or a pipe with text.")
    return total.bill(
        num_chars=text.num_chars, num_bytes=text.num_bytes, num_words=num_words,
        spelling_nats=None if tokenizer.rare is None else micronats / 1e6, num_streams=1,
        state_policy=model.state_policy.value, method=method.label, token_text=tokenizer.token_text,
    )  # fmt: skip


class _Counted:
    """The same blocks, counted on their way; none holds an `<eos>` that would be read as one; the last line ends if it must."""

    def __init__(self, blocks: Iterable[str], kind: Kind, separators: str) -> None:
        self.blocks, self.kind, self.separators = blocks, kind, separators
        self.num_chars = self.num_bytes = self.num_lines = 0
        self.tail = "\n"  # as much as could be the beginning of " <eos> "

    def __iter__(self) -> Iterator[str]:
        for block in filter(None, self.blocks):
            yield self._count(block)
        if self.kind.ends_last_line and not self.tail.endswith("\n"):
            yield self._count("\n")

    def _count(self, block: str) -> str:
        if self.kind.reads_eos and (found := EOS_WORD.search(spaced(self.tail + block, self.separators))):
            number = self.num_lines + block.count("\n", 0, max(0, found.start() + 1 - len(self.tail))) + 1
            raise DataError(
                f"Line {number:,} of the text to score contains the word {EOS}, which stands for the end of a line.",
                "Every line gets one row of numbers.",
                f"Take {EOS} out, or type  python -m lmtrain evaluate RUN --text FILE  for the number of the whole text.",
            )
        self.num_chars += len(block)
        self.num_bytes += len(utf8(block))
        self.num_lines += block.count("\n")
        self.tail = (self.tail + block)[-len(EOS) - 1 :]
        return block


def _equal_chunks(pieces: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The same ids in arrays of `length`; the last one may be shorter."""
    held: list[np.ndarray] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        if num_held >= length:
            ids = np.concatenate(held)
            whole = num_held - num_held % length
            yield from ids[:whole].reshape(-1, length)
            held, num_held = [ids[whole:]], num_held % length
    if num_held:
        yield np.concatenate(held)


class _Line:
    """The line that is being read."""

    def __init__(self, tokenizer: Tokenizer, per_token: bool) -> None:
        self.tokenizer, self.per_token = tokenizer, per_token
        self.number = 0
        self._begin()

    def _begin(self) -> None:
        self.number += 1
        self.tally = Tally(self.tokenizer.eos_id, self.tokenizer.unk_id)
        self.tokens: list[ScoredToken] = []

    def add(self, ids: np.ndarray, log_probs: np.ndarray) -> Iterator[ScoredLine]:
        """Goes on with these tokens; every line that ends in them."""
        start = 0
        for end in (np.flatnonzero(ids == self.tokenizer.eos_id) + 1).tolist():
            self._extend(ids[start:end], log_probs[start:end])
            yield from self.end()
            start = end
        self._extend(ids[start:], log_probs[start:])

    def end(self) -> Iterator[ScoredLine]:
        """The line as far as it has been read, if it has any token."""
        if self.tally.num_tokens:
            tokens = tuple(self.tokens) if self.per_token else None
            yield ScoredLine(self.number, self.tally.total_nats, self.tally.num_tokens, self.tally.num_unk, tokens)
            self._begin()

    def _extend(self, ids: np.ndarray, log_probs: np.ndarray) -> None:
        self.tally.add(ids, log_probs)
        if self.per_token:
            self.tokens += [
                ScoredToken(self.tokenizer.token_text(token), -log_prob, token == self.tokenizer.unk_id)
                for token, log_prob in zip(ids.tolist(), log_probs.tolist(), strict=True)
            ]


# ---- how a line is written


def format_line(line: ScoredLine) -> str:
    """A line's numbers under `HEADER`, separated by tabs; below them its tokens, if it has any, one a row."""
    rows = [f"{line.number}\t{number_text(-line.total_nats, 6)}\t{line.num_tokens}\t{line.num_unk}"]
    rows += [
        f"\t{token.text.encode('unicode_escape').decode() if not token.text.isprintable() else token.text}"
        f"\t{number_text(-token.nats, 6)}{'	unknown' * token.is_unk}"
        for token in line.tokens or ()
    ]
    return "\n".join(rows)


def line_to_json(line: ScoredLine) -> dict[str, Any]:
    """A line's numbers (natural logarithms) and tokens; None stands for minus infinity, the logarithm of zero."""
    values: dict[str, Any] = {
        "line": line.number,
        "log_prob": _finite(-line.total_nats),
        "num_tokens": line.num_tokens,
        "num_unk": line.num_unk,
    }
    if line.tokens is not None:
        values["tokens"] = [
            {"text": token.text, "log_prob": _finite(-token.nats), "is_unk": token.is_unk} for token in line.tokens
        ]
    return values


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
