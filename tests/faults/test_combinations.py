"""Settings drawn at random from all there are: a combination trains, is interrupted and resumes to the same bits, or a rule
that is written down here forbids it and a paragraph says so.

The ordinary suite tries a few dozen; `pytest -m slow tests/faults/test_combinations.py` tries a thousand.
"""

import dataclasses
import json
import math
import random
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import lmtrain.config as config
from lmtrain.commands.train import resume, train
from lmtrain.errors import DivergedError, UserError
from lmtrain.settings import reading

KINDS: dict[str, tuple[type, ...]] = {
    "model": (config.RecurrentConfig, config.WindowConfig, config.NgramConfig), "data": (config.TextConfig,),
    "tokenizer": (config.TokenizerConfig,),
    "optimizer": (config.OptimizerConfig,), "schedule": config.KINDS[config.ScheduleConfig],
    "trainer": (config.TrainerConfig,),
}  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "model.embed_size": [1, 3, 4, 6], "model.hidden_size": [1, 3, 4, 6], "model.num_layers": [1, 1, 2, 3],
    "model.embeddings": ["", "", "svd"], "model.freeze_embeddings": [0.0, 2.0, None],
    "model.cutoffs": [[2000, 10000], [3], [2, 5], [5, 2], [1], []], "model.num_samples": [1, 3, 600],
    "model.maxent_order": [0, 0, 0, 1, 2, 3, 8], "model.maxent_table": [1024, 1025, 5000],
    "model.hidden_sizes": [[], [], [3], [4, 2], [1, 6, 1]], "model.projection_size": [0, 0, 1, 4],
    "model.context": [1, 2, 5, 60], "model.num_averages": [0, 0, 1, 3], "model.average_span": [0, 0, 1, 40],
    "model.order": [*range(1, 11)], "model.div_value": [1.0, 4.0, 100.0], "model.init_range": [1e-6, 0.1, 10.0],
    "model.forget_bias": [-100.0, 0.0, 1.0, 100.0], "model.activation_penalty": [0.0, 0.0, 2.0],
    "model.temporal_penalty": [0.0, 0.0, 1.0], "model.add_k": [1e-9, 0.1, 100.0],
    "model.prune": [[], [], [0], [0, 1], [0, 0, 2, 1000], [1], [0, 2, 1]],
    "data.path": ["text.txt", "directory"], "data.field": ["text", "body"], "data.workers": [0, 1, 2],
    "data.split": ["contiguous", "shuffled_lines"], "data.split_seed": [1, 5],
    "data.cache_dir": ["cache"], "data.valid_fraction": [0.05, 0.3, 0.6],
    "data.test_fraction": [0.0, 0.05, 0.3, 0.5],
    "tokenizer.min_count": [1, 2, 1000], "tokenizer.vocab_size": [0, 0, 1, 3, 7, 1000],
    "tokenizer.name": ["char", "char", "byte", "byte", "word", "word", "bpe", "file", "unigram"],
    "tokenizer.path": ["", "", "", "subword.json"], "tokenizer.vocabulary": ["", "", "words.txt"],
    "tokenizer.separators": [[], [], ["U+00A0", "x"]],
    "optimizer.learning_rate": [1e-6, 0.001, 0.01, 0.5, 5.0, 1000.0], "optimizer.weight_decay": [0.0, 0.0, 1e-4, 1.0],
    "optimizer.l1": [0.0, 0.0, 1e-4, 1.0], "optimizer.epsilon": [1e-8, 1e-8, 1e-3, 1.0],
    "optimizer.patience": [1, 2, 5], "schedule.patience": [1, 2], "schedule.every": [0.1, 1.0, 3.5],
    "schedule.after": [0.0, 0.5, 2.0], "schedule.div": [1.0, 10.0], "schedule.low": [1e-6, 1e-3, 2.0],
    "schedule.high": [1e-5, 0.1, 1.0],
    "trainer.batch_size": [1, 2, 2, 3, 3, 4, 5, 5000], "trainer.chunk_length": [1, 2, 5, 9, 20, 35],
    "trainer.backward_length": [0, 0, 1, 2, 5, 10, 24, 39, 70], "trainer.num_steps": [5], "trainer.max_seconds": [None],
    "trainer.num_epochs": [None, None, 0.1, 1.0, 2.5], "trainer.clip_norm": [0.0, 1e-3, 0.25, 1e6],
    "trainer.check_gradients": [0, 0, 2],
    "trainer.log_every": [1, 2, 7], "trainer.evaluate_every": [0, 1, 2, 3, 1000], "trainer.evaluation_streams": [1, 2, 50],
    "trainer.save_every": [0, 1, 2, 3, 1000], "trainer.keep": [0, 1, 2, 3],
    "trainer.patience": [None, None, 1, 2], "trainer.evaluation_tokens": [None, 0, 7, 40],
    "trainer.sample_tokens": [None, 0, 1, 3], "trainer.sample_temperature": [0.0, 0.8, 100.0],
    "trainer.num_threads": [1], "trainer.seed": [0, 1, 2**32 - 1],
}  # fmt: skip
"""What is drawn where a range alone would make models that take long, or never the values where something changes."""

