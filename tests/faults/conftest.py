"""What goes wrong in a training, arranged; and whether two runs ended alike."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lmtrain.data.stream import Chunk
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.learner import SequenceLearner, StepReport
from lmtrain.training.schedule import Progress


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint that is a tensor and not text."""
    checkpoint = load_checkpoint(find_checkpoint(run, "last"))
    return {f"{file}/{name}": t for file in ("model", "training") for name, t in checkpoint.tensors[file].items()}


def records_of(run: Path) -> list[dict[str, float]]:
    """Everything recorded but the speeds."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("perf/")} for line in lines]


@pytest.fixture
def assert_same_end() -> Callable[[Path, Path], None]:
    """Two runs that ended in the same state, bit by bit, and recorded the same numbers."""

    def check(ours: Path, theirs: Path) -> None:
        expected, got = tensors_of(theirs), tensors_of(ours)
        assert expected.keys() == got.keys()
        assert [name for name, tensor in expected.items() if not tensor.equal(got[name])] == []
        assert records_of(ours) == records_of(theirs)

    return check


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[SequenceLearner], object]]], None]:
    """Makes something happen just before the given steps (the first is 1) of the trainings that follow."""
    step = SequenceLearner.step
    arranged: dict[int, Callable[[SequenceLearner], object]] = {}

    def disturbed(self: SequenceLearner, chunk: Chunk, progress: Progress) -> StepReport:
        arranged.get(progress.step + 1, lambda _: None)(self)
        return step(self, chunk, progress)

    def arrange(actions: dict[int, Callable[[SequenceLearner], object]]) -> None:
        arranged.clear()
        arranged.update(actions)

    monkeypatch.setattr(SequenceLearner, "step", disturbed)
    return arrange


@pytest.fixture
def file_limit() -> Iterator[Callable[[int | None], None]]:
    """Sets the largest size of files, as a full disk; None: no limit. Lifted after the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if num_bytes is None else num_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
