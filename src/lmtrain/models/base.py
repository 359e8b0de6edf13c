"""What a language model is: a state machine `(tokens, state) -> (next-token distribution, next state)`.

For a recurrent model the state is its hidden vectors, for the fixed-window model the last C-1 token ids, for an n-gram
model the last n-1 ids. Whatever consumes models (the loop, `evaluate`, `score`, `sample`, mixtures) is written once
against this contract and never asks which kind of model it holds.

    legend   T steps in a chunk · B parallel streams · D features into the head · V vocabulary

Position t of `tokens_TB` is the newest token that the model has seen when it predicts position t of `targets_TB`. A text
is preceded by the tokenizer's `<eos>` (the end of the line before it), so every token of a text is scored, the first too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]  # what a model carries from chunk to chunk; every tensor has the stream axis B first


class StatePolicy(Enum):
    """When a model forgets: never, at the end of a line, or at an empty line (the end of a document)."""

    carry = "carry"
    line = "line"
    document = "document"


def detach(state: State) -> State:
    """The same state without its history: where backpropagation through time is truncated."""
    return tuple(tensor.detach() for tensor in state)


class LanguageModel(ABC):
    """The contract for inference; n-gram models and mixtures implement this much and no more.

    `state_policy` says when the model itself forgets; callers only carry the state.
    """

    vocab_size: int
    state_policy: StatePolicy = StatePolicy.carry

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before any token, for `batch_size` streams."""

    @abstractmethod
    def log_probs(self, tokens_TB: Tensor, state: State) -> tuple[Tensor, State]:
        """Exact, normalised log-probabilities (nats, float32 or wider) of every next token, [T, B, V], and the next state."""

    def target_log_probs(self, tokens_TB: Tensor, targets_TB: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities [T, B] of the given next tokens alone; models override it where that is cheaper."""
        log_probs_TBV, state = self.log_probs(tokens_TB, state)
        return log_probs_TBV.gather(-1, targets_TB[..., None]).squeeze(-1), state