OPTIONS = {"momentum": 0.0, "nesterov": False, "beta1": 0.9, "beta2": 0.999, "alpha": 0.99, "epsilon": 1e-8}
READ = {
    "sgd": ["momentum", "nesterov"], "adagrad": ["epsilon"], "rmsprop": ["momentum", "alpha", "epsilon"],
    **{key: ["beta1", "beta2", "epsilon"] for key in ["adam", "adamw", "sparse_adam"]},
}  # fmt: skip
"""The options of optimisers with their defaults, and which optimiser reads which."""

HAS_SUBWORDS = find_spec("tokenizers") is not None
FEW, MANY = 40, 1000


def drawn(chance: random.Random) -> dict[str, dict[str, Any]]:
    """Settings, most of them at their defaults, of every kind there is."""
    settings: dict[str, dict[str, Any]] = {}
    for group, kinds in KINDS.items():
        cls = chance.choice(kinds)
        settings[group] = dict(_iter_fields(group, cls, chance))
    if chance.random() < 0.8:  # else almost every combination would hold an option that the optimiser does not read
        read = READ[settings["optimizer"].get("name", "adam")]
        settings["optimizer"] = {k: v for k, v in settings["optimizer"].items() if k in read or k not in OPTIONS}
        settings["tokenizer"] = _fitting(settings["tokenizer"])
    return settings


