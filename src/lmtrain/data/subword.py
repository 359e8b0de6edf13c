"""Subwords: byte-level BPE and unigram models, learnt with Hugging Face `tokenizers` and read from that library's files.

    text -> pieces -> bytes of UTF-8, merged pair by pair in the order in which the pairs were learnt -> ids

Any text can be written by the 256 bytes, so nothing is unknown, and the bytes of all tokens are the text again. No token
goes beyond a piece: a "\\n" alone, so that every line has its end; letters, digits or marks with the space before them;
blanks. Which characters are digits or marks is said by ranges alone, so that Python's `re` and the library cut alike,
whatever Unicode they know. All others are letters, the vowel signs of Hindi and Thai too. A piece has at most 65 characters,
so that a text can be cut anywhere (`whole_pieces`). Ids descend in frequency, as in the other vocabularies.

The library encodes about 2 MB per second. Texts repeat their pieces, so each different one is encoded once, and a text is
looked up. Files of other origin (`tokenizer=file`) cut in their own way: they are taken line by line and by the library alone.

A unigram model (Kudo 2018) gives each token a probability, and a piece the tokens that are the likeliest together. The
library learns it in the order of hash tables, whose seeds no setting fixes, so two trainings of one text differ: sums in
their last digits, and the scores of the bytes that are not learnt but must be there (the lowest score, plus 0.0001 for each
that was put before it). So scores are rounded, such bytes get the lowest score, and tokens are sorted. What is left is the same
in every training unless two tokens of which only one fits were equally good; each is learnt twice, and refused where it
differs.

Sources: Sennrich et al. 2016 (BPE); Radford et al. 2019 (on bytes); Kudo 2018 (unigram).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.files import check_file, unreadable
from lmtrain.data.vocabulary import MAX_TYPES, whole_lines
from lmtrain.errors import DataError, SettingsError, UnfitError, UserError
from lmtrain.progress import Advance, watched
from lmtrain.shell import expanded

Ids = NDArray[np.int32]

MAX_DOCUMENT = 12 << 20  # bytes of the library's file as compact JSON; laid out, as checkpoints hold it, it takes up to 30 MB
MAX_FILE = 64 << 20  # bytes
MAX_VOCAB = 1 << 20
MAX_LINE = 1 << 20  # characters of a line that is encoded by itself
MAX_PIECES = 1 << 18  # whose ids are kept: about 50 MB
BATCH = 1 << 14  # texts that the library encodes in one call
AT_A_TIME = 64  # times that a piece is repeated in one text, from which the library learns
AT_ONCE = 1 << 20  # pieces that a text is looked up by at a time

BLANK = r" \t\n\v\f\r"
MARK = (  # ASCII; Latin-1; Arabic, Devanagari; general, CJK and full-width punctuation (but the joiners); symbols, emoji
    r"\x00-\x08\x0e-\x1f\x7f!-/:-@\[-`{-~" + "\u0080-\u00bf×÷،؛؟۔।॥\u2000-\u200b\u200e-\u2bff⸀-⹿"
    "\u3000-〄〈-〠〰・！-／：-＠［-･\U0001f000-\U0001faff"
)  # fmt: skip
LETTER = rf"[^{BLANK}0-9{MARK}]"
PIECE = (
    rf" ?{LETTER}{{1,64}}|\n|'(?:[sdmt]|ll|ve|re)(?!{LETTER})| ?[0-9]{{1,64}}| ?[{MARK}]{{1,64}}"
    r"|[ \t\v\f\r]{1,64}(?![^ \t\n\v\f\r])|[ \t\v\f\r]"
)
PIECES = re.compile(PIECE)
UNDECIDED = 4  # pieces at the end of a block that may still become others, by what comes behind it

PRE_TOKENIZER: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": PIECE}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


def library(needed_by: str, error: type[UserError] = SettingsError) -> Any:
    """Returns the package `tokenizers`; an `error` that says how to install it where it is missing."""
    try:
        import tokenizers
    except ImportError as missing:
        raise error(
            f"{needed_by} needs the package tokenizers, which is not installed.",
            "It comes with lmtrain's extra `subword`.",
            "Type  pip install tokenizers  and try again.",
        ) from missing
    return tokenizers


# ---- learning


def whole_pieces(blocks: Iterable[str]) -> Iterator[list[str]]:
    """Yields the pieces of a text that comes in blocks cut anywhere."""
    rest: list[str] = []
    for block in blocks:
        pieces = PIECES.findall("".join([*rest, block]))
        rest = pieces[-UNDECIDED:]
        del pieces[-UNDECIDED:]
        yield pieces
    yield rest


def learn_bpe(blocks: Iterable[str], *, vocab_size: int, min_count: int) -> dict[str, Any]:
    """Returns the library's document of a BPE with at most `vocab_size` tokens; pairs seen fewer than `min_count` times
    stay apart."""
    tokenizers = library("tokenizer=bpe")
    counts = _count(blocks)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_count, initial_alphabet=sorted(BYTE_OF), show_progress=False
    )
    document = _trained(tokenizers, tokenizers.models.BPE(), trainer, counts)
    _sort_by_frequency(tokenizers, document, counts)
    check_size(document)
    return document


def learn_unigram(blocks: Iterable[str], *, vocab_size: int) -> dict[str, Any]:
    """Returns the library's document of a unigram model with at most `vocab_size` tokens, the same for the same text.

    Raises SettingsError if the library does not learn the same tokens twice.
    """
    tokenizers = library("tokenizer=unigram")
    counts = _count(blocks)
    if not counts:
        raise DataError("The training text is empty.", "Subwords are learnt from some text.", "Give another text.")
    first, second = (_trained_unigram(tokenizers, counts, vocab_size) for _ in range(2))
    if canonical(first) != canonical(second):
        raise SettingsError(
            f"The library tokenizers learns other tokens of this text each time (vocab_size={vocab_size}): some are equally "
            "good.", "A tokenizer must be the same whenever it is learnt.", "Type another vocab_size, or tokenizer=bpe.",
        )  # fmt: skip
    check_size(first)
    return first


def _trained_unigram(tokenizers: Any, counts: Counter[str], vocab_size: int) -> dict[str, Any]:
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(BYTE_OF), show_progress=False, unk_token=None
    )
    document = _trained(tokenizers, tokenizers.models.Unigram(), trainer, counts)
    document["model"]["vocab"] = _settled(dict(map(tuple, document["model"]["vocab"])))
    _sort_by_frequency(tokenizers, document, counts)
    return document


def _trained(tokenizers: Any, model: Any, trainer: Any, counts: Counter[str]) -> dict[str, Any]:
    """Returns the document of a model of these pieces. Blanks, which no byte is written by, separate them while it learns."""
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.decoder = tokenizers.decoders.ByteLevel()
    with watched("Learning subwords", counts.total(), " pieces") as advance:
        made.train_from_iterator(_repeated(counts, advance), trainer)
    document: dict[str, Any] = json.loads(made.to_str())
    document["pre_tokenizer"] = PRE_TOKENIZER
    return document


def _repeated(counts: Mapping[str, int], advance: Advance) -> Iterator[str]:
    """Yields each piece, by its bytes, as often as it occurs, in short texts: the library notes about 100 bytes per byte, of
    hundreds of texts."""
    written_by = {byte: char for char, byte in BYTE_OF.items()}
    for piece, count in counts.items():
        written = "".join(map(written_by.__getitem__, piece.encode()))
        yield from itertools.repeat(" ".join([written] * AT_A_TIME), count // AT_A_TIME)
        if rest := count % AT_A_TIME:
            yield " ".join([written] * rest)
        advance(count)


def _settled(scores: Mapping[str, float]) -> list[list[Any]]:
    """Tokens with their scores as any training has them: rounded, and what was put there besides with the lowest score."""
    lowest = min(scores.values())
    put = {round(lowest + 1e-4 * step, 4) for step in range(len(BYTE_OF) + 1)}
    rounded = {token: round(score, 4) for token, score in scores.items()}
    least = round(lowest, 4)
    settled = {token: least if len(token) == 1 and score in put else score for token, score in rounded.items()}
    return [[token, settled[token]] for token in sorted(settled, key=lambda token: (-settled[token], token))]


def _count(blocks: Iterable[str]) -> Counter[str]:
    """Says how often each piece of a text occurs."""
    counts: Counter[str] = Counter()
    for pieces in whole_pieces(blocks):
        counts.update(pieces)
        if len(counts) > MAX_TYPES:
            raise DataError(
                f"The training text has more than {MAX_TYPES:,} different words.",
                f"Allowed are at most {MAX_TYPES:,}.",
                "Type tokenizer=char or tokenizer=byte, or split the text into smaller units first.",
            )
    return counts


def _sort_by_frequency(tokenizers: Any, document: dict[str, Any], counts: Counter[str]) -> None:
    """Numbers the tokens by how often they occur, equal ones as they were."""
    made = tokenizers.Tokenizer.from_str(json.dumps(document))
    pieces = list(counts)
    totals = np.zeros(made.get_vocab_size(), np.int64)
    for piece, ids in zip(pieces, _iter_encoded(made, pieces), strict=True):
        np.add.at(totals, ids, counts[piece])
    order = np.argsort(-totals, kind="stable").tolist()
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):  # of tokens with their scores, by id
        document["model"]["vocab"] = [vocab[old] for old in order]
        return
    tokens = sorted(vocab, key=vocab.__getitem__)
    document["model"]["vocab"] = {tokens[old]: new for new, old in enumerate(order)}


def read_library_file(path: str | Path) -> dict[str, Any]:
    """Returns the document in a file of the library, as `tokenizer=file` takes it. DataError says what is wrong with it."""
    path = expanded(path)
    remedy = "Give the tokenizer.json of a byte-level BPE (as of GPT-2 or Llama 3), or type tokenizer=bpe to learn one."
    try:
        check_file(path)
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_FILE))
        Subwords(document)
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {str(error)[:200]}.", "A tokenizer is read from one JSON file.", remedy) from None
    except UnfitError as error:
        if error.field == PREFIX_SPACE:
            remedy = "Write false there, or type tokenizer=bpe to learn one."
        raise DataError(
            f"{path} cannot be used: {error.field} {error.problem}.", f"Allowed is {error.range}.", remedy
        ) from None
    return document


def check_size(document: Mapping[str, Any]) -> None:
    """Raises SettingsError for a document that is too large to be saved in a checkpoint."""
    size = len(canonical(document))
    if size > MAX_DOCUMENT:
        raise SettingsError(
            f"The subwords take {size / 1e6:.0f} MB.", f"Allowed are {MAX_DOCUMENT / 1e6:.0f} MB.",
            "Give a smaller tokenizer, for example one learnt with vocab_size=32000.",
        )  # fmt: skip


def canonical(document: Any) -> bytes:
    """Returns a document as bytes that do not depend on how it was laid out; half a surrogate pair stays an escape."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def sha256_of(document: Any) -> str:
    """SHA-256 of a document."""
    return hashlib.sha256(canonical(document)).hexdigest()


