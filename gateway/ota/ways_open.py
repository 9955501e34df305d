"""Chooses the way to the repository that the configuration names."""

import ssl
from collections.abc import Callable, Generator

from gateway.config import Ota
from gateway.ota.errors import UnreachableError
from gateway.ota.ways import Way
from gateway.ota.ways_https import Context, HttpsWay
from gateway.ota.ways_mqtt import Exchange, MqttWay


def open_way(
    settings: Ota, *, monotonic_ns: Callable[[], int], identity: Context | None = None, exchange: Exchange | None = None
) -> Way:
    """Return the HTTPS way where `ota.url` names one, else the way over the broker, else none: then people import.

    Args:
        settings: the section `ota`.
        monotonic_ns: for time-outs.
        identity: makes the context that shows this gateway's certificate (`Credentials.tls_context`), where it has one.
        exchange: the broker's topics for parts of files (`Uplink.parts`).

    Raises:
        ConfigError: the address is none.
    """
    if settings.url is not None:
        return HttpsWay(settings.url, _context(settings, identity), monotonic_ns=monotonic_ns)
    if exchange is None:
        return NoWay()
    return MqttWay(exchange, monotonic_ns=monotonic_ns)


class NoWay:
    """Of a site that reaches neither the bridge nor a broker."""

    counted_elsewhere = True

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:  # noqa: ARG002 - the protocol's
        """See `Way.read`."""
        yield from ()
        raise UnreachableError(
            f"{path}: ota.url is not set and there is no cloud broker; bring releases with `gateway ota import PATH`"
        )

    def close(self) -> None:
        """See `Way.close`."""


def _context(settings: Ota, identity: Context | None) -> Context:
    def make() -> ssl.SSLContext:
        if identity is not None:
            context = identity()
        elif settings.ca_file is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        else:
            context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.ca_file is not None:
            context.load_verify_locations(settings.ca_file)
        return context

    return make
