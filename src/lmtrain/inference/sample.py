"""Draws texts from a language model, one token of each at a time.

    read the prompt -> next-token distribution -> truncate -> draw -> decode -> read the tokens -> ...

Each verb is a function of its own (as in gpt-fast). The state is carried, so no token is read twice. Texts are drawn side by
side, which costs little more than one. Each has a generator of its own on the CPU: text number i (from 0) of a seed is the
one that seed + i draws alone, whoever is drawn with it. (The native step gives the same numbers to the last bit for any
number of texts; other models may round differently, and then a text can change where a draw lies that close to a border.)
Every `Draw` says how surprising it was to the model, so that the sampler also serves to look into one.

Truncation, in this order: temperature, the `top_k` likeliest, the smallest set of probability `top_p` (nucleus sampling,
Holtzman et al. 2020), those at least `min_p` as likely as the likeliest (Nguyen et al. 2024).

    legend   N texts · V vocabulary
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from lmtrain.data.tokenizer import Tokenizer
from lmtrain.errors import CheckpointError, DataError, SettingsError, UserError
from lmtrain.inference.constraints import Constraint
from lmtrain.inference.evaluate import make_tokens
from lmtrain.models.base import LanguageModel, Reader, State, evaluating
from lmtrain.ops.draw import draw_token, draw_tokens

log = logging.getLogger("lmtrain")

PROMPT_CHUNK = 256  # tokens of a prompt read at once
BATCH = 64  # texts drawn side by side


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How to draw. `temperature` 0 always takes the likeliest token; `stop` strings end a text and are not part of it.

    `<unk>` is never drawn unless `allow_unk`. Raises SettingsError for values out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int = 200
    stop: Sequence[str] = ()
    allow_unk: bool = False
    no_repeat_ngram: int | None = None  # see `constraints`, as of the next one
    words: Sequence[str] | None = None
    statistics: bool = True  # False saves the time for a draw's rank (then 0) and entropy (then not a number)

    @property
    def truncates(self) -> bool:
        """Whether some tokens may not be drawn, whatever the temperature."""
        return not (self.top_k is self.top_p is self.min_p is None)

    def __post_init__(self) -> None:
        _check(0 <= self.temperature < math.inf, "temperature", self.temperature,
               "0 (always the likeliest token) and finite numbers above 0", "0.8")  # fmt: skip
        _check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "whole numbers of at least 1", "40")
        _check(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "numbers above 0 and at most 1", "0.9")
        _check(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "numbers from 0 to 1", "0.05")
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "whole numbers of at least 1", "200")
        _check(self.no_repeat_ngram is None or self.no_repeat_ngram >= 1, "no_repeat_ngram", self.no_repeat_ngram,
               "whole numbers of at least 1", "3")  # fmt: skip
        _check("" not in self.stop, "stop", "an empty string", "strings of at least one character", "'\\n'")


def _check(fine: bool, name: str, value: object, allowed: str, example: str) -> None:
    if not fine:
        raise SettingsError(f"{name} is {value}.", f"Allowed are {allowed}.", f"Type for example {name}={example}.")


class OnlyUnknownError(SettingsError):
    """Nothing but `<unk>` has a probability, and it must not be drawn."""

    def __init__(self) -> None:
        super().__init__(
            "The model expects <unk> and nothing else.", "It is not drawn by default.", "Type allow_unk=True to draw it."
        )


class Draw(NamedTuple):
    """A token drawn and the text that it released (empty while a character or a stop string may still be completed).

    As the model itself saw it, before temperature and truncation: `nats`, minus the token's log-probability; `rank`, 1 for
    the likeliest token; `entropy` of the distribution in nats.
    """

    token: int
    text: str
    nats: float
    rank: int
    entropy: float


def sample(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    settings: SampleSettings = SampleSettings(),
    *,
    num_samples: int = 1,
    side_by_side: int = BATCH,
    seed: int = 1,
    device: torch.device | str = "cpu",
    int8: bool = False,
) -> Iterator[Iterator[Draw]]:
    """Continuations of `prompt`, each drawn while it is iterated over; their joined texts do not repeat the prompt.

    Text number i is drawn with seed + i, and `side_by_side` of them at once. An empty prompt is the start of a line. A backward
    model writes what stands before the prompt on its line, or a line where the prompt is empty. Unknown pieces of it become
    `<unk>` with a warning. With `int8`, texts are written with weights of 8 bits (`LanguageModel.reader_factory`).
    Raises DataError where the tokenizer has none, CheckpointError where the model's probabilities are not numbers.
    """
    _check(num_samples >= 1, "num_samples", num_samples, "whole numbers of at least 1", "3")
    if settings.top_k is not None and settings.top_k > model.vocab_size:
        log.warning("The likeliest %d tokens were asked for; all %d that there are are kept.", settings.top_k, model.vocab_size)
    ids = np.concatenate([[tokenizer.eos_id], encode_prompt(tokenizer, prompt)])
    log_probs_V, state = read(model, ids, model.initial_state(1), device)
    constraint = make_constraint(tokenizer, prompt, ids, settings)
    make_reader = model.reader_factory(device, int8=int8)
    excluded = None if settings.allow_unk else tokenizer.unk_id

    def start(numbers: range) -> Iterator[tuple[int, Draw, bool]]:
        reader = make_reader(tuple(tensor.expand(len(numbers), *tensor.shape[1:]).contiguous() for tensor in state))
        generators = [torch.Generator().manual_seed(seed + number) for number in numbers]
        writers = [make_writer(tokenizer, prompt, settings.stop) for _ in numbers]
        return generate(reader, log_probs_V, settings, generators, writers, excluded=excluded, constraint=constraint)

    starts = range(0, num_samples, side_by_side)
    batches = (range(first, min(first + side_by_side, num_samples)) for first in starts)
    return (text for numbers in batches for text in _apart(start(numbers), len(numbers)))


def make_constraint(tokenizer: Tokenizer, prompt: str, ids: np.ndarray, settings: SampleSettings) -> Constraint | None:
    """What the settings forbid behind a prompt with these ids (its `<eos>` before it); None where they forbid nothing."""
    if settings.no_repeat_ngram is None and settings.words is None:
        return None
    return Constraint(
        tokenizer, prompt, ids[1:].tolist(), no_repeat_ngram=settings.no_repeat_ngram, words=settings.words
    )  # fmt: skip


def _apart(draws: Iterator[tuple[int, Draw, bool]], num_texts: int) -> list[Iterator[Draw]]:
    """The texts whose draws come side by side, each as an iterator of its own; what is drawn too early is kept."""
    kept: list[deque[tuple[Draw, bool]]] = [deque() for _ in range(num_texts)]

    def text(number: int) -> Iterator[Draw]:
        ended = False
        while not ended:
            while not kept[number]:
                other, *drawn_and_ended = next(draws)
                kept[other].append(tuple(drawn_and_ended))  # type: ignore[arg-type]
            drawn, ended = kept[number].popleft()
            yield drawn

    return [text(number) for number in range(num_texts)]


def sample_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    settings: SampleSettings = SampleSettings(),
    *,
    seed: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] = lambda number: None,
) -> str:
    """One continuation of `prompt` as a whole; see `sample`. `progress` is told how many more tokens are drawn."""
    parts = []
    for draw in next(sample(model, tokenizer, prompt, settings, seed=seed, device=device)):
        parts.append(draw.text)
        progress(1)
    return "".join(parts)


# ---- the verbs


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The ids of a prompt, with a warning that lists what the tokenizer does not know."""
    unknown = tokenizer.unknown_pieces(prompt)
    if unknown:
        listing = ", ".join(map(repr, unknown[:10])) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        if tokenizer.unk_id is None:
            raise DataError(
                f"The prompt contains {listing}, which this model's vocabulary of {tokenizer.vocab_size} tokens lacks.",
                "It has no <unk> to stand for unknown text.",
                "Leave that out, or train with tokenizer=byte, which accepts any text.",
            )
        log.warning("The prompt contains %s, unknown to this model and read as <unk>.", listing)
    return tokenizer.encode(prompt)


