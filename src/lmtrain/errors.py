"""What a person did that cannot work, said in one paragraph: what was given, what is allowed, what to type instead.

A `UserError` reaches the terminal as its text alone, without a traceback (`LMTRAIN_DEBUG=1` shows one), and ends the
process with its exit code:

    0 fine    1 a bug of ours    2 settings    3 data    4 checkpoint    5 diverged    6 resources    130/143 signals
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class UserError(Exception):
    """A mistake that a person can mend; `given`, `allowed` and `remedy` are whole sentences."""

    exit_code = 2

    def __init__(self, given: str, allowed: str, remedy: str) -> None:
        super().__init__(" ".join(part for part in (given, allowed, remedy) if part).replace(" \n", "\n"))
        self.given, self.allowed, self.remedy = given, allowed, remedy


class SettingsError(UserError):
    """A setting, an option or a combination of them that cannot work."""

    exit_code = 2


class DataError(UserError):
    """A corpus, a prompt or a file of text that cannot be read as one."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint or a run directory that is missing, damaged, newer than this program, or of another model."""

    exit_code = 4


class DivergedError(UserError):
    """Training that produced a loss or a gradient which is not finite."""

    exit_code = 5


class ResourceError(UserError):
    """Memory, disk or a device that does not suffice."""

    exit_code = 6


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that there is not: by Python, NumPy, PyTorch on CPU or GPU, or C++."""
    words = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in words or "std::bad_alloc" in words)
    )


def end_process(error: UserError) -> NoReturn:
    """Says what is wrong in one paragraph and ends with the error's exit code; `LMTRAIN_DEBUG=1` shows a traceback instead."""
    if os.environ.get("LMTRAIN_DEBUG"):
        raise error
    print(f"lmtrain: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)
