"""The rows of the tables in scripts/README.md and data/README.md: language models of the Brown corpus and of tinyshakespeare.

Settings that were tuned (dynamic evaluation, cache, mixture weights) were tuned on validation alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lmtrain.tasks.language import SAMPLED
from reproducing.running import evaluated, lmtrain, slug, timed_evaluation, train, training_seconds
from reproducing.tables import SEEDS, Cell, Made, Place, Row, Table, as_typed

README = "scripts/README.md"
BROWN = tuple(f"brown/{split}.txt" for split in ("train", "valid", "test"))
SHAKESPEARE, GREEK = "tinyshakespeare/input.txt", "greek/install.el.txt"
ONE = (1,)  # where nothing is drawn, or a run takes more than half an hour

NGRAM = "model=ngram model.order={order} data=text tokenizer=word"
TRAININGS = {
    "Kneser-Ney 3": NGRAM.format(order=3),
    "Kneser-Ney 5": NGRAM.format(order=5),
    "example": "experiment=word_language_model trainer.num_epochs=4",
    "two minutes": "experiment=brown_fast",
    "window": "experiment=brown_window trainer.num_threads=1",
    "LSTM": "experiment=brown_lstm",
    "eight minutes": "experiment=brown_medium",
    "27 minutes": "experiment=brown_long trainer.max_seconds=1500",
    "long": "experiment=brown_long trainer.num_threads=1",
}
MIXTURES: dict[str, list[str]] = {
    "window + Kneser-Ney 5": ["window", "Kneser-Ney 5"],
    "LONG + Kneser-Ney 5": ["27 minutes", "Kneser-Ney 5"],
    "five + Kneser-Ney 5": [
        "27 minutes", "27 minutes, seed 2", "eight minutes", "eight minutes, seed 2", "eight minutes, seed 3", "Kneser-Ney 5",
    ],
}  # fmt: skip
"""By row: the models, of the row's seed unless they have another."""
ORDER = ("Kneser-Ney 3", "Kneser-Ney 5", "example", "window", "window + Kneser-Ney 5", "LSTM", "two minutes", "eight minutes",
         "27 minutes", "long", "LONG + Kneser-Ney 5", "five + Kneser-Ney 5")  # fmt: skip
CACHE = "--cache 2000 --cache-weight 0.2"
DYNAMIC = "--dynamic sgd --dynamic-rate 1 --dynamic-decay 0.002"
BOTH = "--cache 2000 --dynamic sgd --dynamic-rate 0.5"
BOTH_OF_SIX = "--cache 2000 --dynamic sgd --dynamic-rate 0.3 --dynamic-segment 10 --cache-weight 0.16 --precision bfloat16"
ADAPTED = {
    "LONG + cache": ("27 minutes", CACHE, SEEDS),
    "LONG + dynamic evaluation": ("27 minutes", DYNAMIC, SEEDS),
    "LONG + cache + dynamic evaluation": ("27 minutes", BOTH, SEEDS),
    "these six + cache": ("five + Kneser-Ney 5", CACHE, ONE),
    "these six + cache + dynamic evaluation": ("five + Kneser-Ney 5", BOTH_OF_SIX, ONE),
}
"""By row: the model, the options of `evaluate`, and the seeds."""
LABELS = {
    "Kneser-Ney 3": "Kneser-Ney, order 3 (KenLM: 280.2 / 263.9)",
    "Kneser-Ney 5": "Kneser-Ney, order 5 (KenLM: 278.0 / 261.6)",
    "example": "PyTorch's example, tied LSTM 2x200, 4 epochs",
    "two minutes": "tied LSTM 2x200, vectors of its text, sampled softmax (two minutes of two cores for all)",
    "eight minutes": "tied LSTM 600/300, vectors of its text, sampled softmax (eight minutes of two cores for all)",
    "27 minutes": "tied LSTM 600/300, vectors of its text (27 minutes of two cores for all)",
    "long": "**tied LSTM 600/300, vectors of its text, 16 epochs**",
    "five + Kneser-Ney 5": "two of 27 minutes, three of eight, and Kneser-Ney 5",
    "window": "fixed window of 8 tokens and averages of the 48 before, 5 epochs",
    "LSTM": "tied LSTM 600/300",
    "LONG + cache": "LONG + cache of 2000 tokens",
}
BOLD = {"long", "these six + cache + dynamic evaluation"}
PLACES = {"27 minutes": "LONG", "eight minutes": "MEDIUM", "window": "WINDOW", "Kneser-Ney 5": "NGRAM5"}
SEED = ", seed "


