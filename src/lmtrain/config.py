"""Every setting there is: its type, its default, its range, its meaning, and whether a resumed run may change it.

Plain dataclasses, without torch and without Hydra, so that settings are checked before anything heavy is imported.
Hydra composes them from `conf/`; a checkpoint stores them as JSON; `read_config` turns either mapping into a `Config`
and reports *all* that is wrong with it at once, each with the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from lmtrain.errors import SettingsError
from lmtrain.shell import expanded, quoted_for_shell

MAX_LIST = 1000  # items of a setting that is a list, also in a checkpoint


class Resume(Enum):
    """What happens when a resumed run is given another value than it was started with."""

    allowed = "allowed"
    warned = "warned"
    refused = "refused"


def setting(
    default: Any,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    resume: Resume = Resume.warned,
) -> Any:
    """A dataclass field with its meaning, its range (least <= value <= most, above < value < below) and its resume rule."""
    metadata = {"meaning": meaning, "least": least, "most": most, "above": above, "below": below, "resume": resume}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def fixed(kind: str) -> Any:
    """The field that says which of several classes of settings a mapping is; it cannot be set to anything else."""
    return field(default=kind, metadata={"meaning": "The kind of these settings.", "only": kind, "resume": Resume.refused})


Cell = Enum("Cell", "elman gru lstm")
Nonlinearity = Enum("Nonlinearity", "tanh relu sigmoid")
Activation = Enum(
    "Activation", "sigmoid tanh hard_tanh relu leaky_relu parametric_relu silu swish gelu gelu_logistic glu swiglu"
)
Policy = Enum("Policy", "carry line document")
HeadName = Enum("HeadName", "full adaptive sampled")
Proposal = Enum("Proposal", "log_uniform unigram")
Initialisation = Enum("Initialisation", "xavier uniform fan identity")
Backend = Enum("Backend", "auto reference eager native triton")
Smoothing = Enum("Smoothing", "kneser_ney add_k maximum_likelihood")
TokenizerName = Enum("TokenizerName", "char byte word")
OptimizerName = Enum("OptimizerName", "sgd adagrad rmsprop adam adamw sparse_adam")
Averaging = Enum("Averaging", "none nt_asgd ema")
Device = Enum("Device", "auto cpu cuda")
Precision = Enum("Precision", "auto float32 bfloat16")
CudaGraph = Enum("CudaGraph", "auto on off")
OnNonfinite = Enum("OnNonfinite", "stop skip rollback")


# ---- models


@dataclass(kw_only=True)
class ModelConfig:
    """What every model has."""

    kind: str = ""
    state_policy: Policy = setting(
        Policy.carry,
        "When the model forgets: never (carry), at a line's end, or at an empty line.",
        resume=Resume.refused,
    )


@dataclass(kw_only=True)
class NeuralConfig(ModelConfig):
    """What the fixed-window and the recurrent models share."""

    embed_size: int = setting(200, "Size of a token's embedding.", least=1, most=1 << 16, resume=Resume.refused)
    hidden_size: int = setting(200, "Units of each hidden layer.", least=1, most=1 << 16, resume=Resume.refused)
    num_layers: int = setting(1, "Number of hidden layers.", least=1, most=1000, resume=Resume.refused)
    layer_norm: bool = setting(False, "Layer normalisation (Ba et al. 2016).", resume=Resume.refused)
    residual: bool = setting(False, "Adds a layer's input to its output where the sizes agree.", resume=Resume.refused)
    tie_weights: bool = setting(False, "One matrix for embeddings and output (Press and Wolf 2017).", resume=Resume.refused)
    project: bool = setting(
        False,
        "A linear layer to embed_size before the output, for tied weights of another size.",
        resume=Resume.refused,
    )
    head: HeadName = setting(HeadName.full, "Output layer: full, adaptive or sampled softmax.", resume=Resume.refused)
    cutoffs: list[int] = setting(
        [2000, 10000], "Adaptive softmax: the rank at which each tail cluster begins.", least=1, most=1 << 24,
        resume=Resume.refused,
    )  # fmt: skip
    div_value: float = setting(
        4.0,
        "Adaptive softmax: how much smaller each further cluster's features are.",
        least=1,
        resume=Resume.refused,
    )
    num_samples: int = setting(512, "Sampled softmax: shared negatives a chunk.", least=1, most=1 << 24)
    proposal: Proposal = setting(Proposal.log_uniform, "Sampled softmax: where negatives come from.", resume=Resume.refused)
    dropout: float = setting(
        0.0, "Dropout on embeddings, between layers and before the output, where not set below.", least=0, below=1
    )
    input_dropout: float | None = setting(None, "Dropout on the embeddings; null: as `dropout`.", least=0, below=1)
    hidden_dropout: float | None = setting(None, "Dropout between layers; null: as `dropout`.", least=0, below=1)
    output_dropout: float | None = setting(None, "Dropout before the output; null: as `dropout`.", least=0, below=1)
    embedding_dropout: float = setting(0.0, "Drops whole rows of the embedding matrix (Gal 2016).", least=0, below=1)
    locked_dropout: bool = setting(False, "One dropout mask for all steps of a chunk (Gal and Ghahramani 2016).")
    activation_penalty: float = setting(0.0, "AR: weight of the mean square of the features (Merity 2017).", least=0)
    temporal_penalty: float = setting(0.0, "TAR: weight of the mean square of their change in time.", least=0)
    direct_order: int = setting(
        0, "Hashed n-gram features up to this order feed the output directly (RNN-MaxEnt, Mikolov 2011); 0: none.", least=0,
        most=8, resume=Resume.refused,
    )  # fmt: skip
    direct_table: int = setting(1 << 22, "Weights of the hashed features.", least=1 << 10, most=1 << 24,
                                resume=Resume.refused)  # fmt: skip
    init: Initialisation = setting(
        Initialisation.xavier,
        "Weights: xavier; uniform (+-init_range); fan (+-1/sqrt(hidden_size), PyTorch's); identity (of elman's recurrence).",
        resume=Resume.refused,
    )
    init_range: float = setting(0.1, "Half width of the uniform initialisation, also of embeddings.", above=0, most=10)
    unigram_bias: bool = setting(True, "Starts the output bias at the log unigram frequencies of the training split.")


@dataclass(kw_only=True)
class RecurrentConfig(NeuralConfig):
    """Elman, GRU or LSTM layers over embeddings."""

    kind: str = fixed("recurrent")
    cell: Cell = setting(Cell.lstm, f"Recurrence: {', '.join(Cell.__members__)}.", resume=Resume.refused)
    nonlinearity: Nonlinearity = setting(
        Nonlinearity.tanh, "Elman's non-linearity: tanh, relu or sigmoid.", resume=Resume.refused
    )
    hidden_sizes: list[int] = setting([], "A size for every layer; replaces hidden_size and num_layers.", least=1, most=1 << 16,
                                      resume=Resume.refused)  # fmt: skip
    projection_size: int = setting(
        0, "Size of a linear projection behind every layer; 0: none.", least=0, most=1 << 16, resume=Resume.refused
    )
    weight_drop: float = setting(0.0, "DropConnect on the recurrent weights, once a chunk (Merity 2017).", least=0, below=1)
    zoneout: float = setting(0.0, "Probability that a unit keeps its state (Krueger 2017).", least=0, below=1)
    forget_bias: float = setting(1.0, "LSTM: initial bias of the forget gate (Jozefowicz 2015).", least=-100, most=100)
    backend: Backend = setting(Backend.auto, "Who computes the recurrence.", resume=Resume.warned)


@dataclass(kw_only=True)
class WindowConfig(NeuralConfig):
    """The fixed-window model (Bengio et al. 2003; grown up: Sun and Iyyer 2021)."""

    kind: str = fixed("window")
    context: int = setting(5, "Tokens that the model sees: the newest and those before it.", least=1, most=10000,
                           resume=Resume.refused)  # fmt: skip
    activation: Activation = setting(Activation.tanh, "Non-linearity of the hidden layers.", resume=Resume.refused)
    direct: bool = setting(False, "Direct connections from the embeddings to the output.", resume=Resume.refused)
    num_averages: int = setting(0, "Learnt averages of the tokens before the window.", least=0, most=1000,
                                resume=Resume.refused)  # fmt: skip
    average_span: int = setting(0, "How many tokens before the window the averages cover.", least=0, most=100000,
                                resume=Resume.refused)  # fmt: skip


@dataclass(kw_only=True)
class NgramConfig(ModelConfig):
    """Counts; interpolated modified Kneser-Ney by default (Chen and Goodman 1998)."""

    kind: str = fixed("ngram")
    state_policy: Policy = setting(Policy.line, "When the model forgets.", resume=Resume.refused)
    order: int = setting(5, "Longest n-gram.", least=1, most=10, resume=Resume.refused)
    smoothing: Smoothing = setting(Smoothing.kneser_ney, "How unseen n-grams get their share.", resume=Resume.refused)
    add_k: float = setting(0.1, "The k of add-k smoothing.", above=0, resume=Resume.refused)


# ---- data and tokenizers


@dataclass(kw_only=True)
class DataConfig:
    kind: str = ""
    valid_fraction: float = setting(0.05, "Share of a single text that validates.", above=0, below=1,
                                    resume=Resume.refused)  # fmt: skip
    test_fraction: float = setting(0.05, "Share of a single text that tests; 0: no test split.", least=0, below=1,
                                   resume=Resume.refused)  # fmt: skip
    cache_dir: str = setting("outputs/cache", "Where token ids are kept, keyed by content.", resume=Resume.allowed)


@dataclass(kw_only=True)
class PydocsConfig(DataConfig):
    """The documentation of the Python that is running."""

    kind: str = fixed("pydocs")


@dataclass(kw_only=True)
class TextConfig(DataConfig):
    """Your own text: one file, or a directory holding train, valid and test (.txt or .tokens)."""

    kind: str = fixed("text")
    path: str = setting("", "A text file, or a directory with train.txt, valid.txt and test.txt.", resume=Resume.allowed)


@dataclass(kw_only=True)
class TokenizerConfig:
    name: TokenizerName = setting(TokenizerName.char, "What a token is: char, byte or word.", resume=Resume.refused)
    min_count: int = setting(1, "Rarer words (or characters) of the training split become <unk>.", least=1,
                             resume=Resume.refused)  # fmt: skip
    max_size: int = setting(0, "Largest vocabulary; 0: no limit.", least=0, resume=Resume.refused)


# ---- optimisers and schedules


@dataclass(kw_only=True)
class OptimizerConfig:
    name: OptimizerName = setting(OptimizerName.adam, "Optimiser.", resume=Resume.refused)
    learning_rate: float = setting(0.002, "Learning rate before the schedule.", above=0, most=1000)
    weight_decay: float = setting(0.0, "L2: decoupled in adamw, in the gradient elsewhere; not on biases and norms.", least=0)
    l1: float = setting(0.0, "L1: weight of the sum of absolute weights.", least=0)
    momentum: float = setting(0.0, "SGD and RMSprop.", least=0, below=1)
    nesterov: bool = setting(False, "SGD with Nesterov's momentum.")
    beta1: float = setting(0.9, "Adam: decay of the mean of gradients.", least=0, below=1)
    beta2: float = setting(0.999, "Adam: decay of the mean of squares.", least=0, below=1)
    alpha: float = setting(0.99, "RMSprop: decay of the mean of squares.", least=0, below=1)
    epsilon: float = setting(1e-8, "Added to the denominator.", least=0)
    averaging: Averaging = setting(Averaging.none, "Weights used for evaluation: nt_asgd, ema, or none.",
                                   resume=Resume.refused)  # fmt: skip
    ema_decay: float = setting(0.999, "EMA: weight of the past.", least=0, below=1)
    patience: int = setting(5, "NT-ASGD: evaluations without improvement before averaging starts.", least=1)


@dataclass(kw_only=True)
class ScheduleConfig:
    kind: str = ""


@dataclass(kw_only=True)
class ConstantConfig(ScheduleConfig):
    kind: str = fixed("constant")


@dataclass(kw_only=True)
class CosineConfig(ScheduleConfig):
    """Linear warm-up, then half a cosine."""

    kind: str = fixed("cosine")
    warmup: float = setting(0.02, "Share of the run that warms up.", least=0, below=1)
    final: float = setting(0.0, "Rate at the end, as a share of the learning rate.", least=0, most=1)


@dataclass(kw_only=True)
class LinearConfig(ScheduleConfig):
    """Linear warm-up, then a straight line."""

    kind: str = fixed("linear")
    warmup: float = setting(0.02, "Share of the run that warms up.", least=0, below=1)
    final: float = setting(0.0, "Rate at the end, as a share of the learning rate.", least=0, most=1)


@dataclass(kw_only=True)
class StepConfig(ScheduleConfig):
    """Multiplies the rate by `factor` every `every` epochs, after `after` epochs (Zaremba 2014: 0.5, after 4)."""

    kind: str = fixed("step")
    factor: float = setting(0.5, "What the rate is multiplied by.", above=0, most=1)
    every: float = setting(1.0, "Epochs between two changes.", above=0)
    after: float = setting(0.0, "Epochs before the first change; 0: as many as `every`.", least=0)


@dataclass(kw_only=True)
class ExponentialConfig(ScheduleConfig):
    """Multiplies the rate by `factor` per epoch, continuously."""

    kind: str = fixed("exponential")
    factor: float = setting(0.9, "What the rate is multiplied by in an epoch.", above=0, most=1)


@dataclass(kw_only=True)
class PlateauConfig(ScheduleConfig):
    """Multiplies the rate by `factor` when validation has not improved for `patience` evaluations."""

    kind: str = fixed("plateau")
    factor: float = setting(0.25, "What the rate is multiplied by.", above=0, below=1)
    patience: int = setting(1, "Evaluations without improvement before that.", least=1)


@dataclass(kw_only=True)
class OneCycleConfig(ScheduleConfig):
    """Up, flat, down, and a cosine to zero, with Adam's beta1 moving against the rate (Smith 2018)."""

    kind: str = fixed("one_cycle")
    up: float = setting(0.083, "Share of the run that rises.", least=0, below=1)
    flat: float = setting(0.417, "Share that stays at the peak.", least=0, below=1)
    down: float = setting(0.417, "Share that falls back; the rest anneals to zero.", least=0, below=1)
    div: float = setting(10.0, "The peak over the first rate.", least=1)
    beta1_low: float = setting(0.7, "Adam's beta1 at the peak.", least=0, below=1)
    beta1_high: float = setting(0.8, "Adam's beta1 at both ends.", least=0, below=1)


