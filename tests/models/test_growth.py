"""What new tokens begin with: as much probability as the one that has stood for them, shared by how often a text has them."""

import pytest
import torch
from torch import nn

from lmtrain.models.growth import grown_weights
from lmtrain.models.heads import AdaptiveSoftmax, FullSoftmax
from lmtrain.models.window import WindowLanguageModel

OLD, NEW = 8, 3
CUTOFFS = [2, 4]


def make(head: str, size: int) -> WindowLanguageModel:
    torch.manual_seed(5)
    output = AdaptiveSoftmax(6, size, cutoffs=CUTOFFS, div_value=2) if head == "adaptive" else FullSoftmax(6, size)
    model = WindowLanguageModel(
        head=output, embedding=nn.Embedding(size, 4), context=2, hidden_size=6, num_layers=1, activation="tanh", eos_id=0
    ).double()
    nn.init.normal_(model.head.bias_V)
    return model.eval()


@pytest.mark.parametrize(("head", "unk_id"), [("full", 1), ("full", 6), ("adaptive", 4), ("adaptive", 6), ("adaptive", 1)])
def test_new_tokens_begin_together_as_one_token(head: str, unk_id: int) -> None:
    old, new, counts = make(head, OLD), make(head, OLD + NEW), torch.tensor([5, 0, 2])
    new.load_state_dict(grown_weights(old.state_dict(), new, unk_id=unk_id, counts_N=counts))
    tokens = torch.tensor([[1], [3], [7]])
    (before, _), (after, _) = (model.log_probs(tokens, model.initial_state(1)) for model in (old, new))
    together = after[..., OLD:].logsumexp(-1)
    has_own_row = head == "full" or unk_id >= CUTOFFS[-1]
    torch.testing.assert_close(together, after[..., unk_id] if has_own_row else after[..., CUTOFFS[-1] : OLD].mean(-1))
    shares = torch.tensor([6, 1, 3]).double() / 10
    torch.testing.assert_close((after[..., OLD:] - together[..., None]).exp(), shares.expand(3, 1, NEW))
    changes = (after[..., :OLD] - before)[..., CUTOFFS[-1] :]
    torch.testing.assert_close(changes, changes[..., :1].expand_as(changes))
