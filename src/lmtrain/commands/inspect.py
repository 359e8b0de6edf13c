"""`python -m lmtrain inspect data=... [key=value ...]` shows what data look like before anything is learnt from them.

It shows tokens, types, hapaxes, the growth of the vocabulary, lengths of lines, the most frequent words, unknown words, what
splits share, and the n-grams that training never sees; of tags, how often each occurs and which entities are
shared. The settings are those of training, and no run is made.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

import lmtrain.config as config
from lmtrain.commands.drawing import new_drawing, write_drawing
from lmtrain.commands.options import Parser, parse
from lmtrain.errors import SettingsError
from lmtrain.progress import watched
from lmtrain.shell import printable

if TYPE_CHECKING:
    from lmtrain.tasks.base import Task

EXAMPLES = """examples:
  inspect data=text data.path=my.txt tokenizer=word --svg zipf.svg
  inspect task=tag data.path=DIRECTORY --json"""


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Returns the options of the command."""
    parser = Parser("inspect", __doc__, EXAMPLES)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings, as training takes them")
    parser.add_argument("--svg", metavar="FILE", help="draws Zipf's plot: the frequency of words over their rank")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    return parse(parser, arguments)


def show(settings: config.Config, options: argparse.Namespace) -> None:
    """Prints what there is to know. Raises DataError for data that cannot be used."""
    drawing = None if options.svg is None else new_drawing("--svg", options.svg)

    import torch

    from lmtrain.tasks.choose import open_task
    from lmtrain.tasks.inspection import Inspection

    task = open_task(settings, torch.device("cpu"))
    material = task.material()
    if material is None:
        _show_description(task, options)
        return
    with watched("Looking at the text"):
        inspection = Inspection(material)
        svg = None if drawing is None else inspection.svg()
        found = json.dumps(inspection.to_json(), allow_nan=False) if options.json else inspection.format()
    if drawing is not None and svg is not None:
        write_drawing("--svg", drawing, svg)
    if options.json:
        print(found)
        return
    print("\n\n".join(map(printable, [found, *task.iter_advice()])))


def _show_description(task: Task, options: argparse.Namespace) -> None:
    """Shows data of which no more is known than what training says."""
    if options.svg is not None:
        raise SettingsError(
            "--svg was given for data of which there is nothing to draw.", "Texts and tagged sentences have Zipf's plot.",
            "Leave --svg out.",
        )  # fmt: skip
    advice = list(task.iter_advice())
    if options.json:
        print(json.dumps({"description": task.describe(), "advice": advice}))
    else:
        print("\n\n".join(map(printable, [task.describe(), *advice])))
