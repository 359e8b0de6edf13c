"""GPU backend in Triton: the recurrences step by step or in one launch, and the output layer's loss.

The kernels keep the contract of `lmtrain.ops.backends`: float32, float64 and bfloat16, with resets (`keep_TB`) and zoneout,
without layer normalisation. `launch.variant` chooses between a product and a pointwise kernel per step (a), and a single
launch that holds the weight on the chip (b, `persistent.make_plan` has the rule).

Without a GPU everything runs in Triton's interpreter (TRITON_INTERPRET=1 when Python starts), slowly: for tests.
"""

from __future__ import annotations

from functools import cache

import torch

from lmtrain.ops.backends import Call
from lmtrain.ops.triton.cross_entropy import forward_linear_cross_entropy
from lmtrain.ops.triton.elman import backward_elman, forward_elman
from lmtrain.ops.triton.gru import backward_gru, forward_gru
from lmtrain.ops.triton.launch import INTERPRETED
from lmtrain.ops.triton.lstm import backward_lstm, forward_lstm

__all__ = [
    "backward_elman",
    "backward_gru",
    "backward_lstm",
    "forward_elman",
    "forward_gru",
    "forward_linear_cross_entropy",
    "forward_lstm",
    "why_not",
]


def why_not(call: Call) -> str | None:
    """Why this call cannot run here, None when it can."""
    if call.device != ("cpu" if INTERPRETED else "cuda"):
        interpreted = "; TRITON_INTERPRET=1 lets it run slowly on the CPU" if call.device == "cpu" else ""
        return f"it runs on {'the CPU, in its interpreter' if INTERPRETED else 'CUDA'}, not on {call.device}{interpreted}"
    if not INTERPRETED and (reason := _why_no_gpu()):
        return reason
    if unknown := sorted(call.options - {"keep_TB", "zoneout_TBH", "cell_zoneout_TBH"}):
        return f"it has no {' and no '.join(unknown)}"
    return None


@cache
def _why_no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return None if torch.cuda.get_device_capability() >= (8, 0) else "it needs a GPU of compute capability 8.0 or later"
