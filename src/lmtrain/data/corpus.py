"""A corpus: three splits of a text as token ids in a memory-mapped cache.

    text files  ->  splits  ->  tokenizer, learnt from the training split alone  ->  <cache_dir>/<key>.ids, <key>.json

The key is a hash of the texts, the tokenizer's options and the way of splitting. Every pass over a text (for the key, the cuts,
the vocabulary, the ids) reads all of it and hashes what it reads, and a pass that met another text than the first one ends in a
DataError. So a changed text never meets old ids, whenever it was changed. A cache that is damaged is built again. Everything is
read in blocks: memory holds the vocabulary and a few megabytes.

A directory holds train, valid and test, each as .txt or .tokens. A single file of n characters (byte: bytes) is cut into
three contiguous parts, the training part first, at int(n (1 - valid - test)) and int(n (1 - test)), the fractions taken
as the decimals that were typed. `char` cuts exactly there; `byte` moves back to the start of a character; the others move to
the nearest line end, or the nearest whitespace where no line ends within WINDOW characters.

For `word`, a split whose last line does not end gets its "\\n", so that every line has its `<eos>`; the sizes include it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.growth import grown_tokenizer
from lmtrain.data.kinds import KINDS, Kind
from lmtrain.data.overlap import Hashes, LineHashes
from lmtrain.data.text import TextFacts, iter_checked, iter_passage, listing, scan, unreadable
from lmtrain.data.token_cache import SIZES, CachedSplit, CacheWriter, hash_json, ids_dtype, read_cache, write_cache
from lmtrain.data.tokenizer import FORMAT as TOKENIZER_FORMAT
from lmtrain.data.tokenizer import Ids, Tokenizer, learn_tokenizer
from lmtrain.data.vocabulary import WHITESPACE
from lmtrain.errors import DataError
from lmtrain.progress import watched
from lmtrain.shell import expanded

log = logging.getLogger("lmtrain")

FORMAT = 3  # of the cache; a change makes what was cached stale
NAMES = ("train", "valid", "test")
SUFFIXES = (".txt", ".tokens")
WINDOW = 1 << 16  # characters before and after a cut among which a line end is looked for
BLOCK = 1 << 20  # ids that are counted at a time


@dataclass(frozen=True)
class Split:
    """One text as ids, and its size in every unit in which a model's bill is written."""

    ids: NDArray[Any]  # [N], uint16 or int32; a read-only memory map
    num_chars: int
    num_bytes: int  # of UTF-8
    num_lines: int
    num_unk: int
    num_filled: int  # lines that are not blank
    num_marked: int  # those of them that are marked <s> ... </s>
    lines: Hashes  # of (a sample of) its lines: see `overlap`
    spelling_micronats: int = 0  # what the spelling of its unknown words costs, where they are spelt

    def counts(self, vocab_size: int) -> NDArray[np.int64]:
        """How often each id occurs, [V]."""
        totals = np.zeros(vocab_size, np.int64)
        with watched("Counting tokens", len(self.ids), "tok") as advance:
            for start in range(0, len(self.ids), BLOCK):
                block = self.ids[start : start + BLOCK]
                totals += np.bincount(block, minlength=vocab_size)
                advance(len(block))
        return totals


@dataclass(frozen=True)
class Corpus:
    """What a model is trained on, selected by, and judged by."""

    tokenizer: Tokenizer
    train: Split
    valid: Split
    test: Split | None
    fingerprint: str  # SHA-256 over the texts of the splits
    is_learnt: bool = True  # whether the vocabulary is that of the training split, and not one that was given


