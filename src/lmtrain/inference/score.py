"""Scores text as it comes in: log-probabilities per line and per token, then the evaluation of the whole.

    blocks of text -> tokens -> chunks of equal length -> log-probabilities -> lines, which end with the tokenizer's `<eos>`

The chunks are cut as `evaluate` cuts them with one stream, whatever the lines are, so both give the same number to the
last bit; short lines share a chunk and a long line takes several. Memory does not grow with the length of the text,
nor (unless its tokens are kept) with that of a line. Between lines the state goes on as the model's policy says; for lines that
are to be compared with each other, `model.forget_at(StatePolicy.line)` makes each start afresh, and they may be scored side
by side (`batch.py`).
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lmtrain.data.characters import spaced
from lmtrain.data.tokenizer import Ids, Tokenizer
from lmtrain.data.vocabulary import EOS, utf8
from lmtrain.errors import DataError
from lmtrain.inference.batch import BATCH_TOKENS, score_batches, score_lines
from lmtrain.inference.evaluate import (
    CHUNK_TOKENS,
    STATIC,
    Evaluation,
    Method,
    Static,
    Tally,
    check_numbers,
    make_tokens,
    number_text,
)
from lmtrain.models.base import LanguageModel

Name = TypeVar("Name", bound=str)
EOS_WORD = re.compile(rf"\s{re.escape(EOS)}(?=\s)", re.ASCII)  # whitespace as words are split by
log = logging.getLogger("lmtrain")

HEADER = "line\tlog_prob\ttokens\tunknown"


class ScoredToken(NamedTuple):
    """One token of a line, an unknown word as it stood in the text; `nats` is minus its log-probability."""

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
    independent: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    at_once: bool = False,
    unknown_cost: float = 0.0,
    spelt: bool = False,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Returns the evaluation of a text in blocks cut anywhere (such as lines), after calling `on_line` for each line.

    Its lines end in "\\n", as those of a file that was read. As in a corpus, a last line of words is ended where it is not.
    `chunk_length` is how many tokens are read before any of them is scored.

    independent   every line by itself, `batch_tokens` of them side by side: the fast way for a model that forgets at lines
    at_once       the lines that end in a block are scored before the next block is asked for; chunks are then cut otherwise,
                  so numbers may differ in their last bits, and the method must prescribe no segments
    unknown_cost  nats that each unknown word costs besides what the model asks for `<unk>`, which stands for them all
    spelt         what the spelling of an unknown word costs is a part of its log-probability, where the tokenizer spells them,
                  so that lines are comparable with those of other tokens; the `spelling_nats` of the evaluation are then 0

    Where the literal `<eos>` stands in a text of words, it is the end of a line for the model, as in training, but belongs to
    the row of the line in which it stands. Raises what `check_numbers` does, and DataError for an empty text.
    """
    text = CountedText(blocks, tokenizer)
    source = Source(tokenizer, per_token, unknown_cost, spelt=spelt)
    pieces, total, line = source.encode(text), Tally(tokenizer), _Line(source)
    if independent:
        assert isinstance(method, Static), "what adapts goes from line to line"
        scored = score_lines(
            model, tokenizer, pieces, method=method, batch_tokens=batch_tokens, at_once=at_once, device=device
        )  # fmt: skip
    else:
        assert not (at_once and method.segment_length), "segments are not cut at the ends of lines"
        chunks = equal_chunks(pieces, method.segment_length or chunk_length or CHUNK_TOKENS, at_once)
        scored = _score_chunks(model, tokenizer, chunks, method, device)
    with closing(scored):  # so that weights which the method adapts are restored even where this is interrupted
        for ids, log_probs in map(source.priced, scored):
            total.add(ids, log_probs)
            source.count_words(ids)
            for ended in line.add(ids, log_probs):
                on_line(ended)
    for ended in line.end():
        on_line(ended)
    if not total.num_tokens:
        raise DataError("The text to score is empty.", "At least one line is needed.", "Give a text that has one.")
    return total.evaluation(
        text, num_words=source.num_words, spelling_nats=source.spelling_nats, num_streams=1,
        state_policy=model.state_policy.value, method=method.label + source.label,
    )  # fmt: skip


def _score_chunks(
    model: LanguageModel, tokenizer: Tokenizer, chunks: Iterable[Ids], method: Method, device: torch.device | str
) -> Generator[tuple[Ids, NDArray[np.float64]], None, None]:
    """Every chunk of one text with the log-probabilities of its tokens."""
    with method.scoring(model, make_tokens(np.array([tokenizer.eos_id]), model, device)) as score:
        for ids in chunks:
            log_probs = score(make_tokens(ids[:, None], model, device))[:, 0].double().cpu().numpy()
            check_numbers(log_probs, method)
            yield ids, log_probs


