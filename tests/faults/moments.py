"""Every moment of a training at which a signal may come: before and behind each thing that the loop does.

`Moments` wraps what the loop calls. While a training runs, it numbers these moments, and does something at chosen ones.
`tests/faults/test_interruptions.py` and `scripts/chaos.py` use it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from unittest.mock import patch

import lmtrain.commands.saver as saver
import lmtrain.commands.train as command
import lmtrain.tasks.language as language
from lmtrain.training.learner import CountLearner, SequenceLearner
from lmtrain.training.session import Session
from lmtrain.training.telemetry import Telemetry

PLACES: list[tuple[Any, str]] = [
    (SequenceLearner, "step"), (CountLearner, "step"), (SequenceLearner, "after_evaluation"), (Session, "_evaluate"),
    (Session, "save"), (Session, "go_back"), (language, "evaluate_split"), (language, "write_sample"),
    (saver, "save_checkpoint"),
    (saver, "mark"), (saver, "prune"), (Telemetry, "record_training"), (Telemetry, "record_evaluation"),
]  # fmt: skip
"""What the loop does, as (owner, name)."""


class Moments:
    """`with Moments({17: act}) as moments`: calls `act()` at moment 17 of the trainings within, counted from 0.

    `names` is the list of the moments that came, such as "before _evaluate".
    """

    def __init__(self, actions: Mapping[int, Callable[[], object]] | None = None) -> None:
        self.names: list[str] = []
        self._actions = dict(actions or {})
        self._stack = ExitStack()
        self._is_training = False

    def __enter__(self) -> Moments:
        for owner, name in PLACES:
            self._stack.enter_context(patch.object(owner, name, self._watched(getattr(owner, name), name)))
        self._stack.enter_context(patch.object(command, "fit", self._training(command.fit)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _training(self, fit: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fit)
        def run(*arguments: Any, **options: Any) -> Any:
            self._is_training = True
            try:
                self._now("before fit")
                return fit(*arguments, **options)
            finally:
                self._is_training = False

        return run

    def _watched(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*arguments: Any, **options: Any) -> Any:
            self._now(f"before {name}")
            result = function(*arguments, **options)
            self._now(f"behind {name}")
            return result

        return watched

    def _now(self, name: str) -> None:
        if self._is_training:  # the final test comes later: a signal then ends the process as it always does
            action = self._actions.get(len(self.names))
            self.names.append(name)
            if action is not None:
                action()
