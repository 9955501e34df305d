"""Where a broker is and how it may be talked to: address, TLS, password. No MQTT library here."""

import ipaddress
import ssl
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from gateway.config import Broker
from gateway.errors import ConfigError, UplinkError
from gateway.shown import shown
from gateway.wire.times import rfc3339

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a broker."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        """Write it as a URL, without secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def endpoint_of(broker: Broker) -> Endpoint:
    """Read the address of a broker.

    Raises:
        ConfigError: the URL is not usable, or would send records in the clear over a network nobody vouched for.
    """
    try:
        parts = urlsplit(broker.url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(
            f"broker url {shown(broker.url)!r} has no port that is one; write mqtts://host:8883"
        ) from error
    if parts.scheme not in PORTS or not parts.hostname:
        raise ConfigError(f"broker url {shown(broker.url)!r} is not understood; write mqtts://host:8883")
    if parts.username or parts.password:
        raise ConfigError(f"broker url {shown(broker.url)!r} holds a login; use username and password_file instead")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError(f"broker url {shown(broker.url)!r} has something after the port; write mqtts://host:8883")
    endpoint = Endpoint(parts.hostname, port or PORTS[parts.scheme], parts.scheme == "mqtts")
    if broker.identity and not endpoint.tls:
        raise ConfigError(f"broker url {broker.url!r} cannot be shown the identity without TLS; write mqtts://")
    if not endpoint.tls and broker.crl_file:
        raise ConfigError(f"broker url {broker.url!r} has a crl_file but no TLS; write mqtts://")
    if not endpoint.tls:
        if not broker.allow_plaintext and not is_loopback(endpoint.host):
            raise ConfigError(
                f"broker url {broker.url!r} sends in the clear to another machine; "
                "write mqtts://, or set allow_plaintext: true on a network you trust"
            )
        if broker.ca_file or broker.certificate_file:
            raise ConfigError(f"broker url {broker.url!r} has certificates but no TLS; write mqtts://")
    return endpoint


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, without asking the network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context_of(broker: Broker) -> ssl.SSLContext:
    """Make the TLS context of a broker: host and certificate are checked, TLS 1.2 at least.

    Raises:
        ConfigError: a certificate or key file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(broker.ca_file) if broker.ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file {broker.ca_file} of {broker.url}: {error}; name a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.crl_file:
        try:
            context.load_verify_locations(broker.crl_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"crl_file {broker.crl_file} of {broker.url}: {error}; name a PEM file") from error
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    if broker.certificate_file:
        try:
            context.load_cert_chain(broker.certificate_file, broker.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"certificate_file {broker.certificate_file} with key_file {broker.key_file} of {broker.url}: {error}; "
                "name a PEM certificate and its unencrypted key"
            ) from error
    return context


class CredentialsAwaitedError(UplinkError):
    """There is no certificate to show now; one will come."""


class Access(Protocol):
    """What is shown to brokers, and whom one believes. Safe to use from any thread."""

    def awaited(self, broker: Broker) -> str:
        """Say what a connection has to wait for; "" when it may be tried."""
        ...

    def context(self, broker: Broker) -> ssl.SSLContext:
        """Make the TLS context of a new connection.

        Raises:
            ConfigError: a certificate or key file cannot be used.
            CredentialsAwaitedError: `awaited` has something to say.
        """
        ...

    def doubted(self, broker: Broker) -> None:
        """Hear that a broker has ended a connection before it was one: it may not believe what it was shown."""
        ...


class FileAccess:
    """Access by the files that the configuration names."""

    def awaited(self, broker: Broker) -> str:
        """Nothing is waited for, but for an identity, which is not in files."""
        return "waiting for the identity: none is configured" if broker.identity else ""

    def context(self, broker: Broker) -> ssl.SSLContext:
        """Make the TLS context; see `Access.context`."""
        if reason := self.awaited(broker):
            raise CredentialsAwaitedError(reason)
        return tls_context_of(broker)

    def doubted(self, broker: Broker) -> None:
        """Do nothing: files are read anew for each connection."""


def distrust(error: ssl.SSLCertVerificationError, wall_ns: int) -> str:
    """Say why a certificate is not believed, and what to do.

    A clock that is wrong makes good certificates look bad, so its time is told where time is the reason; and a device
    must not go on without the check because of it.
    """
    words = error.verify_message or str(error)
    match error.verify_code:
        case 9 | 10 | 11 | 12:  # X509_V_ERR_CERT_NOT_YET_VALID, …_HAS_EXPIRED, and the same of a CRL
            at = rfc3339(wall_ns)
            remedy = f"the clock here says {at}: set it if that is wrong, else renew what the broker shows"
        case 23:  # X509_V_ERR_CERT_REVOKED
            remedy = "give the broker a new certificate"
        case 3:  # X509_V_ERR_UNABLE_TO_GET_CRL
            remedy = "crl_file has no list of this certificate's CA"
        case _ if "mismatch" in words or "not valid for" in words:
            remedy = "name the broker in `url` as its certificate does"
        case _:
            remedy = "give the CA of the broker as `ca_file`"
    return f"certificate not believed: {words}; {remedy}"


def password_of(broker: Broker) -> str | None:
    """Read the password from its file; a line end after it does not belong to it.

    Raises:
        ConfigError: the file cannot be read.
    """
    if broker.password_file is None:
        return None
    try:
        return broker.password_file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password_file {broker.password_file} of {broker.url}: {error}") from error