@dataclass(kw_only=True)
class RangeTestConfig(ScheduleConfig):
    """The rate rises geometrically from `low` to `high`, and `range_test.svg` shows the loss over it (Smith 2017)."""

    kind: str = fixed("range_test")
    low: float = setting(1e-5, "The first rate.", above=0)
    high: float = setting(1.0, "The last rate.", above=0)


# ---- trainer


@dataclass(kw_only=True)
class TrainerConfig:
    batch_size: int = setting(20, "Parallel streams.", least=1, most=1 << 20, resume=Resume.refused)
    chunk_length: int = setting(
        0, "Steps of truncated backpropagation through time; 0: 35 for words, 64 for characters and bytes.", least=0,
        most=1 << 20, resume=Resume.refused,
    )  # fmt: skip
    backward_length: int = setting(
        0, "Steps that gradients reach back (k2); more than chunk_length (k1) overlaps; 0: chunk_length.", least=0,
        resume=Resume.refused,
    )  # fmt: skip
    random_chunk_length: bool = setting(False, "Draws chunk lengths near chunk_length and scales the rate (Merity 2017).",
                                        resume=Resume.refused)  # fmt: skip
    random_offset: bool = setting(True, "Each epoch starts at another offset.", resume=Resume.refused)
    num_steps: int | None = setting(None, "Steps to train; null: no limit.", least=0, resume=Resume.allowed)
    num_epochs: float | None = setting(None, "Epochs to train; null: no limit.", least=0, resume=Resume.allowed)
    max_seconds: float | None = setting(None, "Seconds to train; null: no limit.", least=0, resume=Resume.allowed)
    clip_norm: float = setting(0.25, "Largest norm of the gradient; 0: no clipping.", least=0)
    log_every: int = setting(10, "Steps between two records of the loss.", least=1, resume=Resume.allowed)
    evaluate_every: int = setting(0, "Steps between two evaluations; 0: every epoch.", least=0)
    evaluation_streams: int = setting(16, "Streams of the evaluations during training; the last one uses 1.", least=1)
    save_every: int = setting(0, "Steps between two checkpoints; 0: at every evaluation.", least=0, resume=Resume.allowed)
    keep: int = setting(2, "Checkpoints kept besides the best.", least=2, most=10000, resume=Resume.allowed)
    sample_tokens: int = setting(200, "Tokens of the sample at each evaluation; 0: none.", least=0, most=100000,
                                 resume=Resume.allowed)  # fmt: skip
    sample_temperature: float = setting(0.8, "Temperature of these samples.", least=0, most=100, resume=Resume.allowed)
    precision: Precision = setting(
        Precision.auto, "float32, bfloat16 (products only), or auto: bfloat16 where the device has instructions for it."
    )
    device: Device = setting(Device.auto, "auto, cpu or cuda.", resume=Resume.warned)
    cuda_graph: CudaGraph = setting(CudaGraph.auto, "On a GPU a step is recorded once and replayed: auto, on or off.",
                                    resume=Resume.allowed)  # fmt: skip
    num_threads: int = setting(0, "CPU threads; 0: as many as PyTorch chooses.", least=0, most=1024)
    seed: int = setting(1, "Seed of everything random.", least=0, most=2**32 - 1, resume=Resume.refused)
    on_nonfinite: OnNonfinite = setting(
        OnNonfinite.stop, "At a loss, gradient or validation that is not finite: stop (it is kept in crash/), skip the chunk, "
        "or rollback to the newest checkpoint with half the rate.", resume=Resume.allowed,
    )  # fmt: skip


