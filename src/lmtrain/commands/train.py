"""`python -m lmtrain`: trains a model in a run directory, or goes on with one; then tests it and says what to do next."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import lmtrain.config as config
from lmtrain.build import (
    build_corpus,
    build_learner,
    build_limits,
    build_model,
    build_stream,
    check_cutoffs,
    choose_device,
    sparse_gradients,
)
from lmtrain.commands.resuming import changed_settings, earlier_checkpoint, load_state, note_arithmetic, say_stretched
from lmtrain.commands.saver import Saver
from lmtrain.commands.summary import (
    conclude,
    describe_training,
    evaluate_split,
    how_it_ended,
    next_steps,
    num_parameters,
    prompt_of,
    say_resume,
    show_range_test,
    write_sample,
)
from lmtrain.data.advice import iter_advice
from lmtrain.data.corpus import Corpus, describe
from lmtrain.data.stream import Stream
from lmtrain.errors import (
    DivergedError,
    is_out_of_memory,
)
from lmtrain.inference.evaluate import Bill, usable_streams
from lmtrain.memory import check_memory, device_bytes, gigabytes, out_of_memory
from lmtrain.models.base import LanguageModel
from lmtrain.ops.backends import record_choices
from lmtrain.settings import comparing, conflicts, quoting
from lmtrain.shell import shown
from lmtrain.training.checkpoint import (
    mark,
    newest_valid_checkpoint,
)
from lmtrain.training.durable_file import check_free_space
from lmtrain.training.finite import Nonfinite
from lmtrain.training.limits import Cadence, epochs_done
from lmtrain.training.loop import fit
from lmtrain.training.machine import keep_freed_memory
from lmtrain.training.provenance import device_facts
from lmtrain.training.run_directory import RunDirectory, open_run_directory
from lmtrain.training.session import Session
from lmtrain.training.signals import catch_signals
from lmtrain.training.state import TrainState
from lmtrain.training.telemetry import Telemetry

log = logging.getLogger("lmtrain")


class Reached(NamedTuple):
    """The best validation of a run; nats per token compare runs of one vocabulary, bits per character also others.

    `bits_per_character` is None where the validation text has `<unk>`: their spelling is not paid for.
    """

    nats_per_token: float
    bits_per_character: float | None
    num_unk: int
    vocabulary: str  # its SHA-256


def train(settings: config.Config, directory: Path, before: Callable[[], None] = lambda: None) -> Reached | None:
    """Trains from the beginning in `directory`; returns the best validation, where there was one.

    Calls `before` once the directory is known to be free and is locked, and nothing has been done.
    """
    choose_device(settings.trainer)  # before anything is written
    with open_run_directory(directory, sys.argv, new=True) as run:
        before()
        run.keep_settings(_settings_text(settings))
        return _run(settings, run, resumed_from=None)


def resume(directory: Path, changes: Mapping[str, Any]) -> Reached | None:
    """Goes on where the run in `directory` stopped, with the single settings in `changes` replaced."""
    settings = changed_settings(directory, changes)
    choose_device(settings.trainer)
    with open_run_directory(directory, sys.argv) as run:
        if any(run.checkpoints.iterdir()):
            checkpoint = newest_valid_checkpoint(directory)
        else:
            checkpoint = None
            log.warning("%s was stopped before its first checkpoint: it begins again.", shown(directory))
        if changes:
            run.keep_settings(_settings_text(settings))
        else:
            run.know_settings()
        return _run(settings, run, resumed_from=checkpoint)


def _settings_text(settings: config.Config) -> str:
    return json.dumps(comparing.config_to_json(settings), indent=2) + "\n"


def _run(settings: config.Config, run: RunDirectory, resumed_from: Path | None) -> Reached | None:
    trainer = settings.trainer
    keep_freed_memory()
    _set_threads(trainer.num_threads)
    device = choose_device(trainer)
    corpus = build_corpus(settings.data, settings.tokenizer)
    tokenizer = corpus.tokenizer
    log.info("%s", describe(corpus))
    for advice in iter_advice(corpus) if resumed_from is None else ():
        log.warning("%s", advice)
    stream = build_stream(trainer, corpus, settings.model)
    check_cutoffs(settings.model, tokenizer.vocab_size)
    need = check_memory(settings, tokenizer.vocab_size, device)
    if need is not None and need.total_bytes > device_bytes(device) / 10:
        log.info("Memory: at least %s of the %s of %s.", gigabytes(need.total_bytes), gigabytes(device_bytes(device)), device)
    try:
        return _train(settings, run, resumed_from, corpus, stream, device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(settings, tokenizer.vocab_size, error, shown(run.path)) from error
    finally:
        record_choices({})  # what else this process computes is no part of the run


def _train(
    settings: config.Config, run: RunDirectory, resumed_from: Path | None, corpus: Corpus, stream: Stream, device: torch.device
) -> Reached | None:
    trainer, tokenizer = settings.trainer, corpus.tokenizer
    sparse = sparse_gradients(trainer.batch_size * trainer.chunk_length, tokenizer.vocab_size, device)
    model = build_model(
        settings.model, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, seed=trainer.seed,
        sparse_embeddings=sparse or settings.optimizer.name is config.OptimizerName.sparse_adam,
    )  # fmt: skip
    learner = build_learner(settings, model, corpus, device)
    state = TrainState(learner)
    before = settings if resumed_from is None else load_state(state, resumed_from, settings, corpus, stream)
    epoch = epochs_done(stream, state.position)
    if resumed_from is not None:
        log.info("Going on from step %d (%s).", state.step, resumed_from)
        if state.step == (state.best_step or 0):  # a kill may have come before it was marked
            mark(run.path, "best", resumed_from)
        say_stretched(before, settings, state, epoch)
    arithmetic = note_arithmetic(run, model, trainer, device, is_resumed=resumed_from is not None)
    run.note(**device_facts(device), num_parameters=num_parameters(model), num_threads=torch.get_num_threads(),
             corpus=corpus.fingerprint)  # fmt: skip
    check_free_space(run.path, 3 * _num_bytes(model) * (trainer.keep + 2))
    log.info("%s", describe_training(settings, model, device, run.path))

    num_streams = usable_streams(len(corpus.valid.ids), trainer.evaluation_streams)  # here, so that fewer are said once

    def validate(evaluated: LanguageModel) -> Bill:
        return evaluate_split(evaluated, corpus.valid, corpus, num_streams, device)

    def show_sample(evaluated: LanguageModel) -> str:
        return write_sample(evaluated, corpus, trainer, device)

    save = Saver(settings, corpus, run, arithmetic)
    on_nonfinite = Nonfinite(
        trainer.on_nonfinite.name,
        save_crash=save.crash,
        load=lambda current, which: load_state(current, earlier_checkpoint(run.path, current, which), settings, corpus, stream),
        remedy=conflicts.remedy_for_divergence(settings, quoting.typed("resume", shown(run.path))),
    )
    is_range_test = isinstance(settings.schedule, config.RangeTestConfig)
    limits, cadence = build_limits(settings), Cadence(trainer.log_every, trainer.evaluate_every, trainer.save_every)
    if resumed_from is not None and (reached := limits.reached(state, epoch)):
        log.warning("Nothing is left to train: %s", how_it_ended(settings, reached, run.path))
    with (
        catch_signals() as stop,
        Telemetry(
            run.path,
            resume_step=state.step,
            resume_fraction=limits.share(state, epoch),
            is_evaluated=state.evaluated_step == state.step,
        ) as telemetry,
    ):
        telemetry.record_settings(comparing.config_to_json(settings), state.step)
        if trainer.on_nonfinite is config.OnNonfinite.rollback and resumed_from is None:
            state.saved_step = state.step
            save(state, True)  # so that there always is somewhere to go back to
        try:
            reason = fit(
                Session(
                    state, stream, limits, cadence, evaluate=validate, show_sample=show_sample, keep=save,
                    telemetry=telemetry, stop=stop, on_nonfinite=on_nonfinite,
                )
            )  # fmt: skip
        except DivergedError:
            if not is_range_test:
                raise
            reason = "diverged, as the high rates of a range test do"
        telemetry.record_best(state)
    best = _reached(state, corpus)
    run.note(exit_reason=reason, num_steps=state.step, best_nats_per_token=best and best.nats_per_token,
             best_step=state.best_step)  # fmt: skip
    if stop.requested:
        say_resume(run, stop, state)
    if is_range_test:
        show_range_test(run)
        return best
    conclude(run, corpus, settings, device)
    ended = how_it_ended(settings, limits.reached(state, epochs_done(stream, state.position)), run.path)
    print(next_steps(run.path, prompt_of(corpus)) + ended)
    return best


def _reached(state: TrainState, corpus: Corpus) -> Reached | None:
    if state.best_step is None:
        return None
    valid, tokenizer = corpus.valid, corpus.tokenizer
    bits = None if valid.num_unk else state.best_nats / math.log(2) * len(valid.ids) / valid.num_chars
    return Reached(state.best_nats, bits, valid.num_unk, tokenizer.fingerprint())


def _num_bytes(model: LanguageModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def _set_threads(num_threads: int) -> None:
    if num_threads:
        torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
