"""Makes the README's table of results on Brown again: trains, evaluates, mixes, and prints the rows with their commands.

    python scripts/reproduce.py ../shared/data/brown --output outputs/reproduce

Settings that were tuned (dynamic evaluation, mixture weights) were tuned on validation alone.
About an hour, most of it on one core.
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
    "LSTM": "experiment=brown_lstm trainer.max_seconds=1650 trainer.num_threads=1",
}
MIXTURES = {
    "window + n-gram": ["window", "n-gram 5"],
    "LSTM + n-gram": ["LSTM", "n-gram 5"],
    "LSTM + window + n-gram": ["LSTM", "window", "n-gram 5"],
}
DYNAMIC = "--dynamic sgd --dynamic-rate 1 --dynamic-decay 0.002 --dynamic-segment 20"
ROWS = [
    ("n-gram 3", ""),
    ("n-gram 5", ""),
    ("example", ""),
    ("window", ""),
    ("window + n-gram", ""),
    ("LSTM", ""),
    ("LSTM + n-gram", ""),
    ("LSTM", DYNAMIC),
    ("LSTM + window + n-gram", ""),
    ("LSTM + n-gram", DYNAMIC),
]


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
    print(f"{'model':26}{'valid':>8}{'test':>8}  how")
    for name, method in ROWS:
        bills = [evaluate(directory(runs, name), split, method) for split in ("valid", "test")]
        print(f"{name:26}{bills[0]['perplexity']:>8.1f}{bills[1]['perplexity']:>8.1f}  {bills[1]['method']}", flush=True)


def directory(runs: Path, name: str) -> Path:
    return runs / name.replace(" + ", "_").replace(" ", "").replace("-", "").lower()


def lmtrain(arguments: str) -> str:
    """Runs a command, its progress on standard error; its output."""
    command = [sys.executable, "-m", "lmtrain", *shlex.split(arguments)]
    print("$", shlex.join(["python", *command[1:]]), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def evaluate(run: Path, split: str, method: str) -> dict[str, float]:
    """The bill of one evaluation."""
    return json.loads(lmtrain(f"evaluate {run} --split {split} --json {method}"))


if __name__ == "__main__":
    main()
