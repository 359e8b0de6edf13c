"""A connection between the first process and each other one, over which they meet, and learn at once that one is gone.

    GO    "I am at the place where all of us meet": from each other process to the first one, then from the first one to each
    BYE   "I end in order"

A connection that closes without BYE belonged to a process that failed or was killed; keep-alive closes those of a machine that
vanished. A thread watches and wakes the main thread, whatever it does, by a signal that nothing else uses. Hence a process that
waits for another one waits as long as that one needs and lives, and can be interrupted meanwhile.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

from torch._C._distributed_c10d import Store

GO, BYE = b"g", b"b"
WAKE = signal.SIGURG  # ignored by default, so that one which comes late does nothing
AGAIN_SECONDS = 3.0  # between two of them: the exception of the first may have struck where none can pass
STUCK_SECONDS = 20.0  # for which the main thread may take no notice, deep in the code of a library
FAREWELL_SECONDS = 10.0  # for which a process that is done waits for the others to say so
HELLO_SECONDS = 10.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 3}  # 22 seconds until a machine counts as gone


class GoneError(BaseException):
    """Another process is gone. No Exception, because it may strike anywhere, as KeyboardInterrupt does.

    rank  of that process
    """

    def __init__(self, rank: int) -> None:
        super().__init__(f"process {rank} is gone")
        self.rank = rank


class Links:
    """The connections of one process, by the rank of the process at the other end; made and closed in the main thread.

    lost      the process that is gone; None while there is none
    give_up   (its rank) ends this process, where its main thread takes no notice
    """

    def __init__(self, sockets: Mapping[int, socket.socket], give_up: Callable[[int], None]) -> None:
        self.lost: int | None = None
        self._sockets, self._give_up = dict(sockets), give_up
        self._arrived = dict.fromkeys(sockets, 0)
        self._changed = threading.Condition()
        self._is_ending = threading.Event()
        self._stop, self._stopped = socket.socketpair()
        self._handler = signal.signal(WAKE, self._on_wake)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def meet(self) -> None:
        """Returns once all processes have called it. Raises GoneError where one never will."""
        if 0 in self._sockets:
            self._send(GO)
            self._wait_for_each()
        else:
            self._wait_for_each()
            self._send(GO)

    def end(self) -> None:
        """From now on the loss of another process is no news: this one ends."""
        self._is_ending.set()

    def close(self, *, in_order: bool) -> None:
        """Closes all connections; in order, the others are told before that this is no failure."""
        self.end()
        if in_order:
            with suppress(GoneError):
                self.meet()  # so that nobody is surprised
            self._send(BYE)
        self._stop.close()
        self._thread.join(FAREWELL_SECONDS)
        for connection in self._sockets.values():
            connection.close()
        self._stopped.close()
        signal.signal(WAKE, self._handler)

    def is_lost_within(self, seconds: float) -> bool:
        """Whether another process is gone, or is so within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.lost is not None, seconds)

    def _send(self, word: bytes) -> None:
        for connection in self._sockets.values():
            with suppress(OSError):  # the thread finds out
                connection.sendall(word)

    def _wait_for_each(self) -> None:
        end = time.monotonic() + FAREWELL_SECONDS
        with self._changed:
            while not all(self._arrived.values()):
                if self.lost is not None:
                    raise GoneError(self.lost)
                if self._is_ending.is_set() and time.monotonic() > end:
                    return
                self._changed.wait(1.0)
            for rank in self._arrived:
                self._arrived[rank] -= 1

    def _on_wake(self, number: int, frame: FrameType | None) -> None:
        if self.lost is not None and not self._is_ending.is_set():
            raise GoneError(self.lost)

    # ---- in the thread

    def _watch(self) -> None:
        ranks = {connection: rank for rank, connection in self._sockets.items()}
        while ranks:
            ready, _, _ = select.select([*ranks, self._stopped], [], [])
            if self._stopped in ready:
                return
            for connection in ready:
                word = _received(connection)
                with self._changed:
                    if word == GO:
                        self._arrived[ranks[connection]] += 1
                    elif word == BYE:
                        del ranks[connection]
                    else:
                        self.lost = ranks.pop(connection)
                    self._changed.notify_all()
                if self.lost is not None:
                    self._wake()
                    return

    def _wake(self) -> None:
        """Until the main thread ends, or can be waited for no longer."""
        end = time.monotonic() + STUCK_SECONDS
        while not self._is_ending.is_set():
            if time.monotonic() > end:
                assert self.lost is not None
                self._give_up(self.lost)
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, WAKE)
            self._is_ending.wait(AGAIN_SECONDS)


