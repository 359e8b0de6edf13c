"""A small text and a small trained run in a directory of one's own, and `main` called as a user would."""

import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lmtrain.__main__ import main
from lmtrain.data.stream import Chunk
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.learner import GradientLearner, StepReport
from lmtrain.training.schedule import Progress

TINY = [
    "model.embed_size=6", "model.hidden_size=8", "trainer.batch_size=4", "trainer.chunk_length=10", "trainer.num_steps=6",
    "trainer.max_seconds=null", "trainer.log_every=2", "trainer.sample_tokens=5", "trainer.num_threads=1",
    "trainer.precision=float32",
]  # fmt: skip


class Ended(NamedTuple):
    """How a call of `main` ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Calls `main` with the arguments of a command line; "TRAIN" stands for a small training of text.txt."""

    def run(*arguments: str) -> Ended:
        expanded: list[str] = []
        for argument in arguments:
            expanded += ["data=text", "data.path=text.txt", *TINY] if argument == "TRAIN" else [argument]
        capsys.readouterr()
        code = 0
        try:
            main(expanded)
        except SystemExit as error:
            code = int(str(error.code))
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with text.txt and the run `run` that was trained on it."""
    place = tmp_path_factory.mktemp("trained")
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran", "away"]
    lines = [" ".join(words[(i * j + i) % 10] for j in range(1, 8)) for i in range(1, 90)]
    (place / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", ["lmtrain"])
        main(["data=text", "data.path=text.txt", *TINY, "trainer.save_every=2", "hydra.run.dir=run"])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `trained` as the working directory."""
    here = tmp_path / "here"
    shutil.copytree(trained, here)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", ["lmtrain"])
    threads = torch.get_num_threads()
    yield here
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


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
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[GradientLearner], object]]], None]:
    """Makes something happen just before the given steps (the first is 1) of the trainings that follow."""
    step = GradientLearner.step
    arranged: dict[int, Callable[[GradientLearner], object]] = {}

    def disturbed(self: GradientLearner, chunk: Chunk, progress: Progress) -> StepReport:
        arranged.get(progress.step + 1, lambda _: None)(self)
        return step(self, chunk, progress)

    def arrange(actions: dict[int, Callable[[GradientLearner], object]]) -> None:
        arranged.clear()
        arranged.update(actions)

    monkeypatch.setattr(GradientLearner, "step", disturbed)
    return arrange


@pytest.fixture
def file_limit() -> Iterator[Callable[[int | None], None]]:
    """Sets the largest size of files, as a full disk; None: no limit. Lifted after the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if num_bytes is None else num_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
