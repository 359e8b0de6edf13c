"""How far a long pass has come: a bar on a terminal, elsewhere lines with a rate; nothing for what takes a second or less.

with watched("Reading my.txt", size, "B") as advance:
    for block in blocks:
        advance(len(block))

A thread looks on, so a bar moves and a line comes also where one step of the pass takes long, or where nobody can tell how far
it is: `with watched("Compiling kernels"):`.

Within `given_up_when(condition)` a pass that tells how far it is ends with BrokenOffError as soon as the condition holds.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

QUIET_SECONDS = 1.0
BAR_SECONDS = 0.2  # between two states of a bar
LINE_SECONDS = 10.0  # between two lines where there is no terminal
LOOK_SECONDS = 0.5  # between two looks of the thread

Advance = Callable[[int], object]
_is_shown = True


def silence() -> None:
    """From now on nothing of this is shown: another process speaks."""
    global _is_shown
    _is_shown = False


class BrokenOffError(Exception):
    """A pass was given up before its end, because its result is not needed any more."""


_is_given_up: ContextVar[Callable[[], bool]] = ContextVar("_is_given_up", default=lambda: False)


@contextmanager
def given_up_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Within its block a pass that is `watched` raises BrokenOffError when it is told of more units and `condition()` holds."""
    token = _is_given_up.set(condition)
    try:
        yield
    finally:
        _is_given_up.reset(token)


@contextmanager
def watched(what: str, total: int = 0, unit: str = "") -> Iterator[Advance]:
    """Yields what is to be told how many more units are done. `what` must be fit for a terminal (`shell.one_line`).

    total  units of the whole; 0: not known
    unit   what is counted, behind a number and perhaps a prefix such as k; empty: nothing is counted
    """
    if not _is_shown:
        yield lambda number: None
        return
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    view = _Bar(what, total, unit) if is_terminal else _Lines(what, total, unit)
    ended, is_given_up = threading.Event(), _is_given_up.get()

    def advance(number: int) -> None:
        view.advance(number)
        if is_given_up():
            raise BrokenOffError(what)

    def look_on() -> None:
        while not ended.wait(LOOK_SECONDS):
            view.look()

    thread = threading.Thread(target=look_on, name="progress", daemon=True)
    thread.start()
    is_done = False
    try:
        yield advance
        is_done = True
    finally:
        ended.set()
        thread.join()
        view.end(is_done)


class _View(ABC):
    """What is seen of one pass."""

    seconds: float  # between two looks

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._began_at = time.monotonic()
        self._next_at = self._began_at + QUIET_SECONDS
        self._lock = threading.Lock()

    def advance(self, number: int) -> None:
        """`number` more units are done."""
        self._done += number
        self.look()

    def look(self) -> None:
        """Shows how far the pass is, if it is time to."""
        if (now := time.monotonic()) >= self._next_at:
            with self._lock:
                if now >= self._next_at:
                    self._next_at = now + self.seconds
                    self._show(now - self._began_at)

    @abstractmethod
    def _show(self, seconds: float) -> None:
        """Shows how far the pass is after so many seconds."""

    @abstractmethod
    def end(self, is_done: bool) -> None:
        """The pass is over, or has failed."""


class _Bar(_View):
    """A bar that goes when the pass is over."""

    seconds = BAR_SECONDS
    _bar: Any = None

    def _show(self, seconds: float) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total or None, desc=self._what, unit=self._unit, unit_scale=True, leave=False, dynamic_ncols=True,
                file=sys.stderr, bar_format=None if self._unit else "{desc}: {elapsed}",
            )  # fmt: skip
            self._bar.start_t -= seconds
        self._bar.n = self._done
        self._bar.refresh()

    def end(self, is_done: bool) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines(_View):
    """A line now and then."""

    seconds = LINE_SECONDS
    _is_silent = True

    def _show(self, seconds: float) -> None:
        self._is_silent = False
        rate = self._done / max(seconds, 1e-9)
        if not (self._unit and rate):
            self._say(f"{seconds:,.0f} s so far")
            return
        left = f", {max(self._total - self._done, 0) / rate:,.0f} s left" if self._total else ""
        share = f"{100 * min(self._done / self._total, 1):.0f}% of {amount(self._total)}" if self._total else amount(self._done)
        self._say(f"{share}{self._unit} at {amount(rate)}{self._unit}/s{left}")

    def end(self, is_done: bool) -> None:
        """How long it took, where it was told that it goes on."""
        if is_done and not self._is_silent:
            number = f"{amount(self._done)}{self._unit} in " if self._unit else ""
            self._say(f"done, {number}{time.monotonic() - self._began_at:,.0f} s")

    def _say(self, words: str) -> None:
        print(f"{self._what}: {words}", file=sys.stderr, flush=True)


def amount(number: float) -> str:
    """A number to read, with a blank and a prefix of its unit: `1.25 G`, `312 k`, `7 `."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "
