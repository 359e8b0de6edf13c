"""`python -m lmtrain verify` checks every hand-written gradient against central differences, and the recurrences against
torch.nn, on this machine. It also does the lectures' check: numeric beside analytic gradients of a scorer of two layers.

`--through-time` shows how far back gradients reach in Elman, GRU and LSTM; `--speed` shows what a matrix product is worth.
"""

from __future__ import annotations

import argparse
import sys

from lmtrain.commands.drawing import new_drawing, write_drawing
from lmtrain.commands.options import Parser, parse, whole
from lmtrain.errors import SettingsError
from lmtrain.shell import printable


def main(arguments: list[str]) -> None:
    """Prints a table of tensors and errors; the exit code is 1 if one fails."""
    parser = Parser("verify", __doc__)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--through-time", metavar="RUN", nargs="?", const="",
        help="the norm of dJ_t / d(state)_(t-k) for every lag k: of a trained RUN, or without one of fresh cells",
    )  # fmt: skip
    shown.add_argument("--speed", action="store_true", help="windows in a Python loop against one matrix product")
    parser.add_argument("--svg", metavar="FILE", help="draws the norms of --through-time")
    parser.add_argument("--lags", metavar="K", type=whole(1, 1000), help="of --through-time, the largest lag (default: 35)")
    parser.add_argument(
        "--inputs", choices=("small", "normal"), help="of --through-time of fresh cells: how large inputs are (default: small)"
    )
    options = parse(parser, arguments)
    if options.through_time is not None:
        return through_time(options)
    for option in ("svg", "lags", "inputs"):
        if getattr(options, option) is not None:
            raise SettingsError(
                f"--{option} was given without --through-time.", "It says how that is shown.", "Type --through-time as well."
            )
    if options.speed:
        from lmtrain.explain.vectorisation import speed_lines

        print("\n".join(speed_lines()))
        return

    from lmtrain.explain.scorer import format_gradients, scorer_gradients
    from lmtrain.verify import format_table, iter_checks, lecture_checks

    gradients = scorer_gradients()
    checks = [*iter_checks(), *lecture_checks(gradients)]
    print(format_gradients(gradients), format_table(checks), sep="\n\n")
    if not all(check.passed for check in checks):
        sys.exit(1)


def through_time(options: argparse.Namespace) -> None:
    """Prints a table of norms by lag, and draws it."""
    drawing = None if options.svg is None else new_drawing("--svg", options.svg)
    num_lags = options.lags or 35

    from lmtrain.explain.plot import plot
    from lmtrain.explain.through_time import INPUTS, format_norms, fresh_norms, model_norms

    tables = []
    if options.through_time:
        if options.inputs is not None:
            raise SettingsError("--inputs was given with a run.", "A run reads its text.", "Leave --inputs out.")
        from lmtrain.errors import DataError
        from lmtrain.saved import load_trained

        trained = load_trained(options.through_time)
        name = next((name for name in ("valid", "test", "train_start") if name in trained.texts), None)
        if name is None:
            raise DataError(
                f"No text was saved with {trained.path}.", "Gradients are measured on one.", "Name a run that has one."
            )
        norms = {"norm": model_norms(trained.model, trained.texts[name].ids.tolist(), num_lags)}
        first = norms["norm"][0]
        norms["relative to k = 0"] = [norm / first if first else 0.0 for norm in norms["norm"]]
        split = {"valid": "validation", "test": "test"}.get(name, "training")
        title = f"Norm of dJ_t / d(state)_(t-k) in {printable(str(trained.path))}, J_t the loss of a token of its {split} text"
        notes = []
        if trained.model.state_policy.value != "carry":
            notes.append(
                f"This model forgets at the end of every {trained.model.state_policy.value} (model.state_policy): no gradient "
                "reaches back beyond it, which lowers the mean."
            )
        curves = {"trained": norms["norm"]}
    else:
        inputs = options.inputs or "small"
        norms = curves = fresh_norms(num_lags, inputs=inputs)
        alone = format_norms(fresh_norms(num_lags, inputs=inputs, by_h_alone=True))
        tables = ["", "By h alone, which is not all that an LSTM hands on:", "", alone]
        title = "Norm of dJ_t / d(state)_(t-k), fresh cells of 100 units"
        notes = [
            "J_t = w^T h_t with |w| = 1; the state is h, and of an LSTM h and c together. Weights as training starts here;",
            f"inputs {INPUTS[inputs]}.",
        ]
    print("\n".join([title, *notes, "", format_norms(norms), *tables]))
    if drawing is not None:
        write_drawing("--svg", drawing, plot(title, "lag k", curves))
