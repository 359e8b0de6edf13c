"""`python -m lmtrain predict RUN FILE` tags sentences with a trained tagger, and labels texts with a trained classifier.

For a tagger (task=tag) the file has a token per line, and a blank line between sentences. A line may have several columns,
with the token where the data of the run have it. Every line is printed with its tag as one more column: behind a space where
spaces separate the columns, else behind a tab. With `--sentences` each line is a sentence, with spaces between tokens.

For a classifier (task=classify) every line is a text without a label. It is printed after its label and the label's
probability, with tabs between; with `--probabilities`, those of the other labels come before the text, too.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lmtrain.commands.options import Parser, add_model_options, iter_lines, open_any, parse, whole
from lmtrain.errors import CheckpointError, DataError, EncodingError, SettingsError
from lmtrain.quantity import counted
from lmtrain.shell import expanded, one_line, printable

if TYPE_CHECKING:
    from lmtrain.tasks.classify_saved import Classifier
    from lmtrain.tasks.tag_saved import Tagger

SENTENCES = 256  # that are tagged at once
MAX_COLUMNS = 2  # of a sentence of one word; with more it looks like a sentence of several


class Line(NamedTuple):
    """A line to print, with its token (empty where it has none) and what stands before the tag.

    num_spaced  how many columns spaces separate in it;  number: its number in the file, from 1
    """

    text: str
    token: str
    separator: str
    num_spaced: int = 1
    number: int = 0
    ends_sentence: bool = False


def main(arguments: list[str]) -> None:
    """Prints the predictions, line for line."""
    parser = Parser("predict", __doc__)
    add_model_options(parser)
    parser.add_argument("file", metavar="FILE", help='what to predict for; "-": standard input, answered one by one')
    parser.add_argument("--sentences", action="store_true", help="a tagger: every line is a sentence")
    parser.add_argument(
        "--token-column", type=whole(1, 100), metavar="N",
        help="a tagger: the column of the token, from 1 (default: as in the data of the run)",
    )  # fmt: skip
    parser.add_argument(
        "--probabilities", action="store_true", help="also the probability of what is predicted (max_margin has none)"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, one per sentence or text")
    parser.add_argument("--encoding", help="of the file (default: that of the data which the run learnt from)")
    options = parse(parser, arguments)

    from lmtrain.data.columns import split_words
    from lmtrain.tasks.classify_saved import Classifier
    from lmtrain.tasks.tag_saved import Tagger

    trained = open_any(options)
    if isinstance(trained, Classifier | Tagger):
        is_tagger, words = isinstance(trained, Tagger), '.tokens | join(" ")' if options.sentences else '.tokens[], ""'
        unit = "text" if not is_tagger else "sentence" if options.sentences else "token"
        lines = _lines(options, trained.settings)
        lines = _told_if_empty(lines, options.file, f"Here a line is a {unit}.", words if is_tagger else ".text")
    if isinstance(trained, Classifier):
        label_lines(trained, lines, options)
        return
    if not isinstance(trained, Tagger):
        raise CheckpointError(
            f"{options.run} holds neither a tagger nor a classifier.", "Of word vectors see  python -m lmtrain vectors.",
            f"Of a language model type  python -m lmtrain sample {options.run}  or  score {options.run} FILE.",
        )  # fmt: skip
    if options.probabilities and trained.model.network.objective == "max_margin":
        raise SettingsError(
            f"--probabilities was given for {options.run}, which was trained with model.objective=max_margin.",
            "The scores of max-margin are no probabilities; those of softmax and logistic are.", "Leave it out.",
        )  # fmt: skip
    at_once = 1 if options.file == "-" else SENTENCES
    blocks: Iterator[list[Line]]
    if options.sentences:
        if options.token_column is not None:
            raise SettingsError(
                f"--token-column {options.token_column} was given together with --sentences.",
                "With --sentences a line is a sentence and has no columns.", "Leave one of them out.",
            )  # fmt: skip
        blocks = ([Line(word, word, "/") for word in split_words(line)] for line in lines)
    else:
        blocks = _blocks(_with_tokens(lines, options, trained.columns.token_column))
        if options.token_column is None and trained.columns.token_column == 1:
            blocks = _warned_of_sentences(blocks, _named(options.file))
    for group in _grouped(blocks, at_once):
        for answer in _answers(trained, group, options):
            print(answer)
        if at_once == 1:
            sys.stdout.flush()


def _lines(options: argparse.Namespace, settings: Mapping[str, Any]) -> Iterator[str]:
    """Returns the lines of the file, in the encoding that was typed, or else in that of the run's data, which it says."""
    from lmtrain.data.examples import is_utf8, read_lines

    encoding = options.encoding or (settings.get("data") or {}).get("encoding") or "utf-8"
    try:
        if is_utf8(encoding):
            return _naming_encodings(iter_lines(options.file))
        "".encode(encoding)
    except LookupError:
        raise SettingsError(
            f"--encoding {printable(encoding)} is unknown.",
            "Encodings have names such as utf-8 and latin-1.",
            "Type one of them.",
        ) from None
    if options.encoding is None:
        what = "Standard input" if options.file == "-" else printable(options.file)
        print(
            f"lmtrain: {what} is read as {encoding}, as the data of the run are (--encoding utf-8: as UTF-8).", file=sys.stderr
        )
    if options.file != "-":
        return iter(read_lines(expanded(options.file), encoding, typed="--encoding ")[0])
    return _decoded_input(encoding)


