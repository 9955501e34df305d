"""A listening socket of which no single side can have more than its share."""

import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Self

import structlog

from cloud_bridge.identity.limits import side_of

log = structlog.get_logger()

_BACKLOG: Final = 128
_ENDED_SECONDS: Final = 60.0
"""After which a side that was not refused any more is told of as one that behaves."""


class Sides:
    """Counts what each side has open. `most`: connections of one side. Belongs to one thread."""

    def __init__(self, what: str, most: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._most = most
        self._monotonic = monotonic
        self._open: Counter[str] = Counter()
        self._refused: dict[str, float] = {}  # sides of which that was told, and when they were refused last

    def enter(self, side: str) -> bool:
        """Count one more and return True, or return False if the side has all that it may have."""
        now = self._monotonic()
        self._tell_ended(now)
        if self._open[side] >= self._most:
            if side not in self._refused:
                log.warning("connections_refused", what=self._what, side=side, most=self._most)
            self._refused[side] = now
            return False
        self._open[side] += 1
        return True

    def leave(self, side: str) -> None:
        """Count one less."""
        self._open[side] -= 1
        if not self._open[side]:
            del self._open[side]
        self._tell_ended(self._monotonic())

    def _tell_ended(self, now: float) -> None:
        """Who opens at once what is closed is one condition, and not one for each time that he is let in again."""
        for side in [one for one, at in self._refused.items() if now - at >= _ENDED_SECONDS]:
            del self._refused[side]
            log.info("connections_taken_again", what=self._what, side=side)


class ListeningSocket(socket.socket):
    """Closes at once what a side opens beyond its share: before TLS, and before anything is counted for all sides.

    A server that has one limit for all can be filled from one address; requests that are limited by address do not
    help against connections that never ask.
    """

    _sides: Sides

    @classmethod
    def at(cls, host: str, port: int, sides: Sides) -> Self:
        """Bind and listen.

        Raises:
            OSError: the address cannot be listened on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = cls(fileno=socket.create_server((host, port), family=family, backlog=_BACKLOG).detach())
        listening._sides = sides
        return listening

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection that may be.

        Raises:
            ConnectionAbortedError: its side has its share; it was closed. asyncio goes on with the next one.
        """
        accepted, address = super().accept()
        side = side_of(address[0])
        if not self._sides.enter(side):
            accepted.close()
            raise ConnectionAbortedError(f"{side} has as many connections as one side may have")
        return _AcceptedSocket.of(accepted, lambda: self._sides.leave(side)), address


class _AcceptedSocket(socket.socket):
    """Tells once that it was closed."""

    _leave: Callable[[], None] | None = None

    @classmethod
    def of(cls, accepted: socket.socket, leave: Callable[[], None]) -> Self:
        made = cls(fileno=accepted.detach())
        made._leave = leave
        return made

    def close(self) -> None:
        super().close()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
