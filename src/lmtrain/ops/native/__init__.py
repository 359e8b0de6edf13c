"""Native CPU backend: whole recurrences in one C++ call, compiled on first use (`build.py`).

The kernels keep the contract of `lmtrain.ops.backends`; float32 and bfloat16, with resets (`keep_TB`), without zoneout and
layer normalisation. The recurrent weight is packed once per call; bfloat16 products accumulate in float32; cells and all
pointwise arithmetic are float32. Results depend on the instruction set compiled for, not on the number of threads (except
the output layer's: its sums over tokens and vocabulary are split among threads, always alike).

For generation there is more: `step.py`, one token through a whole network, and the draw of a token.

One liberty: the saved gates are in a layout of their own, and with bfloat16 int16 tensors, in fixed point. A forget gate of
0.998 is 1 in bfloat16 and would never learn; kept so, gradients err by 0.5 to 0.9 of what the reference errs in bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lmtrain.ops.backends import Call
from lmtrain.ops.native.build import library, why_no_library

__all__ = [
    "backward_elman",
    "backward_gru",
    "backward_lstm",
    "forward_draw",
    "forward_elman",
    "forward_gru",
    "forward_linear_cross_entropy",
    "forward_lstm",
    "why_not",
]

_NONLINEARITIES = ("tanh", "relu", "sigmoid")  # the order of the enumeration in elman.h


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
    _assert_plain(zoneout_TBH, norm_gain_H)
    T, B, H = projected_TBH.shape
    states_TBH = projected_TBH.new_empty(T, B, H)
    sizes = (_NONLINEARITIES.index(nonlinearity), T, B, H)
    _call("elman_forward", projected_TBH.dtype, sizes, projected_TBH, h0_BH, weight_HH, keep_TB, states_TBH)
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
    _assert_plain(candidates_TBH, zoneout_TBH, norm)
    T, B, H = states_TBH.shape
    d_projected_TBH, d_h0_BH = states_TBH.new_empty(T, B, H), states_TBH.new_empty(B, H)
    sizes = (_NONLINEARITIES.index(nonlinearity), T, B, H)
    tensors = (d_states_TBH, states_TBH, weight_HH, keep_TB, d_projected_TBH, d_h0_BH)
    _call("elman_backward", states_TBH.dtype, sizes, *tensors)
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
    _assert_plain(zoneout_TBH, norm_gain_Z)
    T, B, Z = projected_TBZ.shape
    H = Z // 3
    states_TBH = projected_TBZ.new_empty(T, B, H)
    gates_TBY = _new_gates(projected_TBZ, H) if save else None
    tensors = (projected_TBZ, h0_BH, weight_ZH, candidate_bias_H, keep_TB, states_TBH, gates_TBY)
    _call("gru_forward", projected_TBZ.dtype, (T, B, H), *tensors)
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
) -> tuple[Tensor, Tensor]:
    """Gradients of the gates before their activations with that of q, and of the initial state."""
    _assert_plain(zoneout_TBH, norm)
    T, B, H = states_TBH.shape
    d_gates_TBY, d_h0_BH = states_TBH.new_empty(T, B, 4 * H), states_TBH.new_empty(B, H)
    tensors = (d_states_TBH, states_TBH, gates_TBY, h0_BH, weight_ZH, keep_TB, d_gates_TBY, d_h0_BH)
    _call("gru_backward", states_TBH.dtype, (T, B, H), *tensors)
    return d_gates_TBY, d_h0_BH


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
    _assert_plain(zoneout_TBH, cell_zoneout_TBH, norm_gain_Z)
    T, B, Z = projected_TBZ.shape
    H = Z // 4
    states_TBH = projected_TBZ.new_empty(T, B, H)
    c_BH = c0_BH.new_empty(B, H)
    cells_TBH = c0_BH.new_empty(T, B, H) if save else None
    gates_TBZ = _new_gates(projected_TBZ, H) if save else None
    tensors = (projected_TBZ, h0_BH, c0_BH, weight_ZH, keep_TB, states_TBH, c_BH, cells_TBH, gates_TBZ)
    _call("lstm_forward", projected_TBZ.dtype, (T, B, H), *tensors)
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
    _assert_plain(zoneout_TBH, cell_zoneout_TBH, norm)
    T, B, H = states_TBH.shape
    d_projected_TBZ = states_TBH.new_empty(T, B, 4 * H)
    d_h0_BH, d_c0_BH = states_TBH.new_empty(B, H), c0_BH.new_empty(B, H)
    inputs = (d_states_TBH, d_c_BH, cells_TBH, gates_TBZ, c0_BH, weight_ZH, keep_TB)
    _call("lstm_backward", states_TBH.dtype, (T, B, H), *inputs, d_projected_TBZ, d_h0_BH, d_c0_BH)
    return d_projected_TBZ, d_h0_BH, d_c0_BH


def forward_linear_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    max_bytes: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The total and the wanted gradients (float32), as `lmtrain.ops.linear_cross_entropy` describes."""
    (N, D), V = features_ND.shape, len(weight_VD)
    like = features_ND.new_empty(0, dtype=torch.float32)
    d_features_ND = like.new_empty(N, D) if wanted[0] else None
    d_weight_VD = like.new_empty(V, D) if wanted[1] else None
    d_bias_V = like.new_empty(V) if wanted[2] else None
    sizes = (weight_VD.dtype == torch.float32, N, V, D, max_bytes)
    tensors = (features_ND, weight_VD, bias_V, targets_N, d_features_ND, d_weight_VD, d_bias_V)
    nats = _call("linear_cross_entropy", features_ND.dtype, sizes, *tensors, returns=ctypes.c_double)
    return like.new_tensor(nats), d_features_ND, d_weight_VD, d_bias_V


