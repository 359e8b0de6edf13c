"""What a training says: which model it trains, what the model writes, how good it is in the end, and what to type next."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import lmtrain.config as config
from lmtrain.build import (
    choose_precision,
)
from lmtrain.data.corpus import Corpus, Split
from lmtrain.errors import (
    DivergedError,
    ResourceError,
    UserError,
)
from lmtrain.inference.evaluate import Bill, evaluate
from lmtrain.inference.sample import OnlyUnknownError, SampleSettings, sample_text
from lmtrain.models.base import LanguageModel
from lmtrain.saved import load_trained
from lmtrain.settings import conflicts, quoting
from lmtrain.shell import printable, quoted_for_shell, shown
from lmtrain.training.durable_file import write_atomically
from lmtrain.training.range_test import draw_svg, read_curve, suggest
from lmtrain.training.run_directory import RunDirectory
from lmtrain.training.signals import Stop
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")

PROMPT_TOKENS = {"word": 10, "char": 60, "byte": 60}  # of the validation text, which samples during training go on from


def evaluate_split(model: LanguageModel, split: Split, corpus: Corpus, num_streams: int, device: torch.device) -> Bill:
    """How well `model` predicts a split of its corpus."""
    return evaluate(
        model, split.ids, eos_id=corpus.tokenizer.eos_id, unk_id=corpus.tokenizer.unk_id, num_chars=split.num_chars,
        num_bytes=split.num_bytes, num_streams=num_streams, device=device, token_text=corpus.tokenizer.token_text,
    )  # fmt: skip


def write_sample(model: LanguageModel, corpus: Corpus, trainer: config.TrainerConfig, device: torch.device) -> str:
    """A little of the validation text, and how the model goes on."""
    if not trainer.sample_tokens:
        return ""
    prompt = prompt_of(corpus)
    settings = SampleSettings(max_tokens=trainer.sample_tokens, temperature=trainer.sample_temperature)
    for allow_unk in (False, True):
        settings = dataclasses.replace(settings, allow_unk=allow_unk)
        try:
            return prompt + sample_text(model, corpus.tokenizer, prompt, settings, seed=trainer.seed, device=device)
        except OnlyUnknownError:
            continue
        except UserError as error:  # no reason to end a training
            log.warning("There is no sample to show. %s", error)
            break
    return ""


def prompt_of(corpus: Corpus) -> str:
    """The first stretch of the validation text that is known from beginning to end; the longest where all are short."""
    tokenizer, ids = corpus.tokenizer, np.asarray(corpus.valid.ids)
    size = PROMPT_TOKENS[tokenizer.name]
    unknown = [] if tokenizer.unk_id is None else np.flatnonzero(ids == tokenizer.unk_id).tolist()
    before, after = max(pairwise([-1, *unknown, len(ids)]), key=lambda gap: min(gap[1] - gap[0] - 1, size))
    text = tokenizer.decode(ids[before + 1 : min(after, before + 1 + size)].tolist())
    return text.rstrip("\ufffd")  # bytes may end within a character


def describe_training(settings: config.Config, model: LanguageModel, device: torch.device, path: Path) -> str:
    facts, num_threads = [config.model_name(settings.model)], torch.get_num_threads()
    if isinstance(model, torch.nn.Module):
        precision = str(choose_precision(settings.trainer, device)).removeprefix("torch.")
        chosen = " (chosen for this device)" if settings.trainer.precision is config.Precision.auto else ""
        facts += [f"{num_parameters(model):,} parameters", f"on {device} with {num_threads} thread{'s' * (num_threads != 1)}",
                  f"products in {precision}{chosen}"]  # fmt: skip
    return f"Model: {', '.join(facts)}. Run: {shown(path)}"


def num_parameters(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def conclude(run: RunDirectory, corpus: Corpus, settings: config.Config, device: torch.device) -> None:
    """Tests the best checkpoint exactly and shows a sample, first: it may be long."""
    trained = load_trained(run.path, device=str(device))
    name, split = ("Test", corpus.test) if corpus.test is not None else ("Validation (there is no test split)", corpus.valid)
    bill = evaluate_split(trained.model, split, corpus, 1, device)
    run.note(final=bill.to_json(), final_split=name.split()[0].lower())
    if math.isnan(bill.nats_per_token):
        raise DivergedError(
            f"The best model of the run ({trained.path}) does not give probabilities: it has diverged.",
            "A perplexity needs finite numbers.",
            conflicts.remedy_for_divergence(settings, quoting.typed("resume", shown(run.path))),
        )
    trainer = settings.trainer
    text = write_sample(trained.model, corpus, trainer, device) if math.isfinite(bill.nats_per_token) else ""
    if text:
        print(f"\nA little of the validation text, continued at temperature {trainer.sample_temperature:g}:\n{_indented(text)}")
    print(f"\n{name} of the best model (step {trained.step}):\n{_indented(bill.format())}")


def next_steps(path: Path, text: str) -> str:
    """What one can do with the run, as it can be typed here; the prompt are up to three words of `text`."""
    directory = quoted_for_shell(shown(path))
    words = re.search(r"(?<!\S)\w+(?: \w+){0,2}(?!\S)", text)  # whole ones, so that a word model knows them
    prompt = f' --prompt "{words[0]}"' if words else ""
    return (
        f"\nEverything lies in {printable(shown(path))}. Next:\n"
        f"  tensorboard --logdir {directory}\n"
        f"  python -m lmtrain sample {directory}{prompt}\n"
        f"  python -m lmtrain score {directory} FILE\n"
    )


def how_it_ended(settings: config.Config, reached: Mapping[str, tuple[float, float]], path: Path) -> str:
    """By which limits training ended (limit, how far it is), and what to type so that it goes on, to twice as far."""
    limits = {f"trainer.{name}": limit for name, limit in reached.items()}
    if list(conflicts.iter_idle(settings, limits)):
        return "The text has been counted."
    ended, further = [], []
    for name, (limit, done) in limits.items():
        is_far_beyond = done > 1.5 * limit + 1  # a resumed run was given less than it had used
        ended.append(_limit(name, limit) + (f" (the run is at {done:,.0f} already)" if is_far_beyond else ""))
        further.append(_limit(name, max(2 * (math.ceil(done) if is_far_beyond else limit), 1)))
    return (
        f"Training ended at {', '.join(ended)}. To go on from there:\n"
        f"  python -m lmtrain {quoting.typed('resume', shown(path))} {' '.join(further)}"
    )


def _limit(name: str, limit: float) -> str:
    return quoting.typed(name, int(limit) if limit == int(limit) else limit)


def show_range_test(run: RunDirectory) -> None:
    """Draws the loss over the learning rate and names the two rates that one reads off it."""
    curve = read_curve(run.metrics)
    if len(curve) < 10:
        log.warning("A range test of %d records shows nothing: set trainer.log_every=1 and more trainer.num_steps.", len(curve))
        return
    try:
        write_atomically(run.path / "range_test.svg", draw_svg(curve))
    except (OSError, ResourceError) as error:
        log.warning("range_test.svg cannot be written (%s).", error)
    steepest, lowest = suggest(curve)
    print(f"\nRange test: the loss falls fastest at a learning rate of {steepest:.2g} and is lowest at {lowest:.2g} "
          f"({printable(shown(run.path / 'range_test.svg'))}).")  # fmt: skip


def say_resume(run: RunDirectory, stop: Stop, state: TrainState) -> None:
    print(f"\nStopped by {stop.reason} at step {state.step}; everything is saved. Go on exactly here with\n"
          f"  python -m lmtrain {quoting.typed('resume', shown(run.path))}", file=sys.stderr)  # fmt: skip
    raise SystemExit(stop.exit_code)


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in printable(text).splitlines())
