"""The n-gram language model: p(w_t | all before) = p(w_t | w_{t-n+1} ... w_{t-1}), estimated by counting.

    count(ids) ...  ->  n-grams of every order (`ngram_counts`)  ->  their probabilities (`smoothing`)  ->  `BackoffTable`

Its state is the last n-1 tokens. Under the policy `line`, which is the usual one of n-gram models, `<eos>` is the `<s>` of
the line that it opens and the `</s>` of the line that it closes. Chen and Goodman 1998; Heafield et al. 2013 (KenLM).

    legend   T steps in a chunk · B streams · N the n-1 tokens of a context · P = N + T · V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmtrain.choices import Smoothing, names
from lmtrain.errors import refuse
from lmtrain.expected import ANY_LENGTH, Like, compare
from lmtrain.models.backoff import BackoffTable
from lmtrain.models.base import LanguageModel, State, StatePolicy
from lmtrain.models.ngram_counts import Ints, count_ngrams, history_lengths
from lmtrain.models.pruning import prune_ngrams, thresholds
from lmtrain.models.smoothing import SmoothingRule, add_k_method, estimate, kneser_ney, maximum_likelihood
from lmtrain.rules import of_counts

SMOOTHINGS = names(Smoothing)


class NgramModel(LanguageModel):
    """Counts what it is given and estimates when it is first asked; before it has counted anything it is uniform.

        model = NgramModel(vocab_size=17112, eos_id=0, order=5)
        model.count(ids)                                             # as often as the text has pieces
        log_probs_TB, state = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(1))

    State: the last order-1 tokens, int64 [B, order-1], the newest last, -1 for nothing.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        eos_id: int,
        order: int = 5,
        smoothing: str = "kneser_ney",
        add_k: float = 0.1,
        prune: Sequence[int] = (),
        state_policy: StatePolicy = StatePolicy.line,
    ) -> None:
        """smoothing  one of SMOOTHINGS; `add_k` is the k of add_k
        prune      n-grams of each order that occur so often or less are left out (`pruning`); kneser_ney alone knows how

        Raises SettingsError where a value is out of range.
        """
        super().__init__()
        refuse(of_counts(order, smoothing, add_k, prune))
        assert 0 <= eos_id < vocab_size
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self.order = order
        self.smoothing = smoothing
        self.add_k = add_k
        self.prune = thresholds(prune, order)
        self.state_policy = state_policy
        self._pieces: list[NDArray[np.int32]] = []
        self._table: BackoffTable | None = None

    # ---- counting

    def count(self, ids: NDArray[Any]) -> None:
        """Counts the next piece of the text, ids of tokens [P]; where a text is cut into pieces makes no difference.

        The ids themselves are kept: they are smaller than any table of their n-grams.
        """
        assert self._pieces or self._table is None, "a model without its counts cannot count on"
        assert not len(ids) or 0 <= ids.min() <= ids.max() < self.vocab_size
        self._pieces.append(ids.astype(np.int32))
        self._table = None

    def finish(self) -> None:
        """Estimates the probabilities from all that has been counted; does nothing where they are up to date."""
        if self._table is None:
            ids = np.concatenate([np.empty(0, np.int32), *self._pieces])
            orders = count_ngrams(
                ids, order=self.order, vocab_size=self.vocab_size, eos_id=self.eos_id, policy=self.state_policy
            )
            log_probs, log_rests = estimate(
                orders, vocab_size=self.vocab_size, method=self._method(), interpolate=self._interpolates, prune=self.prune
            )
            keys = [order.keys for order in orders]
            if self.prune:
                keys, log_probs, log_rests = prune_ngrams(orders, self.prune, log_probs, log_rests)
            self._pieces = [ids]
            self._table = BackoffTable(self.vocab_size, keys, log_probs, log_rests)

    @property
    def _interpolates(self) -> bool:
        """Whether a context borrows from the same one without its first word; add_k counts each history by itself."""
        return self.smoothing != "add_k"

    def _method(self) -> SmoothingRule:
        match self.smoothing:
            case "kneser_ney":
                return kneser_ney
            case "add_k":
                return add_k_method(self.add_k, self.vocab_size)
            case _:
                return maximum_likelihood

    @property
    def table(self) -> BackoffTable:
        """The estimated probabilities."""
        self.finish()
        assert self._table is not None
        return self._table

    # ---- the contract of a language model

    def forget_at(self, policy: StatePolicy) -> None:
        self.finish()  # with the contexts that were counted
        super().forget_at(policy)

    def initial_state(self, batch_size: int) -> State:
        return (torch.full((batch_size, self.order - 1), -1),)

    def log_probs(self, tokens_TB: Tensor, state: State) -> tuple[Tensor, State]:
        """Exact log-probabilities (nats, float64) of every next token, [T, B, V], and the next state."""
        contexts, next_state = self._read(tokens_TB, state)
        rows = self.table.distributions([context_TB.reshape(-1) for context_TB in contexts], tokens_TB.numel())
        log_probs_TBV = torch.from_numpy(rows).view(*tokens_TB.shape, self.vocab_size)
        return log_probs_TBV.to(tokens_TB.device), next_state

    def target_log_probs(self, tokens_TB: Tensor, targets_TB: Tensor, state: State) -> tuple[Tensor, State]:
        if (scorer := self.table.scorer) is None:
            return self.target_log_probs_reference(tokens_TB, targets_TB, state)
        (context_BN,) = state
        log_probs_TB, next_BN = scorer.log_probs(
            torch.cat([context_BN.T.to(tokens_TB.device), tokens_TB]).numpy(force=True), targets_TB.numpy(force=True),
            eos_id=self.eos_id, policy=self.state_policy.value, whole_histories=not self._interpolates,
        )  # fmt: skip
        return torch.from_numpy(log_probs_TB).to(tokens_TB.device), (torch.from_numpy(next_BN).to(context_BN.device),)

    def target_log_probs_where(
        self, tokens_TB: Tensor, targets_TB: Tensor, where_TB: Tensor, state: State
    ) -> tuple[Tensor, State]:
        log_probs_TB, state = self.target_log_probs(tokens_TB, targets_TB, state)
        log_probs_N = log_probs_TB.numpy(force=True)[where_TB.numpy(force=True)]  # PyTorch would wake its threads for it
        return torch.from_numpy(log_probs_N).to(tokens_TB.device), state

    def target_log_probs_reference(self, tokens_TB: Tensor, targets_TB: Tensor, state: State) -> tuple[Tensor, State]:
        """The same in NumPy, bit for bit."""
        contexts, next_state = self._read(tokens_TB, state)
        log_probs_TB = self.table.target_log_probs(contexts, targets_TB.numpy(force=True))
        return torch.from_numpy(log_probs_TB).to(tokens_TB.device), next_state

    def advance(self, tokens_TB: Tensor, state: State) -> State:
        return self._read(tokens_TB, state)[1]

    def _read(self, tokens_TB: Tensor, state: State) -> tuple[list[Ints], State]:
        """Where the contexts of length 1, 2, ... behind each token are listed, each int64 [T, B], and the next state."""
        (context_BN,) = state
        num_context = self.order - 1
        tokens_PB = torch.cat([context_BN.T.to(tokens_TB.device), tokens_TB]).numpy(force=True)
        history_PB = history_lengths(tokens_PB, eos_id=self.eos_id, policy=self.state_policy)
        contexts = self.table.find_contexts(tokens_PB, history_PB)
        if not self._interpolates:  # only the whole history counts: one cut short is no suffix of a longer one
            length_PB = np.minimum(history_PB, num_context)
            contexts = [np.where(length_PB == length, context_PB, -1) for length, context_PB in enumerate(contexts, 1)]
        age_P1 = np.arange(len(tokens_PB), 0, -1)[:, None]
        remembered_PB = np.where(age_P1 <= history_PB[-1:], tokens_PB, -1)
        next_BN = torch.from_numpy(remembered_PB[len(tokens_PB) - num_context :].T.copy())
        return [context_PB[num_context:] for context_PB in contexts], (next_BN.to(context_BN.device),)

    # ---- saving

    def tensors(self) -> dict[str, Tensor]:
        """What inference needs: the table, or while it is not estimated what it will be estimated from."""
        return self._table.tensors() if self._table is not None else self.counted()

    def counted(self) -> dict[str, Tensor]:
        """The text that was counted, so that counting can go on; nothing of a model that came without it."""
        if self._table is not None and not self._pieces:
            return {}
        return {"counted_ids": torch.from_numpy(np.concatenate([np.empty(0, np.int32), *self._pieces]))}

    def expected_table(self) -> dict[str, Like]:
        """What `tensors()` gives once the probabilities are estimated."""
        return BackoffTable.expected(self.vocab_size, self.order)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors()` gave, with or without `counted()`.

        Raises UnfitError for anything else; then nothing has changed.
        """
        left = dict(tensors)
        pieces, table = [], None
        if "counted_ids" in left:
            ids = left.pop("counted_ids")
            compare(Like((ANY_LENGTH,), torch.int32, least=0, most=self.vocab_size - 1), ids, "counted_ids")
            pieces = [ids.numpy(force=True)]
        if left or not pieces:
            table = BackoffTable.from_tensors(left, vocab_size=self.vocab_size, order=self.order)
        self._pieces, self._table = pieces, table

    @classmethod
    def from_table(cls, table: BackoffTable, *, eos_id: int) -> NgramModel:
        """A model, forgetting at every line's end, that was estimated elsewhere; it cannot count on."""
        model = cls(vocab_size=table.vocab_size, eos_id=eos_id, order=table.order)
        model._table = table
        return model
