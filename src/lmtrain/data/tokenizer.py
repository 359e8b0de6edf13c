"""Text to token ids and back: characters, bytes, or words.

    char   a Unicode code point; "\\n" is the end of a line       encode("to be\\n") -> t o _ b e \\n
    byte   a byte of the text's UTF-8; the id is the byte          (256 ids, nothing is unknown)
    word   what stands between whitespace, and `<eos>` for "\\n"   encode("to be\\n") -> to be <eos>

Each tokenizer has an `eos_id`, the token of "\\n"; `encode` adds none of its own. What the training split lacks is `<unk>`.

Literals. In `word`, `<unk>` in the text is the unknown token (published corpora spell it so) and `<eos>` in the text is
the end of a line, exactly as "\\n" is. In `char` and `byte` both are five ordinary characters. `decode` writes an unknown
token as `<unk>`.

    decode(encode(text)) == text        char without unknown characters; byte
    encode(decode(ids)) == ids          word (whitespace comes back as single spaces and line ends); char without <unk>
"""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.vocabulary import (
    EOS,
    MAX_TYPES,
    MAX_WORD,
    UNK,
    WHITESPACE,
    code_points,
    count_chars,
    count_words,
    learn_tokens,
    split_words,
    utf8,
    whole_words,
)
from lmtrain.errors import SettingsError, UnfitError

Ids = NDArray[np.int32]
Arrays = dict[str, NDArray[Any]]

FORMAT = 1  # of to_json and of what an id means; a change here makes cached ids stale
PACKED = 2  # the format of a document whose tokens are in arrays beside it
MAX_DOCUMENT = 4 << 20  # tokens and characters of their texts together; as JSON they take at most 24 MB, however escaped