def _fitting(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What the tokenizer reads, and what it needs."""
    match tokenizer["name"]:
        case "file":
            return {"name": "file", "path": "subword.json"}
        case "bpe" | "unigram":
            fitting = tokenizer | {"vocab_size": 270, "path": "", "vocabulary": "", "separators": [], "unknown": "token"}
            return fitting if fitting["name"] == "bpe" else fitting | {"min_count": 1}
        case "word":
            return tokenizer | {"path": ""}
    return tokenizer | {"path": "", "vocabulary": "", "separators": [], "unknown": "token"}


def _iter_fields(group: str, cls: type, chance: random.Random) -> Iterator[tuple[str, Any]]:
    share = chance.choice([0.05, 0.1, 0.4])  # of the settings that are not at their defaults
    hints = typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        key = f"{group}.{spec.name}"
        always = key in ("data.path", "data.cache_dir", "trainer.num_steps", "trainer.num_threads", "trainer.batch_size",
                         "trainer.chunk_length", "model.embed_size", "model.hidden_size", "tokenizer.name")  # fmt: skip
        if spec.name == "kind":
            yield "kind", spec.default
        elif always or key == "model.cell" or chance.random() < share:
            yield spec.name, chance.choice(VALUES[key]) if key in VALUES else _value(hints[spec.name], spec.metadata, chance)


def _value(hint: Any, metadata: Any, chance: random.Random) -> Any:
    """Any value of a setting that is a choice, or lies between bounds."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return chance.choice([None, _value(typing.get_args(hint)[0], metadata, chance)])
    if hint is bool:
        return chance.choice([False, True])
    if issubclass(hint, Enum):
        return chance.choice(list(hint.__members__))
    assert hint is float, hint
    low = metadata["least"] if "least" in metadata else metadata["above"] + 1e-3
    high = metadata["most"] if "most" in metadata else metadata["below"] - 1e-3
    return chance.choice([low, high, low + (high - low) * 0.1, low + (high - low) * 0.5])


# ---- the rules


def rules(read: config.Config) -> Iterator[str]:
    """Every reason for which these settings may be refused, written down independently of the code that refuses them."""
    model, optimizer, trainer = read.model, read.optimizer, read.trainer
    if isinstance(model, config.NgramConfig):
        if sorted(model.prune) != model.prune or model.prune[:1] == [1] or len(model.prune) > model.order:
            yield "contexts stay, and words"
        if model.prune and model.smoothing is not config.Smoothing.kneser_ney:
            yield "one method says what becomes of what is left out"
        return
    assert isinstance(model, config.NeuralConfig)
    if model.head.name == "adaptive":
        if sorted(set(model.cutoffs)) != model.cutoffs:
            yield "cutoffs ascend"
        if model.project and not model.tie_weights:
            yield "an adaptive softmax projects for tied weights alone"
        yield "cutoffs?"  # whether one of them lies within the vocabulary is known with the text
    if model.embeddings == "svd":
        if model.tie_weights and model.freeze_embeddings != 0:
            yield "frozen vectors would freeze the output"
        yield "svd?"  # vectors have fewer numbers than the text has tokens
    if model.maxent_order == 1 or (model.maxent_order and model.head.name != "full"):
        yield "hashed n-grams begin with bigrams, and need a full softmax"
    if model.maxent_order and (model.activation_penalty or model.temporal_penalty):
        yield "hashed n-grams go without penalties on activations"
    if model.tie_weights and not model.project and _output_size(model) != model.embed_size:
        yield "tied weights have one size"
    if isinstance(model, config.WindowConfig) and (model.num_averages > 0) != (model.average_span > 0):
        yield "averages need a span"
    if model.init.name == "identity" and getattr(model, "cell", None) is not config.Cell.elman:
        yield "identity is for Elman's recurrence"
    if optimizer.name.name == "sparse_adam" and model.tie_weights:
        yield "sparse_adam moves only the rows of a chunk"
    if trainer.batch_size == 5000:
        yield "too little text for so many streams"
    if trainer.device.name == "cuda" or trainer.cuda_graph.name == "on":
        yield "there is no GPU"
    if getattr(model, "backend", None) is config.Backend.triton:
        yield "Triton's kernels need a GPU"
    if getattr(model, "backend", None) is config.Backend.native:
        yield "native?"  # the compiled kernels do not know every option


def common_rules(read: config.Config) -> Iterator[str]:
    """Those that hold for every kind of model."""
    optimizer, schedule, trainer = read.optimizer, read.schedule, read.trainer
    name, rate = optimizer.name.name, optimizer.learning_rate
    if rate > {"sgd": math.inf, "adagrad": 10.0}.get(name, 1.0):
        yield "rates are small where gradients are divided by their size"
    for option, default in OPTIONS.items():
        if option not in READ[name] and getattr(optimizer, option) != default:
            yield f"{option} is not read"
    if name == "sparse_adam" and (optimizer.weight_decay or optimizer.l1):
        yield "sparse_adam moves only the rows of a chunk"
    if optimizer.nesterov and not optimizer.momentum:
        yield "Nesterov's method needs a momentum"
    if isinstance(schedule, config.OneCycleConfig) and schedule.up + schedule.flat + schedule.down > 1:
        yield "shares sum to one at the most"
    if isinstance(schedule, config.RangeTestConfig) and schedule.low >= schedule.high:
        yield "a range rises"
    if 0 < trainer.backward_length < trainer.chunk_length:
        yield "gradients reach back a chunk at the least"
    yield from tokenizer_rules(read.tokenizer)
    if read.data.valid_fraction + read.data.test_fraction >= 1:
        yield "something is left to train on"
    if read.trainer.distributed.name == "ddp":
        yield "torchrun starts several processes"
    if read.trainer.device.name == "cuda":
        yield "there is no GPU"


def tokenizer_rules(tokenizer: config.TokenizerConfig) -> Iterator[str]:
    """Those of what a token is."""
    name = tokenizer.name.name
    is_limited = tokenizer.min_count > 1 or tokenizer.vocab_size > 0
    if name in ("byte", "file") and is_limited:
        yield "what is fixed is not learnt"
    elif 0 < tokenizer.vocab_size < 3:
        yield "a vocabulary of three at the least"
    if name == "unigram" and tokenizer.min_count > 1:
        yield "unigram counts no pairs"
    if name in ("bpe", "unigram") and tokenizer.vocab_size < 257:
        yield "there are 256 bytes"
    if (name == "file") != (tokenizer.path != ""):
        yield "a file is named where one is read"
    if name in ("bpe", "unigram", "file") and not HAS_SUBWORDS:
        yield "the extra is not installed"
    if name != "word" and (tokenizer.vocabulary or tokenizer.separators or tokenizer.unknown.name == "spelled"):
        yield "words alone have separators and a list, and are spelt"
    if tokenizer.vocabulary and is_limited:
        yield "a list says which words there are"


def _output_size(model: config.NeuralConfig) -> int:
    if isinstance(model, config.WindowConfig):
        return model.hidden_size + (model.context * model.embed_size if model.direct else 0)
    assert isinstance(model, config.RecurrentConfig)
    return model.projection_size or (model.hidden_sizes or [model.hidden_size])[-1]


def unchecked(settings: dict[str, dict[str, Any]]) -> config.Config:
    """The settings as objects, whether they go together or not."""
    problems: list[str] = []
    read = reading.read_settings(config.Config, settings, "", problems)
    assert problems == [], problems
    return typing.cast(config.Config, read)


# ---- the test


@pytest.fixture
def texts(place: Path) -> None:
    """`directory` with the three files of a corpus, beside text.txt."""
    lines = (place / "text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "directory").mkdir()
    (place / "words.txt").write_text("cat\nthe\nmat\n", encoding="utf-8")
    if HAS_SUBWORDS:
        from lmtrain.data.subword import learn_bpe

        (place / "subword.json").write_text(json.dumps(learn_bpe(lines, vocab_size=270, min_count=1)), encoding="utf-8")
    for name, part in (("train", lines[:70]), ("valid", lines[70:80]), ("test", lines[80:])):
        (place / "directory" / f"{name}.txt").write_text("".join(part), encoding="utf-8")


def try_combination(number: int, at_step: Callable[..., None], assert_same_end: Callable[[Path, Path], None]) -> str:
    """How a combination ended: trained, diverged or refused. A traceback, or a refusal without a rule, is a failure."""
    chance = random.Random(number)
    settings = drawn(chance)
    forbidding = [*common_rules(read := unchecked(settings)), *rules(read)]
    whole, cut = Path(f"whole-{number}"), Path(f"cut-{number}")
    try:
        train(reading.read_config(settings), whole)
    except DivergedError:
        return "diverged"
    except UserError as error:
        if not forbidding:
            pytest.fail(f"no rule forbids {number}: {settings}\n{error}")
        return "refused"
    certain = [rule for rule in forbidding if not rule.endswith("?")]
    assert not certain, f"{certain} must refuse {number}: {settings}"

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    at_step({chance.choice([2, 3, 4, 5]): interrupt})
    try:
        train(reading.read_config(settings), cut)
    except KeyboardInterrupt:
        at_step({})
        resume(cut, {})
    at_step({})
    assert_same_end(cut, whole)
    return "trained"


@pytest.mark.parametrize("number", [pytest.param(n, marks=[] if n < FEW / 2 else [pytest.mark.slow]) for n in range(FEW)])
def test_a_combination_trains_and_resumes_exactly_or_is_refused_by_a_rule(
    number: int, place: Path, texts: None, at_step: Callable[..., None], assert_same_end: Callable[..., None]
) -> None:
    try_combination(number, at_step, assert_same_end)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_a_thousand_combinations_train_and_resume_exactly_or_are_refused_by_a_rule(
    batch: int, place: Path, texts: None, at_step: Callable[..., None], assert_same_end: Callable[..., None]
) -> None:
    ends = [try_combination(FEW + number, at_step, assert_same_end) for number in range(MANY)[batch::20]]
    print({end: ends.count(end) for end in set(ends)})
    assert ends.count("trained") >= len(ends) / 4


def test_every_setting_is_drawn() -> None:
    """Each takes at least two values, but for those that must be fixed for a comparison."""
    seen: dict[str, set[str]] = {}
    for number in range(2000):
        for group, values in drawn(random.Random(number)).items():
            for name, value in values.items():
                seen.setdefault(f"{group}.{name}", set()).add(repr(value))
    for group, kinds in KINDS.items():
        names = {f"{group}.{spec.name}" for cls in kinds for spec in dataclasses.fields(cls)}
        assert names <= set(seen)
    fixed = {
        "data.kind", "data.cache_dir", "trainer.num_steps", "trainer.max_seconds", "trainer.num_threads",
    }  # fmt: skip
    assert {key for key, values in seen.items() if len(values) < 2} == fixed


def test_the_rules_let_most_combinations_through() -> None:
    """More than a third is certainly allowed, or this file would test refusals."""
    reads = [unchecked(drawn(random.Random(number))) for number in range(400)]
    assert sum(not [*common_rules(read), *rules(read)] for read in reads) > 133
