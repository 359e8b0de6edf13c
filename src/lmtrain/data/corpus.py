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

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.encoded import EncodedText
from lmtrain.data.files import check_file, listing
from lmtrain.data.growth import grown_tokenizer
from lmtrain.data.kinds import KINDS, Kind
from lmtrain.data.numbers import Numbered, count_tokens, numbered, write_numbered
from lmtrain.data.overlap import Hashes
from lmtrain.data.parts import Parts, Reading, check_size, tokenise_all, write_passages
from lmtrain.data.passages import Passage, Tally, cut, read_passages, whole
from lmtrain.data.shuffled import shuffled
from lmtrain.data.sources import NAMES, Sources, find_sources, left_out
from lmtrain.data.text import TextFacts, scan, warned
from lmtrain.data.token_cache import SIZES, CachedSplit, CacheWriter, hash_json, ids_dtype, read_cache, write_cache
from lmtrain.data.tokenizer import FORMAT as TOKENIZER_FORMAT
from lmtrain.data.tokenizer import Tokenizer, learn_from_counts, learn_tokenizer
from lmtrain.data.workers import Call, run_all
from lmtrain.errors import DataError
from lmtrain.progress import watched
from lmtrain.shell import expanded

log = logging.getLogger("lmtrain")

FORMAT = 3  # of the cache; a change makes what was cached stale
BLOCK = 1 << 20  # ids that are counted at a time


@dataclass(frozen=True, kw_only=True)
class Split(EncodedText):
    """A text that was read, and what was counted on the way."""

    num_lines: int
    num_unk: int
    num_filled: int  # lines that are not blank
    num_marked: int  # those of them that are marked <s> ... </s>
    lines: Hashes  # of (a sample of) its lines: see `overlap`

    def counts(self, vocab_size: int) -> NDArray[np.int64]:
        """Counts how often each id occurs, [V]."""
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
    shards: tuple[TextFacts, ...] = ()  # of a text that is in several files and is cut in its order
    is_learnt: bool = True  # whether the vocabulary is that of the training split, and not one that was given
    notes: tuple[str, ...] = ()  # what is odd about its files, to be said when it is first trained on


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
    of_all_splits: bool = False,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    split: Literal["contiguous", "shuffled_lines", "shuffled_documents"] = "contiguous",
    split_seed: int = 1,
    field: str = "text",
    workers: int = 0,
    cache_dir: str | Path,
) -> Corpus:
    """Returns the corpus at `path` (see `sources`), from the cache or else into it.

    `split` says how a text without splits of its own is cut: in its order, or shuffled from `split_seed` (see `shuffled`).
    `field` is that of the text in the records of a .jsonl; so many `workers` (processes; 0: one per core) read shards.

    `tokenizer` and what follows it are the arguments of `learn_tokenizer`. A tokenizer that is `given` is taken instead; what
    the text has besides its tokens is treated as `add` says (`growth.grown_tokenizer`). The characters or words `of_all_splits`
    make a vocabulary for looking at a text, and not for training. The fractions only matter for a single file, and a test
    fraction of 0 gives no test split. Raises DataError for texts that cannot be used, ResourceError for a cache that cannot
    be written.
    """
    assert 0 < valid_fraction < 1 - test_fraction <= 1
    kind = KINDS[tokenizer]
    workers = workers or len(os.sched_getaffinity(0))
    notes: list[str] = []
    sources = find_sources(path)
    if names := left_out(path, sources):
        notes.append(f"Left out for their names: {listing(names)}. They end in .txt, .tokens or .jsonl, packed or not.")
    texts = _scan_all(sources, field, kind, workers, notes)
    if split != "contiguous" and len(texts) == 1:
        dealt = shuffled(texts[0], split, split_seed, (str(valid_fraction), str(test_fraction)), Path(cache_dir))
        texts = _scan_all(dealt, field, kind, workers, [])
    fractions = [str(valid_fraction), str(test_fraction)] if len(texts) == 1 else []
    learning: list[Any] = [tokenizer, min_count, vocab_size, hash_json([subword, vocabulary, separators, spelled, normalize])]
    learning += ["reverse"] * reverse + ["all splits"] * of_all_splits
    if given is not None:
        learning = [given.fingerprint(), hash_json(given.rare), add, *[min_count, vocab_size] * (add is not False)]
    hashes = [facts[0].sha256 if len(facts) == 1 else [fact.sha256 for fact in facts] for facts in texts]
    recipe = [FORMAT, TOKENIZER_FORMAT, learning, fractions, hashes if len(texts) > 1 or len(texts[0]) == 1 else hashes[0]]
    if len(texts) == 1 and len(texts[0]) > 1:
        recipe.append("shards")
    base = Path(cache_dir) / hash_json(recipe)[:32]
    corpus = _open_cache(base, recipe)
    if corpus is None:
        splits = cut(texts[0], kind, fractions) if fractions else [whole(facts) for facts in texts]
        ways: dict[str, Any] = {
            "min_count": min_count, "vocab_size": vocab_size, "vocabulary": vocabulary, "separators": separators,
            "spelled": spelled,
        }  # fmt: skip
        _write(base, recipe, splits, Recipe(kind, subword, normalize, reverse, ways, given, add, of_all_splits), workers)
        corpus = _open_cache(base, recipe, is_new=True)
        assert corpus is not None
    shards = tuple(texts[0]) if fractions and len(texts[0]) > 1 else ()
    is_learnt = kind.is_learnt and vocabulary is None and given is None
    return replace(corpus, shards=shards, is_learnt=is_learnt, notes=tuple(notes))


