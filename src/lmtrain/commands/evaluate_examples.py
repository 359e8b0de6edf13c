"""`python -m lmtrain evaluate RUN` scores a tagger or a classifier on a split that was saved with it, or on a file."""

from __future__ import annotations

import argparse
import json

from lmtrain.commands.options import open_any
from lmtrain.errors import DataError, SettingsError
from lmtrain.shell import printable


def evaluate_examples(options: argparse.Namespace) -> None:
    """Prints the score."""
    if options.streams != 1 or options.temperature != 1 or options.dynamic or options.cache:
        raise SettingsError(
            "--streams, --temperature, --dynamic and --cache are for language models.",
            f"{options.run} was trained for another task.", "Leave them out.",
        )  # fmt: skip
    trained = open_any(options)
    if options.text is not None:
        score = trained.evaluate_file(options.text)
    elif options.split == "train":
        score = trained.evaluate_training()
    elif options.split in trained.splits:
        score = trained.evaluate(options.split)
    else:
        raise DataError(
            f"No {options.split} split was saved with {trained.path}.",
            f"Saved are: {', '.join(trained.splits)}.", "Type --split valid, or give a FILE.",
        )  # fmt: skip
    name = options.split if options.text is None else options.text
    if options.json:
        print(json.dumps({"checkpoint": str(trained.path), "text": name} | score.to_json(), ensure_ascii=False))
    else:
        print(f"{printable(f'{name} of {trained.path}')}:\n{printable(score.format())}")