def _received(connection: socket.socket) -> bytes:
    """The next word; nothing where the connection is closed."""
    try:
        return connection.recv(1)
    except OSError:
        return b""


# ---- how they are made


def connect(store: Store, prefix: str, rank: int, size: int, seconds: float) -> dict[int, socket.socket]:
    """The connections of one process, by the rank at the other end, once all processes are there.

    The first process writes its address and a secret into the store. Raises TimeoutError.
    """
    end = time.monotonic() + seconds
    sockets = _accepted(store, prefix, size, end) if rank == 0 else {0: _connected(store, prefix, rank, end)}
    for connection in sockets.values():
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if option := getattr(socket, name, None):  # Linux has them
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return sockets


def _accepted(store: Store, prefix: str, size: int, end: float) -> dict[int, socket.socket]:
    host, secret = _own_host(), secrets.token_hex(16)
    sockets: dict[int, socket.socket] = {}
    is_local = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    with _server("127.0.0.1" if is_local else "") as server:
        port = server.getsockname()[1]
        store.set(f"{prefix}/leader", f"{'127.0.0.1' if is_local else host} {port} {secret}")
        while len(sockets) < size - 1:
            _check(end, f"{len(sockets) + 1} of {size} processes are there")
            server.settimeout(1.0)
            with suppress(TimeoutError):
                connection, _ = server.accept()
                connection.settimeout(HELLO_SECONDS)
                rank = _hello(connection, secret)
                if 0 < rank < size and rank not in sockets:
                    sockets[rank] = connection
                else:
                    connection.close()
    return sockets


def _server(host: str) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
    return socket.create_server((host, 0), backlog=256)


def _hello(connection: socket.socket, secret: str) -> int:
    """The rank of a process that knows the secret; 0 for whatever else has connected."""
    try:
        words = b""
        while not words.endswith(b"\n") and len(words) < 100:
            if not (word := connection.recv(100)):
                return 0
            words += word
        given, rank = words.decode("ascii").split()
        return int(rank) if secrets.compare_digest(given, secret) else 0
    except (OSError, ValueError):
        return 0


def _connected(store: Store, prefix: str, rank: int, end: float) -> socket.socket:
    while not store.check([f"{prefix}/leader"]):
        _check(end, "the first one has not come")
        time.sleep(0.05)
    host, port, secret = store.get(f"{prefix}/leader").decode().split(" ")
    host = host or os.environ["MASTER_ADDR"]
    while True:
        try:
            connection = socket.create_connection((host, int(port)), timeout=HELLO_SECONDS)
            connection.sendall(f"{secret} {rank}\n".encode())
            return connection
        except OSError as error:
            _check(end, f"{host}:{port} of the first one: {error}")
            time.sleep(0.5)


def _own_host() -> str:
    """The address of this machine on the way to where they meet; empty where that is on this machine.

    Others then know this machine by the name that they were given for that place.
    """
    where = socket.getaddrinfo(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM)[0]
    with socket.socket(where[0], socket.SOCK_DGRAM) as probe:
        probe.connect(where[4])
        host = str(probe.getsockname()[0])
    return "" if host in (str(where[4][0]), "::1") or host.startswith("127.") else host


def _check(end: float, problem: str) -> None:
    if time.monotonic() > end:
        raise TimeoutError(problem)
