"""The broker's side: a configuration for mosquitto, with certificates, and what keeps them fresh.

Found by experiment with mosquitto 2.0.11 (docs/identity.md has the table): the CN is the only part of a certificate it
knows; a client id is bound to it only by `use_username_as_clientid`; an expired or revoked certificate is let in by
session resumption unless OpenSSL is told to give no tickets, and in TLS 1.2 even then, from the broker's memory of
sessions, which nothing switches off; a revocation list is read at SIGHUP only, and one that has expired locks everybody
out; authorities are read at the start only.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.files import PRIVATE, PUBLIC, write_file
from cloud_bridge.identity.issuer import (
    BRIDGE_NAME,
    Issuer,
    Life,
    LocalCa,
    Revoked,
    crls_of,
    key_pem,
    life_from,
    new_key,
)
from gateway.wire.topics import VERSION

CRL_LIFE: Final = timedelta(days=30)
"""Long: revocations are pushed, and a list that expires while the bridge is away would lock everybody out."""

CRL_FRESH: Final = timedelta(hours=6)
"""So old a list may get before it is made anew though nothing has changed."""

_NO_LIST: Final = "# No crlfile: whoever signs devices gives no list. Who is revoked is at the end of acl."
_DENIED: Final = "\n# Revoked, and not expired; kept by the bridge from here to the end of the file.\n"
_WRITES: Final = (
    "availability/gateway",
    "status/+",
    "event/+",
    "measure/+",
    "records/+",
    "twin/reported",
    "cmd/+",
    "ota/request",
    "infer/request",
    "learn/update",
)
_READS: Final = ("ack/+", "twin/desired", "cmd/+", "ota/reply", "infer/reply", "learn/round", "availability/gateway")
_BRIDGE_READS: Final = (
    "status/+",
    "event/+",
    "measure/+",
    "records/+",
    "twin/reported",
    "ota/request",
    "infer/request",
    "learn/update",
)
_BRIDGE_WRITES: Final = (
    "ack/+",
    "twin/desired",
    "cmd/+",
    "ota/reply",
    "infer/reply",
    "learn/round",
    "availability/gateway",
)


@dataclass(frozen=True, slots=True)
class BrokerPlan:
    """How the broker is to listen. `directory`: of these files; `state_directory`: of what it queues."""

    directory: Path
    names: tuple[str, ...]
    root: str = "sluice"
    device_address: str | None = None  # None: all
    device_port: int = 8883
    service_address: str = "127.0.0.1"
    service_port: int = 8884
    max_connections: int = 20_000
    max_packet_bytes: int = 16 * 1024 * 1024
    state_directory: Path = Path("/var/lib/mosquitto")
    revocation_list: bool = True  # whether there is one of whoever signs devices


def mosquitto_conf(plan: BrokerPlan) -> str:
    """Write the configuration for mosquitto 2.0 and later."""
    at = plan.directory
    revoked = f"crlfile {at}/crl.pem" if plan.revocation_list else _NO_LIST
    device = f"listener {plan.device_port}" + (f" {plan.device_address}" if plan.device_address else "")
    return f"""\
# Made by `cloud-bridge broker-config`; a change here is lost when it runs again.
# Give it to mosquitto alone (`mosquitto -c`), or put it into conf.d of a mosquitto that has no other listener.
per_listener_settings false
allow_anonymous false
acl_file {at}/acl
persistence true
persistence_location {plan.state_directory}/
max_packet_size {plan.max_packet_bytes}
max_keepalive 600
max_inflight_messages 100
max_queued_messages 10000
max_queued_bytes 67108864
persistent_client_expiration 7d
set_tcp_nodelay true

# Devices. Their name is the CN of their certificate, and their client id is their name.
{device}
max_connections {plan.max_connections}
cafile {at}/devices-ca.pem
certfile {at}/broker.pem
keyfile {at}/broker-key.pem
{revoked}
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
use_username_as_clientid true

