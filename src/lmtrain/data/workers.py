"""Work on many files in processes of their own, which import no more than they need; in this process where it is little.

A process is `python -m lmtrain.data.workers`: it reads pickled calls from its standard input and writes what each returned, or
raised. So it works in notebooks, in scripts without a guard and beside threads, where a fork or a spawned process would not.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmtrain
from lmtrain.errors import ResourceError, UserError
from lmtrain.progress import watched
from lmtrain.terminal import end_with

log = logging.getLogger("lmtrain")

WORTHWHILE = 16_000_000  # bytes of text; for less, no process is started


@dataclass(frozen=True)
class Call:
    """A function of a module, what it is called with, and how many bytes it reads."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    size: int


def run_all(calls: Sequence[Call], what: str, workers: int) -> list[Any]:
    """Returns what each call returns, in their order. The first error ends all of them. `workers`: processes at most."""
    total = sum(call.size for call in calls)
    workers = min(workers, len(calls))
    if workers < 2 or total < WORTHWHILE:
        return [call.function(*call.arguments) for call in calls]
    results: list[Any] = [None] * len(calls)
    left = iter(enumerate(calls))
    lock = threading.Lock()
    errors: list[BaseException] = []
    with watched(what, total, "B") as advance:
        pool, threads = _Pool(), list[threading.Thread]()

        def serve(process: subprocess.Popen[bytes]) -> None:
            try:
                while not errors:
                    with lock:
                        number, call = next(left, (None, None))
                    if number is None or call is None:
                        return
                    results[number] = _ask(process, call)
                    with lock:
                        advance(call.size)
            except BaseException as error:
                errors.append(error)

        try:
            for _ in range(workers):
                thread = threading.Thread(target=serve, args=(pool.start(),), daemon=True)
                thread.start()
                threads.append(thread)
            while any(thread.is_alive() for thread in threads) and not errors:
                for thread in threads:
                    thread.join(0.2)
                with lock:
                    advance(0)
        finally:
            pool.close()
            for thread in threads:
                thread.join()
    if errors:
        raise errors[0]
    return results


class _Pool:
    """The processes, which end with this one: their standard input is its end of a pipe, and they look who their parent is.

    They are no part of the terminal's foreground: Ctrl-C is answered here alone.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """One more."""
        paths = [str(Path(lmtrain.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lmtrain.data.workers", str(os.getpid())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()


def _ask(process: subprocess.Popen[bytes], call: Call) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump((call.function, call.arguments), process.stdin)
        process.stdin.flush()
        result, error, messages = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        raise ResourceError(
            "A process that read shards ended before it was done.",
            "Each process needs memory for the words of its shard, and room in the cache.",
            "Type data.workers=1, which reads them one after the other, and look at the memory that is free.",
        ) from None
    for level, message in messages:
        log.log(level, "%s", message)
    if error is not None:
        raise error
    return result


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((record.levelno, record.getMessage()))


def main() -> None:
    """Serves calls until the standard input ends."""
    end_with(int(sys.argv[1]), 0.0)  # also in the midst of a call; there is nothing to save
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the answers
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # bars are drawn by whoever asks
    log.setLevel(logging.INFO)
    log.propagate = False
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        log.handlers[:] = [kept := _Kept()]
        result = error = None
        try:
            result = function(*arguments)
        except UserError as mistake:
            error = mistake
        except KeyboardInterrupt:
            return
        pickle.dump((result, error, kept.messages), answers)
        answers.flush()


if __name__ == "__main__":
    main()
