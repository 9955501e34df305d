"""What udev tells every program when a device has come or gone, over netlink. Needs no right and no library.

udev sends to its own group once its rules are done: links are made, groups and modes are set. Source: libudev's
`src/libsystemd/sd-device/device-monitor.c` (`monitor_netlink_header`), netlink(7).
"""

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import GatewayError

NETLINK_KOBJECT_UEVENT: Final = 15
UDEV_GROUP: Final = 2
_MAGIC: Final = 0xFEEDCAFE
_HEADER: Final = struct.Struct("8sIIIIIIII")  # prefix, magic (big-endian), sizes, filters; host order
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_MAX_BYTES: Final = 65536
_BUFFER_BYTES: Final = 1 << 20


class UeventsUnavailableError(GatewayError):
    """This program may not listen to udev."""


@dataclass(frozen=True, slots=True)
class Uevent:
    """One message: what happened to which device."""

    action: str  # add, remove, change, bind, unbind, move, online, offline
    subsystem: str
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Every path under which the device can be opened."""
        links = self.properties.get("DEVLINKS", "").split()
        return frozenset(filter(None, (self.properties.get("DEVNAME", ""), *links)))


def parse(message: bytes) -> Uevent | None:
    """Read a message of udev's; None if it is none."""
    if len(message) < _HEADER.size:
        return None
    prefix, magic, _, offset, length, *_ = _HEADER.unpack_from(message)
    if prefix != b"libudev\0" or socket.ntohl(magic) != _MAGIC or offset < _HEADER.size:
        return None
    body = message[offset : offset + length]
    if len(body) != length:
        return None
    lines = (line.partition("=") for line in body.decode(errors="replace").split("\0"))
    properties = {name: value for name, equals, value in lines if equals}
    if "ACTION" not in properties:
        return None
    return Uevent(properties["ACTION"], properties.get("SUBSYSTEM", ""), properties)


class UeventListener:
    """A socket on which udev's messages arrive. `fileno` may be waited for."""

    def __init__(self) -> None:
        """Begin to listen.

        Raises:
            UeventsUnavailableError: the kernel or a sandbox does not let this program listen.
        """
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT
            )
        except OSError as error:
            raise UeventsUnavailableError(f"no netlink socket for udev's messages: {error.strerror}") from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind((0, UDEV_GROUP))
        except OSError as error:
            self._socket.close()
            raise UeventsUnavailableError(f"udev's messages cannot be listened to: {error.strerror}") from error

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._socket.fileno()

    def receive(self) -> list[Uevent]:
        """Return what has come; never waits. What the kernel had to drop is told as an event without a device."""
        events: list[Uevent] = []
        while True:
            try:
                message, ancillary, _flags, sender = self._socket.recvmsg(
                    _MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return events
            except OSError:  # ENOBUFS: more came than was taken
                events.append(Uevent("change", ""))
                continue
            if not _from_root(ancillary) or not _to_a_group(sender):
                continue
            event = parse(message)
            if event is not None:
                events.append(event)

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def _from_root(ancillary: list[tuple[int, int, bytes]]) -> bool:
    """Tell whether the kernel vouches for the sender as root: any program may send to a netlink port."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            _pid, uid, _gid = _CREDENTIALS.unpack_from(data)
            return bool(uid == 0)
    return False


def _to_a_group(sender: object) -> bool:
    return isinstance(sender, tuple) and len(sender) == 2 and sender[1] == UDEV_GROUP
