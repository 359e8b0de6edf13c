"""Text to token ids and back: characters, bytes, words or subwords.

    char   a Unicode code point; "\\n" is the end of a line       encode("to be\\n") -> t o _ b e \\n
    byte   a byte of the text's UTF-8; the id is the byte          (256 ids, nothing is unknown)
    word   what stands between whitespace, and `<eos>` for "\\n"   encode("to be\\n") -> to be <eos>
    bpe    a piece of a word and the space before it             (also unigram; see `subword`; nothing is unknown)

Each tokenizer has an `eos_id`, the token of "\\n"; `encode` adds none of its own. What the training split lacks is `<unk>`.

Literals. In `word`, `<unk>` in the text is the unknown token (published corpora spell it so) and `<eos>` in the text is
the end of a line, exactly as "\\n" is; so it is in training, scoring and prompts. Any other spelling is an ordinary word:
`\\<unk>` and `\\<eos>` are, with their backslash, and so are `<s>` and `</s>`, which ARPA files alone write otherwise. For
other tokenizers all of these are ordinary characters. `decode` writes an unknown token as `<unk>`.

    decode(encode(text)) == text        char without unknown characters; byte; bpe
    encode(decode(ids)) == ids          word (whitespace comes back as single spaces and line ends); char without <unk>
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.characters import WAYS, iter_normalized, normalized, spaced
from lmtrain.data.decoders import BytesDecoder, Decoder, TextDecoder, WordDecoder, checked
from lmtrain.data.kinds import BYTE, CHAR, FILE, KINDS, WORD, Kind, mistakes
from lmtrain.data.lookup import WordLookup
from lmtrain.data.spelling import Spelling, choose_words
from lmtrain.data.subword import Subwords, canonical, learn_bpe, learn_unigram, sha256_of
from lmtrain.data.token_lists import PACKED, is_way, read_tokens, unpacked
from lmtrain.data.vocabulary import (
    EOS,
    UNK,
    code_points,
    count_chars,
    count_words,
    learn_tokens,
    split_words,
    utf8,
    whole_lines,
    whole_words,
)
from lmtrain.data.words import WordCounter
from lmtrain.errors import UnfitError, refuse

Ids = NDArray[np.int32]
Arrays = dict[str, NDArray[Any]]

FORMAT = 1  # of to_json and of what an id means; a change here makes cached ids stale
MAX_DOCUMENT = 4 << 20  # tokens and characters of their texts together; as JSON they take at most 24 MB, however escaped


class Tokenizer(ABC):
    """The contract of all of them: ids are 0 .. vocab_size-1."""

    kind: Kind
    vocab_size: int
    eos_id: int
    unk_id: int | None
    tokens: list[str]  # the text of every token of a vocabulary of characters or words, by id
    normalize: str = "none"  # the form in which text is read: "none", or one of `characters.WAYS`
    separators: str = ""  # characters that separate words besides whitespace
    rare: dict[str, int] | None = None  # words from which the spelling of unknown ones is learnt; None: they are not spelt
    reverse: bool = False  # whether the tokens of each line are given from its last to its first, its end behind them
    subword: dict[str, Any] | None = None  # the file of the library `tokenizers` that is saved beside, as subword.json

    @property
    def name(self) -> str:
        """Returns what one types behind `tokenizer=` for it."""
        return self.kind.name

    def encode(self, text: str) -> Ids:
        """Returns the ids of `text`, int32. Raises DataError for half a surrogate pair."""
        ids = self._encode(self.as_read(text))
        return reversed_lines(ids, self.eos_id) if self.reverse else ids

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[Ids]:
        """Returns the ids of one text that comes in blocks cut anywhere."""
        return (ids for ids, _ in self.encode_spelt(blocks))

    def encode_spelt(self, blocks: Iterable[str]) -> Iterator[tuple[Ids, int]]:
        """Returns the same, each with what the spelling of its unknown words costs, in millionths of a nat (0 where none is
        spelt)."""
        spelt = self._encode_spelt(blocks)
        return reversed_blocks(spelt, self.eos_id) if self.reverse else spelt

    def _encode_spelt(self, blocks: Iterable[str]) -> Iterator[tuple[Ids, int]]:
        return ((ids, 0) for ids in self._encode_blocks(self.read(blocks)))

    def spelling_of(self, text: str) -> int:
        """Returns what the spelling of the unknown words of a text of whole words costs, in millionths of a nat."""
        return sum(micronats for _, micronats in self.encode_spelt([text]))

    def whole(self, blocks: Iterable[str]) -> Iterator[str]:
        """Returns the same text in blocks that can be encoded one by one: cut between tokens, of a backward model between
        lines."""
        return whole_lines(blocks) if self.reverse else self._whole(blocks)

    def _whole(self, blocks: Iterable[str]) -> Iterator[str]:
        return iter(blocks)

    def pieces(self, text: str) -> list[str]:
        """Says how each token of a text that was cut by `whole` stands in it. Only where tokens may be unknown."""
        pieces = self._pieces(text)
        if not self.reverse:
            return pieces
        ids = self._encode(self.as_read(text))
        return [pieces[place] for place in _reversed_places(ids, self.eos_id).tolist()]

    def _pieces(self, text: str) -> list[str]:
        return [*text]

    def as_read(self, text: str) -> str:
        """Returns a text as this tokenizer reads it, in the normalisation form that it was learnt in."""
        return normalized(text, self.normalize)

    def read(self, blocks: Iterable[str]) -> Iterator[str]:
        """Returns the same of a text in blocks cut anywhere."""
        return iter_normalized(blocks, self.normalize)

    @abstractmethod
    def _encode(self, text: str) -> Ids: ...

    def _encode_blocks(self, blocks: Iterable[str]) -> Iterator[Ids]:
        return map(self._encode, blocks)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, in the order in which it is read."""
        decoder = self.make_decoder()
        if self.reverse:
            ids = reversed_lines(np.array([*ids], np.int32), self.eos_id)
        return "".join(decoder.push(int(token_id)) for token_id in ids) + decoder.flush()

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """Returns what every token writes."""

    @cached_property
    def _words(self) -> WordCounter:
        return WordCounter(self.token_bytes(), backward=self.reverse)

    def count_words(self, ids: NDArray[Any], before: int | None = None) -> int:
        """Returns how many words begin in `ids`, ends of lines counted, which follow the token `before` (by default a line's
        end)."""
        return self._words.count(ids, self.eos_id if before is None else before)

    @abstractmethod
    def make_decoder(self, before: str = "") -> Decoder:
        """Returns a decoder of what comes behind the text `before`."""

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """Says how one token is written on its own: `<eos>` (word) or "\\n" (char, byte), `<unk>`, `<0xE2>` (byte)."""

    def symbol(self, token_id: int) -> str:
        """Returns the same without blanks and control characters, different for each token: for files that blanks separate."""
        text = self.token_text(token_id)
        return text if len(text) > 1 or (text.isprintable() and text != " ") else f"<0x{ord(text):02X}>"

    def unknown_pieces(self, text: str) -> list[str]:
        """Returns the different pieces of `text` that become `<unk>`, in order of appearance; a literal `<unk>` is none."""
        return self._unknown_pieces(self.as_read(text))

    @abstractmethod
    def _unknown_pieces(self, text: str) -> list[str]: ...

    def to_json(self) -> dict[str, Any]:
        """Returns all that `load_tokenizer` needs."""
        return {**self._facts(FORMAT), "tokens": self.tokens}

    def _facts(self, written: int) -> dict[str, Any]:
        facts = {"format": written, "name": self.name}
        ways = {"normalize": self.normalize, "separators": self.separators, "rare": self.rare, "reverse": self.reverse}
        return facts | {name: way for name, way in ways.items() if way not in ("none", "", None, False)}

    def pack(self) -> tuple[dict[str, Any], Arrays]:
        """Returns the same as a document without the tokens, whatever their number, and arrays with them."""
        texts = [token.encode() for token in self.tokens]
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        arrays: Arrays = {"bytes": np.frombuffer(bytearray(b"".join(texts)), np.uint8), "ends": ends}
        return self._facts(PACKED), arrays

    def fingerprint(self) -> str:
        """SHA-256 of the kind and the tokens: the same where ids mean the same."""
        ways = [f"{name}={way}" for name, way in self._facts(FORMAT).items() if name in ("normalize", "separators", "reverse")]
        return hashlib.sha256("\n".join([self.name, *ways, *self.tokens]).encode()).hexdigest()

    def save(self) -> tuple[dict[str, Any], Arrays]:
        """`to_json` and no arrays for a vocabulary that fits into a document, else `pack`."""
        size = len(self.tokens) + sum(map(len, self.tokens))
        return self.pack() if size > MAX_DOCUMENT else (self.to_json(), {})


