"""Sentences with a tag for every token, as CoNLL's shared tasks write them: a token per line, in columns.

    U.N.      I-ORG          The token is the first column and the tag the last, unless other columns are named. Columns are
    official  O              separated by tabs if a file has any, else by spaces. A line of white space ends a sentence, and
    Ekeus     I-PER          so does a line that begins with -DOCSTART-.

A tag is O for what is in no entity, else a class, after an optional mark of its place in the entity: `I-` and `B-` for
inside and beginning (IO, BIO and the older IOB1), `E-` and `S-` (or `L-` and `U-`) for the last token and the only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lmtrain.data.examples import read_lines
from lmtrain.errors import DataError
from lmtrain.shell import one_line

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"
MARKED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
BLANKS = " \t\r\f\v"  # other spaces, such as U+00A0, belong to tokens


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
    tag, and for a file without any."""
    lines, digest = read_lines(path, encoding, typed=typed)
    sentences = parse_columns(lines, str(path), token_column=token_column, tag_column=tag_column)
    if not sentences:
        raise DataError(
            f"{one_line(str(path))} holds no sentence.",
            "A token and its tag stand on a line of their own.",
            "Give another file.",
        )
    return Columns(tuple(sentences), digest)


def parse_columns(lines: Sequence[str], name: str, *, token_column: int = 1, tag_column: int = -1) -> list[Sentence]:
    """Returns the sentences in the lines of the file `name`."""
    with_tab = next((number for number, line in enumerate(lines, 1) if "\t" in line.strip(BLANKS)), None)
    separator = re.compile(f"[{BLANKS}]+" if with_tab is None else "\t")
    sentences: list[Sentence] = []
    rows: list[tuple[str, str]] = []

    def end(line: int) -> None:
        if rows:
            tokens, tags = zip(*rows, strict=True)
            sentences.append(Sentence(tokens, tags, line - len(rows)))
            rows.clear()

    for number, line in enumerate(lines, 1):
        if not line.strip(BLANKS) or line.startswith(DOCUMENT):
            end(number)
            continue
        fields = [field.strip(BLANKS) for field in separator.split(line.strip(BLANKS))]
        if with_tab is not None and len(fields) == 1 and re.search(f"[{BLANKS}]", fields[0]):
            raise DataError(
                f"Line {number:,} of {one_line(name)} has no tab: {one_line(fields[0])[:80]!r}.",
                f"Columns are separated by tabs if any line has one, as line {with_tab:,} does; else by spaces.",
                "Separate the columns of all lines alike.",
            )
        rows.append((_field(fields, token_column, name, number, "token"), _field(fields, tag_column, name, number, "tag")))
    end(len(lines) + 1)
    return sentences


def _field(fields: list[str], column: int, name: str, line: int, what: str) -> str:
    """Returns the field of a column, counted from 1, or from the end where it is negative."""
    index = column - 1 if column > 0 else column
    field = fields[index] if -len(fields) <= index < len(fields) and column else ""
    if field and (len(fields) > 1):
        return field
    raise DataError(
        f"Line {line:,} of {one_line(name)} has no {what}: {one_line(chr(9).join(fields))[:80]!r}.",
        f"Every line has a token and a tag in columns of their own (here the {what} is in column {column}); a blank line ends "
        "a sentence.",
        "Mend the line, or say which columns they are: data.token_column=1 data.tag_column=-1.",
    )


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
