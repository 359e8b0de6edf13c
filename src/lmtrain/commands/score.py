"""`python -m lmtrain score RUN FILE`: the log-probability of every line, then the total with its perplexity."""

from __future__ import annotations

import argparse
import json

from lmtrain.commands.options import add_method_options, add_model_options, choose_method, open_model, read_text


def main(arguments: list[str]) -> None:
    """Prints a row per line (number, natural log-probability, tokens, unknown words), then the bill of all."""
    parser = argparse.ArgumentParser(prog="python -m lmtrain score", description=__doc__)
    add_model_options(parser)
    parser.add_argument("file", metavar="FILE", help='text to score; "-": standard input')
    parser.add_argument("--per-token", action="store_true", help="also every token's log-probability")
    parser.add_argument("--json", action="store_true", help="JSON lines; the last one is the total")
    add_method_options(parser)
    options = parser.parse_args(arguments)

    from lmtrain.inference.score import HEADER, ScoredLine, format_line, line_to_json, score_text

    def show(line: ScoredLine) -> None:
        print(json.dumps(line_to_json(line)) if options.json else format_line(line))

    trained = open_model(options)
    method = choose_method(options, trained)
    if not options.json:
        print(HEADER)
    bill = score_text(
        trained.model, trained.tokenizer, read_text(options.file), on_line=show, per_token=options.per_token,
        method=method, device=options.device,
    )  # fmt: skip
    print(json.dumps({"total": bill.to_json()}) if options.json else f"\n{bill.format()}")
