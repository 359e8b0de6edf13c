"""The rows of the tables in tasks/README.md and vectors/README.md: taggers, classifiers and word vectors.

Settings were chosen on validation splits; test splits are shown and decide nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lmtrain as package
from reproducing.running import lmtrain, slug, train, training_seconds
from reproducing.tables import SEEDS, Cell, Made, Place, Row, Table, as_typed

TASKS, VECTORS = "src/lmtrain/tasks/README.md", "src/lmtrain/vectors/README.md"
WIKIGOLD, WNUT = ("ner_wikigold",), ("ner_wnut17",)
ONE = (1,)  # where nothing is drawn, or one run was enough
NUM_FOLDS = 10
QUIET = "trainer.final_split=none trainer.projector=false trainer.num_threads=1"

FULL, SMALL = "vectors/glove.6B.50d.tasks.bin", "vectors/glove.6B.50d.5k.txt"
GIVEN, GIVEN_SMALL = f"model.embeddings={{data}}/{FULL}", f"model.embeddings={{data}}/{SMALL}"
FROZEN = "model.freeze_embeddings=null"
MARGIN = "model.objective=max_margin trainer.num_epochs=50"
TWO_LAYERS = "model.hidden_sizes=[100,50] model.activation=relu"
WORDS = "model=logistic tokenizer.min_count=1"
LOGISTIC, PAIRS = "model.objective=logistic", "model.objective=max_margin trainer.num_epochs=200"
NOISY = "model.word_dropout=0.5 model.dropout=0.5"
DEEP = "model.hidden_sizes=[100] model.activation=tanh"
TUNED = f"{GIVEN} model.embed_size=50"


# ---- taggers


def tagger(settings: str, target: str, place: Place, seed: int) -> Made:
    """Entity F1 on validation and test, in per cent; of one class also the average precision."""
    path = train(settings, place, seed, QUIET)
    run, numbers = package.load(path), {}
    for split in ("valid", "test"):
        score = run.evaluate(split)
        numbers[f"{split}_f1"] = 100 * score.entity_f1
        if target:
            numbers[f"{split}_ap"] = score.average_precision[target]
    return Made(numbers, training_seconds(path))


def beside(settings: str, name: str, place: Place, seed: int) -> Made:
    """What stands beside every tagger: each word's most frequent tag, and logistic regression."""
    path = train(f"{settings} trainer.num_steps=1", place, seed, "trainer.projector=false trainer.num_threads=1")
    shares = json.loads((path / "run.json").read_text(encoding="utf-8"))["sessions"][-1]["compared"]["shares"]
    (share,) = (share for model, share in shares.items() if model.startswith(name))
    return Made({f"{split}_f1": 100 * share[split] for split in ("valid", "test")}, None)


def _tag_row(table: str, rest: str, target: str = "") -> Row:
    data = WNUT if table == "wnut17" else WIKIGOLD
    settings = f"task=tag data.path={{data}}/{data[0]} {f'model.target_class={target} ' if target else ''}{rest}".strip()
    needs = (*data, *(name for name in (FULL, SMALL) if name in rest))
    return Row(f"{table} {_short(rest)}", as_typed(settings), partial(tagger, settings, target), needs=needs)


def _beside_row(table: str, name: str) -> Row:
    data = WNUT if table == "wnut17" else WIKIGOLD
    make = partial(beside, f"task=tag data.path={{data}}/{data[0]}", name)
    return Row(f"{table} beside: {name}", f"task=tag data.path=../shared/data/{data[0]}", make, ONE, data)


def _short(rest: str) -> str:
    """Settings as the name of a row."""
    return rest.replace("model.embeddings={data}/vectors/", "").strip() or "as it stands"


F1 = "{0[valid_f1]:.2f} / {0[test_f1]:.2f}"


def _wikigold() -> Table:
    pivot: dict[str, tuple[str | None, ...]] = {
        "softmax (default)": ("", f"{GIVEN} {FROZEN}", GIVEN),
        "`model.objective=logistic`": tuple(f"{LOGISTIC} {v}" for v in ("", f"{GIVEN} {FROZEN}", GIVEN)),
        f"`{MARGIN}`": tuple(f"{MARGIN} {v}" for v in ("", f"{GIVEN} {FROZEN}", GIVEN)),
        f"softmax, `{TWO_LAYERS}`": (TWO_LAYERS, f"{GIVEN} {TWO_LAYERS} {FROZEN}", f"{GIVEN} {TWO_LAYERS}"),
        "softmax, the vectors of `glove.6B.50d.5k.txt`": (None, f"{GIVEN_SMALL} {FROZEN}", GIVEN_SMALL),
    }
    lines = tuple(
        (Cell(label), *(Cell("") if rest is None else Cell(F1, (_tag_row("wikigold", rest),)) for rest in cells))
        for label, cells in pivot.items()
    )
    return Table("wikigold", ("`task=tag` ...", "from scratch", "vectors, FROZEN", "vectors, trained further"), lines, TASKS)


