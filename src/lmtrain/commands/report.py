"""`python -m lmtrain report RUN ...` shows runs side by side on one HTML page that needs neither a server nor a network.

The page has learning curves, learning rate, gradient norms and speed of all runs in common charts; the table of `runs`;
perplexity by the frequency of words and by their place in the line; the words that are predicted worst; and samples as training
went on. RUN is a run, or a directory with runs below it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmtrain.commands import report_page as draw
from lmtrain.commands.options import Parser, new_path, whole
from lmtrain.commands.report_page import Curve, colour_of
from lmtrain.commands.run_table import Table, by_task, iter_failures, table_of_groups, table_of_runs
from lmtrain.commands.runs import read_runs
from lmtrain.errors import UserError, check_address_space, unwritable
from lmtrain.files.unfinished import new_file
from lmtrain.quantity import counted
from lmtrain.shell import printable, shown
from lmtrain.terminal import warn
from lmtrain.training.markdown import unwrapped
from lmtrain.training.run_record import RunRecord, find_curves, iter_records

EPILOG = """examples:
  report outputs/RUN                      one run, in report.html
  report outputs/sweep --output sweep.html"""

MAX_PREDICTED = 6  # runs whose models are read
MAX_SAMPLES = 6  # of a run
MAX_LETTERS = 600  # of a sample


def main(arguments: list[str]) -> None:
    """Writes the page."""
    parser = Parser("report", __doc__, EPILOG)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories, or directories with runs below them")
    parser.add_argument("--output", metavar="FILE", default="report.html", help="the page (default: report.html)")
    parser.add_argument(
        "--tokens", type=whole(0), default=20_000,
        help="of validation that the models read for the figures of words; 0: none (default: 20000)",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    options = parser.parse_args(arguments)
    output = new_path(options.output)
    records = read_runs(options.runs)
    if options.tokens:
        check_address_space()  # before torch is imported
    text = report(records, options.tokens, options.device)
    try:
        with new_file(output) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            new_path(options.output)  # somebody may have made it in the meantime
    except OSError as error:
        raise unwritable(f"--output {output}", error) from error
    print(printable(f"Saved in {shown(output)}: {counted(len(records), 'run')}. Open it in a browser."))


def report(records: Sequence[RunRecord], most_tokens: int = 20_000, device: str = "cpu") -> str:
    """Returns the page as HTML. The models of the best runs of each task read `most_tokens` tokens of validation."""
    sections: list[str] = []
    for runs in by_task(records):
        sections += _of_task(runs, most_tokens, device)
    if failed := list(iter_failures(records, _name)):
        sections.append(draw.heading("Failed") + "".join(f"<p>{draw.shown(line)}</p>" for line in failed))
    return draw.page(f"{counted(len(records), 'run')} of lmtrain", sections)


def _of_task(runs: Sequence[RunRecord], most_tokens: int, device: str) -> list[str]:
    """Returns the sections of the runs of one task; a run has the same colour in all of them, in the order of the table."""
    table = table_of_runs(runs, _name)
    places = {row[0]: number for number, row in enumerate(table.rows)}
    runs = sorted(runs, key=lambda run: places[_name(run)])
    names = [_name(run) for run in runs]
    sections = [draw.heading(table.heading), _results_first(table, 1)]
    if (groups := table_of_groups(runs, None)) is not None:
        sections += [draw.heading(groups.heading), _results_first(groups, 0)]
    records = [list(iter_records(run.path / "metrics.jsonl")) for run in runs]
    sections += _charts(runs, names, records)
    if runs[0].task == "language" and most_tokens:
        sections += _words(runs, names, most_tokens, device)
    for run, name in zip(runs[:MAX_PREDICTED], names, strict=False):
        sections += _samples(run, name)
    return sections


def _results_first(table: Table, at: int) -> str:
    """Returns the table with its settings, which begin at the column `at`, after the results, because they may be many."""
    end = table.columns.index("seed" if at else "runs")

    def ordered(row: Sequence[str]) -> list[str]:
        return [*row[:at], *row[end:], *row[at:end]]

    return draw.table(ordered(table.columns), [ordered(row) for row in table.rows], table.notes)


def _charts(runs: Sequence[RunRecord], names: Sequence[str], records: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Draws learning curves, rate, gradient norms and speed."""
    measure, items = runs[0].measure, runs[0].items
    loss = measure if any(f"train/{measure}" in line for lines in records for line in lines) else _loss_of(records)

    def curves(tag: str, *, is_dashed: bool = False) -> list[Curve]:
        return [
            Curve(name, [(line["step"], line[tag]) for line in lines if isinstance(line.get(tag), int | float)],
                  colour_of(number), is_dashed)
            for number, (name, lines) in enumerate(zip(names, records, strict=True))
        ]  # fmt: skip

    words, sections = measure.replace("_", " "), [draw.legend(names)]
    both = loss == measure
    drawn = [(
        f"Learning curves: {words}" + (", validation (lines) and training (dots)" if both else " of validation"),
        [*(curves(f"train/{measure}", is_dashed=True) if both else []), *curves(f"val/{measure}")], words, False,
    )]  # fmt: skip
    if not both and loss:
        drawn.append((f"Training: {loss.replace('_', ' ')}", curves(f"train/{loss}"), loss.replace("_", " "), False))
    drawn += [
        ("Learning rate", curves("optim/learning_rate"), "learning rate", False),
        ("Gradient norm, before clipping", curves("optim/grad_norm"), "norm", True),
        (f"Speed: {items} per second", curves(f"perf/{items}_per_second"), f"{items}/s", False),
    ]
    for title, lines, label, log in drawn:
        if svg := draw.chart(lines, "step", label, log=log):
            sections += [draw.heading(title), svg]
    return sections if len(sections) > 1 else []


