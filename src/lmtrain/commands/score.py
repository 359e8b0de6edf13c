"""`python -m lmtrain score RUN FILE`: the natural logarithm of every line's probability, then the total with its perplexity.

A model that was trained with `model.state_policy=carry`, the default, goes on from line to line as in a running text, so
the number of a line depends on those before it. Lines that are to be compared, such as n-best lists, are scored with
`--independent`. The logarithm is -inf where the probability is zero; `--per-token` shows of which token.
"""

from __future__ import annotations

import json

from lmtrain.commands.options import (
    JSON_NULLS,
    Parser,
    add_method_options,
    add_model_options,
    choose_method,
    open_model,
    parse,
    read_text,
)
from lmtrain.errors import SettingsError


def main(arguments: list[str]) -> None:
    """Prints a row per line (number, natural log-probability, tokens, unknown words), then the bill of all."""
    parser = Parser("score", __doc__, JSON_NULLS)
    add_model_options(parser)
    parser.add_argument("file", metavar="FILE", help='text to score; "-": standard input')
    parser.add_argument(
        "--independent", action="store_true", help="every line by itself, whatever stands before it (n-best lists, filtering)"
    )
    parser.add_argument("--per-token", action="store_true", help="also every token's log-probability")
    parser.add_argument("--json", action="store_true", help="JSON lines; the last one is the total")
    add_method_options(parser)
    options = parse(parser, arguments)

    if options.independent and (options.dynamic or options.cache):
        raise SettingsError(
            "--independent was given together with --dynamic or --cache.",
            "These carry what was read from line to line.",
            "Leave out one of them.",
        )

    from lmtrain.inference.score import HEADER, ScoredLine, format_line, line_to_json, score_text
    from lmtrain.models.base import StatePolicy

    def show(line: ScoredLine) -> None:
        if line.number == 1 and not options.json:
            print(HEADER)
        print(json.dumps(line_to_json(line)) if options.json else format_line(line))

    text = read_text(options.file)
    trained = open_model(options)
    if options.independent:
        trained.model.forget_at(StatePolicy.line)
    method = choose_method(options, trained)
    bill = score_text(
        trained.model, trained.tokenizer, text, on_line=show, per_token=options.per_token,
        method=method, device=options.device,
    )  # fmt: skip
    print(json.dumps({"total": bill.to_json()}) if options.json else f"\n{bill.format()}")
