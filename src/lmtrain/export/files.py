"""The files of an export, by its format.

    torch         model.py, config.json, weights.pt            a script that needs PyTorch alone
    safetensors   config.json, model.safetensors               the same weights for programs of your own
    onnx          config.json, step.onnx, sequence.onnx        graphs for onnxruntime (see `onnx_graph`)

All have card.md, and subword.json where tokens are subwords.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lmtrain import __version__
from lmtrain.data.corpus import Corpus
from lmtrain.errors import ResourceError, SettingsError
from lmtrain.export.card import judge, write_card
from lmtrain.export.onnx_files import check_onnx, write_onnx
from lmtrain.export.plain import Plain, describe, plain
from lmtrain.export.torch_format import script_for
from lmtrain.inference.evaluate import Evaluation
from lmtrain.saved import Trained

Format = Literal["torch", "safetensors", "onnx"]
Quantized = Literal["int8"]
CONFIG_FORMAT = 1  # of config.json


@dataclass(frozen=True)
class Exported:
    """What was written: names of files, and what was measured, in lines to read."""

    files: tuple[str, ...]
    measured: tuple[str, ...]
    judged: dict[str, Evaluation]


def export_model(
    trained: Trained,
    directory: Path,
    *,
    corpus_of: Callable[[Path], Corpus],
    format: Format = "torch",
    quantize: Quantized | None = None,
    name: str = "RUN",
    device: str = "cpu",
) -> Exported:
    """Fills the empty `directory`. `name` is how a person would name the model in a command; `corpus_of`: see `write_card`;
    `device` is where the model is.

    Raises SettingsError for what the format cannot hold, before anything is computed.
    """
    _check(format, quantize)
    made = plain(trained.model)
    if format == "onnx":
        check_onnx(made, trained, quantize)
    config: dict[str, Any] = {
        "format": CONFIG_FORMAT, "made_by": f"lmtrain {__version__}", "model": made.facts,
        "tokenizer": describe(trained.tokenizer),
    }  # fmt: skip
    measured: tuple[str, ...] = ()
    with _writing():
        match format:
            case "torch":
                _write_script(made, config, directory)
                torch.save(made.weights, written := io.BytesIO())  # a disk that is full makes its own writer raise anything
                (directory / "weights.pt").write_bytes(written.getbuffer())
            case "safetensors":
                # Of one storage, as those of a tied head and of clusters are, each is written by itself.
                save_file({n: w.clone() for n, w in made.weights.items()}, directory / "model.safetensors", {"format": "pt"})
            case "onnx":
                config["onnx"], measured = write_onnx(made, trained, directory, quantize, device)
        _write_json(directory / "config.json", config)
        if trained.tokenizer.subword is not None:
            _write_json(directory / "subword.json", trained.tokenizer.subword)
        judged = judge(trained, device)
        write_card(
            trained, directory / "card.md", judged=judged, files=[*directory.iterdir()], format=format, measured=measured,
            name=name, config=config, corpus_of=corpus_of,
        )  # fmt: skip
    return Exported(tuple(sorted(path.name for path in directory.iterdir())), measured, judged)


def _check(format: str, quantize: str | None) -> None:
    if format not in get_args(Format):
        raise SettingsError(f"format={format} was given.", f"Allowed are {', '.join(get_args(Format))}.", "Type format=torch.")
    if quantize is not None and quantize not in get_args(Quantized):
        raise SettingsError(f"quantize={quantize} was given.", "Allowed is int8.", "Type quantize=int8.")
    if quantize is not None and format != "onnx":
        raise SettingsError(
            f"quantize={quantize} was given with format={format}.", "Graphs of ONNX are quantised, plain weights are not.",
            "Type format=onnx as well, or leave it out.",
        )  # fmt: skip


@contextmanager
def _writing() -> Iterator[None]:
    """Raises ResourceError where the disk refuses, in the words of whoever writes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"The export cannot be written: {str(error).splitlines()[0]}.",
            "The disk must have room for the weights, in float32.", "Free some room, or give another path.",
        ) from error  # fmt: skip


def _write_script(made: Plain, config: dict[str, Any], directory: Path) -> None:
    facts = config["tokenizer"]
    kinds = made.kinds() | {facts["kind"], "reversed" if facts["reverse"] else "forward"} | {name for name, is_so in (
        ("normalized", facts["normalize"] != "none"), ("spelled", "spelling" in facts),
        ("unknown", facts["unk_id"] is not None), ("single", made.facts["kind"] != "mixture"),
    ) if is_so}  # fmt: skip
    (directory / "model.py").write_text(script_for(kinds), encoding="utf-8")


def _write_json(path: Path, document: Any) -> None:
    """Half a surrogate pair, which a file of subwords may hold, stays an escape."""
    path.write_text(json.dumps(document, indent=None if path.name == "subword.json" else 1), encoding="utf-8")
