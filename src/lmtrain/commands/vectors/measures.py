"""`vectors analogies` and `vectors similarity` measure how good word vectors are, with the coverage beside every figure."""

from __future__ import annotations

from pathlib import Path

from lmtrain.commands.options import parse, whole
from lmtrain.commands.vectors.options import add_json, open_vectors, print_json, vectors_parser
from lmtrain.shell import expanded, printable

KEEP_CASE = "look words up as they are written; else in lower case where the vectors have no capitals"


def analogies(arguments: list[str]) -> None:
    """`python -m lmtrain vectors analogies RUN|FILE QUESTIONS` prints the accuracy on analogies by section, and in all.

    QUESTIONS is a file such as Google's questions-words.txt: sections, ": name", and lines of four words. The answer to a : b
    :: c : ? is the word nearest to b - a + c, these three left out. Questions with a word that has no vector are not asked:
    the columns say how many were. "gram..." sections are syntactic, the others semantic.
    """
    parser = vectors_parser("analogies", analogies.__doc__)
    parser.add_argument("questions", metavar="QUESTIONS", help="a file of analogies")
    add_method(parser)
    parser.add_argument("--most-frequent", type=whole(1), metavar="N", help="answer with and ask of the first N words alone")
    parser.add_argument("--keep-case", action="store_true", help=KEEP_CASE)
    add_json(parser)
    options = parse(parser, arguments)

    from lmtrain.vectors.analogies import read_questions

    questions = expanded(options.questions)
    read_questions(questions)  # refused before vectors are read, which may take long
    result = open_vectors(options).evaluate_analogies(
        questions, method=options.method, most_frequent=options.most_frequent, keep_case=options.keep_case
    )
    if options.json:
        print_json(_document(options.vectors, questions) | {"most_frequent": options.most_frequent} | result.to_json())
        return
    print(f"{printable(options.vectors)}, {'3CosAdd' if options.method == 'add' else '3CosMul'}:\n{result.format()}")


def similarity(arguments: list[str]) -> None:
    """`python -m lmtrain vectors similarity RUN|FILE PAIRS` prints Spearman's correlation of cosines with human judgements.

    PAIRS is a file such as WordSim-353 or SimLex-999: word, word, score, separated by tabs or commas; comments, a header and
    a number of the row are recognised. Equal values share their average rank. Pairs with a word that has no vector are left
    out, and the number of compared ones is beside the figure. Below are the ten pairs whose ranks are furthest apart.
    """
    parser = vectors_parser("similarity", similarity.__doc__)
    parser.add_argument("pairs", metavar="PAIRS", help="a file of pairs of words with scores")
    parser.add_argument("--keep-case", action="store_true", help=KEEP_CASE)
    add_json(parser)
    options = parse(parser, arguments)

    from lmtrain.vectors.similarity import read_pairs

    pairs = expanded(options.pairs)
    read_pairs(pairs)  # refused before vectors are read
    result = open_vectors(options).evaluate_similarity(pairs, keep_case=options.keep_case)
    if options.json:
        print_json(_document(options.vectors, pairs) | result.to_json())
        return
    print(f"{printable(options.vectors)} on {printable(str(pairs))}:\n{result.format()}")


def add_method(parser: object) -> None:
    """Adds `--method`."""
    assert hasattr(parser, "add_argument")
    parser.add_argument(
        "--method", choices=("add", "mul"), default="add", help="cosine with b - a + c, or 3CosMul (default: add)"
    )


def _document(vectors: str, file: Path) -> dict[str, object]:
    return {"vectors": vectors, "file": str(file)}
