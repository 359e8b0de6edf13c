"""Going on with a run: which settings may change, whether a checkpoint belongs to it, and what is said about differences."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lmtrain.config as config
from lmtrain.build import build_limits, build_schedule
from lmtrain.distributed.group import ALONE, Group
from lmtrain.errors import (
    CheckpointError,
    SettingsError,
    UnfitError,
)
from lmtrain.expected import Anything, agree, compare, within
from lmtrain.files.strict_json import parse_json
from lmtrain.settings import comparing, reading
from lmtrain.settings.quoting import written
from lmtrain.shell import printable
from lmtrain.tasks.base import Task
from lmtrain.training.arithmetic import begin_arithmetic, iter_changes
from lmtrain.training.checkpoint import (
    Checkpoint,
    believing,
    find_checkpoint,
    load_checkpoint,
    mark,
    scheduled_checkpoint,
)
from lmtrain.training.learner import Learner
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")


def changed_settings(directory: Path, changes: Mapping[str, Any]) -> config.Config:
    """Returns the settings of a run with `changes`. It refuses those that would make another run, and warns of others."""
    try:
        mapping = reading.with_new_names(parse_json((directory / "settings.json").read_bytes()))
        problems: list[str] = []
        reading.read_settings(config.Config, mapping, "", problems)
        if problems:  # no run of this version has written that
            raise ValueError(problems[0])
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory / 'settings.json'} cannot be used: {printable(str(error), 1000).rstrip('.')}.",
            "It holds the settings of the run as JSON.",
            "Restore the file (every checkpoint holds the same settings in its training.json), or resume with the version of "
            "lmtrain that wrote it.",
        ) from None
    old = _read_config(mapping)
    mapping = comparing.config_to_json(old)  # with settings that an earlier version did not have
    for key, value in changes.items():
        node = mapping
        *parents, name = key.split(".")
        for parent in parents:
            node = node.get(parent, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict) or name not in node:
            kind = node.get("kind") if isinstance(node, dict) else None
            raise reading.SettingsProblemsError([reading.unknown_setting(key, _keys(mapping), kind)])
        node[name] = value
    new = reading.read_config(mapping)
    differing = list(comparing.iter_changes(old, new))
    refused = [
        f"{key} is {written(before)} in this run and cannot become {written(after)}."
        for key, before, after, rule in differing
        if rule is config.Resume.refused
    ]
    if refused:
        raise SettingsError("\n  * ".join(["These settings cannot change when a run goes on:", *refused]), "",
                            "\nLeave them out, or start a new run.")  # fmt: skip
    for key, before, after, rule in differing:
        if rule is config.Resume.warned:
            log.warning(
                "Resuming with %s=%s instead of %s: the run is no longer the one it was.", key, written(after), written(before)
            )
    return new


def _keys(mapping: Mapping[str, Any], path: str = "") -> list[str]:
    return [
        key
        for name, value in mapping.items()
        for key in ([path + name] if not isinstance(value, dict) else _keys(value, f"{path}{name}."))
    ]


def go_on(state: TrainState, path: Path, task: Task, run: RunDirectory, group: Group) -> None:
    """Puts the state where the run was when the checkpoint at `path` was saved, and says what differs since then."""
    before = load_state(state, path, task, group)
    _refuse_another_measure(before, task, state)
    log.info("Going on from step %d (%s).", state.step, path)
    if group.leads and state.step == (state.best_step or 0):  # a kill may have come before it was marked
        mark(run.path, "best", path)
    _say_stretched(before, task, state)
    if state.includes_evaluation and task.settings.trainer.max_seconds is not None:
        log.info("An earlier version began this run: its trainer.max_seconds limits the time of its evaluations, too.")


def load_state(state: TrainState, path: Path, task: Task, group: Group = ALONE) -> config.Config:
    """Loads everything of a checkpoint into `state`; the data must be the same. Returns the settings of that time."""
    checkpoint = group.led(lambda: load_checkpoint(path, ("model", "training", *task.compared), ("subword",)))
    with believing(path):
        before = _check_documents(checkpoint, task)
        state.load(checkpoint.tensors, checkpoint.documents["training"]["state"], task.batches)
        agree(
            state.step == checkpoint.step, "manifest.json: step", f"is {checkpoint.step}", f"{state.step}, as in training.json"
        )
    return before


def _check_documents(checkpoint: Checkpoint, task: Task) -> config.Config:
    """Returns the settings with which a checkpoint was saved. Everything but its state is compared with the run of `task`."""
    training = checkpoint.documents.get("training")
    fingerprint = training.get("corpus") if isinstance(training, dict) else None
    if isinstance(fingerprint, str) and re.fullmatch("[0-9a-f]{64}", fingerprint) and fingerprint != task.fingerprint:
        raise CheckpointError(
            f"The text has changed since {checkpoint.path} was saved (fingerprint {task.fingerprint[:12]} instead of "
            f"{fingerprint[:12]}).",
            "A run goes on only with the text that it was started with.",
            "Restore the text, set data.path to where it is now, or start a new run.",
        )
    with within("training.json: "):
        compare({"corpus": task.fingerprint, "settings": Anything(), "state": Anything()}, training)
        before = _read_saved(checkpoint.documents["training"]["settings"])
        _check_same(before, task.settings)
    model = task.check_saved(checkpoint)
    with within("model.json: "):
        _check_same(model, before.model)
    return before


def _read_config(mapping: Any) -> config.Config:
    if isinstance(mapping, dict) and isinstance(mapping.get("trainer"), dict):
        mapping["trainer"].setdefault("evaluation_tokens", 0)  # earlier versions read everything, and a run keeps its numbers
    return reading.read_config(mapping)


def _read_saved(settings: Any) -> config.Config:
    try:
        return _read_config(settings)
    except reading.SettingsProblemsError as error:
        problems = "; ".join(error.problems)[:1000].rstrip(".")
        raise UnfitError("settings", f"cannot be used: {problems}", "settings that a run can be started with") from error


def _check_same(saved: Any, own: Any) -> None:
    """Raises UnfitError if a setting has changed that cannot change when a run goes on."""
    for key, then, now, rule in comparing.iter_changes(saved, own):
        is_same = rule is not config.Resume.refused
        agree(is_same, f"settings.{key}", f"is {printable(repr(then), 100)}", f"{now!r}, as the run has it")


def earlier_checkpoint(run: Path, state: TrainState, which: Literal["last", "best"]) -> Path:
    """Returns the checkpoint to go back to. Those that a signal asked for do not count: a run must not depend on signals."""
    return find_checkpoint(run, "best") if which == "best" else scheduled_checkpoint(run, state.saved_step)


def _refuse_another_measure(before: config.Config, task: Task, state: TrainState) -> None:
    """Raises SettingsError if validations would read another text than those by which the best model was chosen so far."""
    then, now = task.num_validated(before), task.num_validated(task.settings)
    if then != now and state.best_value is not None:
        raise SettingsError(
            f"Validations would read up to {now:,} tokens of the validation text from now on. So far they read up to {then:,}.",
            "The best model of a run is the one with the best validation, and numbers of different texts do not compare.",
            f"Type trainer.evaluation_tokens={then} to go on as before, or start a new run.",
        )


def _say_stretched(before: config.Config, task: Task, state: TrainState) -> None:
    """Warns if another limit moves a schedule that goes by the fraction of the run: the rate may jump up again."""
    now = task.settings
    base = now.optimizer.learning_rate
    schedule = build_schedule(now.schedule, base)
    old, new = (base * schedule.rate(build_limits(settings).progress(state, task.batches)) for settings in (before, now))
    if old != new:
        log.warning(
            "The %s schedule stretches over the new length of the run: the learning rate goes on at %.2g instead of %.2g.",
            now.schedule.kind, new, old,
        )  # fmt: skip


def note_arithmetic(run: RunDirectory, learner: Learner, task: Task, group: Group, *, is_resumed: bool) -> dict[str, Any]:
    """Returns what this process computes with, and warns if a resumed run was computed otherwise. Counts need none."""
    if not learner.has_gradients:
        return {}
    earlier = group.led(lambda: run.earlier("arithmetic")) if is_resumed else None
    arithmetic = begin_arithmetic(task.device, task.precision, earlier)
    if changes := list(iter_changes(earlier, arithmetic)):
        log.warning("Resuming with %s: the run is no longer the one it was.", ", ".join(changes))
    return arithmetic
