"""What a connection costs on the network, TLS, TCP and IP included: an estimate from the kernel's own figures."""

import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

_HEADER_BYTES: Final = {socket.AF_INET: 20 + 20 + 12, socket.AF_INET6: 40 + 20 + 12}
"""IP, TCP, and the time stamps that Linux adds; no link layer, no tunnels."""

# linux/tcp.h, struct tcp_info: stable since Linux 4.19, fields are only added.
_BYTES_RECEIVED: Final = struct.Struct("=128xQII")
_BYTES_SENT: Final = struct.Struct("=200xQ")


@dataclass(frozen=True, slots=True)
class NetworkBytes:
    """Bytes of IP packets, with retransmissions."""

    sent: int = 0
    received: int = 0

    def plus(self, other: "NetworkBytes") -> "NetworkBytes":
        """Add up."""
        return NetworkBytes(self.sent + other.sent, self.received + other.received)


def network_bytes(handle: int) -> NetworkBytes:
    """Estimate what passed over a TCP socket so far, by its file descriptor; zeros where the kernel does not tell."""
    try:
        with socket.socket(fileno=os.dup(handle)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            family = sock.family
    except OSError:
        return NetworkBytes()
    if len(info) < _BYTES_SENT.size:
        return NetworkBytes()
    received, segments_out, segments_in = _BYTES_RECEIVED.unpack_from(info)
    (sent,) = _BYTES_SENT.unpack_from(info)
    header = _HEADER_BYTES.get(family, _HEADER_BYTES[socket.AF_INET6])
    return NetworkBytes(sent + segments_out * header, received + segments_in * header)
