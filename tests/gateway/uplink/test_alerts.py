"""A broker that refuses our certificate says why in a TLS alert, and the status says what to do."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.config import Broker
from gateway.uplink.alerts import told_by_alert
from gateway.uplink.client import MqttConnection
from gateway.uplink.endpoint import FileAccess, endpoint_of
from gateway.uplink.exchange import ConnectionRefusedByBrokerError, ConnectOptions, Drops, Ending
from tests.gateway.uplink.mosquitto import Mosquitto
from tests.simulators.authority import DAY, Authority

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@dataclass
class Site:
    """A broker that asks for certificates, and the authority it believes."""

    directory: Path
    url: str
    authority: Authority

    def certificate(self, authority: Authority | None = None, **life: timedelta) -> Path:
        file = self.directory / f"client-{len(list(self.directory.glob('client-*')))}.pem"
        (authority or self.authority).issue(file, host="dock-7", **life)
        return file

    def revoked(self) -> Path:
        return self.directory / "revoked.pem"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    authority = Authority(tmp_path / "authority", "fleet")
    server = tmp_path / "server.pem"
    authority.issue(server)
    authority.revoke(authority.issue(tmp_path / "revoked.pem", host="dock-7"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = (f"cafile {authority.ca_file}", f"certfile {server}", f"keyfile {server}", f"crlfile {authority.crl_file}")
    broker = Mosquitto(tmp_path, f"listener {port} 127.0.0.1", *files, "require_certificate true", "user root")
    broker.start()
    try:
        yield Site(tmp_path, f"mqtts://127.0.0.1:{port}", authority)
    finally:
        broker.kill()


class OneVersion(FileAccess):
    """Speaks one version of TLS."""

    def __init__(self, version: ssl.TLSVersion) -> None:
        self._version = version

    def context(self, broker: Broker) -> ssl.SSLContext:
        context = super().context(broker)
        context.minimum_version = context.maximum_version = self._version
        return context


async def ending_of(site: Site, certificate: Path | None, version: ssl.TLSVersion) -> Ending:
    broker = Broker(url=site.url, ca_file=site.authority.ca_file, certificate_file=certificate, key_file=certificate)
    connection = MqttConnection(
        broker,
        endpoint_of(broker),
        ConnectOptions("dock-7"),
        lambda _: None,
        Drops(),
        access=OneVersion(version),
    )
    connection.start()
    try:
        await connection.opened
    except ConnectionRefusedByBrokerError as error:
        return error.ending
    connection.stop()
    return await connection.closed


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_reason_and_the_remedy_are_told(site: Site, version: ssl.TLSVersion) -> None:
    foreign = Authority(site.directory / "foreign", "somebody")
    for certificate, words in (
        (site.certificate(begins_in=-2 * DAY, ends_in=-DAY), ("it is over", "clock of the broker")),
        (site.revoked(), ("it was revoked", "new certificate")),
        (site.certificate(foreign), ("does not know the authority", "cafile")),
        (None, ("", "certificate_file and key_file")),
    ):
        ending = await ending_of(site, certificate, version)
        assert ending.lane == "refused"
        assert ending.doubt
        assert all(each in ending.reason for each in words), ending.reason
    assert (await ending_of(site, site.certificate(), version)).reason == "stopped"


async def test_one_that_is_not_valid_yet_is_told_as_a_matter_of_clocks(site: Site) -> None:
    early = site.certificate(begins_in=DAY, ends_in=2 * DAY)
    assert "not valid yet" in (await ending_of(site, early, VERSIONS[1])).reason


def error(reason: str, words: str = "") -> ssl.SSLError:
    made = ssl.SSLError(1, words or f"[SSL: {reason}] {reason.lower().replace('_', ' ')} (_ssl.c:2580)")
    made.reason = reason
    return made


@pytest.mark.parametrize("by_identity", [True, False])
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "over"),
        ("SSL/TLS_ALERT_CERTIFICATE_EXPIRED", "over"),  # OpenSSL 3.2 and later
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "revoked"),
        ("TLSV1_ALERT_UNKNOWN_CA", "authority"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "shows none"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "version"),
    ],
)
def test_alerts_are_known_by_all_their_names(reason: str, said: str, *, by_identity: bool) -> None:
    told = told_by_alert(error(reason), by_identity=by_identity)
    assert told is not None
    assert said in told
    assert ";" in told
    assert ("identity" in told or "bridge" in told or said == "version") or not by_identity


def test_an_alert_without_a_reason_is_known_by_its_words() -> None:
    nameless = ssl.SSLError(1, "error:0A000415:SSL routines::ssl/tls alert certificate expired")
    assert "is over" in (told_by_alert(nameless, by_identity=True) or "")


@pytest.mark.parametrize(
    "reason", ["WRONG_VERSION_NUMBER", "TLSV1_ALERT_INTERNAL_ERROR", "UNEXPECTED_EOF_WHILE_READING"]
)
def test_what_is_not_about_us_is_left_to_others(reason: str) -> None:
    assert told_by_alert(error(reason), by_identity=True) is None
