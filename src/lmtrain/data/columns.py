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
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lmtrain.data.examples import read_lines, refuse_records
from lmtrain.errors import DataError
from lmtrain.quantity import counted
from lmtrain.shell import one_line

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"
MARKED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
MARKED_OTHERWISE = re.compile(r"\A([BIESLUMbi])[-_](.+)\Z", re.DOTALL)
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
    first = next((line for line in lines if line.strip(BLANKS)), "")
    records = '([.tokens, .tags] | transpose[] | @tsv), ""'
    refuse_records(first, str(path), "Here a token and its tag stand on a line of their own.", records)
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
    if typed is not None:
        _warn_of_numbers(sentences, lines, path, token_column, tag_column)
    return Columns(tuple(sentences), digest)


def _warn_of_numbers(
    sentences: Sequence[Sentence], lines: Sequence[str], path: Path, token_column: int, tag_column: int
) -> None:
    """Warns if nearly all tokens are whole numbers, as the first column of CoNLL-U is, and a column of words is beside them."""
    if not _are_numbers([token for sentence in sentences for token in sentence.tokens]):
        return
    has_tabs = any(map(is_tabbed, lines))
    rows = [row.fields for row in iter_rows(lines, has_tabs) if row.fields]
    read = [column % (len(rows[0]) + 1) for column in (token_column, tag_column)]
    for column in range(1, len(rows[0]) + 1):
        if column not in read and not _are_numbers([field_at(fields, column) for fields in rows], 0.5):
            log.warning(
                "Nearly all tokens of %s are whole numbers, such as %r. They are read from column %s; column %s has %r there. "
                "If the words are in that column, type data.token_column=%s.",
                one_line(str(path)), field_at(rows[0], token_column), token_column, column,
                one_line(field_at(rows[0], column))[:80], column,
            )  # fmt: skip
            return


def _are_numbers(fields: Sequence[str], share: float = 0.9) -> bool:
    return sum(map(str.isdecimal, fields)) >= share * len(fields)


def parse_columns(
    lines: Sequence[str], name: str, *, token_column: int = 1, tag_column: int = -1, has_choice: bool = True
) -> list[Sentence]:
    """Returns the sentences in the lines of the file `name`. Warns of lines with another number of columns than others, where
    one column is counted from the end.

    `has_choice` says whether a person can name other columns.
    """
    with_tab = next((number for number, line in enumerate(lines, 1) if is_tabbed(line)), None)
    rows = list(iter_rows(lines, with_tab is not None))
    sentences: list[Sentence] = []
    open_rows: list[tuple[str, str, int]] = []

    def pair(row: Row) -> tuple[str, str]:
        token, tag = field_at(row.fields, token_column), field_at(row.fields, tag_column)
        if len(row.fields) == 1:
            problem = "has one column only"
        elif not token or not tag:
            what, column = ("tag", tag_column) if token else ("token", token_column)
            problem = f"has no {what} in column {column}"
        elif (token_column - tag_column) % (len(row.fields) + 1) == 0:  # one is counted from the end
            problem = f"has {len(row.fields)} columns, so that column {token_column} is column {tag_column}"
        else:
            return token, tag
        if len(row.fields) == 1:
            other = "separate them by a tab or a space"
        elif has_choice:
            other = "say which columns they are, for example data.token_column=1 data.tag_column=-1"
        else:
            other = "give another file"
        raise DataError(
            f"Line {row.number:,} of {one_line(name)} {problem}: {shown_columns(row)}.",
            f"Every line has a token (here in column {token_column}) and a tag (in column {tag_column}; -1 is the last). A "
            "blank line ends a sentence.",
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
            open_rows.append((*pair(row), row.number))
        if open_rows and (row.ends_sentence or row is rows[-1]):
            tokens, tags, numbers = zip(*open_rows, strict=True)
            sentences.append(Sentence(tokens, tags, numbers[0]))
            open_rows.clear()
    if (token_column > 0) != (tag_column > 0):  # else what stands behind both, or before both, changes neither
        _warn_of_columns([row for row in rows if row.fields], name)
    return sentences


def _warn_of_columns(rows: Sequence[Row], name: str) -> None:
    """Warns if some lines have another number of columns than others: their token or tag may not be where it is read."""
    usual = max(Counter(len(row.fields) for row in rows).items(), key=lambda item: item[1], default=(0, 0))[0]
    if odd := [row for row in rows if len(row.fields) != usual]:
        log.warning(
            "%s of %s of %s have another number of columns than the usual %s. The first is line %s, with %s: %s. Its token or "
            "its tag may not be in the column where it is read.",
            f"{len(odd):,}", counted(len(rows), "line"), one_line(name), usual, f"{odd[0].number:,}", len(odd[0].fields),
            shown_columns(odd[0]),
        )  # fmt: skip


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


def split_words(text: str) -> list[str]:
    """Returns the words of a text, cut where the columns of lines are: other spaces, such as U+00A0, belong to words."""
    return re.findall(f"[^{BLANKS}\n]+", text)


def field_at(fields: Sequence[str], column: int) -> str:
    """Returns the field of a column, counted from 1, or from the end where it is negative; empty if there is none."""
    index = column - 1 if column > 0 else column
    return fields[index] if -len(fields) <= index < len(fields) and column else ""


def shown_columns(row: Row) -> str:
    """Returns a line for a message."""
    return repr(one_line(row.line.strip(BLANKS))[:80])


# ---- tags


class Tag(NamedTuple):
    """A tag in its two parts: the mark of a place (empty where there is none), and the class; O is ("", "O")."""

    mark: str
    cls: str


@lru_cache(maxsize=1 << 12)
def split_tag(tag: str) -> Tag:
    """Returns the parts of a tag; L and U are E and S by other names."""
    match = MARKED.fullmatch(tag)
    return Tag({"L": "E", "U": "S", "M": "I"}.get(match[1], match[1]), match[2]) if match else Tag("", tag)


def intended(tag: str) -> str:
    """Returns the tag as it is written here, where it is written in another way that looks like it: o is O, B_ORG is B-ORG."""
    if tag == OUTSIDE.lower():
        return OUTSIDE
    return tag if MARKED.fullmatch(tag) else MARKED_OTHERWISE.sub(lambda found: f"{found[1].upper()}-{found[2]}", tag)


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
            cls if cls == OUTSIDE else f"{self.mark(before != cls, after != cls)}-{cls}"
            for before, cls, after in zip(padded, padded[1:], padded[2:], strict=False)
        ]

    def mark(self, is_first: bool, is_last: bool, is_behind_its_class: bool = False) -> str:
        """Returns the mark of a token of an entity, which may stand behind another entity of its class."""
        if not self.is_marked:
            return ""
        if self.ends and is_last:
            return "S" if is_first else "E"
        return "B" if is_first and (self.begins or (is_behind_its_class and not self.ends)) else "I"


