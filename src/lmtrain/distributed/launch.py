"""From the variables that torchrun sets to a group of processes, and back to a process alone.

    RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT      who is who, and where they meet
    TORCHELASTIC_RESTART_COUNT                              how often torchrun has started them again

What must outlive a restart (which directory the run has, and how a start ended) lies in the store that torchrun keeps.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lmtrain.distributed.failures import EndedError, Failures, write_error_file
from lmtrain.distributed.group import ALONE, STEP_TIMEOUT, Group, Processes
from lmtrain.errors import ResourceError, SettingsError, UserError

MEET_TIMEOUT = timedelta(minutes=10)
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
    store, failures = _meet()
    try:
        dist.init_process_group(
            _backend(), store=PrefixStore(f"{_start()}/group", store), rank=int(os.environ["RANK"]),
            world_size=num_processes(), timeout=STEP_TIMEOUT,
        )  # fmt: skip
        group = Processes(int(os.environ.get("LOCAL_RANK", "0")), failures)
    except RuntimeError as error:
        raise ResourceError(
            f"The {num_processes()} processes do not reach each other: {str(error).splitlines()[0][:300]}.", "",
            "See that all of them run, and that MASTER_ADDR and MASTER_PORT (torchrun --rdzv-endpoint) can be reached.",
        ) from error  # fmt: skip
    _group = group
    try:
        with _ending_together(group):
            yield group
    except BaseException:
        _leave(group)
        raise
    else:
        dist.destroy_process_group()
    finally:
        _group = ALONE


def _leave(group: Processes) -> None:
    """Closes the connections, by which the others notice; the first process is the first to end."""
    if not group.leads:
        dist.destroy_process_group()
        group.failures.wait_for_leader()
        return
    group.failures.leader_is_done()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # the store ends with this process
        dist.destroy_process_group()
        group.failures.wait_until_heard(group.size - 1)


@contextmanager
def _ending_together(group: Processes) -> Iterator[None]:
    try:
        yield
    except EndedError as error:
        raise SystemExit(error.exit_code) from None
    except SystemExit as ended:
        if ended.code:
            group.failures.tell("It was told to end.", _code(ended), waits=False)
        raise
    except UserError as error:
        words = str(error) if group.leads else f"Process {group.rank} of {group.size}: {error}"
        if not group.failures.tell(words, error.exit_code, waits=not group.leads):
            raise SystemExit(error.exit_code) from None
        write_error_file(words)
        if not group.leads:
            UserError.__init__(error, f"Process {group.rank} of {group.size}: {error.given}", error.allowed, error.remedy)
        raise
    except BaseException as error:
        words = traceback.format_exception_only(error)[-1].strip()
        if not group.failures.tell(f"Process {group.rank} of {group.size}: {words}", 1, waits=not group.leads):
            raise SystemExit(1) from None
        write_error_file(words)
        raise


def _code(ended: SystemExit) -> int:
    return ended.code if isinstance(ended.code, int) else 1


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
