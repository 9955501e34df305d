"""Tells systemd how the daemon is, and feeds its watchdog only while every component makes progress."""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()


@dataclass(slots=True)
class _Expectation:
    deadline_seconds: float
    stamped_at: float


class Progress:
    """When each component last got on, and how long it may take. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a monotonic clock in seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._expected: dict[str, _Expectation] = {}

    def expect(self, name: str, deadline_seconds: float) -> None:
        """From now on the component must stamp at least this often."""
        with self._lock:
            self._expected[name] = _Expectation(deadline_seconds, self._clock())

    def forget(self, name: str) -> None:
        """Expect nothing of the component any more: it has ended, or its supervisor takes care of it."""
        with self._lock:
            self._expected.pop(name, None)

    def stamp(self, name: str, at: float | None = None) -> None:
        """Note that the component got on, now or at a given monotonic time; never moves backwards."""
        now = self._clock() if at is None else at
        with self._lock:
            expectation = self._expected.get(name)
            if expectation is not None:
                expectation.stamped_at = max(expectation.stamped_at, now)

    def late(self) -> dict[str, float]:
        """Return the components that are over their deadline, with the seconds since their last progress."""
        now = self._clock()
        with self._lock:
            return {
                name: now - expectation.stamped_at
                for name, expectation in self._expected.items()
                if now - expectation.stamped_at > expectation.deadline_seconds
            }


@dataclass(slots=True)
class Notifier:
    """Speaks sd_notify(3); silent when nobody listens."""

    address: str | None = None
    watchdog_seconds: float | None = None  # systemd kills after so long without a ping; None: it does not watch
    clock: Callable[[], float] = time.monotonic
    _pinged_at: float | None = field(default=None, init=False)
    _stalled: frozenset[str] = field(default=frozenset(), init=False)
    _deaf: bool = field(default=False, init=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Notifier":
        """Read what systemd says; a watchdog meant for another process is not ours (sd_watchdog_enabled(3))."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog = int(microseconds) / 1e6 if microseconds.isdecimal() and ours else None
        return cls(environment.get("NOTIFY_SOCKET") or None, watchdog or None)

    def ready(self, status: str = "") -> None:
        """Say that the daemon serves."""
        self._send("READY=1", f"STATUS={status}" if status else "")

    def status(self, text: str) -> None:
        """Say in a few words how it is, for `systemctl status`."""
        self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """Say that the daemon begins anew with another configuration; `ready` ends that (sd_notify(3))."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=taking over a configuration")

    def stopping(self) -> None:
        """Say that the daemon goes down on purpose."""
        self._send("STOPPING=1")

    def watchdog(self, progress: Progress) -> None:
        """Ping the watchdog if all components are in time; call this about once a second.

        At most one ping in a third of the watchdog's time goes out, so that one lost does no harm.
        """
        late = progress.late()
        self._tell(late)
        now = self.clock()
        if self.watchdog_seconds is None or late:
            return
        if self._pinged_at is None or now - self._pinged_at >= self.watchdog_seconds / 3:
            self._pinged_at = now
            self._send("WATCHDOG=1")

    def _tell(self, late: Mapping[str, float]) -> None:
        for name in late.keys() - self._stalled:
            log.error("component_stalled", component=name, seconds=round(late[name], 1))
        for name in self._stalled - late.keys():
            log.info("component_got_on", component=name)
        if late and not self._stalled:
            self._send(f"STATUS=stalled: {', '.join(sorted(late))}")
        elif self._stalled and not late:
            self._send("STATUS=running")
        self._stalled = frozenset(late)

    def _send(self, *assignments: str) -> None:
        if self.address is None:
            return
        # A leading @ stands for the NUL of an abstract socket (sd_notify(3)).
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        message = "\n".join(line for line in assignments if line).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(0)
                sender.sendto(message, address)
        except OSError as error:
            if not self._deaf:
                log.warning("service_manager_unreachable", address=self.address, error=str(error))
            self._deaf = True
        else:
            self._deaf = False
