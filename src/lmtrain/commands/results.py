"""What a run writes of itself into run.json: which it is, from its beginning, and how good it is, at its end.

`lmtrain.training.run_record` reads it, for the tables of `python -m lmtrain runs` and of sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lmtrain.config as config
from lmtrain.settings.comparing import config_to_json
from lmtrain.settings.defaults import differing_settings
from lmtrain.tasks.base import Task
from lmtrain.training.score import Score
from lmtrain.training.state import TrainState


def describe_run(task: Task, num_parameters: int) -> dict[str, Any]:
    """Who is trained, in which words it is spoken of, and by which settings: those that differ from the defaults."""
    wording, settings = task.wording, task.settings
    return {
        "task": config.task_of(settings.data, settings.model), "model": config.model_name(settings.model),
        "seed": settings.trainer.seed,
        "settings": differing_settings(config_to_json(settings)), "num_parameters": num_parameters, "items": wording.items,
        "measure": wording.value, "higher_is_better": wording.higher_is_better, "vocabulary": task.vocabulary(),
        "evaluation": task.judged_on(),
    }  # fmt: skip


def describe_end(task: Task, state: TrainState, items_per_second: float) -> dict[str, Any]:
    """How long it was trained, and its best validation with all that this depends on."""
    best = None if state.best_value is None else task.reached(state.best_value)
    valid: dict[str, Any] = {} if best is None else {"value": best.value, "bits_per_character": best.bits_per_character}
    return {
        "num_steps": state.step, "num_items": state.num_items, "seconds": round(state.elapsed_seconds, 3),
        "items_per_second": round(items_per_second, 1) or None, "best_step": state.best_step,
        "valid": {**valid, **task.judged_on()} if valid else {}, "test": None,
    }  # fmt: skip


def describe_test(score: Score) -> dict[str, Any]:
    """The final score; its value is null where it is infinite."""
    return {**score.to_json(), "value": score.value if math.isfinite(score.value) else None}


def hyper_parameters(settings: config.Config) -> Mapping[str, Any]:
    """The hyper-parameters that TensorBoard shows: what differs from the defaults, the model, and the seed."""
    mapping = config_to_json(settings)
    return {"model": config.model_name(settings.model), "seed": settings.trainer.seed} | differing_settings(mapping)
