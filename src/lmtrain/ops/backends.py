"""The backends that compute the functions of `lmtrain.ops`: their names, how one is chosen, and what each must provide.

    reference   plain differentiable PyTorch: the definition, slow
    eager       out= operations with a hand-written backward pass; works on any device, without a compiler
    native      C++ for the CPU, `lmtrain.ops.native`
    triton      GPU, `lmtrain.ops.triton`
    auto        the first of AUTO that serves the call; the log says once which one that is

A backend is a module, which is imported only when somebody asks for it. It exposes

    why_not(call: Call) -> str | None     the reason why it cannot serve this call, a clause without a full stop; None if it
                                          can. It is asked before every call, so it must be cheap after the first time.

and a `forward_f` for every function f that it serves. The recurrences have a `backward_f` beside it. Other functions have none:
`linear_cross_entropy` and `sampled_cross_entropy` compute their gradients in the forward pass, and `draw` has no gradient; its
`forward_draw()` returns the function that draws. Each of these describes its kernel in its own file. The native step of
generation (`native/step.py`) is not called through this table. The kernels of `eager` are in the file of the function itself
(`lmtrain.ops.lstm.forward_lstm`); they are the model for what follows.

The kernels of the recurrences
------------------------------
They are plain functions on tensors, called without gradients, and all arguments are positional. There are two types: S is the
type of `projected` (float32, float64 or bfloat16), and A is the type of sums: float32 for bfloat16, otherwise S.

    legend   T steps · B streams · H hidden · Z gates x H      (every size at least 1)

    projected_TBZ      S   input projections with biases; gates in the order of torch.nn (lstm i f g o, gru r z n)
    h0_BH, weight_ZH   S   initial state, recurrent weight
    c0_BH              A   initial cell
    candidate_bias_H   A   gru: b_hn, within the reset product
    keep_TB            A   or None: multiplies h_{t-1} and c_{t-1} before anything of step t uses them (also zoneout)
    zoneout_TBH        A   or None: h_t = zoneout * (keep * h_{t-1}) + (1 - zoneout) * h~_t; cell_zoneout_TBH likewise for c,
                           and h~_t = o tanh(c~_t) with the cell c~_t before its zoneout (Krueger et al. 2017)
    norm_gain_Z        A   or None: the recurrent product h R^T is layer-normalised within each block of H, times this gain,
                           before it is added (Ba et al. 2016); `norm` in the backward pass: what that needs again
    nonlinearity           "tanh", "relu", "sigmoid" or "identity": every backend serves them all
    save                   False if no backward pass will follow: the last results are then None and need no memory

Names give the shapes. Tensors may have any strides (upstream gradients often have stride 0), so a kernel that needs contiguous
memory calls `.contiguous()` itself. Inputs are never written to. Results are new tensors, which share no memory with an
input or with each other. `call.options` names the optional arguments that are not None, so that `why_not` can refuse them.

    forward_elman(projected_TBH, h0_BH, weight_HH, keep_TB, zoneout_TBH, norm_gain_H, nonlinearity, save)
        -> states_TBH S, candidates_TBH S | None      candidates h~: only if save and zoneout, otherwise None
    backward_elman(d_states_TBH, states_TBH, candidates_TBH | None, h0_BH, weight_HH, keep_TB, zoneout_TBH, norm, nonlinearity)
        -> d_projected_TBH S, d_h0_BH S

    forward_gru(projected_TBZ, h0_BH, weight_ZH, candidate_bias_H, keep_TB, zoneout_TBH, norm_gain_Z, save)
        -> states_TBH S, gates_TBY S | None           Y = 4H: r, z, n (activated) and q = R_n h + b_hn
    backward_gru(d_states_TBH, states_TBH, gates_TBY, h0_BH, weight_ZH, keep_TB, zoneout_TBH, norm)
        -> d_projected_TBZ S, d_term_TBZ S, d_h0_BH S    d_term: gradients of h R^T, which for n is that of q

    forward_lstm(projected_TBZ, h0_BH, c0_BH, weight_ZH, keep_TB, zoneout_TBH, cell_zoneout_TBH, norm_gain_Z, save)
        -> states_TBH S, c_BH A (the last cell), cells_TBH A | None, gates_TBZ S | None (activated)
    backward_lstm(d_states_TBH, d_c_BH, states_TBH, cells_TBH, gates_TBZ, h0_BH, c0_BH, weight_ZH, keep_TB, zoneout_TBH,
                  cell_zoneout_TBH, norm)
        -> d_projected_TBZ S, d_h0_BH S, d_c0_BH A

The last step of `d_states_TBH` (S) already contains the gradient of the final h. `d_c_BH` (A) is that of the final cell, or
zeros if it has none. A kernel does not compute the gradients of the weight (one product over all steps), bias and gain: the
caller makes them from d_projected or d_term, once for all backends.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from lmtrain.choices import Backend, names
from lmtrain.errors import ResourceError, SettingsError
from lmtrain.ops.transforms import FOLLOWED, is_followed

log = logging.getLogger("lmtrain")

NAMES = names(Backend)

# device type -> the backends that are asked, in this order; eager serves every other device
AUTO = {
    "cpu": ("native", "eager"),
    "cuda": ("triton", "eager"),
}

_told: set[str] = set()
_record: dict[str, str] = {}  # a call -> the backend that computed it, since `record_choices`
_earlier: dict[str, str] = {}


@dataclass(frozen=True)
class Call:
    """What is to be computed, as far as a backend needs to know it to accept or refuse.

    function   elman, gru, lstm, ...
    sizes      by letter: {"T": 35, "B": 20, "H": 200}
    follows    whether the tensors `follow` operations, for which there is no kernel
    options    names of the optional arguments in use: keep_TB, zoneout_TBH, cell_zoneout_TBH, norm_gain_Z (norm_gain_H)
    """

    function: str
    device: str
    dtype: torch.dtype
    sizes: Mapping[str, int]
    options: frozenset[str] = frozenset()
    follows: bool = False

    def __str__(self) -> str:
        return _words(self.function, self.dtype, self.device)


@cache
def _words(function: str, dtype: torch.dtype, device: str) -> str:
    return f"{function} in {str(dtype).removeprefix('torch.')} on {device}"


def choose(backend: str, call: Call) -> str:
    """Returns the name of the backend for this call; `auto` becomes one of the others.

    Raises SettingsError for a name that does not exist, ResourceError for a backend that cannot serve the call.
    """
    if backend == "auto":
        backend = "reference" if call.follows or is_followed() else _first_that_serves(call)
    elif backend not in NAMES:
        raise SettingsError(f'backend="{backend}" does not exist.', f"There are {', '.join(NAMES)}.", 'Use backend="auto".')
    elif reason := why_not(backend, call):
        raise ResourceError(f'backend="{backend}" cannot compute {call}: {reason}.', "", 'Use backend="auto".')
    _note(call, backend)
    return backend


def record_choices(earlier: Mapping[str, str]) -> dict[str, str]:
    """Returns a record that grows with each choice from now on: "lstm in bfloat16 on cpu" -> "native".

    A warning is logged if a choice differs from that in `earlier`, the record of another process.
    """
    global _record, _earlier
    _record, _earlier = {}, dict(earlier)
    return _record


def _note(call: Call, backend: str) -> None:
    key = str(call)
    if _record.get(key) == backend:
        return
    _record[key] = backend
    if (before := _earlier.get(key, backend)) != backend:
        log.warning("%s is computed by %s instead of %s: the run is no longer the one it was.", key, backend, before)


def why_not(backend: str, call: Call) -> str | None:
    """Returns the reason why this backend cannot serve the call, or None if it can."""
    if backend in ("reference", "eager"):
        return None
    if call.follows or is_followed():
        return FOLLOWED
    try:
        module = kernels(backend, call.function)
    except ModuleNotFoundError as error:
        if error.name not in (f"lmtrain.ops.{backend}", backend):
            raise
        return f"there is no Python module {error.name}"
    if not hasattr(module, f"forward_{call.function}"):
        return f"it has no {call.function}"
    reason: str | None = module.why_not(call)
    return reason


def warn(backend: str, reason: str) -> None:
    """Logs at once why a backend is not used. `choose` logs which one is used instead, and does not repeat the reason."""
    _told.add(f"{backend}: {reason}")
    log.warning("The %s backend is not used: %s.", backend, reason)


def kernels(backend: str, function: str) -> ModuleType:
    """Returns the module with `forward_<function>` and `backward_<function>` of a backend."""
    return import_module(f"lmtrain.ops.{function if backend == 'eager' else backend}")


def _first_that_serves(call: Call) -> str:
    """Walks through AUTO. Logs once which backend was taken, and once why those before it were not."""
    refusals = []
    for backend in AUTO.get(call.device, ("eager",)):
        if (reason := why_not(backend, call)) is None:
            break
        refusals.append(f"{backend}: {reason}")
    sentence = f"{call} is computed by {backend}"
    new_refusals = [refusal for refusal in refusals if refusal not in _told]
    if sentence not in _told or new_refusals:
        _told.update((sentence, *refusals))
        log.info(sentence + (f" ({'; '.join(new_refusals)})" if new_refusals else ""))
    return backend