# ---- applying


class Subwords:
    """What the library's `document` says: text to ids, and the bytes of every id. Raises UnfitError for what is no such
    document."""

    def __init__(self, document: Any, error: type[UserError] = SettingsError) -> None:
        check_document(document)
        self.document: dict[str, Any] = document
        self._library = _opened(document, library("This tokenizer", error))
        self.symbols = [self._library.id_to_token(number) for number in range(self._library.get_vocab_size())]
        self.bytes = _bytes_of(document, self.symbols)
        self.eos_id = self._only_id("\n")
        self._lookup = _Lookup(self._encode_all) if document["pre_tokenizer"] == PRE_TOKENIZER and is_plain(document) else None
        self._check_round_trip()

    def encode(self, text: str) -> Ids:
        """Returns the ids of `text`, in which nothing is half a surrogate pair."""
        if self._lookup is None:
            return self._encode_lines(text)
        return self._lookup.ids_of(PIECES.findall(text))

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[Ids]:
        """Returns the ids of one text that comes in blocks cut anywhere."""
        if self._lookup is None:
            return map(self._encode_lines, whole_lines(blocks, _check_line))
        return map(self._lookup.ids_of, whole_pieces(blocks))

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return list(_iter_encoded(self._library, texts))

    def _encode_lines(self, text: str) -> Ids:
        """Line by line, with the line's end as a token of its own, which the library may join with what stands behind it."""
        lines = text.split("\n")
        ids: list[int] = []
        for number, encoded in enumerate(self._encode_all(lines)):
            ids += [self.eos_id, *encoded] if number else encoded
        return np.array(ids, np.int32)

    def _only_id(self, text: str) -> int:
        ids = self._encode_all([text])[0]
        if len(ids) != 1 and b'"add_prefix_space":true' in canonical(self.document["pre_tokenizer"]):
            raise UnfitError(PREFIX_SPACE, "is true, which puts a space before every line", "false")
        if len(ids) != 1:
            raise UnfitError("model.vocab", f"writes {text!r} with {len(ids)} tokens", "one token for the end of a line")
        return int(ids[0])

    def _check_round_trip(self) -> None:
        for probe in PROBES:
            again = b"".join(self.bytes[number] for number in self.encode(probe)).decode("utf-8", "replace")
            if again != probe:
                raise UnfitError("it", f"changes text: {probe!r} comes back as {again!r:.80}", "a tokenizer that loses nothing")


