"""Draws texts from a language model, one token of each at a time.

    read the prompt -> next-token distribution -> truncate -> draw -> decode -> read the tokens -> ...

Each verb is a function of its own (as in gpt-fast). The state is carried, so no token is read twice. Texts are drawn side by
side, which costs little more than one. Each has a generator of its own on the CPU: text number i (from 0) of a seed is the
one that seed + i draws alone, whoever is drawn with it. (The native step gives the same numbers to the last bit for any
number of texts; other models may round differently, and then a text can change where a draw lies that close to a border.)
Every `Draw` says how surprising it was to the model, so that the sampler also serves to look into one.

What a token is drawn from is in `drawing`, what can be shown of a text in `writing`.

    legend   N texts · V vocabulary
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from lmtrain.data.tokenizer import Tokenizer
from lmtrain.errors import DataError
from lmtrain.inference.constraints import Constraint
from lmtrain.inference.drawing import USUAL, SampleSettings, check_probabilities, check_setting, draw_each, nothing_to_draw
from lmtrain.inference.evaluate import make_tokens
from lmtrain.inference.writing import Writer, make_writer
from lmtrain.models.base import LanguageModel, Reader, State, evaluating

log = logging.getLogger("lmtrain")

PROMPT_CHUNK = 256  # tokens of a prompt read at once
BATCH = 64  # texts drawn side by side


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
    settings: SampleSettings = USUAL,
    *,
    num_samples: int = 1,
    side_by_side: int = BATCH,
    seed: int = 1,
    device: torch.device | str = "cpu",
    int8: bool = False,
) -> Iterator[Iterator[Draw]]:
    """Continuations of `prompt`, each drawn while it is iterated over; their joined texts do not repeat the prompt.

    A draw comes as soon as it is drawn; one behind which text is held back when the next one shows that the text goes on.
    Text number i is drawn with seed + i, and `side_by_side` of them at once. An empty prompt is the start of a line. A backward
    model writes what stands before the prompt on its line, or a line where the prompt is empty. Unknown pieces of it become
    `<unk>` with a warning. With `int8`, texts are written with weights of 8 bits (`LanguageModel.reader_factory`).
    Raises DataError where the tokenizer has none, CheckpointError where the model's probabilities are not numbers.
    """
    check_setting(num_samples >= 1, "num_samples", num_samples, "whole numbers of at least 1", "3")
    check_setting(0 <= seed < 2**32, "seed", seed, f"whole numbers from 0 to {2**32 - 1}", "1")
    if settings.top_k is not None and settings.top_k > model.vocab_size:
        log.warning("The likeliest %d tokens were asked for; all %d that there are are kept.", settings.top_k, model.vocab_size)
    ids = np.concatenate([[tokenizer.eos_id], encode_prompt(tokenizer, prompt)])
    log_probs_V, state = read(model, ids, model.initial_state(1), device)
    constraint = make_constraint(tokenizer, prompt, ids, settings)
    make_reader = model.reader_factory(device, int8=int8)
    excluded = None if settings.allow_unk else tokenizer.unk_id

    def start(numbers: range) -> Iterator[tuple[int, Draw | None, bool]]:
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


def _apart(draws: Iterator[tuple[int, Draw | None, bool]], num_texts: int) -> list[Iterator[Draw]]:
    """The texts whose draws come side by side, each as an iterator of its own; what is drawn too early is kept."""
    kept: list[deque[tuple[Draw | None, bool]]] = [deque() for _ in range(num_texts)]

    def text(number: int) -> Iterator[Draw]:
        ended = False
        while not ended:
            while not kept[number]:
                other, *drawn_and_ended = next(draws)
                kept[other].append(tuple(drawn_and_ended))  # type: ignore[arg-type]
            drawn, ended = kept[number].popleft()
            if drawn is not None:
                yield drawn

    return [text(number) for number in range(num_texts)]


def sample_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    settings: SampleSettings = USUAL,
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


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, called: str = "prompt") -> np.ndarray:
    """The ids of a prompt (or of what is `called` otherwise), with a warning that lists what the tokenizer does not know."""
    unknown = tokenizer.unknown_pieces(prompt)
    if unknown:
        listing = ", ".join(map(repr, unknown[:10])) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        if tokenizer.unk_id is None:
            raise DataError(
                f"The {called} contains {listing}, which this model's vocabulary of {tokenizer.vocab_size} tokens lacks.",
                "It has no <unk> to stand for unknown text.",
                "Leave that out, or train with tokenizer=byte, which accepts any text.",
            )
        log.warning("The %s contains %s, unknown to this model and read as <unk>.", called, listing)
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
    check_probabilities(not log_probs_V.isnan().any())
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


def generate(
    reader: Reader,
    log_probs_V: Tensor,
    settings: SampleSettings,
    generators: Sequence[Generator],
    writers: Sequence[Writer],
    *,
    excluded: int | None,
    constraint: Constraint | None = None,
) -> Iterator[tuple[int, Draw | None, bool]]:
    """Draws (number of the text, draw, whether the text ends with it) of texts that all begin with `log_probs_V`.

    There is a generator and a writer for each text, which has up to `max_tokens` draws; token `excluded` is never drawn, nor
    what the `constraint` forbids. A text ends where nothing else has a probability: with None, if its last draw was
    given. A draw behind which the writer holds text back is given when the next one is known, any other one at once. Raises
    what `nothing_to_draw` says where nothing has a probability at the first place.
    """
    tracks = {} if constraint is None else dict.fromkeys(range(len(generators)), constraint.beginning)
    uniforms = [iter_uniforms(generator) for generator in generators]
    going = list(range(len(generators)))
    log_probs_NV = log_probs_V.expand(len(going), -1)
    held: dict[int, Draw | None] = {}  # by text that goes on, its last draw if that was not given
    for remaining in reversed(range(settings.max_tokens)):
        allowed_NV = log_probs_NV
        if constraint is not None:
            allowed_NV = constraint.apply_each(log_probs_NV, [tracks[text] for text in going])
        tokens = draw_each(allowed_NV, settings, [next(uniforms[text]) for text in going], excluded=excluded)
        if None in tokens:
            if not held:
                raise nothing_to_draw(log_probs_V, excluded)
            if constraint is None:
                why = nothing_to_draw(log_probs_NV[tokens.index(None)], excluded).given
                log.warning("A text ends before its time. %s", why)
            log_probs_NV = log_probs_NV[[place for place, token in enumerate(tokens) if token is not None]]
        token_of = {text: token for text, token in zip(going, tokens, strict=True) if token is not None}
        for text, before in held.items():
            goes_on = text in token_of
            if before is not None:
                yield text, before if goes_on else _with_rest(before, writers[text]), not goes_on
            elif not goes_on:
                yield text, None, True
        if not token_of:
            return
        held = {}
        for text, drawn in zip(token_of, _describe([*token_of.values()], log_probs_NV, settings), strict=True):
            if constraint is not None:
                tracks[text] = constraint.go_on(tracks[text], drawn.token)
            shown, stopped = writers[text].write(drawn.token)
            drawn = drawn._replace(text=shown)
            if stopped or not remaining:
                yield text, drawn if stopped else _with_rest(drawn, writers[text]), True
                continue
            held[text] = drawn if writers[text].is_open() else None
            if held[text] is None:
                yield text, drawn, False
        if not held:
            return
        going = list(held)
        log_probs_NV = reader([token_of[text] for text in going], going)


def _with_rest(last: Draw, writer: Writer) -> Draw:
    return last._replace(text=last.text + writer.end())


def iter_uniforms(generator: Generator) -> Iterator[float]:
    """Numbers from 0 to 1 without end, taken from the generator 64 at a time: calling it for each costs too much."""
    while True:
        yield from torch.rand(64, generator=generator, dtype=torch.float64).tolist()


def _describe(tokens: Sequence[int], log_probs_NV: Tensor, settings: SampleSettings) -> list[Draw]:
    chosen_N = log_probs_NV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    nats_N = chosen_N.neg().tolist()
    check_probabilities(not any(map(math.isnan, nats_N)))
    if not settings.statistics:
        return [Draw(token, "", nats, 0, math.nan) for token, nats in zip(tokens, nats_N, strict=True)]
    draws = []
    for token, nats, log_probs_V in zip(tokens, nats_N, log_probs_NV.double(), strict=True):
        rank = 1 + int((log_probs_V > -nats).sum())
        draws.append(Draw(token, "", nats, rank, torch.special.entr(log_probs_V.exp()).sum().item()))
    return draws
