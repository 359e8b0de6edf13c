"""`score --with RUN` scores every line by two models, such as a forward and a backward one, and by their mixture over lines."""

from __future__ import annotations

import argparse
import dataclasses
import math
from array import array
from typing import TYPE_CHECKING, Any

from lmtrain.commands.options import computing, field_of, finite, open_model, read_text
from lmtrain.errors import SettingsError, as_typed

if TYPE_CHECKING:
    from lmtrain.inference.score import ScoredLine

COLUMNS = ("_1", "_2")  # after the name of the logarithm: what each of the models says


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the second model and its weight."""
    group = parser.add_argument_group("two models, mixed line by line (forward and backward, say)")
    group.add_argument(
        "--with", dest="other", metavar="RUN",
        help="a second model: the log-probability is that of the mixture, and two columns more hold that of each model",
    )  # fmt: skip
    group.add_argument("--other-weight", type=finite, metavar="SHARE", help="of the second model (default: 0.5)")


@as_typed(other_weight="--other-weight ")
def check_pair_options(options: argparse.Namespace) -> None:
    """Raises SettingsError for options that exclude each other."""
    from lmtrain.inference.pair import check_weight

    if options.other is None:
        if options.other_weight is not None:
            raise SettingsError(
                "--other-weight was given without --with.", "It is the weight of a second model.", "Type --with RUN."
            )
        return
    if options.other_weight is not None:
        check_weight(options.other_weight)
    if not options.independent:
        raise SettingsError(
            "--with was given without --independent.", "Two models are mixed over lines that know nothing of each other.",
            "Type --independent or --nbest as well.",
        )  # fmt: skip
    for name in ("flush", "unit", "html", "per_token"):
        if getattr(options, name):
            raise SettingsError(
                f"--with was given together with --{name.replace('_', '-')}.", "It is about whole lines, which are read twice.",
                "Leave out one of them.",
            )  # fmt: skip
    if options.file == "-":
        raise SettingsError(
            "--with was given together with standard input.", "The text is read once for each model.", "Give a file."
        )


class Second:
    """Holds what the second model says about the lines of a file, 8 bytes per line."""

    def __init__(self, options: argparse.Namespace, columns: tuple[str, ...]) -> None:
        from lmtrain.inference.batch import BATCH_TOKENS
        from lmtrain.inference.evaluate import Static
        from lmtrain.inference.keyed import KeyedLines
        from lmtrain.inference.score import score_text
        from lmtrain.models.base import StatePolicy

        self._weight = 0.5 if options.other_weight is None else options.other_weight
        self._log_probs = array("d")
        trained = open_model(argparse.Namespace(**{**vars(options), "run": options.other}))
        trained.model.forget_at(StatePolicy.line)
        text = read_text(options.file, field=field_of(options, options.file))
        lines = KeyedLines(text, columns, options.format or "plain") if columns else text
        with computing(options):
            self.result = score_text(
                trained.model, trained.tokenizer, lines, on_line=lambda line: self._log_probs.append(-line.total_nats),
                method=Static(options.temperature), independent=True, batch_tokens=options.batch_tokens or BATCH_TOKENS,
                unknown_cost=options.unknown_cost, device=options.device,
            )  # fmt: skip

    def mix(self, line: ScoredLine) -> tuple[ScoredLine, tuple[float, float]]:
        """Returns a line as the mixture scores it, and what each of the models says."""
        from lmtrain.inference.pair import mixed

        first, second = -line.total_nats, self._log_probs[line.number - 1]
        return dataclasses.replace(line, total_nats=-mixed(first, second, self._weight)), (first, second)


class Sums:
    """Adds up all lines, by each model and by the mixture."""

    def __init__(self) -> None:
        self.nats = [0.0, 0.0, 0.0]
        self.num_lines = 0

    def add(self, line: ScoredLine, parts: tuple[float, float]) -> None:
        """Counts a line."""
        self.num_lines += 1
        for place, nats in enumerate((line.total_nats, -parts[0], -parts[1])):
            self.nats[place] += nats

    def format(self) -> str:
        """Returns a line to read."""
        each = [f"{nats / max(1, self.num_lines):.4f}" for nats in self.nats]
        return (
            f"nats per line: {each[0]} mixed, {each[1]} by the first model, {each[2]} by the second ({self.num_lines:,} lines)"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the sums by name."""
        names = ("mixed_nats", "first_nats", "second_nats")
        values = {name: nats if math.isfinite(nats) else None for name, nats in zip(names, self.nats, strict=True)}
        return values | {"num_lines": self.num_lines}
