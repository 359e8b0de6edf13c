"""`vectors neighbours` and `vectors analogy`: word vectors looked at by hand."""

from __future__ import annotations

from lmtrain.commands.options import parse, whole
from lmtrain.commands.vectors.measures import add_method
from lmtrain.commands.vectors.options import add_json, open_vectors, print_json, vectors_parser
from lmtrain.errors import DataError, SettingsError
from lmtrain.shell import one_line

NUMBER = "how many words are shown (default: 10)"


def neighbours(arguments: list[str]) -> None:
    """`python -m lmtrain vectors neighbours RUN|FILE WORD...`: the words of the largest cosine with each word."""
    parser = vectors_parser("neighbours", neighbours.__doc__)
    parser.add_argument("words", metavar="WORD", nargs="+", help="words to look up, as the vectors write them")
    parser.add_argument("--number", type=whole(1), default=10, help=NUMBER)
    add_json(parser, "a list of words and cosines for each word")
    options = parse(parser, arguments)

    vectors = open_vectors(options)
    vectors.rows(options.words)  # which names all that are missing at once
    found = {word: vectors.neighbours(word, options.number) for word in options.words}
    if options.json:
        print_json({word: [{"word": near, "cosine": cosine} for near, cosine in near] for word, near in found.items()})
        return
    for word, near in found.items():
        print(f"{one_line(word)}\n" + _table(near))


def analogy(arguments: list[str]) -> None:
    """`python -m lmtrain vectors analogy RUN|FILE A B C`: the words that are to C as B is to A, for example man woman king."""
    parser = vectors_parser("analogy", analogy.__doc__)
    parser.add_argument("words", metavar="A B C", nargs="*", help="three words: A is to B as C is to ...?")
    add_method(parser)
    parser.add_argument("--number", type=whole(1), default=10, help=NUMBER)
    add_json(parser, "the words with their scores")
    options = parse(parser, arguments)
    if len(options.words) != 3:
        raise SettingsError(
            f"{len(options.words)} words were given.", "An analogy has three: A is to B as C is to ...?",
            "Type for example  python -m lmtrain vectors analogy outputs/RUN man woman king.",
        )  # fmt: skip
    a, b, c = options.words

    vectors = open_vectors(options)
    found = vectors.analogy(a, b, c, options.number, method=options.method)
    if not found:
        raise DataError("No word is left to answer.", "The three words themselves are no answers.", "Give larger vectors.")
    if options.json:
        print_json([{"word": word, "score": score} for word, score in found])
        return
    print(f"{one_line(f'{a} : {b} :: {c} : ?')}\n{_table(found)}")


def _table(ranking: list[tuple[str, float]]) -> str:
    width = max((len(one_line(word)) for word, _ in ranking), default=0)
    return "\n".join(f"  {one_line(word):<{width}}  {score:.4f}" for word, score in ranking)
