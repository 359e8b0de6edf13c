"""The records of the other processes of a run that several train together. They have none: the first one records and shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.training.learner import StepReport
from lmtrain.training.score import Score
from lmtrain.training.state import TrainState
from lmtrain.training.telemetry import Telemetry


class Silent(Telemetry):
    """A `Telemetry` that opens no file and shows no bar."""

    def __init__(self) -> None:
        """Opens nothing."""

    def rewind(self, step: int, is_evaluated: bool = True) -> None:
        """Drops nothing: nothing was recorded."""

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Closes nothing."""

    def end_bar(self) -> None:
        """Ends nothing: there is no bar."""

    def progress(self, state: TrainState, report: StepReport, fraction: float, left: float) -> None:
        """Shows nothing."""

    def record_training(self, state: TrainState, report: StepReport) -> None:
        """Records nothing."""

    def record_evaluation(
        self, state: TrainState, score: Score, text: str, is_best: bool, watched: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Records nothing."""

    def record_settings(self, settings: Mapping[str, Any], chosen: Mapping[str, Any], step: int = 0) -> None:
        """Records nothing."""

    def record_results(self, step: int, **results: float | None) -> None:
        """Records nothing."""

    def record_vectors(self, words: Sequence[str], matrix_VE: NDArray[np.float32]) -> None:
        """Records nothing."""

    @property
    def items_per_second(self) -> float:
        return 0.0

    def say(self, line: str) -> None:
        """Says nothing."""