def load_corpus(
    path: str | Path,
    *,
    tokenizer: str,
    min_count: int = 1,
    vocab_size: int = 0,
    subword: Mapping[str, Any] | None = None,
    vocabulary: Sequence[str] | None = None,
    separators: str = "",
    spelled: bool = False,
    normalize: str = "none",
    reverse: bool = False,
    given: Tokenizer | None = None,
    add: bool | None = False,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    cache_dir: str | Path,
) -> Corpus:
    """The corpus at `path`, from the cache or else into it.

    `tokenizer` and what follows it are the arguments of `learn_tokenizer`. A tokenizer that is `given` is taken instead; what
    the text has besides its tokens is treated as `add` says (`growth.grown_tokenizer`). The fractions only
    matter for a single file, and a test fraction of 0 gives no test split. Raises DataError for texts that cannot be used,
    ResourceError for a cache that cannot be written.
    """
    assert 0 < valid_fraction < 1 - test_fraction <= 1
    files = find_files(path)
    facts = [scan(file) for file in files]
    kind = KINDS[tokenizer]
    _check_facts(facts, kind)
    fractions = [str(valid_fraction), str(test_fraction)] if len(files) == 1 else []
    learning: list[Any] = [tokenizer, min_count, vocab_size, hash_json([subword, vocabulary, separators, spelled, normalize])]
    learning += ["reverse"] * reverse
    if given is not None:
        learning = [given.fingerprint(), hash_json(given.rare), add, *[min_count, vocab_size] * (add is not False)]
    recipe = [FORMAT, TOKENIZER_FORMAT, learning, fractions, [fact.sha256 for fact in facts]]
    base = Path(cache_dir) / hash_json(recipe)[:32]
    corpus = _open_cache(base, recipe)
    if corpus is None:
        passages = _cut(facts[0], kind, fractions) if fractions else [Passage(f, 0, f.num_chars) for f in facts]
        blocks = passages[0].blocks(kind, "Learning the vocabulary of")
        if given is not None:
            learnt = grown_tokenizer(given, blocks, add=add, min_count=min_count, vocab_size=vocab_size)
        else:
            learnt = learn_tokenizer(
                tokenizer, blocks, min_count=min_count, vocab_size=vocab_size, subword=subword, vocabulary=vocabulary,
                separators=separators, spelled=spelled, normalize=normalize, reverse=reverse,
            )  # fmt: skip
        log.info("Writing %s.ids (%s): %s", base, tokenizer, ", ".join(str(file) for file in files))
        write_cache(base, recipe, learnt, lambda cache: _write_splits(cache, passages, learnt))
        corpus = _open_cache(base, recipe)
        assert corpus is not None
    return replace(corpus, is_learnt=kind.is_learnt and vocabulary is None and given is None)


def encode_file(path: str | Path, tokenizer: Tokenizer) -> Split:
    """A whole text file by a tokenizer that exists already, in memory; nothing is cached.

    Any text will do that has a token, blank lines too. Raises DataError for an empty one.
    """
    facts = scan(expanded(path))
    if not facts.num_chars:
        raise DataError(f"{facts.path} is empty.", "At least one token is needed.", "Give a file with some text.")
    _warn_of_eos(facts, tokenizer.kind)
    passage, dtype, tally = Passage(facts, 0, facts.num_chars), ids_dtype(tokenizer), _Tally()
    ids = np.concatenate([block.astype(dtype) for block in tally.encode(passage, tokenizer)])
    return _split(tally.cached(ids))


def _split(cached: CachedSplit) -> Split:
    sizes = {name: size for name, size in cached.sizes.items() if name in SIZES and name != "num_tokens"}
    return Split(cached.ids, **sizes, lines=cached.lines)


def describe(corpus: Corpus) -> str:
    """The facts to look at before a run: tokens, lines, characters, types and unknown tokens of every split."""
    tokenizer = corpus.tokenizer
    lines = [f"{'split':<6}{'tokens':>14}{'lines':>12}{'characters':>14}{'types':>11}{'<unk>':>9}"]
    for name in NAMES:
        split = getattr(corpus, name)
        if split is not None:
            num_types = np.count_nonzero(split.counts(tokenizer.vocab_size))
            unknown = f"{split.num_unk / len(split.ids):.2%}" if tokenizer.unk_id is not None else "-"
            sizes = f"{len(split.ids):>14,}{split.num_lines:>12,}{split.num_chars:>14,}{num_types:>11,}"
            lines.append(f"{name:<6}{sizes}{unknown:>9}")
    origin = ", learnt from train alone" if corpus.is_learnt else ""
    backward = "; lines are read from their last token to their first" if tokenizer.reverse else ""
    lines.append(f"vocabulary: {tokenizer.vocab_size:,} ({tokenizer.name}){origin}{backward}")
    return "\n".join(lines)


