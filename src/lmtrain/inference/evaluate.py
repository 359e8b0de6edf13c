"""Perplexity, computed in one place and returned with the counts behind it.

    perplexity = exp( -1/N  sum_i  log p(w_i | w_<i) )        i = 1 ... N, every token once, the first one after `<eos>`

A text is cut into `num_streams` contiguous streams, which are read side by side in chunks:

    one stream      a b c d e f g h          inputs   <eos> a b c d e f g
    three streams   a b c | d e f | g h      inputs   <eos> a b | c d e | f g

A stream begins in the initial state with the token before it as its input, so more streams are faster and slightly
pessimistic; with one stream the number depends neither on chunk length nor on device. Whatever else moves the
number (state policy, `<eos>`, `<unk>`, adaptation while evaluating) is in the `Evaluation`.

    legend   T steps in a chunk · B parallel streams · V vocabulary · N tokens of the text
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lmtrain.distributed.group import ALONE, Group
from lmtrain.errors import CheckpointError, DataError, DivergedError, SettingsError
from lmtrain.models.base import LanguageModel, State, evaluating
from lmtrain.quantity import counted

if TYPE_CHECKING:
    from lmtrain.data.encoded import EncodedText
    from lmtrain.data.tokenizer import Tokenizer

log = logging.getLogger("lmtrain")

CHUNK_TOKENS = 1024  # tokens of all streams together in one chunk: wide enough for speed, narrow enough for [T, B, V]


# ---- the number and the counts behind it


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text, with everything that the number depends on.

    `method` says how it was predicted: `static` (fixed weights), or by which adaptation. `num_eos` and `num_unk` of the
    `num_tokens` scored are ends of lines and unknown words; `unk_nats` of `total_nats` were paid for the latter and
    `known_nats` for the others. Both are sums of their own (`known_nats` is the difference only where it is not given),
    because a difference of infinities is not a number. `num_words` are what stands between whitespace, and ends of lines.
    Where unknown words are spelt by letters, `spelling_nats` were paid for that besides, and the numbers per character, byte
    and word hold them. In a mixture of models of different tokens they are among `total_nats`, and 0 here.

    A sum is infinite where one of its tokens has probability zero, and only there: `num_impossible` tokens have, the first
    of which, `first_impossible`, is token number `first_impossible_at` (from 1) of the text. In a mixture over lines single
    tokens have no probability: `unk_nats`, `known_nats` and `num_impossible` are None.
    """

    total_nats: float
    num_tokens: int
    num_eos: int
    num_unk: int
    unk_nats: float | None
    num_chars: int
    num_bytes: int
    num_streams: int
    state_policy: str
    method: str = "static"
    known_nats: float | None = None
    num_impossible: int | None = 0
    first_impossible: str | None = None
    first_impossible_at: int | None = None
    num_words: int | None = None
    spelling_nats: float | None = None

    @property
    def nats_per_token(self) -> float:
        return self.total_nats / self.num_tokens

    @property
    def value(self) -> float:
        """Nats per token, by which models of one vocabulary are compared."""
        return self.nats_per_token

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where that is too large for a float."""
        return perplexity_of(self.nats_per_token)

    @property
    def _spelt_nats(self) -> float:
        return self.total_nats + (self.spelling_nats or 0.0)

    @property
    def nats_per_word(self) -> float | None:
        """None where the words were not counted, or there is none."""
        return None if self.num_words is None else _ratio(self._spelt_nats, self.num_words)

    @property
    def perplexity_per_word(self) -> float | None:
        """exp(nats per word): what a model of words would need to be as good; comparable where every word is spelt."""
        return None if self.nats_per_word is None else perplexity_of(self.nats_per_word)

    @property
    def nats_per_known_token(self) -> float | None:
        """The same over the tokens that are not `<unk>` (which still stand in the contexts); None where that is not known."""
        known_nats = self.known_nats
        if known_nats is None:
            if self.unk_nats is None:
                return None
            known_nats = self.total_nats - self.unk_nats
        return _ratio(known_nats, self.num_tokens - self.num_unk)

    @property
    def perplexity_without_unk(self) -> float | None:
        return None if self.nats_per_known_token is None else perplexity_of(self.nats_per_known_token)

    @property
    def bits_per_character(self) -> float | None:
        """None, as for bytes, where a text has none."""
        return _ratio(self._spelt_nats / math.log(2), self.num_chars)

    @property
    def bits_per_byte(self) -> float | None:
        return _ratio(self._spelt_nats / math.log(2), self.num_bytes)

    @property
    def impossible(self) -> str:
        """Which token makes the sums infinite, as a clause; empty where none does."""
        if not self.num_impossible:
            return ""
        which = f"{self.first_impossible!r}, token {self.first_impossible_at:,} of the text"
        if self.num_impossible == 1:
            return f"1 token has probability zero: {which}"
        return f"{self.num_impossible:,} tokens have probability zero; the first is {which}"

    def numbers(self) -> dict[str, float | None]:
        """What is recorded while a model is trained. A model that does not spell every word has no bits per character."""
        numbers: dict[str, float | None] = {"nats_per_token": self.nats_per_token, "perplexity": self.perplexity}
        is_unspelt = self.num_unk and self.spelling_nats is None
        return numbers if is_unspelt else numbers | {"bits_per_character": self.bits_per_character}

    def line(self, mark: str = "") -> str:
        """One line for a log, with `mark` behind the numbers."""
        impossible = f" ({self.impossible})" if self.impossible else ""
        nats = number_text(self.nats_per_token, 4)
        return f"{nats} nats/token, perplexity {perplexity_text(self.nats_per_token)}{mark}{impossible}"

    def format(self) -> str:
        """Three lines to read, and a fourth where a token has probability zero."""
        numbers = [f"perplexity {perplexity_text(self.nats_per_token)}"]
        if self.num_unk and self.nats_per_known_token is not None:
            numbers.append(f"{perplexity_text(self.nats_per_known_token)} without <unk>")
        if self.nats_per_word is not None and (self.num_words != self.num_tokens or self.spelling_nats):
            numbers.append(f"{perplexity_text(self.nats_per_word)} per word")
        numbers.append(f"{number_text(self.nats_per_token, 4)} nats per token")
        for value, unit in ((self.bits_per_character, "character"), (self.bits_per_byte, "byte")):
            if value is not None:
                numbers.append(f"{number_text(value, 4)} bits per {unit}")
        if self.spelling_nats:
            share = number_text(self.spelling_nats / math.log(2) / self.num_chars, 4)
            unspelt = f" (spelt by letters: {share} of the bits per character)"
        elif self.num_unk and self.spelling_nats is None:
            unspelt = " (not spelt, so bits per character are no match for a character model's)"
        else:
            unspelt = ""
        memory = "carried" if self.state_policy == "carry" else f"forgotten at each {self.state_policy}"
        return (
            f"{' · '.join(numbers)}\n"
            f"{counted(self.num_tokens, 'token')} scored, {self.num_eos:,} of them <eos>, {self.num_unk:,} <unk>{unspelt} · "
            f"{counted(self.num_chars, 'character')} · {counted(self.num_bytes, 'byte')}\n"
            f"{self.method} · {counted(self.num_streams, 'stream')} · state {memory}"
            + (f"\n{self.impossible}" if self.impossible else "")
        )

    def to_json(self) -> dict[str, Any]:
        """Fields and derived numbers. None stands for infinity, which JSON cannot write, and for a mean over nothing."""
        derived = (
            "nats_per_token", "perplexity", "perplexity_without_unk", "perplexity_per_word", "bits_per_character",
            "bits_per_byte",
        )  # fmt: skip
        values = asdict(self) | {name: getattr(self, name) for name in derived}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
        }


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None


def perplexity_of(nats_per_token: float) -> float:
    """exp(nats per token); infinite where that is too large for a float."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def perplexity_text(nats_per_token: float) -> str:
    """exp(nats per token) to read; `inf` only where the nats are infinite."""
    perplexity = perplexity_of(nats_per_token)
    if math.isinf(perplexity) and math.isfinite(nats_per_token):
        return f"exp({nats_per_token:.6g})"
    return number_text(perplexity, 2)


