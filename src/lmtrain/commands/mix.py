"""`python -m lmtrain mix RUN RUN ... --output DIR` interpolates models. The weights are fitted on validation.

The mixture is a directory like that of any model: `evaluate`, `score` and `sample` take it, and it does not need its parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.commands.contamination import look_for, name_parts
from lmtrain.commands.options import Parser, new_directory, parse, whole
from lmtrain.errors import SettingsError
from lmtrain.quantity import counted
from lmtrain.shell import printable, quoted_for_shell, shown

if TYPE_CHECKING:
    from lmtrain.saved import Trained


def main(arguments: list[str]) -> None:
    """Fits the weights, prints them, saves the mixture."""
    parser = Parser("mix", __doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run or checkpoint directories of models with one vocabulary")
    parser.add_argument("--output", metavar="DIR", required=True, help="where the mixture is saved")
    parser.add_argument("--streams", type=whole(1), default=16, help="streams in which validation is scored (default: 16)")
    options = parse(parser, arguments)
    if len(options.runs) < 2:
        raise SettingsError("One model was given.", "A mixture needs at least two.", "Give another one.")
    with new_directory(options.output) as output:
        path = Path(options.output) / _mix(options, output).relative_to(output)
    directory = quoted_for_shell(shown(options.output))
    print(f"\nSaved in {printable(str(path))}. Next:\n  python -m lmtrain evaluate {directory}")


def _mix(options: argparse.Namespace, output: Path) -> Path:
    import numpy as np

    from lmtrain.inference.evaluate import perplexity_text
    from lmtrain.saved import load_trained, save_mixture
    from lmtrain.tasks.mixing import fit_mixture

    def announce(number: int, num_tokens: int) -> None:
        of = f"{number + 1} of {len(parts)}"
        print(printable(f"{of}: {options.runs[number]} scores {num_tokens:,} tokens of validation"), file=sys.stderr)

    parts = [load_trained(run) for run in options.runs]
    fitted = fit_mixture(parts, options.runs, num_streams=options.streams, on_part=announce)
    for run, weight, log_probs_N in zip(options.runs, fitted.weights, fitted.log_probs_MN, strict=True):
        alone = perplexity_text(-log_probs_N.mean())
        impossible_N = np.flatnonzero(log_probs_N == -np.inf)
        which = f" ({fitted.name_token(impossible_N[0])} has probability zero)" if len(impossible_N) else ""
        print(printable(f"{weight:.4f}  {run}   validation perplexity alone {alone}{which}"))
    streams = counted(fitted.num_streams, "stream")
    print(f"        mixture: validation perplexity {perplexity_text(fitted.nats())} ({streams})")
    _say_contamination(options.runs, parts)
    return save_mixture(parts, fitted.weights, output)


def _say_contamination(runs: Sequence[str], parts: Sequence[Trained]) -> None:
    """Says how much of the mixture's validation and test text each part was trained on."""
    from lmtrain.saved import load_lines, told_by

    lines = [load_lines(part) for part in parts]
    trained = [part for run, of_run in zip(runs, lines, strict=True) for part in name_parts(run, of_run.train)]
    told = told_by(parts)
    held_out = lines[told].held_out
    remedy = (
        "Train it on a text without these lines: give all parts the same data.path, data.valid_fraction and data.test_fraction."
    )
    consequences = {
        "valid": "the weights, which are fitted on it, favour that model",
        "test": "the mixture will look better than it is on unseen text",
    }
    for name, consequence in consequences.items():
        if name in parts[told].texts:
            others = [hashes for other, hashes in held_out.items() if other != name]
            finding = look_for(f"the {name} text", held_out.get(name), trained, others)
            print(printable(finding.format()))
            finding.warn(consequence, remedy)
