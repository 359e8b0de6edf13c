"""Policy for every test: deterministic algorithms (which also fill `torch.empty` with NaN), one thread, seeded generators."""

import pytest
import torch
from hypothesis import settings

# The same examples on every run, however slow the machine. A longer search:  pytest --hypothesis-profile=search
settings.register_profile("ordinary", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=5000)
settings.load_profile("ordinary")


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
