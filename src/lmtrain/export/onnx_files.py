"""Writes the graphs of `onnx_graph`, runs them in onnxruntime, and says how far they are from the model and what int8 costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import DataError, SettingsError
from lmtrain.export.plain import Facts, Plain
from lmtrain.inference.evaluate import iter_target_log_probs, perplexity_text
from lmtrain.progress import watched
from lmtrain.quantity import counted
from lmtrain.saved import Trained

MAX_COMPARED = 500  # tokens of a text by which a graph is compared with the model
MAX_MEASURED = 20_000  # tokens by which int8 is compared with float32
STREAMS = 32
MAX_EMBEDDED = 1 << 30  # bytes of weights in a graph's own file; protobuf ends at 2 GB
TOLERANCE = 1e-3  # nats per token; more would be a mistake of ours


def library() -> Any:
    """The package onnxruntime; SettingsError where it or onnx is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as missing:
        raise SettingsError(
            f"format=onnx needs the packages onnx and onnxruntime: {missing}.", "They come with lmtrain's extra `onnx`.",
            "Type  pip install onnx onnxruntime  and try again.",
        ) from missing  # fmt: skip
    return onnxruntime


def check_onnx(made: Plain, trained: Trained, quantize: str | None) -> None:
    """Raises SettingsError where the packages are missing or the model is none of networks alone, before anything is made."""
    library()
    if "ngram" in made.kinds():
        raise SettingsError(
            f"{trained.path} holds n-grams, and format=onnx was given.", "Networks and mixtures of them become graphs.",
            "Type format=torch, which takes every model; or write an ARPA file:  python -m lmtrain arpa RUN --output FILE.arpa",
        )  # fmt: skip
    if quantize and _text(trained) is None:
        raise DataError(
            f"No text was saved with {trained.path}, and quantize=int8 was given.", "What it costs is measured on such a text.",
            "Leave it out.",
        )  # fmt: skip


def write_onnx(
    made: Plain, trained: Trained, directory: Path, quantize: str | None, device: str
) -> tuple[Facts, tuple[str, ...]]:
    """Writes the graphs; returns what config.json says of them, and what was measured."""
    from lmtrain.export.onnx_graph import sequence_graph, state_of, step_graph

    written = {"float32": ("step.onnx", "sequence.onnx")} | (
        {"int8": ("step.int8.onnx", "sequence.int8.onnx")} if quantize else {}
    )
    for kind, (step, sequence) in written.items():
        for name, make in ((step, step_graph), (sequence, sequence_graph)):
            _save(make(made, quantized=kind == "int8"), directory / name)
    types = {7: "int64", 1: "float32"}
    state = [{"name": t.name, "type": types[t.type], "shape": t.shape, "start": t.start} for t in state_of(made)]
    facts: Facts = {
        "files": written,
        "step": {"inputs": ["token", *(each["name"] for each in state)],
                 "outputs": ["log_probs", *(f"next_{each['name']}" for each in state)], "state": state},
        "sequence": {"inputs": ["tokens", "lengths"], "outputs": ["nats", "token_nats"]},
        "first_token": made.facts["eos_id"],
    }  # fmt: skip
    return facts, tuple(_measured(facts, trained, directory, quantize, device))


def _save(model: Any, path: Path) -> None:
    import onnx

    if model.ByteSize() > MAX_EMBEDDED:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.weights", size_threshold=1024)
    else:
        onnx.save_model(model, path)
    onnx.checker.check_model(str(path), full_check=True)


