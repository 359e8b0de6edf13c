"""The simplest models, with which a trained one is compared in the end: those that count, and a linear one.

A model that is no better than these has learnt nothing that they do not know. Logistic regression is a task of its own, with
settings that were chosen on the validation splits of WikiGold and MR. It learns by the steps of every training, and nothing of
it is recorded or kept.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lmtrain.config as config
from lmtrain.build import build_limits
from lmtrain.inference.score import finite_or_none
from lmtrain.progress import watched
from lmtrain.tasks.base import SplitName, Task
from lmtrain.training.loop import steps
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")

THIS = "this model"
MAX_UPDATES = 10**10
"""The most weights times steps with which logistic regression is trained unasked; so many take about 20 seconds."""


@dataclass(frozen=True)
class Comparison:
    """A model beside others, split by split.

    measure   what is compared
    values    by the name of a model, the first of which is the one that was trained, and by split
    notes     sentences about what was left out, and about tests
    empty     splits in which there is nothing to be found, which tell no model from another
    is_share  whether values are numbers from 0 to 1, of which the larger is the better; otherwise the smaller is (perplexity)
    """

    measure: str
    values: Mapping[str, Mapping[SplitName, float]]
    notes: Sequence[str] = ()
    empty: Collection[SplitName] = ()
    is_share: bool = True

    def format(self) -> str:
        """Returns a table, of shares in per cent, and where the model is not better."""
        own, *others = self.values
        splits = list(self.values[own])
        scale, sign, heading = (100, 1, f"{self.measure}, %") if self.is_share else (1, -1, self.measure)
        width = max(map(len, [heading, *self.values])) + 2
        lines = [f"{heading:<{width}}" + "".join(f"{split:>10}" for split in splits)]
        for name, row in self.values.items():
            lines.append(f"{name:<{width}}" + "".join(f"{scale * row[split]:>10.2f}" for split in splits))
        for split in splits:
            if split == "train":
                continue
            if split in self.empty:
                lines.append(f"On {split} there is nothing to be found, so it does not tell how good a model is.")
                continue
            if not_worse := [name for name in others if sign * self.values[name][split] >= sign * self.values[own][split]]:
                lines.append(f"On {split} this model is no better than {_listed(not_worse)}.")
            if perfect := [name for name in others if self.is_share and self.values[name][split] == 1]:
                lines.append(f"On {split} {_listed(perfect)} can do all: it is too easy to tell good models from others.")
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Returns it as a dictionary. A perplexity that is too large for a number is None."""
        named = "shares" if self.is_share else "values"
        return {"measure": self.measure, named: {name: finite_or_none(row) for name, row in self.values.items()}}


def compared_splits(task: Task) -> list[SplitName]:
    """Returns the splits on which models are compared: train and valid, and test unless it is to stay unseen."""
    final = task.settings.trainer.final_split
    splits: list[SplitName] = ["train", "valid"]
    return [*splits, "test"] if final is config.FinalSplit.test and task.has("test") else splits


def logistic_settings(settings: config.Config, model: config.LogisticConfig, num_epochs: int) -> config.Config:
    """Returns the settings of logistic regression on the data of `settings`."""
    trainer = replace(settings.trainer, num_epochs=num_epochs, num_steps=None, max_seconds=None, patience=None)
    return replace(
        settings, model=model,
        tokenizer=replace(settings.tokenizer, min_count=1, vocab_size=0),
        optimizer=config.OptimizerConfig(learning_rate=0.005),
        schedule=config.LinearConfig(),
        trainer=replace(trainer, batch_size=128, clip_norm=5.0),
    )  # fmt: skip


def wants_logistic(settings: config.Config) -> bool:
    """Tells whether logistic regression may be compared with the model of `settings`: not if it is that model."""
    return settings.trainer.baselines is not False and not isinstance(settings.model, config.LogisticConfig)


def train_beside(settings: config.Config, logistic: Task, num_weights: int) -> tuple[Any, list[str]]:
    """Returns the model of the task `logistic`, of so many weights, after its last epoch; or None, with a sentence that
    says why."""
    num_steps = logistic.batches.num_batches(0) * int(logistic.settings.trainer.num_epochs or 0)
    if settings.trainer.baselines is None and num_weights * num_steps > MAX_UPDATES:
        reason = f"{num_weights:,} weights and {num_steps:,} steps take long"
        return None, [f"Logistic regression is left out: {reason}. With trainer.baselines=true it is trained, too."]
    log.info("Logistic regression is trained beside this model, for comparison (trainer.baselines=false leaves it out).")
    state = TrainState(logistic.learner(), logistic.wording)
    with watched("Training logistic regression", num_steps, "steps") as advance:
        for _ in steps(state, logistic.batches, build_limits(logistic.settings)):
            advance(1)
    return state.learner.model.eval(), []


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])
