"""Tokens, and ways of reading, as a saved tokenizer says them. Raises UnfitError for what none can have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.characters import WAYS
from lmtrain.data.kinds import Kind
from lmtrain.data.spelling import MAX_CHARS, MAX_WORDS, choose_words
from lmtrain.data.vocabulary import EOS, MAX_TYPES, MAX_WORD, UNK, WHITESPACE
from lmtrain.errors import UnfitError

PACKED = 2  # the format of a document whose tokens are in arrays beside it
IS_WORD = re.compile(f"[^{WHITESPACE}\ud800-\udfff]+")  # without blanks and halves of surrogate pairs


def is_way(name: str, value: object, kind: Kind) -> bool:
    """Tells whether a saved tokenizer can say of the way in which it reads a text that `name` is `value`."""
    if name == "rare":
        return kind.has_words and _are_rare(value)
    if name == "reverse":
        return value is True
    if not isinstance(value, str):
        return False
    if name == "normalize":
        return value in WAYS
    return (
        kind.has_words and 0 < len(value) == len(set(value)) and not any(c == "\n" or "\ud800" <= c <= "\udfff" for c in value)
    )


def _are_rare(words: object) -> bool:
    """Tells whether these are words with counts, no more than are kept, in their order."""
    if not isinstance(words, dict) or len(words) > MAX_WORDS or sum(map(len, words)) > MAX_CHARS:
        return False
    fits = all(_is_piece(word, "word") and type(count) is int and 0 < count < 1 << 53 for word, count in words.items())
    return fits and list(choose_words(words)) == list(words) and not {EOS, UNK} & words.keys()


def unpacked(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Returns the tokens in `arrays`, where they are such as `pack` makes."""
    match arrays:
        case {"bytes": np.ndarray() as data, "ends": np.ndarray() as ends, **rest} if not rest:
            pass
        case _:
            raise UnfitError(
                "its arrays", f"are {sorted(arrays)!r:.80}", f"bytes and ends, beside a document of format {PACKED}"
            )
    if (data.dtype, data.ndim, ends.dtype, ends.ndim) != (np.uint8, 1, np.int64, 1) or not 2 <= len(ends) <= MAX_TYPES + 2:
        types = f"are {data.dtype} {list(data.shape)} and {ends.dtype} {list(ends.shape)}"
        raise UnfitError("bytes and ends", types, f"uint8 [bytes] and int64 [2 to {MAX_TYPES + 2:,} tokens]")
    starts = np.append(0, ends[:-1])
    if int(ends[-1]) != len(data) or bool((starts >= ends).any()):
        raise UnfitError("ends", "end where no token can", "ascending numbers up to the number of bytes")
    text = data.tobytes()
    try:
        return [text[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    except UnicodeDecodeError:
        raise UnfitError("bytes", "are not UTF-8", "the tokens' texts in UTF-8") from None


def read_tokens(tokens: object, name: str) -> list[str]:
    """`tokens` where it is a list that a tokenizer `name` can have."""
    if not isinstance(tokens, list) or not 2 <= len(tokens) <= MAX_TYPES + 2:
        size = f"{len(tokens):,} values" if isinstance(tokens, list) else "no values"
        raise UnfitError("tokens", f"has {size}", f"a list of 2 to {MAX_TYPES + 2:,}")
    for token_id, token in enumerate(tokens):
        if not isinstance(token, str) or not (token == UNK or _is_piece(token, name)):
            raise UnfitError(f"tokens[{token_id}]", f"is {token!r:.40}", f"a {name}")
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        twice = next(token_id for token_id, token in enumerate(tokens) if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise UnfitError(f"tokens[{twice}]", f"is {tokens[twice]!r:.40} again", "every token once")
    for needed in (EOS if name == "word" else "\n", UNK):
        if needed not in tokens:
            raise UnfitError("tokens", f"lacks {needed!r}", f"a list with {needed!r} in it")
    return tokens


def _is_piece(token: str, name: str) -> bool:
    if name == "char":
        return len(token) == 1 and not "\ud800" <= token <= "\udfff"
    return len(token) <= 2 * MAX_WORD and IS_WORD.fullmatch(token) is not None
