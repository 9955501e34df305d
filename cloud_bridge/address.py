"""Where a broker is, read from its URL."""

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from cloud_bridge.config import Broker
from cloud_bridge.errors import ConfigError

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Host and port of a broker, and whether the way there is encrypted."""

    host: str
    port: int
    encrypted: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.encrypted else 'mqtt'}://{host}:{self.port}"


def broker_address(broker: Broker) -> BrokerAddress:
    """Read and check the address of a broker.

    Raises:
        ConfigError: it cannot be read, or it would send everything in the clear over a network.
    """
    try:
        url = urlsplit(broker.url)
        port = url.port
    except ValueError as error:
        raise ConfigError(f"url {broker.url!r}: {error}") from error
    if url.scheme not in _PORTS or not url.hostname:
        raise ConfigError(f"url: expected mqtt://HOST:PORT or mqtts://HOST:PORT, found {_shown(broker.url)!r}")
    if url.username is not None or url.password is not None:
        raise ConfigError("url: no user or password here; use `username` and `password_file`")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ConfigError(f"url: nothing may follow the port in {broker.url!r}")
    encrypted = url.scheme == "mqtts"
    if not encrypted and not is_loopback(url.hostname) and not broker.allow_plaintext:
        raise ConfigError(
            f"url: {broker.url} is not encrypted and leaves this machine; use mqtts://, or"
            " `allow_plaintext: true` for a network you trust"
        )
    if not encrypted and (broker.ca_file or broker.crl_file or broker.certificate_file or broker.key_file):
        raise ConfigError("url: certificates are given, but mqtt:// does not use them; write mqtts://")
    if (broker.certificate_file is None) != (broker.key_file is None):
        raise ConfigError("certificate_file and key_file belong together")
    return BrokerAddress(url.hostname, port or _PORTS[url.scheme], encrypted)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can mean itself by this name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(url: str) -> str:
    """Leave out what may be a password."""
    before, at, after = url.rpartition("@")
    return f"{before.partition('://')[0]}://…@{after}" if at else url
