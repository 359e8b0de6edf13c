"""Makes the tables of taggers, classifiers and word vectors again, as their READMEs have them: trains, evaluates, prints.

    python scripts/reproduce_tasks.py ../shared/data --output outputs/tasks
    python scripts/reproduce_tasks.py ../shared/data --table wikigold wnut17     # some of the tables
    python scripts/reproduce_tasks.py ../shared/data --only max_margin           # rows that have this in their settings

A row is trained with seeds 1, 2 and 3, one process at a time on one core. Its numbers are means, with the standard deviation
of the three (dividing by 2). Runs that are there already are used again, or go on where they were stopped. All tables take
about two hours. Settings were chosen on validation splits; test splits are shown and decide nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lmtrain

SEEDS = (1, 2, 3)
NUM_FOLDS = 10

FULL, SMALL = "{vectors}/glove.6B.50d.tasks.bin", "{vectors}/glove.6B.50d.5k.txt"
GIVEN, GIVEN_SMALL = f"model.embeddings={FULL}", f"model.embeddings={SMALL}"
FROZEN = "model.freeze_embeddings=null"
MARGIN = "model.objective=max_margin trainer.num_epochs=50"
TWO_LAYERS = "model.hidden_sizes=[100,50] model.activation=relu"
WORDS = "model=logistic tokenizer.min_count=1"

WIKIGOLD = [
    WORDS,
    *(
        f"{objective} {vectors}"
        for objective in ("", "model.objective=logistic", MARGIN)
        for vectors in ("", f"{GIVEN} {FROZEN}", GIVEN)
    ),
    f"{GIVEN_SMALL} {FROZEN}", GIVEN_SMALL,
    f"{GIVEN} {TWO_LAYERS}", f"{GIVEN} {TWO_LAYERS} {FROZEN}", TWO_LAYERS,
    f"{GIVEN} model.dropout=0.5", f"{GIVEN} model.affixes=3", "model.affixes=3", "model.shape_features=false",
]  # fmt: skip
WNUT17 = [WORDS, "", f"{GIVEN} {FROZEN}", GIVEN, f"{GIVEN} model.affixes=3", f"{GIVEN} {TWO_LAYERS}"]
LOGISTIC, PAIRS = "model.objective=logistic", "model.objective=max_margin trainer.num_epochs=200"
LOCATIONS = [
    LOGISTIC, PAIRS,
    "model.objective=max_margin trainer.num_epochs=100 schedule=constant",
    "model.objective=max_margin model.corrupt=word",
    f"{LOGISTIC} {GIVEN} {FROZEN}", f"{PAIRS} {GIVEN} {FROZEN}",
]  # fmt: skip

NOISY = "model.word_dropout=0.5 model.dropout=0.5"
DEEP = "model.hidden_sizes=[100] model.activation=tanh"
TUNED = f"{GIVEN} model.embed_size=50"
MR = [
    NOISY, f"{DEEP} {NOISY}",
    "model=encoder model.cell=lstm model.pooling=max model.dropout=0.5 trainer.num_epochs=6",
    "model=logistic optimizer.learning_rate=0.001", "model=logistic model.ngrams=2 optimizer.learning_rate=0.001",
    "model=naive_bayes", "model=naive_bayes tokenizer.min_count=2", "model=frequent",
    f"{TUNED} model.word_dropout=0.3", f"{TUNED} model.word_dropout=0.3 {FROZEN}",
    f"{TUNED} {DEEP} model.word_dropout=0.3",
    f"{TUNED} {DEEP} {NOISY}", f"{TUNED} {DEEP} {NOISY} {FROZEN}",
]  # fmt: skip
FOLDS = [MR[0], MR[1], MR[4], MR[5], MR[8]]

SVD = [f"--method svd --counts {counts}" for counts in ("raw", "sqrt", "log", "ppmi")]
LEARNT = ["--method skipgram", "--method cbow", "--method glove"]
LSTM = (
    "model=lstm model.embed_size=100 model.hidden_size=256 model.tie_weights=true model.project=true model.dropout=0.2 "
    "data=text tokenizer=word tokenizer.lowercase=true tokenizer.min_count=5 optimizer.learning_rate=0.003 "
    "trainer.batch_size=32 trainer.clip_norm=0.25 trainer.max_seconds=300 trainer.evaluate_every=0"
)


class Place(NamedTuple):
    """Where data lie, and where runs go."""

    data: Path
    output: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="where brown, cls_mr, ner_wikigold, ner_wnut17, vectors and word_tests are")
    parser.add_argument("--output", type=Path, default=Path("outputs/tasks"), help="where the runs go")
    parser.add_argument("--table", nargs="+", choices=TABLES, default=list(TABLES), help="which tables (default: all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows that have this in their settings")
    options = parser.parse_args()
    place = Place(options.data, options.output)
    for name in options.table:
        columns, make, rows = TABLES[name]
        print(f"\n{name}\n\n| settings | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}", flush=True)
        for row in rows:
            if options.only in row:
                print(f"| `{_shown(row, place)}` | {' | '.join(make(row, place))} |", flush=True)


# ---- the cells of a row


def tagger(row: str, place: Place, data: str, *, target: str = "") -> Iterator[str]:
    """Entity F1, or the average precision of one class, on validation and test."""
    common = f"task=tag data.path={place.data / data}" + (f" model.target_class={target}" if target else "")
    runs = [lmtrain.load(run) for run in train(f"{common} {row}", place)]
    for split in ("valid", "test"):
        scores = [run.evaluate(split) for run in runs]
        if target:
            yield spread([score.average_precision[target] for score in scores], digits=3)
        yield spread([100 * score.entity_f1 for score in scores])


def classifier(row: str, place: Place) -> Iterator[str]:
    """Accuracy on validation, test and both, and p of McNemar's test against naive Bayes on both."""
    runs = [lmtrain.load(run) for run in train(f"{_texts(place)} {row}", place)]
    for splits in (["valid"], ["test"], ["valid", "test"]):
        scores = [run.evaluate(*splits) for run in runs]
        yield spread([100 * score.accuracy for score in scores])
    yield ", ".join(f"{score.mcnemar('naive Bayes').p:.2f}" for score in scores if "naive Bayes" in score.baselines)


