"""What the tests of several tasks ask of runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def same() -> Callable[[str | Path, str | Path], bool]:
    """Whether the last checkpoints of two runs hold the same tensors, bit for bit."""

    def are_same(first: str | Path, second: str | Path) -> bool:
        one, other = (load_checkpoint(find_checkpoint(run, "last")).tensors for run in (first, second))
        return one.keys() == other.keys() and all(
            one[file].keys() == other[file].keys()
            and all(torch.equal(tensor, other[file][name]) for name, tensor in one[file].items())
            for file in one
        )

    return are_same
