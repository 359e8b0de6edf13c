"""Which pieces of text get an id of their own: counted in the training split, the most frequent first.

A piece is a character (`char`) or a word (`word`). A word is a longest run without whitespace, and whitespace is exactly
these six ASCII characters: space, \\t, \\n, \\v, \\f, \\r. All else belongs to words, such as U+00A0 (no-break space), U+2028,
U+0085 and \\x1c, on which `str.split` and `str.splitlines` would split. Only "\\n" ends a line.

Ids descend in frequency, as the adaptive softmax and log-uniform sampling need it; equal counts are ordered by code points.
`<unk>` counts what it stands for, `<eos>` counts lines, and both are placed where their counts put them.
"""

from __future__ import annotations

import re
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmtrain.data import kinds
from lmtrain.data.text import iter_text
from lmtrain.errors import DataError, refuse
from lmtrain.shell import expanded, quoted_for_shell

EOS, UNK = "<eos>", "<unk>"
MAX_TYPES = 10_000_000  # besides `<eos>` and `<unk>`; more are refused: no output layer would fit into memory
MAX_WORD = 1 << 20  # characters; a longer run without whitespace is no word, and would have to be held in memory

WHITESPACE = " \t\n\v\f\r"
WORD = re.compile(f"[^{WHITESPACE}]*")


def learn_tokens(counts: Mapping[str, int], *, eos: str, min_count: int, vocab_size: int) -> list[str]:
    """Returns the vocabulary in the order of its ids: every piece seen at least `min_count` times, `eos` and `<unk>`.

    `vocab_size` bounds the whole vocabulary, `eos` and `<unk>` included; 0 is no bound. Raises SettingsError if it leaves
    no room for anything else.
    """
    refuse(kinds.mistakes(kinds.WORD, vocab_size=vocab_size))  # of characters as well
    kept = [piece for piece, count in counts.items() if count >= min_count and piece not in (eos, UNK)]
    kept.sort()
    kept.sort(key=counts.__getitem__, reverse=True)  # equal ones stay as they are; a key of two parts takes 1 GB for 10M
    if vocab_size:
        del kept[vocab_size - 2 :]
    num_eos = counts.get(eos, 0)
    special = {eos: num_eos, UNK: sum(counts.values()) - num_eos - sum(map(counts.__getitem__, kept))}
    for piece in special:
        insort(kept, piece, key=lambda piece: (-special.get(piece, counts.get(piece, 0)), piece))
    return kept


def read_word_list(path: str | Path) -> list[str]:
    """Returns the tokens of a fixed vocabulary: `<eos>`, `<unk>` and the words of a file, one per line, in its order.

    Raises DataError, with the first lines that are wrong, for blank lines, words twice, blanks within a word and the two names.
    """
    path = expanded(path)
    words: dict[str, int] = {}
    problems: list[str] = []
    lines = "".join(iter_text(path)).split("\n")
    for number, word in enumerate(lines[: -1 if lines[-1] == "" else None], 1):
        if not word.strip(WHITESPACE):
            problems.append(f"line {number:,} is blank")
        elif word in (EOS, UNK):
            problems.append(f"line {number:,} is {word}, which is added anyway")
        elif WORD.fullmatch(word) is None or len(word) > MAX_WORD:
            problems.append(f"line {number:,} holds blanks or is too long: {word[:40]!r}")
        elif words.setdefault(word, number) != number:
            problems.append(f"line {number:,} is {word[:40]!r} again, as line {words[word]:,}")
    if not words or len(words) > MAX_TYPES:
        problems.append(f"it has {len(words):,} words")
    if problems:
        more = f"; and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        clean = 'awk \'NF == 1 && $1 != "<eos>" && $1 != "<unk>" && !seen[$1]++ {print $1}\''
        raise DataError(
            f"{path} is no list of words: {'; '.join(problems[:5])}{more}.",
            f"Allowed are 1 to {MAX_TYPES:,} words, one per line, each once; frequent ones had better come first.",
            f"Type  {clean} {quoted_for_shell(str(path))} > words.txt  and give that.",
        )
    return [EOS, UNK, *words]