def read(model: LanguageModel, ids: np.ndarray, state: State, device: torch.device | str) -> tuple[Tensor, State]:
    """Log-probabilities [V] (on the CPU) of what follows after reading `ids` from `state`; and the next state."""
    tokens_TB = make_tokens(ids[:, None], model, device)
    with evaluating(model):
        for chunk_TB in tokens_TB[:-1].split(PROMPT_CHUNK):
            if len(chunk_TB):
                state = model.advance(chunk_TB, state)
        log_probs_TBV, state = model.log_probs(tokens_TB[-1:], state)
        log_probs_V = log_probs_TBV[0, 0].cpu()
    _check_numbers(not log_probs_V.isnan().any())
    return log_probs_V, state


def next_tokens(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, top: int, *, device: torch.device | str = "cpu"
) -> list[tuple[str, float]]:
    """The `top` likeliest tokens behind `prompt` with their probabilities, the likeliest first."""
    ids = np.concatenate([[tokenizer.eos_id], encode_prompt(tokenizer, prompt)])
    log_probs_V, _ = read(model, ids, model.initial_state(1), device)
    likeliest = log_probs_V.topk(min(top, len(log_probs_V)))
    tokens = [tokenizer.token_text(token) for token in likeliest.indices.tolist()]
    return list(zip(tokens, likeliest.values.double().exp().tolist(), strict=True))


