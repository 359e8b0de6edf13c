"""`vectors neighbours`, `analogy`, `plot` and `moved` show word vectors."""

from __future__ import annotations

from lmtrain.commands.options import Parser, parse, whole
from lmtrain.commands.vectors.measures import add_method
from lmtrain.commands.vectors.options import add_json, add_source_options, new_file, open_vectors, print_json, vectors_parser
from lmtrain.errors import DataError, SettingsError
from lmtrain.quantity import counted
from lmtrain.shell import num_columns, one_line, padded, printable

NUMBER = "how many words are shown (default: 10)"


def neighbours(arguments: list[str]) -> None:
    """`python -m lmtrain vectors neighbours RUN|FILE WORD...` prints the words of the largest cosine with each word.

    Words that have no vector are named behind what there is for the others, and the exit code is 3.
    """
    parser = vectors_parser("neighbours", neighbours.__doc__)
    parser.add_argument("words", metavar="WORD", nargs="+", help="words to look up, as the vectors write them")
    parser.add_argument("--number", type=whole(1), default=10, help=NUMBER)
    add_json(parser, "a list of words and cosines for each word")
    options = parse(parser, arguments)

    from lmtrain.vectors.table import ranking_to_json

    vectors = open_vectors(options)
    found = {word: vectors.neighbours(word, options.number) for word in options.words if vectors.row(word) is not None}
    if options.json and found:
        print_json({word: ranking_to_json(near) for word, near in found.items()})
    else:
        for word, near in found.items():
            print(f"{one_line(word)}\n" + _table(near))
    vectors.rows(options.words)  # this names all missing words at once


def analogy(arguments: list[str]) -> None:
    """`python -m lmtrain vectors analogy RUN|FILE A B C` prints the words that are to C as B is to A (man woman king)."""
    parser = vectors_parser("analogy", analogy.__doc__)
    parser.add_argument("words", metavar="A B C", nargs="*", help="three words: A is to B as C is to ...?")
    add_method(parser)
    parser.add_argument("--number", type=whole(1), default=10, help=NUMBER)
    add_json(parser, "the words with their scores")
    options = parse(parser, arguments)
    if len(options.words) != 3:
        raise SettingsError(
            f"The analogy was given {counted(len(options.words), 'word')}.", "An analogy has three: A is to B as C is to ...?",
            "Type for example  python -m lmtrain vectors analogy outputs/RUN man woman king.",
        )  # fmt: skip
    a, b, c = options.words

    from lmtrain.vectors.table import ranking_to_json

    vectors = open_vectors(options)
    found = vectors.analogy(a, b, c, options.number, method=options.method)
    if not found:
        raise DataError("No word is left to answer.", "The three words themselves are no answers.", "Give larger vectors.")
    if options.json:
        print_json(ranking_to_json(found, "score"))
        return
    print(f"{one_line(f'{a} : {b} :: {c} : ?')}\n{_table(found)}")


def plot(arguments: list[str]) -> None:
    """`python -m lmtrain vectors plot RUN|FILE WORD... --output FILE.svg` draws words on two principal axes.

    A WORD written man:woman is a pair: both words, joined by a line.
    """
    parser = vectors_parser("plot", plot.__doc__)
    parser.add_argument("words", metavar="WORD", nargs="*", help="words, and pairs of words such as man:woman")
    parser.add_argument("--most-frequent", type=whole(1, 1000), metavar="N", help="also the first N words")
    parser.add_argument("--output", metavar="FILE", required=True, help="the SVG file to write")
    options = parse(parser, arguments)
    output = new_file(options.output, (".svg",))

    from lmtrain.vectors.plot import draw_words
    from lmtrain.vectors.plot import write as write_svg

    vectors = open_vectors(options)
    pairs = [(first, second) for first, second in map(_pair, options.words) if second and f"{first}:{second}" not in vectors]
    joined = {f"{first}:{second}" for first, second in pairs}
    words = [word for word in options.words if word not in joined]
    first = [word for row, word in enumerate(vectors.words[: options.most_frequent or 0]) if vectors.matrix[row].any()]
    write_svg(draw_words(vectors, [*words, *first], pairs), output)
    print(printable(f"Saved in {output}."))


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(":")
    return first, second if first else ""


def moved(arguments: list[str]) -> None:
    """`python -m lmtrain vectors moved RUN|FILE RUN|FILE` shows how far each word moved, by the cosine of its two vectors.

    For example from the first checkpoint of a run to its best one, or from vectors to those that a training made from them.
    Words that never moved are counted: training did not meet them.
    """
    parser = Parser("vectors moved", moved.__doc__)
    parser.add_argument("before", metavar="BEFORE", help="a run or checkpoint directory, or a file of vectors")
    parser.add_argument("after", metavar="AFTER", help="the same for the vectors afterwards")
    add_source_options(parser)
    parser.add_argument("--align", action="store_true", help="turn the first onto the second, for two trainings of their own")
    parser.add_argument("--number", type=whole(1), default=10, help=NUMBER)
    add_json(parser)
    options = parse(parser, arguments)

    from lmtrain.vectors.moved import compare_vectors

    result = compare_vectors(open_vectors(options, options.before), open_vectors(options, options.after), align=options.align)
    if options.json:
        print_json({"before": options.before, "after": options.after} | result.to_json(options.number))
        return
    print(result.format(options.number))


def _table(ranking: list[tuple[str, float]]) -> str:
    width = max((num_columns(one_line(word)) for word, _ in ranking), default=0)
    return "\n".join(f"  {padded(one_line(word), width)}  {score:.4f}" for word, score in ranking)
