"""`python -m lmtrain vectors ...` measures, shows, writes and trains word vectors, those of a run or of a file.

{overview}

RUN|FILE is a run or checkpoint directory, or a file of vectors: word2vec as text or binary, GloVe's text, or npz, which its
content tells. Each of these has its own help:  python -m lmtrain vectors analogies --help
"""

from __future__ import annotations

import difflib
from importlib import import_module

from lmtrain.errors import SettingsError

COMMANDS = {
    "export": ("files", "RUN|FILE --output FILE", "writes a file that other programs read"),
    "train": ("train", "TEXT --method METHOD --output FILE", "makes vectors from the words that stand together in a text"),
    "analogies": ("measures", "RUN|FILE QUESTIONS", "accuracy on a : b :: c : ?, by section"),
    "similarity": ("measures", "RUN|FILE PAIRS", "correlation with human judgements of pairs"),
    "neighbours": ("looks", "RUN|FILE WORD...", "the nearest words of each word"),
    "analogy": ("looks", "RUN|FILE A B C", "a : b :: c : ? for three words of your own"),
    "plot": ("looks", "RUN|FILE WORD... --output FILE.svg", "draws words on their two principal axes"),
    "senses": ("senses", "RUN|FILE WORD --data TEXT", "clusters the windows around a word, or finds its atoms"),
    "moved": ("looks", "RUN|FILE RUN|FILE", "how far each word moved between two vectors of it"),
}
"""Each command with the file that holds it, what it takes, and what it does."""


def main(arguments: list[str]) -> None:
    """Runs one of COMMANDS."""
    first, *rest = arguments or ["--help"]
    if first in ("--help", "-h") or (first not in COMMANDS and {"--help", "-h"} & set(rest)):
        print(_help())
        return
    if first not in COMMANDS:
        close = difflib.get_close_matches(first, COMMANDS, n=1)
        raise SettingsError(
            f"{first!r} is nothing that  python -m lmtrain vectors  does.",
            f"Allowed are {', '.join(COMMANDS)}.",
            f"Did you mean  python -m lmtrain vectors {close[0]}?" if close else "See  python -m lmtrain vectors --help.",
        )
    file, _, _ = COMMANDS[first]
    getattr(import_module(f"lmtrain.commands.vectors.{file}"), first)(rest)


def _help() -> str:
    rows = [(f"  python -m lmtrain vectors {name} {takes}", does) for name, (_, takes, does) in COMMANDS.items()]
    width = max(len(typed) for typed, _ in rows)
    overview = "\n".join(f"{typed:<{width}}  {does}" for typed, does in rows)
    return f"usage: python -m lmtrain vectors WHAT ...\n\n{(__doc__ or '').format(overview=overview)}".rstrip()
