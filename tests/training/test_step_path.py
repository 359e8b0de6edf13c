"""The files that one opens to follow one training step are those that `training/README.md` names."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import lmtrain
import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.stream import Stream
from lmtrain.training.averaging import LastWeights
from lmtrain.training.learner import SequenceLearner
from lmtrain.training.limits import Limits
from lmtrain.training.loop import steps
from lmtrain.training.optimizer import group_parameters, make_optimizer
from lmtrain.training.schedule import Cosine
from lmtrain.training.state import TrainState

SOURCE = Path(lmtrain.__file__).parent
README = (SOURCE / "training" / "README.md").read_text(encoding="utf-8")


@contextmanager
def traced() -> Iterator[set[str]]:
    """The files of the package in which a function is called, backward passes too: on a CPU they run in this thread."""
    ran: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE) and path.name != "__init__.py":
            ran.add(path.relative_to(SOURCE).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)


def test_a_step_runs_the_files_that_the_readme_names_and_eight_hold_it() -> None:
    settings = config.RecurrentConfig(embed_size=4, hidden_size=5, backend=config.Backend.eager)
    model = build_model(settings, vocab_size=11, eos_id=0)
    stream = Stream(np.arange(200, dtype=np.uint16) % 11, batch_size=2, chunk_length=5, eos_id=0)
    learner = SequenceLearner(
        model=model, optimizer=make_optimizer("adam", group_parameters(model.named_parameters()), learning_rate=0.01),
        schedule=Cosine(0.1, 0.0), averaging=LastWeights(), generator=torch.Generator(), learning_rate=0.01, clip_norm=1.0,
    )  # fmt: skip
    state = TrainState(learner)
    list(steps(state, stream, Limits(num_steps=1)))  # untraced: the first one may compile kernels, and says who computes
    with traced() as ran:
        list(steps(state, stream, Limits(num_steps=2)))
    path = re.findall(r"(?m)^\| `(\S+\.py)` \|", README)
    named = set(re.findall(r"`(\w+/\w+\.py)`", README))
    assert len(path) <= 8
    assert set(path) <= ran
    bookkeeping = {"training/limits.py", "machine.py", "training/state.py", "data/batches.py"}  # of the loop: how far
    assert {file for file in ran - named - bookkeeping if not file.startswith("ops/native/")} == set()
