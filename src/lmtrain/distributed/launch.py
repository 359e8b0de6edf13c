"""From the variables that torchrun sets to a group of processes, and back to a process alone.

    RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT      who is who, and where they meet
    TORCHELASTIC_RESTART_COUNT                              how often torchrun has started them again

What must outlive a restart (which directory the run has, and how a start ended) lies in the store that torchrun keeps.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lmtrain.distributed.failures import EndedError, Failures, SaidError, gone, say, write_error_file
from lmtrain.distributed.group import ALONE, STEP_TIMEOUT, Group, Processes
from lmtrain.distributed.links import GoneError, Links, connect
from lmtrain.errors import ResourceError, SettingsError, UserError, is_out_of_memory

MEET_TIMEOUT = timedelta(minutes=10)
SOON_SECONDS = 1.0  # within which torchrun's SIGTERM comes before or behind the end of the process that it answers
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_group: Group = ALONE


def this_group() -> Group:
    """The processes that this one trains with."""
    return _group


def num_processes() -> int:
    """How many processes the environment says that there are. Raises SettingsError where it is no number."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise SettingsError(
            f"WORLD_SIZE={text!r:.40} is no number of processes.", "torchrun sets it.", "Start without it: unset WORLD_SIZE."
        )
    return int(text)


@contextmanager
def joined() -> Iterator[Group]:
    """The group of this process, while it is open; a failure within it ends all processes, and one of them says why."""
    global _group
    if num_processes() == 1:
        yield ALONE
        return
    _check_environment()
    rank, size = int(os.environ["RANK"]), num_processes()
    store, failures = _meet()
    links = _linked(store, failures, rank, size)
    is_in_order = False
    try:
        with _ending_together(links, failures, rank, size):
            _group = _grouped(store, links, failures, rank, size)
            yield _group
        is_in_order = True
    finally:
        _group = ALONE
        if rank == 0 and not is_in_order:
            failures.leader_is_done()
        links.close(in_order=is_in_order)
        if dist.is_initialized():
            dist.destroy_process_group()
        if not is_in_order:
            _linger(failures, links, rank, size)


def _linger(failures: Failures, links: Links, rank: int, size: int) -> None:
    """Behind a failure: the first process is the first to end, but not before the others know why where it keeps the store."""
    if rank != 0:
        failures.wait_for_leader()
        failures.leave(rank)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        failures.wait_until_left(other for other in range(1, size) if other != links.lost)


def _linked(store: Store, failures: Failures, rank: int, size: int) -> Links:
    def give_up(lost: int) -> None:
        error = failures.of_another(gone(lost, size))
        if not isinstance(error, EndedError) and failures.tell(str(error), error.exit_code, waits=rank != 0):
            write_error_file(str(error))
            say(str(error))
        failures.leave(rank)
        os._exit(error.exit_code)

    try:
        return Links(connect(store, f"{_start()}/links", rank, size, MEET_TIMEOUT.total_seconds()), give_up)
    except (OSError, RuntimeError) as error:
        raise _unreachable(size, error) from error


def _grouped(store: Store, links: Links, failures: Failures, rank: int, size: int) -> Processes:
    # PyTorch imports this when it first compiles or shards something. As its functions have the default group for a default
    # value, it would then keep the connections of that group open, and the others would not notice that this process ends.
    import torch.distributed.nn.functional  # noqa: F401

    try:
        dist.init_process_group(
            _backend(), store=PrefixStore(f"{_start()}/group", store), rank=rank, world_size=size, timeout=STEP_TIMEOUT
        )
        return Processes(int(os.environ.get("LOCAL_RANK", "0")), links, failures)
    except RuntimeError as error:
        raise _unreachable(size, error) from error


def _unreachable(size: int, error: Exception) -> ResourceError:
    return ResourceError(
        f"The {size} processes do not reach each other: {str(error).partition(chr(10))[0][:300]}.", "",
        "See that all of them run, and that MASTER_ADDR and MASTER_PORT (torchrun --rdzv-endpoint) can be reached.",
    )  # fmt: skip