# The bridge. It has several connections, and takes client ids over to end those of devices that are revoked.
# Another authority: no certificate of a device is let in here.
listener {plan.service_port} {plan.service_address}
max_connections 200
cafile {at}/services-ca.pem
certfile {at}/broker.pem
keyfile {at}/broker-key.pem
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
"""


def mosquitto_acl(root: str) -> str:
    """Write the access rules: who is not named here may do nothing."""
    top = f"{root}/{VERSION}"
    both = [name for name in _WRITES if name in _READS]
    lines = ["# Made by `cloud-bridge broker-config`. %u is the CN of the certificate.", ""]
    lines += [f"pattern write {top}/%u/{name}" for name in _WRITES if name not in both]
    lines += [f"pattern read {top}/%u/{name}" for name in _READS if name not in both]
    lines += [f"pattern readwrite {top}/%u/{name}" for name in both]
    lines += ["", f"user {BRIDGE_NAME}"]
    lines += [f"topic read {top}/+/{name}" for name in _BRIDGE_READS]
    # It reads what it writes: while it holds a device's session, in order to end its connection, the broker queues
    # for that session only what the bridge may read.
    lines += [f"topic readwrite {top}/+/{name}" for name in _BRIDGE_WRITES]
    lines += ["# Which store takes the records.", f"topic readwrite {top}/bridge/store/+"]
    return "\n".join(lines) + "\n"


def with_denied(acl: str, gateways: Sequence[str]) -> str:
    """Return access rules in which these gateways may do nothing; the rest stays as it is.

    Mosquitto looks at what is denied to a user before it looks at patterns.
    """
    denied = "".join(f"user {gateway}\ntopic deny #\n" for gateway in gateways)
    return acl.partition(_DENIED)[0] + (_DENIED + denied if denied else "")


OPENSSL_CONF: Final = """\
# Made by `cloud-bridge broker-config`. Without session tickets: a session that is resumed is not checked again, so a
# certificate that has expired or was revoked would still be let in. For the same reason TLS 1.3 alone: in TLS 1.2 the
# broker also resumes from its own memory (RFC 5246, 7.4.1.2), for which OpenSSL has no setting here.
openssl_conf = default_conf

[default_conf]
ssl_conf = ssl_section

[ssl_section]
system_default = tls_default

[tls_default]
MinProtocol = TLSv1.3
Options = -SessionTicket
NumTickets = 0
"""


def systemd_drop_in(directory: Path) -> str:
    """Write what makes a packaged mosquitto use these files; as /etc/systemd/system/mosquitto.service.d/sluice.conf."""
    return f"""\
[Service]
Environment=OPENSSL_CONF={directory}/openssl.cnf
ExecStart=
ExecStart=/usr/sbin/mosquitto -c {directory}/mosquitto.conf
"""


def reload_path_unit(directory: Path) -> str:
    """Write the unit that sees new certificates; it starts the service of the same name."""
    return f"""\
[Unit]
Description=Watch the certificates and the revocation list of the broker

[Path]
PathChanged={directory}/crl.pem
PathChanged={directory}/broker.pem
PathChanged={directory}/acl

[Install]
WantedBy=multi-user.target
"""


RELOAD_SERVICE_UNIT: Final = """\
[Unit]
Description=Let the broker read its certificates and its revocation list again

[Service]
Type=oneshot
ExecStart=/bin/systemctl kill --signal=HUP mosquitto.service
"""


def restart_path_unit(directory: Path) -> str:
    """Write the unit that sees new authorities of devices; it starts the service of the same name."""
    return f"""\
[Unit]
Description=Watch whom the broker believes of devices

[Path]
PathChanged={directory}/devices-ca.pem

[Install]
WantedBy=multi-user.target
"""


RESTART_SERVICE_UNIT: Final = """\
[Unit]
Description=Restart the broker, which reads authorities at its start only

