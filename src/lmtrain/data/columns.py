"""Sentences with a tag for every token, as CoNLL's shared tasks write them: a token per line, in columns.

    U.N.      I-ORG          The token is the first column and the tag the last, unless other columns are named. Columns are
    official  O              separated by tabs if a file has any, else by spaces. A line of white space ends a sentence, and
    Ekeus     I-PER          so does a line that begins with -DOCSTART-.

Where tabs separate columns, a line such as `# text = It rains.`, which has none, is a comment, as in CoNLL-U.

A tag is O for what is in no entity, else a class, after an optional mark of its place in the entity: `I-` and `B-` for
inside and beginning (IO, BIO and the older IOB1), `E-` and `S-` (or `L-` and `U-`) for the last token and the only one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lmtrain.data.examples import read_lines
from lmtrain.errors import DataError
from lmtrain.shell import one_line

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"
MARKED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
COMMENT = "#"
BLANKS = " \t\r\f\v"  # other spaces, such as U+00A0, belong to tokens

log = logging.getLogger("lmtrain")


class Row(NamedTuple):
    """A line of a file, by its number (from 1), with its columns. It has none where it is a comment or ends a sentence."""

    number: int
    line: str
    fields: tuple[str, ...]
    ends_sentence: bool


class Sentence(NamedTuple):
    """Tokens with their tags; `line` (from 1) is where it begins in its file."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Columns:
    """The sentences of a file."""

    sentences: tuple[Sentence, ...]
    sha256: str

    @property
    def num_tokens(self) -> int:
        return sum(len(sentence.tokens) for sentence in self.sentences)


def read_columns(
    path: Path, *, token_column: int = 1, tag_column: int = -1, encoding: str = "utf-8", typed: str | None = "data.encoding="
) -> Columns:
    """Returns the sentences of a file; `typed` as in `read_lines`. Raises DataError, with the line, for what is no token with a
    tag, and for a file without any. Warns if each token holds a blank."""
    lines, digest = read_lines(path, encoding, typed=typed)
    sentences = parse_columns(lines, str(path), token_column=token_column, tag_column=tag_column, has_choice=typed is not None)
    if not sentences:
        raise DataError(
            f"{one_line(str(path))} holds no sentence.",
            "A token and its tag stand on a line of their own.",
            "Give another file.",
        )
    if all(" " in token for sentence in sentences for token in sentence.tokens):
        log.warning(
            "Every token of %s holds a blank, as %r does: its columns seem to be separated by blanks and by tabs. Separate all "
            "of them by tabs, or all by blanks.", one_line(str(path)), one_line(sentences[0].tokens[0])[:80],
        )  # fmt: skip
    return Columns(tuple(sentences), digest)


def parse_columns(
    lines: Sequence[str], name: str, *, token_column: int = 1, tag_column: int = -1, has_choice: bool = True
) -> list[Sentence]:
    """Returns the sentences in the lines of the file `name`. `has_choice` says whether a person can name other columns."""
    with_tab = next((number for number, line in enumerate(lines, 1) if is_tabbed(line)), None)
    rows = list(iter_rows(lines, with_tab is not None))
    sentences: list[Sentence] = []
    open_rows: list[tuple[str, str, int]] = []

    def field(row: Row, column: int, what: str) -> str:
        if len(row.fields) > 1 and (found := field_at(row.fields, column)):
            return found
        other = "say which columns they are: data.token_column=1 data.tag_column=-1" if has_choice else "give another file"
        raise DataError(
            f"Line {row.number:,} of {one_line(name)} has no {what}: {shown_columns(row)}.",
            f"Every line has a token and a tag in columns of their own (here the {what} is in column {column}); a blank line "
            "ends a sentence.",
            f"Mend the line, or {other}.",
        )

    for row in rows:
        if row.fields and with_tab is not None and len(row.fields) > 1 and not is_tabbed(row.line):
            raise DataError(
                f"Line {row.number:,} of {one_line(name)} has no tab: {one_line(row.line.strip(BLANKS))[:80]!r}.",
                f"Columns are separated by tabs if any line has one, as line {with_tab:,} does; else by spaces.",
                "Separate the columns of all lines alike.",
            )
        if row.fields:
            open_rows.append((field(row, token_column, "token"), field(row, tag_column, "tag"), row.number))
        if open_rows and (row.ends_sentence or row is rows[-1]):
            tokens, tags, numbers = zip(*open_rows, strict=True)
            sentences.append(Sentence(tokens, tags, numbers[0]))
            open_rows.clear()
    return sentences


