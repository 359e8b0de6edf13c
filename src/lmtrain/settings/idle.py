"""Settings that have no effect beside others, and what to change where training diverges: what is remarked, not refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise

from lmtrain.config import (
    COUNTED,
    FROM_TEXT,
    Averaging,
    Cell,
    Config,
    CorpusConfig,
    FinalSplit,
    GloveConfig,
    HeadName,
    LanguageConfig,
    LogisticConfig,
    ModelConfig,
    NgramConfig,
    Objective,
    OneCycleConfig,
    OnNonfinite,
    RecurrentConfig,
    Smoothing,
    TextConfig,
    WindowConfig,
    WordVectorsConfig,
    task_of,
)
from lmtrain.data.sources import has_records, has_splits
from lmtrain.rules import OPTIONS


def iter_idle(config: Config, keys: Collection[str]) -> Iterator[str]:
    """A line for each of the settings `keys` that is read by nothing, because of how others are set."""
    needs = needs_of(config)
    for key in keys:
        matters, need = needs.get(key, (True, ""))
        if isinstance(config.model, COUNTED) and (
            key in COUNTING_IGNORES or key.partition(".")[0] in ("optimizer", "schedule")
        ):
            matters, need = False, "a model that is trained by gradients; this one is counted in one pass"
        if not matters:
            yield f"{key} has no effect here: it needs {need}."


def needs_of(config: Config) -> dict[str, tuple[bool, str]]:
    """Settings that matter only beside others: whether they do in `config`, and what they need for it."""
    model, optimizer, schedule, trainer, data = config.model, config.optimizer, config.schedule, config.trainer, config.data
    head = getattr(model, "head", None)
    one_cycle = isinstance(schedule, OneCycleConfig)
    has_beta1 = "beta1" in OPTIONS[optimizer.name.name] or optimizer.momentum > 0
    drops = any(getattr(model, name, None) for name in ("dropout", "input_dropout", "hidden_dropout", "output_dropout"))
    num_layers = len(getattr(model, "hidden_sizes", [])) or getattr(model, "num_layers", 0)
    embeddings = getattr(model, "embeddings", "")
    is_cut = isinstance(data, TextConfig) and not has_splits(data.path)
    is_language = isinstance(model, LanguageConfig)
    is_indicators, task = isinstance(model, LogisticConfig), task_of(data, model)
    is_range_test = config.is_range_test
    return {
        **{f"trainer.{name}": (is_language, "a language model") for name in OF_LANGUAGE},
        **{f"model.{name}": (not is_indicators or task == "tag", "task=tag") for name in OF_TAGS},
        "model.ngrams": (task == "classify", "task=classify"),
        "model.nonlinearity": (getattr(model, "cell", None) is Cell.elman, "model=elman"),
        "model.forget_bias": (getattr(model, "cell", None) is Cell.lstm, "model=lstm"),
        "model.cutoffs": (head is HeadName.adaptive, "model.head=adaptive"),
        "model.div_value": (
            head is HeadName.adaptive and not getattr(model, "tie_weights", False),
            "model.head=adaptive without model.tie_weights=true",
        ),
        "model.num_samples": (head is HeadName.sampled, "model.head=sampled"),
        "model.proposal": (head is HeadName.sampled, "model.head=sampled"),
        "model.maxent_table": (bool(getattr(model, "maxent_order", 0)), "model.maxent_order=2 or more"),
        "model.unigram_bias": (not config.start_from, "a new model; here the weights are those of start_from"),
        "model.hidden_size": (not getattr(model, "hidden_sizes", None), "an empty model.hidden_sizes"),
        "model.num_layers": (not getattr(model, "hidden_sizes", None), "an empty model.hidden_sizes"),
        "model.residual": (
            any(size == after for size, after in pairwise(_sizes(model))),
            "a layer of as many outputs as inputs",
        ),
        "model.hidden_dropout": (num_layers > 1, "two layers or more"),
        "model.locked_dropout": (drops, "a model.dropout above 0"),
        "model.freeze_embeddings": (bool(embeddings), "model.embeddings=RUN|FILE"),
        "model.project_embeddings": (embeddings not in ("", FROM_TEXT), "model.embeddings=RUN|FILE"),
        "model.noise_power": (getattr(model, "num_negatives", 1) > 0, "model.num_negatives above 0"),
        "model.corrupt": (getattr(model, "objective", None) is Objective.max_margin, "model.objective=max_margin"),
        "model.add_k": (getattr(model, "smoothing", Smoothing.add_k) is Smoothing.add_k, "model.smoothing=add_k"),
        "tokenizer.unknown": (task != "vectors", "a language model"),
        "data.reverse": (not isinstance(model, GloveConfig), "another model than glove, which counts pairs in either order"),
        "tokenizer.lowercase": (isinstance(data, CorpusConfig), "a running text; here type model.lowercase=true"),
        "model.activation": (getattr(model, "hidden_sizes", None) != [], "model.hidden_sizes"),
        "data.fold": (getattr(data, "folds", 0) > 0, "data.folds above 0"),
        "data.valid_fraction": (is_cut, "a single text, data=text data.path=FILE"),
        "data.test_fraction": (is_cut, "a single text, data=text data.path=FILE"),
        "data.field": (isinstance(data, TextConfig) and has_records(data.path), "a text in .jsonl files"),
        "data.split": (is_cut, "a text without splits of its own"),
        "data.split_seed": (
            getattr(getattr(data, "split", None), "name", "contiguous") != "contiguous",
            "data.split=shuffled_lines",
        ),
        "optimizer.ema_decay": (optimizer.averaging is Averaging.ema, "optimizer.averaging=ema"),
        "optimizer.patience": (optimizer.averaging is Averaging.nt_asgd, "optimizer.averaging=nt_asgd"),
        "optimizer.beta1": (not one_cycle, "another schedule than one_cycle, which moves it from schedule.beta1_high"),
        "optimizer.learning_rate": (
            not is_range_test,
            "another schedule than range_test, which goes from schedule.low to schedule.high",
        ),
        "trainer.final_split": (not is_range_test, "another schedule than range_test, which ends with its curve"),
        "schedule.beta1_low": (has_beta1, "optimizer=adam, or a momentum"),
        "schedule.beta1_high": (has_beta1, "optimizer=adam, or a momentum"),
        "trainer.baselines": (
            not isinstance(model, (LogisticConfig, NgramConfig, WordVectorsConfig))
            and not is_range_test
            and trainer.final_split is not FinalSplit.none,
            "a final test, of a model of a language, of tags or of labels that is none of the simplest itself",
        ),
        "trainer.evaluation_tokens": (isinstance(model, LanguageConfig), "a language model: other tasks evaluate all"),
        "trainer.sample_temperature": (trainer.sample_tokens != 0, "trainer.sample_tokens above 0"),
    }


def _sizes(model: ModelConfig) -> list[int]:
    """The size of what enters the first layer of a recurrent or a window model, and of what leaves each layer."""
    match model:
        case RecurrentConfig():
            sizes = model.hidden_sizes or [model.hidden_size] * model.num_layers
            return [model.embed_size, *(model.projection_size or size for size in sizes)]
        case WindowConfig():
            return [(model.context + model.num_averages) * model.embed_size, *[model.hidden_size] * model.num_layers]
    return []


SMALLEST_FLOAT = 2.0**-126  # in float32; training rounds what is smaller to 0


def remedy_for_divergence(config: Config, resume: str) -> str:
    """What to type after training diverged; `resume` is the argument that names the run."""
    optimizer, trainer = config.optimizer, config.trainer
    if "epsilon" in OPTIONS[optimizer.name.name] and optimizer.epsilon < SMALLEST_FLOAT:
        return (
            f"optimizer.epsilon={optimizer.epsilon:g} makes {optimizer.name.name} divide 0 by 0 where a weight has had no "
            f"gradient yet: that is the likely cause. Type  python -m lmtrain {resume} optimizer.epsilon=1e-08"
        )
    clip = "a smaller trainer.clip_norm" if trainer.clip_norm else "trainer.clip_norm=0.25 (0 does not clip)"
    rollback = ", or trainer.on_nonfinite=rollback" if trainer.on_nonfinite is not OnNonfinite.rollback else ""
    return f"Type  python -m lmtrain {resume}  with a smaller optimizer.learning_rate, {clip}{rollback}."


OF_LANGUAGE = (
    "chunk_length", "backward_length", "random_chunk_length", "random_offset", "evaluation_streams", "sample_tokens",
    "cuda_graph",
)  # fmt: skip
"""Settings of the trainer that no other task reads."""

OF_TAGS = ("context", "shape_features", "affixes")
"""Settings of logistic regression that task=classify does not read."""

COUNTING_IGNORES = [
    f"trainer.{name}"
    for name in (
        "batch_size", "chunk_length", "backward_length", "random_chunk_length", "random_offset", "num_steps", "num_epochs",
        "max_seconds", "patience", "clip_norm", "precision", "on_nonfinite", "cuda_graph", "check_gradients",
        "watch_gradients",
    )
]  # fmt: skip
