"""Checks of a broker: name, TCP, TLS with host check, and one MQTT CONNECT."""

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.config import Broker, Config
from gateway.doctor.diagnosis import Diagnosis
from gateway.identity.record import IdentityFiles

_REFUSALS: Final = {
    # MQTT 3.1.1 §3.2.2.3
    1: "it does not speak this version of MQTT",
    2: "it rejects the client id",
    3: "it is not available",
    4: "the user name or the password is wrong",
    5: "this user may not connect",
    # MQTT 5 §3.2.2.2
    0x84: "it does not speak this version of MQTT",
    0x85: "it rejects the client id",
    0x86: "the user name or the password is wrong",
    0x87: "this user may not connect",
    0x88: "it is not available",
    0x89: "it is busy",
    0x8A: "this client is banned",
    0x9D: "it has moved to another server",
}


class UnusableBrokerError(Exception):
    """A broker that cannot be used; the message and the remedy are for a person."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def check_brokers(config: Config) -> Iterator[Diagnosis]:
    """Try every broker of the configuration."""
    named = {f"cloud.brokers[{at}]": broker for at, broker in enumerate(config.cloud.brokers)}
    if config.local.broker is not None:
        named["local.broker"] = config.local.broker
    for name, broker in named.items():
        if broker.identity:
            yield check_listener(name, broker, IdentityFiles(config.gateway.state_directory).look().bundle)
            continue
        yield check_broker(name, broker, f"sluice-doctor-{config.gateway.id}")
    if not named:
        yield Diagnosis("brokers", "skipped", "the configuration names no broker")


def check_broker(name: str, broker: Broker, client_id: str, *, timeout_seconds: float = 5.0) -> Diagnosis:
    """Connect to a broker as the gateway would, under another client id, and leave again."""
    url = urlsplit(broker.url)
    host = url.hostname or ""
    place = f"{host}:{url.port or (8883 if url.scheme == 'mqtts' else 1883)}"
    try:
        detail = _try(broker, client_id, timeout_seconds)
    except UnusableBrokerError as error:
        return Diagnosis(name, "failed", f"{place}: {error}", error.remedy)
    return Diagnosis(name, "ok", f"{place}: {detail}")


def check_listener(name: str, broker: Broker, bundle: str, *, timeout_seconds: float = 5.0) -> Diagnosis:
    """Look whether a broker for certificates is there and is believed; ours is in the memory of the gateway alone."""
    url = urlsplit(broker.url)
    host, port = url.hostname or "", url.port or 8883
    place = f"{host}:{port}"
    if not bundle:
        remedy = "enrol first: `gateway identity enrol CODE`, or `identity.claim_file`"
        return Diagnosis(name, "warning", f"{place}: not known yet whom to believe there", remedy)
    try:
        context = ssl.create_default_context(cadata=bundle)
        with _reached(host, port, timeout_seconds) as connection, _wrapped(context, connection, host) as wrapped:
            return Diagnosis(name, "ok", f"{place}: {wrapped.version()}, believed; the rest says `gateway status`")
    except UnusableBrokerError as error:
        return Diagnosis(name, "failed", f"{place}: {error}", error.remedy)


def _try(broker: Broker, client_id: str, timeout_seconds: float) -> str:
    url = urlsplit(broker.url)
    host, secure = url.hostname or "", url.scheme == "mqtts"
    port = url.port or (8883 if secure else 1883)
    with _reached(host, port, timeout_seconds) as connection:
        if not secure:
            return f"connected, {_greet(connection, broker, client_id)}"
        with _wrapped(_tls_context(broker), connection, host) as wrapped:
            return f"{wrapped.version()}, {_greet(wrapped, broker, client_id)}"


def _reached(host: str, port: int, timeout_seconds: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=timeout_seconds)
    except socket.gaierror as error:
        raise UnusableBrokerError(
            f"the name cannot be found: {error.strerror}", "check the name and the DNS"
        ) from error
    except TimeoutError as error:
        raise UnusableBrokerError(
            f"no answer within {timeout_seconds:g} s", "check the network and firewalls"
        ) from error
    except OSError as error:
        raise UnusableBrokerError(f"{error.strerror or error}", "check that a broker listens there") from error


@contextmanager
def _wrapped(context: ssl.SSLContext, connection: socket.socket, host: str) -> Iterator[ssl.SSLSocket]:
    try:
        with context.wrap_socket(connection, server_hostname=host) as wrapped:
            yield wrapped
    except ssl.SSLCertVerificationError as error:
        remedy = "give `ca_file`, correct the host name in the URL, or renew the broker's certificate"
        raise UnusableBrokerError(f"its certificate is not accepted: {error.verify_message}", remedy) from error
    except ssl.SSLError as error:
        remedy = "check that the port speaks TLS, and `certificate_file` if the broker wants one"
        raise UnusableBrokerError(f"no TLS: {error.reason or error}", remedy) from error
    except OSError as error:
        remedy = "check that the port speaks TLS; plain MQTT has a port of its own"
        raise UnusableBrokerError(f"no TLS: {error.strerror or error}", remedy) from error


def _tls_context(broker: Broker) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(broker.ca_file) if broker.ca_file else None)
        if broker.crl_file is not None:
            context.load_verify_locations(broker.crl_file)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        if broker.certificate_file is not None:
            context.load_cert_chain(broker.certificate_file, broker.key_file)
    except (OSError, ssl.SSLError) as error:
        words = f"ca_file, crl_file, certificate_file or key_file: {error}"
        raise UnusableBrokerError(words, "check these files") from error
    return context


def _greet(connection: socket.socket, broker: Broker, client_id: str) -> str:
    try:
        connection.sendall(connect_packet(broker, client_id))
        answer = _packet(connection)
        connection.sendall(b"\xe0\x00")  # DISCONNECT
    except TimeoutError as error:
        remedy = "check that the port speaks MQTT, and whether it wants TLS"
        raise UnusableBrokerError("no answer to CONNECT in time", remedy) from error
    except ssl.SSLError:
        raise
    except OSError as error:
        remedy = "check that the port speaks MQTT, and whether it wants TLS"
        raise UnusableBrokerError(f"the connection broke: {error.strerror or error}", remedy) from error
    if len(answer) < 4 or answer[0] != 0x20:
        raise UnusableBrokerError("the answer is not MQTT", "check the port")
    code = answer[3]
    if code != 0:
        reason = _REFUSALS.get(code, f"reason code 0x{code:02x}")
        raise UnusableBrokerError(f"refused: {reason}", "check `username`, `password_file` and the broker's rules")
    return f"MQTT {broker.protocol} accepted"


def _packet(connection: socket.socket) -> bytes:
    """Read the beginning of one packet: the flags and code of a CONNACK are its first four bytes."""
    data = b""
    while len(data) < 4:
        part = connection.recv(256)
        if not part:
            break
        data += part
    return data


def connect_packet(broker: Broker, client_id: str) -> bytes:
    """Build a CONNECT (MQTT 3.1.1 §3.1, MQTT 5 §3.1) with a clean start, so that nothing stays behind."""
    password = _secret(broker.password_file)
    flags = 0x02 | (0x80 if broker.username is not None else 0) | (0x40 if password is not None else 0)
    level, properties = (5, b"\x00") if broker.protocol == "5" else (4, b"")
    body = _field(b"MQTT") + struct.pack(">BBH", level, flags, 10) + properties + _field(client_id.encode()[:64])
    if broker.username is not None:
        body += _field(broker.username.encode())
    if password is not None:
        body += _field(password)
    return b"\x10" + _variable_length(len(body)) + body


def _secret(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes().strip(b"\r\n")
    except OSError as error:
        message = f"password_file {file}: {error.strerror}"
        raise UnusableBrokerError(message, "check the file and its rights") from error


def _field(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _variable_length(length: int) -> bytes:
    encoded = bytearray()
    while True:  # MQTT 5 §1.5.5
        length, digit = divmod(length, 128)
        encoded.append(digit | (0x80 if length else 0))
        if not length:
            return bytes(encoded)
