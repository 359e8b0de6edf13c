"""`vectors senses` finds the senses of a word, by the windows around it or as atoms, and tests that on words made of two."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lmtrain.commands.options import Parser, parse, whole
from lmtrain.commands.vectors.options import add_json, add_source_options, new_file, open_vectors, print_json
from lmtrain.commands.vectors.train import add_svd_options, add_text_options, svd_settings
from lmtrain.errors import SettingsError, as_typed

if TYPE_CHECKING:
    from lmtrain.vectors.table import Vectors
    from lmtrain.vectors.text import Text

AS_TYPED = {"number": "--num-atoms ", "sparsity": "--sparsity ", "size": "--size ", "min_count": "--min-count "}


@as_typed(**AS_TYPED)
def senses(arguments: list[str]) -> None:
    """`python -m lmtrain vectors senses RUN|FILE WORD --data TEXT` prints the senses of a word.

    --method cluster (default) clusters the windows around WORD in TEXT and shows of each cluster its size, the words that tell
    it from the others, and two windows. --method atoms needs no TEXT: it learns directions of which every vector is a sum of
    a few, and shows those of WORD.

    --retrain renames the occurrences of WORD by their cluster (bank_1, bank_2) and trains vectors again by singular value
    decomposition, so that each sense has one; --output writes them.

    Two tests with known answers: --pseudo-word A B clusters the windows of A and B together and says how well the clusters tell
    them apart (adjusted Rand index). --check-superposition A B, without RUN|FILE, merges A and B in TEXT, trains vectors by
    singular value decomposition and compares the merged word's with the sum of theirs.
    """
    parser = _parser()
    options = parse(parser, arguments)
    _check_retrain(options)
    if options.check_superposition:
        _superposition(options)
    elif options.pseudo_word:
        _pseudo_word(options)
    elif options.method == "atoms":
        _atoms(options)
    else:
        _clusters(options)


def _parser() -> Parser:
    parser = Parser("vectors senses", senses.__doc__)
    parser.add_argument("vectors", metavar="RUN|FILE", nargs="?", help="a run or checkpoint directory, or a file of vectors")
    parser.add_argument("word", metavar="WORD", nargs="?", help="the word")
    add_source_options(parser)
    parser.add_argument("--data", metavar="TEXT", help="a text file, or a directory whose training split is read")
    parser.add_argument("--method", choices=("cluster", "atoms"), default="cluster", help="(default: cluster)")
    parser.add_argument("--k", type=_number_of_senses, default=None, metavar="K", help="clusters, or auto: by silhouette")
    parser.add_argument("--seed", type=whole(0), default=1, help="of k-means and of the dictionary (default: 1)")
    parser.add_argument(
        "--num-atoms", type=whole(1, 100_000), default=500, metavar="A", help="of the dictionary (default: 500)"
    )
    parser.add_argument(
        "--sparsity", type=whole(1, 1000), help="atoms of a word at the most (default: 5, or as many as there can be)"
    )
    parser.add_argument("--retrain", action="store_true", help="train vectors again, with a name for each cluster")
    parser.add_argument("--output", metavar="FILE", help="of --retrain: writes these vectors in word2vec's text format")
    add_json(parser)
    tests = parser.add_argument_group("tests with known answers")
    tests.add_argument("--pseudo-word", nargs=2, metavar=("A", "B"), help="cluster the windows of both together")
    tests.add_argument("--check-superposition", nargs=2, metavar=("A", "B"), help="merge them, train, and compare")
    trained = parser.add_argument_group(
        "of --retrain and --check-superposition: how vectors are trained (--window also of clusters)"
    )
    add_text_options(trained)
    add_svd_options(trained)
    return parser


def _check_retrain(options: argparse.Namespace) -> None:
    """Raises SettingsError for --retrain beside what excludes it, and for --output without it."""
    others = {"--check-superposition": options.check_superposition, "--pseudo-word": options.pseudo_word,
              "--method atoms": options.method == "atoms"}  # fmt: skip
    given = [name for name, value in others.items() if value]
    if options.retrain and given:
        raise SettingsError(
            f"--retrain was given with {given[0]}.", "It needs clusters of one word's windows.", "Leave one out."
        )
    if options.output is not None and not options.retrain:
        raise SettingsError(
            "--output was given without --retrain.", "The vectors of that are written.", "Type --retrain as well."
        )


def _number_of_senses(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return whole(1, 1000)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def _need(options: argparse.Namespace, *names: str) -> None:
    """Raises SettingsError if one of the arguments `names` is missing."""
    shown = {"vectors": "RUN|FILE", "word": "WORD", "data": "--data TEXT"}
    missing = [shown[name] for name in names if getattr(options, name) is None]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.", "",
            "Type for example  python -m lmtrain vectors senses vectors.txt bank --data text.txt.",
        )  # fmt: skip


def _read(options: argparse.Namespace) -> tuple[Vectors, Text]:
    """Returns the vectors, and the whole text, in lower case if the vectors have no capitals."""
    from lmtrain.vectors.text import read_words

    vectors = open_vectors(options)
    return vectors, read_words(options.data, min_count=1, lowercase=options.lowercase or not vectors.has_capitals)


def _clusters(options: argparse.Namespace) -> None:
    from lmtrain.vectors.senses import find_senses

    _need(options, "vectors", "word", "data")
    output = None if options.output is None else new_file(options.output)
    vectors, text = _read(options)
    found = find_senses(vectors, text, [options.word], number=options.k, window=options.window, seed=options.seed)
    if not options.retrain:
        print_json(found.to_json()) if options.json else print(found.format())
        return
    from lmtrain.vectors.retrain import retrain

    again = retrain(text, found, min_count=options.min_count, **svd_settings(options))
    print_json(found.to_json() | {"retrained": again.to_json()}) if options.json else print(
        f"{found.format()}\n\n{again.format()}"
    )
    if output is not None:
        again.vectors.save(output)


def _pseudo_word(options: argparse.Namespace) -> None:
    import numpy as np

    from lmtrain.vectors.senses import adjusted_rand_index, find_senses

    _need(options, "vectors", "data")
    if options.word is not None or len(set(options.pseudo_word)) == 1:
        raise SettingsError(
            f"--pseudo-word was given {'with WORD' if options.word is not None else 'one word twice'}.",
            "It takes two words, whose windows are clustered together.", "Leave WORD out, and give two words.",
        )  # fmt: skip
    vectors, text = _read(options)
    words = options.pseudo_word
    found = find_senses(vectors, text, words, number=options.k or 2, window=options.window, seed=options.seed)
    truth = (text.ids[found.positions] == text.row(words[1])).astype(np.int64)
    index, majority = adjusted_rand_index(truth, found.labels), float(max(truth.mean(), 1 - truth.mean()))
    if options.json:
        print_json(found.to_json() | {"adjusted_rand_index": index, "majority_share": majority})
        return
    print(f"{found.format()}\n\nadjusted Rand index {index:.3f} (the more frequent word has {majority:.1%} of the windows)")


def _atoms(options: argparse.Namespace) -> None:
    from lmtrain.vectors.atoms import learn_atoms

    _need(options, "vectors", "word")
    vectors = open_vectors(options)
    vectors.rows([options.word])
    found = learn_atoms(vectors, number=options.num_atoms, sparsity=options.sparsity, seed=options.seed)
    print_json(found.to_json(options.word)) if options.json else print(found.format(options.word))


def _superposition(options: argparse.Namespace) -> None:
    from lmtrain.vectors.superposition import check_superposition
    from lmtrain.vectors.text import read_words

    _need(options, "data")
    if options.vectors is not None:
        raise SettingsError(
            f"{options.vectors} was given with --check-superposition.", "That trains vectors of its own.", "Leave it out."
        )
    text = read_words(options.data, min_count=options.min_count, max_words=options.max_words, lowercase=options.lowercase)
    found = check_superposition(text, *options.check_superposition, **svd_settings(options))
    print_json(found.to_json()) if options.json else print(found.format())