@dataclass(frozen=True)
class Recipe:
    """What tokenizer is to be learnt."""

    kind: Kind
    subword: Mapping[str, Any] | None
    normalize: str
    reverse: bool
    ways: Mapping[str, Any]  # further arguments of `learn_tokenizer`
    given: Tokenizer | None  # which is taken instead, with what it lacks as `add` says
    add: bool | None
    of_all_splits: bool  # whether tokens of all splits are counted

    @property
    def is_counted(self) -> bool:
        """Tells whether counts of the tokens of the training text are enough to learn it."""
        return self.given is None and self.kind.name in ("char", "word")

    @property
    def is_fixed(self) -> bool:
        """Tells whether the training text adds nothing to it."""
        return self.given is None and self.ways["vocabulary"] is not None and not self.ways["spelled"]

    def learn(self, blocks: Iterable[str]) -> Tokenizer:
        if self.given is not None:
            sizes = {name: self.ways[name] for name in ("min_count", "vocab_size")}
            return grown_tokenizer(self.given, blocks, add=self.add, **sizes)
        return learn_tokenizer(
            self.kind.name, blocks, subword=self.subword, normalize=self.normalize, reverse=self.reverse, **self.ways
        )

    def learn_from(self, splits: Sequence[Iterable[Numbered]]) -> Tokenizer:
        """Returns the tokenizer of the characters or words of the first of these splits, or of all of them."""
        if self.is_fixed:
            return self.learn(())
        passages = chain.from_iterable(splits if self.of_all_splits else splits[:1])
        learnt = learn_from_counts(self.kind.name, count_tokens(passages), **self.ways)
        learnt.normalize, learnt.reverse = self.normalize, self.reverse
        return learnt

    def reading(self, learnt: Tokenizer | None) -> Reading:
        return Reading(self.kind, self.normalize, self.reverse, self.ways["separators"], learnt)


def _write(base: Path, recipe: Any, splits: list[list[Passage]], how: Recipe, workers: int) -> None:
    """Tokenises the splits into the cache: in one reading where each is a passage of one file, else shard by shard."""
    files = [str(passage.facts.path) for split in splits for passage in split]
    log.info("Writing %s.ids (%s): %s", base, how.kind.name, listing(list(dict.fromkeys(files)), 20))
    if max(map(len, splits)) > 1:
        _write_shards(base, recipe, splits, how, workers)
        return
    passages = [split[0] for split in splits]
    if how.is_counted and not how.is_fixed:
        with numbered(passages, how.reading(None).numbering(), base.parent) as found:
            _write_numbered(base, recipe, passages, found, how.learn_from([[each] for each in found]))
        return
    tokenizer = how.learn(_training_text(passages[:1], how.kind))
    write_cache(base, recipe, tokenizer, lambda cache: write_passages(cache, NAMES, passages, tokenizer))


def _write_shards(base: Path, recipe: Any, splits: list[list[Passage]], how: Recipe, workers: int) -> None:
    learnt = None if how.is_counted else how.learn(_training_text(splits[0], how.kind))
    passages = [passage for split in splits for passage in split]
    parts = iter(tokenise_all(passages, how.reading(learnt), base.parent, workers))
    found = [Parts([next(parts) for _ in split]) for split in splits]
    firsts = [split[0] for split in splits]
    _write_numbered(base, recipe, firsts, found, learnt or how.learn_from(found))


def _write_numbered(
    base: Path, recipe: Any, firsts: list[Passage], found: Sequence[Numbered | Parts], tokenizer: Tokenizer
) -> None:
    """Writes splits of which each is a passage by numbers, or many; `firsts` are the first passages of each."""

    def fill(cache: CacheWriter) -> None:
        for name, first, numbers in zip(NAMES, firsts, found, strict=False):
            written = write_numbered(cache, numbers, tokenizer)
            check_size(name, first, written.sizes["num_tokens"])
            cache.end_split(name, written)

    write_cache(base, recipe, tokenizer, fill)