def count_chars(blocks: Iterable[str]) -> dict[str, int]:
    """Counts how often each character occurs."""
    totals = np.zeros(0x110000, np.int64)
    for block in blocks:
        counts = np.bincount(code_points(block))
        totals[: len(counts)] += counts
    return {chr(code): int(totals[code]) for code in totals.nonzero()[0]}


def count_words(blocks: Iterable[str]) -> dict[str, int]:
    """Counts how often each word occurs; `<eos>` counts line ends. Raises DataError beyond MAX_TYPES different words."""
    counts: Counter[bytes] = Counter()
    for block in whole_words(blocks):
        counts.update(split_words(block))
        check_types(counts)
    return {word.decode(): count for word, count in counts.items()}


def check_types(words: Collection[bytes]) -> None:
    """Raises DataError for more than MAX_TYPES different words."""
    if len(words) > MAX_TYPES and len(words) - (EOS.encode() in words) - (UNK.encode() in words) > MAX_TYPES:
        raise DataError(
            f"The training text has more than {MAX_TYPES:,} different words.",
            f"Allowed are at most {MAX_TYPES:,}, however many of them min_count leaves out.",
            "Type tokenizer=char or tokenizer=byte, or split the text into smaller units first.",
        )


def split_words(text: str | bytes) -> list[bytes]:
    """Returns the words of `text` (or of its UTF-8) as UTF-8; every "\\n" is `<eos>`, as a literal `<eos>` in the text is."""
    data = utf8(text) if isinstance(text, str) else text
    return data.replace(b"\n", b" <eos> ").split()  # bytes.split knows exactly the six whitespace characters


def whole_words(blocks: Iterable[str]) -> Iterator[str]:
    """Yields the same text in blocks that end behind whitespace, so that no word is cut; the last one may end anywhere.

    Raises DataError for a word of more than MAX_WORD characters.
    """
    rest: list[str] = []  # the beginning of a word
    rest_size = 0
    for block in blocks:
        end = 1 + max(map(block.rfind, WHITESPACE))
        head = WORD.match(block)[0]  # type: ignore[index]  # where a word goes on
        if rest_size + len(head) > MAX_WORD:
            raise _endless("".join([*rest, head]))
        if len(block) > MAX_WORD and len(longest := max(WORD.findall(block), key=len)) > MAX_WORD:
            raise _endless(longest)
        if end:
            yield "".join([*rest, block[:end]])
            rest, rest_size = [], 0
        rest.append(block[end:])
        rest_size += len(block) - end
    if rest_size:
        yield "".join(rest)


def whole_lines(blocks: Iterable[str], check: Callable[[int], None] = lambda _: None) -> Iterator[str]:
    """Yields the same text in blocks that end behind a line's end; the last one may end anywhere.

    A line is held as a whole: `check` is called with the characters of one that has not ended yet, and may refuse it.
    """
    rest: list[str] = []
    for block in blocks:
        end = block.rfind("\n") + 1
        if end:
            yield "".join([*rest, block[:end]])
            rest.clear()
        rest.append(block[end:])
        check(sum(map(len, rest)))
    if any(rest):
        yield "".join(rest)


def _endless(word: str) -> DataError:
    return DataError(
        f"The text holds a run of more than {MAX_WORD:,} characters without whitespace: {word[:20]!r}...",
        "For tokenizer=word, words are separated by spaces, tabs or line ends.",
        "Type tokenizer=char or tokenizer=byte for such a text.",
    )


def code_points(text: str) -> NDArray[np.uint32]:
    """Returns the Unicode code points of `text`."""
    return np.frombuffer(_encoded(text, "utf-32-le"), "<u4")


def utf8(text: str) -> bytes:
    """`text` as UTF-8. Raises DataError if it holds half a surrogate pair, as arguments from a broken terminal do."""
    return _encoded(text, "utf-8")


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text holds U+{ord(text[error.start]):04X}, half a surrogate pair, at character {error.start}.",
            "Allowed is text that UTF-8 can write.",
            "Set the terminal's locale to UTF-8 (LC_ALL=C.UTF-8), or give the text as a file in UTF-8.",
        ) from None