def score_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    per_token: bool = False,
    method: Static = STATIC,
    batch_tokens: int = BATCH_TOKENS,
    unknown_cost: float = 0.0,
    spelt: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[ScoredLine]:
    """Every text by itself, numbered from 1: what `score_text` says of it, all its lines together. Texts may be empty.

    A text of words is ended where it is not, an empty one too. Some texts are read before any is scored.
    """

    def encoded(text: str) -> Ids:
        blocks = CountedText([text or "\n" * tokenizer.kind.ends_last_line], tokenizer)
        return np.concatenate([np.empty(0, np.int32), *source.encode(blocks)])

    source = Source(tokenizer, per_token, unknown_cost, spelt=spelt)
    scored = score_batches(model, tokenizer, map(encoded, texts), method=method, batch_tokens=batch_tokens, device=device)
    for number, (ids, log_probs) in enumerate(map(source.priced, scored), 1):
        whole = _Line(source, number)
        whole.extend(ids, log_probs)
        yield whole.scored()


class CountedText:
    """The same blocks, as the tokenizer reads them and counted on their way; the last line is ended where it must be.

    literals   which of the ends of lines (by their number, from 0) stand in the text as the word `<eos>`: no row ends there
    """

    def __init__(self, blocks: Iterable[str], tokenizer: Tokenizer) -> None:
        self.blocks, self.kind, self.separators = tokenizer.read(blocks), tokenizer.kind, tokenizer.separators
        self.num_chars = self.num_bytes = self.num_lines = 0
        self.tail = "\n"  # as much as could be the beginning of " <eos> "
        self.literals: deque[int] = deque()
        self._num_literals = 0

    def __iter__(self) -> Iterator[str]:
        for block in filter(None, self.blocks):
            yield self._count(block)
        if self.kind.ends_last_line and not self.tail.endswith("\n"):
            yield self._count("\n")

    def _count(self, block: str) -> str:
        if self.kind.reads_eos and EOS in self.tail + block:
            self._find_literals(spaced(self.tail + block, self.separators))
        self.num_chars += len(block)
        self.num_bytes += len(utf8(block))
        self.num_lines += block.count("\n")
        self.tail = (self.tail + block)[-len(EOS) - 1 :]
        return block

    def _find_literals(self, text: str) -> None:
        """Notes every word `<eos>` in the tail and the block behind it."""
        before = self.num_lines - self.tail.count("\n")
        for found in EOS_WORD.finditer(text):
            num_lines = before + text.count("\n", 0, found.start() + 1)
            if not self._num_literals:
                log.warning(
                    "Line %s of the text contains the word %s, which is read as an end of line. A word of this name is "
                    "written \\%s.", f"{num_lines + 1:,}", EOS, EOS,
                )  # fmt: skip
            self.literals.append(num_lines + self._num_literals)
            self._num_literals += 1


def equal_chunks(pieces: Iterable[Ids], length: int, at_once: bool) -> Iterator[Ids]:
    """The same ids in arrays of `length`; the last one may be shorter, and with `at_once` the last one of each piece."""
    if at_once:
        for piece in filter(len, pieces):
            yield from np.split(piece, range(length, len(piece), length))
        return
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


