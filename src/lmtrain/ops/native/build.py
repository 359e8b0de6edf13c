"""The C++ of this folder, compiled for this machine on first use and kept in a per-user cache (`cache.py`).

The library is plain C seen from outside (pointers and integers, called through `ctypes`), so it needs neither torch's headers
nor Python's nor ninja: g++ takes about five seconds where `torch.utils.cpp_extension` takes half a minute. It shares torch's
own OpenMP runtime, and with it torch's threads.

    $LMTRAIN_CACHE/native/<key>.so      LMTRAIN_CACHE defaults to $XDG_CACHE_HOME/lmtrain, that to ~/.cache/lmtrain

The key covers sources, compiler command, flags, the versions of torch and of the C library, and the processor's instruction
sets: a home directory shared by different machines is safe. A library that is missing, altered, written by somebody else or
does not load is built again; it is loaded on trial, in a process of its own, before it takes its place. Two processes that
build at once wait for each other. Neither a lock nor a compiler is waited for without end. What keeps the library away is a
sentence (`why_no_library`) and never an error: `eager` computes then.

`LMTRAIN_NATIVE_ISA` selects what to compile for: `native` (default; what the processor has), and for tests and comparisons
`avx512_bf16` (no AMX tiles), `avx512`, `avx2`, `portable`. `CXX` names another compiler that takes GCC's flags, with
arguments if need be.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from lmtrain.ops.backends import warn
from lmtrain.ops.native.cache import Cache, UnusableCacheError
from lmtrain.ops.transforms import FOLLOWED, is_followed
from lmtrain.progress import watched
from lmtrain.shell import at_home

log = logging.getLogger("lmtrain")

FOLDER = Path(__file__).resolve().parent
PROC = Path("/proc")
BUILD_SECONDS = 90.0  # then the compiler is ended
ANNOUNCED_SECONDS = 15.0  # after which a compiler that has not ended is worth a line
# One function of each source file: a library without them is none.
ENTRIES = (
    "lmtrain_lstm_forward", "lmtrain_step", "lmtrain_ngram_find", "lmtrain_product", "lmtrain_clip_gradients",
)  # fmt: skip
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
    """Why the library cannot be used, here or now, with the remedy; None when it can. Builds it at the first call."""
    if is_followed():
        return FOLLOWED
    isa = os.environ.get("LMTRAIN_NATIVE_ISA", "native")
    if isa not in _libraries and isa not in _reasons:
        try:
            _libraries[isa] = _load(isa)
        except _NothingToBuildWithError as error:
            _reasons[isa] = str(error)
        except (_CannotBuildError, OSError) as error:
            _reasons[isa] = str(error)
            warn("native", str(error))
    return _reasons.get(isa)


def library() -> ctypes.CDLL:
    """The loaded library; only after `why_no_library()` said None."""
    return _libraries[os.environ.get("LMTRAIN_NATIVE_ISA", "native")]


class _CannotBuildError(Exception):
    """The text is for the user, who is warned: something is not as it should be."""


class _NothingToBuildWithError(_CannotBuildError):
    """A machine on which there is nothing to mend: the log says it where it matters."""


def _load(isa: str) -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        raise _NothingToBuildWithError(f"the native backend is written for Linux, and this is {sys.platform}")
    if isa not in ISA_FLAGS:
        raise _CannotBuildError(f"LMTRAIN_NATIVE_ISA={isa} is none of {', '.join(ISA_FLAGS)}")
    if not (PROC / "self" / "maps").exists():
        raise _CannotBuildError(f"there is no {PROC}, which tells the processor's instruction sets and the libraries in use")
    path, key = _cache_folder(), _key(isa)
    remedy = "set LMTRAIN_CACHE to another folder"
    try:
        with contextlib.closing(Cache(path)) as cache:
            if not cache.runs_code():
                raise UnusableCacheError(f"the cache folder {path} is on a file system that runs no code (mounted noexec)")
            return _stored(cache, key) or _built(isa, cache, key)
    except UnusableCacheError as error:
        raise _CannotBuildError(f"{error}; {remedy}") from error
    except OSError as error:
        cause = "it is a link" if os.path.islink(path) else error.strerror or str(error)
        raise _CannotBuildError(f"the cache folder {path} cannot be used ({cause}); {remedy}") from error


def _stored(cache: Cache, key: str) -> ctypes.CDLL | None:
    """The library in the cache; None where it is not there, is not what was stored, or does not load."""
    if not cache.has(key):
        return None
    try:
        return _opened(cache.way_to(f"{key}.so"))
    except OSError as error:
        log.info("%s does not load, and is built again (%s)", cache.path / f"{key}.so", error)
        return None


def _built(isa: str, cache: Cache, key: str) -> ctypes.CDLL:
    """Compiles, unless another process has done so meanwhile; loads, and keeps what was loaded."""
    compiler = _compiler()
    with cache.locked():
        if (library := _stored(cache, key)) is not None:
            return library
        log.info("compiling the native backend for this processor (once, some seconds)")
        started_at = time.monotonic()
        with cache.temporary_folder() as folder:
            with watched("Compiling kernels for this processor"):
                _compile(compiler, isa, cache.way_to(folder))
            try:
                library = _opened(cache.way_to(f"{folder}/native.so"))
            except OSError as error:
                raise _CannotBuildError(f"what {compiler[0]} made cannot be loaded: {error}") from error
            cache.store(key, f"{folder}/native.so")
    log.info("native backend compiled in %.1f s: %s", time.monotonic() - started_at, cache.path / f"{key}.so")
    return library


def _opened(path: str) -> ctypes.CDLL:
    """The library in a file. Raises OSError where it is none, or none of ours."""
    library = ctypes.CDLL(path)
    if missing := [name for name in ENTRIES if not hasattr(library, name)]:
        raise OSError(f"it has no {missing[0]}")
    return library


def _cache_folder() -> Path:
    remedy = "set LMTRAIN_CACHE to a folder for what is compiled"
    root = os.environ.get("LMTRAIN_CACHE")
    try:
        if root:
            return at_home(root).absolute() / "native"
        home = Path(os.environ.get("XDG_CACHE_HOME") or at_home("~/.cache")).absolute()
    except RuntimeError as error:
        what = f"LMTRAIN_CACHE={root} names" if root else "you have"
        raise _CannotBuildError(f"{what} no home directory; {remedy}") from error
    if os.geteuid() == 0:  # sudo may leave HOME as it was; what root makes there is in the other user's way
        near = next(folder for folder in (home, *home.parents) if folder.exists())
        if owner := near.stat().st_uid:
            raise _CannotBuildError(f"you are root, and {near} belongs to another user (uid {owner}); {remedy}")
    return home / "lmtrain" / "native"


def _compiler() -> list[str]:
    """The compiler's command: the words of CXX, the first one with its folder."""
    words = _compiler_words()
    program = shutil.which(words[0])
    if program is not None:
        return [str(Path(program).absolute()), *words[1:]]
    if os.environ.get("CXX"):
        raise _CannotBuildError(f"CXX={os.environ['CXX']} names no program on PATH; set CXX to a C++ compiler, or unset it")
    raise _NothingToBuildWithError(
        "there is no C++ compiler (g++) on PATH; install one, for example with  apt install g++ , "
        "and the next run builds the native backend"
    )