# ---- which text is which split


@dataclass(frozen=True)
class Passage:
    """The characters `start` to `end` of a file: the text of one split."""

    facts: TextFacts
    start: int
    end: int

    def blocks(self, kind: Kind, what: str = "Tokenising") -> Iterator[str]:
        """The text, with which `what` is done, with "\\n" at its end where a last line must end."""
        block = ""
        for block in iter_passage(self.facts, self.start, self.end, what):
            yield block
        if kind.ends_last_line and block and not block.endswith("\n"):
            yield "\n"


def find_files(path: str | Path) -> list[Path]:
    """[the file] or [train, valid, test] of a directory; DataError where neither is there."""
    if not str(path):
        raise DataError("No text was given.", "data=text needs a file or a directory.", "Type data.path=PATH.")
    path = expanded(path)
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except (NotADirectoryError, FileNotFoundError):
        return [path]  # reading it says what is wrong with it, if anything is
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    found = [[path / (name + suffix) for suffix in SUFFIXES if name + suffix in names] for name in NAMES]
    if all(len(files) == 1 for files in found):
        return [files[0] for files in found]
    raise _wrong_directory(path, names, found)


def _wrong_directory(path: Path, names: list[str], found: list[list[Path]]) -> DataError:
    lacking = [name for name, files in zip(NAMES, found, strict=True) if not files]
    twice = [file.name for files in found if len(files) > 1 for file in files]
    problems = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has both {' and '.join(twice)}"] * bool(twice)
    return DataError(
        f"The directory {path} {' and '.join(problems)}; it holds {listing(names)}.",
        "Allowed is a directory with one file each for train, valid and test, ending in .txt or .tokens.",
        "Rename the files (for example to train.txt, valid.txt, test.txt), or give a single file: data.path=FILE.",
    )


def _warn_of_eos(facts: TextFacts, kind: Kind) -> None:
    if kind.reads_eos and facts.has_eos:
        log.warning(
            "%s holds the literal <eos>: it is read as an end of line, as the line end itself is. A word of this name is "
            "written \\<eos>.", facts.path,
        )  # fmt: skip


def _check_facts(facts: list[TextFacts], kind: Kind) -> None:
    """Refuses blank files; warns of splits that are the same and of literal `<eos>`."""
    for fact in facts:
        if fact.is_blank:
            raise DataError(
                f"{fact.path} {'holds nothing but whitespace' if fact.num_chars else 'is empty'}.",
                "A text needs at least 2 tokens.",
                "Give another file.",
            )
        _warn_of_eos(fact, kind)
    for index, fact in enumerate(facts):
        for other in facts[:index]:
            if fact.sha256 == other.sha256:
                log.warning("%s and %s are the same text: results on one say nothing about the other.", other.path, fact.path)


def _cut(fact: TextFacts, kind: Kind, fractions: list[str]) -> list[Passage]:
    """The passages of a single file."""
    valid, test = map(Fraction, fractions)
    places = []
    for share in (1 - valid - test, 1 - test):
        if kind.cut_at == "byte":
            places.append(_char_at_byte(fact, int(fact.num_bytes * share)))
        elif kind.cut_at == "line" and share < 1:
            places.append(_line_end_near(fact, int(fact.num_chars * share)))
        else:
            places.append(int(fact.num_chars * share))
    passages = [Passage(fact, 0, places[0]), Passage(fact, places[0], places[1])]
    return [*passages, Passage(fact, places[1], fact.num_chars)] if test else passages