def learn_tokenizer(
    name: str,
    blocks: Iterable[str],
    *,
    min_count: int = 1,
    vocab_size: int = 0,
    subword: Mapping[str, Any] | None = None,
    vocabulary: Sequence[str] | None = None,
    separators: str = "",
    spelled: bool = False,
    normalize: str = "none",
    reverse: bool = False,
) -> Tokenizer:
    """Returns the tokenizer `name` ("char", "byte", "word", "bpe", "unigram", "file") for a text, given in blocks cut anywhere.

    Pieces seen fewer than `min_count` times become `<unk>`; of `bpe`, pairs that were seen so seldom stay apart; `unigram`
    reads no `min_count`. `vocab_size` bounds the vocabulary (0: no bound, but not for subwords). `byte` and `file` have a fixed
    vocabulary and refuse both (SettingsError); `subword` is the document of a `file`, and the text is not read.

    Of `word` alone: `separators` are characters that separate words besides whitespace; with a `vocabulary` (all tokens in the
    order of their ids, as `read_word_list` gives them) none is learnt; `spelled` learns to spell unknown words (`spelling`).
    Text is read in the form `normalize`, and with `reverse` each line from its last token to its first.
    """
    tokenizer = _learn(
        KINDS[name], iter_normalized(blocks, normalize), min_count, vocab_size, subword, vocabulary, separators,
        spelled,
    )  # fmt: skip
    tokenizer.normalize, tokenizer.reverse = normalize, reverse
    return tokenizer


