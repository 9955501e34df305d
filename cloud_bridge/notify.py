"""Tells systemd how the service is (sd_notify(3)), without a library."""

import socket
from collections.abc import Mapping


class Notifier:
    """Sends states to the service manager, if there is one; silent otherwise."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # the abstract namespace
        try:
            self._watchdog_seconds = int(environment.get("WATCHDOG_USEC", "0")) / 1e6
        except ValueError:
            self._watchdog_seconds = 0.0

    @property
    def watchdog_seconds(self) -> float | None:
        """How often the service manager wants to hear of us, at least; None if it does not."""
        return self._watchdog_seconds or None

    def tell(self, *states: str) -> None:
        """Send states, e.g. `READY=1`. A manager that cannot be reached is no reason to fail."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
            try:
                datagram.sendto("\n".join(states).encode(), self._address)
            except OSError:
                return
