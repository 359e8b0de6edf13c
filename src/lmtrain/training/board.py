"""Writes what TensorBoard shows of a run, as two runs of its own: the curves, and beside them the results.

    RUN/tensorboard/gru-650-seed1/            losses, rates, samples, the settings as text, vectors for the projector
    RUN/tensorboard/gru-650-seed1/results/    what distinguishes this run, and its results: the tab HPARAMS

TensorBoard lists runs by their directories, so these have names that one can read. In HPARAMS every curve of a run with
hyper-parameters would be a metric. A list of metrics ends that, but with it the hyper-parameters of one run alone are those of
all. Results that have a run to themselves need no list, and of all runs beside each other TensorBoard ticks what differs.

A process writes one file of curves and no other, because TensorBoard's plain loader leaves a file for good as soon as there is
a later one, and with it the curves that still grow. Earlier versions wrote it into `tensorboard/` itself; their runs keep
to that.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lmtrain.training.markdown import wrapped
from lmtrain.training.run_record import find_curves

PROJECTED = 10_000  # words; the projector shows no more at once
RESULTS = ("valid", "test", "tokens_per_second")
"""The results of a run, as TensorBoard's table of hyper-parameters calls them; other tasks have their own items, not tokens."""


class Board:
    """Writes for TensorBoard, until something cannot be written: its writer does not recover from an error.

    directory   `tensorboard/` of the run
    name        the name of the run, if it has none yet
    purge_step  records of this step and later ones are not shown
    attempt     calls what it is given, and tells whether that went well
    """

    def __init__(self, directory: Path, name: str, purge_step: int, attempt: Callable[[Callable[[], None]], bool]) -> None:
        self._directory, self._attempt = directory, attempt
        self._place = directory / name
        self._writer: SummaryWriter | None = None
        attempt(lambda: self._open(purge_step))

    def _open(self, purge_step: int) -> None:
        self._place = find_curves(self._directory) or self._place
        _make_earlier(self._place)
        self._writer = SummaryWriter(_utf8(self._place), purge_step=purge_step)

    def close(self) -> None:
        """Closes the files."""
        self._do(lambda writer: writer.close())

    def add_scalars(self, numbers: Mapping[str, float | None], step: int) -> None:
        """Writes numbers, with infinities, but without NaN."""
        self._do(lambda writer: _add_scalars(writer, numbers, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Writes plain text, which is shown as it is."""
        self._do(lambda writer: writer.add_text(tag, wrapped(text), step))

    def add_histograms(self, model: nn.Module, step: int) -> None:
        """Writes how the finite weights of each parameter are spread."""

        def add(writer: SummaryWriter) -> None:
            for name, parameter in model.named_parameters():
                values = parameter.detach().float().cpu().numpy().ravel()
                if len(values := values[np.isfinite(values)]):
                    writer.add_histogram(f"weights/{name}", values, step)

        self._do(add)

    def add_settings(self, settings: Mapping[str, Any], chosen: Mapping[str, Any], step: int) -> None:
        """Writes all settings as text, and `chosen`, which distinguishes this run, as hyper-parameters, if it is new."""
        flat = {key: value if isinstance(value, int | float) else _encodable(value) for key, value in chosen.items()}
        self.add_text("settings", json.dumps(settings, indent=2), step)

        def begin(writer: SummaryWriter) -> None:
            for summary in hparams(flat, {})[1:]:  # the first would be a list of metrics
                writer._get_file_writer().add_summary(summary)

        if not (self._place / "results").exists():
            self._add_results(begin)

    def add_chart(self, title: str, name: str, tags: Sequence[str]) -> None:
        """Puts the curves of several tags into one chart."""
        self._do(lambda writer: writer.add_custom_scalars({title: {name: ["Multiline", list(tags)]}}))

    def add_results(self, step: int, results: Mapping[str, float | None]) -> None:
        """Writes those of RESULTS that are known. TensorBoard shows the hyper-parameters of a run beside them."""
        assert {*results} <= {*RESULTS}, "TensorBoard would not show it"
        self._add_results(lambda writer: _add_scalars(writer, results, step))

    def add_vectors(self, words: Sequence[str], matrix_VE: NDArray[np.float32]) -> None:
        """Writes the first `PROJECTED` of these words with their vectors, rounded to four digits, for the projector."""
        if not (len(words) and np.isfinite(matrix_VE).all()):
            return
        digits = 3 - math.floor(math.log10(float(np.abs(matrix_VE).max()) or 1.0))
        rounded_VE = np.round(matrix_VE[:PROJECTED].astype(np.float64), max(digits, 0))
        labels = [word if word.isprintable() and word.strip() else ascii(word) for word in words[:PROJECTED]]

        def add(writer: SummaryWriter) -> None:
            for path in (self._place / "00000", self._place / "projector_config.pbtxt"):  # of an earlier process
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:  # a link is removed, and what it names stays as it is
                    path.unlink(missing_ok=True)
            writer.add_embedding(rounded_VE, [_encodable(label) for label in labels], tag="words", global_step=0)

        self._do(add)

    def _add_results(self, write: Callable[[SummaryWriter], None]) -> None:
        """Writes them into a file of their own, which is complete at once."""

        def add(_: SummaryWriter) -> None:
            with SummaryWriter(_utf8(self._place / "results")) as writer:
                write(writer)

        self._do(add)

    def _do(self, write: Callable[[SummaryWriter], None]) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            if self._attempt(lambda: write(writer)):
                self._writer = writer


def _make_earlier(place: Path) -> None:
    """Renames files of curves whose names hold a later second than now, as where the clock was set back.

    TensorBoard reads files in the order of their names. It would take this process's for an earlier one, and forget its steps.
    """
    latest = int(time.time()) - 1
    for path in sorted(place.glob("events.out.tfevents.*"), reverse=True):
        *parts, seconds, rest = path.name.split(".", 4)
        if seconds.isdecimal() and int(seconds) > latest:
            path.rename(path.with_name(".".join((*parts, f"{latest:010d}", rest))))
            latest -= 1


def _add_scalars(writer: SummaryWriter, numbers: Mapping[str, float | None], step: int) -> None:
    for name, value in numbers.items():
        if value is not None and not math.isnan(value):
            writer.add_scalar(name, value, step)


def _utf8(path: Path) -> str:
    """Returns the path from the working directory: TensorBoard needs UTF-8, which the rest of a path need not be."""
    return os.path.relpath(path)


def _encodable(value: Any) -> str:
    """Returns text that UTF-8 can hold, as TensorBoard needs it; a file's name may be no UTF-8."""
    return str(value).encode(errors="backslashreplace").decode()
