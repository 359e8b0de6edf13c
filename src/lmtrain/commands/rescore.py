"""`python -m lmtrain rescore FILE` prints the best hypothesis of each n-best list that `score --nbest` has written.

    total = score + lm_weight * log-probability + word_penalty * words

More is better; without scores they count as 0. The weights are given (`--weights LM_WEIGHT WORD_PENALTY`), or found on
`--references` as those with the fewest word errors. References are lines of an id and a text, separated as the n-best list was.
Of equal totals the first hypothesis is taken, and a message says how often that happened. The result, a line per id, is printed
to standard output, all else to standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lmtrain.commands.keyed import LOG_NAMES, add_format_option, columns_of
from lmtrain.commands.options import Parser, finite, parse, read_text
from lmtrain.errors import DataError, SettingsError
from lmtrain.quantity import counted
from lmtrain.shell import one_line
from lmtrain.terminal import for_terminal

if TYPE_CHECKING:
    from lmtrain.inference.rescore import Hypothesis


def main(arguments: list[str]) -> None:
    """Prints the best hypothesis of every list."""
    parser = Parser("rescore", __doc__)
    parser.add_argument("file", metavar="FILE", help='what  score --nbest  has written; "-": standard input')
    parser.add_argument(
        "--weights", nargs=2, type=finite, metavar=("LM_WEIGHT", "WORD_PENALTY"), help="leave them out to have them found"
    )
    parser.add_argument(
        "--references", metavar="FILE", help='what was said: the weights are found, or judged, on it; "-": standard input'
    )
    add_format_option(parser)
    parser.add_argument("--json", action="store_true", help="JSON lines; with references the last one is the total")
    options = parse(parser, arguments)
    if options.weights is None and options.references is None:
        raise SettingsError(
            "Neither --weights nor --references was given.", "Weights are given, or found on references.",
            "Type for example --weights 0.7 0, or --references FILE.",
        )  # fmt: skip
    _rescore(options)


def _rescore(options: argparse.Namespace) -> None:
    from lmtrain.inference.rescore import rescore

    lists = _read_lists(options)
    references = None if options.references is None else _read_references(options)
    try:
        made = rescore(lists, weights=None if options.weights is None else tuple(options.weights), references=references)
    except DataError as error:
        if references is None or references.keys() == lists.keys():
            raise
        advice = f"{error.remedy} With --format kaldi, hypotheses are utterance-1 and so on, and the reference is utterance."
        raise DataError(error.given, error.allowed, advice) from error
    separator = " " if options.format == "kaldi" else "\t"
    for key, best in made.best.items():
        row = {"id": key, "text": best.text, "total": best.total(made.weights), "ties": made.ties[key]}
        print(json.dumps(row) if options.json else for_terminal(f"{key}{separator}{best.text}"))
    ties = sum(num_ties > 0 for num_ties in made.ties.values())
    print(
        f"lm_weight {made.weights[0]:.6g} · word_penalty {made.weights[1]:.6g} · {counted(len(lists), 'list')}, "
        f"{ties:,} with a tie",
        file=sys.stderr,
    )
    if made.num_words is None:
        return
    rate = f"{100 * made.errors / made.num_words:.2f} %" if made.num_words else "no rate without words"
    print(
        f"word errors {made.errors:,} of {counted(made.num_words, 'word')} ({rate}); the first of each list makes "
        f"{made.errors_of_first:,}, the best that the lists hold {made.errors_of_best:,}", file=sys.stderr,
    )  # fmt: skip
    if options.json:
        total = {"lm_weight": made.weights[0], "word_penalty": made.weights[1], "ties": ties, "words": made.num_words}
        total |= {"errors": made.errors, "errors_of_the_first": made.errors_of_first, "errors_of_the_best": made.errors_of_best}
        print(json.dumps({"total": total}))


def _read_lists(options: argparse.Namespace) -> dict[str, list[Hypothesis]]:
    """Returns the hypotheses of every id, in the order of the file."""
    from lmtrain.inference.rescore import Hypothesis

    both = (False, True)
    headers = [columns_of(log, score=score, parts=parts) for log in LOG_NAMES.values() for score in both for parts in both]
    of_each = [f"{log}_{number}" for log in LOG_NAMES.values() for number in (1, 2)]  # of two models: the mixture counts
    lists: dict[str, list[Hypothesis]] = {}
    names: list[str] = []
    for number, line in _lines(options.file):
        if not names:
            names = line.split("\t")
            if names not in headers:
                raise DataError(
                    f"The first line of {one_line(options.file)} does not name the columns of a scored n-best list: "
                    f"{one_line(line[:60])!r}.",
                    f"Expected are id, score (if there are any), {' or '.join(LOG_NAMES.values())}, words, unknown and text.",
                    "Type  python -m lmtrain score RUN FILE --nbest > SCORED  and give SCORED.",
                )
            continue
        values = dict(zip(names, line.split("\t", len(names) - 1), strict=False))
        try:
            numbers = {name: float(values[name]) for name in names if name not in ("id", "text", *of_each)}
            lm = next(numbers.pop(name) for name in LOG_NAMES.values() if name in numbers)
            if "text" not in values or not all(map(math.isfinite, numbers.values())) or not lm < math.inf:
                raise ValueError
            if numbers["words"] < 0 or not numbers["words"].is_integer():
                raise ValueError
        except (KeyError, ValueError):
            raise DataError(
                f"Line {number:,} of {one_line(options.file)} is no row of a scored n-best list: {one_line(line[:60])!r}.",
                f"Its columns are {', '.join(names)}, separated by tabs.", "Score the list again.",
            ) from None  # fmt: skip
        hypothesis = Hypothesis(values["text"], numbers.get("score", 0.0), lm, int(numbers["words"]))
        lists.setdefault(_utterance(values["id"], number, options), []).append(hypothesis)
    if not lists:
        raise DataError(
            f"{one_line(options.file)} holds no hypotheses.", "At least one is needed.", "Give a scored n-best list."
        )
    return lists


def _utterance(key: str, number: int, options: argparse.Namespace) -> str:
    """Returns the id that the hypotheses of one list share."""
    if options.format != "kaldi":
        return key
    if not (found := re.fullmatch(r"(.+)-[0-9]+", key)):
        raise DataError(
            f"The id in line {number:,} of {one_line(options.file)} is {one_line(key[:60])!r}.",
            "With --format kaldi ids end with the number of the hypothesis, as in utterance-1.",
            "Leave --format kaldi out where all hypotheses of a list have one id.",
        )
    return found[1]


def _read_references(options: argparse.Namespace) -> dict[str, str]:
    """Returns what was said in each list."""
    references: dict[str, str] = {}
    for number, line in _lines(options.references):
        key, found, text = line.partition(" " if options.format == "kaldi" else "\t")
        if not key or not (found or options.format == "kaldi") or key in references:  # with a space it may say nothing
            raise DataError(
                f"Line {number:,} of {one_line(options.references)} is {one_line(line[:60])!r}.",
                f"A reference is an id, a {'space' if options.format == 'kaldi' else 'tab'} and a text; each id appears once.",
                "Correct that line.",
            )
        references[key] = text
    return references


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file with their numbers, from 1; "-" is standard input."""
    held, number = "", 0
    for block in read_text(path):
        *lines, held = (held + block).split("\n")
        for line in lines:
            number += 1
            yield number, line
    if held:
        yield number + 1, held