def _tried(name: str, column: str, rows: dict[str, Row]) -> Table:
    lines = tuple((Cell(label), Cell(F1, (row,))) for label, row in rows.items())
    return Table(name, ("`task=tag` ...", column), lines, TASKS)


def _wikigold_tried() -> Table:
    row = partial(_tag_row, "wikigold")
    return _tried("wikigold_tried", "WikiGold", {
        "each word's most frequent tag": _beside_row("wikigold", "each word's most frequent tag"),
        f"`{WORDS}` (words, shapes and affixes; the best of ten epochs)": row(WORDS),
        "the same as it stands beside every tagger (the last of five epochs)": _beside_row("wikigold", "logistic regression"),
        "vectors, trained further, `model.dropout=0.5`": row(f"{GIVEN} model.dropout=0.5"),
        "vectors, trained further, `model.affixes=3`": row(f"{GIVEN} model.affixes=3"),
        "from scratch, `model.affixes=3`": row("model.affixes=3"),
        "from scratch, `model.shape_features=false`": row("model.shape_features=false"),
    })  # fmt: skip


def _wnut17() -> Table:
    row = partial(_tag_row, "wnut17")
    return _tried("wnut17", "WNUT-17 (`data.path=../shared/data/ner_wnut17`)", {
        "each word's most frequent tag": _beside_row("wnut17", "each word's most frequent tag"),
        f"`{WORDS}`": row(WORDS),
        "from scratch": row(""),
        "vectors, FROZEN": row(f"{GIVEN} {FROZEN}"),
        "vectors, trained further": row(GIVEN),
        "vectors, trained further, `model.affixes=3`": row(f"{GIVEN} model.affixes=3"),
        f"vectors, trained further, `{TWO_LAYERS}`": row(f"{GIVEN} {TWO_LAYERS}"),
    })  # fmt: skip


def _locations() -> Table:
    pivot: dict[str, tuple[str | None, ...]] = {
        f"`{LOGISTIC}`": (LOGISTIC, f"{LOGISTIC} {GIVEN} {FROZEN}"),
        f"`{PAIRS}`": (PAIRS, f"{PAIRS} {GIVEN} {FROZEN}"),
        "`model.objective=max_margin trainer.num_epochs=100 schedule=constant`": (
            "model.objective=max_margin trainer.num_epochs=100 schedule=constant", None,
        ),
        "`model.objective=max_margin model.corrupt=word`": ("model.objective=max_margin model.corrupt=word", None),
    }  # fmt: skip
    ap = "{0[valid_ap]:.3f} / {0[test_ap]:.3f}"
    lines = tuple(
        (Cell(label), *(Cell("") if rest is None else Cell(ap, (_tag_row("locations", rest, "LOC"),)) for rest in cells))
        for label, cells in pivot.items()
    )
    return Table("locations", ("`task=tag model.target_class=LOC` ...", "from scratch", "vectors, FROZEN"), lines, TASKS)


# ---- classifiers

TEXTS = "task=classify data.encoding=latin-1 data.path={data}/cls_mr"


def classifier(settings: str, place: Place, seed: int) -> Made:
    """Accuracy on validation, test and both, and p of McNemar's test against naive Bayes on both."""
    path = train(settings, place, seed, QUIET)
    run, numbers = package.load(path), {}
    for name, splits in (("valid", ["valid"]), ("test", ["test"]), ("both", ["valid", "test"])):
        score = run.evaluate(*splits)
        numbers[name] = 100 * score.accuracy
    if "naive Bayes" in score.baselines:
        numbers["p"] = score.mcnemar("naive Bayes").p
    return Made(numbers, training_seconds(path))


def folded(settings: str, place: Place, seed: int) -> Made:
    """The accuracies of ten folds, and those of naive Bayes on the same ones; each fold is a test once."""
    paths = [train(f"{settings} data.folds={NUM_FOLDS} data.fold={1 + fold}", place, seed, QUIET) for fold in range(NUM_FOLDS)]
    scores = [package.load(path).evaluate("test") for path in paths]
    simple = [100 * score.baseline_accuracy("naive Bayes") for score in scores if "naive Bayes" in score.baselines]
    seconds = [training_seconds(path) for path in paths]
    total = sum(each for each in seconds if each is not None) if None not in seconds else None
    return Made({"test": [100 * score.accuracy for score in scores]} | ({"naive_bayes": simple} if simple else {}), total)


