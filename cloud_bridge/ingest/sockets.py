"""How a connection to a broker is made: its TLS, and how soon it counts as lost."""

import socket
import ssl
from typing import Final

from cloud_bridge.config import Broker
from cloud_bridge.errors import ConfigError

_UNANSWERED_SECONDS: Final = 8.0
"""A connection whose peer's TCP answers nothing for so long is over; left alone, TCP waits longer for each try."""


def tune(_client: object, _userdata: object, sock: object) -> None:
    """Set what this side expects of a connection, as the library's `on_socket_open`."""
    if isinstance(sock, socket.socket):  # else a WebSocket, which is not used
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an ack must not wait for a delayed TCP ack
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_UNANSWERED_SECONDS * 1000))  # RFC 5482


def tls_context(broker: Broker) -> ssl.SSLContext:
    """Make the context for a broker.

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.create_default_context() if broker.ca_file is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_files(context, broker)
    return context


def load_files(context: ssl.SSLContext, broker: Broker) -> None:
    """Read the files of a broker. What an earlier reading brought in stays believed until the bridge is restarted.

    Raises:
        ConfigError: one of them cannot be used.
    """
    try:
        if broker.ca_file is not None:
            context.load_verify_locations(broker.ca_file)
        if broker.crl_file is not None:
            context.load_verify_locations(broker.crl_file)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        if broker.certificate_file is not None and broker.key_file is not None:
            context.load_cert_chain(broker.certificate_file, broker.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates for {broker.url} cannot be used: {error}") from error