def _char_at_byte(fact: TextFacts, place: int) -> int:
    """How many whole characters the first `place` bytes of the text hold."""
    num_chars = num_bytes = 0
    for block in iter_checked(fact):
        data = block.encode()
        if num_bytes < place:
            num_chars += len(data[: place - num_bytes].decode("utf-8", "ignore"))
        num_bytes += len(data)
    return num_chars


def _line_end_near(fact: TextFacts, place: int) -> int:
    """The place behind the nearest "\\n", else behind the nearest whitespace, else `place`."""
    start = max(place - WINDOW, 0)
    window = "".join(iter_passage(fact, start, place + WINDOW))
    for marks in ("\n", WHITESPACE):
        before = [window.rfind(mark, 0, place - start) for mark in marks]
        after = [window.find(mark, place - start) for mark in marks]
        ends = [start + found + 1 for found in before + after if found >= 0]
        if ends:
            return min(ends, key=lambda end: abs(end - place))
    return place


# ---- the cache


class _Tally:
    """Encodes a passage and keeps its sizes, its hash and those of its lines on the way."""

    def __init__(self) -> None:
        self.num_tokens = self.num_chars = self.num_bytes = self.num_lines = self.num_unk = self.spelling_micronats = 0
        self._digest, self._lines = hashlib.sha256(), LineHashes()

    def encode(self, passage: Passage, tokenizer: Tokenizer) -> Iterator[Ids]:
        for ids, micronats in tokenizer.encode_spelt(self._measured(tokenizer.read(passage.blocks(tokenizer.kind)))):
            self.spelling_micronats += micronats
            self.num_tokens += len(ids)
            self.num_unk += 0 if tokenizer.unk_id is None else int(np.count_nonzero(ids == tokenizer.unk_id))
            yield ids

    def _measured(self, blocks: Iterator[str]) -> Iterator[str]:
        block = "\n"
        for block in blocks:
            data = block.encode()
            self._digest.update(data)
            self._lines.add(block)
            self.num_chars += len(block)
            self.num_bytes += len(data)
            self.num_lines += block.count("\n")
            yield block
        self.num_lines += not block.endswith("\n")

    def cached(self, ids: NDArray[Any]) -> CachedSplit:
        """The whole passage, whose ids are `ids`."""
        lines = self._lines.finish()
        sizes = {name: getattr(self if hasattr(self, name) else self._lines, name) for name in SIZES}
        return CachedSplit(ids, lines, sizes, self._digest.hexdigest())


def _write_splits(cache: CacheWriter, passages: list[Passage], tokenizer: Tokenizer) -> None:
    for name, passage in zip(NAMES, passages, strict=False):
        tally = _Tally()
        for ids in tally.encode(passage, tokenizer):
            cache.write_ids(ids)
        _check_size(name, passage, tally.num_tokens)
        cache.end_split(name, tally.cached(np.empty(0)))


def _check_size(split: str, passage: Passage, num_tokens: int) -> None:
    if num_tokens < 2:
        whole = passage.facts.path.stem == split
        raise DataError(
            f"The {split} split of {passage.facts.path} has {num_tokens} token{'s' * (num_tokens != 1)}.",
            "Every split needs at least 2.",
            "Give more text." if whole else "Give more text, or other shares: data.valid_fraction and data.test_fraction.",
        )


def _open_cache(base: Path, recipe: Any) -> Corpus | None:
    """The corpus in the cache; None, with a line in the log unless it is simply absent, where it cannot be used."""
    try:
        tokenizer, cached = read_cache(base, recipe)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        log.warning("The cached ids %s are damaged and are built again: %s", base, error)
        return None
    splits = {name: _split(split) for name, split in cached.items()}
    fingerprint = hash_json([split.sha256 for split in cached.values()])
    return Corpus(tokenizer, splits["train"], splits["valid"], splits.get("test"), fingerprint)
