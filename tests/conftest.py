"""Policy for every test: deterministic algorithms (which also fill `torch.empty` with NaN), one thread, seeded generators."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples on every run, however slow the machine. A longer search:  pytest --hypothesis-profile=search
settings.register_profile("ordinary", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=5000)
settings.load_profile("ordinary")


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    yield


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