@dataclass(kw_only=True)
class Config:
    """All settings of a run."""

    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    resume: str | None = setting(None, "A run directory to go on with.", resume=Resume.allowed)


KINDS: dict[type, tuple[type, ...]] = {
    ModelConfig: (RecurrentConfig, WindowConfig, NgramConfig),
    DataConfig: (PydocsConfig, TextConfig),
    ScheduleConfig: (
        ConstantConfig, CosineConfig, LinearConfig, StepConfig, ExponentialConfig, PlateauConfig, OneCycleConfig,
        RangeTestConfig,
    ),
}  # fmt: skip
"""Which classes a setting of several kinds may be of; its field `kind` tells."""

GROUPS: dict[str, type] = {
    name: hint
    for name, hint in typing.get_type_hints(Config).items()
    if isinstance(hint, type)  # `resume` is str | None
}
"""The groups of settings, each with its class."""


def conf_directory() -> Path:
    """`conf/` inside an installed wheel, else at the top of the checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


# ---- reading


def read_config(mapping: Mapping[str, Any]) -> Config:
    """The settings in `mapping`; missing ones take their defaults. Raises SettingsError naming *all* that is wrong."""
    problems: list[str] = []
    config = read_settings(Config, mapping, "", problems)
    if not problems:
        if config.trainer.chunk_length == 0:
            config.trainer.chunk_length = 35 if config.tokenizer.name is TokenizerName.word else 64
        problems.extend(_conflicts(config))
    raise_problems(problems)
    return config


class SettingsProblemsError(SettingsError):
    """Everything that is wrong with a set of settings, a line each."""

    def __init__(self, problems: list[str]) -> None:
        head = "One setting cannot be used:" if len(problems) == 1 else f"{len(problems)} settings cannot be used:"
        remedy = "\nNothing was started. All settings:  python -m lmtrain --cfg job   meanings:  python -m lmtrain settings"
        super().__init__("\n  * ".join([head, *problems]), "", remedy)
        self.problems = problems


def raise_problems(problems: list[str]) -> None:
    """Raises one SettingsProblemsError with every problem in it; nothing where there is none."""
    if problems:
        raise SettingsProblemsError(problems)


def read_settings(cls: type, mapping: object, path: str, problems: list[str]) -> Any:
    """An instance of dataclass `cls` from `mapping`; appends to `problems` what cannot be used."""
    if not isinstance(mapping, Mapping):
        problems.append(f"{path or 'the settings'} is {mapping!r}; a group of settings is needed.")
        return None
    cls = _class_of_kind(cls, mapping, path, problems)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            problems.append(unknown_setting(_join(path, str(key)), [_join(path, name) for name in fields]))
    values = {}
    for name, spec in fields.items():
        key, hint = _join(path, name), hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = read_settings(typing.cast(type, hint), mapping.get(name, {}), key, problems)
        elif name in mapping:
            values[name] = _read_value(mapping[name], hint, spec.metadata, key, problems)
    return cls(**{name: value for name, value in values.items() if value is not MISSING}) if not problems else None


def _class_of_kind(cls: type, mapping: Mapping[str, Any], path: str, problems: list[str]) -> type:
    if cls not in KINDS:
        return cls
    named = {getattr(kind, "kind"): kind for kind in KINDS[cls]}
    kind = mapping.get("kind")
    if isinstance(kind, str) and kind in named:
        return named[kind]
    problems.append(f"{path}.kind is {kind!r}; allowed are {', '.join(named)}.")
    return cls


def _read_value(value: Any, hint: Any, metadata: Mapping[str, Any], key: str, problems: list[str]) -> Any:
    """`value` as type `hint` within its range, or MISSING with the problem noted."""
    try:
        value = _convert(value, hint)
    except ValueError as error:
        problems.append(f"{key}={value} is not usable; {error}.")
        return MISSING
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            wrong = _outside(number, metadata)
            if wrong:
                problems.append(f"{key}={value} is out of range; allowed is {wrong}.")
    if "only" in metadata and value != metadata["only"]:
        problems.append(f"{key}={value} cannot be set; here it is always {metadata['only']}.")
    return value


def _convert(value: Any, hint: Any) -> Any:
    """`value` as `hint`; ValueError says what is allowed."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return None if value is None else _convert(value, inner[0])
    if typing.get_origin(hint) is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError("allowed is a list such as [1,2]")
        if len(value) > MAX_LIST:
            raise ValueError(f"allowed are at most {MAX_LIST} numbers")
        return [_convert(item, typing.get_args(hint)[0]) for item in value]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _convert_enum(value, hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 1000 else math.inf  # which no range allows
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"allowed is {names[hint]}")
    return value