MR = {
    f"`{NOISY}` (NBOW)": NOISY,
    f"`{DEEP} {NOISY}` (deep averaging)": f"{DEEP} {NOISY}",
    **{f"`{each}`": each for each in (
        "model=encoder model.cell=lstm model.pooling=max model.dropout=0.5 trainer.num_epochs=6",
        "model=logistic optimizer.learning_rate=0.001", "model=logistic model.ngrams=2 optimizer.learning_rate=0.001",
        "model=naive_bayes", "model=naive_bayes tokenizer.min_count=2", "model=frequent",
    )},
    f"`model.embeddings=../shared/data/{FULL} model.embed_size=50 model.word_dropout=0.3` (NBOW, vectors tuned)":
        f"{TUNED} model.word_dropout=0.3",
    f"the same with `{FROZEN}` (frozen)": f"{TUNED} model.word_dropout=0.3 {FROZEN}",
    f"the same vectors, `model.embed_size=50 {DEEP} model.word_dropout=0.3` (deep averaging, tuned)":
        f"{TUNED} {DEEP} model.word_dropout=0.3",
    f"the same with `{NOISY}`": f"{TUNED} {DEEP} {NOISY}",
    f"and with `{FROZEN}` as well (frozen)": f"{TUNED} {DEEP} {NOISY} {FROZEN}",
}  # fmt: skip
"""By the label of a line: its settings."""


def _text_row(table: str, rest: str, make: Callable[..., Made], seeds: tuple[int, ...]) -> Row:
    settings = f"{TEXTS} {rest}"
    needs = ("cls_mr", *([FULL] if FULL in rest else []))
    return Row(f"{table} {_short(rest)}", as_typed(settings), partial(make, settings), seeds, needs)


def _mr() -> Table:
    lines = []
    for label, rest in MR.items():
        draws = not any(model in rest for model in ("model=naive_bayes", "model=frequent"))
        row = _text_row("mr", rest, classifier, SEEDS if draws else ONE)
        cells = [Cell(f"{{0[{name}]:.2f}}", (row,)) for name in ("valid", "test", "both")]
        lines.append((Cell(label), *cells, Cell("{0[p]:each .2f}", (row,)) if draws else Cell("")))
    return Table("mr", ("task=classify ...", "valid", "test", "both", "p"), tuple(lines), TASKS)


def _folds() -> Table:
    lines = []
    for rest in (NOISY, f"{DEEP} {NOISY}", "model=logistic model.ngrams=2 optimizer.learning_rate=0.001", "model=naive_bayes",
                 f"{TUNED} model.word_dropout=0.3"):  # fmt: skip
        row = _text_row("folds", rest, folded, ONE)
        lines.append((Cell(f"`{_short(rest)}`"), Cell("{0[test]:.2f}", (row,)), Cell("{0[naive_bayes]:.2f}", (row,))))
    return Table("folds", ("task=classify ...", "ten folds", "naive Bayes"), tuple(lines))


# ---- word vectors

TESTS = ("word_tests/wordsim353.tsv", "word_tests/simlex999.txt", "word_tests/questions-words.txt")
LANGUAGE_MODEL = (
    "model=lstm model.embed_size=100 model.hidden_size=256 model.tie_weights=true model.project=true model.dropout=0.2 "
    "data=text data.path={data}/brown tokenizer=word tokenizer.lowercase=true tokenizer.min_count=5 "
    "optimizer.learning_rate=0.003 trainer.batch_size=32 trainer.clip_norm=0.25 trainer.max_seconds=300 "
    "trainer.evaluate_every=0"
)


def judged(vectors: Any, place: Place) -> dict[str, Any]:
    """Spearman's correlations, accuracy on analogies in per cent by both methods, and how many of them were answered."""
    wordsim, simlex, questions = (place.data / test for test in TESTS)
    both = {method: vectors.evaluate_analogies(questions, method=method).total for method in ("add", "mul")}
    return {
        "wordsim": vectors.evaluate_similarity(wordsim).spearman, "simlex": vectors.evaluate_similarity(simlex).spearman,
        "analogies": 100 * both["add"].accuracy, "analogies_mul": 100 * both["mul"].accuracy,
        "num_answered": both["add"].num_answered, "num_questions": both["add"].num_questions,
    }  # fmt: skip