def _learn(
    kind: Kind, blocks: Iterator[str], min_count: int, vocab_size: int, subword: Any, vocabulary: Any, separators: str,
    spelled: bool,
) -> Tokenizer:  # fmt: skip
    name = kind.name
    of_words = {"vocabulary": vocabulary is not None, "separators": separators, "spelled": spelled}
    refuse(
        mistakes(
            kind, min_count=min_count, vocab_size=vocab_size, has_list=vocabulary is not None,
            of_words=[name for name, is_given in of_words.items() if is_given],
        )
    )  # fmt: skip
    if name == "byte":
        return ByteTokenizer()
    if name == "file":
        return SubwordTokenizer(FILE, Subwords(subword))
    if name == "unigram":
        return SubwordTokenizer(kind, Subwords(learn_unigram(blocks, vocab_size=vocab_size)))
    if name == "bpe":
        return SubwordTokenizer(kind, Subwords(learn_bpe(blocks, vocab_size=vocab_size, min_count=min_count)))
    if vocabulary is not None and not spelled:
        return WordTokenizer(list(vocabulary), separators)
    if name == "char":
        return learn_from_counts("char", count_chars(blocks), min_count=min_count, vocab_size=vocab_size)
    counts = count_words(spaced(block, separators) for block in blocks)
    return learn_from_counts(
        "word", counts, min_count=min_count, vocab_size=vocab_size, vocabulary=vocabulary, separators=separators,
        spelled=spelled,
    )  # fmt: skip


