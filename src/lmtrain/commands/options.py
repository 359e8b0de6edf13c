"""What the commands that use a trained model have in common: naming it, opening it, reading text."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.errors import DataError

if TYPE_CHECKING:
    from lmtrain.build import Trained
    from lmtrain.inference.evaluate import Method

BLOCK = 1 << 20  # characters read at a time


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """RUN, and which of its checkpoints."""
    parser.add_argument("run", metavar="RUN", help="a run directory, a checkpoint directory or a mixture")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="of a run directory (default: best)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def open_model(options: argparse.Namespace) -> Trained:
    """The model that the options name."""
    import torch

    from lmtrain.build import load_trained
    from lmtrain.errors import SettingsError

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda was given, but PyTorch finds no CUDA device.", "Allowed is cpu.", "Leave it out.")
    logging.basicConfig(level=logging.WARNING, format="lmtrain: %(message)s", stream=sys.stderr)
    return load_trained(options.run, prefer=options.checkpoint, device=options.device)


def read_text(path: str) -> Iterator[str]:
    """A text in blocks, "-" for standard input. Raises DataError for what is not UTF-8 text."""
    from lmtrain.data.text import iter_text

    if path != "-":
        yield from iter_text(Path(path))
        return
    try:
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict", newline=None)  # type: ignore[union-attr]
        while block := sys.stdin.read(BLOCK):
            yield block
    except UnicodeDecodeError as error:
        raise DataError(
            f"Standard input is not UTF-8: {error.reason} near byte {error.start}.",
            "Text is read as UTF-8.",
            "Convert it, for example with  iconv -t utf-8.",
        ) from None


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """How a text is predicted: fixed weights, or adapting while it reads."""
    group = parser.add_argument_group("adapting while reading (reported by name, never as the static number)")
    group.add_argument("--temperature", type=float, default=1.0, help="divides the log-probabilities")
    group.add_argument("--dynamic", choices=("sgd", "rms"), help="dynamic evaluation (Krause et al. 2018)")
    group.add_argument("--dynamic-rate", type=float, help="its learning rate")
    group.add_argument("--dynamic-decay", type=float, help="its decay to the trained weights")
    group.add_argument("--segment", type=int, help="tokens between two of its updates")
    group.add_argument("--cache", type=int, metavar="WINDOW", help="continuous cache (Grave et al. 2017) of so many tokens")
    group.add_argument("--cache-theta", type=float, help="its sharpness")
    group.add_argument("--cache-lambda", type=float, help="its weight")


def choose_method(options: argparse.Namespace, trained: Trained) -> Method:
    """The method that the options name."""
    raise NotImplementedError
