"""Direct n-gram connections: hashed maximum-entropy features beside a neural model (RNN-MaxEnt; Mikolov et al. 2011).

    logits_w = u_w h + b_w + sum over n = 2 .. order of table[bucket(last n - 1 tokens) + w]

A context's weights for all words are a slice of one table of `table_size` numbers, from where its hash points: contexts
share numbers where their slices overlap, and the table never grows. So frequent short-range patterns are learnt as an
n-gram model learns them, and the hidden layer is free for the rest: most of the gain where it is small.

`DirectNgramModel` wraps any neural model: its features are those of the wrapped model with one column per n, the bucket
as a number (exact in float32 up to 2^24), and its head reads them from there.

    legend   T steps · B streams · N rows (T x B) · R rows at a time · D features · V vocabulary · O orders (2-grams to n-grams)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from lmtrain.errors import SettingsError, refuse
from lmtrain.models.base import NeuralLanguageModel, State, StatePolicy, keep_mask
from lmtrain.models.heads import FullSoftmax, Head
from lmtrain.ops.linear import linear
from lmtrain.ops.transforms import call, without_autocast
from lmtrain.rules import MAX_TABLE_SIZE, of_hashed_ngrams

ROWS = 256  # logits of so many rows are held at once


class DirectNgramModel(NeuralLanguageModel):
    """`inner` with direct n-gram connections; the inner model's head must be a full softmax, and its weights are used.

    State: the last order - 1 token ids [B, order - 1], then the inner model's state. The context obeys the state policy.
    Dropout is the inner model's; penalties on activations are not applied to the columns that hold buckets, so they must
    be 0.
    """

    inner: NeuralLanguageModel

    def __init__(self, inner: NeuralLanguageModel, *, order: int = 3, table_size: int = 1 << 22) -> None:
        penalties, is_full = inner.activation_penalty + inner.temporal_penalty, isinstance(inner.head, FullSoftmax)
        refuse(of_hashed_ngrams(order, has_full_softmax=is_full, is_penalised=penalties > 0))
        assert isinstance(inner.head, FullSoftmax)
        super().__init__(
            head=DirectNgramHead(inner.head, order=order, table_size=table_size), embedding=inner.embedding,
            eos_id=inner.eos_id, state_policy=inner.state_policy,
        )  # fmt: skip
        self.inner, self.order = inner, order
        self.num_buckets = table_size - inner.vocab_size + 1

    def initialise(self, how: str, half_width: float) -> None:
        self.inner.initialise(how, half_width)

    def forget_at(self, policy: StatePolicy) -> None:
        super().forget_at(policy)
        self.inner.forget_at(policy)

    def initial_state(self, batch_size: int) -> State:
        device = next(self.parameters()).device
        return (torch.full((batch_size, self.order - 1), self.eos_id, device=device), *self.inner.initial_state(batch_size))

    def state_names(self) -> tuple[str, ...]:
        return ("recent", *(f"inner.{name}" for name in self.inner.state_names()))

    def activations(
        self, tokens_TB: Tensor, state: State, generator: Generator | None = None, *, carry_after: int | None = None
    ) -> tuple[Tensor, State]:
        history_NB = torch.cat([state[0].T, tokens_TB])  # the tokens before the chunk, then its own
        buckets_TBO = self._buckets(history_NB)[-len(tokens_TB) :]
        features_TBD, inner_state = self.inner.features(tokens_TB, state[1:], generator, carry_after=carry_after)
        columns_TBO = buckets_TBO.to(torch.promote_types(features_TBD.dtype, torch.float32))
        start = len(tokens_TB) if carry_after is None else carry_after
        recent = history_NB[start : start + self.order - 1].T.contiguous()
        return torch.cat([features_TBD, columns_TBO], dim=-1), (recent, *inner_state)

    def hidden(self, features_TBD: Tensor) -> Tensor:
        return features_TBD[..., : 1 - self.order]  # a bucket is a name, whose size means nothing

    def _buckets(self, history_NB: Tensor) -> Tensor:
        """For every token the buckets of the contexts that end with it, [N, B, O]; before the history stands `<eos>`.

        What the state policy has made the model forget counts as `<eos>`: contexts of such tokens are hashed alike.
        """
        before_B = torch.full_like(history_NB[0], self.eos_id)
        keep_NB = keep_mask(self.state_policy, self.eos_id, history_NB, before_B)
        hashes, context_NB, known_NB = torch.zeros_like(history_NB), history_NB, torch.ones_like(history_NB, dtype=torch.bool)
        buckets = []
        for _ in range(self.order - 1):
            context_NB = torch.where(known_NB, context_NB, self.eos_id)
            hashes = (hashes + context_NB + 1) * 6364136223846793005  # wraps around, as hashes do
            buckets.append(((hashes >> 32) & 0x7FFFFFFF) % self.num_buckets)
            if keep_NB is not None:  # whether the token before this context's oldest is still known
                known_NB = known_NB & (keep_NB > 0)
                keep_NB = torch.cat([keep_NB.new_ones(1, keep_NB.shape[1]), keep_NB[:-1]])
            context_NB = torch.cat([before_B[None], context_NB[:-1]])
        return torch.stack(buckets, dim=-1)


class DirectNgramHead(Head):
    """A full softmax whose logits also take slices of `table`; the last `order` - 1 features are the slices' starts."""

    can_be_recorded = False  # the host places the gradients of the slices

    def __init__(self, softmax: FullSoftmax, *, order: int, table_size: int) -> None:
        super().__init__()
        self.vocab_size = softmax.vocab_size
        refuse(of_hashed_ngrams(order))
        if not self.vocab_size <= table_size <= MAX_TABLE_SIZE:
            raise SettingsError(
                f"order={order} and table_size={table_size} were given.",
                f"The table lies between the vocabulary's size, {self.vocab_size}, and {MAX_TABLE_SIZE}.",
                f"Type for example table_size={max(MAX_TABLE_SIZE // 4, self.vocab_size)} and order=3.",
            )
        self.softmax, self.num_columns = softmax, order - 1
        self.table = nn.Parameter(torch.zeros(table_size))

    def loss(self, features_TBD: Tensor, targets_TB: Tensor, generator: Generator | None = None) -> Tensor:
        features_NE, starts_NO = self._split(features_TBD.flatten(0, -2))
        arguments = features_NE, self.softmax.weight_VE, self.softmax.bias_V, self.table, starts_NO, targets_TB.flatten()
        with without_autocast(features_TBD.device):
            total_nats: Tensor = call(DirectCrossEntropyFunction, *arguments)
        return total_nats

    def log_probs(self, features_TBD: Tensor) -> Tensor:
        features_TBE, starts_TBO = self._split(features_TBD)
        scores_TBV = linear(features_TBE, self.softmax.weight_VE, self.softmax.bias_V, backend="eager")
        return (scores_TBV + _slices(self.table, starts_TBO, self.vocab_size)).log_softmax(-1)

    def target_log_probs(self, features_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        rows = zip(features_TBD.flatten(0, -2).split(ROWS), targets_TB.flatten().split(ROWS), strict=True)
        parts = [self.log_probs(features).gather(1, targets[:, None]) for features, targets in rows]
        return torch.cat(parts).view(targets_TB.shape)

    def set_unigram_bias(self, counts_V: Tensor) -> None:
        self.softmax.set_unigram_bias(counts_V)

    def _split(self, features_TBD: Tensor) -> tuple[Tensor, Tensor]:
        """The inner model's features as the matrix of word vectors takes them, and where the slices start (int64)."""
        features, starts = features_TBD.tensor_split([-self.num_columns], dim=-1)
        return self.softmax.projected(features), starts.long()


class DirectCrossEntropyFunction(torch.autograd.Function):
    """Total nats of softmax(features W^T + b + slices), with gradients made in the forward pass, `ROWS` rows at a time.

    d_z = softmax - onehot(target);  d_features = d_z W;  d_W = d_z^T features;  d_b = sum d_z;  a slice's gradient is d_z
    of its row, added up where slices overlap. Kept: the gradients themselves. See `lmtrain.ops.linear_cross_entropy`.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        features_ND, weight_VD, bias_V, table, starts_NO, targets_N = inputs
        features_ND = features_ND.to(weight_VD.dtype)
        d_features_ND = torch.empty_like(features_ND)
        d_weight_VD, d_bias_V, d_table = torch.zeros_like(weight_VD), torch.zeros_like(bias_V), torch.zeros_like(table)
        total = torch.zeros((), dtype=torch.float64, device=table.device)
        for start in range(0, len(features_ND), ROWS):
            rows = slice(start, start + ROWS)
            z_RV = torch.addmm(bias_V, features_ND[rows], weight_VD.T).add_(_slices(table, starts_NO[rows], len(bias_V)))
            log_p_RV, targets_R1 = z_RV.log_softmax(1), targets_N[rows, None]
            total -= log_p_RV.gather(1, targets_R1).sum(dtype=torch.float64)
            d_z_RV = log_p_RV.exp_()
            d_z_RV.scatter_add_(1, targets_R1, d_z_RV.new_full(targets_R1.shape, -1.0))
            torch.mm(d_z_RV, weight_VD, out=d_features_ND[rows])
            d_weight_VD.addmm_(d_z_RV.T, features_ND[rows])
            d_bias_V += d_z_RV.sum(0)
            for begins, d_z_V in zip(starts_NO[rows].tolist(), d_z_RV.unbind(), strict=True):
                for begin in begins:
                    d_table[begin : begin + len(bias_V)] += d_z_V
        ctx.gradients = d_features_ND.to(inputs[0].dtype), d_weight_VD, d_bias_V, d_table
        return total.to(table.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * d_total for gradient in ctx.gradients), None, None


def _slices(table: Tensor, starts: Tensor, size: int) -> Tensor:
    """The sum over the last axis of `starts` of table[start : start + size]: [..., O] -> [..., size]."""
    first, *rest = (table.unfold(0, size, 1)[column] for column in starts.unbind(-1))
    return sum(rest, start=first)