# ---- making the rows


def model(name: str, place: Place, seed: int) -> Path:
    """The run or the mixture of a name. What draws nothing is trained once for all seeds."""
    name, _, own_seed = name.partition(SEED)
    seed = int(own_seed or seed)
    if name in TRAININGS:
        return train(f"{TRAININGS[name]} data.path={{data}}/brown", place, 1 if "model=ngram" in TRAININGS[name] else seed)
    directory = place.output / f"{slug(name)}_{seed}"
    if not directory.exists():
        parts = shlex.join(str(model(part, place, seed)) for part in MIXTURES[name])
        lmtrain(f"mix {parts} --output {shlex.quote(str(directory))}")
    return directory


def static(name: str, place: Place, seed: int) -> Made:
    """Validation and test perplexity of a model as it is, and how long it trained."""
    run = model(name, place, seed)
    numbers = {split: evaluated(run, f"--split {split}")["perplexity"] for split in ("valid", "test")}
    return Made(numbers, training_seconds(run) if name in TRAININGS else None)


def adapted(name: str, place: Place, seed: int) -> Made:
    """Test perplexity of a model that adapts while it reads, and how long that takes."""
    of, options, _ = ADAPTED[name]
    made, seconds = timed_evaluation(model(of, place, seed), f"--split test {options}")
    return Made({"test": made["perplexity"]}, seconds)


def one_training(settings: str, splits: tuple[str, ...], number: str, place: Place, seed: int) -> Made:
    """One number of the evaluations of a run, by split."""
    run = train(settings, place, seed)
    return Made({split: evaluated(run, f"--split {split}")[number] for split in splits}, training_seconds(run))


def tried(options: str, place: Place, seed: int) -> Made:
    """LONG of seed 1 on the first 150,000 bytes of the validation text (28,856 tokens)."""
    text = place.output / "first_of_valid.txt"
    if not text.exists():
        text.write_bytes((place.data / "brown" / "valid.txt").read_bytes()[:150_000])
    made, seconds = timed_evaluation(model("27 minutes", place, seed), f"--text {shlex.quote(str(text))} {options}")
    return Made({"perplexity": made["perplexity"]}, seconds)


def tokens(settings: str, place: Place, seed: int) -> Made:
    """The numbers by which models of different tokens are compared, on test."""
    run = train(settings, place, seed, "trainer.projector=false")
    made = evaluated(run, "--split test")
    names = ("perplexity", "perplexity_per_word", "bits_per_character", "bits_per_byte")
    return Made({name: made[name] for name in names}, training_seconds(run))


# ---- the tables


def _place(part: str) -> str:
    name, _, seed = part.partition(SEED)
    return PLACES[name] + seed


def _command(name: str) -> str:
    if name in TRAININGS:
        return f"{TRAININGS[name]} data.path=DATA"
    if name in MIXTURES:
        return f"python -m lmtrain mix {' '.join(map(_place, MIXTURES[name]))} --output MIX"
    of, options, _ = ADAPTED[name]
    return f"evaluate {PLACES.get(of, 'MIX')} {options}"


def _brown() -> Table:
    lines = []
    models = sorted((*TRAININGS, *MIXTURES), key=ORDER.index)
    for name in (*models, *ADAPTED):
        is_single = name.startswith("Kneser") or name == "five + Kneser-Ney 5"
        seeds = ADAPTED[name][2] if name in ADAPTED else ONE if is_single else SEEDS
        row = Row(f"brown {name}", _command(name), partial(adapted if name in ADAPTED else static, name), seeds, BROWN)
        test = "**{0[test]:.1f}**" if name in BOLD else "{0[test]:.1f}"
        numbers = [Cell(template, (row,)) for template in ("{0[valid]:.1f}", test)]
        others = [Cell(template, (row,)) for template in (f"`{row.command}`", "{0[time]}", "{0[measured]}")]
        lines.append((Cell(LABELS.get(name, name)), *numbers, *others))
    return Table("brown", ("model", "valid", "test", "command", "time", "measured"), tuple(lines), README)


