"""Signals become requests that the loop answers between two steps.

Outside of the loop they end the process as Ctrl-C does, and SIGUSR1 does nothing (`lmtrain.terminal.end_in_order`).

    SIGINT, SIGTERM, SIGHUP   finish the step or break off the evaluation, save, end with 128 + the number (130, 143, 129)
    the same once more        end at once
    SIGUSR1                   save and go on

Where several processes train together, all of them answer a signal to one of them, after the same step.

A signal that the parent process told us to ignore (`nohup`) stays ignored.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from lmtrain.distributed.group import ALONE, Group
from lmtrain.terminal import signal_to_end

log = logging.getLogger("lmtrain")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Knows what signals have asked for so far; nothing at first."""

    def __init__(self, group: Group = ALONE) -> None:
        self._group = group
        self._own: signal.Signals | None = None  # the one that this process got
        self._signal: signal.Signals | None = None  # the one that is answered
        self._own_save_request = self._save_requested = False

    @property
    def requested(self) -> bool:
        """Tells whether training shall save and end."""
        return self._signal is not None

    @property
    def is_asked_for(self) -> bool:
        """Tells whether this process was told to end, even if the others of its group do not know it yet."""
        return self._own is not None or self.requested

    @property
    def reason(self) -> str:
        """Returns the signal's name, such as SIGTERM; empty if none came."""
        return self._signal.name if self._signal else ""

    @property
    def exit_code(self) -> int:
        """Returns the exit code of the process: 128 + the signal's number, 0 if none came."""
        return 128 + self._signal if self._signal else 0

    def share(self) -> None:
        """Passes the signals to any process of the group on to all of them. They call this together, after each step."""
        if self._group.size > 1:
            number, wants_save = self._group.most(self._own or 0, self._own_save_request)
            self._own_save_request = False
            self._save_requested |= bool(wants_save)
            if number and self._signal is None:
                self._signal = signal.Signals(number)
                if self._group.leads:
                    log.info("%s: this step is finished and saved by all processes.", self.reason)

    def take_save_request(self) -> bool:
        """Tells whether a checkpoint was asked for since the last call."""
        taken, self._save_requested = self._save_requested, False
        return taken

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._own is not None:
            self._end_now(number)
        self._own = signal.Signals(number)
        if self._group.size > 1:
            return  # until all of them know
        self._signal = self._own
        # Not print or logging: the signal may have come in the middle of one, and neither can be entered twice.
        message = f"\n{self.reason}: this step is finished and saved; once more ends at once, without saving.\n"
        os.write(2, message.encode())

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        if self._group.size > 1:
            self._own_save_request = True
        else:
            self._save_requested = True

    def _end_now(self, number: int) -> NoReturn:
        # An exception, so that an unfinished checkpoint and the run's lock are still removed.
        raise SystemExit(128 + number)


@contextmanager
def catch_signals(group: Group = ALONE) -> Iterator[Stop]:
    """Notes signals in the `Stop` that it yields. Afterwards they do what they did before.

    Only the main thread may install handlers. In other threads nothing is caught, and the log says so.
    """
    stop = Stop(group)
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (*STOPPING, signal.SIGUSR1):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop._on_save if number == signal.SIGUSR1 else stop._on_stop)
        if earlier := signal_to_end():  # it came while something let no exception pass
            stop._on_stop(earlier, None)
    else:
        log.info("Not in the main thread: signals end this run without a checkpoint.")
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
