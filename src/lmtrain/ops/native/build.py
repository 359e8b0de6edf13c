"""The C++ of this folder, compiled for this machine on first use and kept in a per-user cache.

The library is plain C seen from outside (pointers and integers, called through `ctypes`), so it needs neither torch's headers
nor Python's nor ninja: g++ takes about five seconds where `torch.utils.cpp_extension` takes half a minute. It shares torch's
own OpenMP runtime, and with it torch's threads.

    $LMTRAIN_CACHE/native/<key>.so      LMTRAIN_CACHE defaults to $XDG_CACHE_HOME/lmtrain, that to ~/.cache/lmtrain

The key covers sources, flags, torch's version and the processor's instruction sets: a home directory shared by different
machines is safe. Two processes that build at once wait for each other; a build interrupted leaves nothing behind.

`LMTRAIN_NATIVE_ISA` selects what to compile for: `native` (default; what the processor has), and for tests and comparisons
`avx512_bf16` (no AMX tiles), `avx512`, `avx2`, `portable`. `CXX` names another compiler that takes GCC's flags.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

log = logging.getLogger("lmtrain")

FOLDER = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-Wno-psabi"]
LIBRARY_FLAGS = ["-fPIC", "-fvisibility=hidden"]  # hidden: builds in one process must not share templates
NO_AMX = ["-mno-amx-bf16", "-mno-amx-tile", "-mno-amx-int8"]
ISA_FLAGS = {
    "native": ["-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"],
    "avx512_bf16": ["-march=native", *NO_AMX],
    "avx512": ["-march=native", *NO_AMX, "-mno-avx512bf16"],
    "avx2": ["-march=x86-64-v3"],
    "portable": [],
}

_libraries: dict[str, ctypes.CDLL] = {}
_reasons: dict[str, str] = {}


def why_no_library() -> str | None:
    """Why the library cannot be had on this machine, with the remedy; None when it is loaded. Builds it at the first call."""
    isa = os.environ.get("LMTRAIN_NATIVE_ISA", "native")
    if isa not in _libraries and isa not in _reasons:
        try:
            _libraries[isa] = _load(isa)
        except _CannotBuildError as error:
            _reasons[isa] = str(error)
    return _reasons.get(isa)


def library() -> ctypes.CDLL:
    """The loaded library; only after `why_no_library()` said None."""
    return _libraries[os.environ.get("LMTRAIN_NATIVE_ISA", "native")]


class _CannotBuildError(Exception):
    """The text is for the user."""


def _load(isa: str) -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        raise _CannotBuildError(f"the native backend is written for Linux, and this is {sys.platform}")
    if isa not in ISA_FLAGS:
        raise _CannotBuildError(f"LMTRAIN_NATIVE_ISA={isa} is none of {', '.join(ISA_FLAGS)}")
    path = _cache_folder() / f"{_key(isa)}.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when this process ends, however it ends
            if not path.exists():
                _build(isa, path)
    except OSError as error:
        raise _CannotBuildError(
            f"the cache folder {path.parent} cannot be used ({error.strerror}); set LMTRAIN_CACHE to another folder"
        ) from error
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise _CannotBuildError(f"{path} does not load ({error}); delete it to have it built again") from error


def _cache_folder() -> Path:
    if root := os.environ.get("LMTRAIN_CACHE"):
        return Path(root) / "native"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lmtrain" / "native"


def _key(isa: str) -> str:
    parts = [path.read_bytes() for path in _sources()]
    told = (
        torch.__version__,
        platform.machine(),
        *FLAGS,
        *LIBRARY_FLAGS,
        *ISA_FLAGS[isa],
        *_openmp_runtime(),
        _instruction_sets(),
    )
    return hashlib.sha256(b"\0".join([*parts, *map(os.fsencode, told)])).hexdigest()[:20]


def _sources() -> list[Path]:
    return sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")])


def _instruction_sets() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return line
    return ""


def _openmp_runtime() -> list[str]:
    """The file of the OpenMP runtime that torch has loaded: a second one would bring threads of its own."""
    files = {line.split(maxsplit=5)[-1] for line in os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines()}
    runtimes = sorted(file for file in files if Path(file).name.startswith(("libgomp", "libiomp", "libomp")))
    own = [file for file in runtimes if Path(torch.__file__).parent in Path(file).parents]
    return (own or runtimes)[:1]


def _build(isa: str, path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise _CannotBuildError(
            "there is no C++ compiler (g++) on PATH; install one, for example with  apt install g++ , "
            "and the next run builds the native backend"
        )
    log.info("compiling the native backend for this processor (once, some seconds)")
    started_at = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [compiler, *FLAGS, *LIBRARY_FLAGS, *ISA_FLAGS[isa]]
        objects = {source: str(Path(folder) / f"{source.stem}.o") for source in FOLDER.glob("*.cpp")}
        _run_all([[*command, "-c", str(source), "-o", made] for source, made in objects.items()])
        output = str(Path(folder) / "native.so")
        _run_all([[*command, "-shared", *objects.values(), "-o", output, *_openmp_runtime()]])
        os.replace(output, path)
    log.info("native backend compiled in %.1f s: %s", time.perf_counter() - started_at, path)


def _run_all(commands: list[list[str]]) -> None:
    """Runs `commands` side by side."""
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") for command in commands]
    told = [process.communicate()[1] for process in running]
    for (compiler, *_), process, text in zip(commands, running, told, strict=True):
        if process.returncode:
            first = next((line for line in text.splitlines() if "error" in line), text[:300])
            raise _CannotBuildError(f"{compiler} cannot compile the native backend: {first}")
