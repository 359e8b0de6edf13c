"""What processes tell each other where one of them cannot go on, so that all end together and one of them says why.

A process that fails writes why into the store that all of them share, and ends; its connections close, and so the others notice
at once (`lmtrain.distributed.links`), or in an exchange. They then look into the store. Where nothing stands there within a few
seconds, the process was killed, or its machine is gone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from torch._C._distributed_c10d import Store

from lmtrain.errors import UserError
from lmtrain.shell import MAX_MESSAGE, printable

LOOK_SECONDS = 3.0  # for which a process that lost another looks for its last words
DEFER_SECONDS = 1.0  # for which a process lets the first one speak, where all make the same mistake
LEAVE_SECONDS = 15.0  # for which one that ends waits for the first one to write and say what it has to, and that one for it
FUTILE = (2, 3, 4, 5)  # exit codes of mistakes that another start would repeat


class EndedError(UserError):
    """Another process failed, and says so itself: this one has nothing to say."""


class LostError(UserError):
    """Another process is gone without a word. No ResourceError: training does not go on, as it does where a disk is full."""

    exit_code = 6


class SaidError(SystemExit):
    """The end of a process which has said why."""


@dataclass
class Failures:
    """The place in a store where failures of one start stand: under `prefix`."""

    store: Store
    prefix: str

    def tell(self, words: str, exit_code: int, *, waits: bool) -> bool:
        """Tells the others why this process ends. False where another one did before: then that is what is said.

        waits   lets the first process speak before, should it have the same to say
        """
        try:
            if waits and self._read(DEFER_SECONDS) is not None:
                return False
            if self.store.add(f"{self.prefix}/speakers", 1) > 1:
                return False
            self.store.set(f"{self.prefix}/failure", json.dumps([words[:10_000], exit_code]))
        except (RuntimeError, ValueError):  # the store went with the process that kept it
            return True
        return True

    def of_another(self, problem: str) -> UserError:
        """Why another process ended or an exchange failed: what one told, or else the `problem`, a sentence."""
        told = self._read(LOOK_SECONDS)
        if told is not None:
            ended = EndedError(told[0], "", "")
            ended.exit_code = told[1]
            return ended
        return LostError(problem, "All of them end, and nothing more is saved: the checkpoints are as they were.", again())

    def leader_is_done(self) -> None:
        """The first process has written and said all that it will."""
        with suppress(RuntimeError):
            self.store.set(f"{self.prefix}/done", "")

    def wait_for_leader(self) -> None:
        """Before another process ends: torchrun would end the first one at once, in the midst of its last words."""
        end = time.monotonic() + LEAVE_SECONDS
        with suppress(RuntimeError):
            while time.monotonic() < end and not self.store.check([f"{self.prefix}/done"]):
                time.sleep(0.05)

    def leave(self, rank: int) -> None:
        """A process looks into the store no more."""
        with suppress(RuntimeError):
            self.store.set(f"{self.prefix}/left/{rank}", "")

    def wait_until_left(self, ranks: Iterable[int]) -> None:
        """Before the process ends that keeps the store: these others look there for the reason."""
        end, places = time.monotonic() + LEAVE_SECONDS, [f"{self.prefix}/left/{rank}" for rank in ranks]
        while time.monotonic() < end and not self.store.check(places):
            time.sleep(0.05)

    def is_futile(self) -> bool:
        """Whether a mistake ended this start, which another would repeat, or a signal that all of them answered."""
        told = self._read(0.0)
        return told is not None and (told[1] in FUTILE or told[1] > 128)

    def exit_code(self) -> int:
        told = self._read(0.0)
        return 1 if told is None else told[1]

    def _read(self, seconds: float) -> tuple[str, int] | None:
        end = time.monotonic() + seconds
        try:
            while not self.store.check([f"{self.prefix}/failure"]):
                if time.monotonic() >= end:
                    return None
                time.sleep(0.05)
            words, exit_code = json.loads(self.store.get(f"{self.prefix}/failure"))
        except (RuntimeError, ValueError):
            return None
        return str(words), int(exit_code)


def gone(rank: int, size: int) -> str:
    """What is known of a process that ended without a word."""
    return (
        f"Process {rank} of {size} that train together is gone: it ended without a word, as one that is killed does, or its "
        "machine cannot be reached."
    )


def not_exchanged(rank: int, size: int, error: RuntimeError) -> str:
    """What is known where an exchange failed: the words of PyTorch, shortened."""
    reason = str(error).split("] ", 1)[-1].split(" This is typically")[0].split("\n")[0].rstrip(". ")[:200]
    return f"Process {rank} of {size} (on {socket.gethostname()}) cannot exchange anything with the others ({reason})."


def again() -> str:
    """What happens next, or what to type."""
    count, most = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if count < most:
        return "torchrun starts them again, from the last checkpoint."
    return "Go on from the last checkpoint with resume=RUN; torchrun --max-restarts=3 does so by itself."


def say(words: str) -> None:
    """On standard error, from whatever thread."""
    os.write(2, f"lmtrain: {printable(words, MAX_MESSAGE)}\n".encode(errors="backslashreplace"))


def write_error_file(words: str) -> None:
    """Where torchrun looks for the reason that its summary gives: the message, where no traceback stands beside it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        facts = {"message": words, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:  # it is said on standard error anyway
            json.dump({"message": facts}, file)
