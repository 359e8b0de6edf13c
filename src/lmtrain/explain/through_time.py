"""How far back in time a gradient reaches: the norm of dJ_t / d(state)_{t-k} for lags k = 0, 1, ...

The state is the whole of it: h, and of an LSTM h and c together. Looked at by h alone, an LSTM seems to forget what it carries
in c. (Bengio, Simard and Frasconi 1994; Hochreiter and Schmidhuber 1997; Pascanu, Mikolov and Bengio 2013.)

    fresh      layers with the weights with which training starts here, on random inputs; J_t = w^T h_t with |w| = 1
    trained    a model on text that it has not been trained on; J_t is the loss of one token, -log p(token)

Norms are taken for each stream by itself and averaged over the streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from lmtrain.errors import DataError, SettingsError
from lmtrain.models.base import LanguageModel, State, evaluating
from lmtrain.models.recurrent import ElmanLayer, GRULayer, LSTMLayer, RecurrentLayer

Norms = dict[str, list[float]]
"""By the name of a curve its norm at every lag from 0."""

WARM_UP = 30  # steps before the first state that is looked at
INIT_RANGE = 0.1  # of embeddings, as they are drawn here by default
INPUTS = {"small": f"uniform in ±{INIT_RANGE:g}, as embeddings are drawn here", "normal": "standard normal"}
FRESH: dict[str, Callable[[int], RecurrentLayer]] = {
    "Elman": lambda H: ElmanLayer(H, H, draw=False, backend="eager"),
    "GRU": lambda H: GRULayer(H, H, draw=False, backend="eager"),
    **{
        f"LSTM, forget bias {bias}": partial(
            lambda bias, H: LSTMLayer(H, H, forget_bias=bias, draw=False, backend="eager"), float(bias)
        )
        for bias in (0, 1, 3)
    },
}


def fresh_norms(
    num_lags: int = 35, hidden_size: int = 100, num_streams: int = 8, seed: int = 1, *, inputs: str = "small",
    by_h_alone: bool = False,
) -> Norms:  # fmt: skip
    """Those of fresh layers of every cell, in float64.

    inputs      a name of INPUTS: how large they are
    by_h_alone  of the LSTMs, and with respect to h alone: what one sees who forgets that c is a part of the state
    """
    norms: Norms = {}
    for name, make in FRESH.items():
        if by_h_alone and not name.startswith("LSTM"):
            continue
        with torch.random.fork_rng(devices=[]):  # the weights are drawn from the global generator
            torch.manual_seed(seed)
            layer = make(hidden_size)
            layer.initialise("xavier", INIT_RANGE)
        layer.double()
        generator = Generator().manual_seed(seed)
        shape = (WARM_UP + num_lags, num_streams, hidden_size)
        if inputs == "normal":
            inputs_TBH = torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            inputs_TBH = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * INIT_RANGE
        direction_H = torch.randn(hidden_size, generator=generator, dtype=torch.float64)
        state = tuple(torch.zeros(num_streams, hidden_size, dtype=torch.float64) for _ in range(layer.num_states))
        states = [_watched(state)]
        for input_BH in inputs_TBH:
            _, state = layer(input_BH[None], states[-1], None, None)
            states.append(state)
        loss_B = states[-1][0] @ (direction_H / direction_H.norm())
        norms[name] = _norms(loss_B, [state[:1] if by_h_alone else state for state in states], num_lags)
    return norms


def model_norms(model: LanguageModel, ids: Sequence[int], num_lags: int = 35, num_streams: int = 16) -> list[float]:
    """Those of a model on text, from `num_streams` places of it.

    Raises DataError for a text that is too short, SettingsError for a model without a state that gradients flow through.
    """
    length = WARM_UP + num_lags + 1  # tokens that are read, and the one that is predicted
    if len(ids) < length:
        raise DataError(
            f"The text has {len(ids):,} tokens.", f"{num_lags} lags need {length} of them.", "Give fewer lags with --lags."
        )
    num_streams = min(num_streams, len(ids) - length + 1)
    starts = [i * (len(ids) - length) // max(num_streams - 1, 1) for i in range(num_streams)]
    tokens_TB = torch.tensor([[int(ids[start + t]) for start in starts] for t in range(length)])
    with evaluating(model, autograd=True):
        state = model.initial_state(num_streams)
        if not any(x.is_floating_point() for x in state):
            raise SettingsError(
                "This model has no state that a gradient flows through.", "A recurrent model has.",
                "Name a run of model=elman, model=gru or model=lstm, or none for fresh ones.",
            )  # fmt: skip
        return state_norms(model, state, tokens_TB[:-1], tokens_TB[-1], num_lags)


def state_norms(model: LanguageModel, state: State, tokens_TB: Tensor, target_B: Tensor, num_lags: int) -> list[float]:
    """Those of the loss of `target_B`, the tokens behind `tokens_TB`, which the model reads from `state`."""
    states = [_watched(state)]
    for tokens_B in tokens_TB[:-1]:
        states.append(model.advance(tokens_B[None], states[-1]))
    log_probs_TB, _ = model.target_log_probs(tokens_TB[-1:], target_B[None], states[-1])
    return _norms(-log_probs_TB[0], states, num_lags)


def _watched(state: State) -> State:
    return tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in state)


def _norms(loss_B: Tensor, states: Sequence[State], num_lags: int) -> list[float]:
    """Of the gradients of a loss of each stream with respect to its whole state, from the last one backwards."""
    floats = [[x for x in state if x.is_floating_point()] for state in states[: -num_lags - 2 : -1]]
    gradients = iter(torch.autograd.grad(loss_B.sum(), [x for parts in floats for x in parts], allow_unused=True))
    norms = []
    for parts in floats:
        made = [next(gradients) for _ in parts]
        squares_B = sum((d.double().square().sum(-1) for d in made if d is not None), start=loss_B.new_zeros(()).double())
        norms.append(float(squares_B.sqrt().mean()))
    return norms


def format_norms(norms: Norms) -> str:
    """A table with a line for every few lags."""
    names = list(norms)
    last = len(norms[names[0]]) - 1
    lags = [lag for lag in range(last + 1) if lag <= 3 or lag % 5 == 0 or lag == last]
    widths = [max(len(name), 8) for name in names]
    lines = ["lag k  " + "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))]
    for lag in lags:
        cells = [f"{norms[name][lag]:.1e}".rjust(width) for name, width in zip(names, widths, strict=True)]
        lines.append(f"{lag:5}  " + "  ".join(cells))
    return "\n".join(lines)