[Service]
Type=oneshot
ExecStart=/bin/systemctl try-restart mosquitto.service
"""


class BrokerFiles:
    """The files of a broker in a directory: written once by the command line, kept fresh by the bridge."""

    def __init__(self, directory: Path, ca: LocalCa, issuer: Issuer, *, server_seconds: float) -> None:
        self.directory = directory
        self._ca = ca
        self._issuer = issuer
        self._server_seconds = server_seconds

    def write_all(
        self, plan: BrokerPlan, revoked: Sequence[Revoked], now: datetime, denied: Sequence[str] = ()
    ) -> None:
        """Write everything anew.

        Args:
            plan: how the broker is to listen.
            revoked: certificates, for the revocation list.
            now: UTC.
            denied: gateways that may do nothing, for the access rules, where no list tells of them.

        Raises:
            IdentityError: a name or the directory cannot be used.
        """
        try:
            (self.directory / "systemd").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IdentityError(f"{self.directory}: {error.strerror or error}") from error
        plan = replace(plan, revocation_list=self._crl(revoked, now) is not None)
        texts = {
            "mosquitto.conf": mosquitto_conf(plan),
            "acl": with_denied(mosquitto_acl(plan.root), denied if self.denies else ()),
            "openssl.cnf": OPENSSL_CONF,
            "systemd/sluice.conf": systemd_drop_in(plan.directory),
            "systemd/sluice-broker-reload.path": reload_path_unit(plan.directory),
            "systemd/sluice-broker-reload.service": RELOAD_SERVICE_UNIT,
            "systemd/sluice-broker-restart.path": restart_path_unit(plan.directory),
            "systemd/sluice-broker-restart.service": RESTART_SERVICE_UNIT,
        }
        for name, text in texts.items():
            self._write(name, text.encode(), PUBLIC)
        self._write("devices-ca.pem", self._issuer.bundle_pem, PUBLIC)
        self._write("services-ca.pem", self._ca.services_pem, PUBLIC)
        self._write_server("broker", plan.names, now)
        self._write_bridge(now)
        self.write_crl(revoked, now)

    def renew(self, now: datetime) -> bool:
        """Renew the certificates that are half-way through; return whether the broker has to read its own again.

        Raises:
            IdentityError: a file cannot be read or written.
        """
        bridge = self._half_way("bridge.pem", now)
        if bridge is not None:
            self._write_bridge(now)
        broker = self._half_way("broker.pem", now)
        if broker is None:
            return False
        self._write_server("broker", host_names(broker), now)
        return True

    @property
    def denies(self) -> bool:
        """Whether the broker learns from its access rules who is revoked, because no list can tell it."""
        return not self._issuer.lists_revoked

    def write_crl(self, revoked: Sequence[Revoked], now: datetime) -> tuple[bool, datetime | None]:
        """Write the revocation list, if there is one; return whether it has changed, and until when it is good.

        Raises:
            AuthorityError: there should be one, and it cannot be used; the broker keeps what it has.
            IdentityError: the file cannot be written.
        """
        found = self._crl(revoked, now)
        if found is None:
            return False, None
        ends = [one.next_update_utc for one in map(x509.load_pem_x509_crl, crls_of(found))]
        return self._rewrite("crl.pem", found), min((end for end in ends if end is not None), default=None)

    def write_anchors(self) -> bool:
        """Write whom the broker must believe of devices; return whether that has changed.

        Raises:
            IdentityError: they cannot be read, or not be written.
        """
        return self._rewrite("devices-ca.pem", self._issuer.bundle_pem)

    def write_denied(self, gateways: Sequence[str]) -> bool:
        """Write who may do nothing into the access rules, unless a list says it; return whether that has changed.

        Raises:
            IdentityError: there are no access rules, or they cannot be written.
        """
        denied = gateways if self.denies else ()
        try:
            rules = (self.directory / "acl").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            if not denied:
                return False
            raise IdentityError(f"{self.directory}/acl: {error}; `cloud-bridge broker-config` makes it") from error
        return self._rewrite("acl", with_denied(rules, denied).encode())

    def _crl(self, revoked: Sequence[Revoked], now: datetime) -> bytes | None:
        return self._issuer.crl(revoked, Life(now - timedelta(minutes=5), now + CRL_LIFE))

    def _rewrite(self, name: str, data: bytes) -> bool:
        file = self.directory / name
        try:
            if file.read_bytes() == data:
                return False
        except FileNotFoundError:
            pass
        except OSError as error:
            raise IdentityError(f"{file}: {error.strerror or error}") from error
        self._write(name, data, PUBLIC)
        return True

    def _write_server(self, name: str, names: Sequence[str], now: datetime) -> None:
        key = new_key()
        issued = self._ca.server(names, key.public_key(), self._life(now))
        # The key first: the broker reads both at its next SIGHUP, which comes after the certificate.
        self._write(f"{name}-key.pem", key_pem(key), PRIVATE)
        self._write(f"{name}.pem", issued.chain_pem, PUBLIC)

    def _write_bridge(self, now: datetime) -> None:
        key = new_key()
        issued = self._ca.bridge(key.public_key(), self._life(now))
        self._write("bridge-key.pem", key_pem(key), PRIVATE)
        self._write("bridge.pem", issued.chain_pem, PUBLIC)

    def _life(self, now: datetime) -> Life:
        return life_from(now, seconds=self._server_seconds, backdate_seconds=86_400)

    def _half_way(self, name: str, now: datetime) -> x509.Certificate | None:
        file = self.directory / name
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except (OSError, ValueError) as error:
            raise IdentityError(f"{file}: {error}; `cloud-bridge broker-config` makes it") from error
        left = certificate.not_valid_after_utc - now
        return certificate if left.total_seconds() < self._server_seconds / 2 else None

    def _write(self, name: str, data: bytes, mode: int) -> None:
        """Write a file; a key stays readable for whom its predecessor was (chown, chmod: the broker's user)."""
        file = self.directory / name
        try:
            before = file.stat()
        except FileNotFoundError:
            before = None
        if before is not None:
            mode = before.st_mode & 0o777
        write_file(file, data, mode)
        if before is not None and os.geteuid() == 0:
            os.chown(file, before.st_uid, before.st_gid)


def host_names(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses of a server's certificate; none when it has none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
