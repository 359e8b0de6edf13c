"""The sentences of a training: which model it trains, how good it is in the end, and what to type next."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import lmtrain.config as config
from lmtrain.commands.results import describe_test, num_parameters
from lmtrain.errors import DivergedError, ResourceError
from lmtrain.files.unfinished import write_atomically
from lmtrain.quantity import counted
from lmtrain.settings import idle, quoting
from lmtrain.shell import printable, quoted_for_shell, shown
from lmtrain.tasks.base import Task
from lmtrain.training.learner import Learner
from lmtrain.training.rate_range import draw_svg, read_curve, suggest
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.score import Score
from lmtrain.training.signals import Stop
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")


def describe_training(task: Task, learner: Learner, path: Path) -> str:
    """Says which model is trained, on what device, and where."""
    settings = task.settings
    facts, num_threads = [config.model_name(settings.model)], torch.get_num_threads()
    if learner.has_gradients:
        precision = str(task.precision).removeprefix("torch.")
        chosen = " (chosen for this device)" if settings.trainer.precision is config.Precision.auto else ""
        facts += [
            counted(num_parameters(learner.model), "parameter"),
            f"on {task.device} with {counted(num_threads, 'thread')}",
            f"products in {precision}{chosen}",
        ]
    return f"Model: {', '.join(facts)}. Run: {shown(path)}"


def final_test(run: RunDirectory, task: Task) -> Score | None:
    """Tests the best checkpoint exactly, after showing what the model does, which may be long. None if it is not tested."""
    settings, best = task.settings, task.load(run.path)
    match settings.trainer.final_split:
        case config.FinalSplit.none:
            return None
        case config.FinalSplit.test if task.has("test"):
            name, score = "Test", task.final_score(best.model, "test")
        case wanted:
            name, score = "Validation", task.final_score(best.model, "valid")
            name += " (there is no test split)" * (wanted is config.FinalSplit.test)
    results = {**run.session["results"], "test": describe_test(score)}
    run.note(final=score.to_json(), final_split=name.split()[0].lower(), results=results)
    if math.isnan(score.value):
        raise DivergedError(
            f"The best model of the run ({best.path}) does not give probabilities: it has diverged.",
            "A perplexity needs finite numbers.",
            idle.remedy_for_divergence(settings, quoting.typed("resume", shown(run.path))),
        )
    text = task.show(best.model) if math.isfinite(score.value) else ""
    if text:
        print(f"\n{task.shown()}:\n{_indented(_beginning(text, task.most_lines))}")
    print(f"\n{name} of the best model (step {best.step}):\n{_indented(score.format())}")
    return score


def show_comparison(run: RunDirectory, task: Task, final: Score) -> None:
    """Shows the best model, whose final test gave `final`, beside the simplest ones, some of which are trained for it."""
    if (compared := task.comparison(task.load(run.path).model, final)) is not None:
        run.note(compared=compared.to_json())
        print(f"\nBeside the simplest models there are:\n{_indented(compared.format())}")


def next_steps(path: Path, task: Task) -> str:
    """Lists what one can do with the run, as it can be typed here."""
    directory = quoted_for_shell(shown(path))
    lines = [f"tensorboard --logdir {directory}", *task.next_steps(directory)]
    return f"\nEverything is in {printable(shown(path))}. Next:\n" + "".join(f"  {line}\n" for line in lines)


def how_it_ended(settings: config.Config, reached: Mapping[str, tuple[float, float]], path: Path) -> str:
    """Says by which limits training ended (limit, how far it is), and what to type so that it goes on to twice as far."""
    if list(idle.iter_idle(settings, [f"trainer.{name}" for name in reached])):
        return "The text has been counted."
    beyond = {name: done for name, (limit, done) in reached.items() if _is_beyond(name, limit, done)}
    ended = ", ".join(_limit(name, limit) for name, (limit, _) in reached.items() if name not in beyond)
    behind = " and ".join(f"{_how_far(name, done)}, beyond {_limit(name, reached[name][0])}" for name, done in beyond.items())
    said = [f"Training ended at {ended}."] * bool(ended) + [f"The run was already {behind}."] * bool(behind)
    further = " ".join(
        _limit(name, max(2 * (math.ceil(done) if name in beyond else limit), 1)) for name, (limit, done) in reached.items()
    )
    return f"{' '.join(said)} To go on from there:\n  python -m lmtrain {quoting.typed('resume', shown(path))} {further}"


def _how_far(limit: str, done: float) -> str:
    return {
        "num_steps": f"at step {done:,.0f}", "num_epochs": f"in epoch {done:,.0f}",
        "max_seconds": f"at {counted(done, 'second', ',.0f')}",
        "patience": f"at {counted(done, 'evaluation', ',.0f')} without improvement",
    }[limit]  # fmt: skip


def _is_beyond(name: str, limit: float, done: float) -> bool:
    """Tells whether a run is further than its last step can have brought it: then it was resumed with a smaller limit."""
    return done > 1.5 * limit + 1 if name == "max_seconds" else done >= limit + 1


def _limit(name: str, limit: float) -> str:
    return quoting.typed(f"trainer.{name}", int(limit) if limit == int(limit) else limit)


def show_range_test(run: RunDirectory) -> None:
    """Draws the loss over the learning rate, and names the two rates that one reads from it, if it falls."""
    curve = read_curve(run.metrics)
    if len(curve) < 10:
        log.warning("A range test of %d records shows nothing: set trainer.log_every=1 and more trainer.num_steps.", len(curve))
        return
    try:
        write_atomically(run.path / "range_test.svg", draw_svg(curve))
    except (OSError, ResourceError) as error:
        log.warning("range_test.svg cannot be written (%s).", error)
    drawing = printable(shown(run.path / "range_test.svg"))
    if (rates := suggest(curve)) is None:
        print("\nRange test: no learning rate can be read from the loss, which falls no more than batches differ "
              f"({drawing}).\nType a larger trainer.num_steps, trainer.batch_size or schedule.high.")  # fmt: skip
    else:
        steepest, lowest = rates
        print(f"\nRange test: the loss falls fastest at a learning rate of {steepest:.2g} and is lowest at {lowest:.2g} "
              f"({drawing}).")  # fmt: skip


def say_resume(run: RunDirectory, stop: Stop, state: TrainState) -> None:
    """Says after a signal how the run goes on."""
    print(f"\nStopped by {stop.reason} at step {state.step}; everything is saved. Go on exactly here with\n"
          f"  python -m lmtrain {quoting.typed('resume', shown(run.path))}", file=sys.stderr)  # fmt: skip


def _beginning(text: str, most: int) -> str:
    """Returns a text with at most so many lines: TensorBoard has all of them."""
    lines = text.splitlines()
    return text if len(lines) <= most else "\n".join([*lines[: most - 1], "..."])


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in printable(text).splitlines())