def learn_from_counts(
    name: str, counts: Mapping[str, int], *, min_count: int = 1, vocab_size: int = 0, vocabulary: Sequence[str] | None = None,
    separators: str = "", spelled: bool = False,
) -> Tokenizer:  # fmt: skip
    """Returns the tokenizer "char" or "word" of a text in which each piece occurs so often; the rest as `learn_tokenizer`."""
    if name == "char":
        return CharTokenizer(learn_tokens(counts, eos="\n", min_count=min_count, vocab_size=vocab_size))
    tokens = vocabulary or learn_tokens(counts, eos=EOS, min_count=min_count, vocab_size=vocab_size)
    tokenizer = WordTokenizer(list(tokens), separators)
    if spelled:
        known = set(tokens)
        unknown = {word: count for word, count in counts.items() if word not in known}
        tokenizer.rare = choose_words(unknown or dict.fromkeys(known - {EOS, UNK}, 1))
    return tokenizer


class CharTokenizer(Tokenizer):
    """One token a Unicode code point; ids by descending frequency."""

    kind = CHAR

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.eos_id, self.unk_id = tokens.index("\n"), tokens.index(UNK)
        codes = {ord(token): token_id for token_id, token in enumerate(tokens) if token != UNK}
        self._table = np.full(max(codes) + 2, self.unk_id, np.int32)  # the last entry stands for all higher code points
        self._table[list(codes)] = list(codes.values())

    def _encode(self, text: str) -> Ids:
        return self._table[np.minimum(code_points(text), len(self._table) - 1)]

    def token_bytes(self) -> list[bytes]:
        return [token.encode() for token in self.tokens]

    def make_decoder(self, before: str = "") -> Decoder:
        return TextDecoder(self.tokens)

    def token_text(self, token_id: int) -> str:
        return self.tokens[checked(token_id, self.vocab_size)]

    def _unknown_pieces(self, text: str) -> list[str]:
        known = set(self.tokens)
        return [piece for piece in dict.fromkeys(text) if piece not in known]


class ByteTokenizer(Tokenizer):
    """One token a byte of UTF-8."""

    kind = BYTE
    vocab_size = 256
    eos_id = ord("\n")
    unk_id = None

    def __init__(self) -> None:
        self.tokens = []

    def _encode(self, text: str) -> Ids:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def token_bytes(self) -> list[bytes]:
        return [bytes([byte]) for byte in range(256)]

    def make_decoder(self, before: str = "") -> Decoder:
        return BytesDecoder(self.token_bytes())

    def token_text(self, token_id: int) -> str:
        return chr(checked(token_id, self.vocab_size)) if token_id < 0x80 else f"<0x{token_id:02X}>"

    def _unknown_pieces(self, text: str) -> list[str]:
        return []

    def to_json(self) -> dict[str, Any]:
        return self._facts(FORMAT)

    def pack(self) -> tuple[dict[str, Any], Arrays]:
        return self.to_json(), {}


class WordTokenizer(Tokenizer):
    """One token a word, `<eos>` for a line's end; ids by descending frequency."""

    kind = WORD

    def __init__(self, tokens: list[str], separators: str = "") -> None:
        self.tokens, self.separators = tokens, separators
        self.vocab_size = len(tokens)
        self.eos_id, self.unk_id = tokens.index(EOS), tokens.index(UNK)
        self._ids = _WithDefault(self.unk_id, {token.encode(): token_id for token_id, token in enumerate(tokens)})
        self._lookup = WordLookup(self._ids)

    def _encode(self, text: str) -> Ids:
        return self._lookup.of(utf8(spaced(text, self.separators)))

    def _encode_blocks(self, blocks: Iterable[str]) -> Iterator[Ids]:
        return map(self._encode, self._whole(blocks))

    def _whole(self, blocks: Iterable[str]) -> Iterator[str]:
        return whole_words(spaced(block, self.separators) for block in blocks)

    def _pieces(self, text: str) -> list[str]:
        return [word.decode() for word in split_words(spaced(text, self.separators))]

    def _encode_spelt(self, blocks: Iterable[str]) -> Iterator[tuple[Ids, int]]:
        if self.rare is None:
            yield from super()._encode_spelt(blocks)
            return
        for text in self._whole(self.read(blocks)):
            yield self._encode(text), self.spelling_of(text)

    def spelling_of(self, text: str) -> int:
        if self.rare is None:
            return 0
        words = split_words(spaced(text, self.separators))
        return sum(self.spelling.micronats(word) for word in words if self._ids[word] == self.unk_id)

    @cached_property
    def spelling(self) -> Spelling:
        """Returns what unknown words cost, `<unk>` itself among them. Only where `rare` says from what it is learnt."""
        assert self.rare is not None
        return Spelling(self.rare, (token.encode() for token in self.tokens if token != UNK))

    def token_bytes(self) -> list[bytes]:
        return [b"\n" if token == EOS else token.encode() + b" " for token in self.tokens]

    def make_decoder(self, before: str = "") -> Decoder:
        return WordDecoder(self.tokens, self.eos_id, self.separators, before)

    def token_text(self, token_id: int) -> str:
        return self.tokens[checked(token_id, self.vocab_size)]

    def _unknown_pieces(self, text: str) -> list[str]:
        words = split_words(spaced(text, self.separators))
        return [word.decode() for word in dict.fromkeys(words) if word not in self._ids]


