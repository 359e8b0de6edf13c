"""What a program has set in PyTorch for itself, and what does not reach what the package computes for it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Within it PyTorch makes float32 on a CPU where nothing else is said, learns where it is asked to, and rounds nothing: as
    before `set_default_dtype`, `set_default_device`, `no_grad`, `inference_mode` and `autocast`. Without PyTorch there is
    nothing to do."""
    if (torch := sys.modules.get("torch")) is None or not hasattr(torch, "autocast"):  # or it is just being imported
        yield
        return
    _take_all_threads()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) is not torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


def _take_all_threads() -> None:
    """Undoes OMP_DYNAMIC for this thread. With fewer threads than they asked for PyTorch's products of bfloat16 are wrong."""
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true":
        with suppress(OSError):
            loaded = Path("/proc/self/maps").read_text(errors="replace")
            for library in set(re.findall(r"/.*libgomp\S*", loaded)):
                ctypes.CDLL(library).omp_set_dynamic(0)
