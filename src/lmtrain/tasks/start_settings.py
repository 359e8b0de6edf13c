"""`start_from=RUN` gives a run the settings of another one's model.

Model and tokenizer are those of RUN. One may type a setting of theirs that changes neither the weights nor what they read, such
as dropout. Another setting is refused by name if it differs. All else (data, optimiser, schedule, trainer) is new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import lmtrain.config as config
from lmtrain.errors import SettingsError
from lmtrain.settings import comparing, reading
from lmtrain.settings.quoting import written
from lmtrain.shell import expanded, one_line
from lmtrain.tasks.opening import training_settings
from lmtrain.training.checkpoint import load_document, read_named

OF_THE_TEXT = ("normalize", "reverse")  # settings of the data that a model depends on
DRAWN = ("model.init", "model.init_range", "model.unigram_bias", "model.embeddings", "model.freeze_embeddings",
         "model.project_embeddings")  # fmt: skip


def with_start(mapping: Mapping[str, Any], typed: Collection[str]) -> Mapping[str, Any]:
    """Returns the settings `mapping` of a new run, with those of model and tokenizer from its `start_from`, if it has one.

    typed   the names of the settings that were typed, not merely composed

    Raises SettingsProblemsError for what contradicts that model, SettingsError for a model that is no start, and
    CheckpointError where there is none.
    """
    run = mapping.get("start_from")
    if isinstance(run, str) and not run.strip():
        reading.raise_problems(["start_from= names no run. Type start_from=outputs/RUN, or leave it out."])
    if not isinstance(run, str):
        if mapping.get("start_from_new_tokens") is not None:
            reading.raise_problems(["start_from_new_tokens is about start_from=RUN. Type that as well, or leave it out."])
        return mapping
    saved = _settings_of(run)
    problems: list[str] = []
    if "experiment" in typed:
        problems.append("experiment= chooses a model, and start_from= another one. Type the experiment's other settings.")
    for group, name in (("model", config.model_name(saved.model)), ("tokenizer", saved.tokenizer.name.name)):
        chosen = _name(mapping.get(group))
        if group in typed and chosen != name:
            problems.append(f"{group}={chosen} was given; in {one_line(run)} it is {name}. Leave {group}= out.")
    reading.raise_problems(problems)
    given = {key: _value(mapping, key) for key in typed if "." in key}
    given = {key: value for key, value in given.items() if key.partition(".")[2] in (mapping.get(key.partition(".")[0]) or {})}
    started = {**mapping, "model": _model(run, saved, given, problems)}
    started["tokenizer"] = _tokenizer(run, saved, given, mapping.get("start_from_new_tokens") is True, problems)
    if isinstance(saved.data, config.CorpusConfig) and isinstance(mapping.get("data"), Mapping):
        own = {name: comparing.config_to_json(getattr(saved.data, name)) for name in OF_THE_TEXT if name in mapping["data"]}
        for name, value in own.items():
            if f"data.{name}" in given and given[f"data.{name}"] != value:
                problems.append(_contradiction(run, f"data.{name}", value, given[f"data.{name}"]))
        started["data"] = {**mapping["data"], **own}
    reading.raise_problems(problems)
    return started


def _settings_of(run: str) -> config.Config:
    """Returns the settings with which the model of `run` was trained."""
    path = read_named(expanded(run), "best", lambda found: (load_document(found, "model"), found)[1])
    model = load_document(path, "model")
    if not isinstance(load_document(path, "training"), dict):
        what = "a mixture" if isinstance(model, dict) and "components" in model else "a model that was not trained here"
        raise SettingsError(
            f"start_from={one_line(run)} is {what}.", "A run starts from the weights of one model.",
            "Name the run of a window or recurrent model, a tagger or a classifier.",
        )  # fmt: skip
    settings = training_settings(path)
    kind = config.model_name(settings.model)
    if isinstance(settings.model, (*config.COUNTED, config.WordVectorsConfig)):
        raise SettingsError(
            f"start_from={one_line(run)} is a run of model={kind}.",
            "Counts cannot be trained on, and word vectors are learnt from one text."
            if not isinstance(settings.model, config.WordVectorsConfig)
            else "Word vectors are learnt from one text.",
            "Train on both texts together, or mix two language models:  python -m lmtrain mix RUN_A RUN_B --output DIR",
        )
    if isinstance(settings.model, config.NeuralConfig) and isinstance(model, dict):
        size = int(model["vocab_size"])  # what was left out of the first vocabulary stays left out of a larger one
        settings.model.cutoffs = [cutoff for cutoff in settings.model.cutoffs if cutoff < size] or settings.model.cutoffs
    return settings


def _model(run: str, saved: config.Config, given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the settings of the model, with those that were typed and may change."""
    own: dict[str, Any] = comparing.config_to_json(saved.model)
    rules = dict(_rules(type(saved.model)))
    for name in ("embeddings", "freeze_embeddings", "project_embeddings"):
        if name in own:
            own[name] = comparing.config_to_json(getattr(type(saved.model)(), name))
    for key, value in given.items():
        group, _, name = key.partition(".")
        if group != "model":
            continue
        if name not in own:
            problems.append(
                f"{key} does not exist for the model of {one_line(run)}, which is {own.get('cell') or own['kind']}."
            )
        elif value != own[name] and (rules[name] is config.Resume.refused or key in DRAWN):
            problems.append(_contradiction(run, key, own[name], value))
        else:
            own[name] = value
    return own


def _tokenizer(run: str, saved: config.Config, given: Mapping[str, Any], adds: bool, problems: list[str]) -> dict[str, Any]:
    """Returns the settings of the tokenizer. Bounds of a vocabulary are about what is added to it."""
    own: dict[str, Any] = comparing.config_to_json(saved.tokenizer)
    if adds:
        own |= {"vocab_size": 0, "vocabulary": ""}
        if not saved.tokenizer.path and own["name"] in ("bpe", "unigram"):
            own["vocab_size"] = saved.tokenizer.vocab_size
    for key, value in given.items():
        group, _, name = key.partition(".")
        if group != "tokenizer":
            continue
        if value != own[name] and not (adds and name in ("min_count", "vocab_size")):
            problems.append(_contradiction(run, key, own[name], value))
        else:
            own[name] = value
    return own


def _rules(cls: type) -> list[tuple[str, config.Resume]]:
    return [(field.name, field.metadata["resume"]) for field in dataclasses.fields(cls)]


def _contradiction(run: str, key: str, own: Any, value: Any) -> str:
    was = "''" if own == "" else written(own)
    return f"{key} is {was} in {one_line(run)}, whose model is started from, and cannot become {written(value)}. Leave it out."


def _name(group: Any) -> Any:
    members = group if isinstance(group, Mapping) else {}
    return next((members[key] for key in ("cell", "kind", "name") if key in members), None)


def _value(mapping: Mapping[str, Any], key: str) -> Any:
    node: Any = mapping
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
