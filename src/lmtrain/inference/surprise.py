"""Where a model is surprised: for every token, word or line its surprisal, and what the model expected instead.

    surprisal   -log p(what came | what stands before it), in nats
    entropy     -sum over v of p(v) log p(v): the surprisal that was to be expected
    rank        1 where what came was the likeliest token
    instead     the likeliest of the other tokens, with their probabilities

A word is what stands between whitespace. Where it is made of several tokens (characters, bytes, subwords), its surprisal is
the sum of theirs, with that of the whitespace behind it, which ends the word; so the surprisals of words add up to that of the
text. Entropy, rank and `instead` are then those of its first token. The entropy of a line is the mean over its tokens. A
token that is a part of what a reader takes for one character is joined with the others of it.

    legend   T steps in a chunk · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from lmtrain.data.tokenizer import Ids, Tokenizer
from lmtrain.data.vocabulary import EOS, WHITESPACE
from lmtrain.errors import DataError, SettingsError
from lmtrain.inference.described import Described, describe_lines, describe_stream
from lmtrain.inference.evaluate import STATIC, Evaluation, Static, Tally, check_numbers
from lmtrain.inference.graphemes import belong_together
from lmtrain.inference.score import CountedText, Source
from lmtrain.models.base import LanguageModel, StatePolicy

UnitName = Literal["token", "word", "line"]
LONGEST = 10_000  # characters of a unit that are shown


class Alternative(NamedTuple):
    """A token that could have come, and how probable it was."""

    text: str
    probability: float


@dataclass
class Unit:
    """A token, a word or a line, number `position` (from 1) of its line; surprisal and entropy in nats.

    `rank` and `instead` are those of the first token; a line has none, and no text.
    """

    line: int
    position: int
    text: str
    surprisal: float
    entropy: float
    rank: int | None
    instead: tuple[Alternative, ...]
    num_tokens: int
    num_unk: int
    ends_line: bool
    tail: str  # the text of its last token

    def add(self, other: Unit) -> None:
        """Takes in what comes behind it; a text of more than LONGEST characters is cut."""
        if len(self.text) < LONGEST:
            self.text += other.text
        self.tail = other.tail
        self.surprisal += other.surprisal
        self.num_tokens += other.num_tokens
        self.num_unk += other.num_unk
        self.ends_line |= other.ends_line


def score_units(
    model: LanguageModel,
    tokenizer: Tokenizer,
    blocks: Iterable[str],
    unit: UnitName,
    on_unit: Callable[[Unit], object],
    *,
    method: Static = STATIC,
    unknown_cost: float = 0.0,
    at_once: bool = False,
    side_by_side: bool | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Returns the evaluation of a text after calling `on_unit` for each of its units, as soon as they are known.

    side_by_side   many lines are read at once, by a model that forgets at their ends (None: where it does)

    Arguments and errors are those of `score_text`. Memory does not grow with the text; a word is held as a whole.
    """
    if tokenizer.reverse:
        raise SettingsError(
            "The model reads lines from their last token to their first.",
            "Units are shown in the order of the text, and what stands behind them is what such a model knows.",
            "Score whole lines (score RUN FILE), or give a forward model.",
        )
    text = CountedText(blocks, tokenizer)
    source, total = Source(tokenizer, True, unknown_cost), Tally(tokenizer)
    apart = model.state_policy is StatePolicy.line if side_by_side is None else side_by_side
    describe = describe_lines if apart else describe_stream
    described = describe(
        model, tokenizer.eos_id, source.encode(text), temperature=method.temperature, in_full=unit != "line", at_once=at_once,
        device=device,
    )  # fmt: skip
    pieces = _read(source, described, total, unit, method)
    line, position = 1, 0
    for found in _join(pieces, unit, tokenizer.kind.has_words):
        position += 1
        found.line, found.position = line, position
        if unit == "line":
            found.entropy /= found.num_tokens
        elif unit == "word":
            found.text = found.text.strip(WHITESPACE) or (EOS if found.ends_line else found.text)
        on_unit(found)
        if found.ends_line:
            line, position = line + 1, 0
    if not total.num_tokens:
        raise DataError("The text to score is empty.", "At least one line is needed.", "Give a text that has one.")
    return total.evaluation(
        text, num_words=source.num_words, spelling_nats=source.spelling_nats, num_streams=1,
        state_policy=model.state_policy.value, method=method.label + source.label,
    )  # fmt: skip


def _read(
    source: Source, described_ids: Iterable[tuple[Ids, Described]], total: Tally, unit: UnitName, method: Static
) -> Iterator[Unit]:
    """Every token, or where several make one character all of these, with what the model thought of it."""
    tokenizer = source.tokenizer
    decoder, held = tokenizer.make_decoder(), None
    for ids, described in described_ids:
        check_numbers(described.log_probs, method)
        _, log_probs = source.priced((ids, described.log_probs))
        total.add(ids, log_probs)
        source.count_words(ids)
        for place, (token, log_prob) in enumerate(zip(ids.tolist(), log_probs.tolist(), strict=True)):
            is_unk = token == tokenizer.unk_id
            shown = source.text(token) if is_unk or tokenizer.kind.has_words else decoder.push(token)
            rank, others = described.of(place, token)
            instead = tuple(Alternative(tokenizer.token_text(other), probability) for other, probability in others)
            ends = token == tokenizer.eos_id and source.ends_row()
            text = "" if unit == "line" else shown
            found = Unit(0, 0, text, -log_prob, float(described.entropies[place]), rank, instead, 1, int(is_unk), ends, shown)
            if held is not None:
                held.add(found)
                found = held
            held = found if not shown and unit != "line" else None  # until the character is complete
            if held is None:
                yield found
    rest = decoder.flush()
    if held is not None:
        held.text += rest
        held.tail = rest
        yield held


def _join(pieces: Iterable[Unit], unit: UnitName, whole_words: bool) -> Iterator[Unit]:
    """Pieces (tokens, in their order) joined to units of this kind; `whole_words`: each is a word already."""
    current: Unit | None = None
    for piece in pieces:
        if current is not None and not _goes_on(current, piece, unit, whole_words):
            yield current
            current = None
        if current is None:
            current = piece
        else:
            current.entropy += piece.entropy if unit == "line" else 0.0
            current.add(piece)
        if current.ends_line:
            yield current
            current = None
    if current is not None:
        yield current


def _goes_on(current: Unit, piece: Unit, unit: UnitName, whole_words: bool) -> bool:
    """Whether `piece` belongs to the unit that is being read."""
    if unit == "line":
        return True
    if whole_words:
        return False
    if unit == "token":
        return belong_together(current.text, piece.text)
    is_space = not piece.text.strip(WHITESPACE)
    if current.tail[-1:] in (*WHITESPACE, ""):  # the word has ended, and only more whitespace goes with it
        return is_space
    return is_space or piece.text[0] not in WHITESPACE
