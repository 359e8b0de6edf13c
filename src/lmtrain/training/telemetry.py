"""The records of a run: TensorBoard, `metrics.jsonl` with the same numbers, a progress bar or plain lines, the log.

Tags are `train/…`, `val/…`, `optim/…`, `perf/…`; the step is the number of updates. A resumed run writes on: records after the
step from which it resumes are dropped, so no step is ever shown twice.

A failure to write telemetry never ends training: a warning says it once. `metrics.jsonl` gets what it lacks as soon as it can
be written again; TensorBoard goes on in the next process.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.files.durable import set_aside
from lmtrain.files.strict_json import parse_json
from lmtrain.files.unfinished import is_at, unfinished_file
from lmtrain.inference.evaluate import perplexity_of
from lmtrain.training.bar import Bar
from lmtrain.training.board import Board
from lmtrain.training.learner import StepReport
from lmtrain.training.score import TOKENS, Score, Wording
from lmtrain.training.state import TrainState

log = logging.getLogger("lmtrain")

MAX_UNWRITTEN_BYTES = 16 << 20
MAX_LINE_BYTES = 1 << 20


class Telemetry:
    """Open while a run trains: `with Telemetry(directory, ...) as telemetry`.

    directory    the run directory; holds `metrics.jsonl` and `tensorboard/`
    resume_step  the step a resumed run goes on from, 0 for a new one
    is_evaluated whether the model of that step has been evaluated; else its evaluation is recorded again
    wording      what the task calls its items, its loss and its score
    name         what TensorBoard calls the run, one word that can name a directory
    """

    def __init__(
        self, directory: Path, *, resume_step: int = 0, resume_fraction: float = 0.0, is_evaluated: bool = True,
        wording: Wording = TOKENS, name: str = "run",
    ) -> None:  # fmt: skip
        self._directory, self._wording, self._name = directory, wording, name
        self._broken = False
        self._excepthook, threading.excepthook = threading.excepthook, self._on_thread_error
        self._open(resume_step, is_evaluated)
        self._bar = Bar(wording, resume_fraction)
        self._rate = _Rate()

    def _open(self, resume_step: int, is_evaluated: bool) -> None:
        """Opens the metric files and drops records later than `resume_step`."""
        path = self._directory / "metrics.jsonl"
        self._guard(lambda: _drop_records_after(path, resume_step, is_evaluated))
        self._unwritten = b""
        self._path = path
        self._metrics: FileIO | None = None
        self._board = Board(self._directory / "tensorboard", self._name, resume_step + 1, self._guard)

    def _close(self) -> None:
        self._guard(lambda: self._append(""))
        if self._metrics is not None:
            self._metrics.close()
        self._board.close()

    def rewind(self, step: int, is_evaluated: bool = True) -> None:
        """Drops what was recorded after `step`, to which training went back."""
        self._close()
        self._open(step, is_evaluated)

    def __enter__(self) -> Telemetry:
        self._bar.begin()
        return self

    def end_bar(self) -> None:
        """Ends the bar when training is over. Later output is written below it."""
        self._bar.end()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.end_bar()
        self._close()
        threading.excepthook = self._excepthook

    def progress(self, state: TrainState, report: StepReport, fraction: float, left: float) -> None:
        """Shows how far training is, and how many seconds are left (infinite: unknown)."""
        self._rate.add(report)
        self._bar.show(state.step, report, self._rate.items_per_second(), fraction, left)

    def record_training(self, state: TrainState, report: StepReport) -> None:
        """Records means since the last record."""
        interval, words = state.interval, self._wording
        numbers: dict[str, float] = {f"train/{words.items}": state.num_items, "train/epoch": state.position.epoch}
        if interval.num_items and report.loss is not None:
            mean_loss = interval.loss / interval.num_items
            numbers[f"train/{words.loss}"] = mean_loss
            if words is TOKENS:
                numbers["train/perplexity"] = perplexity_of(mean_loss)
            numbers |= {
                "train/penalty": interval.penalty / interval.num_steps,
                "optim/learning_rate": report.learning_rate,
                "optim/grad_norm": interval.grad_norm / interval.num_steps,
                "optim/clipped_share": interval.num_clipped / interval.num_steps,
            }
        numbers |= {"perf/training_seconds": state.elapsed_seconds, "perf/evaluation_seconds": state.evaluation_seconds}
        if rate := self._rate.items_per_second():
            numbers[f"perf/{words.items}_per_second"] = rate
        self._record(state.step, numbers)

    def record_evaluation(
        self, state: TrainState, score: Score, text: str, is_best: bool, watched: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Records validation, a text of what the model does (a sample, or its worst errors), and what was `watched`, by tag."""
        self._record(state.step, {f"val/{name}": number for name, number in score.numbers().items()} | dict(watched))
        mark = "  best so far" if is_best else ""
        self.say(f"step {state.step}  epoch {state.position.epoch}  validation: {score.line(mark)}")
        if watched:
            self._board.add_histograms(state.learner.model, state.step)
        if text:
            self._board.add_text("sample", text, state.step)

    def record_settings(self, settings: Mapping[str, Any], chosen: Mapping[str, Any], step: int = 0) -> None:
        """The settings as text; `chosen`, what tells this run from others, as hyper-parameters beside the results.

        And a chart in which training and validation can be compared: their losses, where validation is judged by one.
        """
        words = self._wording
        self._board.add_settings(settings, chosen, step)
        curves = [f"train/{words.loss}", f"val/{words.value}"]
        self._board.add_chart(words.value.replace("_", " "), "train and validation", curves)

    def record_results(self, step: int, **results: float | None) -> None:
        """What the run came to (see `board.RESULTS`), as far as it is known."""
        self._board.add_results(step, results)

    def record_vectors(self, words: Sequence[str], matrix_VE: NDArray[np.float32]) -> None:
        """The vectors of the first of these words, for TensorBoard's projector."""
        self._board.add_vectors(words, matrix_VE)

    @property
    def items_per_second(self) -> float:
        """Returns the mean over the steps of this process but its first; 0 if there were no others."""
        return self._rate.overall()

    def say(self, line: str) -> None:
        """Writes a line to the terminal and the log file, without breaking the bar."""
        log.info("%s", line)

    def _record(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Writes a record. What is not finite is null in `metrics.jsonl`; TensorBoard shows infinities, but no NaN."""
        finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
        self._guard(lambda: self._append(json.dumps({"step": step, **finite}) + "\n"))
        self._board.add_scalars(numbers, step)

    def _append(self, line: str) -> None:
        """Writes to `metrics.jsonl` what is not yet written, and `line`. What cannot be written now is kept for next time."""
        if len(self._unwritten) < MAX_UNWRITTEN_BYTES:
            self._unwritten += line.encode()
        if self._unwritten:
            file = self._metrics_file()
            while self._unwritten:
                self._unwritten = self._unwritten[file.write(self._unwritten) :]

    def _metrics_file(self) -> FileIO:
        """Returns `metrics.jsonl`, opened anew if it was removed or could not be opened before."""
        if self._metrics is None or not is_at(self._path, self._metrics.fileno()):
            if self._metrics is not None:
                self._metrics.close()
            if self._path.exists() and not self._path.is_file():  # a pipe would be waited for
                raise FileExistsError(f"{self._path} is no file")
            self._metrics = None
            self._metrics = self._path.open("ab", buffering=0)
        return self._metrics

    def _on_thread_error(self, arguments: threading.ExceptHookArgs) -> None:
        """Takes the errors of the thread in which TensorBoard writes, which would print a traceback as well."""
        if not (type(arguments.thread).__module__.startswith("tensorboard.") and issubclass(arguments.exc_type, OSError)):
            self._excepthook(arguments)

    def _guard(self, write: Callable[[], None]) -> bool:
        """Tells whether it could be written. A warning says a failure once."""
        try:
            write()
        except Exception as error:  # TensorBoard has errors of its own, and whatever it is, it must not end a training
            if not self._broken:
                log.warning("Telemetry cannot be written (%s); training goes on without it.", error)
            self._broken = True
            return False
        return True


class _Rate:
    """Items per second of training, over roughly the last two seconds of it: evaluating and saving are not counted.

    Neither is the first step of a process, which compiles kernels, nor one that only counts: that is estimated at the end.
    """

    def __init__(self) -> None:
        self._is_first = True
        self._num_items, self._seconds, self._last = 0, 0.0, 0.0
        self._all_items, self._all_seconds = 0, 0.0

    def add(self, report: StepReport) -> None:
        if not self._is_first and report.loss is not None:
            self._num_items += report.num_items
            self._seconds += report.seconds
            self._all_items += report.num_items
            self._all_seconds += report.seconds
        self._is_first = False
        if self._seconds > 2:
            self._last = self._num_items / self._seconds
            self._num_items, self._seconds = 0, 0.0

    def items_per_second(self) -> float:
        """Returns the rate; 0 as long as it is unknown."""
        return self._last or (self._num_items / self._seconds if self._seconds else 0.0)

    def overall(self) -> float:
        """Returns the mean over the whole process."""
        return self._all_items / self._all_seconds if self._all_seconds else 0.0


def _drop_records_after(path: Path, step: int, is_evaluated: bool) -> None:
    """Rewrites `path` without the records of later steps or of an evaluation to come, and without a torn last line.

    A file with anything else in it that is no record is renamed; its records are kept in the new one.
    """
    if not path.is_file():
        return
    damaged: list[int] = []  # numbers of lines

    def kept() -> Iterator[bytes]:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                record = _record_in(line)
                if record is None:
                    if damaged or line.endswith(b"\n") or len(line) == MAX_LINE_BYTES:
                        damaged.append(number)
                elif record["step"] < step or (record["step"] == step and (is_evaluated or not _is_evaluation(record))):
                    yield line if line.endswith(b"\n") else line + b"\n"

    with unfinished_file(path) as file:
        file.writelines(kept())
        if damaged:
            set_aside(path, f"line {damaged[0]} is no record")


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    return any(name.startswith("val/") for name in record)


def _record_in(line: bytes) -> dict[str, Any] | None:
    """Returns one line of `metrics.jsonl`: names and numbers, among them a step. None for anything else."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if all(value is None or type(value) in (int, float) for value in record.values()) else None
