"""Makes the table of results on Brown in scripts/README.md again: trains, evaluates, mixes, and prints the rows.

    python scripts/reproduce.py ../shared/data/brown --output outputs/reproduce

Settings that were tuned (dynamic evaluation, mixture weights) were tuned on validation alone.
It takes about two hours, most of them on one core.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

TRAININGS = {
    "n-gram 3": "model=ngram model.order=3 data=text tokenizer=word",
    "n-gram 5": "model=ngram model.order=5 data=text tokenizer=word",
    "example": "experiment=word_language_model trainer.num_epochs=4",
    "window": "experiment=brown_window trainer.num_threads=1",
    "LSTM": "experiment=brown_lstm",
}
MIXTURES = {
    "window + n-gram": ["window", "n-gram 5"],
    "LSTM + n-gram": ["LSTM", "n-gram 5"],
    "LSTM + window + n-gram": ["LSTM", "window", "n-gram 5"],
}
CACHE = "--cache 2000 --cache-weight 0.2"
DYNAMIC = "--dynamic sgd --dynamic-rate 1 --dynamic-decay 0.002"
BOTH = "--cache 2000 --dynamic sgd --dynamic-rate 0.5"
ROWS = [
    ("n-gram 3", "", 280.2, 263.9),
    ("n-gram 5", "", 278.0, 261.6),
    ("example", "", 178.6, 162.3),
    ("window", "", 187.9, 170.2),
    ("window + n-gram", "", 175.4, 160.7),
    ("LSTM", "", 147.5, 133.8),
    ("LSTM + n-gram", "", 144.4, 131.6),
    ("LSTM + window + n-gram", "", 144.1, 131.3),
    ("LSTM", CACHE, None, 116.7),
    ("LSTM", DYNAMIC, None, 116.0),
    ("LSTM", BOTH, None, 107.9),
    ("LSTM + n-gram", CACHE, None, 115.3),
    ("LSTM + n-gram", DYNAMIC, None, 113.7),
]
"""The rows of the table, in order: a model, how it is evaluated, and what validation and test are there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the directory with Brown's train.txt, valid.txt and test.txt")
    parser.add_argument("--output", default="outputs/reproduce", help="where the runs go; those that are there are used again")
    options = parser.parse_args()
    runs = Path(options.output)
    for name, settings in TRAININGS.items():
        if not (directory(runs, name) / "checkpoints" / "best").exists():
            lmtrain(f"{settings} data.path={options.data} hydra.run.dir={directory(runs, name)}")
    for name, parts in MIXTURES.items():
        if not directory(runs, name).exists():
            lmtrain(f"mix {' '.join(str(directory(runs, part)) for part in parts)} --output {directory(runs, name)}")
    print(f"{'model':26}{'valid':>8}{'README':>8}{'test':>8}{'README':>8}  how")
    for name, method, *told in ROWS:
        made = [
            evaluate(directory(runs, name), split, method) if number is not None else None
            for split, number in zip(("valid", "test"), told, strict=True)
        ]
        numbers = [n for ours, number in zip(made, told, strict=True) for n in (ours and ours["perplexity"], number)]
        shown = "".join(f"{'-':>8}" if number is None else f"{number:>8.1f}" for number in numbers)
        print(f"{name:26}{shown}  {made[1] and made[1]['method']}", flush=True)


def directory(runs: Path, name: str) -> Path:
    return runs / name.replace(" + ", "_").replace(" ", "").replace("-", "").lower()


def lmtrain(arguments: str) -> str:
    """Runs a command, its progress on standard error; its output."""
    command = [sys.executable, "-m", "lmtrain", *shlex.split(arguments)]
    print("$", shlex.join(["python", *command[1:]]), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def evaluate(run: Path, split: str, method: str) -> dict[str, float]:
    """What one evaluation gives, as JSON."""
    return json.loads(lmtrain(f"evaluate {run} --split {split} --json {method}"))


if __name__ == "__main__":
    main()
