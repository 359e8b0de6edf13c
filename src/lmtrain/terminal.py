"""The standard streams and what goes into them: streams that are closed, output that cannot be written, text that is not ours.

A message shows every character that a terminal would obey as an escape sequence; it may hold names and texts of others.
What a command produces (samples, scores) goes to a file or a pipe as it is, and to a terminal as a message does.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lmtrain.errors import ResourceError, UserError
from lmtrain.shell import MAX_MESSAGE, printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def end_process(error: UserError) -> NoReturn:
    """Says what is wrong in one paragraph and ends with the error's exit code; `LMTRAIN_DEBUG=1` shows a traceback instead."""
    if os.environ.get("LMTRAIN_DEBUG"):
        raise error
    warn(str(error))
    raise SystemExit(error.exit_code)


def warn(message: str) -> None:
    """One message on standard error, begun as all of ours are."""
    print(f"lmtrain: {printable(message, MAX_MESSAGE)}", file=sys.stderr)


def for_terminal(text: str, stream: TextIO | None = None) -> str:
    """`text` as `stream` (standard output) gets it: a terminal gets nothing that it would obey, a file or a pipe all of it."""
    return printable(text) if (stream or sys.stdout).isatty() else text


def prepare_streams() -> None:
    """Makes the standard streams ones that can be written, and the lines of the log ones that can be shown."""
    _open_closed_streams()
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _standard_stream(sys.stdout, _Output)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _standard_stream(sys.stderr, _Messages)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where the terminal's encoding lacks a character
    logging.getLogger("lmtrain").addFilter(_show_safely)  # a second time it is not added again


def _open_closed_streams() -> None:
    """Puts /dev/null in the place of standard streams that are closed, as daemons and cron wrappers leave them.

    Otherwise the next file that is opened gets their descriptors, and with them what was meant for the terminal. Standard
    input stays None for Python: who reads it is told that it is closed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _show_safely(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage(), MAX_MESSAGE), None
    return True


class _Output(io.FileIO):
    """Standard output. What it cannot take is an error of its own, told from those of other files."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ResourceError(
                f"Standard output cannot be written: {error.strerror}.", "", "Free some space, or send the output elsewhere."
            ) from error


class _Messages(io.FileIO):
    """Standard error. What it cannot take is lost, as where it is closed: what a command does and how it ends stay the same."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _standard_stream(stream: io.TextIOWrapper, kind: type[io.FileIO]) -> io.TextIOWrapper:
    """`stream` on a file of this kind, buffered as it was."""
    raw = kind(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding, line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


@contextmanager
def end_in_order() -> Iterator[None]:
    """Within it a signal ends what is done by an exception, so that what is half done is removed.

        SIGINT            KeyboardInterrupt
        SIGTERM, SIGHUP   SystemExit with 128 + the signal's number
        SIGUSR1           nothing: it asks a training to save, which only its loop can do (`catch_signals`)

    Modules are imported to their end first, unless a second signal comes: others catch what is raised in the middle, go on
    without it, or leave half a module behind.
    """
    ending, before = _Ending(), {}
    if threading.current_thread() is threading.main_thread():
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), ending.note)
        for number, handler in (handlers | {signal.SIGUSR1: _do_nothing}).items():
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handler)
    _endings.append(ending)
    try:
        yield
        ending.go_through()  # a weak reference's callback, for example, lets no exception pass
    finally:
        _endings.pop()
        ending.give_back_alarm()
        for number, earlier in before.items():
            signal.signal(number, earlier)


def signal_to_end() -> int:
    """The number of the signal that has told this process to end, though it goes on; 0 if there was none."""
    return _endings[-1].number if _endings else 0


class _Ending:
    """The signal that ends the process. `_home` is the frame of who waits for it: what is imported below counts."""

    AGAIN_SECONDS = 0.02

    def __init__(self) -> None:
        self.number = 0
        self._alarm: Any = None  # what SIGALRM called before
        self._home = sys._getframe(3)  # behind this, `end_in_order` and its context manager

    def note(self, number: int, frame: FrameType | None) -> None:
        """What SIGINT, SIGTERM and SIGHUP call."""
        is_second, self.number = bool(self.number), number
        self._go_through_unless(not is_second and self._is_importing(frame))

    def _ask_again(self, number: int, frame: FrameType | None) -> None:
        self._go_through_unless(self._is_importing(frame))

    def _go_through_unless(self, waits: bool) -> None:
        if not waits:
            self.go_through()
        if self._alarm is None:
            self._alarm = signal.signal(signal.SIGALRM, self._ask_again) or signal.SIG_DFL
        signal.setitimer(signal.ITIMER_REAL, self.AGAIN_SECONDS)

    def give_back_alarm(self) -> None:
        """SIGALRM is what it was before."""
        if self._alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm)
            self._alarm = None

    def go_through(self) -> None:
        """Raises what ends the process, if a signal came."""
        self.give_back_alarm()
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            raise SystemExit(128 + self.number)

    def _is_importing(self, frame: FrameType | None) -> bool:
        while frame is not None and frame is not self._home:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
        return False


_endings: list[_Ending] = []


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


PARENT = "LMTRAIN_PARENT"
"""The variable with the number of the process that started this one, where this one ends with it."""


def end_with(parent: int, seconds: float = 60.0) -> None:
    """From now on ends this process once `parent` is not its parent any more: that was killed, and cannot do so.

    It gets SIGTERM, and so many seconds to save what it has; where it ignores SIGTERM, as `trap "" TERM` bequeaths, none.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(seconds)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
