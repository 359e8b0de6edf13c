"""Native CPU backend: whole recurrences in one C++ call, compiled on first use (`build.py`).

The kernels keep the contract of `lmtrain.ops.backends`; float32 and bfloat16, with resets (`keep_TB`), without zoneout and
layer normalisation. The recurrent weight is packed once per call; bfloat16 products accumulate in float32; cells and all
pointwise arithmetic are float32. Results depend on the instruction set compiled for, not on the number of threads (except
the output layer's: its sums over tokens and vocabulary are split among threads, always alike).

For generation there is more: `step.py`, one token of each text through a whole network, and the draw of tokens.

One liberty: the saved gates are in a layout of their own, and with bfloat16 int16 tensors, in fixed point. A forget gate of
0.998 is 1 in bfloat16 and would never learn; kept so, gradients err by 0.5 to 0.9 of what the reference errs in bfloat16.

C++ trusts the addresses that it is given. So each function here looks at every tensor once more, whoever calls it: type,
shape, and memory of this machine (a microsecond per tensor); C++ itself looks at token ids. What does not fit raises
ValueError, a token id outside the vocabulary IndexError.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmtrain.choices import Nonlinearity, names
from lmtrain.ops.backends import Call
from lmtrain.ops.native.build import library, why_no_library
from lmtrain.ops.transforms import lies_here

__all__ = [
    "backward_elman",
    "backward_gru",
    "backward_lstm",
    "forward_draw",
    "forward_elman",
    "forward_gru",
    "forward_linear_cross_entropy",
    "forward_linear_nats",
    "forward_lstm",
    "forward_sampled_cross_entropy",
    "why_not",
]

_SMALL_DRAW = 1 << 17  # probabilities; below, threads cost more than they save
_SAMPLED_BYTES = 64 << 20  # of working memory, at most
_NONLINEARITIES = names(Nonlinearity)  # in the order of the enumeration in elman.h


def why_not(call: Call) -> str | None:
    """Why this call cannot run here, None when it can. The first call on a machine compiles the library."""
    if call.device != "cpu":
        return f"it runs on the CPU, not on {call.device}"
    if call.dtype not in (torch.float32, torch.bfloat16):
        return f"it computes in float32 and bfloat16, not in {str(call.dtype).removeprefix('torch.')}"
    if unknown := sorted(call.options - {"keep_TB"}):
        return f"it has no {' and no '.join(unknown)}"
    return why_no_library()


def forward_elman(
    projected_TBH: Tensor,
    h0_BH: Tensor,
    weight_HH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: None,
    norm_gain_H: None,
    nonlinearity: str,
    save: bool,
) -> tuple[Tensor, None]:
    """All states; there are no candidates without zoneout."""
    _refuse(zoneout_TBH, norm_gain_H)
    S, (T, B, H) = _type(projected_TBH), _sizes(projected_TBH, 3)
    inputs = (
        _checked("projected_TBH", projected_TBH, S, T, B, H), _checked("h0_BH", h0_BH, S, B, H),
        _checked("weight_HH", weight_HH, S, H, H), _keep(keep_TB, T, B),
    )  # fmt: skip
    states_TBH = projected_TBH.new_empty(T, B, H)
    _call("elman_forward", S, (_NONLINEARITIES.index(nonlinearity), T, B, H), *inputs, states_TBH)
    return states_TBH, None


def backward_elman(
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    candidates_TBH: None,
    h0_BH: Tensor,
    weight_HH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: None,
    norm: None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the projections and of the initial state."""
    _refuse(candidates_TBH, zoneout_TBH, norm)
    S, (T, B, H) = _type(states_TBH), _sizes(states_TBH, 3)
    inputs = (
        _checked("d_states_TBH", d_states_TBH, S, T, B, H), _checked("states_TBH", states_TBH, S, T, B, H),
        _checked("weight_HH", weight_HH, S, H, H), _keep(keep_TB, T, B),
    )  # fmt: skip
    d_projected_TBH, d_h0_BH = states_TBH.new_empty(T, B, H), states_TBH.new_empty(B, H)
    _call("elman_backward", S, (_NONLINEARITIES.index(nonlinearity), T, B, H), *inputs, d_projected_TBH, d_h0_BH)
    return d_projected_TBH, d_h0_BH


