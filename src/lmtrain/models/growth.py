"""Weights for a larger vocabulary: rows for new tokens behind those of the old ones, which stay as they are.

A new token begins as `<unk>`, which has stood for it until now: with its vector, in the embedding and in the output layer. The
probability of `<unk>` is shared among the new tokens by how often the new text has each (its own stays as it was, so all
probabilities become a little smaller together):

    vector_new = vector_<unk>        bias_new = bias_<unk> + log(count_new / count of all new tokens)         (counts + 1)

New tokens are rare, so they belong to the last cluster of an adaptive softmax. `<unk>` may stand elsewhere, among vectors of
another size. Then the vector is the mean of the cluster's, and the mean of its biases takes the place of that of `<unk>`: all
new tokens together begin as one average token of the cluster. (Tied vectors are those of the embedding, so of `<unk>`.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmtrain.errors import SettingsError
from lmtrain.models.base import NeuralLanguageModel
from lmtrain.models.direct import DirectNgramModel
from lmtrain.models.heads import AdaptiveSoftmax, Head


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
    own, grown = model.state_dict(), dict(weights)
    for name, old in weights.items():
        num_new = own[name].shape[0] - old.shape[0] if old.ndim else 0
        if not num_new:
            continue
        assert (num_new, own[name].shape[1:]) == (len(log_shares_N), old.shape[1:]), f"{name} has no row per token"
        like = old[unk_id] if name == "embedding.weight" else _row_of_new(old, model.head, unk_id, num_new)
        if name.endswith("proposal_V"):
            rows = like * log_shares_N.exp().to(old)
        elif old.ndim == 1:
            rows = like + log_shares_N.to(old)
        else:
            rows = like.expand(num_new, -1)
        grown[name] = torch.cat([old, rows])
    return grown


def _row_of_new(old: Tensor, head: Head, unk_id: int, num_new: int) -> Tensor:
    """The row that new tokens take, in a tensor of the output layer: of all tokens, or of those of the last cluster."""
    if not isinstance(head, AdaptiveSoftmax):
        return old[unk_id]
    start = len(old) - (head.sizes[-1] - num_new)  # of the last cluster within these rows
    place = start + unk_id - head.cutoffs[-1]
    return old[place] if place >= start else old[start:].mean(0)
