"""What a classifier reads of a text: its words as ids, or which words and n-grams are in it, each by a number of its own.

The number of a word is its id. The n-grams of length 2 and more that the training split has follow, length by length. The key
of an n-gram is made of the place of all but its last word among the n-grams of that length, and of the id of its last word:

    key(w_1 ... w_n) = place(w_1 ... w_(n-1)) V + id(w_n)

so that it fits into 64 bits whatever n is. Keys are kept in ascending order, and their places there number the n-grams.

    legend   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.tokenizer import WordTokenizer, learn_tokenizer
from lmtrain.data.vocabulary import split_words
from lmtrain.errors import UnfitError

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Indicators:
    """The words and n-grams that are known.

    tokenizer  the words, with `<unk>` for those that are not known
    lowercase  whether words are looked up in lower case
    keys       of each length from 2 on, the keys of its n-grams, in ascending order
    """

    tokenizer: WordTokenizer
    lowercase: bool = False
    keys: tuple[Numbers, ...] = ()

    @property
    def size(self) -> int:
        """Returns how many words and n-grams are known."""
        return self.tokenizer.vocab_size + sum(map(len, self.keys))

    def words(self, text: str) -> Numbers:
        """Returns the ids of the words of a text, in their order."""
        text = text.replace("\n", " ")  # of a text that is no line of a file; else it would hold `<eos>`
        return self.tokenizer.encode(text.lower() if self.lowercase else text).astype(np.int64)

    def of(self, text: str) -> Numbers:
        """Returns the numbers of the words and n-grams that are in a text, each once, ascending."""
        ids = self.words(text)
        found, start, numbers = [np.unique(ids)], self.tokenizer.vocab_size, ids
        for length, keys in enumerate(self.keys, 2):
            numbers = _places(keys, numbers[:-1] * self.tokenizer.vocab_size + ids[length - 1 :])
            found.append(start + np.unique(numbers[numbers >= 0]))
            start += len(keys)
        return np.concatenate(found)

    def arrays(self) -> dict[str, Numbers]:
        """Returns the keys by name, as a checkpoint keeps them."""
        return {f"keys_{length}": keys for length, keys in enumerate(self.keys, 2)}


def learn_indicators(
    texts: Sequence[str], *, max_length: int = 1, lowercase: bool = False, min_count: int = 1, vocab_size: int = 0,
    more: Iterable[str] = (),
) -> Indicators:  # fmt: skip
    """Returns the words and n-grams up to `max_length` of the training texts that are seen `min_count` times or more.

    `vocab_size` bounds the words; `more` are words that are known besides, because there are vectors of them.
    """
    lines = (f"{text.lower() if lowercase else text}\n" for text in texts)
    tokenizer = learn_tokenizer("word", lines, min_count=min_count, vocab_size=vocab_size)
    assert isinstance(tokenizer, WordTokenizer)
    have = set(tokenizer.tokens)
    added = [word for word in dict.fromkeys(more) if word not in have and split_words(word) == [word.encode()]]
    tokenizer = WordTokenizer(tokenizer.tokens + added)
    known = Indicators(tokenizer, lowercase)
    ids = [known.words(text) for text in texts]
    numbers, keys = ids, []
    for length in range(2, max_length + 1):
        candidates = [
            np.where(n[:-1] < 0, -1, n[:-1] * tokenizer.vocab_size + i[length - 1 :]) for n, i in zip(numbers, ids, strict=True)
        ]
        found, counts = np.unique(np.concatenate(candidates), return_counts=True)
        keys.append(found[(found >= 0) & (counts >= min_count)])
        numbers = [_places(keys[-1], candidate) for candidate in candidates]
    return Indicators(tokenizer, lowercase, tuple(keys))


def load_indicators(
    arrays: Mapping[str, NDArray[Any]], tokenizer: WordTokenizer, *, lowercase: bool, max_length: int
) -> Indicators:
    """Returns the known words and n-grams from what `arrays` gave. Raises UnfitError for what it cannot have given."""
    names = [f"keys_{length}" for length in range(2, max_length + 1)]
    if sorted(arrays) != sorted(names):
        raise UnfitError("it", f"holds {sorted(arrays)!r:.80}", ", ".join(names) or "nothing")
    num_before = tokenizer.vocab_size
    for name in names:
        keys, end = arrays[name], num_before * tokenizer.vocab_size
        if keys.dtype != np.int64 or keys.ndim != 1:
            raise UnfitError(name, f"is {keys.dtype} {list(keys.shape)}", "a row of int64")
        if (keys[1:] <= keys[:-1]).any():
            raise UnfitError(name, "does not ascend", "every key once, in ascending order")
        if len(keys) and not (keys[0] >= 0 and keys[-1] < end):
            raise UnfitError(name, "names n-grams that there are not", f"keys from 0 to {end - 1}")
        num_before = len(keys)
    return Indicators(tokenizer, lowercase, tuple(arrays[name] for name in names))


def bags(rows: Iterable[Numbers]) -> tuple[Numbers, Numbers]:
    """Returns all numbers behind each other, [M], and where each row begins, [N]."""
    parts = [np.empty(0, np.int64), *rows]
    return np.concatenate(parts), np.cumsum([0, *map(len, parts[1:])])[:-1]


def pick(numbers_M: Numbers, offsets_N: Numbers, which: NDArray[Any]) -> tuple[Numbers, Numbers]:
    """Returns the same of the rows in `which`."""
    starts, ends = offsets_N[which], np.append(offsets_N[1:], len(numbers_M))[which]
    sizes = ends - starts
    offsets = np.cumsum(np.append(0, sizes))[:-1]
    places = np.repeat(starts - offsets, sizes) + np.arange(sizes.sum())
    return numbers_M[places], offsets


def _places(keys: Numbers, wanted: Numbers) -> Numbers:
    """Returns the place of each wanted key among the keys, -1 where it is not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, places, -1)
