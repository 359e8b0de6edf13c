"""`python -m lmtrain score RUN FILE` prints the natural logarithm of every line's probability, then the perplexity of all.

A model that was trained with `model.state_policy=carry`, the default, goes on from line to line as in a running text, so
the number of a line depends on those before it. Lines that are to be compared are scored with `--independent`, many side by
side. The logarithm is -inf if the probability is zero; `--per-token` shows which token has it.

`--nbest` scores the hypotheses of n-best lists and writes them back in their order, each with its id, its score, its
log-probability, its words, its unknown words and its text. `rescore` picks the best.

`--with RUN` also scores every line by a second model, and by the mixture of both over lines, whose evaluation is printed
below. A forward and a backward model (data.reverse=true) are mixed in this way.

`--unit word` says where the model is surprised, and by what; `--html FILE` shows it in colours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext

from lmtrain.commands.keyed import Table, add_keyed_options, choose_columns
from lmtrain.commands.options import (
    JSON_NULLS,
    Parser,
    add_method_options,
    add_model_options,
    add_speed_options,
    choose_method,
    computing,
    field_of,
    finite,
    open_model,
    parse,
    read_text,
    whole,
)
from lmtrain.commands.paired import COLUMNS, Second, Sums, add_pair_options, check_pair_options
from lmtrain.commands.surprise import Rows, add_surprise_options, check_surprise_options, page
from lmtrain.errors import SettingsError
from lmtrain.progress import watched
from lmtrain.shell import expanded, one_line, printable
from lmtrain.terminal import for_terminal


def main(arguments: list[str]) -> None:
    """Prints a row per line (number, natural log-probability, tokens, unknown words), then the evaluation of the whole."""
    parser = Parser("score", __doc__, JSON_NULLS)
    add_model_options(parser)
    parser.add_argument("file", metavar="FILE", help='text to score; "-": standard input')
    parser.add_argument(
        "--independent", action="store_true", help="every line by itself, whatever comes before it (filtering, comparing)"
    )
    parser.add_argument("--per-token", action="store_true", help="also every token's log-probability")
    parser.add_argument("--json", action="store_true", help="JSON lines; the last one is the total")
    parser.add_argument(
        "--batch-tokens", type=whole(1, 1 << 24), help="of lines that --independent scores side by side (default: 4096)"
    )
    parser.add_argument("--flush", action="store_true", help="answer each line as soon as it comes")
    parser.add_argument(
        "--unknown-cost", type=finite, default=0.0, metavar="NATS",
        help="what each unknown word costs besides what the model asks for <unk> (default: 0)",
    )  # fmt: skip
    add_keyed_options(parser)
    add_pair_options(parser)
    add_surprise_options(parser)
    add_speed_options(parser)
    add_method_options(parser)
    options = parse(parser, arguments)
    options.independent |= options.nbest
    columns = choose_columns(options)
    check_surprise_options(options)
    _check(options)
    check_pair_options(options)
    if options.unit or options.html:
        _show_surprise(options, columns)
    else:
        _score(options, columns)


def _check(options: argparse.Namespace) -> None:
    """Raises SettingsError for options that exclude each other."""
    if options.independent and (options.dynamic or options.cache):
        raise SettingsError(
            f"{'--nbest' if options.nbest else '--independent'} was given together with --dynamic or --cache.",
            "These carry what was read from line to line.",
            "Leave out one of them.",
        )
    if options.batch_tokens is not None and not options.independent:
        raise SettingsError(
            "--batch-tokens was given without --independent.",
            "Lines that go on from each other are read one after the other.",
            "Type --independent as well, or leave it out.",
        )
    if options.flush and options.dynamic:
        raise SettingsError(
            "--flush was given together with --dynamic.",
            "Dynamic evaluation learns from segments of equal length, which lines are not.",
            "Leave out one of them.",
        )


def _score(options: argparse.Namespace, columns: tuple[str, ...]) -> None:
    from lmtrain.inference.batch import BATCH_TOKENS
    from lmtrain.inference.evaluate import number_text
    from lmtrain.inference.keyed import KeyedLines
    from lmtrain.inference.score import HEADER, ScoredLine, finite_or_none, format_line, line_to_json, score_text
    from lmtrain.models.base import StatePolicy

    scoring, text = _read(options)
    keyed = KeyedLines(text, columns, options.format or "plain", keep_text=options.nbest) if columns else None
    table = Table(columns, options.log_base or "e", parts=options.other is not None) if options.nbest else None
    trained, sums = open_model(options), Sums()
    second = Second(options, columns, trained) if options.other else None

    def show(line: ScoredLine) -> None:
        before, parts = None if keyed is None else keyed.take(), None
        if second is not None:
            line, parts = second.mix(line)
            sums.add(line, parts)
        if options.json:
            named = {} if parts is None or table is not None else dict(zip(("log_prob_1", "log_prob_2"), parts, strict=True))
            values = ({} if before is None else {"key": before.columns["id"]}) | line_to_json(line) | finite_or_none(named)
            row = json.dumps(values if table is None or before is None else table.to_json(before, line, parts))
        elif table is not None and before is not None:
            row = (f"{table.header()}\n" if line.number == 1 else "") + for_terminal(table.row(before, line, parts))
        else:
            header, key = (HEADER, None) if before is None else ("key" + HEADER.removeprefix("line"), before.columns["id"])
            header += "".join(f"\tlog_prob{column}" for column in COLUMNS) if parts else ""
            own = "".join(f"\t{number_text(part, 6)}" for part in parts or ())
            row = (f"{header}\n" if line.number == 1 else "") + for_terminal(format_line(line, key)) + own
        print(row, flush=options.flush)

    if options.independent:
        trained.model.forget_at(StatePolicy.line)
    if second is not None:
        second.fit()
    with computing(options), scoring:
        result = score_text(
            trained.model, trained.tokenizer, text if keyed is None else keyed, on_line=show, per_token=options.per_token,
            method=choose_method(options, trained), independent=options.independent,
            batch_tokens=options.batch_tokens or BATCH_TOKENS, at_once=options.flush, unknown_cost=options.unknown_cost,
            spelt=second is not None and not second.is_alike, device=options.device,
        )  # fmt: skip
    if second is not None:
        result = second.evaluation(result, sums.nats[0])
    if options.json:
        total = result.to_json() | ({} if second is None else {"lines": sums.to_json()})
        print(json.dumps({"total": total}))
    else:  # below a table it would look like a row
        words = result.format() if second is None else f"{result.format()}\n{sums.format()}"
        print(words if options.nbest else f"\n{words}", file=sys.stderr if options.nbest else sys.stdout)


def _show_surprise(options: argparse.Namespace, columns: tuple[str, ...]) -> None:
    from lmtrain.inference.evaluate import Static
    from lmtrain.inference.keyed import KeyedLines
    from lmtrain.inference.surprise import Unit, UnitName, score_units
    from lmtrain.models.base import StatePolicy

    scoring, text = _read(options)
    keyed = KeyedLines(text, columns, options.format or "plain") if columns else None
    rows = Rows(options.unit, bits=options.bits, keyed=keyed is not None) if options.unit else None
    unit: UnitName = options.unit or "token"
    key: str | None = None
    trained = open_model(options)
    if options.independent:
        trained.model.forget_at(StatePolicy.line)

    def show(found: Unit) -> None:
        nonlocal key
        if found.position == 1 and keyed is not None:
            key = keyed.take().columns["id"]
        if draw is not None:
            draw(found)
        if rows is None:
            return
        if options.json:
            print(rows.to_json(found, key), flush=options.flush)
            return
        if found.line == found.position == 1:
            print(rows.header())
        print(for_terminal(rows.row(found, key)), flush=options.flush)

    title = f"{'standard input' if options.file == '-' else options.file}, read by {trained.path}"
    has_words = trained.tokenizer.kind.has_words or unit == "word"
    drawing = page(options.html, title, unit, has_words) if options.html else nullcontext((None, None))
    with drawing as (draw, end), computing(options), scoring:
        result = score_units(
            trained.model, trained.tokenizer, text if keyed is None else keyed, unit, show, method=Static(options.temperature),
            unknown_cost=options.unknown_cost, at_once=options.flush, device=options.device,
        )  # fmt: skip
        if end is not None:
            end(result.format())
    if options.json:
        print(json.dumps({"total": result.to_json()}))
    else:  # below a table it would look like a row
        print(result.format(), file=sys.stderr if rows is not None else sys.stdout)
    if options.html:
        print(printable(f"Saved in {options.html}."), file=sys.stderr)


def _read(options: argparse.Namespace) -> tuple[ExitStack, Iterator[str]]:
    """Returns the text in blocks, and what is open while it is scored: a bar, where results do not show how far that is."""
    scoring, blocks = ExitStack(), read_text(options.file, at_once=options.flush, field=field_of(options, options.file))
    if options.file == "-" or sys.stdout.isatty():
        return scoring, blocks
    path = expanded(options.file)
    size = path.stat().st_size if path.is_file() else 0

    def counted() -> Iterator[str]:
        advance = scoring.enter_context(watched(f"Scoring {one_line(path.name)}", size, "B"))
        for block in blocks:
            yield block
            advance(len(block.encode(errors="replace")))

    return scoring, counted()