class Decoder(Protocol):
    """Turns ids into text one by one."""

    def push(self, token_id: int) -> str:
        """What `token_id` adds to the text; only whole characters, so it may be empty (byte)."""

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed (byte), else nothing."""


class Tokenizer(ABC):
    """The contract of all three: ids are 0 .. vocab_size-1."""

    name: str
    vocab_size: int
    eos_id: int
    unk_id: int | None
    tokens: list[str]  # the text of every token of a learnt vocabulary, by id

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of `text`, int32. Raises DataError for half a surrogate pair."""

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[Ids]:
        """The ids of one text that comes in blocks cut anywhere."""
        return map(self.encode, blocks)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`."""
        decoder = self.make_decoder()
        return "".join(decoder.push(int(token_id)) for token_id in ids) + decoder.flush()

    @abstractmethod
    def make_decoder(self, before: str = "") -> Decoder:
        """A decoder of what comes behind the text `before`."""

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """How one token is written on its own: `<eos>` (word) or "\\n" (char, byte), `<unk>`, `<0xE2>` (byte)."""

    @abstractmethod
    def unknown_pieces(self, text: str) -> list[str]:
        """The different pieces of `text` that become `<unk>`, in order of appearance; a literal `<unk>` is none."""

    def to_json(self) -> dict[str, Any]:
        """All that `load_tokenizer` needs."""
        return {"format": FORMAT, "name": self.name, "tokens": self.tokens}

    def pack(self) -> tuple[dict[str, Any], Arrays]:
        """The same as a document without the tokens, whatever their number, and arrays with them."""
        texts = [token.encode() for token in self.tokens]
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        arrays: Arrays = {"bytes": np.frombuffer(bytearray(b"".join(texts)), np.uint8), "ends": ends}
        return {"format": PACKED, "name": self.name}, arrays

    def fingerprint(self) -> str:
        """SHA-256 of the kind and the tokens: the same where ids mean the same."""
        return hashlib.sha256("\n".join([self.name, *self.tokens]).encode()).hexdigest()

    def save(self) -> tuple[dict[str, Any], Arrays]:
        """`to_json` and no arrays for a vocabulary that fits into a document, else `pack`."""
        size = len(self.tokens) + sum(map(len, self.tokens))
        return self.pack() if size > MAX_DOCUMENT else (self.to_json(), {})


def learn_tokenizer(name: str, blocks: Iterable[str], *, min_count: int = 1, max_size: int = 0) -> Tokenizer:
    """The tokenizer `name` ("char", "byte", "word") for a training text, given in blocks cut anywhere.

    Pieces seen fewer than `min_count` times become `<unk>`; `max_size` bounds the vocabulary (0: no bound). `byte` has a
    fixed vocabulary and refuses both (SettingsError).
    """
    if name == "byte":
        if min_count > 1 or max_size:
            raise SettingsError(
                f"tokenizer.min_count={min_count} and tokenizer.max_size={max_size} cannot shrink the 256 bytes.",
                "With tokenizer=byte, allowed are tokenizer.min_count=1 and tokenizer.max_size=0.",
                "Leave both out.",
            )
        return ByteTokenizer()
    assert name in ("char", "word"), name
    if name == "char":
        return CharTokenizer(learn_tokens(count_chars(blocks), eos="\n", min_count=min_count, max_size=max_size))
    return WordTokenizer(learn_tokens(count_words(blocks), eos=EOS, min_count=min_count, max_size=max_size))


class CharTokenizer(Tokenizer):
    """One token a Unicode code point; ids by descending frequency."""

    name = "char"

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.eos_id, self.unk_id = tokens.index("\n"), tokens.index(UNK)
        codes = {ord(token): token_id for token_id, token in enumerate(tokens) if token != UNK}
        self._table = np.full(max(codes) + 2, self.unk_id, np.int32)  # the last entry stands for all higher code points
        self._table[list(codes)] = list(codes.values())

    def encode(self, text: str) -> Ids:
        return self._table[np.minimum(code_points(text), len(self._table) - 1)]

    def make_decoder(self, before: str = "") -> Decoder:
        return _CharDecoder(self)

    def token_text(self, token_id: int) -> str:
        return self.tokens[_checked(token_id, self.vocab_size)]

    def unknown_pieces(self, text: str) -> list[str]:
        known = set(self.tokens)
        return [piece for piece in dict.fromkeys(text) if piece not in known]


class ByteTokenizer(Tokenizer):
    """One token a byte of UTF-8."""

    name = "byte"
    vocab_size = 256
    eos_id = ord("\n")
    unk_id = None

    def __init__(self) -> None:
        self.tokens = []

    def encode(self, text: str) -> Ids:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def make_decoder(self, before: str = "") -> Decoder:
        return _ByteDecoder()

    def token_text(self, token_id: int) -> str:
        return chr(_checked(token_id, self.vocab_size)) if token_id < 0x80 else f"<0x{token_id:02X}>"

    def unknown_pieces(self, text: str) -> list[str]:
        return []

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "name": self.name}

    def pack(self) -> tuple[dict[str, Any], Arrays]:
        return self.to_json(), {}


class WordTokenizer(Tokenizer):
    """One token a word, `<eos>` for a line's end; ids by descending frequency."""

    name = "word"

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.eos_id, self.unk_id = tokens.index(EOS), tokens.index(UNK)
        self._ids = _WithDefault(self.unk_id, {token.encode(): token_id for token_id, token in enumerate(tokens)})

    def encode(self, text: str) -> Ids:
        words = split_words(text)
        return np.fromiter(map(self._ids.__getitem__, words), np.int32, len(words))

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[Ids]:
        return map(self.encode, whole_words(blocks))

    def make_decoder(self, before: str = "") -> Decoder:
        return _WordDecoder(self, before)

    def token_text(self, token_id: int) -> str:
        return self.tokens[_checked(token_id, self.vocab_size)]

    def unknown_pieces(self, text: str) -> list[str]:
        return [word.decode() for word in dict.fromkeys(split_words(text)) if word not in self._ids]


class _WithDefault(dict[bytes, int]):
    """A dict whose missing keys have one value; nothing is stored for them."""

    def __init__(self, default: int, items: Mapping[bytes, int]) -> None:
        super().__init__(items)
        self._default = default

    def __missing__(self, key: bytes) -> int:
        return self._default


class _CharDecoder:
    def __init__(self, tokenizer: CharTokenizer) -> None:
        self.push = tokenizer.token_text

    def flush(self) -> str:
        return ""


class _ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WordDecoder:
    """A space between two words of a line, none at its ends, and none where there is one already."""

    def __init__(self, tokenizer: WordTokenizer, before: str) -> None:
        self._tokenizer = tokenizer
        self._behind_word = before[-1:] not in WHITESPACE  # "" is in it: nothing stands before the first word

    def push(self, token_id: int) -> str:
        space = " " if self._behind_word else ""
        self._behind_word = token_id != self._tokenizer.eos_id
        return space + self._tokenizer.token_text(token_id) if self._behind_word else "\n"

    def flush(self) -> str:
        return ""


def _checked(token_id: int, vocab_size: int) -> int:
    assert 0 <= token_id < vocab_size, f"token id {token_id} is outside 0 .. {vocab_size - 1}"
    return token_id


# ---- reading what to_json wrote


def load_tokenizer(document: object, arrays: Mapping[str, NDArray[Any]] | None = None) -> Tokenizer:
    """The tokenizer that `save` or `to_json` wrote. Raises UnfitError for anything that they cannot have written."""
    if not isinstance(document, dict):
        raise UnfitError("it", f"is {document!r:.40}", "a JSON object")
    written, name = document.get("format"), document.get("name")
    if type(written) is not int or written not in (FORMAT, PACKED):
        raise UnfitError("format", f"is {written!r:.40}", f"{FORMAT} or {PACKED}, which this program reads")
    if name not in ("char", "byte", "word"):
        raise UnfitError("name", f"is {name!r:.40}", "'char', 'byte' or 'word'")
    if name == "byte" and written != FORMAT:
        raise UnfitError("format", f"is {written}", f"{FORMAT} for bytes, whose tokens need no list")
    for key in document.keys() - {"format", "name", *["tokens"] * (name != "byte" and written == FORMAT)}:
        raise UnfitError(f"{key!r:.40}", "is not known here", "format, name and, for characters and words, tokens")
    if name == "byte":
        return ByteTokenizer()
    tokens = _read_tokens(_unpacked(arrays or {}) if written == PACKED else document.get("tokens"), name)
    return CharTokenizer(tokens) if name == "char" else WordTokenizer(tokens)


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """The tokens in `arrays`, where they are such as `pack` makes."""
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


def _read_tokens(tokens: object, name: str) -> list[str]:
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
    if not 1 <= len(token) <= 2 * MAX_WORD or any(space in token for space in WHITESPACE):
        return False
    return token.isascii() or not any("\ud800" <= char <= "\udfff" for char in token)