def _convert_enum(value: Any, hint: type[Enum]) -> Enum:
    names = list(hint.__members__)
    text = value.name if isinstance(value, Enum) else value
    if isinstance(value, bool):
        text = "on" if value else "off"  # YAML reads both as truth values
    if isinstance(text, str) and text in names:
        return hint[text]
    raise ValueError(f"allowed are {', '.join(names)}{nearest(str(text), names)}".rstrip(".?"))


def _outside(number: float, metadata: Mapping[str, Any]) -> str:
    """The range in words where `number` is outside it, else nothing."""
    least, most, above, below = (metadata.get(name) for name in ("least", "most", "above", "below"))
    inside = (
        (isinstance(number, int) or math.isfinite(number))
        and (least is None or number >= least)
        and (most is None or number <= most)
        and (above is None or number > above)
        and (below is None or number < below)
    )
    if inside:
        return ""
    low = f"at least {least}" if least is not None else f"above {above}" if above is not None else "a finite number"
    high = f" and at most {most}" if most is not None else f" and below {below}" if below is not None else ""
    return low + high


def unknown_setting(key: str, allowed: list[str]) -> str:
    """One line for a setting that does not exist, with the nearest one that does, or the choice that it belongs to."""
    group, _, name = key.partition(".")
    classes = KINDS.get(GROUPS.get(group, object), ())
    owners = [getattr(cls, "kind") for cls in classes if name in {f.name for f in dataclasses.fields(cls)}]
    if owners:
        choices = " or ".join(f"{group}={'|'.join(Cell.__members__) if owner == 'recurrent' else owner}" for owner in owners)
        kinds_in_words = " or ".join(owners)
        return (
            f"{key} does not exist here; it belongs to {group} settings of the kind {kinds_in_words}. Type {choices} as well."
        )
    last = key.rpartition(".")[2]
    if last == "patience" or last.startswith("early"):
        return (
            f"{key} does not exist: training goes on to trainer.max_seconds, num_epochs or num_steps, and it is the best "
            "checkpoint that sample, score and evaluate use. Leave it out."
        )
    return f"{key} does not exist{nearest(key, allowed)}"