DEFAULTS = "model={name} data=text data.path={{data}}/brown tokenizer=word"


def _defaults() -> Table:
    lines = []
    for name, added in (*((each, "") for each in ("window", "elman", "gru", "lstm")), ("lstm", f" {SAMPLED}")):
        settings = DEFAULTS.format(name=name) + added
        make, command = partial(one_training, settings, ("test",), "perplexity"), as_typed(settings)
        row = Row(f"defaults {name}{', sampled' * bool(added)}", command, make, needs=BROWN)
        lines.append((Cell(f"`{command}`"), Cell("{0[test]:.1f}", (row,)), Cell("{0[measured]}", (row,))))
    return Table("defaults", ("45 seconds of", "test", "measured"), tuple(lines), README)


CHARACTERS = {
    "LSTM": f"experiment=char_lstm data.path={{data}}/{SHAKESPEARE} trainer.max_seconds=90",
    "CHARS": f"experiment=char_lstm data.path={{data}}/{SHAKESPEARE} trainer.max_seconds=65",
    "NGRAM7": "model=ngram model.order=7 model.state_policy=carry data=text tokenizer=char "
    f"data.path={{data}}/{SHAKESPEARE} data.valid_fraction=0.1 data.test_fraction=0",
}


def mixed_characters(place: Place, seed: int) -> Made:
    """Nats per validation character of CHARS and NGRAM7, mixed, and the seconds in which both trained."""
    parts = [train(CHARACTERS["CHARS"], place, seed), train(CHARACTERS["NGRAM7"], place, 1)]
    mixture = place.output / f"{slug('characters mixed')}_{seed}"
    if not mixture.exists():
        lmtrain(f"mix {shlex.join(map(str, parts))} --output {shlex.quote(str(mixture))}")
    return Made(
        {"valid": evaluated(mixture, "--split valid")["nats_per_token"]}, sum(training_seconds(part) or 0.0 for part in parts)
    )


def _characters() -> Table:
    rows = [
        Row(f"characters {name}", as_typed(settings),
            partial(one_training, settings, ("valid",), "nats_per_token"),
            ONE if name == "NGRAM7" else SEEDS, (SHAKESPEARE,))
        for name, settings in CHARACTERS.items()
    ]  # fmt: skip
    command = "python -m lmtrain mix CHARS NGRAM7 --output MIX"
    rows.append(Row("characters CHARS + NGRAM7", command, mixed_characters, needs=(SHAKESPEARE,)))
    labels = ("LSTM", "CHARS, the same in less time", "NGRAM7, Kneser-Ney", "**CHARS + NGRAM7**")
    lines = [
        (Cell(label), *(Cell(template, (row,)) for template in (number, f"`{row.command}`", "{0[time]}", "{0[measured]}")))
        for label, row in zip(labels, rows, strict=True)
        for number in ["**{0[valid]:.3f}**" if "+" in label else "{0[valid]:.3f}"]
    ]
    return Table("characters", ("model", "nats per character", "command", "time", "measured"), tuple(lines), README)


SMALL_LSTM = (
    "model=lstm model.embed_size=200 model.hidden_size=200 model.num_layers=2 model.tie_weights=true model.dropout=0.2 "
    "data=text data.path={data}/brown tokenizer=word trainer=epochs trainer.batch_size=20 trainer.chunk_length=35 "
    "trainer.clip_norm=0.25 optimizer.learning_rate=0.002 schedule=cosine trainer.num_epochs=1"
)


