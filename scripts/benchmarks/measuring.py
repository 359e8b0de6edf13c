"""How a contestant is compared and timed: precisions, agreement, seconds, matrix products, memory, and the machine's name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmtrain.machine import keep_freed_memory
from lmtrain.ops.transforms import multiply

TOLERANCE = {  # of the loss and of the gradient, relative
    "float32": (1e-5, 1e-3), "float64": (1e-5, 1e-3), "tf32": (1e-3, 1e-2), "bfloat16": (1e-2, 6e-2), "float16": (1e-2, 6e-2),
}  # fmt: skip
SLOW_GFLOPS = 10  # bfloat16 without instructions for it
PLAIN_BACKENDS = ("torch.nn", "lmtrain.nn", "lmtrain.nn + loss")
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16")}


class LeftOutError(Exception):
    """A preset that cannot be run here, and need not be: what it lacks, and what to type for it."""


@dataclass
class Contestant:
    """Something that does the work once per call; `probe` returns loss and gradients by name, for comparison.

    `parts` are told of as they are; `roofline_parts` (milliseconds) have a limit in `roofline.py`. `kept`: the memory that
    tensors free is kept, as ours always keeps it.
    """

    backend: str
    precision: str
    run: Callable[[], object]
    probe: Callable[[], dict[str, Tensor]] | None = None
    parts: Callable[[], dict[str, float]] | None = None
    seconds: list[float] = field(default_factory=list)
    num_tokens: int | None = None  # of one call; None: the preset's
    roofline_parts: Callable[[], dict[str, float]] | None = None
    kept: bool = False

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    @property
    def keeps_memory(self) -> bool:
        return self.kept or self.backend.split()[0] == "lmtrain"  # not with lmtrain.nn: a foreign script does not

    @property
    def first_runs(self) -> int:
        """How many runs of a turn are not timed. Who keeps memory has all of it after a few, as after the first steps of a
        training; before its turn, all that was free had been given back."""
        return 3 if self.keeps_memory else 1


def with_memory_kept(contestant: Contestant) -> list[Contestant]:
    """The same contestant under our memory setting: for the modules of `torch.nn`, and ours in their place."""
    if contestant.backend not in PLAIN_BACKENDS:
        return []
    return [replace(contestant, backend=f"{contestant.backend}, memory kept", kept=True, seconds=[])]


# ---- precisions


def plain_precisions(device: torch.device) -> tuple[str, ...]:
    """PyTorch's own modules also know float16, where cuDNN has its fastest recurrences."""
    return PRECISIONS[device.type] + (("float16",) if device.type == "cuda" else ())


def dtype_of(precision: str) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    dtype = dtype_of(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@contextmanager
def as_it_runs(contestant: Contestant, device: torch.device) -> Iterator[None]:
    """What holds for the whole process: the kind of products in float32, and whether freed memory is kept."""
    keep_freed_memory(contestant.keeps_memory)
    with float32_products(contestant.precision, device):
        yield


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """On a GPU: whether products of float32 are exact or TF32, in cuBLAS and in cuDNN."""
    if device.type != "cuda":
        yield
        return
    switches: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [switch.fp32_precision for switch in switches]
    with ExitStack() as stack:
        for switch, value in zip(switches, before, strict=True):
            stack.callback(setattr, switch, "fp32_precision", value)
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield


# ---- agreement


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return (tensor.grad.to_dense() if tensor.grad.is_sparse else tensor.grad).detach().float().clone()


def agrees(contestant: Contestant, expected: dict[str, Tensor], device: torch.device) -> bool | None:
    """Whether loss and gradients are those of the plain float32 step, within the precision's tolerance."""
    if contestant.probe is None:
        return None
    with float32_products(contestant.precision, device):
        got = contestant.probe()
    of_loss, of_gradient = TOLERANCE[contestant.precision]
    return all(
        float((got[name] - want).norm()) <= (of_loss if name == "loss" else of_gradient) * float(want.norm())
        for name, want in expected.items()
    )


# ---- time and memory


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started_at = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started_at


def least_seconds(work: Callable[[], object], device: torch.device, repeat: int) -> float:
    return min(seconds_of(work, device) for _ in range(repeat))


def peak_gflops(precision: str, device: torch.device) -> float | None:
    """The best rate of a large square product; of a smaller one where products of this type are very slow."""
    best = None
    for size in (512, 2048) if device.type == "cpu" else (512, 8192):
        a = torch.randn(size, size, device=device, dtype=dtype_of(precision))
        with float32_products(precision, device):
            best = ratio(2 * size**3 / 1e9, least_seconds(partial(multiply, torch.mm, a, a), device, 6))
        if best is None or best < SLOW_GFLOPS:
            break
    return best


def ratio(a: float | None, b: float | None) -> float | None:
    """`a / b`, or None where one of them was not measured or `b` is 0: a clock may be too coarse."""
    return a / b if a is not None and b else None


def peak_megabytes(work: Callable[[], object], device: torch.device) -> float:
    """How much one call adds to the process at most (Linux; 0 elsewhere), on a GPU to the memory allocated there."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before_bytes = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before_bytes) / (1 << 20)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
        work()
        return (_memory("VmHWM") - before) / 1024
    except OSError:
        return 0.0


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


# ---- the machine


def describe_machine(device: torch.device) -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}{_gpu(device)}"


def _gpu(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    import triton

    return (
        f"; {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
        f"Triton {triton.__version__}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
