"""Warnings about texts on which the numbers mean little. They come before training, and each says what to type instead.

The limits are far from what natural language and programs show in their usual splits, so such texts get no warning.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.corpus import Corpus, Split
from lmtrain.data.overlap import find_overlap
from lmtrain.data.shards import iter_shard_advice
from lmtrain.data.vocabulary import EOS, UNK

MAX_UNKNOWN = 0.5  # of the words of a split: from here on, nearly everything is unknown
FEW_UNKNOWN = 0.002  # of the tokens of a held-out split: fewer move a perplexity by about 1 %
UNTRAINED = 1 / 50  # of that fraction in training: it is as good as none
LONG_MEAN = 20  # characters per word; languages that write spaces have 4 to 9
LONG_WORD = 100  # characters
LONG_SHARE = 0.2  # of the characters of a text, in words of more than LONG_WORD
SELDOM = 0.8  # of the words of a text differ from each other ...
SELDOM_WORDS = 500  # ... where there are at least so many
BLANKS = 0.05  # of the characters of a text; double spaces behind sentences are less
MARKED = 0.5  # of the lines that are not blank
SHARED = 0.1  # of the lines of a held-out split
ONE_LINE_TOKENS = 1000  # of a training text in a single line: shorter ones are examples
SORTED = 0.98  # of the neighbouring lines are in alphabetical order; of natural text, half are ...
SORTED_LINES = 100  # ... where there are at least so many, of the first SORTED_TOKENS tokens
SORTED_TOKENS = 50_000
SEPARATORS = "Only spaces, tabs and line ends separate words."
NAMES = {"valid": "validation", "test": "test"}


def iter_advice(corpus: Corpus) -> Iterator[str]:
    """Yields what makes the numbers of this corpus mean little, and what to type instead: a line for each."""
    endless = list(_endless_words(corpus)) if corpus.tokenizer.kind.has_words else []
    yield from endless or _unknown(corpus)
    yield from _blanks(corpus) if corpus.tokenizer.kind.has_words else ()
    yield from _marked_lines(corpus)
    yield from _shared_lines(corpus)
    yield from _one_line(corpus)
    yield from _sorted_lines(corpus)
    yield from iter_shard_advice(corpus.shards)


def _held_out(corpus: Corpus) -> dict[str, Split]:
    splits = {"valid": corpus.valid, "test": corpus.test}
    return {name: split for name, split in splits.items() if split is not None}


# ---- words that do not end


def endless_words(words: Sequence[str], counts_V: NDArray[np.int64], num_words: int, num_chars: int) -> str:
    """Says what shows that words do not end where they should: empty if nothing does.

    Finds languages without spaces, other separators than ours, and encoded data: words that occur once teach nothing. `words`
    are those of the vocabulary with their counts; the text has `num_words`, the unknown ones included, in `num_chars`.
    """
    if num_words < 1:
        return ""
    mean = num_chars / num_words
    lengths_V = np.fromiter((len(word) for word in words), np.int64, len(words))
    num_long = int((lengths_V * counts_V)[lengths_V > LONG_WORD].sum())
    if mean > LONG_MEAN:
        return f"The words of the training text have {mean:.0f} characters on average"
    if num_long > LONG_SHARE * num_chars:
        return f"Words of more than {LONG_WORD} characters make up {num_long / num_chars:.0%} of the training text"
    if num_words >= SELDOM_WORDS and len(words) > SELDOM * num_words:
        return f"Nearly every word of the training text differs from all others ({len(words):,} types, {num_words:,} words)"
    return ""


def endless_words_of(corpus: Corpus) -> str:
    """Returns `endless_words` of the training text of a corpus of words."""
    train, tokens = corpus.train, corpus.tokenizer.tokens
    num_words, num_chars = len(train.ids) - train.num_lines, train.num_chars - train.num_lines
    return endless_words(tokens, train.counts(len(tokens)), num_words, num_chars)


def _endless_words(corpus: Corpus) -> Iterator[str]:
    if problem := endless_words_of(corpus):
        yield (
            f"{problem}, so a model of words learns next to nothing. {SEPARATORS} "
            f"{_separator(corpus.tokenizer.tokens)}Type tokenizer=char."
        )


def _blanks(corpus: Corpus) -> Iterator[str]:
    """Finds indented and justified texts, with blanks that no word stands for. Unknown words are taken to be long."""
    train, tokens = corpus.train, corpus.tokenizer.tokens
    lengths_V = np.fromiter((0 if token in (EOS, UNK) else len(token) for token in tokens), np.int64, len(tokens))
    num_words = len(train.ids) - train.num_lines
    num_known = num_words - train.num_unk
    if num_known < (1 - MAX_UNKNOWN) * num_words or not num_words:
        return
    num_letters = int(lengths_V @ train.counts(len(tokens))) * (num_known + 2 * train.num_unk) / num_known
    written = num_letters + num_words + train.num_lines - train.num_filled  # a blank or a line's end behind every word
    if (share := 1 - written / train.num_chars) > BLANKS:
        yield (
            f"{share:.0%} of the characters of the training text are blanks beyond one between two words, which no word stands "
            "for: bits per character do not compare with those of tokenizer=char, which has to predict them. To compare both, "
            "type  tr -s ' \\t' ' ' < FILE | sed 's/^ //' > text.txt  on the whole text, and train them on that."
        )


def _separator(tokens: list[str]) -> str:
    """Says what to do about another kind of space, if most long words contain it."""
    long = [token for token in tokens[:10_000] if len(token) > 2 and token not in (EOS, UNK)]
    spaces = {char for token in long[:100] for char in token if char in "\u200b\u2060\ufeff" or _is_space(char)}
    for char in sorted(spaces, key=lambda char: -sum(char in token for token in long)):
        if sum(char in token for token in long) > len(long) / 2:
            name = f"U+{ord(char):04X} ({unicodedata.name(char, 'a control character').lower()})"
            return f"Most words hold {name}; if that separates them, type  tokenizer.separators=[U+{ord(char):04X}] ; or else: "
    return ""


def _is_space(char: str) -> bool:
    return char.isspace() or unicodedata.category(char).startswith("Z")


# ---- unknown tokens


def _unknown(corpus: Corpus) -> Iterator[str]:
    """Finds splits in which nearly everything is unknown, or else an `<unk>` that only the held-out text has."""
    if corpus.tokenizer.unk_id is None:
        return
    noun = f"{corpus.tokenizer.kind.noun}s"
    if _unknown_share(corpus.train) >= MAX_UNKNOWN:
        yield (
            f"{_unknown_share(corpus.train):.0%} of the {noun} of the training text are <unk>: perplexities then say how often "
            "it comes, and little else. Type a smaller tokenizer.min_count or a larger tokenizer.vocab_size, or tokenizer=byte."
        )
        return
    for name, split in _held_out(corpus).items():
        share, in_training = split.num_unk / len(split.ids), corpus.train.num_unk / len(corpus.train.ids)
        if _unknown_share(split) >= MAX_UNKNOWN:
            yield (
                f"{_unknown_share(split):.0%} of the {noun} of the {NAMES[name]} text are <unk>, not known from the training "
                f"text: the two texts differ in kind, or {noun} seldom occur twice. Type tokenizer=byte, or give other splits."
            )
            return
        if share >= FEW_UNKNOWN and in_training < UNTRAINED * share:
            counts = corpus.train.counts(corpus.tokenizer.vocab_size)
            counts[[corpus.tokenizer.unk_id, corpus.tokenizer.eos_id]] = 0
            trained = f"only {in_training:.2%}" if in_training else "none"
            rarest = int(counts[counts > 0].min(initial=1 << 31))
            is_rare = counts[counts == rarest].sum() < MAX_UNKNOWN * len(corpus.train.ids)
            yield (
                f"{share:.1%} of the {NAMES[name]} tokens are <unk>, but {trained} of the training tokens: its probability is "
                "not learnt, and perplexities depend on chance. "
                + (f"Type tokenizer.min_count={rarest + 1}, which makes rare {noun} <unk>." if is_rare else
                   f"No {noun} of the training text are rare. Type tokenizer=byte, or give other splits.")
            )  # fmt: skip
            return


def _unknown_share(split: Split) -> float:
    """Returns the fraction of unknown tokens among those that are not ends of lines."""
    return split.num_unk / max(1, len(split.ids) - split.num_lines)


# ---- lines


def _marked_lines(corpus: Corpus) -> Iterator[str]:
    share = corpus.train.num_marked / max(1, corpus.train.num_filled)
    if share > MARKED:
        yield (
            f"{share:.0%} of the training lines are marked <s> ... </s>. Line ends are tokens here, so the marks only add "
            "tokens that are easy to predict, and make every number look better than it is. "
            r"Type  sed -E 's/^<(s|bos|sos)> *//; s/ *<(\/s|eos)>$//' FILE > text.txt  and give that."
        )


def _shared_lines(corpus: Corpus) -> Iterator[str]:
    for name, split in _held_out(corpus).items():
        share = find_overlap(split.lines, corpus.train.lines).share
        if share >= SHARED:
            yield (
                f"{share:.0%} of the distinct lines of the {NAMES[name]} text are in the training text as well: numbers on "
                "them say little about unseen text. Type  awk '!seen[$0]++' FILE > text.txt  on the whole text, and split that."
            )
            return
    if corpus.test is not None and (share := find_overlap(corpus.test.lines, corpus.valid.lines).share) >= SHARED:
        yield (
            f"{share:.0%} of the distinct lines of the test text are in the validation text as well, by which models are "
            "selected. Type  awk '!seen[$0]++' FILE > text.txt  on the whole text, and split that."
        )


def _one_line(corpus: Corpus) -> Iterator[str]:
    """Finds texts without line ends: the token of a line's end, before which every text begins, is then never seen."""
    train = corpus.train
    if train.num_lines <= 1 and len(train.ids) >= ONE_LINE_TOKENS:
        yield (
            "The training text is a single line, so the end of a line is not learnt: texts that are scored or continued line "
            "by line mean little. If its sentences should end lines, "
            r"type  sed -E 's/([.!?]) /\1\n/g' FILE > text.txt  and give that."
        )


def _sorted_lines(corpus: Corpus) -> Iterator[str]:
    """Finds lists in alphabetical order, of which a split is another part of the alphabet."""
    text = corpus.tokenizer.decode(corpus.train.ids[:SORTED_TOKENS].tolist())
    lines = [line.casefold() for line in text.split("\n")[:-1] if line.strip()]
    pairs = list(itertools.pairwise(lines))
    if len(lines) < SORTED_LINES or len(set(lines)) < len(lines) / 2:
        return
    if max(sum(a <= b for a, b in pairs), sum(a >= b for a, b in pairs)) >= SORTED * len(pairs):
        yield (
            "The lines of the training text are in alphabetical order, so the splits hold other parts of the alphabet: "
            "validation and test say little about training. Type data.split=shuffled_lines; "
            "of a text with splits of its own, shuffle the "
            "lines of the whole text first."
        )