class Source:
    """What a text loses when it becomes ids: how its unknown words stood, kept until they are shown, and what they cost."""

    def __init__(self, tokenizer: Tokenizer, per_token: bool, unknown_cost: float, *, spelt: bool = False) -> None:
        self.tokenizer, self.per_token, self.unknown_cost = tokenizer, per_token, unknown_cost
        self.spelt = spelt and tokenizer.rare is not None
        self._unknown: deque[str] = deque()
        self._spelling: deque[int] = deque()  # of each unknown word that is not priced yet
        self._literals: deque[int] = deque()
        self._num_ends = 0
        self._micronats, self.num_words, self._last = 0, 0, tokenizer.eos_id

    @property
    def label(self) -> str:
        """Returns what is added to the method of an evaluation."""
        return f" + {self.unknown_cost:g} nats for each unknown word" if self.unknown_cost else ""

    @property
    def spelling_nats(self) -> float | None:
        """What the letters of its unknown words cost so far, besides what is in the log-probabilities; None where the tokenizer
        does not spell them."""
        return None if self.tokenizer.rare is None else self._micronats / 1e6

    def ends_row(self) -> bool:
        """Whether the next end of a line (each is asked for once) ends a line of the text, and is no word `<eos>` in it."""
        number = self._num_ends
        self._num_ends += 1
        if self._literals and self._literals[0] == number:
            self._literals.popleft()
            return False
        return True

    def encode(self, blocks: CountedText) -> Iterator[Ids]:
        """The ids of one text that comes in blocks cut anywhere."""
        self._literals = blocks.literals
        if (self.per_token or self.spelt) and self.tokenizer.unk_id is not None:
            for text in self.tokenizer.whole(blocks):
                ids = self.tokenizer.encode(text)
                unknown = np.flatnonzero(ids == self.tokenizer.unk_id).tolist()
                if unknown:
                    pieces = self.tokenizer.pieces(text)
                    words = [pieces[place] for place in unknown]
                    self._unknown.extend(words if self.per_token else [])
                    self._spelling.extend(map(self.tokenizer.spelling_of, words if self.spelt else []))
                self._micronats += 0 if self.spelt else self.tokenizer.spelling_of(text)
                yield ids
            return
        for ids, micronats in self.tokenizer.encode_spelt(blocks):
            self._micronats += micronats
            yield ids

    def count_words(self, ids: Ids) -> None:
        """Counts the words that these tokens write, which go on where those before them ended."""
        if len(ids):
            self.num_words, self._last = self.num_words + self.tokenizer.count_words(ids, self._last), int(ids[-1])

    def priced(self, scored: tuple[Ids, NDArray[np.float64]]) -> tuple[Ids, NDArray[np.float64]]:
        """The same with the cost of unknown words."""
        ids, log_probs = scored
        is_unk = ids == self.tokenizer.unk_id
        if self.unknown_cost:
            log_probs = log_probs - self.unknown_cost * is_unk
        if self.spelt and is_unk.any():
            log_probs = log_probs.copy()
            log_probs[is_unk] -= [self._spelling.popleft() / 1e6 for _ in range(int(is_unk.sum()))]
        return ids, log_probs

    def text(self, token: int) -> str:
        """How the next token, which is this one, stood in the text."""
        if token == self.tokenizer.unk_id and self._unknown:
            return self._unknown.popleft()
        return self.tokenizer.token_text(token)


class _Line:
    """The line that is being read."""

    def __init__(self, source: Source, number: int = 1) -> None:
        self.source, self.tokenizer, self.per_token, self.number = source, source.tokenizer, source.per_token, number
        self._begin()

    def _begin(self) -> None:
        self.tally = Tally(self.tokenizer)
        self.tokens: list[ScoredToken] = []

    def add(self, ids: np.ndarray, log_probs: np.ndarray) -> Iterator[ScoredLine]:
        """Goes on with these tokens; every line that ends in them."""
        start = 0
        for end in (np.flatnonzero(ids == self.tokenizer.eos_id) + 1).tolist():
            if not self.source.ends_row():
                continue
            self.extend(ids[start:end], log_probs[start:end])
            yield from self.end()
            start = end
        self.extend(ids[start:], log_probs[start:])

    def end(self) -> Iterator[ScoredLine]:
        """The line as far as it has been read, if it has any token."""
        if self.tally.num_tokens:
            yield self.scored()
            self.number += 1
            self._begin()

    def scored(self) -> ScoredLine:
        """What has been read, as far as it goes."""
        tokens = tuple(self.tokens) if self.per_token else None
        return ScoredLine(self.number, self.tally.total_nats, self.tally.num_tokens, self.tally.num_unk, tokens)

    def extend(self, ids: Ids, log_probs: NDArray[np.float64]) -> None:
        """Goes on with these tokens, whatever ends in them."""
        self.tally.add(ids, log_probs)
        if self.per_token:
            self.tokens += [
                ScoredToken(self.source.text(token), -log_prob, token == self.tokenizer.unk_id)
                for token, log_prob in zip(ids.tolist(), log_probs.tolist(), strict=True)
            ]


# ---- how a line is written


def format_line(line: ScoredLine, key: str | None = None) -> str:
    """A line's numbers under `HEADER`, separated by tabs; below them its tokens, if it has any, one a row.

    A `key` stands in the place of the line's number.
    """
    rows = [f"{line.number if key is None else key}\t{number_text(-line.total_nats, 6)}\t{line.num_tokens}\t{line.num_unk}"]
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


def finite_or_none(values: Mapping[Name, float]) -> dict[Name, float | None]:
    """The same for JSON, which has no infinity."""
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
