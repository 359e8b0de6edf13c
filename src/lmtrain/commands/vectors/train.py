"""`vectors train`: word vectors from a text."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

from lmtrain.commands.options import Parser, parse, whole
from lmtrain.commands.vectors.options import FORMATS, new_file
from lmtrain.errors import as_typed
from lmtrain.shell import printable, quoted_for_shell, shown


@as_typed(size="--size ", min_count="--min-count ", window="--window ")
def train(arguments: list[str]) -> None:
    """`python -m lmtrain vectors train TEXT --method svd --output FILE`: vectors from the words that stand together in a text.

    TEXT is a text file, or a directory with train, valid and test, of which the training split alone is read. svd is the
    truncated singular value decomposition of the matrix that counts how often two words stand within a window of each other, in
    one line. The same text gives the same file on every run.
    """
    parser = Parser("vectors train", train.__doc__)
    parser.add_argument("text", metavar="TEXT", help="a text file, or a directory with train, valid and test")
    parser.add_argument("--method", choices=("svd",), required=True, help="how vectors are made")
    parser.add_argument("--output", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, default="word2vec", help="of what is written (default: word2vec)")
    add_text_options(parser)
    add_svd_options(parser)
    options = parse(parser, arguments)
    output = new_file(options.output)

    from lmtrain.vectors.svd import train_svd
    from lmtrain.vectors.text import read_words

    text = read_words(options.text, min_count=options.min_count, max_words=options.max_words, lowercase=options.lowercase)
    print(
        f"{text.num_tokens:,} words read, {len(text.words):,} different ones seen {options.min_count} times or more "
        f"({text.counts.sum() / text.num_tokens:.2%} of the text).",
        file=sys.stderr,
    )
    vectors = train_svd(text, **svd_settings(options))
    vectors.save(output, format=options.format)
    file = quoted_for_shell(shown(output))
    print(
        printable(f"Saved in {output}: {len(vectors):,} words, {options.size} numbers each. Next:\n")
        + f"  python -m lmtrain vectors neighbours {file} {quoted_for_shell(text.words[min(100, len(text.words) - 1)])}"
    )


def add_text_options(parser: argparse._ActionsContainer) -> None:
    """Which words of a text are read."""
    parser.add_argument("--min-count", type=whole(1), default=5, help="rarer words get no vector (default: 5)")
    parser.add_argument("--max-words", type=whole(1), metavar="N", help="only the N most frequent words get one")
    parser.add_argument("--lowercase", action="store_true", help="read the text in lower case")


def add_svd_options(parser: argparse._ActionsContainer) -> None:
    """How pairs are counted, weighed and decomposed."""
    parser.add_argument("--size", type=whole(1), default=100, help="numbers of a vector (default: 100)")
    parser.add_argument(
        "--counts", choices=("raw", "sqrt", "log", "ppmi"), default="ppmi",
        help="counts as they are, their square roots, log(1 + count), or positive pointwise mutual information (default)",
    )  # fmt: skip
    parser.add_argument("--window", type=whole(1, 1000), default=5, help="words to each side that count (default: 5)")
    parser.add_argument(
        "--weighting", choices=("harmonic", "flat"), default="harmonic",
        help="a word at distance d counts 1/d (default), or 1",
    )  # fmt: skip
    parser.add_argument("--smoothing", type=number(0), default=0.75, help="power of context counts in ppmi (default: 0.75)")
    parser.add_argument("--shift", type=number(1), default=1.0, help="ppmi minus its logarithm (default: 1)")
    parser.add_argument("--power", type=number(0), default=0.5, help="power of the singular values (default: 0.5)")


def svd_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_svd_options` as `train_svd` takes them."""
    return {name: getattr(options, name) for name in ("size", "counts", "window", "weighting", "smoothing", "shift", "power")}


def number(least: float, most: float = 1000) -> Callable[[str], float]:
    """The `type=` of an option that takes numbers from `least` to `most`."""

    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from {least:g} to {most:g}")
        return value

    return parse_number
