"""Lines that begin with keys or scores: `score` takes them, and `rescore` reads them back."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from lmtrain.errors import SettingsError

if TYPE_CHECKING:
    from lmtrain.inference.keyed import Keyed
    from lmtrain.inference.score import ScoredLine

COLUMNS = {"plain": "id,score,text", "kaldi": "id,text"}  # of an n-best list
LOG_NAMES = {"e": "log_prob", "10": "log10_prob"}


def add_format_option(parser: Any) -> None:
    """Adds the option that says how columns are separated."""
    parser.add_argument(
        "--format", choices=("plain", "kaldi"),
        help='plain: a tab behind each column, lines of one utterance have one id; kaldi: a space, ids end with "-1", "-2" ... '
        "(default: plain)",
    )  # fmt: skip


def add_keyed_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options about what is before the text of a line."""
    group = parser.add_argument_group("lines that begin with something else than text")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument("--key-column", action="store_true", help="the first column is a key: given back, not scored")
    kinds.add_argument(
        "--nbest", action="store_true", help="an n-best list: every line by itself, written back with its columns and its text"
    )
    group.add_argument(
        "--columns", metavar="NAMES",
        help='those of the n-best list, "_" for one to skip (default: id,score,text; with --format kaldi: id,text)',
    )  # fmt: skip
    add_format_option(group)
    group.add_argument(
        "--log-base", choices=("e", "10"), help="of the logarithms that --nbest writes (default: e, natural ones)"
    )


def choose_columns(options: argparse.Namespace) -> tuple[str, ...]:
    """Returns the names of the columns before the text, if there are any. Raises SettingsError for options that do not fit."""
    for name in ("columns", "log_base"):
        if getattr(options, name) is not None and not options.nbest:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(
                f"{option} was given without --nbest.", "It is an option of n-best lists.", "Type --nbest, too."
            )
    if options.format is not None and not (options.nbest or options.key_column):
        raise SettingsError(
            "--format was given without --nbest or --key-column.",
            "It says how columns are separated.",
            "Type one of them, too.",
        )
    if options.nbest and options.per_token and not options.json:
        raise SettingsError(
            "--per-token was given together with --nbest.", "The result of --nbest is a table with a row for each line.",
            "Type --json as well.",
        )  # fmt: skip
    if not options.nbest:
        return ("id",) * options.key_column
    columns = tuple((options.columns or COLUMNS[options.format or "plain"]).split(","))
    named = [name for name in columns if name != "_"]
    if columns[-1] != "text" or not {"id"} < set(named) <= {"id", "score", "text"} or len(set(named)) < len(named):
        raise SettingsError(
            f"--columns {options.columns} was given.",
            "Allowed are id, score (which may be missing) and _ (for a column to skip), with commas, and text at the end.",
            "Type for example --columns id,score,text.",
        )
    return columns[:-1]


class Table:
    """Writes the rows of an n-best list that was scored: its columns, then what the language model says, then the text."""

    def __init__(self, columns: tuple[str, ...], base: str, *, parts: bool = False) -> None:
        self._score, self._parts = "score" in columns, parts
        self._base, self._log = base, math.log(10) if base == "10" else 1.0

    def header(self) -> str:
        """Returns the names of the columns, separated by tabs."""
        return "\t".join(columns_of(LOG_NAMES[self._base], score=self._score, parts=self._parts))

    def row(self, keyed: Keyed, line: ScoredLine, parts: tuple[float, float] | None = None) -> str:
        """Returns a line under `header`, with the score as it was. `parts` are the log-probabilities by each of two models."""
        from lmtrain.inference.evaluate import number_text

        score = [keyed.columns["score"]] if self._score else []
        log_probs = [number_text(log_prob / self._log, 6) for log_prob in (-line.total_nats, *(parts or ()))]
        return "\t".join([keyed.columns["id"], *score, *log_probs, str(num_words(keyed)), str(line.num_unk), keyed.text])

    def to_json(self, keyed: Keyed, line: ScoredLine, parts: tuple[float, float] | None = None) -> dict[str, Any]:
        """Returns the same by name, with the tokens if the line has them."""
        from lmtrain.inference.score import finite_or_none, line_to_json

        values = line_to_json(line)
        log_prob = values.pop("log_prob")
        return {
            "id": keyed.columns["id"],
            **({"score": float(keyed.columns["score"])} if self._score else {}),
            LOG_NAMES[self._base]: None if log_prob is None else log_prob / self._log,
            **finite_or_none({f"{LOG_NAMES[self._base]}_{n}": part / self._log for n, part in enumerate(parts or (), 1)}),
            "num_words": num_words(keyed),
            **values,
            "text": keyed.text,
        }


def columns_of(log: str, *, score: bool, parts: bool) -> list[str]:
    """Returns the names of the columns of a scored n-best list. `log` names the log-probabilities; `parts` adds two models'."""
    return ["id", *["score"] * score, log, *[f"{log}_1", f"{log}_2"] * parts, "words", "unknown", "text"]


def num_words(keyed: Keyed) -> int:
    """Returns how many words the text has, whatever its tokens are."""
    from lmtrain.data.vocabulary import split_words

    return len(split_words(keyed.text))