def _loss_of(records: Sequence[list[dict[str, Any]]]) -> str:
    """Returns the name of the loss that these runs train by, as their records have it; empty if there is none."""
    others = ("train/epoch", "train/perplexity", "train/penalty", "train/tokens", "train/windows", "train/texts")
    tags = [tag for lines in records for line in lines for tag in line if tag.startswith("train/") and tag not in others]
    return next((tag.removeprefix("train/") for tag in tags if "_per_" in tag or "loss" in tag), "")


def _words(runs: Sequence[RunRecord], names: Sequence[str], most_tokens: int, device: str) -> list[str]:
    """Returns how models predict words of different frequency and place. It says what cannot be read, and leaves it out."""
    from lmtrain.commands.report_words import predict

    found: dict[str, Any] = {}
    for run, name in zip(runs[:MAX_PREDICTED], names, strict=False):
        try:
            if (predicted := predict(run.path, most_tokens, device)) is not None:
                found[name] = predicted
        except UserError as error:
            warn(f"The model of {name} is left out: {error}")
    if not found:
        return []
    few = f" The {MAX_PREDICTED} best runs." if len(runs) > MAX_PREDICTED else ""
    note = f"The first {most_tokens:,} tokens of validation, at most; each run by its best checkpoint.{few}"
    sections = [draw.heading("Perplexity by frequency: the rank of a word in the training text", note)]
    for attribute, title in (("by_rank", ""), ("by_place", "Perplexity by place in the line")):
        rows = {name: getattr(predicted, attribute) for name, predicted in found.items()}
        kept = [kind for kind in next(iter(rows.values())) if any(row[kind] is not None for row in rows.values())]
        values = {name: [row[kind] for kind in kept] for name, row in rows.items()}
        sections += [draw.heading(title)] if title else []
        sections.append(draw.legend(list(found)))
        sections.append(draw.bars(kept, values, "perplexity"))
    tables = [
        draw.table(
            [name, "seen", "nats", "rank"],
            [(_visible(text), f"{count:,}", f"{nats:.2f}", f"{rank:,}") for text, count, nats, rank in predicted.worst],
        )
        for name, predicted in found.items()
    ]
    note = "Their mean surprisal in nats where they stand in validation, how often they do, and their rank."
    return [*sections, draw.heading("Words that are predicted worst", note), draw.beside(tables)]


def _samples(run: RunRecord, name: str) -> list[str]:
    """Returns what the model wrote as training went on: evenly spaced among the evaluations, the last one with them."""
    place = find_curves(run.path / "tensorboard")
    found = [] if place is None else _texts(place, "sample/text_summary")
    if not found:
        return []
    chosen = [found[round(n * (len(found) - 1) / max(MAX_SAMPLES - 1, 1))] for n in range(min(MAX_SAMPLES, len(found)))]
    parts = [draw.heading(f"Samples of {name} as training went on")]
    for step, text in chosen if len(found) >= MAX_SAMPLES else found:
        cut = plain_text(text)
        parts.append(f"<p>step {step:,}</p><pre>{draw.shown(cut[:MAX_LETTERS])}{'…' * (len(cut) > MAX_LETTERS)}</pre>")
    return parts


def _texts(directory: Path, tag: str) -> list[tuple[int, str]]:
    """Returns the texts of a tag by their step, in TensorBoard's files; of one step the newest."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    read: Callable[[Any], Any] = tensor_util.make_ndarray
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would remark that a run has gone on
    accumulator = EventAccumulator(os.path.relpath(directory), size_guidance={"tensors": 0})
    try:
        accumulator.Reload()
        events = accumulator.Tensors(tag)
        texts = {event.step: read(event.tensor_proto).item() for event in events}
    except KeyError:
        return []
    except Exception as error:  # of TensorBoard's reader, on files that are damaged
        warn(f"The samples in {directory} cannot be read ({type(error).__name__}); they are left out.")
        return []
    return [(step, text.decode(errors="replace")) for step, text in sorted(texts.items()) if isinstance(text, bytes)]


def plain_text(markdown: str) -> str:
    """Returns what a run wrote for TensorBoard, as plain text; earlier versions indented it."""
    lines = markdown.splitlines()
    if lines and all(line.startswith("    ") for line in lines):
        return "\n".join(line.removeprefix("    ") for line in lines)
    return unwrapped(markdown)


def _visible(text: str) -> str:
    return text if text.isprintable() and text.strip() else ascii(text)


def _name(record: RunRecord) -> str:
    return shown(record.path)
