"""The facts that a run notes in run.json: what it is, at its beginning, and how good it is, at its end.

`lmtrain.training.run_record` reads it, for the tables of `python -m lmtrain runs` and of sweeps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

import lmtrain.config as config
from lmtrain.distributed.group import Group
from lmtrain.settings.comparing import config_to_json
from lmtrain.settings.defaults import SEED, differing_settings, flat_settings
from lmtrain.tasks.base import Task
from lmtrain.training.provenance import device_facts
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.score import Score
from lmtrain.training.state import TrainState


def note_beginning(run: RunDirectory, task: Task, model: Any, group: Group) -> None:
    """Notes which model is trained, in which words the task speaks of it, which settings differ from the defaults, and with
    what it is computed."""
    wording, settings = task.wording, task.settings
    results = {
        "task": config.task_of(settings.data, settings.model), "model": config.model_name(settings.model),
        "seed": settings.trainer.seed,
        "settings": differing_settings(config_to_json(settings)), "num_parameters": num_parameters(model),
        "items": wording.items, "measure": wording.value, "higher_is_better": wording.higher_is_better,
        "vocabulary": task.vocabulary(), "evaluation": task.judged_on(),
    }  # fmt: skip
    run.note(
        results=results, **device_facts(task.device), num_parameters=num_parameters(model),
        num_threads=torch.get_num_threads(), corpus=task.fingerprint, num_processes=group.size,
        num_evaluating_processes=task.judges(group),
    )  # fmt: skip


def note_end(run: RunDirectory, task: Task, state: TrainState, items_per_second: float) -> None:
    """Notes how long training was, and its best validation with everything that this depends on, however it ended."""
    best = None if state.best_value is None else task.reached(state.best_value)
    valid: dict[str, Any] = {} if best is None else {"value": best.value, "bits_per_character": best.bits_per_character}
    results = {
        "num_steps": state.step, "num_items": state.num_items, "seconds": round(state.elapsed_seconds, 3),
        "evaluation_seconds": round(state.evaluation_seconds, 3),
        "items_per_second": round(items_per_second, 1) or None, "best_step": state.best_step,
        "valid": {**valid, **task.judged_on()} if valid else {}, "test": None,
    }  # fmt: skip
    run.note(results={**run.session["results"], **results})


def note_outcome(run: RunDirectory, task: Task, state: TrainState, reason: str) -> None:
    """Notes why training ended, and how good its best model is on validation."""
    run.note(
        **{f"best_{task.wording.value}": state.best_value}, exit_reason=reason, num_steps=state.step, best_step=state.best_step
    )


def describe_test(score: Score) -> dict[str, Any]:
    """Returns the final score; its value is null if it is infinite."""
    return {**score.to_json(), "value": score.value if math.isfinite(score.value) else None}


def hyper_parameters(settings: config.Config, varied: Collection[str] | None) -> Mapping[str, Any]:
    """Returns the hyper-parameters that TensorBoard shows: the model, the seed, and what else tells this run from others.

    Of a sweep or a search these are the settings that are `varied`; of a single run (None), and where something is varied that
    stands for several settings (an experiment), those that differ from the defaults.
    TensorBoard ticks the first five of what differs between the runs that it shows, by name: capitals come first.
    """
    named = {"Model": config.model_name(settings.model), "Seed": settings.trainer.seed}
    flat = flat_settings(config_to_json(settings))
    others = {key: flat[key] for key in varied or () if key in flat}
    if varied is None or any("." not in key and key not in flat for key in varied):
        others |= differing_settings(config_to_json(settings))
    return named | {key: value for key, value in others.items() if key not in ("model", SEED)}


def run_name(settings: config.Config, varied: Mapping[str, str] | None) -> str:
    """Returns what TensorBoard calls the run: `gru-650-seed1`; in a sweep, with the settings that it varies.

    What stands for several settings (`trainer=epochs`, an experiment) is called as it was typed.
    """
    model = settings.model
    size = next((getattr(model, name) for name in SIZES if getattr(model, name, None)), None)
    sizes = size if isinstance(size, list) else [] if size is None else [size]
    flat = flat_settings(config_to_json(settings))
    values = {key: flat.get(key, "" if "." in key else typed) for key, typed in (varied or {}).items() if key not in IN_NAMES}
    others = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in values.items() if value != ""]
    words = [config.model_name(model), *map(str, sizes), *others]
    name = re.sub(r"[^\w.,=+-]", "_", "-".join(words), flags=re.ASCII)[:MAX_LETTERS]
    return f"{name}-seed{settings.trainer.seed}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


SIZES = ("hidden_sizes", "hidden_size", "order", "embed_size")
"""What says best how large a model is."""

IN_NAMES = ("model", SEED, *(f"model.{name}" for name in SIZES))
MAX_LETTERS = 100


def num_parameters(model: torch.nn.Module) -> int:
    """Returns how many numbers the model learns by gradients."""
    return sum(parameter.numel() for parameter in model.parameters())