def scheme_of(sentences: Iterable[Sentence]) -> Scheme:
    """Says by which scheme most tags are written. A few slips do not change it: `iter_misfits` finds them.

    Tags have marks if most of those in entities do. Entities have an end of their own (E- and S-) if most end so. They begin
    with B- if most do of those behind O or another class, because behind their own class they do in any scheme.
    """
    has_mark: Counter[bool] = Counter()
    firsts: Counter[str] = Counter()
    firsts_of_longer: Counter[str] = Counter()  # of entities of several tokens, whose first one cannot be the last as well
    lasts: Counter[str] = Counter()
    num_behind_own_class = 0
    for sentence, entity, is_behind in _iter_entities(sentences):
        marks = [split_tag(tag).mark for tag in sentence.tags[entity.start : entity.end]]
        has_mark.update(map(bool, marks))
        lasts[marks[-1]] += 1
        if len(marks) > 1:
            firsts_of_longer[marks[0]] += 1
        if is_behind:
            num_behind_own_class += marks[0] == "B"
        else:
            firsts[marks[0]] += 1
    if has_mark[True] <= has_mark[False]:
        return Scheme("classes without marks", is_marked=False, begins=False, ends=False)
    if lasts["E"] + lasts["S"] > lasts["B"] + lasts["I"]:
        return Scheme("IOBES", is_marked=True, begins=firsts_of_longer["B"] >= firsts_of_longer["I"], ends=True)
    if firsts["B"] >= firsts["I"]:
        return Scheme("BIO", is_marked=True, begins=True, ends=False)
    has_neighbours = num_behind_own_class >= max(1, firsts["B"])
    name = "IOB1 (B- only between neighbours of one class)" if has_neighbours else "IO (I- only)"
    return Scheme(name, is_marked=True, begins=False, ends=False)


def iter_misfits(sentences: Iterable[Sentence], scheme: Scheme) -> Iterator[tuple[Sentence, int]]:
    """Yields the tags of entities that the scheme writes otherwise: the sentence, and the place of the tag in it."""
    for sentence, entity, is_behind in _iter_entities(sentences):
        for place in range(entity.start, entity.end):
            expected = scheme.mark(place == entity.start, place == entity.end - 1, is_behind)
            found = split_tag(sentence.tags[place]).mark
            if found != expected and (found, expected) != ("E", "S"):  # IOE2 ends entities of one token by E-
                yield sentence, place


def _iter_entities(sentences: Iterable[Sentence]) -> Iterator[tuple[Sentence, Entity, bool]]:
    """Yields each entity with its sentence, and whether it stands behind another entity of its class."""
    for sentence in sentences:
        before = Entity(0, 0, OUTSIDE)
        for entity in entities(sentence.tags):
            yield sentence, entity, (before.end, before.cls) == (entity.start, entity.cls)
            before = entity
