"""Models so small that their probabilities can be looked up, and one that has weights to adapt."""

import pytest
import torch
from torch import Generator, Tensor, nn

from lmtrain.models.base import LanguageModel, NeuralLanguageModel, State, StatePolicy, keep_mask


class TrigramTable(LanguageModel):
    """Looks the next token's log-probabilities up by the last two tokens; the token before the chunk is its state."""

    def __init__(self, log_probs_VVV: Tensor, *, eos_id: int = 0, state_policy: StatePolicy = StatePolicy.carry) -> None:
        super().__init__()
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


class TinyHead(nn.Module):
    """A full softmax."""

    def __init__(self, size: int, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.linear = nn.Linear(size, vocab_size)

    def log_probs(self, features_TBD: Tensor) -> Tensor:
        return self.linear(features_TBD).log_softmax(-1)

    def target_log_probs(self, features_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        return self.log_probs(features_TBD).gather(-1, targets_TB[..., None]).squeeze(-1)


class TinyRecurrent(NeuralLanguageModel):
    """h_t = tanh(e(token_t) + R h_{t-1}), written as a loop; with dropout, which evaluation must not apply."""

    def __init__(self, size: int = 3, vocab_size: int = 5) -> None:
        super().__init__(
            head=TinyHead(size, vocab_size), embedding=nn.Embedding(vocab_size, size), eos_id=0, output_dropout=0.5
        )
        self.recurrent = nn.Linear(size, size)
        self.unused = nn.Parameter(torch.ones(2))

    def initialise(self, how: str, half_width: float) -> None:
        """The fixture draws the weights."""

    def initial_state(self, batch_size: int) -> State:
        return (self.recurrent.weight.new_zeros(batch_size, self.recurrent.in_features),)

    def state_names(self) -> tuple[str, ...]:
        return ("h",)

    def activations(
        self, tokens_TB: Tensor, state: State, generator: Generator | None = None, *, carry_after: int | None = None
    ) -> tuple[Tensor, State]:
        assert carry_after is None, "it is evaluated only"
        (h_BD,), states = state, []
        for embedded_BD in self.embedding(tokens_TB):
            h_BD = torch.tanh(embedded_BD + self.recurrent(h_BD))
            states.append(h_BD)
        return torch.stack(states), (h_BD,)


@pytest.fixture
def recurrent(generator: Generator) -> TinyRecurrent:
    """Weights large enough for adaptation to be felt, in float64, in training mode."""
    model = TinyRecurrent().double()
    with torch.no_grad():
        for weight in (model.unused, *model.head.parameters(), model.embedding.weight, *model.recurrent.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model
