"""Facts for `run.json` about what a process ran on: enough to run it again, and no secrets (variables by a list)."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lmtrain import __version__
from lmtrain.machine import memory_bytes

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "safetensors", "tensorboard", "tqdm", "triton")
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTHONHASHSEED",
    "LMTRAIN_DEBUG",
)
GIT_SECONDS = 5


def session_facts(command_line: Sequence[str]) -> dict[str, Any]:
    """Returns facts about the program, the machine and this process, JSON-able. It asks no GPU: see `device_facts`."""
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": list(command_line),
        "working_directory": str(Path.cwd()),
        "lmtrain": __version__,
        "git": git_facts(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "processor": processor_name(),
        "num_processors": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "num_threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Returns name, memory and driver of the device on which a run trains."""
    if device.type != "cuda":
        return {"device": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": str(device),
        "device_name": properties.name,
        "device_memory_bytes": properties.total_memory,
        "device_capability": f"{properties.major}.{properties.minor}",
        "cudnn": torch.backends.cudnn.version(),
    }


def git_facts(directory: Path) -> dict[str, Any] | None:
    """Returns the commit of the checkout that `directory` is in, and the SHA-256 of what differs from it; None without one.

    A package that is installed inside somebody's checkout, but not tracked there, has no commit.
    """
    if _git(directory, "ls-files", "--error-unmatch", ".") is None:
        return None
    commit, difference = _git(directory, "rev-parse", "HEAD"), _git(directory, "diff", "--no-ext-diff", "--no-textconv", "HEAD")
    if commit is None or difference is None:
        return None
    return {
        "commit": commit.decode().strip(),
        "difference_sha256": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def _git(directory: Path, *arguments: str) -> bytes | None:
    """Returns what git says; None if it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            timeout=GIT_SECONDS,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Returns the name that the processor gives itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