def _naming_encodings(lines: Iterator[str]) -> Iterator[str]:
    """Yields the lines of what should be UTF-8. Where it is not, the error names the option of this command."""
    try:
        yield from lines
    except EncodingError as error:
        raise EncodingError(
            error.given,
            "Text is read as UTF-8 unless --encoding says otherwise.",
            "Type --encoding latin-1 for an older Western European text, or name the encoding that it has.",
        ) from None


def _decoded_input(encoding: str) -> Iterator[str]:
    """Yields the lines of standard input, each as soon as it comes."""
    try:
        for line in io.TextIOWrapper(sys.stdin.buffer, encoding, newline="\n"):
            yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Standard input is not {encoding}: byte 0x{error.object[error.start]:02x}.", "All of it has one encoding.",
            "Name the right one with --encoding.",
        ) from None  # fmt: skip


def _told_if_empty(lines: Iterator[str], file: str, allowed: str, chosen: str) -> Iterator[str]:
    """Yields the lines, and says so if there are none, or if the first is a record of JSON lines."""
    from lmtrain.data.examples import refuse_records
    from lmtrain.errors import DataError

    is_empty = True
    for line in lines:
        if is_empty:
            try:
                refuse_records(line, _named(file), allowed, chosen)
            except DataError as error:  # texts may be records, too
                print(f"lmtrain: {printable(str(error))}", file=sys.stderr)
        is_empty = False
        yield line
    if is_empty:
        what = "Standard input" if file == "-" else printable(file)
        print(f"lmtrain: {what} is empty: there is nothing to predict.", file=sys.stderr)


def label_lines(classifier: Classifier, lines: Iterable[str], options: argparse.Namespace) -> None:
    """Prints the label of each line."""
    for option, is_given in (("--sentences", options.sentences), ("--token-column", options.token_column is not None)):
        if is_given:
            raise SettingsError(
                f"{option} is for taggers.", f"{options.run} holds a classifier, for which every line is a text.",
                "Leave it out.",
            )  # fmt: skip
    is_piped = options.file == "-"
    for line, found in classifier.iter_predictions(lines, at_once=1 if is_piped else SENTENCES):
        if options.json:
            print(json.dumps({"text": line, **found._asdict()}, ensure_ascii=False), flush=is_piped)
            continue
        others = [f"{label}={p:.6f}" for label, p in found.probabilities.items()] if options.probabilities else []
        print(found.label, f"{found.probability:.6f}", *others, line, sep="\t", flush=is_piped)


