"""Beam search: the likeliest continuations of a prompt that are found by keeping the `beam` best beginnings at each length.

    score = log p(continuation | prompt) / number of its tokens ^ length_power

A continuation ends with a stop string (that of a backward model at the beginning of its line), or after `max_tokens` tokens.
The tokens that a stop string takes are counted in its probability, not in its text. One also ends where nothing that may come
next has a probability; where it is not constraints that leave nothing, a warning says it once. Ended ones are compared by their
scores: with length_power=0 by their probabilities, which favours short ones, with 1 by the mean per token (Wu et al. 2016,
section 7). Search ends when no beginning can become better than the `beam` best that have ended: a longer one has a lower
probability, which is divided by max_tokens ^ length_power at the most. With a beam as wide as there are continuations it is
exact.

    legend   B beginnings · V vocabulary
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmtrain.data.tokenizer import Tokenizer
from lmtrain.inference.constraints import Track
from lmtrain.inference.drawing import SampleSettings, check_setting, exclude, nothing_to_draw
from lmtrain.inference.evaluate import make_tokens
from lmtrain.inference.sample import encode_prompt, make_constraint, read
from lmtrain.inference.writing import make_writer
from lmtrain.models.base import LanguageModel, State, evaluating

USUAL = SampleSettings()
MAX_BEAM = 4096  # a wider one asks for more memory than there is
log = logging.getLogger("lmtrain")


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its text, its tokens, the natural logarithm of their probability, and the score it is ranked by."""

    text: str
    tokens: tuple[int, ...]
    log_prob: float
    score: float


@dataclass(frozen=True)
class _Beginning:
    tokens: tuple[int, ...]
    log_prob: float
    track: Track | None


def beam_search(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    settings: SampleSettings = USUAL,
    *,
    beam: int = 8,
    num_best: int | None = None,
    length_power: float = 1.0,
    device: torch.device | str = "cpu",
) -> list[Hypothesis]:
    """The `num_best` (by default `beam`) best continuations found, best first; equal ones in the order of their tokens.

    Of the settings `max_tokens`, `stop`, `allow_unk` and the constraints are read. Raises SettingsError for values out of
    range, and what `sample` raises.
    """
    check_setting(1 <= beam <= MAX_BEAM, "beam", beam, f"whole numbers from 1 to {MAX_BEAM}", "8")
    check_setting(num_best is None or num_best >= 1, "num_best", num_best, "whole numbers of at least 1", "1")
    check_setting(0 <= length_power < math.inf, "length_power", length_power, "finite numbers of at least 0", "1")
    search = _Search(model, tokenizer, prompt, settings, beam, length_power, device)
    return search.run()[: beam if num_best is None else num_best]


class _Search:
    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, prompt: str, settings: SampleSettings, beam: int, length_power: float,
        device: torch.device | str,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.prompt, self.settings = model, tokenizer, prompt, settings
        self.beam, self.power, self.device = beam, length_power, device
        self.ids = np.concatenate([[tokenizer.eos_id], encode_prompt(tokenizer, prompt)])
        self.excluded = None if settings.allow_unk else tokenizer.unk_id
        self.constraint = make_constraint(tokenizer, prompt, self.ids, settings)
        self.ended: list[Hypothesis] = []
        self.has_warned = False
        make_writer(tokenizer, prompt, settings.stop)  # which refuses what does not go together

    def run(self) -> list[Hypothesis]:
        log_probs_V, state = read(self.model, self.ids, self.model.initial_state(1), self.device)
        log_probs_BV = log_probs_V[None]
        going = [_Beginning((), 0.0, None if self.constraint is None else self.constraint.beginning)]
        for remaining in reversed(range(self.settings.max_tokens)):
            parents, going = self._extend(going, log_probs_BV, last=not remaining)
            if not going or self._is_decided(going):
                break
            log_probs_BV, state = self._read(going, parents, state)
        return sorted(self.ended, key=lambda found: (-found.score, found.tokens))

    def _extend(self, going: list[_Beginning], log_probs_BV: Tensor, *, last: bool) -> tuple[list[int], list[_Beginning]]:
        """The `beam` best that go on by one token, with the places of what they go on from; what has ended is noted."""
        allowed_BV = self._allowed(going, log_probs_BV)
        for place, (each, likeliest) in enumerate(zip(going, allowed_BV.amax(1).tolist(), strict=True)):
            if likeliest == -math.inf:
                why = nothing_to_draw(log_probs_BV[place], self.excluded)
                if not each.tokens:
                    raise why
                if self.constraint is None and not self.has_warned:
                    log.warning("A continuation ends before its time. %s", why.given)
                    self.has_warned = True
                self._end(self._written(each.tokens, last=True)[0], each.tokens, each.log_prob)
        totals_BV = torch.tensor([each.log_prob for each in going], dtype=torch.float64)[:, None] + allowed_BV
        size = totals_BV.shape[1]
        best = totals_BV.flatten().topk(min(totals_BV.numel(), 2 * self.beam))
        parents: list[int] = []
        kept: list[_Beginning] = []
        for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if total == -math.inf or len(kept) == self.beam:
                break
            parent, token = divmod(place, size)
            before = going[parent]
            tokens = (*before.tokens, token)
            track = None if before.track is None or self.constraint is None else self.constraint.go_on(before.track, token)
            text, has_ended = self._written(tokens, last=last)
            if has_ended or last:
                self._end(text, tokens, total)
                continue
            parents.append(parent)
            kept.append(_Beginning(tokens, total, track))
        return parents, kept

    def _end(self, text: str, tokens: tuple[int, ...], log_prob: float) -> None:
        self.ended.append(Hypothesis(text, tokens, log_prob, log_prob / len(tokens) ** self.power))

    def _allowed(self, going: list[_Beginning], log_probs_BV: Tensor) -> Tensor:
        allowed_BV = exclude(log_probs_BV.double(), self.excluded)
        if self.constraint is None:
            return allowed_BV
        return self.constraint.apply_each(allowed_BV, [each.track for each in going if each.track is not None])

    def _written(self, tokens: tuple[int, ...], *, last: bool) -> tuple[str, bool]:
        """The text of a continuation, and whether it ends here."""
        writer, parts = make_writer(self.tokenizer, self.prompt, self.settings.stop), []
        for token in tokens:
            text, stopped = writer.write(token)
            parts.append(text)
            if stopped:
                return "".join(parts), True
        return "".join(parts) + (writer.end() if last else ""), False

    def _is_decided(self, going: list[_Beginning]) -> bool:
        """Whether nothing that goes on can become better than the best that have ended."""
        if len(self.ended) < self.beam:
            return False
        scores = sorted((found.score for found in self.ended), reverse=True)
        return max(each.log_prob for each in going) / self.settings.max_tokens**self.power <= scores[self.beam - 1]

    def _read(self, going: list[_Beginning], parents: list[int], state: State) -> tuple[Tensor, State]:
        tokens_TB = make_tokens(np.array([[each.tokens[-1] for each in going]]), self.model, self.device)
        kept = torch.tensor(parents, device=self.device)
        with evaluating(self.model):
            log_probs_TBV, state = self.model.log_probs(tokens_TB, tuple(tensor[kept] for tensor in state))
            return log_probs_TBV[0].cpu(), state