def iter_rows(lines: Iterable[str], has_tabs: bool | None = None) -> Iterator[Row]:
    """Yields the lines with their columns, each as soon as it comes. `has_tabs` says whether tabs separate columns, so that
    lines which begin with # and have none are comments. Where it is None the first line that is surely no comment says so,
    and those before it wait."""
    held: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        held.append((number, line))
        may_be_comment = line.startswith(COMMENT) and "\t" not in line and len(split_columns(line)) > 1
        if has_tabs is None and not _ends_sentence(line) and not may_be_comment:
            has_tabs = is_tabbed(line)
        if has_tabs is not None or not held[0][1].startswith(COMMENT):
            yield from (_row(*each, bool(has_tabs)) for each in held)
            held.clear()
    yield from (_row(*each, False) for each in held)


def _row(number: int, line: str, has_tabs: bool) -> Row:
    ends = _ends_sentence(line)
    is_comment = has_tabs and line.startswith(COMMENT) and "\t" not in line
    return Row(number, line, () if ends or is_comment else split_columns(line), ends)


def _ends_sentence(line: str) -> bool:
    return not line.strip(BLANKS) or line.startswith(DOCUMENT)


def is_tabbed(line: str) -> bool:
    """Tells whether tabs separate the columns of a line."""
    return "\t" in line.strip(BLANKS)


def split_columns(line: str) -> tuple[str, ...]:
    """Returns the columns of a line: between tabs if it has any, else between spaces. Tabs at its end make no more columns."""
    if is_tabbed(line):
        return tuple(field.strip(BLANKS) for field in line.rstrip(BLANKS).split("\t"))
    return tuple(re.split(f"[{BLANKS}]+", line.strip(BLANKS)))


def field_at(fields: Sequence[str], column: int) -> str:
    """Returns the field of a column, counted from 1, or from the end where it is negative; empty if there is none."""
    index = column - 1 if column > 0 else column
    return fields[index] if -len(fields) <= index < len(fields) and column else ""


def shown_columns(row: Row) -> str:
    """Returns the columns of a line for a message."""
    return repr(one_line("\t".join(row.fields))[:80])


# ---- tags


class Tag(NamedTuple):
    """A tag in its two parts: the mark of a place (empty where there is none), and the class; O is ("", "O")."""

    mark: str
    cls: str


def split_tag(tag: str) -> Tag:
    """Returns the parts of a tag; L and U are E and S by other names."""
    match = MARKED.fullmatch(tag)
    return Tag({"L": "E", "U": "S", "M": "I"}.get(match[1], match[1]), match[2]) if match else Tag("", tag)


class Entity(NamedTuple):
    """A stretch of tokens, start <= i < end, of one class."""

    start: int
    end: int
    cls: str


def entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a sentence, by the rule of CoNLL's script conlleval (Tjong Kim Sang 2002).

    One begins at B or S, behind E or S, behind O, and where the class changes; so I after O opens an entity, too. Without
    marks, a stretch of tokens of one class is one.
    """
    found: list[Entity] = []
    start, before = 0, Tag("", OUTSIDE)
    for place, tag in enumerate([*map(split_tag, tags), Tag("", OUTSIDE)]):
        begins = tag.mark in ("B", "S") or before.mark in ("E", "S") or tag.cls != before.cls
        if begins:
            if before.cls != OUTSIDE:
                found.append(Entity(start, place, before.cls))
            start = place
        before = tag
    return found


class Scheme(NamedTuple):
    """How a data set marks entities."""

    name: str
    is_marked: bool
    begins: bool  # whether B- (and S-) are used at every beginning
    ends: bool  # whether E- and S- are used

    def tags(self, classes: Sequence[str]) -> list[str]:
        """Tags for a class per token: neighbours of one class are one entity."""
        if not self.is_marked:
            return list(classes)
        padded = [OUTSIDE, *classes, OUTSIDE]
        return [
            cls if cls == OUTSIDE else f"{self._mark(before != cls, after != cls)}-{cls}"
            for before, cls, after in zip(padded, padded[1:], padded[2:], strict=False)
        ]

    def _mark(self, is_first: bool, is_last: bool) -> str:
        if self.ends and is_last:
            return "S" if is_first else "E"
        return "B" if self.begins and is_first else "I"


def scheme_of(sentences: Iterable[Sentence]) -> Scheme:
    """Says which scheme sentences are tagged by."""
    marks: set[str] = set()
    opens_inside = has_plain = False
    for sentence in sentences:
        before = Tag("", OUTSIDE)
        for tag in map(split_tag, sentence.tags):
            marks.add(tag.mark)
            has_plain |= not tag.mark and tag.cls != OUTSIDE
            opens_inside |= tag.mark == "I" and before.cls == OUTSIDE
            before = tag
    marks.discard("")
    if not marks or has_plain:
        return Scheme("classes without marks", is_marked=False, begins=False, ends=False)
    if marks & {"E", "S"}:
        return Scheme("IOBES", is_marked=True, begins="B" in marks, ends=True)
    if "B" in marks:
        name = "IOB1 (B- only between neighbours of one class)" if opens_inside else "BIO"
        return Scheme(name, is_marked=True, begins=not opens_inside, ends=False)
    return Scheme("IO (I- only)", is_marked=True, begins=False, ends=False)