class SubwordTokenizer(Tokenizer):
    """One token a piece of a word, as a document of the library `tokenizers` says; a line's end is a token of its own."""

    unk_id = None

    def __init__(self, kind: Kind, subwords: Subwords) -> None:
        self.kind, self.subword = kind, subwords.document
        self._subwords = subwords
        self.tokens = []
        self.vocab_size, self.eos_id = len(subwords.bytes), subwords.eos_id
        self._sha256 = sha256_of(subwords.document)

    def _encode(self, text: str) -> Ids:
        utf8(text)  # which refuses half a surrogate pair
        return self._subwords.encode(text)

    def _encode_blocks(self, blocks: Iterable[str]) -> Iterator[Ids]:
        return self._subwords.encode_blocks(blocks)

    def token_bytes(self) -> list[bytes]:
        return self._subwords.bytes

    def make_decoder(self, before: str = "") -> Decoder:
        return BytesDecoder(self._subwords.bytes)

    def token_text(self, token_id: int) -> str:
        data = self._subwords.bytes[checked(token_id, self.vocab_size)]
        try:
            return data.decode()
        except UnicodeDecodeError:  # it ends or begins within a character
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def symbol(self, token_id: int) -> str:
        return str(self._subwords.symbols[checked(token_id, self.vocab_size)])

    def _unknown_pieces(self, text: str) -> list[str]:
        return []

    def to_json(self) -> dict[str, Any]:
        return {**self._facts(FORMAT), "sha256": self._sha256}

    def pack(self) -> tuple[dict[str, Any], Arrays]:
        data = np.frombuffer(bytearray(canonical(self.subword)), np.uint8)
        return self.to_json(), {"bytes": data, "ends": np.empty(0, np.int64)}

    def save(self) -> tuple[dict[str, Any], Arrays]:
        return self.to_json(), {}

    def fingerprint(self) -> str:
        return sha256_of(self.to_json())


# ---- lines from their end


def reversed_lines(ids: Ids, eos_id: int) -> Ids:
    """Returns the same with the tokens of each line turned round; the end of a line stays behind it."""
    return ids[_reversed_places(ids, eos_id)]


def _reversed_places(ids: Ids, eos_id: int) -> NDArray[np.int64]:
    """Where each token of the turned text stands in `ids`."""
    places = np.arange(len(ids))
    is_end = ids == eos_id
    ends = np.flatnonzero(is_end)
    lines = np.cumsum(is_end) - is_end  # the number of each token's line
    starts = np.append(0, ends + 1)[lines]
    last = np.append(ends, len(ids))[lines] - 1
    return np.where(is_end, places, starts + last - places)


def reversed_blocks(spelt: Iterable[tuple[Ids, int]], eos_id: int) -> Iterator[tuple[Ids, int]]:
    """Yields the same for a text that comes in pieces: whole lines of it, turned round. A line is held until its end comes."""
    held: list[Ids] = []
    total = 0
    for ids, micronats in spelt:
        total += micronats
        ends = np.flatnonzero(ids == eos_id)
        cut = int(ends[-1]) + 1 if len(ends) else 0
        if cut:
            yield reversed_lines(np.concatenate([*held, ids[:cut]]), eos_id), total
            held, total = [], 0
        held.append(ids[cut:])
    if held or total:
        yield reversed_lines(np.concatenate([np.empty(0, np.int32), *held]), eos_id), total


