"""What brokers are shown by a gateway with an identity, and when another certificate is asked for."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.config import Broker
from gateway.enrolment import DOUBT_SECONDS, IdentityAccess
from gateway.identity.clock import TrustedClock
from gateway.identity.credentials import Credentials
from gateway.identity.tls import Svid
from gateway.uplink.endpoint import CredentialsAwaitedError
from tests.simulators.authority import Authority

HOUR_NS = 3600 * 10**9
NOW_NS = 1_790_000_000_000_000_000
KNOWN = Broker(url="mqtts://broker.example", identity=True)
OTHER = Broker(url="mqtts://broker.example")


class Bench:
    """Credentials with clocks to set."""

    def __init__(self, tmp_path: Path) -> None:
        self.wall_ns = NOW_NS
        self.monotonic = 1000.0
        self.renewals = 0
        clock = TrustedClock(wall_ns=lambda: self.wall_ns, monotonic_ns=lambda: 0)
        self.credentials = Credentials(clock)
        self.access = IdentityAccess(self.credentials, self._renew, monotonic=lambda: self.monotonic)
        self._authority = Authority(tmp_path, "fleet")
        self._file = tmp_path / "svid.pem"

    def _renew(self) -> None:
        self.renewals += 1

    def certify(self) -> None:
        self._authority.issue(self._file, host="dock-7")
        pem = self._file.read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = pem[: pem.index(b"-----BEGIN PRIVATE KEY")]
        svid = Svid(chain, secret, "spiffe://fleet/gateway/dock-7", self.wall_ns, self.wall_ns + HOUR_NS)
        self.credentials.replace(svid, self._authority.ca_file.read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_without_a_certificate_a_broker_for_certificates_is_waited_for_and_no_other(bench: Bench) -> None:
    assert "the certificate is not there yet" in bench.access.awaited(KNOWN)
    assert bench.access.awaited(OTHER) == ""
    with pytest.raises(CredentialsAwaitedError, match="waiting for the identity"):
        bench.access.context(KNOWN)
    assert bench.access.context(OTHER).check_hostname


def test_with_a_certificate_it_is_shown_until_it_is_over(bench: Bench) -> None:
    bench.certify()
    assert bench.access.awaited(KNOWN) == ""
    assert bench.access.context(KNOWN).check_hostname
    bench.wall_ns += HOUR_NS
    assert "the certificate is over" in bench.access.awaited(KNOWN)
    with pytest.raises(CredentialsAwaitedError, match="is over"):
        bench.access.context(KNOWN)


def test_of_a_doubt_another_certificate_is_asked_for_once_in_a_while(bench: Bench) -> None:
    bench.access.doubted(KNOWN)
    assert bench.renewals == 0  # there is none that could be doubted
    bench.certify()
    for _ in range(5):
        bench.access.doubted(KNOWN)
        bench.access.doubted(OTHER)
    assert bench.renewals == 1
    bench.monotonic += DOUBT_SECONDS
    bench.access.doubted(KNOWN)
    assert bench.renewals == 2