class Step:
    """A step graph in onnxruntime, which reads B texts side by side."""

    def __init__(self, path: Path, facts: Facts, batch_size: int) -> None:
        self.session = session(path)
        self.outputs = facts["step"]["outputs"]
        self.state: dict[str, NDArray[Any]] = {
            each["name"]: np.full([batch_size, *each["shape"][1:]], each["start"], each["type"])
            for each in facts["step"]["state"]
        }

    def read(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """Log-probabilities [B, V] of what follows."""
        log_probs, *after = self.session.run(self.outputs, {"token": tokens.astype(np.int64), **self.state})
        self.state = dict(zip(self.state, after, strict=True))
        found: NDArray[np.float32] = log_probs
        return found


def session(path: Path) -> Any:
    """A graph as onnxruntime runs it, on the CPU."""
    runtime = library()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _text(trained: Trained) -> tuple[str, NDArray[Any]] | None:
    """A text that was saved with the model, by name."""
    return next(((name, trained.texts[name].ids) for name in ("valid", "test", "train_start") if name in trained.texts), None)


def _measured(facts: Facts, trained: Trained, directory: Path, quantize: str | None, device: str) -> Iterator[str]:
    found = _text(trained)
    if found is None:
        return
    name, ids = found
    step, sequence = (directory / file for file in facts["files"]["float32"])
    part = ids[:MAX_COMPARED]
    ours = _ours(trained, part, device)
    for graph, theirs in (("step", _by_steps(step, facts, part, 1)), ("sequence", _by_sequence(sequence, part))):
        farthest = float(np.abs(ours - theirs).max())
        assert farthest < TOLERANCE, f"{graph}.onnx is {farthest} nats from the model"
        yield f"{graph}.onnx agrees with lmtrain to {farthest:.1e} nats over {len(part):,} tokens of the {name} text"
    if quantize:
        part, streams = ids[:MAX_MEASURED], min(STREAMS, len(ids))
        nats = {kind: -_by_steps(directory / files[0], facts, part, streams).mean() for kind, files in facts["files"].items()}
        yield _cost(nats, f"{len(part):,} tokens of the {name} text in {counted(streams, 'stream')}")


def _cost(nats: Mapping[str, float], where: str) -> str:
    before, after = nats["float32"], nats["int8"]
    return (
        f"int8 costs {round(math.expm1(after - before), 4) + 0.0:+.2%} of perplexity: {perplexity_text(before)} as float32, "
        f"{perplexity_text(after)} as int8, on {where}"
    )


def _ours(trained: Trained, ids: NDArray[Any], device: str) -> NDArray[np.float64]:
    log_probs = np.empty(len(ids))
    scores = iter_target_log_probs(trained.model, ids, eos_id=trained.tokenizer.eos_id, device=device)
    for scored in scores:
        log_probs[scored.positions] = scored.log_probs
    return log_probs


def _by_steps(path: Path, facts: Facts, ids: NDArray[Any], num_streams: int) -> NDArray[np.float64]:
    """Log-probabilities of the first tokens of `ids` in streams of equal length."""
    length = len(ids) // num_streams
    targets_TB = ids[: length * num_streams].reshape(num_streams, length).T.astype(np.int64)
    step, before = Step(path, facts, num_streams), np.full(num_streams, facts["first_token"])
    log_probs_TB = np.empty(targets_TB.shape)
    with watched(f"Scoring with {path.name}", targets_TB.size, "tok") as advance:
        for row, targets in zip(log_probs_TB, targets_TB, strict=True):
            row[:] = np.take_along_axis(step.read(before), targets[:, None], 1)[:, 0]
            before = targets
            advance(num_streams)
    return log_probs_TB.T.reshape(-1)


def _by_sequence(path: Path, ids: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities of `ids` as one text, beside half of it."""
    tokens = np.stack([ids, ids]).astype(np.int64)
    lengths = np.array([len(ids), len(ids) // 2])
    nats, token_nats = session(path).run(["nats", "token_nats"], {"tokens": tokens, "lengths": lengths})
    assert np.allclose(nats, token_nats.sum(1), rtol=1e-4)
    assert np.allclose(token_nats[1], np.where(np.arange(len(ids)) < lengths[1], token_nats[0], 0), atol=TOLERANCE)
    return -token_nats[0].astype(np.float64)
