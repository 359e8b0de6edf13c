"""The machine: its memory, how it is allocated, and how long this process has run."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_is_kept = False  # what `keep_freed_memory` was last asked for
_NEVER, _MAX_MMAP_THRESHOLD = 1 << 30, 32 << 20  # mallopt(3): the threshold follows what is freed, up to 32 MB


def memory_bytes() -> int:
    """Returns the most memory that this process can have: that of the machine, of its container, or of `ulimit -v`."""
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
    """Keeps the memory that tensors free for those of the next step (on Linux with glibc; elsewhere it does nothing).

    Every step makes tensors of the same sizes. By default glibc gives large ones back to the system at once, which clears
    each page again when it is next used. That takes 5 to 16 % of a step on a CPU. The process keeps the most that it ever
    needed, evaluation included. `keep=False` gives all of it back, and from then on glibc's defaults hold.
    """
    global _is_kept
    _is_kept = keep
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    if not (keep and libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)):  # an older glibc refuses that
        libc.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, -1 if keep else 2 * _MAX_MMAP_THRESHOLD)
    if not keep:
        libc.malloc_trim(ctypes.c_size_t(0))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """`keep_freed_memory` for a while; then as it was."""
    before = _is_kept
    keep_freed_memory()
    try:
        yield
    finally:
        keep_freed_memory(before)


def num_waiting(looks: int = 5) -> int:
    """Returns how many threads of all programs but this one run or wait to run on this machine (Linux; elsewhere 0).

    It looks a few times, some milliseconds apart, and takes the least: what runs for a moment keeps no core busy.
    """
    counts = []
    for _ in range(looks):
        try:
            counts.append(int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):
            return 0
        time.sleep(0.01)
    return max(0, min(counts) - 1)  # without the thread that looks


class RunningTime:
    """A clock that does not run while this process is stopped: by SIGSTOP or Ctrl-Z, or in a container that is frozen.

    Within its block, a thread looks at the time every TICK_SECONDS. If it did not do so for more than GAP_SECONDS, the process
    was stopped, unless the thread only waited for Python's lock, which another held in one long call. Then it woke every few
    milliseconds to ask for the lock, and the system has counted that. A suspended machine needs no care: there
    `time.monotonic` does not run.
    """

    TICK_SECONDS, GAP_SECONDS = 0.1, 1.0
    WAKES_PER_SECOND = 20  # a thread that waits for Python's lock wakes 200 times

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="running time", daemon=True)
        self._seen_at, self._stopped_seconds = time.monotonic(), 0.0

    def __call__(self) -> float:
        """Returns seconds since some fixed moment."""
        for _ in range(50):
            with self._lock:
                now = time.monotonic()
                if now - self._seen_at < self.GAP_SECONDS or not self._thread.is_alive():
                    return now - self._stopped_seconds
            time.sleep(0.01)  # the process goes on at this moment, and the thread has not looked yet
        return now - self._stopped_seconds

    def __enter__(self) -> RunningTime:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look_on(self) -> None:
        wakes = _wakes_of_this_thread()
        while not self._end.wait(self.TICK_SECONDS):
            with self._lock:
                now, wakes_before, wakes = time.monotonic(), wakes, _wakes_of_this_thread()
                gap = now - self._seen_at
                if gap > self.GAP_SECONDS and wakes - wakes_before < gap * self.WAKES_PER_SECOND:
                    self._stopped_seconds += gap - self.TICK_SECONDS
                self._seen_at = now


def _wakes_of_this_thread() -> float:
    """Returns how often this thread has slept and gone on; infinity if the system does not say."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw if sys.platform.startswith("linux") else math.inf
