"""Plays udev: tells a listener that a device has come or gone."""

import socket
import struct
from collections.abc import Mapping

from gateway.devices.uevents import Uevent, parse


def message(properties: Mapping[str, str]) -> bytes:
    """Write a message as udev does (struct monitor_netlink_header, then NUL-ended properties)."""
    body = b"".join(f"{name}={value}".encode() + b"\0" for name, value in properties.items())
    header = struct.pack("8sIIIIIIII", b"libudev\0", socket.htonl(0xFEEDCAFE), 40, 40, len(body), 0, 0, 0, 0)
    return header + body


class Udev:
    """A listener whose messages come over a pair of sockets."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._theirs.setblocking(False)
        self.closed = False

    def tell(self, action: str, subsystem: str, **properties: str) -> None:
        """Send a message."""
        self._ours.send(message({"ACTION": action, "SUBSYSTEM": subsystem, **properties}))

    def fileno(self) -> int:
        return self._theirs.fileno()

    def receive(self) -> list[Uevent]:
        events: list[Uevent] = []
        while True:
            try:
                event = parse(self._theirs.recv(65536))
            except BlockingIOError:
                return events
            if event is not None:
                events.append(event)

    def close(self) -> None:
        self.closed = True
        self._ours.close()
        self._theirs.close()