def folded(row: str, place: Place) -> Iterator[str]:
    """The mean accuracy of ten folds, and of naive Bayes on the same ones; each fold is a test once."""
    runs = [
        lmtrain.load(run)
        for fold in range(1, NUM_FOLDS + 1)
        for run in train(f"{_texts(place)} data.folds={NUM_FOLDS} data.fold={fold} {row}", place, seeds=(1,))
    ]
    scores = [run.evaluate("test") for run in runs]
    yield spread([100 * score.accuracy for score in scores])
    simple = [100 * score.baseline_accuracy("naive Bayes") for score in scores if "naive Bayes" in score.baselines]
    yield spread(simple) if simple else "itself"


def vectors(row: str, place: Place) -> Iterator[str]:
    """Spearman's correlations and accuracy on analogies."""
    tests = place.data / "word_tests"
    made = [lmtrain.load_vectors(found) for found in _vectors(row, place)]
    for file in ("wordsim353.tsv", "simlex999.txt"):
        yield spread([each.evaluate_similarity(tests / file).spearman for each in made], digits=4)
    yield spread([100 * each.evaluate_analogies(tests / "questions-words.txt").total.accuracy for each in made])


def _texts(place: Place) -> str:
    return f"task=classify data.encoding=latin-1 data.path={place.data / 'cls_mr'}"


def _vectors(row: str, place: Place) -> Iterator[Path]:
    """Files, or runs of a language model."""
    brown = place.data / "brown"
    if not row.startswith("--method"):
        yield from train(f"data.path={brown} {row}", place)
        return
    for seed in (0,) if "svd" in row else SEEDS:
        file = place.output / f"{_slug(row)}_{seed}.vec"
        if not file.exists():
            seeded = f"--seed {seed} --run {file.with_suffix('')} --set trainer.num_threads=1" if seed else ""
            command(f"vectors train {brown} {row} --lowercase --output {file} {seeded}")
        yield file


# ---- running


def train(settings: str, place: Place, seeds: Sequence[int] = SEEDS) -> Iterator[Path]:
    """The runs with these settings, one for each seed; of models that draw nothing there is one."""
    draws_nothing = any(f"model={model}" in settings for model in ("naive_bayes", "frequent"))
    for seed in seeds[:1] if draws_nothing else seeds:
        run = place.output / f"{_slug(settings)}_{seed}"
        if not run.exists():
            quiet = "trainer.final_split=none trainer.projector=false trainer.num_threads=1"
            command(f"{settings.format(vectors=place.data / 'vectors')} trainer.seed={seed} {quiet} hydra.run.dir={run}")
        elif not is_finished(run):
            command(f"resume={run}")
        yield run


def is_finished(run: Path) -> bool:
    """Whether a run came to its end."""
    sessions = json.loads((run / "run.json").read_text(encoding="utf-8"))["sessions"]
    return bool(sessions) and sessions[-1].get("exit_reason") == "finished"


def command(arguments: str) -> None:
    """Runs lmtrain; what it prints is shown where it fails."""
    words = [sys.executable, "-m", "lmtrain", *shlex.split(arguments)]
    print("$", shlex.join(["python", *words[1:]]), file=sys.stderr, flush=True)
    ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        sys.exit(f"{ended.stdout}\n{shlex.join(words)} ended with {ended.returncode}")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Their mean and standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _slug(settings: str) -> str:
    """A name for a directory: what can be read of the settings, and their hash."""
    readable = re.sub(r"\W+", "_", settings.split("data.path=")[-1])[-60:].strip("_")
    return f"{readable}_{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def _shown(row: str, place: Place) -> str:
    return row.strip().format(vectors=place.data / "vectors") or " "


Make = Callable[[str, Place], Iterator[str]]


def _tags(data: str, target: str = "") -> Make:
    return lambda row, place: tagger(row, place, data, target=target)


TABLES: dict[str, tuple[list[str], Make, list[Any]]] = {
    "wikigold": (["valid", "test"], _tags("ner_wikigold"), WIKIGOLD),
    "wnut17": (["valid", "test"], _tags("ner_wnut17"), WNUT17),
    "locations": (["valid", "F1", "test", "F1"], _tags("ner_wikigold", "LOC"), LOCATIONS),
    "mr": (["valid", "test", "both", "p"], classifier, MR),
    "folds": (["ten folds", "naive Bayes"], folded, FOLDS),
    "vectors": (["WordSim-353", "SimLex-999", "analogies, %"], vectors, [*SVD, *LEARNT, LSTM]),
}
"""By the name of a table: its columns, what makes the cells of a row, and the settings of its rows."""


if __name__ == "__main__":
    main()
