"""What the commands that use a trained model have in common: naming it, opening it, reading text."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmtrain.build import Trained
    from lmtrain.inference.evaluate import Method


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


def whole(least: int, most: int = 1 << 31) -> Callable[[str], int]:
    """The `type=` of an option that takes whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 20 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def read_text(path: str) -> Iterator[str]:
    """A text in blocks, "-" for standard input. Raises DataError for what is not UTF-8 text."""
    from lmtrain.data.text import iter_decoded, iter_text

    return iter_decoded(sys.stdin.buffer, Path("standard input")) if path == "-" else iter_text(Path(path))


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """How a text is predicted: fixed weights, or adapting while it reads."""
    group = parser.add_argument_group("adapting while reading (reported by name, never as the static number)")
    group.add_argument("--temperature", type=float, default=1.0, help="divides the log-probabilities (default: 1)")
    group.add_argument("--dynamic", choices=("sgd", "rms"), help="dynamic evaluation (Krause et al. 2018)")
    group.add_argument("--dynamic-rate", type=float, help="its learning rate (default: sgd 0.1, rms 0.0001)")
    group.add_argument("--dynamic-decay", type=float, default=0.002, help="its pull to the trained weights (default: 0.002)")
    group.add_argument("--dynamic-segment", type=whole(1), default=20, help="tokens between two of its updates (default: 20)")
    group.add_argument(
        "--cache", type=whole(1), metavar="WINDOW", help="continuous cache (Grave et al. 2017) of so many tokens"
    )
    group.add_argument("--cache-theta", type=float, default=0.66, help="its sharpness (default: 0.66)")
    group.add_argument("--cache-weight", type=float, default=0.13, help="its share (default: 0.13)")


def choose_method(options: argparse.Namespace, trained: Trained) -> Method:
    """The method that the options name. `rms` takes its statistics from the start of the training text."""
    from lmtrain.errors import SettingsError
    from lmtrain.inference.dynamic import Adaptive, Cache, Dynamic, gradient_rms, neural_models
    from lmtrain.inference.evaluate import Static

    if not options.dynamic and options.cache is None:
        return Static(options.temperature)
    cache = dynamic = None
    if options.cache is not None:
        cache = Cache(window=options.cache, theta=options.cache_theta, weight=options.cache_weight)
    if options.dynamic:
        rms = None
        if options.dynamic == "rms":
            adapting = neural_models(trained.model)
            if len(adapting) != 1:
                raise SettingsError(
                    f"--dynamic rms was given {len(adapting)} neural models.",
                    "It needs the gradient statistics of exactly one.", "Type --dynamic sgd.",
                )  # fmt: skip
            ids = trained.texts["train_start"].ids
            rms = gradient_rms(adapting[0], ids, eos_id=trained.tokenizer.eos_id, device=options.device)
        rate = options.dynamic_rate if options.dynamic_rate is not None else {"sgd": 0.1, "rms": 1e-4}[options.dynamic]
        dynamic = Dynamic(rate=rate, decay=options.dynamic_decay, segment_length=options.dynamic_segment, rms=rms)
    return Adaptive(dynamic=dynamic, cache=cache, temperature=options.temperature)
