"""`score --with RUN` scores every line by two models, such as a forward and a backward one, and by their mixture over lines."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lmtrain.commands.options import computing, field_of, finite, is_read_once, open_model, read_text
from lmtrain.errors import DataError, SettingsError, as_typed
from lmtrain.quantity import counted
from lmtrain.shell import printable

if TYPE_CHECKING:
    from lmtrain.inference.evaluate import Evaluation
    from lmtrain.inference.score import ScoredLine
    from lmtrain.saved import Trained

COLUMNS = ("_1", "_2")  # after the name of the logarithm: what each of the models says


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the second model and its weight."""
    group = parser.add_argument_group("two models, mixed line by line (forward and backward, say)")
    group.add_argument(
        "--with", dest="other", metavar="RUN",
        help="a second model: the log-probability is that of the mixture, and two columns more hold that of each model",
    )  # fmt: skip
    group.add_argument(
        "--other-weight", type=_share, metavar="SHARE",
        help='of the second model (default: 0.5); "fit": the one that suits --fit-on best',
    )  # fmt: skip
    group.add_argument(
        "--fit-on",
        metavar="FILE",
        help='lines on which the share is fitted; "-": standard input (default: the validation text saved with a model)',
    )


def _share(text: str) -> float | str:
    return text if text == "fit" else finite(text)


@as_typed(other_weight="--other-weight ")
def check_pair_options(options: argparse.Namespace) -> None:
    """Raises SettingsError for options that exclude each other."""
    from lmtrain.inference.pair import check_weight

    if options.fit_on is not None and options.other_weight != "fit":
        raise SettingsError(
            "--fit-on was given without --other-weight fit.", "It is the text on which the share is fitted.",
            "Type --with RUN --other-weight fit as well.",
        )  # fmt: skip
    if options.other is None:
        if options.other_weight is not None:
            raise SettingsError(
                "--other-weight was given without --with.", "It is the weight of a second model.", "Type --with RUN."
            )
        return
    if isinstance(options.other_weight, float):
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
    if is_read_once(options.file):
        given = "standard input" if options.file == "-" else f"the pipe {options.file}"
        raise SettingsError(f"--with was given together with {given}.", "The text is read once for each model.", "Give a file.")


class Second:
    """Holds what the second model says about the lines of a file, 8 bytes per line.

    is_alike   whether both models have the same tokens. If not, what spelling its unknown words costs is a part of a line
    """

    def __init__(self, options: argparse.Namespace, columns: tuple[str, ...], first: Trained) -> None:
        from lmtrain.inference.comparison import same_but_for_direction
        from lmtrain.inference.keyed import KeyedLines
        from lmtrain.models.base import StatePolicy

        self._weight = 0.5 if options.other_weight is None else options.other_weight
        self._options = options
        self._trained = open_model(argparse.Namespace(**{**vars(options), "run": options.other}))
        self._trained.model.forget_at(StatePolicy.line)
        self._first, self.is_alike = first, same_but_for_direction(first.tokenizer, self._trained.tokenizer)
        text = read_text(options.file, field=field_of(options, options.file))
        lines = KeyedLines(text, columns, options.format or "plain") if columns else text
        self._log_probs = self._score(self._trained, lines)

    def _score(self, trained: Trained, lines: Iterable[str]) -> array[float]:
        """Returns the log-probability of every line."""
        from lmtrain.inference.batch import BATCH_TOKENS
        from lmtrain.inference.evaluate import Static
        from lmtrain.inference.score import score_text

        options, found = self._options, array("d")
        with computing(options):
            score_text(
                trained.model, trained.tokenizer, lines, on_line=lambda line: found.append(-line.total_nats),
                method=Static(options.temperature), independent=True, batch_tokens=options.batch_tokens or BATCH_TOKENS,
                unknown_cost=options.unknown_cost, spelt=not self.is_alike, device=options.device,
            )  # fmt: skip
        return found

    def fit(self) -> None:
        """Where it is asked for, finds the share under which a text is likeliest that neither model was trained on."""
        from lmtrain.inference.pair import fit_share
        from lmtrain.tasks.comparing import saved_lines

        if self._weight != "fit":
            return
        path = self._options.fit_on
        try:
            given = None if path is None else read_text(path, field=field_of(self._options, path))
            text = saved_lines(self._first, self._trained, "valid") if given is None else "".join(given)
        except DataError as error:
            raise DataError(error.given, error.allowed, error.remedy if path else "Type --fit-on FILE.") from error
        scored = [self._score(trained, [text]) for trained in (self._first, self._trained)]
        self._weight = fit_share(*scored)
        fitted = f"{path or 'the validation text'} ({counted(len(scored[0]), 'line')})"
        print(printable(f"--other-weight {self._weight:.6g}, fitted on {fitted}"), file=sys.stderr)

    def mix(self, line: ScoredLine) -> tuple[ScoredLine, tuple[float, float]]:
        """Returns a line as the mixture scores it, and what each of the models says."""
        from lmtrain.inference.pair import mixed

        assert isinstance(self._weight, float), "fitted by now"
        first, second = -line.total_nats, self._log_probs[line.number - 1]
        return dataclasses.replace(line, total_nats=-mixed(first, second, self._weight)), (first, second)

    def evaluation(self, first: Evaluation, total_nats: float) -> Evaluation:
        """Returns that of the mixture. `first` is that of the first model, whose tokens are counted.

        What unknown words have of a mixture over lines is not known.
        """
        method = f"{first.method} + mixture over lines with {self._weight:g} of the second model"
        if not self.is_alike:
            is_spelt = any(trained.tokenizer.rare is not None for trained in (self._first, self._trained))
            method += f", tokens of the first one{', spelling of unknown words in all numbers' if is_spelt else ''}"
        return dataclasses.replace(
            first, total_nats=total_nats, unk_nats=None, known_nats=None, num_impossible=None, first_impossible=None,
            first_impossible_at=None, method=method,
        )  # fmt: skip


class Sums:
    """Adds up all lines, by each model and by the mixture."""

    def __init__(self) -> None:
        self.nats = [0.0, 0.0, 0.0]
        self.num_lines = self.num_impossible = 0

    def add(self, line: ScoredLine, parts: tuple[float, float]) -> None:
        """Counts a line."""
        self.num_lines += 1
        self.num_impossible += line.total_nats == math.inf
        for place, nats in enumerate((line.total_nats, -parts[0], -parts[1])):
            self.nats[place] += nats

    def format(self) -> str:
        """Returns a line to read."""
        each = [f"{nats / max(1, self.num_lines):.4f}" for nats in self.nats]
        zero = f", {self.num_impossible:,} of probability zero under both" if self.num_impossible else ""
        return (
            f"nats per line: {each[0]} mixed, {each[1]} by the first model, {each[2]} by the second "
            f"({counted(self.num_lines, 'line')}{zero})"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the sums by name."""
        names = ("mixed_nats", "first_nats", "second_nats")
        values = {name: nats if math.isfinite(nats) else None for name, nats in zip(names, self.nats, strict=True)}
        return values | {"num_lines": self.num_lines, "num_impossible": self.num_impossible}
