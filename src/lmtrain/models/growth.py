"""Weights for a larger vocabulary: rows for new tokens behind those of the old ones, which stay as they are.

A new token begins as `<unk>`, which has stood for it until now: with its vector, in the embedding and in the output layer. The
probability of `<unk>` is shared among the new tokens by how often the new text has each (its own stays as it was, so all
probabilities become a little smaller together):

    vector_new = vector_<unk>        bias_new = bias_<unk> + log(count_new / count of all new tokens)         (counts + 1)

New tokens are rare, so they belong to the last cluster of an adaptive softmax. `<unk>` may be in another one, whose vectors
have another size; there, a new token gets the mean vector and the mean bias of the cluster instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmtrain.errors import SettingsError
from lmtrain.models.base import NeuralLanguageModel
from lmtrain.models.direct import DirectNgramModel
from lmtrain.models.heads import AdaptiveSoftmax


def grown_weights(
    weights: Mapping[str, Tensor], model: NeuralLanguageModel, *, unk_id: int, counts_N: Tensor
) -> dict[str, Tensor]:
    """The `weights` of a model as those of `model`, which is the same but for N more tokens at the end of its vocabulary.

    weights    by name, each once, as they are saved
    unk_id     of the token that has stood for the new ones
    counts_N   how often the text has each new token

    Raises SettingsError for a model whose old weights would lose their meaning.
    """
    if isinstance(model, DirectNgramModel):
        raise SettingsError(
            "The model to start from has hashed n-grams (model.maxent_order), and new tokens were asked for.",
            "Where an n-gram is hashed to depends on the size of the vocabulary: the weights would belong to others.",
            "Type start_from_new_tokens=false, or train a new model.",
        )
    log_shares_N = (counts_N.double() + 1).log() - (counts_N.double() + 1).sum().log()
    head = model.head
    has_clusters = isinstance(head, AdaptiveSoftmax)
    own, grown = model.state_dict(), dict(weights)
    for name, old in weights.items():
        num_new = own[name].shape[0] - old.shape[0] if old.ndim else 0
        if not num_new:
            continue
        assert (num_new, own[name].shape[1:]) == (len(log_shares_N), old.shape[1:]), f"{name} has no row per token"
        if name == "embedding.weight":
            rows = old[unk_id].expand(num_new, -1)
        elif has_clusters:
            assert isinstance(head, AdaptiveSoftmax)
            rows = old[-(head.sizes[-1] - num_new) :].mean(0).expand(num_new, *old.shape[1:])
        elif name.endswith("proposal_V"):
            rows = old[unk_id] * log_shares_N.exp().to(old)
        elif old.ndim == 1:
            rows = old[unk_id] + log_shares_N.to(old)
        else:
            rows = old[unk_id].expand(num_new, -1)
        grown[name] = torch.cat([old, rows])
    return grown