def number_text(value: float, digits: int) -> str:
    """With so many digits behind the point; a huge number as a power of ten."""
    return f"{value:.{digits}f}" if abs(value) < 1e15 else f"{value:.6g}"


class HasSizes(Protocol):
    """A text of which the characters and bytes are counted."""

    @property
    def num_chars(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...


class Tally:
    """Adds up what an Evaluation needs, in float64 and token by token, so that the sums do not depend on how a text is cut."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.total_nats = self.unk_nats = self.known_nats = 0.0
        self.num_tokens = self.num_eos = self.num_unk = self.num_impossible = 0
        self.first_impossible: tuple[int, int] | None = None  # position in the text, token

    def add(self, targets: np.ndarray, log_probs: np.ndarray, positions: np.ndarray | None = None) -> None:
        """Counts tokens (ids) with their log-probabilities and positions (by default the next), arrays of one shape."""
        unk_id = self.tokenizer.unk_id
        unknown = targets == unk_id if unk_id is not None else np.zeros(targets.shape, bool)
        self.total_nats = _add_in_order(self.total_nats, -log_probs.ravel())
        self.unk_nats = _add_in_order(self.unk_nats, -log_probs[unknown])
        self.known_nats = _add_in_order(self.known_nats, -log_probs[~unknown])
        if (impossible := log_probs == -math.inf).any():
            if positions is None:
                positions = np.arange(self.num_tokens, self.num_tokens + targets.size).reshape(targets.shape)
            self.num_impossible += int(impossible.sum())
            first = min(zip(positions[impossible].tolist(), targets[impossible].tolist(), strict=True))
            self.first_impossible = min(first, self.first_impossible or first)
        self.num_tokens += targets.size
        self.num_eos += int((targets == self.tokenizer.eos_id).sum())
        self.num_unk += int(unknown.sum())

    def together(self, group: Group) -> Tally:
        """What all processes of a group have counted, each of them other tokens of the same text."""
        whole = Tally(self.tokenizer)
        for tally in group.everyones({name: value for name, value in vars(self).items() if name != "tokenizer"}):
            firsts = filter(None, (whole.first_impossible, tally.pop("first_impossible")))
            whole.first_impossible = min(firsts, default=None)
            for name, value in tally.items():
                setattr(whole, name, getattr(whole, name) + value)
        return whole

    def evaluation(
        self, text: HasSizes, *, num_words: int, spelling_nats: float | None, num_streams: int, state_policy: str, method: str
    ) -> Evaluation:
        """The sums, with the sizes of the text of which all tokens were added.

        Words are not counted where characters are unknown: each may have been a blank.
        """
        is_counted = self.tokenizer.kind.has_words or not self.num_unk
        position, token = self.first_impossible or (None, None)
        return Evaluation(
            self.total_nats, self.num_tokens, self.num_eos, self.num_unk, self.unk_nats,
            text.num_chars, text.num_bytes, num_streams, state_policy, method, self.known_nats,
            self.num_impossible, None if token is None else self.tokenizer.token_text(token),
            None if position is None else position + 1, num_words if is_counted else None, spelling_nats,
        )  # fmt: skip


def _add_in_order(total: float, values: np.ndarray) -> float:
    """((total + a) + b) + ...: unlike a sum by halves, the same for every way of cutting the values."""
    return float(np.cumsum(np.concatenate([[total], values.astype(np.float64)]))[-1])


def check_numbers(log_probs: np.ndarray | float, method: Method) -> None:
    """Raises CheckpointError, or DivergedError where the method adapts, for a log-probability that is not a number."""
    if not np.isnan(log_probs).any():
        return
    if method.adapts:
        raise DivergedError(
            f"The model's probabilities are not numbers any more: it has diverged under {method.label}.",
            "The steps that it takes while it reads must be small enough.",
            "Type a smaller --dynamic-rate.",
        )
    raise CheckpointError(
        "The model contains non-finite weights: its probabilities are not numbers.",
        "A perplexity needs a model whose training did not diverge.",
        "Name an earlier checkpoint, or train again with a lower learning rate or stronger clipping.",
    )


# ---- how a chunk is scored


ScoreChunk = Callable[[Tensor], Tensor]
"""The next chunk's targets_TB -> their log-probabilities [T, B]; what has been read is remembered between calls."""


class Method(ABC):
    """A way of predicting a text; what distinguishes static evaluation from those that adapt while they read."""

    @property
    def segment_length(self) -> int | None:
        """The chunk length that the method prescribes; None where it gives the same number with any."""
        return None

    @property
    def adapts(self) -> bool:
        """Whether the method changes the weights while it reads."""
        return False

    @property
    @abstractmethod
    def label(self) -> str:
        """How an Evaluation names the method, with every number that it depends on."""

    @abstractmethod
    def scoring(self, model: LanguageModel, previous_B: Tensor) -> AbstractContextManager[ScoreChunk]:
        """Scores B texts side by side, which begin after the tokens `previous_B`. On exit the model is as it was.

        Later chunks may have fewer columns (the first ones), where texts end sooner than others.
        """


@dataclass(frozen=True)
class Static(Method):
    """Fixed weights; `temperature` divides the log-probabilities before they are normalised again."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def label(self) -> str:
        return "static" if self.temperature == 1 else f"static + temperature {self.temperature:g}"

    @contextmanager
    def scoring(self, model: LanguageModel, previous_B: Tensor) -> Iterator[ScoreChunk]:
        state = model.initial_state(len(previous_B))

        def predict(inputs_TB: Tensor, targets_TB: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            if self.temperature == 1:
                log_probs_TB, state = model.target_log_probs(inputs_TB, targets_TB, state)
            else:
                log_probs_TBV, state = model.log_probs(inputs_TB, state)
                log_probs_TB = tempered(log_probs_TBV, targets_TB, self.temperature)
            return log_probs_TB, *state

        step = model.replayed(predict, previous_B.device)

        def score(targets_TB: Tensor) -> Tensor:
            nonlocal state, previous_B
            inputs_TB, state = next_inputs(previous_B, targets_TB, state)
            previous_B = targets_TB[-1]
            with evaluating(model):
                log_probs_TB, *after = step(inputs_TB, targets_TB, *state)
            state = tuple(after)
            return log_probs_TB

        yield score


def check_temperature(temperature: float) -> None:
    """Raises SettingsError where `temperature` cannot divide."""
    if not 0 < temperature < math.inf:
        raise SettingsError(
            f"temperature is {temperature}.",
            "It divides log-probabilities and must be a finite number above 0.",
            "Type for example temperature=0.95, or leave it out (1).",
        )


STATIC = Static()


def tempered(log_probs_TBV: Tensor, targets_TB: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [T, B] of the targets after dividing all by `temperature` and normalising again; float64.

    Where everything has probability zero, it keeps it.
    """
    relative_TBV, temperature = _relative(log_probs_TBV, temperature)
    log_norm_TB = (relative_TBV / temperature).logsumexp(-1)
    chosen_TB = relative_TBV.gather(-1, targets_TB[..., None]).squeeze(-1).double() / temperature
    return torch.where(chosen_TB == -math.inf, chosen_TB, chosen_TB - log_norm_TB)


def tempered_all(log_probs_NV: Tensor, temperature: float) -> Tensor:
    """The same of all tokens [N, V]."""
    relative_NV, temperature = _relative(log_probs_NV, temperature)
    scaled_NV = relative_NV.double() / temperature
    return torch.where(scaled_NV == -math.inf, scaled_NV, scaled_NV - scaled_NV.logsumexp(-1, keepdim=True))


def _relative(log_probs: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Log-probabilities less the largest of each row, and what to divide them by.

    So the likeliest token keeps its probability however small the temperature is. As in sampling, nothing changes beyond 1e30
    either way: float32 has no numbers for it.
    """
    peak = log_probs.amax(-1, keepdim=True)
    peak = torch.where(peak == -math.inf, 0.0, peak)  # in a context where everything has probability zero
    return log_probs - peak, min(max(temperature, 1e-30), 1e30)


def next_inputs(previous_B: Tensor, targets_TB: Tensor, state: State) -> tuple[Tensor, State]:
    """What a model reads to predict `targets_TB`, with the state, both cut to the streams that go on."""
    streams = targets_TB.shape[1]
    return torch.cat([previous_B[None, :streams], targets_TB[:-1]]), tuple(tensor[:streams] for tensor in state)


# ---- the loop over a text


class Scored(NamedTuple):
    """A chunk of scored tokens: where they stand in the text, their ids and log-probabilities, each [T, B]."""

    positions: np.ndarray
    targets: np.ndarray
    log_probs: np.ndarray  # float64


def iter_target_log_probs(
    model: LanguageModel,
    ids: np.ndarray,
    *,
    eos_id: int,
    num_streams: int = 1,
    chunk_length: int | None = None,
    method: Method = STATIC,
    device: torch.device | str = "cpu",
    group: Group = ALONE,
) -> Generator[Scored, None, None]:
    """Scores every token of `ids` once, chunk by chunk; with one stream in the order of the text.

    The streams are dealt out to the processes of `group`: this one scores those of its own.

    The order depends on the lengths alone, so several models can be compared token by token. `chunk_length` (steps of
    each stream) is a matter of speed and memory only; a method that adapts prescribes its own. At most one stream per
    token is used. Raises DataError for a token that the model does not know.
    """
    num_streams = usable_streams(len(ids), num_streams)
    own = group.columns(num_streams)
    if own.first == own.last:
        return
    chunk_length = method.segment_length or chunk_length or max(1, CHUNK_TOKENS // (own.last - own.first))
    previous_B = make_tokens(previous_tokens(ids, num_streams, eos_id)[own.first : own.last], model, device)
    with method.scoring(model, previous_B) as score:
        for positions_TB in iter_positions(len(ids), num_streams, chunk_length):
            positions_TB = positions_TB[:, own.first : own.last]
            if not positions_TB.size:  # of the last row, which is that of the longer streams
                return
            targets_TB = ids[positions_TB]
            log_probs_TB = score(make_tokens(targets_TB, model, device))
            yield Scored(positions_TB, targets_TB, log_probs_TB.double().cpu().numpy())


def evaluate(
    model: LanguageModel,
    text: EncodedText,
    tokenizer: Tokenizer,
    *,
    num_streams: int = 1,
    chunk_length: int | None = None,
    method: Method = STATIC,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
    group: Group = ALONE,
) -> Evaluation:
    """How well `model` predicts `text`, whose ids are those of `tokenizer`.

    `progress` is called after each chunk with the number of tokens in it. The model is put into evaluation mode for
    each chunk and back. The sums of a model that has diverged are not numbers (`check_numbers`). All processes of `group`
    call it together, and get the same. Errors and the other arguments: `iter_target_log_probs`.
    """
    tally = Tally(tokenizer)
    chunks = iter_target_log_probs(
        model, text.ids, eos_id=tokenizer.eos_id, num_streams=num_streams, chunk_length=chunk_length, method=method,
        device=device, group=group,
    )  # fmt: skip
    num_tokens, num_own = len(text.ids), _num_own(len(text.ids), num_streams, group)
    done = 0
    with closing(chunks):  # so that weights which the method adapts are restored even where this is interrupted
        for scored in chunks:
            tally.add(scored.targets, scored.log_probs, scored.positions)
            before, done = done, done + scored.targets.size
            if progress is not None:  # the others are about as far
                progress(done * num_tokens // num_own - before * num_tokens // num_own)
    return tally.together(group).evaluation(
        text, num_words=tokenizer.count_words(text.ids),
        spelling_nats=None if tokenizer.rare is None else text.spelling_micronats / 1e6,
        num_streams=min(num_streams, len(text.ids)), state_policy=model.state_policy.value, method=method.label,
    )  # fmt: skip


def make_tokens(ids: np.ndarray, model: LanguageModel, device: torch.device | str) -> Tensor:
    """Ids as the integers that a model reads, on `device`. Raises DataError for one that the model does not know."""
    if ids.size and int(ids.max()) >= model.vocab_size:
        raise DataError(
            f"The text contains token number {int(ids.max())}.",
            f"This model knows the tokens 0 to {model.vocab_size - 1}.",
            "Use the tokenizer that the model was trained with.",
        )
    return torch.from_numpy(ids.astype(np.int64)).to(device)


def usable_streams(num_tokens: int, num_streams: int) -> int:
    """`num_streams`, or as many as there are tokens, with a warning; DataError where there is none."""
    assert num_streams >= 1, "the settings allow no fewer streams"
    if not num_tokens:
        raise DataError(
            "The text to evaluate is empty.", "At least one token is needed.", "Name a file or a split with some text."
        )
    if num_streams > num_tokens:
        log.warning("%d tokens are too few for %d streams; using %d.", num_tokens, num_streams, num_tokens)
    return min(num_streams, num_tokens)


def previous_tokens(ids: np.ndarray, num_streams: int, eos_id: int) -> np.ndarray:
    """The token [B] before each stream."""
    starts_B = _starts(len(ids), num_streams)
    return np.where(starts_B > 0, ids[starts_B - 1], eos_id)


def iter_positions(num_tokens: int, num_streams: int, chunk_length: int) -> Iterator[np.ndarray]:
    """The positions [T, B] of a text in the order in which they are read; the last row may be shorter."""
    length, longer = divmod(num_tokens, num_streams)
    starts_B = _starts(num_tokens, num_streams)
    for first in range(0, length, chunk_length):
        yield np.arange(first, min(first + chunk_length, length))[:, None] + starts_B
    if longer:
        yield (length + starts_B[:longer])[None]


def _num_own(num_tokens: int, num_streams: int, group: Group) -> int:
    """How many of the tokens are in the streams of this process."""
    num_streams = max(1, min(num_streams, num_tokens))
    own = group.columns(num_streams)
    length, longer = divmod(num_tokens, num_streams)
    return (own.last - own.first) * length + max(0, min(own.last, longer) - own.first)


def _starts(num_tokens: int, num_streams: int) -> np.ndarray:
    """Where each stream begins; the first `num_tokens % num_streams` are one token longer than the others."""
    length, longer = divmod(num_tokens, num_streams)
    streams = np.arange(num_streams)
    return streams * length + np.minimum(streams, longer)
