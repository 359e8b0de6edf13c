"""Native CPU backend: whole recurrences in one C++ call, compiled on first use (`build.py`).

    forward_lstm, backward_lstm     the kernels of ops/lstm.py, contiguous float32 or bfloat16 CPU tensors
    why_not                         why a call cannot be served, or None

Products run over recurrent weights that are packed once per chunk; bfloat16 products accumulate in float32, cells and
pointwise arithmetic are float32. The weight gradient is one large matrix product, left to torch. Results depend on the
build (instruction set) but not on the number of threads.
"""

import ctypes

import torch
from torch import Tensor

from lmtrain.ops.native.build import library, why_no_library

__all__ = ["backward_lstm", "forward_lstm", "why_not"]


def why_not(*, dtype: torch.dtype, device: torch.device, zoneout: bool = False) -> str | None:
    """Why a recurrence of this type on this device with these extras cannot run here; None when it can.

    The first call on a machine compiles the library.
    """
    if device.type != "cpu":
        return f"the native backend runs on the CPU, and the tensors are on {device}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the native backend computes in float32 and bfloat16, and the tensors are {dtype}"
    if zoneout:
        return "the native backend has no zoneout"
    return why_no_library()


def forward_lstm(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None = None,
    *,
    keep_gates: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """All states, all cells (float32) and the activated gates i, f, g, o (empty unless `keep_gates`)."""
    T, B, Z = projected_TBZ.shape
    H = Z // 4
    states_TBH = projected_TBZ.new_empty(T, B, H)
    cells_TBH = projected_TBZ.new_empty(T, B, H, dtype=torch.float32)
    gates_TBZ = projected_TBZ.new_empty(projected_TBZ.shape if keep_gates else 0)
    _call(
        "lmtrain_lstm_forward",
        projected_TBZ.dtype,
        (T, B, H),
        (projected_TBZ, h0_BH, c0_BH.float(), weight_ZH, _float(keep_TB), states_TBH, cells_TBH, gates_TBZ),
    )
    return states_TBH, cells_TBH, gates_TBZ


def backward_lstm(
    d_states_TBH: Tensor,
    d_c_BH: Tensor,
    states_TBH: Tensor,
    cells_TBH: Tensor,
    gates_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of projected, h0, c0 (float32) and weight. `d_states_TBH[-1]` includes the gradient of the final state."""
    T, B, H = states_TBH.shape
    d_projected_TBZ = torch.empty_like(gates_TBZ)
    d_h0_BH = torch.empty_like(h0_BH)
    d_c0_BH = torch.empty(B, H, dtype=torch.float32)
    _call(
        "lmtrain_lstm_backward",
        gates_TBZ.dtype,
        (T, B, H),
        (
            d_states_TBH.to(gates_TBZ.dtype),
            d_c_BH.float(),
            cells_TBH,
            gates_TBZ,
            c0_BH.float(),
            weight_ZH,
            _float(keep_TB),
            d_projected_TBZ,
            d_h0_BH,
            d_c0_BH,
        ),
    )
    d_weight_ZH = d_projected_TBZ.flatten(0, 1).t() @ _previous(states_TBH, h0_BH, keep_TB)
    return d_projected_TBZ, d_h0_BH, d_c0_BH, d_weight_ZH


def _previous(states_TBH: Tensor, h0_BH: Tensor, keep_TB: Tensor | None) -> Tensor:
    """The state that each step started from, [T * B, H]."""
    previous_TBH = torch.cat([h0_BH[None], states_TBH[:-1]])
    if keep_TB is not None:
        previous_TBH *= keep_TB[:, :, None]
    return previous_TBH.flatten(0, 1)


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _call(name: str, dtype: torch.dtype, sizes: tuple[int, ...], tensors: tuple[Tensor | None, ...]) -> None:
    """Calls a C function: whether bfloat16, the sizes, a pointer for each tensor (null for None and empty), the threads."""
    given = [None if tensor is None else tensor.contiguous() for tensor in tensors]  # held until the call returns
    library()[name](
        ctypes.c_int(dtype == torch.bfloat16),
        *(ctypes.c_long(size) for size in sizes),
        *(ctypes.c_void_p(tensor.data_ptr() if tensor is not None and tensor.numel() else None) for tensor in given),
        ctypes.c_long(torch.get_num_threads()),
    )
