"""How far a long pass has come: a bar on a terminal, elsewhere a line with a rate; nothing for what takes two seconds or less.

with watched("Reading my.txt", size, "B") as advance:
    for block in blocks:
        advance(len(block))
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0  # between two lines where there is no terminal

Advance = Callable[[int], object]


@contextmanager
def watched(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Yields what is to be told how many more units are done. `what` must be fit for a terminal (`shell.one_line`)."""
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=unit, unit_scale=True, delay=QUIET_SECONDS, leave=False, dynamic_ncols=True,
                  file=sys.stderr) as bar:  # fmt: skip
            yield bar.update
        return
    lines = _Lines(what, total, unit)
    yield lines.advance
    lines.end()


class _Lines:
    """The plain lines of one pass."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._began_at = time.monotonic()
        self._next_at = self._began_at + QUIET_SECONDS
        self._is_silent = True

    def advance(self, number: int) -> None:
        self._done += number
        if (now := time.monotonic()) >= self._next_at:
            self._next_at, self._is_silent = now + LINE_SECONDS, False
            rate = self._done / max(now - self._began_at, 1e-9)
            left = f", {max(self._total - self._done, 0) / rate:,.0f} s left" if rate else ""
            share = f"{100 * min(self._done / self._total, 1):.0f}% of " if self._total else ""
            self._say(f"{share}{amount(self._total)}{self._unit} at {amount(rate)}{self._unit}/s{left}")

    def end(self) -> None:
        """How long it took, where it was told that it goes on."""
        if not self._is_silent:
            seconds = time.monotonic() - self._began_at
            self._say(f"done, {amount(self._done)}{self._unit} in {seconds:,.0f} s")

    def _say(self, words: str) -> None:
        print(f"{self._what}: {words}", file=sys.stderr, flush=True)


def amount(number: float) -> str:
    """A number to read, with a blank and a prefix of its unit: `1.25 G`, `312 k`, `7 `."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "
