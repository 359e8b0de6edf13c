"""What a person did that cannot work, said in one paragraph: what was given, what is allowed, what to type instead.

A `UserError` reaches the terminal as its text alone, without a traceback (`LMTRAIN_DEBUG=1` shows one), and ends the
process with its exit code (`lmtrain.terminal`):

    0 fine    1 a bug of ours    2 settings    3 data    4 checkpoint    5 diverged    6 resources    130/143 signals
"""

from __future__ import annotations

import copyreg
import errno
import mmap
import os
import re
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


class UserError(Exception):
    """A mistake that a person can mend; `given`, `allowed` and `remedy` are whole sentences."""

    exit_code = 2

    def __init__(self, given: str, allowed: str, remedy: str) -> None:
        super().__init__(" ".join(part for part in (given, allowed, remedy) if part).replace(" \n", "\n"))
        self.given, self.allowed, self.remedy = given, allowed, remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Made again from its text and its attributes, whatever its constructor takes: jobs of a launcher pickle errors."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class SettingsError(UserError):
    """A setting, an option or a combination of them that cannot work."""

    exit_code = 2


class DataError(UserError):
    """A corpus, a prompt or a file of text that cannot be read as one."""

    exit_code = 3


class EncodingError(DataError):
    """A text that is not UTF-8 but may be text in another encoding."""


class CheckpointError(UserError):
    """A checkpoint or a run directory that is missing, damaged, newer than this program, or of another model."""

    exit_code = 4


class UnfitError(CheckpointError):
    """A value in a checkpoint that no run would have written there: forged, or of another model.

    field    its name, behind the name of the file where that is known: "training.json: state.step"
    problem  what is wrong with it, the rest of a sentence that begins with the field
    range    what may stand there
    """

    def __init__(self, field: str, problem: str, range: str) -> None:
        super().__init__(f"{field} {problem}.", f"Allowed is {range}.", "Use a checkpoint as lmtrain wrote it.")
        self.field, self.problem, self.range = field, problem, range


class DivergedError(UserError):
    """Training that produced a loss or a gradient which is not finite."""

    exit_code = 5


class ResourceError(UserError):
    """Memory, disk or a device that does not suffice."""

    exit_code = 6


def refuse(mistakes: Iterable[UserError]) -> None:
    """Raises the first of the mistakes that a rule finds; does nothing where it finds none."""
    for mistake in mistakes:
        raise mistake


@contextmanager
def as_typed(**names: str) -> Iterator[None]:
    """At the edge to the command line: an error that names arguments of Python then names what a person typed for them.

    names   by argument or setting what stands before its value: order="model.order=", top_k="--top-k "; or for a switch, alone,
            in the place of the value True: allow_unk="--allow-unk"

    >>> with as_typed(top_k="--top-k "):
    ...     raise SettingsError("top_k is 0.", "Allowed are whole numbers of at least 1.", "Type for example top_k=40.")
    Traceback (most recent call last):
    lmtrain.errors.SettingsError: --top-k is 0. Allowed are whole numbers of at least 1. Type for example --top-k 40.
    """
    mentions = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, names))})(=True\b|=| is )")

    def typed(mention: re.Match[str]) -> str:
        if mention[2] == " is " and re.search(r"\b(?:an?|the) \Z", mention.string[: mention.start()], re.IGNORECASE):
            return mention[0]  # a word of the sentence: "A text is read once."
        before, is_switch = names[mention[1]], not names[mention[1]].endswith(("=", " "))
        return before.rstrip("= ") + " is " if mention[2] == " is " else before + mention[2][1:].lower() * (not is_switch)

    try:
        yield
    except UserError as error:
        UserError.__init__(error, *(mentions.sub(typed, part) for part in (error.given, error.allowed, error.remedy)))
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that there is not: by Python, NumPy, PyTorch, C++, or to load a library."""
    words = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, ImportError | OSError) and any(said in words for said in SAID_BY_THE_LOADER))
        or (isinstance(error, SystemError) and _address_space_is_limited())  # Python's word where it lacks memory to say so
        or (
            isinstance(error, RuntimeError)
            and (type(error).__name__ == "OutOfMemoryError" or any(said in words for said in SAID_BY_ALLOCATORS))
        )
    )


def is_full(error: OSError) -> bool:
    """Whether the disk is full or broken, so that what was typed may be right."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def unwritable(what: str, error: OSError) -> UserError:
    """Returns the error for `what` was to be written, such as an option with its path: ResourceError where the disk is full,
    else SettingsError."""
    reason = error.strerror or error
    if is_full(error):
        return ResourceError(
            f"{what} cannot be written: {reason}.", "It is written as a whole or not at all.",
            "Free some space, or give a path on another disk.",
        )  # fmt: skip
    return SettingsError(
        f"{what} cannot be made: {reason}.", "It must be a new path in a directory that you may write in.", "Give another path."
    )


def current_directory() -> Path:
    """Returns the directory where relative paths start. Raises ResourceError where it is gone."""
    try:
        return Path(os.getcwd())
    except OSError as error:
        raise ResourceError(
            f"The current directory is gone: {error.strerror}.",
            "Relative paths start at it, so it must exist.",
            "Type  cd DIRECTORY  with one that exists, and do the same again.",
        ) from error


SAID_BY_THE_LOADER = ("failed to map segment from shared object", "cannot allocate memory", "Cannot allocate memory")
SAID_BY_ALLOCATORS = ("DefaultCPUAllocator", "std::bad_alloc", "can't start new thread")
LOADING_BYTES = 150 << 20
"""What loading PyTorch and NumPy takes besides PyTorch's own libraries, at the least."""


def check_address_space() -> None:
    """Raises ResourceError where `ulimit -v` leaves too little to load PyTorch: its libraries then end the process."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None or not _address_space_is_limited():
        return
    libraries = [Path(torch.origin).parent / "lib" / name for name in ("libtorch_cpu.so", "libtorch_python.so")]
    num_bytes = LOADING_BYTES + sum(library.stat().st_size for library in libraries if library.exists())
    try:
        mmap.mmap(-1, num_bytes).close()
    except OSError as error:
        raise ResourceError(
            f"PyTorch cannot be loaded: the address space of this process is limited (ulimit -v {_address_space() >> 10}).",
            f"Loading it alone takes {num_bytes >> 20} MB.",
            "Raise the limit, for example with  ulimit -v unlimited  , and type the command again.",
        ) from error


def _address_space() -> int:
    return resource.getrlimit(resource.RLIMIT_AS)[0]


def _address_space_is_limited() -> bool:
    return _address_space() != resource.RLIM_INFINITY