class _WithDefault(dict[bytes, int]):
    """A dict whose missing keys have one value; nothing is stored for them."""

    def __init__(self, default: int, items: Mapping[bytes, int]) -> None:
        super().__init__(items)
        self._default = default

    def __missing__(self, key: bytes) -> int:
        return self._default


# ---- reading what to_json wrote


def load_tokenizer(
    document: object, arrays: Mapping[str, NDArray[Any]] | None = None, subwords: Subwords | None = None
) -> Tokenizer:
    """Returns the tokenizer that `save`, `pack` or `to_json` wrote; `subwords` are those of the document beside it.

    Raises UnfitError for anything that they cannot have written.
    """
    if not isinstance(document, dict):
        raise UnfitError("it", f"is {document!r:.40}", "a JSON object")
    ways = {name: document[name] for name in ("normalize", "separators", "rare", "reverse") if name in document}
    tokenizer = _load({key: value for key, value in document.items() if key not in ways}, arrays or {}, subwords)
    for name, value in ways.items():
        if not is_way(name, value, tokenizer.kind):
            raise UnfitError(
                name,
                f"is {value!r:.40}",
                {"normalize": f"one of {', '.join(WAYS)}", "reverse": "true, or is left out"}.get(name, "of words, each once"),
            )
        setattr(tokenizer, name, value)
    return tokenizer


def _load(document: dict[str, Any], arrays: Mapping[str, NDArray[Any]], subwords: Subwords | None) -> Tokenizer:
    written, name = document.get("format"), document.get("name")
    if type(written) is not int or written not in (FORMAT, PACKED):
        raise UnfitError("format", f"is {written!r:.40}", f"{FORMAT} or {PACKED}, which this program reads")
    if not isinstance(name, str) or name not in KINDS:
        *others, last = map(repr, KINDS)
        raise UnfitError("name", f"is {name!r:.40}", f"{', '.join(others)} or {last}")
    if name in ("bpe", "unigram", "file"):
        return _load_subwords(document, KINDS[name], arrays, subwords)
    if subwords is not None:
        raise UnfitError("name", f"is {name!r}", "'bpe', 'unigram' or 'file' where subword.json lies beside it")
    if name == "byte" and written != FORMAT:
        raise UnfitError("format", f"is {written}", f"{FORMAT} for bytes, whose tokens need no list")
    for key in document.keys() - {"format", "name", *["tokens"] * (name != "byte" and written == FORMAT)}:
        raise UnfitError(f"{key!r:.40}", "is not known here", "format, name and, for characters and words, tokens")
    if name == "byte":
        return ByteTokenizer()
    tokens = read_tokens(unpacked(arrays) if written == PACKED else document.get("tokens"), name)
    return {"char": CharTokenizer, "word": WordTokenizer}[name](tokens)


def _load_subwords(
    document: dict[str, Any], kind: Kind, arrays: Mapping[str, NDArray[Any]], subwords: Subwords | None
) -> Tokenizer:
    if subwords is None:
        data = arrays.get("bytes")
        if data is None or not len(data):
            raise UnfitError("name", f"is {kind.name!r}", "'char', 'byte' or 'word' where no subword.json lies beside it")
        subwords = Subwords(json.loads(data.tobytes()))
    elif arrays:
        raise UnfitError("its arrays", f"are {sorted(arrays)!r:.80}", "none beside subword.json")
    tokenizer = SubwordTokenizer(kind, subwords)
    expected = tokenizer.to_json()
    for key, value in expected.items():
        if document.get(key) != value or type(document[key]) is not type(value):
            raise UnfitError(key, f"is {document.get(key)!r:.80}", f"{value!r}, as subword.json has it")
    for key in document.keys() - expected.keys():
        raise UnfitError(f"{key!r:.40}", "is not known here", "format, name and sha256")
    return tokenizer
