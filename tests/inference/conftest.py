"""Models so small that their probabilities can be looked up, and one that has weights to adapt."""

import pytest
import torch
from torch import Generator, Tensor

from lmtrain.models.base import LanguageModel, State, StatePolicy, keep_mask


class TrigramTable(LanguageModel):
    """Looks the next token's log-probabilities up by the last two tokens; the token before the chunk is its state."""

    def __init__(self, log_probs_VVV: Tensor, *, eos_id: int = 0, state_policy: StatePolicy = StatePolicy.carry) -> None:
        self.log_probs_VVV, self.eos_id, self.state_policy = log_probs_VVV, eos_id, state_policy
        self.vocab_size = len(log_probs_VVV)

    def initial_state(self, batch_size: int) -> State:
        return (torch.full((batch_size,), self.eos_id),)

    def log_probs(self, tokens_TB: Tensor, state: State) -> tuple[Tensor, State]:
        earlier_TB = torch.cat([state[0][None], tokens_TB[:-1]])
        keep_TB = keep_mask(self.state_policy, self.eos_id, tokens_TB, state[0])
        if keep_TB is not None:
            earlier_TB = torch.where(keep_TB > 0, earlier_TB, self.eos_id)
        return self.log_probs_VVV[earlier_TB, tokens_TB], (tokens_TB[-1],)


@pytest.fixture
def table(generator: Generator) -> TrigramTable:
    """A random trigram table over five tokens; 0 ends lines, 4 is unknown."""
    return TrigramTable(torch.randn(5, 5, 5, generator=generator, dtype=torch.float64).log_softmax(-1))
