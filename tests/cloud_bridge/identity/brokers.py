"""A real mosquitto with the configuration that `broker-config` writes, and clients with certificates."""

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloud_bridge.config import Broker
from cloud_bridge.identity.broker import BrokerFiles, BrokerPlan
from cloud_bridge.identity.database import SqliteDatabase
from cloud_bridge.identity.issuer import Issued, Issuer, Life, LocalCa, key_pem, new_key
from hil.loopback.children import free_port
from tests.simulators.mosquitto import BINARY
from tests.simulators.raw_mqtt import Credentials, RawMqtt
from tests.simulators.waiting import wait_for

Change = Callable[[str], str]


def same(text: str) -> str:
    return text


@dataclass
class SecuredBroker:
    """mosquitto over TLS. `issue` makes certificates; the protections are switched off by editing its configuration."""

    directory: Path
    ca: LocalCa
    files: BrokerFiles
    database: SqliteDatabase
    device_port: int
    service_port: int
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"

    @property
    def log(self) -> str:
        return (self.directory / "mosquitto.log").read_text()

    def credentials(self, issued: Issued, key: bytes) -> Credentials:
        place = self.directory / f"client-{issued.serial}"
        place.with_suffix(".pem").write_bytes(issued.chain_pem)
        place.with_suffix(".key").write_bytes(key)
        return Credentials(place.with_suffix(".pem"), place.with_suffix(".key"), self.directory / "services-ca.pem")

    def issue(
        self, gateway: str, *, starts: float = -120.0, seconds: float = 3600.0, ca: LocalCa | None = None
    ) -> tuple[Issued, Credentials]:
        """Make a device's certificate that is good from and for so many seconds from now."""
        key, now = new_key(), datetime.now(UTC)
        life = Life(now + timedelta(seconds=starts), now + timedelta(seconds=seconds))
        issued = (ca or self.ca).device(gateway, key.public_key(), life)
        return issued, self.credentials(issued, key_pem(key))

    def device(self, gateway: str, *, client_id: str | None = None, clean: bool = True) -> RawMqtt:
        """Connect a device; by itself it asks for the client id that a gateway asks for."""
        _, credentials = self.issue(gateway)
        return self.connect(credentials, client_id or f"sluice-{gateway}", clean=clean)

    def connect(
        self,
        credentials: Credentials,
        client_id: str,
        *,
        version: ssl.TLSVersion | None = None,
        clean: bool = True,
        port: int | None = None,
    ) -> RawMqtt:
        return RawMqtt.connect(port or self.device_port, credentials.context(version), client_id, clean=clean)

    @property
    def own(self) -> Credentials:
        """The bridge's."""
        return Credentials(
            self.directory / "bridge.pem", self.directory / "bridge-key.pem", self.directory / "services-ca.pem"
        )

    def bridge(self, client_id: str = "sluice-bridge") -> RawMqtt:
        return self.connect(self.own, client_id, port=self.service_port)

    def broker_settings(self) -> Broker:
        return Broker(
            url=f"mqtts://localhost:{self.service_port}",
            ca_file=self.directory / "services-ca.pem",
            certificate_file=self.directory / "bridge.pem",
            key_file=self.directory / "bridge-key.pem",
        )

    def restart(self) -> None:
        """End it as systemd does, and start it again."""
        self.process.terminate()
        self.process.wait(10)
        self.process = self.start()
        self.wait_until_up()

    def wait_until_up(self) -> None:
        ports = (self.device_port, self.service_port)
        wait_for(
            lambda: self.process.poll() is None and all(map(_listens, ports)), seconds=10, what="mosquitto listens"
        )

    def hang_up(self) -> None:
        """SIGHUP, and wait until it was heard."""
        before = self.log.count("Reloading config")
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.log.count("Reloading config") > before, what="mosquitto reloads")


@contextmanager
def secured_broker(
    directory: Path,
    *,
    conf: Change = same,
    acl: Change = same,
    openssl: Change | None = same,
    issuer: Issuer | None = None,
) -> Iterator[SecuredBroker]:
    """Start it. conf, acl and openssl: changes of the files that the command has made; None: OpenSSL as it is.

    issuer: who signs devices, if not the bridge itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    ca = LocalCa.open(directory / "ca", "sluice.test", now)
    files = BrokerFiles(directory, ca, issuer or ca, server_seconds=30 * 86_400)
    ports = free_port(), free_port()
    plan = BrokerPlan(
        directory=directory,
        names=("localhost", "127.0.0.1"),
        device_address="127.0.0.1",
        device_port=ports[0],
        service_port=ports[1],
        max_packet_bytes=64 * 1024,
        state_directory=directory,
    )
    files.write_all(plan, [], now)
    conf_file, acl_file = directory / "mosquitto.conf", directory / "acl"
    mine = f"user root\npid_file {directory}/pid\nlog_type all\n"
    conf_file.write_text(mine + conf(conf_file.read_text()))
    acl_file.write_text(acl(acl_file.read_text()))
    environment = dict(os.environ)
    if openssl is not None:
        openssl_file = directory / "openssl.cnf"
        openssl_file.write_text(openssl(openssl_file.read_text()))
        environment["OPENSSL_CONF"] = str(openssl_file)
    command = ["setpriv", "--pdeathsig=KILL", "--", BINARY or "mosquitto", "-c", str(conf_file)]

    def start() -> subprocess.Popen[bytes]:
        with (directory / "mosquitto.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)

    database = SqliteDatabase(directory / "identity.db")
    broker = SecuredBroker(directory, ca, files, database, *ports, start, start())
    try:
        broker.wait_until_up()
        yield broker
    finally:
        broker.process.kill()
        broker.process.wait()
        database.close()


def without(*lines: str) -> Change:
    """Switch protections off: drop the lines that begin so."""
    return lambda text: "".join(line for line in text.splitlines(keepends=True) if not line.startswith(lines))


def wait_until(at: datetime) -> None:
    """Wait until a point in time, such as the end of a certificate, is over for every program on this machine."""
    # OpenSSL asks time(2), which steps with the kernel's ticks, up to 10 ms behind the clock that is asked here.
    safe = at + timedelta(milliseconds=50)
    left = (safe - datetime.now(UTC)).total_seconds()
    wait_for(lambda: datetime.now(UTC) > safe, seconds=left + 5, what="the time has come")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
