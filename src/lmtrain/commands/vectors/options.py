"""The options and helpers of all commands for word vectors: naming them, opening them, writing results."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal

from lmtrain.commands.options import Parser, new_path
from lmtrain.errors import SettingsError
from lmtrain.shell import expanded, shown

if TYPE_CHECKING:
    from pathlib import Path

    from lmtrain.vectors.table import Vectors

FORMATS = ("word2vec", "word2vec-binary", "glove", "npz")  # as in lmtrain.vectors.files, which imports NumPy


def vectors_parser(command: str, description: str | None) -> Parser:
    """Returns a parser of a command that is given vectors."""
    parser = Parser(f"vectors {command}", description)
    parser.add_argument("vectors", metavar="RUN|FILE", help="a run or checkpoint directory, or a file of vectors")
    add_source_options(parser)
    return parser


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how RUN|FILE is read."""
    parser.add_argument("--checkpoint", choices=("best", "last"), help="of a run directory (default: best)")
    parser.add_argument("--format", choices=FORMATS, help="of a file whose content is taken for another format")


def open_vectors(options: argparse.Namespace, path: str | None = None) -> Vectors:
    """Returns the vectors that the options name, or those at `path`."""
    return read_vectors(path or options.vectors, options.checkpoint, options.format)


def read_vectors(path: str, checkpoint: Literal["best", "last"], format: str | None) -> Vectors:
    """Returns what `lmtrain.load_vectors` does; for a file, PyTorch is not imported, which takes seconds."""
    from lmtrain.vectors.files import is_of_run

    if not is_of_run(expanded(path)):
        from lmtrain.vectors.table import Vectors

        return Vectors.load(expanded(path), format=format)
    from lmtrain.tasks.opening import load_vectors

    return load_vectors(path, checkpoint=checkpoint, format=format)


def new_file(path: str, suffixes: tuple[str, ...] = ()) -> Path:
    """Checks a file to write before any work is done. Raises SettingsError if it cannot be made or has another suffix."""
    import os

    file = new_path(path)
    if not file.name or path.endswith("/"):
        raise SettingsError(f"--output {path} names no file.", "A file is written.", "Give the name of a file.")
    if suffixes and file.suffix.lower() not in suffixes:
        raise SettingsError(
            f"--output {path} does not end in {' or '.join(suffixes)}.", "The suffix says what is written.",
            f"Type --output {file.with_suffix(suffixes[0])}.",
        )  # fmt: skip
    above = next(parent for parent in file.absolute().parents if parent.exists())
    if not os.access(above, os.W_OK):
        raise SettingsError(
            f"--output {path} cannot be made: you may not write in {shown(above)}.",
            "It must be a new file in a directory that you may write in.", "Give another path.",
        )  # fmt: skip
    return file


def add_json(parser: argparse.ArgumentParser, what: str = "the result") -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help=f"{what} as JSON")


def print_json(document: Any) -> None:
    """Prints one JSON document; there is neither nan nor infinity in it."""
    import json

    print(json.dumps(document, ensure_ascii=False, allow_nan=False))