def given_vectors(file: str, place: Place, seed: int) -> Made:
    """Vectors from elsewhere."""
    return Made(judged(package.load_vectors(place.data / file), place), None)


def trained_vectors(method: str, place: Place, seed: int) -> Made:
    """Vectors of Brown. The singular value decomposition draws nothing."""
    run = place.output / f"{slug(method)}_{seed}"
    file = run.with_name(f"{run.name}.vec")
    if not file.exists():
        draws = f"--seed {seed} --run {shlex.quote(str(run))} --set trainer.num_threads=1" if "svd" not in method else ""
        brown = shlex.quote(str(place.data / "brown"))
        lmtrain(f"vectors train {brown} {method} --lowercase --output {shlex.quote(str(file))} {draws}")
    return Made(judged(package.load_vectors(file), place), training_seconds(run) if run.exists() else None)


def language_model(settings: str, place: Place, seed: int) -> Made:
    """The vectors of a language model."""
    run = train(settings, place, seed, QUIET)
    return Made(judged(package.load_vectors(run), place), training_seconds(run))


def superposition(first: str, second: str, place: Place, seed: int) -> Made:
    """Two words that are merged."""
    brown = shlex.quote(str(place.data / "brown"))
    made = json.loads(lmtrain(f"vectors senses --check-superposition {first} {second} --data {brown} --lowercase --json"))
    return Made({name: made[name] for name in ("cosine", "frequency_share", "fitted_share")}, None)


def _given() -> Table:
    lines = []
    for file in (SMALL, FULL):
        command = f"vectors analogies ../shared/data/{file} questions-words.txt"
        row = Row(f"given {Path(file).name}", command, partial(given_vectors, file), ONE, (file, *TESTS))
        cells = (
            "{0[analogies]:.2f} ({0[analogies_mul]:.2f})", "{0[num_answered]:,.0f} of {0[num_questions]:,.0f}",
            "{0[wordsim]:.4f}", "{0[simlex]:.4f}",
        )  # fmt: skip
        lines.append((Cell(f"`{Path(file).name}`"), *(Cell(cell, (row,)) for cell in cells)))
    columns = ("vectors", "analogies (3CosMul), %", "answered", "WordSim-353", "SimLex-999")
    return Table("given", columns, tuple(lines), VECTORS)


def _vectors() -> Table:
    methods = [*(f"--method svd --counts {counts}" for counts in ("raw", "sqrt", "log", "ppmi")),
               *(f"--method {method}" for method in ("skipgram", "cbow", "glove"))]  # fmt: skip
    rows: dict[str, Row] = {}
    for method in methods:
        draws = "svd" not in method
        row = Row(f"vectors {method}", f"vectors train DATA {method} --lowercase --output FILE",
                  partial(trained_vectors, method), SEEDS if draws else ONE, ("brown", *TESTS))  # fmt: skip
        rows[f"`{method}`{' (default)' if 'ppmi' in method else ''}"] = row
    rows["an LSTM after 300 seconds (below), one run"] = Row(
        "vectors LSTM", as_typed(LANGUAGE_MODEL), partial(language_model, LANGUAGE_MODEL), ONE, ("brown", *TESTS)
    )
    forms = "{0[wordsim]:.4f}", "{0[simlex]:.4f}", "{0[analogies]:.2f}"
    lines = tuple((Cell(label), *(Cell(form, (row,)) for form in forms)) for label, row in rows.items())
    return Table("vectors", ("method", "WordSim-353", "SimLex-999", "analogies, %"), lines, VECTORS)


def _superposition() -> Table:
    lines = []
    for first, second in (("church", "market"), ("music", "blood"), ("president", "river"), ("january", "coffee")):
        command = f"vectors senses --check-superposition {first} {second} --data DATA --lowercase"
        row = Row(f"superposition {first} {second}", command, partial(superposition, first, second), ONE, ("brown",))
        forms = "{0[cosine]:.3f}", "{0[frequency_share]:.3f}", "{0[fitted_share]:.3f}"
        lines.append((Cell(f"{first} + {second}"), *(Cell(form, (row,)) for form in forms)))
    columns = ("merged", "cosine with the sum weighted by frequency", "share by frequency", "fitted")
    return Table("superposition", columns, tuple(lines), VECTORS)


TABLES = (
    _wikigold(), _wikigold_tried(), _wnut17(), _locations(), _mr(), _folds(), _given(), _vectors(), _superposition()
)  # fmt: skip