PREFIX_SPACE = "add_prefix_space of pre_tokenizer"
PROBES = (
    "a", "Ab", " a", "  a  ", "a\tb", "A b, c.D!  1234 'tis don't\r\n\n\n  x \n", "Ελληνικά, हिन्दी में। 日本語。한국어 ไทย",
    "e\u0301 ﬁ Ⅷ İß", "👩‍👩‍👧 🇬🇷\x00\x1b\u200b\u2028\ufeff\ufffd", "<unk><eos> <s>x</s>",
    "".join(map(chr, range(0x100))),
)  # fmt: skip
"""Texts that tokenizers which normalise, lower, strip or know no bytes change."""


def _iter_encoded(library: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yields the ids of each text, as the library encodes it; a few at a time, because it notes more about each than its
    ids."""
    for start in range(0, len(texts), BATCH):
        for encoding in library.encode_batch_fast(list(texts[start : start + BATCH]), add_special_tokens=False):
            yield encoding.ids


def is_plain(document: Mapping[str, Any]) -> bool:
    """Tells whether pieces are all that the library cuts, so that they can be encoded one by one."""
    model = document["model"]
    return document.get("normalizer") is None and not document.get("added_tokens") and model.get("type") in ("BPE", "Unigram")


class _Lookup:
    """The ids of pieces, each different one encoded once."""

    def __init__(self, encode_all: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self._encode_all = encode_all
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._ids = np.empty(0, np.int32)  # of all pieces, one after the other
        self._ends = np.zeros(1, np.int64)  # where each piece's end; entry 0 stands before the first

    def ids_of(self, pieces: list[str]) -> Ids:
        """Returns the ids of a text that has been cut into `pieces`."""
        parts = [self._ids_of(pieces[start : start + AT_ONCE]) for start in range(0, len(pieces), AT_ONCE)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int32), *parts])

    def _ids_of(self, pieces: list[str]) -> Ids:
        if len(self._numbers) > MAX_PIECES:
            self._forget()
        numbers = np.fromiter(map(self._numbers.__getitem__, pieces), np.int64, len(pieces))
        self._learn()
        starts = self._ends[numbers]
        lengths = self._ends[numbers + 1] - starts
        before = np.cumsum(lengths) - lengths
        return self._ids[np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))]

    def _learn(self) -> None:
        """Encodes the pieces that have a number and no ids yet."""
        num_known = len(self._ends) - 1
        if len(self._numbers) == num_known:
            return
        encoded = self._encode_all(list(self._numbers)[num_known:])
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter((number for ids in encoded for number in ids), np.int32, int(lengths.sum()))
        self._ids = np.concatenate([self._ids, ids])
        self._ends = np.concatenate([self._ends, self._ends[-1] + np.cumsum(lengths)])


class _Numbers(dict[str, int]):
    """Numbers pieces in the order in which they are first asked for."""

    def __missing__(self, piece: str) -> int:
        self[piece] = number = len(self)
        return number


def _check_line(size: int) -> None:
    if size > MAX_LINE:
        raise DataError(
            f"The text holds a line of more than {MAX_LINE:,} characters.",
            "With tokenizer=file, lines are encoded one by one.",
            "Type tokenizer=bpe, or break such lines.",
        )


# ---- the library's documents


def _alphabet() -> dict[str, int]:
    """Returns the character by which byte-level files write each byte: itself where it is seen, else one from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _alphabet()


def check_document(document: Any) -> None:
    """Raises UnfitError for a document of which no more can be asked."""
    match document:
        case {"model": {"vocab": dict() | list() as vocab}, "decoder": {"type": "ByteLevel"}, "pre_tokenizer": _}:
            pass
        case {"model": {"vocab": dict() | list()}}:
            decoder = document.get("decoder")
            shown = decoder.get("type") if isinstance(decoder, dict) else decoder
            raise UnfitError("decoder", f"is {shown!r:.40}", "'ByteLevel', which loses no byte")
        case _:
            raise UnfitError("model.vocab", "is missing", "a file of the library tokenizers")
    if not 256 <= len(vocab) <= MAX_VOCAB:
        raise UnfitError("model.vocab", f"has {len(vocab):,} tokens", f"256 to {MAX_VOCAB:,}")
    if document["model"].get("dropout"):
        raise UnfitError("model.dropout", f"is {document['model']['dropout']!r:.40}", "null: the same text, the same ids")
    if len(canonical(document)) > MAX_DOCUMENT:
        raise UnfitError("it", "is too large", f"at most {MAX_DOCUMENT:,} bytes of JSON")


def _opened(document: Mapping[str, Any], tokenizers: Any) -> Any:
    """Returns the library's tokenizer; UnfitError with its own words, also where it panics, which is no Exception."""
    try:
        made = tokenizers.Tokenizer.from_str(json.dumps(document))
        made.no_padding()
        made.no_truncation()
        made.encode("a\n", add_special_tokens=False)
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UnfitError("model", f"cannot be used ({str(error)[:200]})", "what the library tokenizers wrote") from None
        raise
    return made


def _bytes_of(document: Mapping[str, Any], symbols: Sequence[str | None]) -> list[bytes]:
    """Returns what each token writes."""
    added = {token.get("content") for token in document.get("added_tokens") or ()}
    written = []
    for number, symbol in enumerate(symbols):
        if not symbol:
            raise UnfitError("model.vocab", f"has no token {number}", "every number from 0 on once")
        if symbol in added:
            written.append(symbol.encode())
        elif all(char in BYTE_OF for char in symbol):
            written.append(bytes(map(BYTE_OF.__getitem__, symbol)))
        else:
            raise UnfitError(
                "model.vocab", f"has {symbol!r:.40}", "tokens in the characters by which byte-level files write bytes"
            )
    if missing := set(BYTE_OF) - set(symbols):
        raise UnfitError("model.vocab", f"lacks {min(missing)!r}", "a token for every byte, so that nothing is unknown")
    return written
