"""The arithmetic of a run: what `auto` became, which backends compute, and what else moves the last digits of a sum.

A resumed run equals the uninterrupted one bit for bit only if all of that is as it was. If it is not, the run goes on and says
so. `run.json` keeps what each process computed with, from its first checkpoint on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from lmtrain.ops.backends import record_choices
from lmtrain.ops.transforms import Products, without_autocast
from lmtrain.shell import printable
from lmtrain.training.provenance import processor_name

WORDS = {
    "device": "device", "processor": "processor", "instructions": "instructions", "limits": "limits on instructions",
    "precision": "products in", "num_threads": "number of threads", "torch": "PyTorch",
}  # fmt: skip
LIMITS = (
    "LMTRAIN_NATIVE_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
)  # fmt: skip
"""Environment variables that choose among the instructions which the processor has."""


def begin_arithmetic(device: torch.device, precision: torch.dtype, earlier: object) -> dict[str, Any]:
    """Returns what this process computes with, JSON-able. Its "backends" grow while they are chosen. See `iter_changes`.

    If a backend is chosen for what another one computed in the process that wrote `earlier`, a warning says so at that moment.
    """
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "processor": torch.cuda.get_device_properties(device).name if is_cuda else processor_name(),
        "instructions": f"CUDA {torch.version.cuda}" if is_cuda else _instructions(),
        "limits": " ".join(f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)) or "none",
        "precision": str(precision).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "backends": record_choices(_strings(earlier.get("backends")) if isinstance(earlier, Mapping) else {}),
    }


def iter_changes(earlier: object, now: Mapping[str, Any]) -> Iterator[str]:
    """Yields a phrase for each thing but the backends that has changed. What `earlier` does not have is not compared."""
    for name, words in WORDS.items():
        before = earlier.get(name) if isinstance(earlier, Mapping) else None
        if isinstance(before, str | int) and before != now[name]:
            yield f"{words} {now[name]} instead of {printable(str(before), 100)}"


def _instructions() -> str:
    return torch.backends.cpu.get_cpu_capability() + " AMX" * torch.cpu._is_amx_tile_supported()


def _strings(values: object) -> dict[str, str]:
    """Returns what `run.json` says about backends, as far as it has the right form: anybody may have written it."""
    items = values.items() if isinstance(values, Mapping) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, str)}


def has_native_bfloat16(device: torch.device) -> bool:
    """Tells whether bfloat16 products are faster than float32 ones on `device`, and not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, precision: torch.dtype) -> Callable[[], AbstractContextManager[Any]]:
    """Opens the precision under which a forward pass runs."""
    if precision is torch.float32:
        return partial(without_autocast, device)
    return partial(Products, device.type, dtype=precision)
