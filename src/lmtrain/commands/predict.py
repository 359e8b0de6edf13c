"""`python -m lmtrain predict RUN FILE` tags sentences with a trained tagger, and labels texts with a trained classifier.

For a tagger (task=tag) the file has a token per line, in its first column, and a blank line between sentences. Every line is
printed as it was, followed by a tab and its tag. With `--sentences` each line is a sentence, with spaces between tokens.

For a classifier (task=classify) every line is a text without a label. It is printed after its label and the label's
probability, with tabs between; with `--probabilities`, those of the other labels come before the text, too.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lmtrain.commands.options import Parser, add_model_options, iter_lines, open_any, parse
from lmtrain.errors import CheckpointError, DataError, SettingsError
from lmtrain.shell import expanded, printable

if TYPE_CHECKING:
    from lmtrain.tasks.classify_saved import Classifier
    from lmtrain.tasks.tag_saved import Tagger

SENTENCES = 256  # that are tagged at once
MAX_COLUMNS = 2  # of a sentence of one word; with more it looks like a sentence of several


def main(arguments: list[str]) -> None:
    """Prints the predictions, line for line."""
    parser = Parser("predict", __doc__)
    add_model_options(parser)
    parser.add_argument("file", metavar="FILE", help='what to predict for; "-": standard input, answered one by one')
    parser.add_argument("--sentences", action="store_true", help="a tagger: every line is a sentence")
    parser.add_argument("--probabilities", action="store_true", help="also the probability of what is predicted")
    parser.add_argument("--json", action="store_true", help="JSON lines, one per sentence or text")
    parser.add_argument("--encoding", help="of the file (default: that of the data which the run learnt from)")
    options = parse(parser, arguments)

    from lmtrain.tasks.classify_saved import Classifier
    from lmtrain.tasks.tag_saved import Tagger

    trained = open_any(options)
    if isinstance(trained, Classifier | Tagger):
        lines = _told_if_empty(_lines(options, trained.settings), options.file)
    if isinstance(trained, Classifier):
        label_lines(trained, lines, options)
        return
    if not isinstance(trained, Tagger):
        raise CheckpointError(
            f"{options.run} holds neither a tagger nor a classifier.", "Of word vectors see  python -m lmtrain vectors.",
            f"Of a language model type  python -m lmtrain sample {options.run}  or  score {options.run} FILE.",
        )  # fmt: skip
    at_once = 1 if options.file == "-" else SENTENCES
    blocks = ([line, None] for line in lines) if options.sentences else _blocks(lines)
    for number, block in enumerate(_grouped(blocks, at_once)):
        if number == 0 and not options.sentences:
            _warn_of_sentences(block[0])
        for answer in _answers(trained, block, options.sentences, options.probabilities, options.json):
            print(answer)
        if at_once == 1:
            sys.stdout.flush()


def _lines(options: argparse.Namespace, settings: Mapping[str, Any]) -> Iterator[str]:
    """Returns the lines of the file, in the encoding that was typed, or else in that of the run's data, which it says."""
    from lmtrain.data.examples import is_utf8, read_lines

    encoding = options.encoding or (settings.get("data") or {}).get("encoding") or "utf-8"
    try:
        if is_utf8(encoding):
            return iter_lines(options.file)
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


def _told_if_empty(lines: Iterator[str], file: str) -> Iterator[str]:
    """Yields the lines, and says so if there are none."""
    is_empty = True
    for line in lines:
        is_empty = False
        yield line
    if is_empty:
        what = "Standard input" if file == "-" else printable(file)
        print(f"lmtrain: {what} is empty: there is nothing to predict.", file=sys.stderr)


def label_lines(classifier: Classifier, lines: Iterable[str], options: argparse.Namespace) -> None:
    """Prints the label of each line."""
    if options.sentences:
        raise SettingsError(
            "--sentences is for taggers.", f"{options.run} holds a classifier, for which every line is a text.", "Leave it out."
        )
    is_piped = options.file == "-"
    for line, found in classifier.iter_predictions(lines, at_once=1 if is_piped else SENTENCES):
        if options.json:
            print(json.dumps({"text": line, **found._asdict()}, ensure_ascii=False), flush=is_piped)
            continue
        others = [f"{label}={p:.6f}" for label, p in found.probabilities.items()] if options.probabilities else []
        print(found.label, f"{found.probability:.6f}", *others, line, sep="\t", flush=is_piped)


def _blocks(lines: Iterable[str]) -> Iterator[list[str | None]]:
    """Yields the lines of each sentence and the line that ends it; None at the end of the file."""
    block: list[str | None] = []
    for line in lines:
        block.append(line)
        if _ends_sentence(line):
            yield block
            block = []
    if block:
        yield [*block, None]


def _ends_sentence(line: str) -> bool:
    from lmtrain.data.columns import BLANKS, DOCUMENT

    return not line.strip(BLANKS) or line.startswith(DOCUMENT)


def _grouped(blocks: Iterable[list[str | None]], size: int) -> Iterator[list[list[str | None]]]:
    group: list[list[str | None]] = []
    for block in blocks:
        group.append(block)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _answers(
    tagger: Tagger, blocks: list[list[str | None]], are_sentences: bool, with_probabilities: bool, as_json: bool
) -> Iterator[str]:
    tokens = [_tokens(block, are_sentences) for block in blocks]
    for block, tagged in zip(blocks, tagger.tag(tokens), strict=True):
        chances = tagged.probabilities if with_probabilities else None
        if as_json:
            document = {"tokens": tagged.tokens, "tags": tagged.tags, "entities": tagged.entities}
            yield json.dumps(document | ({} if chances is None else {"probabilities": chances}), ensure_ascii=False)
            continue
        tails = [f"\t{tag}" + ("" if chances is None else f"\t{chances[i]:.6f}") for i, tag in enumerate(tagged.tags)]
        if are_sentences:
            yield " ".join(f"{token}/{tag}" for token, tag in zip(tagged.tokens, tagged.tags, strict=True))
        else:
            yield from (f"{line}{tail}" for line, tail in zip(block, tails, strict=False))
            yield from (line for line in block[-1:] if line is not None)


def _warn_of_sentences(block: list[str | None]) -> None:
    """Warns if a sentence of one line has several words, because it is then hardly a word with its columns."""
    words = (block[0] or "").split(" ")
    if sum(line is not None for line in block) == 1 and len(words) > MAX_COLUMNS and "\t" not in words[0]:
        advice = "Only the first word of each line is read. Where every line is a sentence, type --sentences."
        print(f"lmtrain: {advice}", file=sys.stderr)


def _tokens(block: list[str | None], are_sentences: bool) -> list[str]:
    """Returns the tokens of a block: the first column of each line but the last, or all of the only line."""
    from lmtrain.data.columns import BLANKS

    if are_sentences:
        return (block[0] or "").split()
    return [(line or "").strip(BLANKS).replace("\t", " ").split(" ", 1)[0] for line in block[:-1]]
