"""`python -m lmtrain arpa SOURCE --output TARGET` converts n-gram models to and from ARPA files, as KenLM and SRILM write them.

It makes a file from a run directory (packed where its name ends in .gz, .bz2 or .xz), and from a file (also a packed one) a
directory that `evaluate`, `score`, `sample` and `mix` take. Characters and subwords are written so that spaces survive (as
<0x20>). Such a file is read with --like RUN, which says how text becomes those tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lmtrain.commands.options import Parser, new_directory, new_path, parse
from lmtrain.errors import SettingsError
from lmtrain.shell import printable, quoted_for_shell, shown


def main(arguments: list[str]) -> None:
    """Writes the file or the directory and says what is in it."""
    parser = Parser("arpa", __doc__, behind="--output")
    parser.add_argument("source", metavar="SOURCE", help="a run or checkpoint directory of model=ngram, or an ARPA file")
    parser.add_argument("--output", metavar="TARGET", required=True, help="the ARPA file, or the directory of the model")
    parser.add_argument(
        "--like", metavar="RUN", help="of a file: with the tokenizer and the texts of RUN, so that the two can be mixed"
    )
    options = parse(parser, arguments)
    output = new_path(options.output)
    from_file = Path(options.source).is_file()
    if options.like and not from_file:
        raise SettingsError(
            f"--like {options.like} was given, but {options.source} is not a file.",
            "It says which vocabulary a model from an ARPA file takes.",
            "Leave it out.",
        )

    from lmtrain.models.arpa import listed
    from lmtrain.saved import export_arpa, import_arpa, load_trained

    if from_file:
        with new_directory(options.output) as unfinished:
            model = import_arpa(Path(options.source), unfinished, load_trained(options.like) if options.like else None)
        text = "" if options.like else " FILE"
        next_step = f" Next:\n  python -m lmtrain evaluate {quoted_for_shell(shown(output))}{text}"
    else:
        trained = load_trained(options.source)
        model, next_step = export_arpa(trained, output), ""
        if trained.tokenizer.reverse:
            print(
                "The model is a backward one: before a line is scored by the file, its tokens must be turned round.",
                file=sys.stderr,
            )
    numbers = ", ".join(f"{number:,}" for number in listed(model))
    print(f"Saved in {printable(str(output))}: order {model.order}, n-grams of each order: {numbers}.{next_step}")
