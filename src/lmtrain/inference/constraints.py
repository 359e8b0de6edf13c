"""What a text that is being written may not go on with: n-grams that it has already, and words that are not on a list.

    no_repeat_ngram=3   no three tokens in a row occur twice, those of the prompt counted (Paulus et al. 2018)
    words               every word, which is what stands between whitespace, is on the list; blanks and ends of lines are free.
                        The list and the prompt are read as the tokenizer reads text (in lower case, say)

Words are followed by their bytes, so a list serves characters and subwords as well: a token is allowed where what it writes
completes words of the list, and where what it begins is the beginning of one.

    legend   V vocabulary
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmtrain.data.tokenizer import Tokenizer
from lmtrain.data.vocabulary import WHITESPACE
from lmtrain.errors import SettingsError

log = logging.getLogger("lmtrain")

BLANKS = WHITESPACE.encode()
MAX_STATES = 4096  # beginnings of words whose tokens are remembered


class WordList:
    """Which tokens may follow the beginning of a word, so that all words are on a list."""

    def __init__(self, words: Collection[str], tokenizer: Tokenizer) -> None:
        if tokenizer.reverse and not tokenizer.kind.has_words:
            raise SettingsError(
                "A list of words was given for a backward model of parts of words.", "It writes words from their end.",
                "Give a forward model, or one of tokenizer=word.",
            )  # fmt: skip
        writable = [tokenizer.as_read(word) for word in words if not tokenizer.unknown_pieces(word)]
        if len(writable) < len(words):
            log.warning("%d of %d words of the list are left out: the model cannot write them.", len(words) - len(writable),
                        len(words))  # fmt: skip
        self._words = sorted({word.encode() for word in writable})
        self._known = frozenset(self._words)
        self._writes = tokenizer.token_bytes()
        self._unk_id, self._eos_id = tokenizer.unk_id, tokenizer.eos_id
        self._forbidden: dict[bytes, Tensor] = {}
        if not self._words or any(bytes([blank]) in word for word in self._words for blank in BLANKS):
            raise SettingsError(
                "The list has no word that the model can write, or one that contains spaces.",
                "Words are separated by spaces.",
                "Give words that the model knows, one per line.",
            )
        if bool(self.forbidden(b"")[torch.arange(len(self._writes)) != self._eos_id].all()):
            raise SettingsError(
                "No token of the model begins a word of the list.", "At least one word must be in its vocabulary.",
                "Give words that the model knows.",
            )  # fmt: skip

    def forbidden(self, begun: bytes) -> Tensor:
        """Which tokens [V] may not come where a word has been begun so far."""
        found = self._forbidden.get(begun)
        if found is None:
            if len(self._forbidden) >= MAX_STATES:
                self._forbidden.clear()
            allowed = [number != self._unk_id and self.after(begun, number) is not None for number in range(len(self._writes))]
            found = self._forbidden[begun] = ~torch.tensor(allowed)
        return found

    def after(self, begun: bytes, token: int) -> bytes | None:
        """What has been begun behind `token`; None where it may not come."""
        text = begun + self._writes[token]
        for blank in BLANKS[1:]:
            text = text.replace(bytes([blank]), b" ")
        *whole, last = text.split(b" ")
        if any(word and word not in self._known for word in whole):
            return None
        if last:
            place = bisect.bisect_left(self._words, last)
            if place == len(self._words) or not self._words[place].startswith(last):
                return None
        return last


@dataclass(frozen=True)
class Track:
    """A text as far as constraints remember it: its tokens, and the word that it has begun."""

    tokens: tuple[int, ...]
    begun: bytes = b""


class Constraint:
    """What the settings forbid, for texts that go on behind the tokens and the text of a prompt."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: str, prompt_ids: Sequence[int], *, no_repeat_ngram: int | None,
        words: Collection[str] | None,
    ) -> None:  # fmt: skip
        self._length = no_repeat_ngram
        self._list = None if words is None else WordList(words, tokenizer)
        begun = b"" if tokenizer.kind.has_words else tokenizer.as_read(prompt).encode("utf-8", "replace")
        for blank in BLANKS:
            begun = begun.rpartition(bytes([blank]))[2]
        self.beginning = Track(tuple(prompt_ids), begun)

    def forbidden(self, track: Track) -> Tensor | None:
        """Which tokens may not come next, as a mask [V] or by their numbers; None where all may."""
        mask = None if self._list is None else self._list.forbidden(track.begun)
        if self._length is None or not (repeated := self._repeated(track.tokens)):
            return mask
        numbers = torch.tensor(repeated)
        return numbers if mask is None else mask.index_fill(0, numbers, True)

    def _repeated(self, tokens: tuple[int, ...]) -> list[int]:
        """The tokens that would complete an n-gram which is there already."""
        assert self._length is not None
        before = self._length - 1
        context = tokens[len(tokens) - before :]
        if len(context) < before:
            return []
        starts = range(len(tokens) - before)
        return sorted({tokens[start + before] for start in starts if tokens[start : start + before] == context})

    def apply(self, log_probs_V: Tensor, track: Track) -> Tensor:
        """The same log-probabilities with -inf for what may not come, not normalised."""
        mask = self.forbidden(track)
        if mask is None:
            return log_probs_V
        allowed_V = log_probs_V.clone()
        allowed_V[mask] = -torch.inf
        return allowed_V

    def apply_each(self, log_probs_NV: Tensor, tracks: Sequence[Track]) -> Tensor:
        """The same for N texts."""
        return torch.stack([self.apply(log_probs_V, track) for log_probs_V, track in zip(log_probs_NV, tracks, strict=True)])

    def go_on(self, track: Track, token: int) -> Track:
        """The text with one more token."""
        begun = b"" if self._list is None else self._list.after(track.begun, token)
        return Track((*track.tokens, token) if self._length is not None else (), begun or b"")
