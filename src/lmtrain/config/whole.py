"""All settings of a run: its groups, the kinds that a group can be of, and which of them make a task."""

from __future__ import annotations

import typing
from pathlib import Path

from lmtrain.choices import names
from lmtrain.config.data import *
from lmtrain.config.declaring import Settings, free, kept
from lmtrain.config.models import *
from lmtrain.config.training import *


class Config(Settings):
    """All settings of a run."""

    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    resume: str | None = free(None, "A run directory to go on with.")
    start_from: str | None = kept(
        None, "A run whose weights and tokenizer a new run starts from, on another text, with a new optimiser."
    )
    start_from_new_tokens: bool | None = kept(
        None, "Words that the new text adds: true adds them to the vocabulary, false reads them as <unk>, null refuses them."
    )

    @property
    def is_range_test(self) -> bool:
        """Whether the learning rate rises until training diverges. Such a run ends with a curve and without a test."""
        return isinstance(self.schedule, RangeTestConfig)


KINDS: dict[type, tuple[type, ...]] = {
    ModelConfig: (
        RecurrentConfig, WindowConfig, NgramConfig, TaggerConfig, AveragingConfig, EncoderConfig, LogisticConfig,
        NaiveBayesConfig, FrequentConfig, SkipgramConfig, CbowConfig, GloveConfig,
    ),
    DataConfig: (PydocsConfig, TextConfig, ColumnsConfig, LabelledConfig),
    ScheduleConfig: (
        ConstantConfig, CosineConfig, LinearConfig, StepConfig, ExponentialConfig, PlateauConfig, OneCycleConfig,
        RangeTestConfig,
    ),
}  # fmt: skip
"""Which classes a setting of several kinds may be of; its field `kind` tells."""

TASKS: dict[str, tuple[tuple[type, ...], tuple[type, ...]]] = {
    "language": ((CorpusConfig,), (LanguageConfig,)),
    "vectors": ((CorpusConfig,), (WordVectorsConfig,)),
    "tag": ((ColumnsConfig,), (TaggerConfig, LogisticConfig)),
    "classify": (
        (LabelledConfig,),
        (AveragingConfig, EncoderConfig, LogisticConfig, NaiveBayesConfig, FrequentConfig),
    ),
}
"""What can be learnt: from which kinds of data, by which kinds of models. `conf/task/` has a choice of settings for each."""

COUNTED = (NgramConfig, NaiveBayesConfig, FrequentConfig)
"""Models that are counted in one pass over the data, without gradients."""


def task_of(data: DataConfig, model: ModelConfig) -> str:
    """The task that learns from such data by such a model; where none does, the first one that learns from such data."""
    names = [name for name, (data_kinds, _) in TASKS.items() if isinstance(data, data_kinds)]
    return next((name for name in names if isinstance(model, TASKS[name][1])), names[0])


GROUPS: dict[str, type] = {
    name: hint
    for name, hint in typing.get_type_hints(Config).items()
    if isinstance(hint, type)  # the settings of no group, such as `resume`, may be null
}
"""The groups of settings, each with its class."""


def conf_directory() -> Path:
    """`conf/` inside an installed wheel, else at the top of the checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def joined(path: str, name: str) -> str:
    """The name of a setting within a group."""
    return f"{path}.{name}" if path else name


def names_of(kind: type) -> tuple[str, ...]:
    """What one types behind `model=` for a kind of model."""
    return names(Cell) if kind is RecurrentConfig else (getattr(kind, "kind"),)


def model_name(model: ModelConfig) -> str:
    """What one types behind `model=` for it."""
    return model.cell.name if isinstance(model, RecurrentConfig) else model.kind
