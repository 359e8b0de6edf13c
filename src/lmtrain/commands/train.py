"""`python -m lmtrain`: trains a model in a run directory, or goes on with one; then tests it and says what to do next."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import lmtrain.config as config
from lmtrain.build import (
    build_corpus,
    build_learner,
    build_limits,
    build_model,
    build_schedule,
    build_stream,
    check_cutoffs,
    choose_device,
    choose_precision,
    sparse_gradients,
)
from lmtrain.data.advice import iter_advice
from lmtrain.data.corpus import Corpus, Split, describe
from lmtrain.data.stream import Chunk, Stream
from lmtrain.errors import (
    CheckpointError,
    DivergedError,
    ResourceError,
    SettingsError,
    UnfitError,
    UserError,
    is_out_of_memory,
)
from lmtrain.expected import Anything, Like, agree, compare, within
from lmtrain.inference.evaluate import Bill, evaluate, usable_streams
from lmtrain.inference.sample import OnlyUnknownError, SampleSettings, sample_text
from lmtrain.memory import check_memory, device_bytes, gigabytes, out_of_memory
from lmtrain.models.base import LanguageModel
from lmtrain.saved import describe_lines, describe_model, describe_texts, describe_tokenizer, load_trained, read_model_settings
from lmtrain.shell import printable, quoted_for_shell, shown
from lmtrain.training.arithmetic import begin_arithmetic, iter_changes
from lmtrain.training.checkpoint import (
    Checkpoint,
    believing,
    find_checkpoint,
    load_checkpoint,
    mark,
    newest_valid_checkpoint,
    prune,
    save_checkpoint,
    scheduled_checkpoint,
)
from lmtrain.training.durable_file import check_free_space, write_atomically
from lmtrain.training.finite import Nonfinite, nonfinite_names
from lmtrain.training.learner import Tensors
from lmtrain.training.limits import Cadence, epochs_done
from lmtrain.training.loop import fit
from lmtrain.training.machine import keep_freed_memory
from lmtrain.training.provenance import device_facts
from lmtrain.training.range_test import draw_svg, read_curve, suggest
from lmtrain.training.run_directory import RunDirectory, open_run_directory
from lmtrain.training.session import Session
from lmtrain.training.signals import Stop, catch_signals
from lmtrain.training.state import TrainState
from lmtrain.training.strict_json import parse_json
from lmtrain.training.telemetry import Telemetry

log = logging.getLogger("lmtrain")

PROMPT_TOKENS = {"word": 10, "char": 60, "byte": 60}  # of the validation text, which samples during training go on from


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
    settings = _changed_settings(directory, changes)
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
    return json.dumps(config.config_to_json(settings), indent=2) + "\n"


def _changed_settings(directory: Path, changes: Mapping[str, Any]) -> config.Config:
    """The settings of a run with `changes`; refuses those that would make it another run, warns of those that alter it."""
    try:
        mapping = parse_json((directory / "settings.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory / 'settings.json'} cannot be read: {error}.",
            "It holds the settings of the run as JSON.",
            "Restore the file; every checkpoint holds the same settings in its training.json.",
        ) from None
    old = config.read_config(mapping)
    for key, value in changes.items():
        node = mapping
        *parents, name = key.split(".")
        for parent in parents:
            node = node.get(parent, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict) or name not in node:
            raise config.SettingsProblemsError([config.unknown_setting(key, _keys(mapping))])
        node[name] = value
    new = config.read_config(mapping)
    refused = []
    for key, before, after, rule in config.iter_changes(old, new):
        if rule is config.Resume.refused:
            refused.append(f"{key} is {before} in this run and cannot become {after}.")
        elif rule is config.Resume.warned:
            log.warning("Resuming with %s=%s instead of %s: the run is no longer the one it was.", key, after, before)
    if refused:
        raise SettingsError("\n  * ".join(["These settings cannot change when a run goes on:", *refused]), "",
                            "\nLeave them out, or start a new run.")  # fmt: skip
    return new


def _keys(mapping: Mapping[str, Any], path: str = "") -> list[str]:
    return [
        key
        for name, value in mapping.items()
        for key in ([path + name] if not isinstance(value, dict) else _keys(value, f"{path}{name}."))
    ]


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
    before = settings if resumed_from is None else _load(state, resumed_from, settings, corpus, stream)
    epoch = epochs_done(stream, state.position)
    if resumed_from is not None:
        log.info("Going on from step %d (%s).", state.step, resumed_from)
        if state.step == (state.best_step or 0):  # a kill may have come before it was marked
            mark(run.path, "best", resumed_from)
        _say_stretched(before, settings, state, epoch)
    arithmetic = _begin_arithmetic(run, model, trainer, device, is_resumed=resumed_from is not None)
    run.note(**device_facts(device), num_parameters=_num_parameters(model), num_threads=torch.get_num_threads(),
             corpus=corpus.fingerprint)  # fmt: skip
    check_free_space(run.path, 3 * _num_bytes(model) * (trainer.keep + 2))
    log.info("%s", _describe_model(settings, model, device, run.path))

    num_streams = usable_streams(len(corpus.valid.ids), trainer.evaluation_streams)  # here, so that fewer are said once

    def validate(evaluated: LanguageModel) -> Bill:
        return _evaluate(evaluated, corpus.valid, corpus, num_streams, device)

    def show_sample(evaluated: LanguageModel) -> str:
        return _sample(evaluated, corpus, trainer, device)

    save = _Saver(settings, corpus, run, arithmetic)
    on_nonfinite = Nonfinite(
        trainer.on_nonfinite.name,
        save_crash=save.crash,
        load=lambda current, which: _load(current, _earlier(run.path, current, which), settings, corpus, stream),
        remedy=config.remedy_for_divergence(settings, config.typed("resume", shown(run.path))),
    )
    is_range_test = isinstance(settings.schedule, config.RangeTestConfig)
    limits, cadence = build_limits(settings), Cadence(trainer.log_every, trainer.evaluate_every, trainer.save_every)
    if resumed_from is not None and (reached := limits.reached(state, epoch)):
        log.warning("Nothing is left to train: %s", _ended(settings, reached, run.path))
    with (
        catch_signals() as stop,
        Telemetry(
            run.path,
            resume_step=state.step,
            resume_fraction=limits.share(state, epoch),
            is_evaluated=state.evaluated_step == state.step,
        ) as telemetry,
    ):
        telemetry.record_settings(config.config_to_json(settings), state.step)
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
        _say_resume(run, stop, state)
    if is_range_test:
        _show_range_test(run)
        return best
    _conclude(run, corpus, settings, device)
    ended = _ended(settings, limits.reached(state, epochs_done(stream, state.position)), run.path)
    print(_next_steps(run.path, _prompt(corpus)) + ended)
    return best


def _reached(state: TrainState, corpus: Corpus) -> Reached | None:
    if state.best_step is None:
        return None
    valid, tokenizer = corpus.valid, corpus.tokenizer
    bits = None if valid.num_unk else state.best_nats / math.log(2) * len(valid.ids) / valid.num_chars
    return Reached(state.best_nats, bits, valid.num_unk, tokenizer.fingerprint())


def _load(state: TrainState, path: Path, settings: config.Config, corpus: Corpus, stream: Stream) -> config.Config:
    """Everything of a checkpoint into `state`; the corpus must be the one it was trained on. Returns the settings then."""
    checkpoint = load_checkpoint(path, names=("model", "training", "tokenizer"))
    with believing(path):
        before = _check_documents(checkpoint, settings, corpus)
        state.load(checkpoint.tensors, checkpoint.documents["training"]["state"], stream)
        agree(
            state.step == checkpoint.step, "manifest.json: step", f"is {checkpoint.step}", f"{state.step}, as in training.json"
        )
    return before


def _check_documents(checkpoint: Checkpoint, settings: config.Config, corpus: Corpus) -> config.Config:
    """The settings with which a checkpoint was saved, once all but the state is what a run with `settings` writes."""
    training = checkpoint.documents.get("training")
    fingerprint = training.get("corpus") if isinstance(training, dict) else None
    if isinstance(fingerprint, str) and re.fullmatch("[0-9a-f]{64}", fingerprint) and fingerprint != corpus.fingerprint:
        raise CheckpointError(
            f"The text has changed since {checkpoint.path} was saved (fingerprint {corpus.fingerprint[:12]} instead of "
            f"{fingerprint[:12]}).",
            "A run goes on only on the very text it was started with.",
            "Restore the text, set data.path to where it is now, or start a new run.",
        )
    with within("training.json: "):
        compare({"corpus": corpus.fingerprint, "settings": Anything(), "state": Anything()}, training)
        before = _read_saved(checkpoint.documents["training"]["settings"])
        _check_same(before, settings)
    with within("tokenizer.json: "):
        document, arrays = corpus.tokenizer.save()
        compare(document, checkpoint.documents.get("tokenizer"))
    with within("tokenizer.safetensors: "):
        saved = checkpoint.tensors.get("tokenizer", {})
        compare({name: Like.of(torch.from_numpy(array)) for name, array in arrays.items()}, saved)
        for name, array in arrays.items():
            agree(np.array_equal(saved[name].numpy(), array), name, "is of another vocabulary", "that of the run's tokenizer")
    model = read_model_settings(checkpoint.documents.get("model"), corpus.tokenizer)
    with within("model.json: "):
        _check_same(model, before.model)
    return before


def _read_saved(settings: Any) -> config.Config:
    try:
        return config.read_config(settings)
    except config.SettingsProblemsError as error:
        problems = "; ".join(error.problems)[:1000].rstrip(".")
        raise UnfitError("settings", f"cannot be used: {problems}", "settings that a run can be started with") from error


def _check_same(saved: Any, own: Any) -> None:
    """UnfitError where a setting that cannot change while a run goes on is another one."""
    for key, then, now, rule in config.iter_changes(saved, own):
        is_same = rule is not config.Resume.refused
        agree(is_same, f"settings.{key}", f"is {printable(repr(then), 100)}", f"{now!r}, as the run has it")


def _earlier(run: Path, state: TrainState, which: Literal["last", "best"]) -> Path:
    """The checkpoint to go back to: one that a signal asked for does not count, or a run would depend on its signals."""
    return find_checkpoint(run, "best") if which == "best" else scheduled_checkpoint(run, state.saved_step)


def _begin_arithmetic(
    run: RunDirectory, model: LanguageModel, trainer: config.TrainerConfig, device: torch.device, *, is_resumed: bool
) -> dict[str, Any]:
    """What this process computes with; warns where a resumed run was computed otherwise. Counts depend on none of it."""
    if not isinstance(model, torch.nn.Module):
        return {}
    earlier = run.earlier("arithmetic") if is_resumed else None
    arithmetic = begin_arithmetic(device, choose_precision(trainer, device), earlier)
    if changes := list(iter_changes(earlier, arithmetic)):
        log.warning("Resuming with %s: the run is no longer the one it was.", ", ".join(changes))
    return arithmetic


def _say_stretched(before: config.Config, now: config.Config, state: TrainState, epoch: float) -> None:
    """Says where another limit moves a schedule that goes by the share of the run: the rate may jump up again."""
    base = now.optimizer.learning_rate
    schedule = build_schedule(now.schedule, base)
    old, new = (base * schedule.rate(build_limits(settings).progress(state, epoch)) for settings in (before, now))
    if old != new:
        log.warning(
            "The %s schedule stretches over the new length of the run: the learning rate goes on at %.2g instead of %.2g.",
            now.schedule.kind, new, old,
        )  # fmt: skip


@dataclass
class _Saver:
    """Keeps checkpoints. A best model that cannot be written is held until it can be: training does not come back to it."""

    settings: config.Config
    corpus: Corpus
    run: RunDirectory
    arithmetic: Mapping[str, Any]
    unsaved_best: tuple[int, Tensors, dict[str, Any]] | None = None

    def __call__(self, state: TrainState, is_best: bool) -> str:
        """Keeps a checkpoint; what is not finite in the model, if anything: then it is not kept."""
        self.run.make_again_if_removed()
        tensors, documents = self._contents(state)
        everything = {name: tensor for file in ("training", "model") for name, tensor in tensors[file].items()}
        broken = nonfinite_names(everything) if state.learner.can_diverge else []
        if broken:
            return f"The model is not finite at step {state.step}: {', '.join(broken[:3])}."
        if is_best:
            self.unsaved_best = state.step, tensors, documents
        try:
            self._save_best()
            if not is_best:
                save_checkpoint(self.run.path, state.step, tensors, documents)
        except ResourceError:
            if is_best:
                copies = {file: {name: t.clone() for name, t in members.items()} for file, members in tensors.items()}
                self.unsaved_best = state.step, copies, documents
            raise
        prune(self.run.path, self.settings.trainer.keep, state.saved_step)
        self._note_arithmetic()
        return ""

    def crash(self, state: TrainState, chunk: Chunk | None) -> Path:
        """The state that could not go on, and the chunk that it could not take, in `crash/`: to look at, not to resume."""
        self.run.make_again_if_removed()
        tensors, documents = self._contents(state)
        if chunk is not None:
            tensors |= {"chunk": {"inputs_TB": chunk.inputs_TB.clone(), "targets_TB": chunk.targets_TB.clone()}}
            documents |= {"chunk": {"epoch": chunk.epoch, "index": chunk.index}}
        return save_checkpoint(self.run.path / "crash", state.step, tensors, documents)

    def _note_arithmetic(self) -> None:
        """In `run.json`, with which nothing ends training; from the first checkpoint on, because a run goes on from there."""
        if self.run.session.get("arithmetic") != self.arithmetic:
            try:
                self.run.note(arithmetic=copy.deepcopy(self.arithmetic))
            except (OSError, ResourceError) as error:
                log.warning("%s cannot be written (%s); training goes on.", self.run.record, error)

    def _save_best(self) -> None:
        if self.unsaved_best is not None:
            mark(self.run.path, "best", save_checkpoint(self.run.path, *self.unsaved_best))
            self.unsaved_best = None

    def _contents(self, state: TrainState) -> tuple[Tensors, dict[str, Any]]:
        """The files of a checkpoint."""
        text_tensors, texts = describe_texts(self.corpus)
        tokenizer = self.corpus.tokenizer
        tokenizer_tensors, tokenizer_document = describe_tokenizer(tokenizer)
        documents = {
            "model": describe_model(self.settings.model, tokenizer.vocab_size, tokenizer.eos_id),
            "tokenizer": tokenizer_document,
            "texts": texts,
            "training": {
                "corpus": self.corpus.fingerprint, "settings": config.config_to_json(self.settings), "state": state.document(),
            },
        }  # fmt: skip
        text_files = {"texts": text_tensors, "lines": describe_lines(self.corpus), **tokenizer_tensors}
        return state.tensors() | text_files, documents


def _evaluate(model: LanguageModel, split: Split, corpus: Corpus, num_streams: int, device: torch.device) -> Bill:
    return evaluate(
        model, split.ids, eos_id=corpus.tokenizer.eos_id, unk_id=corpus.tokenizer.unk_id, num_chars=split.num_chars,
        num_bytes=split.num_bytes, num_streams=num_streams, device=device, token_text=corpus.tokenizer.token_text,
    )  # fmt: skip


def _sample(model: LanguageModel, corpus: Corpus, trainer: config.TrainerConfig, device: torch.device) -> str:
    """A little of the validation text, and how the model goes on."""
    if not trainer.sample_tokens:
        return ""
    prompt = _prompt(corpus)
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


def _prompt(corpus: Corpus) -> str:
    """The first stretch of the validation text that is known from beginning to end; the longest where all are short."""
    tokenizer, ids = corpus.tokenizer, np.asarray(corpus.valid.ids)
    size = PROMPT_TOKENS[tokenizer.name]
    unknown = [] if tokenizer.unk_id is None else np.flatnonzero(ids == tokenizer.unk_id).tolist()
    before, after = max(pairwise([-1, *unknown, len(ids)]), key=lambda gap: min(gap[1] - gap[0] - 1, size))
    text = tokenizer.decode(ids[before + 1 : min(after, before + 1 + size)].tolist())
    return text.rstrip("\ufffd")  # bytes may end within a character


def _conclude(run: RunDirectory, corpus: Corpus, settings: config.Config, device: torch.device) -> None:
    """Tests the best checkpoint exactly and shows a sample, first: it may be long."""
    trained = load_trained(run.path, device=str(device))
    name, split = ("Test", corpus.test) if corpus.test is not None else ("Validation (there is no test split)", corpus.valid)
    bill = _evaluate(trained.model, split, corpus, 1, device)
    run.note(final=bill.to_json(), final_split=name.split()[0].lower())
    if math.isnan(bill.nats_per_token):
        raise DivergedError(
            f"The best model of the run ({trained.path}) does not give probabilities: it has diverged.",
            "A perplexity needs finite numbers.",
            config.remedy_for_divergence(settings, config.typed("resume", shown(run.path))),
        )
    trainer = settings.trainer
    text = _sample(trained.model, corpus, trainer, device) if math.isfinite(bill.nats_per_token) else ""
    if text:
        print(f"\nA little of the validation text, continued at temperature {trainer.sample_temperature:g}:\n{_indented(text)}")
    print(f"\n{name} of the best model (step {trained.step}):\n{_indented(bill.format())}")


def _next_steps(path: Path, text: str) -> str:
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


def _ended(settings: config.Config, reached: Mapping[str, float], path: Path) -> str:
    """By which limits training ended, and what to type so that it goes on, to twice as far."""
    limits = {f"trainer.{name}": limit for name, limit in reached.items()}
    if list(config.iter_idle(settings, limits)):
        return "The text has been counted."
    ended = ", ".join(_limit(name, limit) for name, limit in limits.items())
    further = " ".join(_limit(name, max(2 * limit, 1)) for name, limit in limits.items())
    return (
        f"Training ended at {ended}. To go on from there:\n  python -m lmtrain {config.typed('resume', shown(path))} {further}"
    )


def _limit(name: str, limit: float) -> str:
    return config.typed(name, int(limit) if limit == int(limit) else limit)


def _show_range_test(run: RunDirectory) -> None:
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


def _say_resume(run: RunDirectory, stop: Stop, state: TrainState) -> None:
    print(f"\nStopped by {stop.reason} at step {state.step}; everything is saved. Go on exactly here with\n"
          f"  python -m lmtrain {config.typed('resume', shown(run.path))}", file=sys.stderr)  # fmt: skip
    raise SystemExit(stop.exit_code)


def _describe_model(settings: config.Config, model: LanguageModel, device: torch.device, path: Path) -> str:
    facts, num_threads = [config.model_name(settings.model)], torch.get_num_threads()
    if isinstance(model, torch.nn.Module):
        precision = str(choose_precision(settings.trainer, device)).removeprefix("torch.")
        chosen = " (chosen for this device)" if settings.trainer.precision is config.Precision.auto else ""
        facts += [f"{_num_parameters(model):,} parameters", f"on {device} with {num_threads} thread{'s' * (num_threads != 1)}",
                  f"products in {precision}{chosen}"]  # fmt: skip
    return f"Model: {', '.join(facts)}. Run: {shown(path)}"


def _num_parameters(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def _num_bytes(model: LanguageModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def _set_threads(num_threads: int) -> None:
    if num_threads:
        torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in printable(text).splitlines())