def forward_draw() -> Callable[[Tensor, float, float, int | None], int]:
    """The function of log_probs_V (float32), uniform, temperature, excluded that `lmtrain.ops.draw` describes.

    It gives -1 where there is no token to be found. Made once, because after each step of a large network the caches are
    cold, and what Python does in microseconds takes ten times as long.
    """
    entry = library()["lmtrain_draw"]
    entry.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_float, ctypes.c_long]
    entry.restype = ctypes.c_long

    def draw(log_probs_V: Tensor, uniform: float, temperature: float, excluded: int | None) -> int:
        log_probs_V = log_probs_V.contiguous()
        none_or = -1 if excluded is None else excluded
        token: int = entry(log_probs_V.data_ptr(), log_probs_V.shape[0], uniform, temperature, none_or)
        return token

    return draw


def _assert_plain(*refused: object) -> None:
    """What `why_not` refuses does not arrive."""
    assert all(argument is None for argument in refused)


def _new_gates(projected_TBZ: Tensor, H: int) -> Tensor:
    """Memory for four saved numbers of every unit: step, tile of 16 units, stream, which number, unit within the tile."""
    T, B, _ = projected_TBZ.shape
    dtype = torch.int16 if projected_TBZ.dtype == torch.bfloat16 else projected_TBZ.dtype
    return projected_TBZ.new_empty(T, (H + 15) // 16, B, 4, 16, dtype=dtype)


def _call(function: str, dtype: torch.dtype, sizes: tuple[int, ...], *tensors: Tensor | None, returns: Any = None) -> Any:
    """Calls a C function: whether bfloat16, the sizes, a pointer for each tensor (null for None), the threads."""
    given = [None if tensor is None else tensor.contiguous() for tensor in tensors]  # held until the call returns
    entry = library()[f"lmtrain_{function}"]
    entry.restype = returns
    return entry(
        ctypes.c_int(dtype == torch.bfloat16),
        *(ctypes.c_long(size) for size in sizes),
        *(ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in given),
        ctypes.c_long(torch.get_num_threads()),
    )
