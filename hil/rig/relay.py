"""A network link in user space: a TCP relay that can be slow, cut, or silent. The kernel here has no `tc netem`."""

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 16 * 1024
_LOOK_SECONDS: Final = 0.2
_RESET: Final = struct.pack("ii", 1, 0)  # linger for no time at all: the end is a reset, not a goodbye


@dataclass
class Quality:
    """How good the link is; may be changed at any time, also for connections that are open."""

    bytes_per_second: float | None = None
    """Of each direction, all connections together. None: as fast as it goes."""
    delay_seconds: float = 0.0
    """Of each piece, in each direction."""
    silent: bool = False
    """Delivers nothing, as a radio does that has lost its mast; what was taken comes when that is over, as by TCP."""


@dataclass
class _Meter:
    """What one direction may carry, and has carried."""

    carried: int = 0
    next_free: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_seconds(self, size: int, rate: float | None, now: float) -> float:
        """Book a piece; returns how long to wait before it is sent."""
        with self.lock:
            self.carried += size
            if rate is None:
                return 0.0
            begin = max(now, self.next_free)
            self.next_free = begin + size / rate
            return self.next_free - now


class Relay:
    """Carries TCP connections from a free port of this machine to a target port of loopback."""

    def __init__(self, target: int, address: str = "127.0.0.1", *, port: int = 0) -> None:
        """Begin to listen.

        Args:
            target: where connections go; nothing needs to listen there yet.
            address: of this machine at which it listens.
            port: at which it listens; 0: a free one.
        """
        self.target = target
        self.quality = Quality()
        self.refused = 0
        self._up, self._down = _Meter(), _Meter()
        self._cut = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((address, port))
        self._listener.settimeout(_LOOK_SECONDS)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"relay-{self.port}", daemon=True)
        self._thread.start()

    @property
    def carried_up(self) -> int:
        """Bytes from clients to the target so far."""
        return self._up.carried

    @property
    def carried_down(self) -> int:
        """Bytes from the target to clients so far."""
        return self._down.carried

    @property
    def is_cut(self) -> bool:
        """Whether the link is cut."""
        return self._cut.is_set()

    def cut(self) -> None:
        """End all connections with a reset, and refuse new ones until `mend`."""
        self._cut.set()
        self.reset()

    def mend(self) -> None:
        """Let connections in again, on a link as good as new."""
        self.quality = Quality()
        self._cut.clear()

    def reset(self) -> None:
        """End all connections that are open now; new ones are let in."""
        with self._lock:
            ends, self._open = list(self._open), set()
        for end in ends:
            _drop(end)

    def close(self) -> None:
        """Stop listening and end everything."""
        self._closed.set()
        self._listener.close()
        self.reset()
        self._thread.join(5.0)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return  # closed
            if self._cut.is_set():
                self.refused += 1
                _drop(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5.0)
            except OSError:
                self.refused += 1
                _drop(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            if self._cut.is_set() or self._closed.is_set():  # meanwhile
                self._end(client, server)
                continue
            running = threading.Semaphore(1)  # the first direction to end takes it, the second one closes
            for source, sink, meter in ((client, server, self._up), (server, client, self._down)):
                threading.Thread(target=self._carry, args=(source, sink, meter, running), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, meter: _Meter, running: threading.Semaphore) -> None:
        try:
            while piece := source.recv(_CHUNK):
                quality = self.quality
                time.sleep(
                    quality.delay_seconds + meter.wait_seconds(len(piece), quality.bytes_per_second, time.monotonic())
                )
                while self.quality.silent and not self._closed.is_set():
                    time.sleep(_LOOK_SECONDS / 4)
                sink.sendall(piece)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)  # the other direction may have more to say
        except OSError:
            self._end(source, sink)
            return
        if not running.acquire(blocking=False):
            self._end(source, sink)

    def _end(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open -= set(ends)
        for end in ends:
            _drop(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # A thread that waits in recv() holds the file description: closing alone would not wake it.
        end.shutdown(socket.SHUT_RDWR)
    end.close()