def nearest(word: str, allowed: list[str]) -> str:
    """'; did you mean X?' where something allowed is near, else '.'."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "."


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _conflicts(config: Config) -> Iterator[str]:
    """Combinations that no single range can refuse."""
    model, trainer, data = config.model, config.trainer, config.data
    if isinstance(model, NeuralConfig) and model.tie_weights and not model.project:
        last = _last_size(model)
        if last != model.embed_size:
            yield (
                f"model.tie_weights=true needs the last layer to be of size model.embed_size, but they are {last} and "
                f"{model.embed_size}. Set model.embed_size={last}, or model.project=true to add a {last} -> "
                f"{model.embed_size} layer."
            )
    if isinstance(model, NeuralConfig) and model.head is HeadName.adaptive and sorted(set(model.cutoffs)) != model.cutoffs:
        yield f"model.cutoffs={model.cutoffs} must ascend. Type for example model.cutoffs=[2000,10000]."
    if isinstance(model, NeuralConfig) and model.head is HeadName.adaptive and model.project and not model.tie_weights:
        yield "model.project=true has no meaning for model.head=adaptive without model.tie_weights=true. Leave it out."
    if isinstance(model, NeuralConfig) and model.direct_order:
        if model.direct_order == 1:
            yield "model.direct_order=1 would be the output bias again. Set it to 2 or more, or to 0."
        if model.head is not HeadName.full:
            yield "model.direct_order needs model.head=full. Set model.direct_order=0 or model.head=full."
        if model.activation_penalty or model.temporal_penalty:
            yield "model.direct_order goes without model.activation_penalty and model.temporal_penalty. Set them to 0."
    if isinstance(model, WindowConfig) and (model.num_averages > 0) != (model.average_span > 0):
        yield (
            f"model.num_averages={model.num_averages} and model.average_span={model.average_span} need each other. Set both "
            "above 0, for example model.num_averages=5 model.average_span=48, or both to 0."
        )
    if isinstance(model, NeuralConfig) and model.init is Initialisation.identity and getattr(model, "cell", None) != Cell.elman:
        yield "model.init=identity is for the recurrence of model=elman (Le et al. 2015). Type that, or model.init=xavier."
    if isinstance(data, TextConfig) and not data.path:
        yield "data=text needs data.path. Type data.path=FILE, or a directory with train.txt, valid.txt and test.txt."
    if data.valid_fraction + data.test_fraction >= 1:
        yield "data.valid_fraction and data.test_fraction leave nothing to train on; their sum must stay below 1."
    tokenizer = config.tokenizer
    if tokenizer.name is TokenizerName.byte and (tokenizer.min_count > 1 or tokenizer.max_size):
        yield (
            f"tokenizer.min_count={tokenizer.min_count} and tokenizer.max_size={tokenizer.max_size} cannot shrink the 256 "
            "bytes of tokenizer=byte. Leave both out."
        )
    elif 0 < tokenizer.max_size < 3:
        yield (
            f"tokenizer.max_size={tokenizer.max_size} leaves no token besides the line's end and <unk>. Set it to 0 (no limit) "
            "or to at least 3."
        )
    name, rate = config.optimizer.name, config.optimizer.learning_rate
    if rate > {OptimizerName.sgd: math.inf, OptimizerName.adagrad: 10.0}.get(name, 1.0):
        yield (
            f"optimizer.learning_rate={rate:g} is absurd for {name.name}: it divides each gradient by its own size, so a step "
            "moves every weight by about the rate. Only sgd takes such rates; type for example optimizer.learning_rate=0.003."
        )
    optimizer = config.optimizer
    for option in {option for options in READ_BY.values() for option in options} - READ_BY[name]:
        default, value = (getattr(settings, option) for settings in (OptimizerConfig(), optimizer))
        if value != default:
            readers = ", ".join(other.name for other, options in READ_BY.items() if option in options)
            yield f"optimizer.{option}={value} would be ignored by {name.name}; it is read by {readers}. Leave it out."
    if optimizer.nesterov and not optimizer.momentum and name is OptimizerName.sgd:
        yield "optimizer.nesterov=true looks ahead along the momentum. Type optimizer.momentum=0.9 as well."
    if name is OptimizerName.sparse_adam and (optimizer.weight_decay or optimizer.l1 or getattr(model, "tie_weights", False)):
        yield (
            "optimizer=sparse_adam updates only the rows of the embedding that a chunk reads, so it goes without "
            "optimizer.weight_decay, optimizer.l1 and model.tie_weights. Leave them out, or type optimizer=adam."
        )
    if isinstance(config.schedule, OneCycleConfig) and config.schedule.up + config.schedule.flat + config.schedule.down > 1:
        yield "schedule.up, schedule.flat and schedule.down are shares of the run; their sum must be at most 1."
    if isinstance(config.schedule, RangeTestConfig) and config.schedule.low >= config.schedule.high:
        yield f"schedule.low={config.schedule.low:g} must be below schedule.high={config.schedule.high:g}."
    if config.resume is not None and not config.resume.strip():
        yield "resume= names no run. Type resume=outputs/RUN, or leave it out."
    if not isinstance(model, NgramConfig) and trainer.num_steps is trainer.num_epochs is trainer.max_seconds is None:
        yield "nothing ends the training. Set trainer.num_steps, trainer.num_epochs or trainer.max_seconds."
    if 0 < trainer.backward_length < trainer.chunk_length:
        yield (
            f"trainer.backward_length={trainer.backward_length} is shorter than trainer.chunk_length="
            f"{trainer.chunk_length}. Set it to 0 (no overlap) or to at least {trainer.chunk_length}."
        )


READ_BY: dict[OptimizerName, set[str]] = {
    OptimizerName.sgd: {"momentum", "nesterov"},
    OptimizerName.adagrad: {"epsilon"},
    OptimizerName.rmsprop: {"momentum", "alpha", "epsilon"},
    OptimizerName.adam: {"beta1", "beta2", "epsilon"},
    OptimizerName.adamw: {"beta1", "beta2", "epsilon"},
    OptimizerName.sparse_adam: {"beta1", "beta2", "epsilon"},
}
"""The options that each optimiser reads; another one that is not at its default is refused."""


def iter_idle(config: Config, keys: Collection[str]) -> Iterator[str]:
    """A line for each of the settings `keys` that is read by nothing, because of how others are set."""
    needs = needs_of(config)
    for key in keys:
        matters, need = needs.get(key, (True, ""))
        if isinstance(config.model, NgramConfig) and (
            key in COUNTING_IGNORES or key.partition(".")[0] in ("optimizer", "schedule")
        ):
            matters, need = False, "a model that is trained by gradients; n-grams are counted in one pass"
        if not matters:
            yield f"{key} has no effect here: it needs {need}."


def needs_of(config: Config) -> dict[str, tuple[bool, str]]:
    """Settings that matter only beside others: whether they do in `config`, and what they need for it."""
    model, optimizer, schedule, trainer, data = config.model, config.optimizer, config.schedule, config.trainer, config.data
    head = getattr(model, "head", None)
    one_cycle = isinstance(schedule, OneCycleConfig)
    has_beta1 = "beta1" in READ_BY[optimizer.name] or optimizer.momentum > 0
    drops = any(getattr(model, name, None) for name in ("dropout", "input_dropout", "hidden_dropout", "output_dropout"))
    num_layers = len(getattr(model, "hidden_sizes", [])) or getattr(model, "num_layers", 0)
    is_cut = isinstance(data, TextConfig) and not expanded(data.path).is_dir()
    return {
        "model.nonlinearity": (getattr(model, "cell", None) is Cell.elman, "model=elman"),
        "model.forget_bias": (getattr(model, "cell", None) is Cell.lstm, "model=lstm"),
        "model.cutoffs": (head is HeadName.adaptive, "model.head=adaptive"),
        "model.div_value": (
            head is HeadName.adaptive and not getattr(model, "tie_weights", False),
            "model.head=adaptive without model.tie_weights=true",
        ),
        "model.num_samples": (head is HeadName.sampled, "model.head=sampled"),
        "model.proposal": (head is HeadName.sampled, "model.head=sampled"),
        "model.direct_table": (bool(getattr(model, "direct_order", 0)), "model.direct_order=2 or more"),
        "model.hidden_size": (not getattr(model, "hidden_sizes", None), "an empty model.hidden_sizes"),
        "model.num_layers": (not getattr(model, "hidden_sizes", None), "an empty model.hidden_sizes"),
        "model.hidden_dropout": (num_layers > 1, "two layers or more"),
        "model.locked_dropout": (drops, "a model.dropout above 0"),
        "model.add_k": (getattr(model, "smoothing", None) is Smoothing.add_k, "model.smoothing=add_k"),
        "data.valid_fraction": (is_cut, "a single text, data=text data.path=FILE"),
        "data.test_fraction": (is_cut, "a single text, data=text data.path=FILE"),
        "optimizer.ema_decay": (optimizer.averaging is Averaging.ema, "optimizer.averaging=ema"),
        "optimizer.patience": (optimizer.averaging is Averaging.nt_asgd, "optimizer.averaging=nt_asgd"),
        "optimizer.beta1": (not one_cycle, "another schedule than one_cycle, which moves it from schedule.beta1_high"),
        "optimizer.learning_rate": (
            not isinstance(schedule, RangeTestConfig),
            "another schedule than range_test, which goes from schedule.low to schedule.high",
        ),
        "schedule.beta1_low": (has_beta1, "optimizer=adam, or a momentum"),
        "schedule.beta1_high": (has_beta1, "optimizer=adam, or a momentum"),
        "trainer.sample_temperature": (trainer.sample_tokens > 0, "trainer.sample_tokens above 0"),
    }


SMALLEST_FLOAT = 2.0**-126  # in float32; training rounds what is smaller to 0


def remedy_for_divergence(config: Config, resume: str) -> str:
    """What to type after training diverged; `resume` is the argument that names the run."""
    optimizer, trainer = config.optimizer, config.trainer
    if "epsilon" in READ_BY[optimizer.name] and optimizer.epsilon < SMALLEST_FLOAT:
        return (
            f"optimizer.epsilon={optimizer.epsilon:g} makes {optimizer.name.name} divide 0 by 0 where a weight has had no "
            f"gradient yet: that is the likely cause. Type  python -m lmtrain {resume} optimizer.epsilon=1e-08"
        )
    clip = "a smaller trainer.clip_norm" if trainer.clip_norm else "trainer.clip_norm=0.25 (0 does not clip)"
    rollback = ", or trainer.on_nonfinite=rollback" if trainer.on_nonfinite is not OnNonfinite.rollback else ""
    return f"Type  python -m lmtrain {resume}  with a smaller optimizer.learning_rate, {clip}{rollback}."


COUNTING_IGNORES = [
    f"trainer.{name}"
    for name in (
        "batch_size", "chunk_length", "backward_length", "random_chunk_length", "random_offset", "num_steps", "num_epochs",
        "max_seconds", "clip_norm", "precision", "on_nonfinite", "cuda_graph",
    )
]  # fmt: skip


def _last_size(model: NeuralConfig) -> int:
    """Size of what enters the output layer."""
    if isinstance(model, WindowConfig):
        return model.hidden_size + (model.context * model.embed_size if model.direct else 0)
    assert isinstance(model, RecurrentConfig)
    sizes = model.hidden_sizes or [model.hidden_size]
    return model.projection_size or sizes[-1]


def model_name(model: ModelConfig) -> str:
    """What one types behind `model=` for it."""
    return model.cell.name if isinstance(model, RecurrentConfig) else model.kind


# ---- writing, comparing


def typed(key: str, value: object) -> str:
    """`key=value` as one types it into a shell, quoted for the shell and for the settings where that is needed."""
    text = str(value)
    is_plain = isinstance(value, int | float) or (
        re.fullmatch(r"(\.{0,2}/)*[a-z_][\w./-]*", text, re.ASCII | re.IGNORECASE) and text.lower() not in NOT_TEXT
    )
    return quoted_for_shell(f"{key}={text if is_plain else quoted(text)}")


NOT_TEXT = ("null", "true", "false", "inf", "nan")
"""Words that are read as something else than text where they are not quoted."""


def quoted(text: str) -> str:
    """A value that is text as Hydra reads it, whatever the text holds.

    Hydra halves backslashes before a quotation mark, and OmegaConf then those before `${`, which otherwise refers to a value.
    """
    return in_quotation_marks(escaped(text))


def escaped(text: str) -> str:
    """`text` in which OmegaConf finds nothing to replace."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def in_quotation_marks(text: str) -> str:
    """A value as Hydra reads it, in which `${...}` refers to a value."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'


def config_to_json(config: Any) -> Any:
    """Settings as JSON-able values: what `read_config` reads."""
    if dataclasses.is_dataclass(config):
        return {f.name: config_to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.name
    return config


def iter_changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Resume]]:
    """Every setting in which two configs differ: its name, the old value, the new one, and the rule for resuming."""
    if type(old) is not type(new):
        yield path, getattr(old, "kind", old), getattr(new, "kind", new), Resume.refused
        return
    for f in dataclasses.fields(old):
        before, after, key = getattr(old, f.name), getattr(new, f.name), _join(path, f.name)
        if dataclasses.is_dataclass(before):
            yield from iter_changes(before, after, key)
        elif before != after:
            yield key, config_to_json(before), config_to_json(after), f.metadata["resume"]