def _compiler_words() -> list[str]:
    command = os.environ.get("CXX") or "g++"
    if shutil.which(command):  # a path with blanks
        return [command]
    try:
        return shlex.split(command) or [command]
    except ValueError as error:
        raise _CannotBuildError(f"CXX={command} cannot be read as a command ({error})") from error


def _key(isa: str) -> str:
    parts = [path.read_bytes() for path in _sources()]
    told = (
        torch.__version__,
        *platform.libc_ver(),
        platform.machine(),
        *_compiler_words(),
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
    for line in (PROC / "cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return line
    return ""


def _openmp_runtime() -> list[str]:
    """The file of the OpenMP runtime that torch has loaded: a second one would bring threads of its own."""
    files = {line.split(maxsplit=5)[-1] for line in os.fsdecode((PROC / "self" / "maps").read_bytes()).splitlines()}
    runtimes = sorted(file for file in files if Path(file).name.startswith(("libgomp", "libiomp", "libomp")))
    own = [file for file in runtimes if Path(torch.__file__).parent in Path(file).parents]
    return (own or runtimes)[:1]


def _compile(compiler: list[str], isa: str, folder: str) -> None:
    """Makes native.so in `folder` and loads it on trial. The commands run within the folder, so its path is not theirs."""
    until = time.monotonic() + BUILD_SECONDS
    command = [*compiler, *FLAGS, *LIBRARY_FLAGS, *ISA_FLAGS[isa]]
    objects = {source: f"{source.stem}.o" for source in sorted(FOLDER.glob("*.cpp"))}
    _run_all([[*command, "-c", str(source), "-o", made] for source, made in objects.items()], folder, until)
    _run_all([[*command, "-shared", *objects.values(), "-o", "native.so", *_openmp_runtime()]], folder, until)
    if sys.executable and not getattr(sys, "frozen", False):
        trial = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); [library[name] for name in sys.argv[2:]]"
        made = [sys.executable, "-S", "-c", trial, "./native.so", *ENTRIES]
        _run_all([made], folder, until, f"what {compiler[0]} made cannot be loaded")


def _run_all(commands: list[list[str]], folder: str, until: float, complaint: str = "") -> None:
    """Runs `commands` side by side within a folder; each in a process group of its own, which is ended when time is up."""
    environment = {**os.environ, "TMPDIR": ".", "LC_ALL": "C"}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for index, command in enumerate(commands):
            with open(f"{folder}/{index}.log", "wb") as told:
                try:
                    running.append(
                        subprocess.Popen(
                            command, cwd=folder, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=told,
                        )
                    )  # fmt: skip
                except OSError as error:
                    raise _CannotBuildError(f"{command[0]} cannot be started ({error.strerror})") from error
        for index, (command, process) in enumerate(zip(commands, running, strict=True)):
            _wait(process, command[0], until)
            if process.returncode:
                cause = _cause(f"{folder}/{index}.log") or f"it ended with {process.returncode}"
                raise _CannotBuildError(f"{complaint or command[0] + ' cannot compile the native backend'}: {cause}")
    finally:
        for process in running:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _cause(log_file: str) -> str:
    """The line of what a compiler said that tells what is wrong; empty where it said nothing."""
    with open(log_file, "rb") as told:
        lines = [line for line in told.read(1 << 16).decode(errors="replace").splitlines() if line.strip()]
    free = os.statvfs(log_file)
    if not lines and free.f_bavail * free.f_frsize < 1 << 16:
        return "the disk of the cache folder is full"
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")[:300]


def _wait(process: subprocess.Popen[bytes], name: str, until: float) -> None:
    try:
        process.wait(min(ANNOUNCED_SECONDS, max(0.0, until - time.monotonic())))
        return
    except subprocess.TimeoutExpired:
        log.warning("%s has not ended yet; it is given %.0f s in all", name, BUILD_SECONDS)
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise _CannotBuildError(
            f"{name} had not compiled the native backend after {BUILD_SECONDS:.0f} s and was ended; the next run tries again"
        ) from error
