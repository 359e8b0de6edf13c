"""A text as the training of word vectors reads it: the ids of its frequent words, with its line ends and its gaps in place.

    ids      "the cat sat" with a rare cat, line end    ->    0 GAP 1 BREAK

Words are those of `tokenizer=word`, learnt and encoded by the package's own tokenizer. A word that is too rare leaves a GAP, so
that the words around it stay as far apart as they are; nothing reaches over a BREAK. Of a directory with train, valid and test
the training split alone is read, all of its files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.advice import SEPARATORS, endless_words
from lmtrain.data.files import listing
from lmtrain.data.sources import find_sources
from lmtrain.data.text import TextFacts, iter_checked, scan, warned
from lmtrain.data.tokenizer import Tokenizer, learn_tokenizer
from lmtrain.data.vocabulary import whole_words
from lmtrain.errors import DataError
from lmtrain.shell import one_line
from lmtrain.vectors.table import in_other_form

Ids = NDArray[np.int32]

BREAK, GAP = -1, -2  # in the place of an id: a line's end, a word that is too rare


@dataclass(frozen=True)
class Text:
    """A text as ids: `ids` [N] are indices into `words`, the most frequent first, or BREAK or GAP; `counts` [V]."""

    words: tuple[str, ...]
    ids: Ids
    counts: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """How many words there are, the rare ones included."""
        return int(np.count_nonzero(self.ids != BREAK))

    @property
    def lines(self) -> Ids:
        """The number of the line of each id [N]; a line's end belongs to the next line."""
        return np.cumsum(self.ids == BREAK, dtype=np.int32)

    def remedy(self, otherwise: str) -> str:
        """What to do where this text has too little to learn from: `otherwise`, but for words that do not end."""
        lengths_V = np.fromiter(map(len, self.words), np.int64, len(self.words))
        problem = endless_words(self.words, self.counts, int(self.counts.sum()), int(lengths_V @ self.counts))
        return spaced(problem) if problem else otherwise

    def row(self, word: str) -> int:
        """The index of `word`. Raises DataError where it is not there or too rare."""
        try:
            return self.words.index(word)
        except ValueError:
            close = difflib.get_close_matches(word, self.words[:100_000], n=1)
            raise DataError(
                f"{one_line(repr(word[:60]))} is not among the {len(self.words):,} words that were read from the text.",
                "Allowed are these words, in capitals or not as they were read.",
                in_other_form(word, self.words) or (f"Did you mean {one_line(close[0])}?" if close else "Give another word."),
            ) from None

    def merged(self, first: str, second: str, name: str) -> Text:
        """The text with every `first` and `second` written as `name`, in the place of `first`; `second` is no word any more."""
        kept, gone = self.row(first), self.row(second)
        new = np.arange(len(self.words) + 2, dtype=np.int32)  # behind the words, as indices from the end: GAP, BREAK
        new[[BREAK, GAP]] = BREAK, GAP
        new[gone] = kept
        new[:-2][new[:-2] > gone] -= 1
        words, counts = list(self.words), self.counts.copy()
        words[kept], counts[kept] = name, counts[kept] + counts[gone]
        del words[gone]
        return Text(tuple(words), new[self.ids], np.delete(counts, gone))


def read_words(path: str | Path, *, min_count: int = 5, max_words: int | None = None, lowercase: bool = False) -> Text:
    """The text of a file, or of the training split of a directory.

    Words seen fewer than `min_count` times, and all but the `max_words` most frequent ones, are gaps. Raises DataError for
    what is no text, and where no word is left.
    """
    files = [warned(scan(file)) for file in find_sources(path)[0]]
    tokenizer = learn_tokenizer("word", _blocks(files, lowercase), min_count=min_count)
    ids = [*tokenizer.encode_blocks(_blocks(files, lowercase))] or [np.empty(0, np.int32)]  # an empty file has no block
    text = as_text(np.concatenate(ids), tokenizer, max_words=max_words)
    if not text.words:
        num_lines = int(np.count_nonzero(text.ids == BREAK))
        problem = endless_words((), text.counts, text.num_tokens, sum(facts.num_chars for facts in files) - num_lines)
        raise DataError(
            f"{listing([str(facts.path) for facts in files])} has no word"
            + (f" that is there at least {min_count} times." if min_count > 1 else "."),
            "Word vectors are made of words that are frequent enough.",
            spaced(problem) if problem else
            "Give a longer text, or let rarer words in with min_count=1." if min_count > 1 else "Give a text with words.",
        )  # fmt: skip
    return text


def spaced(problem: str) -> str:
    """What to do about words that do not end, which `problem` says."""
    return f"{problem}. {SEPARATORS} Put spaces between the words first."


def as_text(
    ids: NDArray[Any], tokenizer: Tokenizer, *, max_words: int | None = None, counts: NDArray[np.int64] | None = None
) -> Text:
    """The token ids of a text as such a text; its `counts` are those of another one where these are given."""
    ordinary = [token for token in range(tokenizer.vocab_size) if token not in (tokenizer.eos_id, tokenizer.unk_id)][:max_words]
    new = np.full(tokenizer.vocab_size, GAP, np.int32)
    new[ordinary] = np.arange(len(ordinary), dtype=np.int32)
    new[tokenizer.eos_id] = BREAK
    rows = new[ids]
    counts = np.bincount(rows[rows >= 0], minlength=len(ordinary)) if counts is None else counts
    return Text(tuple(tokenizer.token_text(token) for token in ordinary), rows, counts)


def _blocks(files: list[TextFacts], lowercase: bool) -> Iterator[str]:
    blocks = _lines_of(files)
    return (block.lower() for block in whole_words(blocks)) if lowercase else blocks


def _lines_of(files: list[TextFacts]) -> Iterator[str]:
    """The texts of the files one after another; the last line of each but the last ends where the file does."""
    for number, facts in enumerate(files, 1):
        block = ""
        for block in iter_checked(facts):
            yield block
        if number < len(files) and block and not block.endswith("\n"):
            yield "\n"
