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
from lmtrain.errors import DataError, SettingsError
from lmtrain.progress import watched
from lmtrain.shell import one_line, printable, quoted_for_shell, shown

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
        raise SettingsError("One model was given.", "A mixture needs at least two.", "Name a second RUN.")
    with new_directory(options.output) as output:
        path = Path(options.output) / _mix(options, output).relative_to(output)
    directory = quoted_for_shell(shown(options.output))
    print(f"\nSaved in {printable(str(path))}. Next:\n  python -m lmtrain evaluate {directory}")


def _mix(options: argparse.Namespace, output: Path) -> Path:
    import numpy as np
    import torch

    from lmtrain.inference.evaluate import STATIC, check_numbers, iter_target_log_probs, perplexity_text, usable_streams
    from lmtrain.models.mixture import fit_weights
    from lmtrain.saved import check_mixture, load_trained, save_mixture

    parts = [load_trained(run) for run in options.runs]
    first = parts[0]
    for run, part in zip(options.runs, parts, strict=True):
        if part.tokenizer.reverse != first.tokenizer.reverse:
            raise SettingsError(
                f"{run} and {options.runs[0]} read lines in opposite directions.",
                "Models are mixed token by token, and these predict a token from different sides of it.",
                "Combine them line by line:  python -m lmtrain score RUN FILE --independent --with RUN",
            )
        if part.tokenizer.to_json() != first.tokenizer.to_json():
            raise SettingsError(
                f"{run} has another vocabulary ({part.tokenizer.vocab_size} tokens) than {options.runs[0]} "
                f"({first.tokenizer.vocab_size}).",
                "Models are mixed token by token, so they must share one tokenizer.",
                "Train them on the same text with the same tokenizer; tokenizer.vocabulary=RUN takes the words of another run.",
            )
    check_mixture(parts)
    text = next((part.texts["valid"] for part in parts if "valid" in part.texts), None)
    if text is None:
        raise DataError(
            "None of these models was saved with a validation text.",
            "The weights of a mixture are fitted on one.",
            "Name a model that was trained here as well, or import the ARPA file again with --like RUN.",
        )
    num_streams = usable_streams(len(text.ids), options.streams)
    log_probs_MN = np.empty((len(parts), len(text.ids)))
    for number, (run, part, log_probs_N) in enumerate(zip(options.runs, parts, log_probs_MN, strict=True), 1):
        print(printable(f"{number} of {len(parts)}: {run} scores {len(text.ids):,} tokens of validation"), file=sys.stderr)
        scores = iter_target_log_probs(part.model, text.ids, eos_id=first.tokenizer.eos_id, num_streams=num_streams)
        with watched(f"Scoring with {one_line(run)}", len(text.ids), "tok") as advance:
            for scored in scores:
                check_numbers(scored.log_probs, STATIC)
                log_probs_N[scored.positions] = scored.log_probs
                advance(scored.positions.size)

    def name_token(place: int) -> str:
        return f"{first.tokenizer.token_text(int(text.ids[place]))!r}, token {place + 1:,} of the validation text,"

    weights = fit_weights(torch.from_numpy(log_probs_MN), name_token)
    for run, weight, log_probs_N in zip(options.runs, weights, log_probs_MN, strict=True):
        alone = perplexity_text(-log_probs_N.mean())
        impossible_N = np.flatnonzero(log_probs_N == -np.inf)
        which = f" ({name_token(impossible_N[0])} has probability zero)" if len(impossible_N) else ""
        print(printable(f"{weight:.4f}  {run}   validation perplexity alone {alone}{which}"))
    with np.errstate(divide="ignore"):
        mixed_N = np.logaddexp.reduce(log_probs_MN + np.log(weights)[:, None])
    together = perplexity_text(-mixed_N.mean())
    print(f"        mixture: validation perplexity {together} ({num_streams} stream{'s' * (num_streams != 1)})")
    _say_contamination(options.runs, parts)
    return save_mixture(parts, weights, output)


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
