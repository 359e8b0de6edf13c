"""`python -m lmtrain compare RUN_A RUN_B [FILE]` shows where one language model beats another, and how sure that is.

Models of one vocabulary are compared token by token: by how often a token occurs in training text, by its place in the line and
in the sentence, by token, and the twenty that differ most in their context. Models of other tokens are compared line by line,
per character and byte, if neither has unknown words that it does not spell; so are a forward and a backward model. The
difference has an interval by a paired bootstrap over lines. Without a FILE, the test text that was saved with a model is taken.
"""

from __future__ import annotations

import argparse
import json

from lmtrain.commands.options import Parser, add_speed_options, computing, field_of, open_model, parse, read_text, whole
from lmtrain.errors import SettingsError
from lmtrain.terminal import for_terminal


def main(arguments: list[str]) -> None:
    """Prints the comparison."""
    parser = Parser("compare", __doc__)
    parser.add_argument("run_a", metavar="RUN_A", help="a run directory, a checkpoint directory or a mixture")
    parser.add_argument("run_b", metavar="RUN_B", help="another one")
    parser.add_argument("file", metavar="FILE", nargs="?", help='a text of your own; "-": standard input')
    parser.add_argument("--split", choices=("test", "valid"), help="that was saved with a model (default: test)")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="of run directories (default: best)")
    parser.add_argument("--independent", action="store_true", help="no line sees the lines before it")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=1, metavar="N", help="of the bootstrap (default: 1)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--tsv", action="store_true", help="one table for programs, with all numbers")
    output.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    add_speed_options(parser)
    options = parse(parser, arguments)
    if options.split and options.file:
        raise SettingsError(
            f"--split {options.split} was given together with {options.file}.",
            "Either says which text.",
            "Leave one of them out.",
        )

    from lmtrain.inference.comparison_text import tsv
    from lmtrain.tasks.comparing import compare_saved

    first, second = (argparse.Namespace(**vars(options) | {"run": run}) for run in (options.run_a, options.run_b))
    blocks = read_text(options.file, field=field_of(first, options.file)) if options.file else None
    a, b = open_model(first), open_model(second)
    with computing(options):
        found = compare_saved(
            a, b, blocks, labels=(options.run_a, options.run_b), split=options.split or "test",
            independent=options.independent, seed=options.seed, device=options.device,
        )  # fmt: skip
    if options.json:
        print(json.dumps(found.to_json()))
    elif options.tsv:
        for row in tsv(found):
            print(for_terminal(row))
    else:
        print(for_terminal(found.format()))