def _precision() -> Table:
    lines = []
    for precision in ("bfloat16", "float32"):
        settings = f"{SMALL_LSTM} trainer.precision={precision}"
        make = partial(one_training, settings, ("valid",), "perplexity")
        row = Row(f"precision {precision}", as_typed(settings), make, (1, 2, 3, 4), BROWN)
        cells = (f"`trainer.precision={precision}`", "{0[valid]:each .1f}", "{0[valid]:mean .1f}", "{0[measured]}")
        lines.append(tuple(Cell(template, (row,)) for template in cells))
    return Table("precision", ("products", "seeds 1 to 4", "mean", "measured"), tuple(lines), README)


TRIALS: dict[str, list[str]] = {
    "no adaptation": [""],
    "dynamic evaluation, rate 0.03 / 0.1 / 0.3 / 1 / 2": [f"--dynamic sgd --dynamic-rate {x}" for x in (0.03, 0.1, 0.3, 1, 2)],
    "cache of 2000 tokens, weight 0.13 / 0.2": [f"--cache 2000 --cache-weight {x}" for x in (0.13, 0.2)],
    "cache of 500 / 1000 / 5000 tokens": [f"--cache {x}" for x in (500, 1000, 5000)],
    "cache of 2000 tokens, sharpness 0.3 / 1": [f"--cache 2000 --cache-theta {x}" for x in (0.3, 1)],
    "cache and dynamic evaluation, rate 0.5 / 1": [f"--cache 2000 --dynamic sgd --dynamic-rate {x}" for x in (0.5, 1)],
    "temperature 0.95 / 1.05, which gains nothing": [f"--temperature {x}" for x in (0.95, 1.05)],
}


def _trials() -> Table:
    lines = []
    for label, options in TRIALS.items():
        rows = tuple(
            Row(
                f"trials {each or 'no adaptation'}",
                f"evaluate LONG --text FILE {each}".strip(),
                partial(tried, each),
                ONE,
                BROWN,
            )
            for each in options
        )
        numbers = " / ".join(f"{{{number}[perplexity]:.1f}}" for number in range(len(rows)))
        lines.append((Cell(label), Cell(numbers, rows)))
    return Table("trials", ("method", "perplexity"), tuple(lines), README)


KINDS = {
    "words, spelled": "tokenizer=word tokenizer.unknown=spelled tokenizer.min_count=2",
    "bpe, 2,000": "tokenizer=bpe tokenizer.vocab_size=2000",
    "characters": "tokenizer=char trainer.chunk_length=64",
    "bytes": "tokenizer=byte trainer.chunk_length=64",
}
OF_TOKENS = (
    "model.embed_size=128 model.hidden_size=256 model.dropout=0.3 optimizer.learning_rate=0.004 trainer.batch_size=32 "
    "trainer.num_epochs=4 "
    "trainer.max_seconds=null trainer.evaluate_every=0 trainer.num_threads=1"
)
TEXTS = {"tinyshakespeare": (SHAKESPEARE, ""), "Greek": (GREEK, " data.split=shuffled_documents")}


def _tokens() -> Table:
    lines = []
    for kind, tokenizer in KINDS.items():
        rows: list[Row] = []
        for text, (file, split) in TEXTS.items():
            settings = f"data=text data.path={{data}}/{file}{split} {tokenizer} {OF_TOKENS}"
            make: Callable[[Place, int], Made] = partial(tokens, settings)
            rows.append(Row(f"tokens {text}, {kind}", as_typed(settings), make, ONE, (file,)))
        of_text = "{0[perplexity]:.2f}", "{0[perplexity_per_word]:,.0f}", "{0[bits_per_character]:.3f}"
        cells = [Cell(template, (row,)) for row in rows for template in of_text]
        lines.append((Cell(kind), *cells, Cell("{0[bits_per_byte]:.3f}", (rows[1],))))
    columns = (
        "tokens", "tinyshakespeare: per token", "per word", "bits per character",
        "Greek: per token", "per word", "bits per character", "bits per byte",
    )  # fmt: skip
    return Table("tokens", columns, tuple(lines), "src/lmtrain/data/README.md")


TABLES = (_brown(), _defaults(), _characters(), _precision(), _trials(), _tokens())
