"""What TensorBoard shows of a run: two runs of its own, the curves and beside them the results.

    RUN/tensorboard/gru-650-seed1/            losses, rates, samples, the settings as text, vectors for the projector
    RUN/tensorboard/gru-650-seed1/results/    what tells this run from others and what it came to: the tab HPARAMS

TensorBoard lists runs by their directories, so these have names that one can read. In HPARAMS every curve of a run with
hyper-parameters would be a metric. A list of metrics ends that, but with it the hyper-parameters of one run alone are those of
all. Results that have a run to themselves need no list, and of all runs beside each other TensorBoard ticks what differs.

A process writes one file of curves and no other, because TensorBoard's plain loader leaves a file for good as soon as there is
a later one, and with it the curves that still grow. Earlier versions wrote it into `tensorboard/` itself; a run of theirs does
so for ever.
"""

from __future__ import annotations

import json
import math
import os
import shutil
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

PROJECTED = 10_000  # words, of which the projector shows no more at once
RESULTS = ("valid", "test", "tokens_per_second")
"""What a run comes to, as TensorBoard's table of hyper-parameters calls it; of other tasks their own items, not tokens."""


class Board:
    """Writes for TensorBoard, until something cannot be written: its writer does not recover from an error.

    directory   `tensorboard/` of the run
    name        what the run is to be called, where it has no name yet
    purge_step  what was written of this step and later ones is not shown
    attempt     calls what it is given; whether that went well
    """

    def __init__(self, directory: Path, name: str, purge_step: int, attempt: Callable[[Callable[[], None]], bool]) -> None:
        self._directory, self._attempt = directory, attempt
        self._place = directory / name
        self._writer: SummaryWriter | None = None
        attempt(lambda: self._open(purge_step))

    def _open(self, purge_step: int) -> None:
        self._place = find_curves(self._directory) or self._place
        self._writer = SummaryWriter(_utf8(self._place), purge_step=purge_step)

    def close(self) -> None:
        """Nothing is written any more."""
        self._do(lambda writer: writer.close())

    def add_scalars(self, numbers: Mapping[str, float | None], step: int) -> None:
        """Shows infinities, but nothing that is no number."""
        self._do(lambda writer: _add_scalars(writer, numbers, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Plain text, which is shown as it is."""
        self._do(lambda writer: writer.add_text(tag, wrapped(text), step))

    def add_histograms(self, model: nn.Module, step: int) -> None:
        """How the finite weights of each parameter are spread."""

        def add(writer: SummaryWriter) -> None:
            for name, parameter in model.named_parameters():
                values = parameter.detach().float().cpu().numpy().ravel()
                if len(values := values[np.isfinite(values)]):
                    writer.add_histogram(f"weights/{name}", values, step)

        self._do(add)

    def add_settings(self, settings: Mapping[str, Any], chosen: Mapping[str, Any], step: int) -> None:
        """All settings as text; `chosen`, what tells this run from others, as hyper-parameters, if it is new."""
        flat = {key: value if isinstance(value, int | float) else _encodable(value) for key, value in chosen.items()}
        self.add_text("settings", json.dumps(settings, indent=2), step)

        def begin(writer: SummaryWriter) -> None:
            for summary in hparams(flat, {})[1:]:  # the first would be a list of metrics
                writer._get_file_writer().add_summary(summary)

        if not (self._place / "results").exists():
            self._add_results(begin)

    def add_chart(self, title: str, name: str, tags: Sequence[str]) -> None:
        """Curves of several tags in one chart."""
        self._do(lambda writer: writer.add_custom_scalars({title: {name: ["Multiline", list(tags)]}}))

    def add_results(self, step: int, results: Mapping[str, float | None]) -> None:
        """Those of RESULTS that are known: beside them TensorBoard shows the hyper-parameters of a run."""
        assert {*results} <= {*RESULTS}, "TensorBoard would not show it"
        self._add_results(lambda writer: _add_scalars(writer, results, step))

    def add_vectors(self, words: Sequence[str], matrix_VE: NDArray[np.float32]) -> None:
        """The first `PROJECTED` of these words with their vectors, rounded to four digits, for TensorBoard's projector."""
        if not (len(words) and np.isfinite(matrix_VE).all()):
            return
        digits = 3 - math.floor(math.log10(float(np.abs(matrix_VE).max()) or 1.0))
        rounded_VE = np.round(matrix_VE[:PROJECTED].astype(np.float64), max(digits, 0))
        labels = [word if word.isprintable() and word.strip() else ascii(word) for word in words[:PROJECTED]]

        def add(writer: SummaryWriter) -> None:
            shutil.rmtree(self._place / "00000", ignore_errors=True)  # of an earlier process
            writer.add_embedding(rounded_VE, [_encodable(label) for label in labels], tag="words", global_step=0)

        self._do(add)

    def _add_results(self, write: Callable[[SummaryWriter], None]) -> None:
        """In a file of their own, which is whole at once."""

        def add(_: SummaryWriter) -> None:
            with SummaryWriter(_utf8(self._place / "results")) as writer:
                write(writer)

        self._do(add)

    def _do(self, write: Callable[[SummaryWriter], None]) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            if self._attempt(lambda: write(writer)):
                self._writer = writer


def _add_scalars(writer: SummaryWriter, numbers: Mapping[str, float | None], step: int) -> None:
    for name, value in numbers.items():
        if value is not None and not math.isnan(value):
            writer.add_scalar(name, value, step)


def _utf8(path: Path) -> str:
    """TensorBoard needs UTF-8, but not for where we are."""
    return os.path.relpath(path)


def _encodable(value: Any) -> str:
    """TensorBoard writes UTF-8; a name of a file need not be that."""
    return str(value).encode(errors="backslashreplace").decode()
