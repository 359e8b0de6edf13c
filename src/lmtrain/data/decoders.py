"""Decodes token ids one by one, into what each adds to the text in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from lmtrain.data.vocabulary import WHITESPACE


class Decoder(Protocol):
    """Turns ids into text one by one."""

    def push(self, token_id: int) -> str:
        """Returns what `token_id` adds to the text; only whole characters, so it may be empty (byte, bpe)."""

    def is_open(self) -> bool:
        """Says whether something is left: a character that is not complete (byte, bpe)."""

    def flush(self) -> str:
        """Returns what is left at the end: U+FFFD for a character that was never completed (byte, bpe), else nothing."""


class TextDecoder:
    """Tokens that are written as they are."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens

    def push(self, token_id: int) -> str:
        return self._tokens[checked(token_id, len(self._tokens))]

    def is_open(self) -> bool:
        return False

    def flush(self) -> str:
        return ""


class BytesDecoder:
    """Whole characters of the bytes that tokens write."""

    def __init__(self, bytes_of: Sequence[bytes]) -> None:
        self._bytes_of, self._decoder = bytes_of, codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._bytes_of[checked(token_id, len(self._bytes_of))])

    def is_open(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WordDecoder:
    """Writes a space between two words of a line, none at its ends, and none if the text `before` ends with one."""

    def __init__(self, tokens: Sequence[str], eos_id: int, separators: str, before: str) -> None:
        self._tokens, self._eos_id = tokens, eos_id
        self._behind_word = before[-1:] not in WHITESPACE + separators  # "" is in it: nothing is before the first word

    def push(self, token_id: int) -> str:
        space = " " if self._behind_word else ""
        self._behind_word = token_id != self._eos_id
        return space + self._tokens[checked(token_id, len(self._tokens))] if self._behind_word else "\n"

    def is_open(self) -> bool:
        return False

    def flush(self) -> str:
        return ""


def checked(token_id: int, vocab_size: int) -> int:
    """Returns `token_id`, which must be one of the vocabulary."""
    assert 0 <= token_id < vocab_size, f"token id {token_id} is outside 0 .. {vocab_size - 1}"
    return token_id