def _check_numbers(fine: bool) -> None:
    if not fine:
        raise CheckpointError(
            "The model contains non-finite weights: its probabilities are not numbers.",
            "Sampling needs a model whose training did not diverge.",
            "Name an earlier checkpoint, or train again with a lower learning rate or stronger clipping.",
        )


def generate(
    reader: Reader,
    log_probs_V: Tensor,
    settings: SampleSettings,
    generators: Sequence[Generator],
    writers: Sequence[Writer],
    *,
    excluded: int | None,
    constraint: Constraint | None = None,
) -> Iterator[tuple[int, Draw, bool]]:
    """Draws (number of the text, draw, whether the text ends with it) of texts that all begin with `log_probs_V`.

    There is a generator and a writer for each text, which has up to `max_tokens` draws; token `excluded` is never drawn, nor
    what the `constraint` forbids.
    """
    tracks = {} if constraint is None else dict.fromkeys(range(len(generators)), constraint.beginning)
    uniforms = [iter_uniforms(generator) for generator in generators]
    going = list(range(len(generators)))
    log_probs_NV = log_probs_V.expand(len(going), -1)
    for remaining in reversed(range(settings.max_tokens)):
        allowed_NV = log_probs_NV
        if constraint is not None:
            allowed_NV = constraint.apply_each(log_probs_NV, [tracks[text] for text in going], excluded)
        tokens = draw_each(allowed_NV, settings, [next(uniforms[text]) for text in going], excluded=excluded)
        token_of: dict[int, int] = {}
        for text, drawn in zip(going, _describe(tokens, log_probs_NV, settings), strict=True):
            last = not remaining
            if constraint is not None:
                tracks[text] = constraint.go_on(tracks[text], drawn.token)
                last = last or constraint.ends(tracks[text], excluded)
            shown, stopped = writers[text].write(drawn.token, last=last)
            yield text, drawn._replace(text=shown), stopped or last
            if not (stopped or last):
                token_of[text] = drawn.token
        if not remaining or not token_of:
            return
        going = list(token_of)
        log_probs_NV = reader(list(token_of.values()), going)


def _describe(tokens: Sequence[int], log_probs_NV: Tensor, settings: SampleSettings) -> list[Draw]:
    chosen_N = log_probs_NV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    nats_N = chosen_N.neg().tolist()
    _check_numbers(not any(map(math.isnan, nats_N)))
    if not settings.statistics:
        return [Draw(token, "", nats, 0, math.nan) for token, nats in zip(tokens, nats_N, strict=True)]
    draws = []
    for token, nats, log_probs_V in zip(tokens, nats_N, log_probs_NV.double(), strict=True):
        rank = 1 + int((log_probs_V > -nats).sum())
        draws.append(Draw(token, "", nats, rank, torch.special.entr(log_probs_V.exp()).sum().item()))
    return draws


def iter_uniforms(generator: Generator) -> Iterator[float]:
    """Numbers from 0 to 1 without end, taken from the generator 64 at a time: calling it for each costs too much."""
    while True:
        yield from torch.rand(64, generator=generator, dtype=torch.float64).tolist()


def exclude(log_probs_V: Tensor, token: int) -> Tensor:
    """The same without `token`; not normalised."""
    others_V = log_probs_V.clone()
    others_V[token] = -math.inf
    if others_V.amax() == -math.inf:
        raise _nothing_to_draw(log_probs_V)
    return others_V


def _nothing_to_draw(log_probs_V: Tensor) -> UserError:
    if log_probs_V.amax() == -math.inf:
        return CheckpointError(
            "The model gives probability zero to every token that could come next.",
            "Sampling needs a model whose probabilities sum to one.",
            "Name another model, such as an n-gram model with model.smoothing=kneser_ney.",
        )
    return OnlyUnknownError()


