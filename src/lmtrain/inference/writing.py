"""What can be shown of a text while it is written: characters and stop strings may still be incomplete."""

from __future__ import annotations

from collections.abc import Sequence

from lmtrain.data.tokenizer import Tokenizer
from lmtrain.errors import SettingsError


def make_writer(tokenizer: Tokenizer, prompt: str, stops: Sequence[str]) -> Writer:
    """What writes a continuation of `prompt`. SettingsError for stop strings of a backward model."""
    if not tokenizer.reverse:
        return Writer(tokenizer, prompt, [tokenizer.as_read(stop) for stop in stops])
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

    def write(self, token: int) -> tuple[str, bool]:
        """What `token` lets be shown; True where a stop string, which is left out, is complete."""
        text, self._held, stopped = release(self._held + self._decoder.push(token), self._stops)
        return text, stopped

    def is_open(self) -> bool:
        """Whether something is held back."""
        return bool(self._held) or self._decoder.is_open()

    def end(self) -> str:
        """What was held back, of a text that ends without a stop string."""
        text, held, _ = release(self._held + self._decoder.flush(), self._stops)
        return text + held


class BackwardWriter(Writer):
    """The same of a model that reads lines from their end: all at once when the line's beginning is reached.

    The text stands before the prompt, and is given in the order in which it is read.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        self._tokenizer, self._drawn = tokenizer, list[int]()
        line = prompt.rpartition("\n")[2]
        self._behind = " " if tokenizer.kind.has_words and line.strip() and line[0] not in " \t\v\f\r" else ""

    def write(self, token: int) -> tuple[str, bool]:
        if token == self._tokenizer.eos_id:
            return self.end(), True
        self._drawn.append(token)
        return "", False

    def is_open(self) -> bool:
        return bool(self._drawn)

    def end(self) -> str:
        text = self._tokenizer.decode(self._drawn)
        return text + self._behind * bool(text)


def release(held: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """Splits text into what can be shown and what may become a stop string; True where one is complete (and removed)."""
    found = [held.find(stop) for stop in stops if stop in held]
    if found:
        return held[: min(found)], "", True
    beginnings = (size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size]))
    shown = len(held) - max(beginnings, default=0)
    return held[:shown], held[shown:], False
