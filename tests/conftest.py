"""Policy for every test: deterministic algorithms (which also fill `torch.empty` with NaN), one thread, seeded generators.

And for tests of commands: a small text and a small trained run in a directory of one's own, and `main` called as a user would.
"""

import gc
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from lmtrain.__main__ import main

# Thousands of tests hold so many objects that looking for those that nobody holds takes a tenth of the time; it is done rarely.
gc.set_threshold(20_000, 10, 10)

# The same examples on every run, however slow the machine. A longer search:  pytest --hypothesis-profile=search
settings.register_profile("ordinary", deadline=None, derandomize=True, database=None, max_examples=50)
settings.register_profile("search", deadline=None, max_examples=5000)
settings.load_profile("ordinary")


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _the_disk_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can cut the power. Those that look at what is synced, and when, watch the calls."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _nothing_of_an_earlier_run() -> Iterator[None]:
    """A process that trains ends; here its rounding is put back, and the file that it logs to is closed."""
    yield
    torch.set_flush_denormal(False)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


# ---- commands

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