def truncate(log_probs_V: Tensor, settings: SampleSettings) -> Tensor:
    """Log-probabilities of what may be drawn, normalised, -inf for the rest; of equals, lower ids come first."""
    if log_probs_V.amax() == -math.inf:
        raise _nothing_to_draw(log_probs_V)
    if settings.temperature == 0:
        return torch.full_like(log_probs_V, -math.inf).index_fill(0, log_probs_V.argmax(), 0.0)
    # In log space and relative to the maximum: however small the temperature, the likeliest token keeps its probability.
    # Beyond 1e30 either way nothing changes, and float32 has no numbers.
    temperature = min(max(settings.temperature, 1e-30), 1e30)
    log_probs_V = (log_probs_V - log_probs_V.amax()).div_(temperature).log_softmax(-1)
    if not settings.truncates:
        return log_probs_V
    candidates = torch.arange(len(log_probs_V))
    if settings.top_k is not None:  # only these, and equals of the last one, need to be sorted
        least = log_probs_V.topk(min(settings.top_k, len(log_probs_V))).values[-1]
        candidates = (log_probs_V >= least).nonzero()[:, 0]
    kept, order = log_probs_V[candidates].double().sort(descending=True, stable=True)
    kept, order = kept[: settings.top_k].log_softmax(-1), candidates[order]
    if settings.top_p is not None:
        probability_before = kept.exp().cumsum(-1) - kept.exp()
        kept = kept[probability_before < settings.top_p].log_softmax(-1)
    if settings.min_p:
        kept = kept[kept >= kept[0] + math.log(settings.min_p)].log_softmax(-1)
    return torch.full_like(log_probs_V, -math.inf).index_copy(0, order[: len(kept)], kept.to(log_probs_V.dtype))


def draw(log_probs_V: Tensor, settings: SampleSettings, uniform: float, *, excluded: int | None = None) -> int:
    """The token that a number from 0 to 1 picks from what may be drawn."""
    return draw_each(log_probs_V[None], settings, [uniform], excluded=excluded)[0]


def draw_each(
    log_probs_NV: Tensor, settings: SampleSettings, uniforms: Sequence[float], *, excluded: int | None = None
) -> list[int]:
    """`draw` from each of N distributions with a number of its own."""
    try:  # a temperature alone needs no truncation, and then the vocabulary is gone through only once
        if not settings.truncates and settings.temperature > 0:
            return draw_tokens(log_probs_NV, uniforms, temperature=settings.temperature, excluded=excluded)
        allowed = [log_probs_V if excluded is None else exclude(log_probs_V, excluded) for log_probs_V in log_probs_NV]
        return [draw_token(truncate(of, settings), number) for of, number in zip(allowed, uniforms, strict=True)]
    except ValueError:
        _check_numbers(not log_probs_NV.isnan().any())
        hopeless = (log_probs_V for log_probs_V in log_probs_NV if log_probs_V.amax() == -math.inf)
        raise _nothing_to_draw(next(hopeless, log_probs_NV[0])) from None


def make_writer(tokenizer: Tokenizer, prompt: str, stops: Sequence[str]) -> Writer:
    """What writes a continuation of `prompt`. SettingsError for stop strings of a backward model."""
    if not tokenizer.reverse:
        return Writer(tokenizer, prompt, stops)
    if stops:
        raise SettingsError(
            "stop was given for a backward model.", "It writes what stands before the prompt, up to the beginning of its line.",
            "Leave it out.",
        )  # fmt: skip
    return BackwardWriter(tokenizer, prompt)


class Writer:
    """Turns the tokens of one text into what can be shown of it, as soon as that is certain, up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, stops: Sequence[str]) -> None:
        self._decoder, self._stops, self._held = tokenizer.make_decoder(prompt), stops, ""

    def write(self, token: int, *, last: bool) -> tuple[str, bool]:
        """What `token`, the last one or not, lets be shown; True where a stop string, which is left out, is complete."""
        held = self._held + self._decoder.push(token) + (self._decoder.flush() if last else "")
        text, self._held, stopped = release(held, self._stops)
        return (text + self._held if last else text), stopped


class BackwardWriter(Writer):
    """The same of a model that reads lines from their end: all at once when the line's beginning is reached.

    The text stands before the prompt, and is given in the order in which it is read.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        self._tokenizer, self._drawn = tokenizer, list[int]()
        line = prompt.rpartition("\n")[2]
        self._behind = " " if tokenizer.kind.has_words and line.strip() and line[0] not in " \t\v\f\r" else ""

    def write(self, token: int, *, last: bool) -> tuple[str, bool]:
        stopped = token == self._tokenizer.eos_id
        if not stopped:
            self._drawn.append(token)
        if not (stopped or last):
            return "", False
        text = self._tokenizer.decode(self._drawn)
        return text + self._behind * bool(text), stopped


def release(held: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """Splits text into what can be shown and what may become a stop string; True where one is complete (and removed)."""
    found = [held.find(stop) for stop in stops if stop in held]
    if found:
        return held[: min(found)], "", True
    beginnings = (size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size]))
    shown = len(held) - max(beginnings, default=0)
    return held[:shown], held[shown:], False