def forward_gru(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    candidate_bias_H: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: None,
    norm_gain_Z: None,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """All states, and the gates r, z, n with q = R_n h + b_hn if they are to be saved."""
    _refuse(zoneout_TBH, norm_gain_Z)
    S, (T, B, Z) = _type(projected_TBZ), _sizes(projected_TBZ, 3)
    H = Z // 3
    inputs = (
        _checked("projected_TBZ", projected_TBZ, S, T, B, 3 * H), _checked("h0_BH", h0_BH, S, B, H),
        _checked("weight_ZH", weight_ZH, S, 3 * H, H), _checked("candidate_bias_H", candidate_bias_H, torch.float32, H),
        _keep(keep_TB, T, B),
    )  # fmt: skip
    states_TBH = projected_TBZ.new_empty(T, B, H)
    gates_TBY = projected_TBZ.new_empty(_gates_shape(T, B, H), dtype=_gates_type(S)) if save else None
    _call("gru_forward", S, (T, B, H), *inputs, states_TBH, gates_TBY)
    return states_TBH, gates_TBY


def backward_gru(
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    gates_TBY: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: None,
    norm: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input projections, of the recurrent products and of the initial state."""
    _refuse(zoneout_TBH, norm)
    S, (T, B, H) = _type(states_TBH), _sizes(states_TBH, 3)
    inputs = (
        _checked("d_states_TBH", d_states_TBH, S, T, B, H), _checked("states_TBH", states_TBH, S, T, B, H),
        _checked("gates_TBY", gates_TBY, _gates_type(S), *_gates_shape(T, B, H)), _checked("h0_BH", h0_BH, S, B, H),
        _checked("weight_ZH", weight_ZH, S, 3 * H, H), _keep(keep_TB, T, B),
    )  # fmt: skip
    d_projected_TBZ, d_term_TBZ = states_TBH.new_empty(T, B, 3 * H), states_TBH.new_empty(T, B, 3 * H)
    d_h0_BH = states_TBH.new_empty(B, H)
    _call("gru_backward", S, (T, B, H), *inputs, d_projected_TBZ, d_term_TBZ, d_h0_BH)
    return d_projected_TBZ, d_term_TBZ, d_h0_BH


def forward_lstm(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: None,
    cell_zoneout_TBH: None,
    norm_gain_Z: None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """All states, the last cell (float32), and if they are to be saved all cells and the activated gates i, f, g, o."""
    _refuse(zoneout_TBH, cell_zoneout_TBH, norm_gain_Z)
    S, (T, B, Z) = _type(projected_TBZ), _sizes(projected_TBZ, 3)
    H = Z // 4
    inputs = (
        _checked("projected_TBZ", projected_TBZ, S, T, B, 4 * H), _checked("h0_BH", h0_BH, S, B, H),
        _checked("c0_BH", c0_BH, torch.float32, B, H), _checked("weight_ZH", weight_ZH, S, 4 * H, H), _keep(keep_TB, T, B),
    )  # fmt: skip
    states_TBH = projected_TBZ.new_empty(T, B, H)
    c_BH = c0_BH.new_empty(B, H)
    cells_TBH = c0_BH.new_empty(T, B, H) if save else None
    gates_TBZ = projected_TBZ.new_empty(_gates_shape(T, B, H), dtype=_gates_type(S)) if save else None
    _call("lstm_forward", S, (T, B, H), *inputs, states_TBH, c_BH, cells_TBH, gates_TBZ)
    return states_TBH, c_BH, cells_TBH, gates_TBZ


def backward_lstm(
    d_states_TBH: Tensor,
    d_c_BH: Tensor,
    states_TBH: Tensor,
    cells_TBH: Tensor,
    gates_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: None,
    cell_zoneout_TBH: None,
    norm: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projections, of the initial state and of the initial cell (float32)."""
    _refuse(zoneout_TBH, cell_zoneout_TBH, norm)
    S, (T, B, H) = _type(states_TBH), _sizes(states_TBH, 3)
    inputs = (
        _checked("d_states_TBH", d_states_TBH, S, T, B, H), _checked("d_c_BH", d_c_BH, torch.float32, B, H),
        _checked("cells_TBH", cells_TBH, torch.float32, T, B, H),
        _checked("gates_TBZ", gates_TBZ, _gates_type(S), *_gates_shape(T, B, H)),
        _checked("c0_BH", c0_BH, torch.float32, B, H), _checked("weight_ZH", weight_ZH, S, 4 * H, H), _keep(keep_TB, T, B),
    )  # fmt: skip
    d_projected_TBZ = states_TBH.new_empty(T, B, 4 * H)
    d_h0_BH, d_c0_BH = states_TBH.new_empty(B, H), c0_BH.new_empty(B, H)
    _call("lstm_backward", S, (T, B, H), *inputs, d_projected_TBZ, d_h0_BH, d_c0_BH)
    return d_projected_TBZ, d_h0_BH, d_c0_BH


def forward_linear_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    max_bytes: int,
    wanted: tuple[bool, bool, bool],
    items: int = 1,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The total and the wanted gradients (float32), as `lmtrain.ops.linear_cross_entropy` describes."""
    (N, D), V = _sizes(features_ND, 2), _sizes(weight_VD, 2)[0]
    like = features_ND.new_empty(0, dtype=torch.float32)
    d_features_ND = like.new_empty(N, D) if wanted[0] else None
    d_weight_VD = like.new_empty(V, D) if wanted[1] else None
    d_bias_V = like.new_empty(V) if wanted[2] else None
    results = d_features_ND, d_weight_VD, d_bias_V
    nats = _linear_cross_entropy(features_ND, weight_VD, bias_V, targets_N, max_bytes, items, *results)
    return like.new_tensor(nats), d_features_ND, d_weight_VD, d_bias_V


def forward_linear_nats(
    features_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, max_bytes: int
) -> Tensor:
    """What each target adds to that total, [N] (float32)."""
    nats_N = features_ND.new_empty(_sizes(features_ND, 2)[0], dtype=torch.float32)
    _linear_cross_entropy(features_ND, weight_VD, bias_V, targets_N, max_bytes, 1, nats_N=nats_N)
    return nats_N


def forward_sampled_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    samples_K: Tensor,
    log_expected_K: Tensor,
    items: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the kernel of the backend eager gives (`lmtrain.ops.sampled_cross_entropy`), in float32."""
    S, (N, D), (V, _), (K,) = _type(features_ND), _sizes(features_ND, 2), _sizes(weight_VD, 2), _sizes(samples_K, 1)
    inputs = (
        _checked("features_ND", features_ND, S, N, D), _checked("weight_VD", weight_VD, torch.float32, V, D),
        _checked("bias_V", bias_V, torch.float32, V), _checked("targets_N", targets_N, torch.int64, N),
        _checked("samples_K", samples_K, torch.int64, K), _checked("log_expected_K", log_expected_K, torch.float32, K),
    )  # fmt: skip
    like = features_ND.new_empty(0, dtype=torch.float32)
    results = like.new_empty(N, D), like.new_empty(K + N, D), like.new_empty(K + N)
    sizes = (N, V, D, K, items, _SAMPLED_BYTES)
    nats = _call("sampled_cross_entropy", S, sizes, *inputs, *results, returns=ctypes.c_double)
    if nats == -math.inf:
        raise IndexError(f"targets_N or samples_K holds a token id outside 0 to {V - 1}.")
    return like.new_tensor(nats), *results


def _linear_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    max_bytes: int,
    items: int,
    d_features_ND: Tensor | None = None,
    d_weight_VD: Tensor | None = None,
    d_bias_V: Tensor | None = None,
    nats_N: Tensor | None = None,
) -> float:
    """The total; gradients and the nats of each target are written where there is a place."""
    S, (N, D), V = _type(features_ND), _sizes(features_ND, 2), _sizes(weight_VD, 2)[0]
    inputs = (
        _checked("features_ND", features_ND, S, N, D),
        _checked("weight_VD", weight_VD, torch.float32 if weight_VD.dtype == torch.float32 else S, V, D),
        None if bias_V is None else _checked("bias_V", bias_V, torch.float32, V),
        _checked("targets_N", targets_N, torch.int64, N),
    )
    sizes = (weight_VD.dtype == torch.float32, N, V, D, max_bytes, items)
    results = d_features_ND, d_weight_VD, d_bias_V, nats_N
    nats: float = _call("linear_cross_entropy", S, sizes, *inputs, *results, returns=ctypes.c_double)
    if nats == -math.inf:
        raise IndexError(f"targets_N holds a token id outside 0 to {V - 1}.")
    return nats


def forward_draw() -> Callable[[Tensor, Sequence[float], float, int | None], list[int]]:
    """The function of log_probs_NV (float32), uniforms, temperature, excluded that `lmtrain.ops.draw` describes.

    It gives -1 where there is no token to be found, or an argument is not what it should be. Made once, because after each
    step of a large network the caches are cold, and what Python does in microseconds takes ten times as long.
    """
    entry = library()["lmtrain_draw_each"]
    entry.argtypes = [
        ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_float, ctypes.c_long, ctypes.c_void_p,
        ctypes.c_long,
    ]  # fmt: skip
    entry.restype = None

    def draw(log_probs_NV: Tensor, uniforms: Sequence[float], temperature: float, excluded: int | None) -> list[int]:
        if log_probs_NV.dtype is not torch.float32 or not lies_here(log_probs_NV):
            raise ValueError(f"log_probs_NV is {log_probs_NV.dtype} on {log_probs_NV.device}; expected float32 on a CPU.")
        N, V = log_probs_NV.shape
        if len(uniforms) != N:
            raise ValueError(f"{len(uniforms)} uniforms for {N} distributions; expected one for each.")
        log_probs_NV = log_probs_NV.contiguous()
        tokens = (ctypes.c_long * N)()
        entry(
            log_probs_NV.data_ptr(), N, V, (ctypes.c_double * N)(*uniforms), temperature,
            -1 if excluded is None else excluded, tokens, torch.get_num_threads() if N * V > _SMALL_DRAW else 1,
        )  # fmt: skip
        return list(tokens)

    return draw


def _refuse(*unknown: object) -> None:
    """What `why_not` refuses must not arrive: it would be ignored."""
    if any(argument is not None for argument in unknown):
        raise ValueError("the native kernels have no zoneout and no layer normalisation.")


def _type(tensor: Tensor) -> torch.dtype:
    """The type of the computation."""
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the native kernels compute in float32 and bfloat16, not in {tensor.dtype}.")
    return tensor.dtype


def _sizes(tensor: Tensor, dimensions: int) -> torch.Size:
    """The sizes of a tensor that says them to the others, and where results are to lie."""
    if tensor.dim() != dimensions or 0 in tensor.shape or not lies_here(tensor):
        raise ValueError(
            f"a tensor on {tensor.device} has shape {tuple(tensor.shape)}; expected {dimensions} sizes of at least 1, on a CPU."
        )
    return tensor.shape


def _checked(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    """The tensor in one piece, as C++ reads it."""
    if tensor.dtype is not dtype or tensor.shape != shape or not lies_here(tensor):
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; expected {dtype} of {shape} on a CPU."
        )
    return tensor.contiguous().resolve_neg()


def _keep(keep_TB: Tensor | None, T: int, B: int) -> Tensor | None:
    return None if keep_TB is None else _checked("keep_TB", keep_TB, torch.float32, T, B)


def _gates_shape(T: int, B: int, H: int) -> tuple[int, ...]:
    """Four saved numbers of every unit: step, tile of 16 units, stream, which number, unit within the tile."""
    return T, (H + 15) // 16, B, 4, 16


def _gates_type(dtype: torch.dtype) -> torch.dtype:
    return torch.int16 if dtype == torch.bfloat16 else dtype


def _call(function: str, dtype: torch.dtype, sizes: tuple[int, ...], *tensors: Tensor | None, returns: Any = None) -> Any:
    """Calls a C function: whether bfloat16, the sizes, a pointer for each tensor (null for None), the threads.

    The tensors are in one piece: results that were made here, or `_checked`.
    """
    entry = _entry(library(), function, len(sizes), len(tensors), returns)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    return entry(dtype is torch.bfloat16, *sizes, *pointers, torch.get_num_threads())


@functools.cache  # not `cache` alone, which is the name of a file here
def _entry(library: ctypes.CDLL, function: str, num_sizes: int, num_tensors: int, returns: Any) -> Any:
    """The C function, which knows the types of its arguments: making objects of them in each call takes twice as long."""
    entry = library[f"lmtrain_{function}"]
    entry.argtypes = [ctypes.c_int, *[ctypes.c_long] * num_sizes, *[ctypes.c_void_p] * num_tensors, ctypes.c_long]
    entry.restype = returns
    return entry
