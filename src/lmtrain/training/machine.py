"""This machine: its memory and how it is handed out, and which processes live.

A process number alone is not enough, because numbers are used again after a crash or a restart.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER, _MOST_MMAP_THRESHOLD = 1 << 30, 32 << 20  # mallopt(3): the threshold follows what is freed, up to 32 MB


def is_alive(process_id: int, started: str | None = None) -> bool:
    """Whether process `process_id` of this host runs, and is the one that `start_of` calls `started` (if not None)."""
    if process_id <= 0:
        return False  # to the system, these mean groups of processes
    try:
        os.kill(process_id, 0)
    except PermissionError:
        pass  # it runs, and is somebody else's
    except (ProcessLookupError, OverflowError):
        return False
    now = start_of(process_id)
    return now != "zombie" and (started is None or now is None or now == started)


def memory_bytes() -> int:
    """The most memory that this process can have: all of the machine, or what its container or `ulimit -v` leaves of it."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        most = min(most, address_space)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue  # no such kind of container
        if text.isdigit():  # else "max"
            most = min(most, int(text))
    return most


def keep_freed_memory(keep: bool = True) -> None:
    """Has this process keep the memory that tensors free, for those of the next step (Linux with glibc; elsewhere nothing).

    Every step makes tensors of the same sizes. By default glibc gives large ones back to the system at once, which clears
    each page again when it is next touched: 5 to 16 % of a step on a CPU. The process holds on to the most that it ever
    needed, evaluation included. `keep=False` gives all of it back, and from then on does what glibc by itself comes to.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    if not (keep and libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)):  # an older glibc refuses that
        libc.mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, -1 if keep else 2 * _MOST_MMAP_THRESHOLD)
    if not keep:
        libc.malloc_trim(ctypes.c_size_t(0))


def start_of(process_id: int) -> str | None:
    """When a process began, as "<boot of the machine>/<clock ticks>": never the same twice on one host.

    "zombie" for one that has ended and was not waited for; None where the system does not tell (there is no /proc).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # proc(5): "pid (name) state ...", the name may hold blanks and brackets; field 3 is the state, field 22 the start.
        fields = Path(f"/proc/{process_id}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "zombie" if fields[0] in "ZX" else f"{boot}/{fields[19]}"