def _training_text(passages: list[Passage], kind: Kind) -> Iterator[str]:
    for _, blocks in read_passages(passages, kind, "Learning the vocabulary of"):
        yield from (block.text for block in blocks)


def _scan_all(sources: Sources, field: str, kind: Kind, workers: int, notes: list[str]) -> list[list[TextFacts]]:
    """Reads every file once for its hash and size. Shards that hold no text are left out, and named among the `notes`."""
    files = [file for split in sources for file in split]
    if len(files) > 3:
        log.info("Reading %s files in this order: %s.", f"{len(files):,}", listing([file.name for file in files]))
    found = iter(run_all([Call(scan, (file, field), check_file(file)) for file in files], "Hashing and counting", workers))
    texts = [[next(found) for _ in split] for split in sources]
    notes += [note for facts in texts for fact in facts for note in fact.notes]
    for place, facts in enumerate(texts):
        if len(facts) > 1 and (kept := [fact for fact in facts if fact.num_chars]):
            if len(kept) < len(facts):
                empty = [str(fact.path) for fact in facts if not fact.num_chars]
                notes.append(f"Left out, because they are empty: {listing(empty)}.")
            texts[place] = kept
    for facts in texts:
        if all(fact.is_blank for fact in facts):
            _check_facts(facts[:1], kind)
    notes += _check_facts([fact for facts in texts for fact in facts if len(texts) > 1 or not fact.is_blank], kind, len(texts))
    return texts


def encode_file(path: str | Path, tokenizer: Tokenizer, field: str = "text") -> Split:
    """Returns a whole text file by a tokenizer that exists already, in memory; nothing is cached.

    `field` names the text in the records of a .jsonl.

    Any text will do that has a token, blank lines too. Raises DataError for an empty one.
    """
    facts = warned(scan(expanded(path), field))
    if not facts.num_chars:
        raise DataError(f"{facts.path} is empty.", "At least one token is needed.", "Give a file with some text.")
    for note in _note_eos(facts, tokenizer.kind):
        log.warning("%s", note)
    dtype, tally = ids_dtype(tokenizer), Tally()
    ((_, blocks),) = read_passages(whole([facts]), tokenizer.kind)
    ids = np.concatenate([block.astype(dtype) for block in tally.encode(blocks, tokenizer)])
    return _split(tally.cached(ids))


def _split(cached: CachedSplit) -> Split:
    sizes = {name: size for name, size in cached.sizes.items() if name in SIZES and name != "num_tokens"}
    return Split(cached.ids, **sizes, lines=cached.lines)


def describe(corpus: Corpus) -> str:
    """Returns the facts to look at before a run: tokens, lines, characters, types and unknown tokens of every split."""
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


def _note_eos(facts: TextFacts, kind: Kind) -> list[str]:
    if not (kind.reads_eos and facts.has_eos):
        return []
    return [
        f"{facts.path} holds the literal <eos>: it is read as an end of line, as the line end itself is. A word of this name "
        "is written \\<eos>."
    ]


def _check_facts(facts: list[TextFacts], kind: Kind, num_splits: int = 1) -> list[str]:
    """Refuses blank files; notes files that are the same, and literal `<eos>`."""
    notes = []
    for fact in facts:
        if fact.is_blank and len(facts) == num_splits:
            raise DataError(
                f"{fact.path} {'holds nothing but whitespace' if fact.num_chars else 'is empty'}.",
                "A text needs at least 2 tokens.",
                "Give another file.",
            )
        notes += _note_eos(fact, kind)
    first: dict[str, TextFacts] = {}
    for fact in facts:
        if (other := first.setdefault(fact.sha256, fact)) is not fact:
            notes.append(f"{other.path} and {fact.path} are the same text: results on one say nothing about the other.")
    return notes


# ---- the cache


def _open_cache(base: Path, recipe: Any, *, is_new: bool = False) -> Corpus | None:
    """Returns the corpus in the cache; None, with a line in the log unless it is simply absent, where it cannot be used."""
    try:
        tokenizer, cached = read_cache(base, recipe, is_new=is_new)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        log.warning("The cached ids %s are damaged and are built again: %s", base, error)
        return None
    splits = {name: _split(split) for name, split in cached.items()}
    fingerprint = hash_json([split.sha256 for split in cached.values()])
    return Corpus(tokenizer, splits["train"], splits["valid"], splits.get("test"), fingerprint)
