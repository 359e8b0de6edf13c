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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from lmtrain.choices import StatePolicy as StatePolicy
from lmtrain.errors import SettingsError
from lmtrain.models.dropout import dropout, dropped_rows, locked_dropout
from lmtrain.models.heads import Head
from lmtrain.models.penalties import activation_penalty, temporal_activation_penalty
from lmtrain.ops.cuda_graph import Function, Replayed

State = tuple[Tensor, ...]  # what a model carries from chunk to chunk; every tensor has the stream axis B first

Reader = Callable[[Sequence[int], Sequence[int]], Tensor]
"""B texts, read side by side: a token and the number (below B) of the text that it stands in, for each of n texts ->
log-probabilities [n, V] of what follows, on the CPU, valid until the next call. A text that is once left out has ended."""


def detach(state: State) -> State:
    """The same state without its history: where backpropagation through time is truncated."""
    return tuple(tensor.detach() for tensor in state)


class LanguageModel(nn.Module, ABC):
    """The contract for inference; n-gram models and mixtures implement this much and no more.

    It is a module; that of n-grams, which are counted, has no parameters.

    `state_policy` says when the model itself forgets; callers only carry the state.
    """

    vocab_size: int
    state_policy: StatePolicy = StatePolicy.carry

    def forget_at(self, policy: StatePolicy) -> None:
        """From now on the model forgets as `policy` says, whatever it was trained with."""
        self.state_policy = policy

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

    def target_log_probs_where(
        self, tokens_TB: Tensor, targets_TB: Tensor, where_TB: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """The same of those places alone where `where_TB` is true, [N] in their order, for texts of different lengths.

        Models override it where it saves work; rounding may differ from that of `target_log_probs`.
        """
        log_probs_TB, state = self.target_log_probs(tokens_TB, targets_TB, state)
        return log_probs_TB[where_TB], state

    def advance(self, tokens_TB: Tensor, state: State) -> State:
        """The state after reading `tokens_TB`; models override it where that is cheaper than predicting, too."""
        return self.log_probs(tokens_TB, state)[1]

    def reader_factory(self, device: torch.device | str = "cpu", *, int8: bool = False) -> Callable[[State], Reader]:
        """From a state (of B streams) to what reads on from there, token by token, as `log_probs` does in evaluation.

        `int8` asks for weights of 8 bits, which are read faster and are less exact. Raises SettingsError where the model
        does not compute with them.

        Models override it where they are faster so. What can be prepared once for many texts is prepared here; afterwards
        weights must not change, nor the precision (an open autocast).
        """
        if int8:
            raise SettingsError(
                "precision=int8 was given for a model or a device that does not compute with weights of 8 bits.",
                "Recurrent models without layer normalisation, zoneout and residual layers do so, on a CPU.",
                "Take precision=bfloat16 or float32.",
            )

        def predict(tokens_TB: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            log_probs_TBV, state = self.log_probs(tokens_TB, state)
            return log_probs_TBV, *state

        step = self.replayed(predict, device)

        def reader(state: State) -> Reader:
            columns = {text: text for text in range(len(state[0]) if state else 0)}  # those that have ended keep theirs a while

            def read(tokens: Sequence[int], texts: Sequence[int]) -> Tensor:
                nonlocal state, columns
                columns = columns or {text: column for column, text in enumerate(texts)}  # of a model without a state
                kept = torch.tensor([columns[text] for text in texts], device=device)
                if 2 * len(texts) <= len(columns):  # a new width, rarely, because a recording serves one
                    state, columns = tuple(tensor[kept] for tensor in state), {text: n for n, text in enumerate(texts)}
                    kept = torch.arange(len(texts), device=device)
                row = [0] * len(columns)
                for token, text in zip(tokens, texts, strict=True):
                    row[columns[text]] = token
                with evaluating(self):
                    log_probs_TBV, *after = step(torch.tensor([row], device=device), *state)
                    state = tuple(tensor.clone() for tensor in after)  # what comes from a replay is valid until the next
                    return log_probs_TBV[0, kept].cpu()

            return read

        return reader

    def replayed(self, function: Function, device: torch.device | str) -> Function:
        """A function of this model, as it is best called again and again in evaluation, while its weights stay."""
        return function


@contextmanager
def evaluating(model: nn.Module, *, autograd: bool = False) -> Iterator[None]:
    """Within it, the model neither drops anything out nor (by default) records gradients; afterwards it is as before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(not autograd), torch.set_grad_enabled(autograd):
            yield
    finally:
        for module in training:
            module.training = True


def keep_mask(policy: StatePolicy, eos_id: int, tokens_TB: Tensor, previous_B: Tensor) -> Tensor | None:
    """1 where the state before a token survives, 0 where `policy` makes the model forget it; None where it never does.

    The token that ends a line (or, for documents, an empty line) is itself consumed after the forgetting, as the start
    of what follows. `previous_B` is the token before the chunk. Returns float [T, B].
    """
    if policy is StatePolicy.carry:
        return None
    ends_TB = tokens_TB == eos_id
    if policy is StatePolicy.document:
        ends_TB = ends_TB & torch.cat([(previous_B == eos_id)[None], ends_TB[:-1]])
    return (~ends_TB).float()


class NeuralLanguageModel(LanguageModel):
    """What the fixed-window and the recurrent models share: everything behind their last hidden layer.

    A family says how tokens become activations (`activations`); embeddings, every dropout, the penalties on activations
    and the head are written here, once. A `Generator` is needed only while training with dropout.

    input_dropout      on the embeddings; `hidden_dropout` between layers; `output_dropout` before the head
    embedding_dropout  drops whole rows of the embedding matrix (Gal and Ghahramani 2016); a tied head keeps all of it
    locked_dropout     one mask for all steps of a chunk
    """

    def __init__(
        self,
        *,
        head: Head,
        embedding: nn.Embedding,
        eos_id: int,
        state_policy: StatePolicy = StatePolicy.carry,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        locked_dropout: bool = False,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.head = head
        self.vocab_size = head.vocab_size
        self.eos_id = eos_id
        self.state_policy = state_policy
        self.input_dropout, self.hidden_dropout, self.output_dropout = input_dropout, hidden_dropout, output_dropout
        self.embedding_dropout = embedding_dropout
        self.locked_dropout = locked_dropout
        self.activation_penalty = activation_penalty
        self.temporal_penalty = temporal_penalty

    @abstractmethod
    def initialise(self, how: str, half_width: float) -> None:
        """Draws the weights of the hidden layers: `xavier`, `uniform` (+-half_width), `fan` or `identity`."""

    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """A name for each tensor of the state, under which it is saved."""

    @abstractmethod
    def activations(
        self, tokens_TB: Tensor, state: State, generator: Generator | None = None, *, carry_after: int | None = None
    ) -> tuple[Tensor, State]:
        """Activations [T, B, D] of the last hidden layer, and the state after the first `carry_after` tokens (all by default).

        This is all in which the families differ. After 0 tokens the state is the one that was given.
        """

    def features(
        self, tokens_TB: Tensor, state: State, generator: Generator | None = None, *, carry_after: int | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads, [T, B, D]: the activations behind the output dropout; and the state, as `activations` does."""
        raw_TBD, state = self.activations(tokens_TB, state, generator, carry_after=carry_after)
        return self._drop(raw_TBD, self.output_dropout, generator), state

    def hidden(self, features_TBD: Tensor) -> Tensor:
        """The last hidden layer h within what `features` gives: all of it, but for a family that has more to tell its head."""
        return features_TBD

    def training_loss(
        self,
        tokens_TB: Tensor,
        targets_TB: Tensor,
        state: State,
        generator: Generator | None = None,
        *,
        carry_after: int | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Total nats of a chunk, the penalty to add to its mean (a scalar), and the state to carry, not yet detached.

        There may be more tokens than targets: the last ones predict, those before only reach back in time. The state
        returned is that after the first `carry_after` tokens (all of them by default), from where the next chunk starts.
        All tokens pass through the model at once, so whatever is drawn once per step (locked masks, dropped words and
        recurrent weights) is the same for all of them.
        The head may estimate the nats (sampled softmax); evaluation never does.
        """
        raw_TBD, carried = self.activations(tokens_TB, state, generator, carry_after=carry_after)
        if len(raw_TBD) > len(targets_TB):  # a slice of all would cost a copy on the way back
            raw_TBD = raw_TBD[-len(targets_TB) :]
        features_TBD = self._drop(raw_TBD, self.output_dropout, generator)
        total_nats = self.head.loss(features_TBD, targets_TB, generator)
        penalty = total_nats.new_zeros(())
        if self.activation_penalty:
            penalty = penalty + activation_penalty(features_TBD, self.activation_penalty)
        if self.temporal_penalty:
            penalty = penalty + temporal_activation_penalty(raw_TBD, self.temporal_penalty)
        return total_nats, penalty, carried

    def log_probs(self, tokens_TB: Tensor, state: State) -> tuple[Tensor, State]:
        features_TBD, state = self.features(tokens_TB, state)
        return self.head.log_probs(features_TBD), state

    def target_log_probs(self, tokens_TB: Tensor, targets_TB: Tensor, state: State) -> tuple[Tensor, State]:
        features_TBD, state = self.features(tokens_TB, state)
        return self.head.target_log_probs(features_TBD, targets_TB), state

    def target_log_probs_where(
        self, tokens_TB: Tensor, targets_TB: Tensor, where_TB: Tensor, state: State
    ) -> tuple[Tensor, State]:
        features_TBD, state = self.features(tokens_TB, state)
        return -self.head.target_nats(features_TBD[where_TB], targets_TB[where_TB]), state

    def advance(self, tokens_TB: Tensor, state: State) -> State:
        return self.features(tokens_TB, state)[1]

    def replayed(self, function: Function, device: torch.device | str) -> Function:
        """On a GPU recorded as a CUDA graph, unless its work depends on the words read."""
        is_recorded = torch.device(device).type == "cuda" and self.head.can_be_recorded
        return Replayed(function) if is_recorded else function

    def _embed(self, ids: Tensor, generator: Generator | None) -> Tensor:
        """Embeddings of `ids` (any shape), whole rows of the matrix dropped and the rest dropped out as set."""
        embedded = self.embedding(ids)
        if self.training and self.embedding_dropout:
            assert generator is not None, "training with embedding_dropout takes a generator"
            embedded = dropped_rows(embedded, ids, self.vocab_size, self.embedding_dropout, generator)
        return self._drop(embedded, self.input_dropout, generator)

    def _drop(self, x_TBD: Tensor, p: float, generator: Generator | None) -> Tensor:
        if not self.training or p == 0:
            return x_TBD
        assert generator is not None, "training with dropout takes a generator"
        return locked_dropout(x_TBD, p, generator) if self.locked_dropout else dropout(x_TBD, p, generator)
