"""The features of a word for a tagger: itself, its shape, its prefixes and suffixes, each a number; 0 is what training lacks.

word     Ekeus       looked up in the vocabulary (in lower case, where that is set)
shape    Xx          capitals are X, small letters x, digits d, other letters a; a run of equal signs is one
affixes  E- Ek-  -s -us
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.columns import Sentence
from lmtrain.data.tokenizer import WordTokenizer
from lmtrain.data.vocabulary import EOS, MAX_WORD, UNK, WHITESPACE, learn_tokens
from lmtrain.errors import UnfitError

FEWEST = 2  # times that a shape or an affix must be seen to be known
MAX_AFFIXES = 10  # lists: prefixes and suffixes of up to five letters
BORDER = ""  # the feature of what is beyond a sentence


@lru_cache(maxsize=1 << 16)
def shape_of(word: str) -> str:
    """Returns the shape of a word, such as Xx, d-x or X."""
    signs = "".join(_sign(character) for character in word[:100])
    return re.sub(r"(.)\1+", r"\1", signs, flags=re.DOTALL)


def _sign(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in ("Lu", "Lt"):
        return "X"
    if kind == "Ll":
        return "x"
    if kind.startswith("N"):
        return "d"
    return character if character.isascii() else "a" if kind.startswith(("L", "M")) else "s"


@dataclass(frozen=True)
class Features:
    """The features of words, as training has them.

    tokenizer  the words, with `<unk>` for those that are not known and `<eos>` for what is beyond a sentence
    lowercase  whether words are looked up in lower case
    shapes     the shapes, where they are features; the first is what training lacks, the second the border
    affixes    for each length the prefixes, then for each length the suffixes; likewise
    """

    tokenizer: WordTokenizer
    lowercase: bool
    shapes: tuple[str, ...] = ()
    affixes: tuple[tuple[str, ...], ...] = ()
    _numbers: list[dict[str, int]] = field(default_factory=list, repr=False, compare=False)
    _words: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        tables = [*([self.shapes] if self.shapes else []), *self.affixes]
        self._numbers.extend({name: number for number, name in enumerate(table)} for table in tables)
        self._words.update((word, number) for number, word in enumerate(self.tokenizer.tokens))

    @property
    def sizes(self) -> list[int]:
        """Says how many there are of each."""
        return [self.tokenizer.vocab_size, *map(len, self._numbers)]

    def of(self, tokens: Iterable[str]) -> NDArray[np.int64]:
        """Returns the features [T, F] of words."""
        rows = [self._row(token) for token in tokens]
        return np.array(rows, np.int64).reshape(len(rows), len(self.sizes))

    def border(self) -> NDArray[np.int64]:
        """Returns the features [F] of what is beyond a sentence."""
        return np.array([self.tokenizer.eos_id, *(numbers[BORDER] for numbers in self._numbers)], np.int64)

    def _row(self, token: str) -> list[int]:
        names = [shape_of(token)] if self.shapes else []
        lengths = range(1, len(self.affixes) // 2 + 1)
        names += [token[:length] for length in lengths] + [token[-length:] for length in lengths]
        return [self._word(token), *(numbers.get(name, 0) for numbers, name in zip(self._numbers, names, strict=True))]

    def _word(self, token: str) -> int:
        return self._words.get(token.lower() if self.lowercase else token, self._words[UNK])

    def to_json(self) -> dict[str, Any]:
        return {"lowercase": self.lowercase, "shapes": list(self.shapes), "affixes": [list(table) for table in self.affixes]}


def learn_features(
    sentences: Sequence[Sentence], *, lowercase: bool, shapes: bool, affixes: int, min_count: int = 1, vocab_size: int = 0,
    more: Iterable[str] = (),
) -> Features:  # fmt: skip
    """Returns the features that sentences have. `more` are words that are known besides, because there are vectors of them."""
    tokens = [token for sentence in sentences for token in sentence.tokens]
    words = Counter(token.lower() if lowercase else token for token in tokens)
    counts = {word: count for word, count in words.items() if _can_be_word(word)} | {EOS: len(sentences)}
    known = learn_tokens(counts, eos=EOS, min_count=min_count, vocab_size=vocab_size)
    have = set(known)
    known += [word for word in dict.fromkeys(more) if word not in have and _can_be_word(word)]
    lengths = range(1, affixes + 1)
    return Features(
        WordTokenizer(known), lowercase, _seen(map(shape_of, tokens)) if shapes else (),
        (*(_seen(token[:length] for token in tokens) for length in lengths),
         *(_seen(token[-length:] for token in tokens) for length in lengths)),
    )  # fmt: skip


def read_features(document: Any, tokenizer: WordTokenizer) -> Features:
    """Returns the features in a document of `to_json`. Raises UnfitError for anything that it cannot have given."""
    match document:
        case {"lowercase": bool(lowercase), "shapes": list(shapes), "affixes": list(affixes), **rest} if not rest:
            pass
        case _:
            raise UnfitError("it", "is no list of features", "lowercase, shapes and affixes")
    if len(affixes) % 2 or len(affixes) > MAX_AFFIXES:
        raise UnfitError("affixes", f"has {len(affixes)} lists", "as many prefixes as suffixes")
    for name, table in (("shapes", shapes or [UNKNOWN, BORDER]), *((f"affixes.{i}", table) for i, table in enumerate(affixes))):
        is_fit = isinstance(table, list) and all(isinstance(item, str) for item in table) and len(set(table)) == len(table)
        if not is_fit or BORDER not in table[1:]:
            raise UnfitError(name, "is no such list", "texts, each once, with the border among them")
    return Features(tokenizer, lowercase, tuple(shapes), tuple(map(tuple, affixes)))


UNKNOWN = "\0"  # no word has it: features of number 0 are found by no name


def _seen(names: Iterable[str]) -> tuple[str, ...]:
    """Returns what was seen often enough, the most frequent first, behind what training lacks and the border."""
    counts = Counter(names)
    kept = sorted((name for name, count in counts.items() if count >= FEWEST and name not in (BORDER, UNKNOWN)),
                  key=lambda name: (-counts[name], name))  # fmt: skip
    return (UNKNOWN, BORDER, *kept)


def _can_be_word(word: str) -> bool:
    return 0 < len(word) <= MAX_WORD and not any(space in word for space in WHITESPACE)