def _with_tokens(lines: Iterable[str], options: argparse.Namespace, column_of_run: int) -> Iterator[Line]:
    """Yields the lines with their tokens. If the first one has a single column, the file is one of plain words."""
    from lmtrain.data.columns import BLANKS, field_at, is_tabbed, iter_rows, shown_columns

    column = column_of_run if options.token_column is None else options.token_column
    name = _named(options.file)
    has_spaces: bool | None = None  # whether spaces separate the columns of the first line
    is_plain: bool | None = None if options.token_column is None else False
    for row in iter_rows(lines):
        if not row.fields:
            yield Line(row.line, "", "", ends_sentence=row.ends_sentence)
            continue
        has_tab = "\t" in row.line
        fields = (
            row.fields if not has_tab or is_tabbed(row.line) else (row.line.strip(BLANKS),)
        )  # its only tabs are at its ends
        if is_plain is None:
            is_plain = len(fields) == 1 and not has_tab
        if is_plain and len(fields) > 1:
            raise DataError(
                f"Line {row.number:,} of {name} has {len(fields)} columns, and the first has one: {shown_columns(row)}.",
                "A file has a word per line, or columns in every line. A word with a space in it has a tab behind it.",
                "Mend the line; or type --token-column 1 to read the first column, or --sentences if every line is a sentence.",
            )
        token = fields[0] if is_plain else field_at(fields, column)
        if not token:
            raise DataError(
                f"Line {row.number:,} of {name} has no token in column {column}: {shown_columns(row)}.",
                "The token is in the column that --token-column names, or else where the data of the run had it; a file with "
                "one column holds a word per line.",
                "Mend the line; or type for example --token-column 1, or --sentences if every line is a sentence.",
            )
        if has_spaces is None:
            has_spaces = len(fields) > 1 and not has_tab
        separator = " " if has_spaces and not has_tab else "\t"
        num_spaced = 1 if has_tab else len(fields)
        yield Line(row.line.rstrip(BLANKS.replace("\t", "")), token, separator, num_spaced, row.number)


def _blocks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Yields the lines of each sentence, with the line that ends it."""
    block: list[Line] = []
    for line in lines:
        block.append(line)
        if line.ends_sentence:
            yield block
            block = []
    if block:
        yield block


def _grouped(blocks: Iterable[list[Line]], size: int) -> Iterator[list[list[Line]]]:
    group: list[list[Line]] = []
    for block in blocks:
        group.append(block)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _answers(tagger: Tagger, blocks: list[list[Line]], options: argparse.Namespace) -> Iterator[str]:
    tokens = [[line.token for line in block if line.token] for block in blocks]
    for block, tagged in zip(blocks, tagger.tag(tokens), strict=True):
        chances = tagged.probabilities if options.probabilities else None
        if options.json:
            if not tagged.tokens and not options.sentences:
                continue  # blank lines without a sentence before them
            document = {"tokens": tagged.tokens, "tags": tagged.tags, "entities": tagged.entities}
            yield json.dumps(document | ({} if chances is None else {"probabilities": chances}), ensure_ascii=False)
            continue
        found = iter(zip(tagged.tags, *([] if chances is None else [[f"{chance:.6f}" for chance in chances]]), strict=True))
        written = [line.separator.join([line.text, *next(found)]) if line.token else line.text for line in block]
        yield from [" ".join(written)] if options.sentences else written


def _warned_of_sentences(blocks: Iterable[list[Line]], name: str) -> Iterator[list[Line]]:
    """Yields the same, and warns once if lines look like sentences of words between spaces rather than words with columns."""
    first: Line | None = None
    is_told = False
    for block in blocks:
        words = [line for line in block if line.token]
        if words and first is None:
            first = words[0]
            if len(words) == 1 and first.num_spaced > MAX_COLUMNS:
                _tell_of_sentences(first, "and no other line belongs to its sentence", name)
                is_told = True
        odd = next((line for line in words if first and line.num_spaced != first.num_spaced), None)
        if odd and first and not is_told:
            _tell_of_sentences(odd, f"and line {first.number:,} has {counted(first.num_spaced, 'column')}", name)
            is_told = True
        yield block


def _tell_of_sentences(line: Line, problem: str, name: str) -> None:
    print(
        f"lmtrain: Line {line.number:,} of {name} has {counted(line.num_spaced, 'column')}, {problem}. Only one word of each "
        f"line is read, here {one_line(line.token)!r}. Where every line is a sentence, type --sentences; where it is not, "
        "--token-column N names the column that is read.",
        file=sys.stderr,
    )


def _named(file: str) -> str:
    return "standard input" if file == "-" else one_line(file)