@contextmanager
def _ending_together(links: Links, failures: Failures, rank: int, size: int) -> Iterator[None]:
    """Tells the others why this process ends, where it does so by an error; or ends as another one told."""
    try:
        try:
            yield
        finally:
            links.end()
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        ended = _as_said(error, links, failures, rank, size)
        if isinstance(ended, EndedError):
            raise SystemExit(ended.exit_code) from None
        code, words = _exit_code(ended), _words(ended)
        words = words if rank == 0 else f"Process {rank} of {size}: {words}"
        if not failures.tell(words, code, waits=rank != 0):
            raise SystemExit(code) from None
        write_error_file(words)
        if isinstance(ended, UserError) and rank != 0:
            UserError.__init__(ended, f"Process {rank} of {size}: {ended.given}", ended.allowed, ended.remedy)
        if isinstance(ended, SystemExit) and code > 128 and not isinstance(ended, SaidError):
            say(words)
        if ended is error:
            raise
        raise ended from None


def _as_said(error: BaseException, links: Links, failures: Failures, rank: int, size: int) -> BaseException:
    """`error`, or what lies behind it where another process failed before: torchrun then tells the rest to end."""
    is_told_to_end = isinstance(error, SystemExit) and _exit_code(error) > 128 and not isinstance(error, SaidError)
    if isinstance(error, GoneError) or (is_told_to_end and links.is_lost_within(SOON_SECONDS)):
        assert links.lost is not None
        return failures.of_another(gone(links.lost, size))
    if is_out_of_memory(error) and not isinstance(error, UserError):
        return ResourceError(
            f"There is not enough memory: {str(error).partition(chr(10))[0] or 'Python could get no more'}.", "",
            "Close other programs, or take a smaller batch or model.",
        )  # fmt: skip
    return error


def _exit_code(error: BaseException) -> int:
    match error:
        case UserError():
            return error.exit_code
        case SystemExit(code=int(code)):
            return code
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
    return 1


def _words(error: BaseException) -> str:
    match error:
        case UserError():
            return str(error)
        case SystemExit(code=int(code)) if code > 128:
            return f"{signal.Signals(code - 128).name} ended it, and with it all others."
        case SystemExit():
            return "It was told to end."
        case KeyboardInterrupt():
            return "interrupted."
    return traceback.format_exception_only(error)[-1].strip()


def _check_environment() -> None:
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that this is one of several processes, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set.",
            "Several processes are started by torchrun, which sets all of them.",
            "Type  torchrun --nproc-per-node=2 -m lmtrain ...  , or for one process  unset WORLD_SIZE  .",
        )


def _meet() -> tuple[Store, Failures]:
    """The store of these processes. Raises SystemExit where the start before this one ended by a mistake that stays."""
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=MEET_TIMEOUT)))
    except (RuntimeError, ValueError, OSError) as error:
        raise ResourceError(
            f"Process {os.environ['RANK']} does not reach {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, where "
            f"processes meet: {str(error).splitlines()[0][:300]}.",
            "",
            "See that this address can be reached from this machine (torchrun --rdzv-endpoint).",
        ) from error
    before = _restart_count() - 1
    if before >= 0 and (earlier := Failures(store, _start(before))).is_futile():
        raise SystemExit(earlier.exit_code())
    return store, Failures(store, _start())


def _restart_count() -> int:
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdigit() else 0


def _start(number: int | None = None) -> str:
    """What stands before the keys of one start of so many processes in the store."""
    return f"lmtrain/{_restart_count() if number is None else number}/{num_processes()}"


def _backend() -> str:
    """nccl between GPUs where each process of this machine has one of its own; gloo else, also for what is on a GPU."""
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local % torch.cuda.device_count())
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count():
            return "cpu:gloo,cuda:nccl"
    return "gloo"


# ---- what outlives a restart


def remembered_directory(group: Group) -> str | None:
    """The directory of the run that an earlier start made; None where there was none."""
    if not isinstance(group, Processes) or not group.failures.store.check(["lmtrain/directory"]):
        return None
    return group.failures.store.get("lmtrain/directory").decode()


def remember_directory(group: Group, directory: str) -> None:
    """For the starts after this one."""
    if isinstance(group, Processes):
        group.failures.store.set("lmtrain/directory", directory)
