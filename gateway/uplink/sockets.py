"""What a network thread asks of its socket, and how it is woken."""

import fcntl
import socket
import sys
import termios
from typing import Final

UNANSWERED_SECONDS: Final = 8.0
"""What was sent may go unanswered by the peer's TCP for so long, then the connection is over.

Left alone, TCP tries for a quarter of an hour, and each pause is as long as the outage was until then: after a link
that was away for 15 s has healed, nothing would move for another ten. A new connection is there sooner.
"""


class Waker:
    """Ends the waiting of a thread that polls. `wake` may be called from any thread."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.settimeout(0)
        self._write.settimeout(0)

    def fileno(self) -> int:
        """Return what to poll for reading; -1 once closed."""
        return self._read.fileno()

    def wake(self) -> None:
        """End the waiting now, or the next one."""
        try:
            self._write.send(b"\0")
        except OSError:  # full: it will wake anyway; closed: nobody waits any more
            return

    def drain(self) -> None:
        """Take note: the next waiting is not ended by what woke this one."""
        try:
            self._read.recv(65_536)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give both ends back."""
        self._read.close()
        self._write.close()


def tune(sock: object) -> None:
    """Have a connection tell soon what is sent on it, and that its peer is gone."""
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an event must not wait for a delayed TCP ack
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNANSWERED_SECONDS * 1000))  # RFC 5482


def error_of(sock: object) -> int:
    """Return why a socket is broken, 0 if it is not; the answer is given once (socket(7), SO_ERROR)."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if isinstance(sock, socket.socket) else 0


def unanswered_bytes(handle: int) -> int:
    """Return how much was written that the peer's TCP has not answered yet (tcp(7), SIOCOUTQ)."""
    answer = fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def words_of(error: OSError) -> str:
    """Say an error of a socket."""
    return error.strerror or str(error) or type(error).__name__
