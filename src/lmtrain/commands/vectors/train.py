"""`vectors train` learns word vectors from a text."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmtrain.commands.options import Parser, parse, whole
from lmtrain.commands.vectors.options import FORMATS, new_file
from lmtrain.errors import SettingsError, as_typed
from lmtrain.quantity import counted
from lmtrain.settings.quoting import as_override
from lmtrain.shell import printable, quoted_for_shell, shown

if TYPE_CHECKING:
    from lmtrain.vectors.table import Vectors


TRAINED = ("skipgram", "cbow", "glove")
SETTINGS = {
    "model.embed_size": "size", "model.window": "window", "tokenizer.min_count": "min_count", "trainer.num_epochs": "epochs",
    "trainer.seed": "seed",
}  # fmt: skip
"""The options that stand for settings of a training, by setting."""

TYPED = {name: f"--{option.replace('_', '-')} " for name, option in SETTINGS.items()}


@as_typed(size="--size ", min_count="--min-count ", window="--window ", **TYPED)
def train(arguments: list[str]) -> None:
    """`python -m lmtrain vectors train TEXT --method METHOD --output FILE` learns vectors from words that are neighbours.

    TEXT is a text file, or a directory with train, valid and test, of which only the training split is used.

    svd is the truncated singular value decomposition of the matrix that counts how often two words occur within a window of
    each other, in one line. It reads the whole of a text file. The same text gives the same file on every run.

    skipgram, cbow and glove are trained as every model is, in a run directory, from which training can go on (task=vectors). A
    text file is cut into training, validation and test text first; they learn from its training text alone. The vectors of the
    last checkpoint are written: they measure better than those of the least loss on the validation text. Every other setting
    can be given after --set.
    """
    parser = Parser("vectors train", train.__doc__)
    parser.add_argument("text", metavar="TEXT", help="a text file, or a directory with train, valid and test")
    parser.add_argument("--method", choices=("svd", *TRAINED), required=True, help="how vectors are made")
    parser.add_argument("--output", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, help="of what is written (default: what the name says, or word2vec)")
    add_text_options(parser)
    add_svd_options(parser)
    trained = parser.add_argument_group("skipgram, cbow and glove")
    trained.add_argument("--epochs", type=whole(1), help="how often the text is read (default: 5; glove: 15)")
    trained.add_argument("--seed", type=whole(0, 2**32 - 1), help="of everything random (default: 1)")
    trained.add_argument("--run", metavar="DIRECTORY", help="the run directory (default: outputs/DATE_TIME)")
    trained.add_argument("--set", nargs="+", metavar="SETTING", help="settings such as model.num_negatives=10")
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    output = new_file(options.output)
    vectors = _decomposed(parse(parser, arguments)) if options.method == "svd" else _learnt(options)
    vectors.save(output, format=options.format)
    file, size = quoted_for_shell(shown(output)), vectors.matrix.shape[1]
    print(
        printable(f"Saved in {output}: {counted(len(vectors), 'word')}, {counted(size, 'number')} each. Next:\n")
        + f"  python -m lmtrain vectors neighbours {file} {quoted_for_shell(vectors.words[min(100, len(vectors) - 1)])}"
    )


def _check_options(parser: Parser, options: argparse.Namespace) -> None:
    """Raises SettingsError for an option that the method does not read."""
    is_svd = options.method == "svd"
    names = ("epochs", "seed", "run", "set") if is_svd else ("counts", "weighting", "smoothing", "shift", "power")
    given = [f"--{name}" for name in names if getattr(options, name) != parser.get_default(name)]
    if given:
        raise SettingsError(
            f"{' and '.join(given)} would do nothing for --method {options.method}.",
            f"{'They belong' if len(given) > 1 else 'It belongs'} to --method {'|'.join(TRAINED) if is_svd else 'svd'}.",
            f"Leave {'them' if len(given) > 1 else 'it'} out.",
        )  # fmt: skip


def _decomposed(options: argparse.Namespace) -> Vectors:
    """Returns vectors by singular value decomposition."""
    from lmtrain.vectors.svd import train_svd
    from lmtrain.vectors.text import read_words

    text = read_words(options.text, min_count=options.min_count, max_words=options.max_words, lowercase=options.lowercase)
    least = f" seen {options.min_count} times or more" * (options.min_count > 1)
    print(
        f"{counted(text.num_tokens, 'word')} read, {len(text.words):,} different ones{least} "
        f"({text.counts.sum() / text.num_tokens:.2%} of the text).",
        file=sys.stderr,
    )
    return train_svd(text, **svd_settings(options))


def _learnt(options: argparse.Namespace) -> Vectors:
    """Returns the vectors that a training, like any other, has in the end."""
    from lmtrain.tasks.opening import load_vectors

    settings = {
        "data.path": options.text, "tokenizer.lowercase": options.lowercase,
        "tokenizer.vocab_size": 0 if options.max_words is None else options.max_words + 2,  # with <eos> and <unk>
        **{name: getattr(options, option) for name, option in SETTINGS.items()}, "hydra.run.dir": options.run,
    }  # fmt: skip
    of_method = "experiment=glove" if options.method == "glove" else f"task=vectors model={options.method}"
    overrides = [
        f"{name}={as_override(value)}"
        for name, value in settings.items() if value is not None
    ]  # fmt: skip
    run_module = import_module("lmtrain.run")  # by name, because it is above commands
    try:
        run = run_module.train(*of_method.split(), *overrides, *(options.set or []))
    except KeyboardInterrupt:
        print("Write its vectors with  python -m lmtrain vectors export RUN --checkpoint last --output FILE", file=sys.stderr)
        raise
    return load_vectors(run.path, checkpoint="last")


def add_text_options(parser: argparse._ActionsContainer) -> None:
    """Adds the options that say which words of a text are read."""
    parser.add_argument("--min-count", type=whole(1), default=5, help="rarer words get no vector (default: 5)")
    parser.add_argument("--max-words", type=whole(1), metavar="N", help="only the N most frequent words get one")
    parser.add_argument("--lowercase", action="store_true", help="read the text in lower case")


def add_svd_options(parser: argparse._ActionsContainer) -> None:
    """Adds the options that say how pairs are counted, weighted and decomposed."""
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
    """Returns the options of `add_svd_options` as `train_svd` takes them."""
    return {name: getattr(options, name) for name in ("size", "counts", "window", "weighting", "smoothing", "shift", "power")}


def number(least: float, most: float = 1000) -> Callable[[str], float]:
    """Is the `type=` of an option that takes numbers from `least` to `most`."""

    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from {least:g} to {most:g}")
        return value

    return parse_number
