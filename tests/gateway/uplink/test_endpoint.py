import ssl
from pathlib import Path

import pytest

from gateway.config import Broker
from gateway.errors import ConfigError
from gateway.uplink.endpoint import distrust, endpoint_of, is_loopback, password_of, tls_context_of
from tests.simulators.authority import Authority


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtts://broker.example", "mqtts://broker.example:8883"),
        ("mqtts://broker.example:443/", "mqtts://broker.example:443"),
        ("mqtt://localhost", "mqtt://localhost:1883"),
        ("mqtt://127.8.9.1:18", "mqtt://127.8.9.1:18"),
        ("mqtt://[::1]:1884", "mqtt://[::1]:1884"),
    ],
)
def test_addresses_are_read_with_their_usual_ports(url: str, expected: str) -> None:
    assert str(endpoint_of(Broker(url=url))) == expected


def test_plaintext_to_another_machine_must_be_allowed_by_name() -> None:
    with pytest.raises(ConfigError, match="allow_plaintext"):
        endpoint_of(Broker(url="mqtt://192.168.1.5"))
    assert endpoint_of(Broker(url="mqtt://192.168.1.5", allow_plaintext=True)).port == 1883


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("localhost.example", False)],
)
def test_loopback_is_known_without_asking_the_network(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_host_is_checked_by_default() -> None:
    context = tls_context_of(Broker(url="mqtts://broker.example"))
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (10, "certificate has expired", "the clock here says 1970-01-01T00:00:00.000Z: set it if that is wrong"),
        (9, "certificate is not yet valid", "the clock here says 1970-01-01"),
        (12, "CRL has expired", "the clock here says 1970-01-01"),
        (23, "certificate revoked", "give the broker a new certificate"),
        (62, "Hostname mismatch, certificate is not valid for 'a'.", "name the broker in `url`"),
        (64, "IP address mismatch, certificate is not valid for '1.2.3.4'.", "name the broker in `url`"),
        (20, "unable to get local issuer certificate", "`ca_file`"),
        (3, "unable to get certificate CRL", "crl_file has no list"),
    ],
)
def test_a_certificate_that_is_not_believed_is_told_with_the_remedy(code: int, message: str, expected: str) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    words = distrust(error, 0)
    assert message in words
    assert expected in words


def test_a_list_of_the_revoked_is_used_and_one_that_is_none_is_named(tmp_path: Path) -> None:
    nonsense = tmp_path / "revoked.crl"
    nonsense.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"revoked\.crl"):
        tls_context_of(Broker(url="mqtts://broker.example", crl_file=nonsense))
    authority = Authority(tmp_path, "site")
    context = tls_context_of(Broker(url="mqtts://broker.example", crl_file=authority.crl_file))
    assert context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    nonsense = tmp_path / "certificate.pem"
    nonsense.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"certificate\.pem"):
        tls_context_of(Broker(url="mqtts://broker.example", certificate_file=nonsense))


def test_the_line_end_does_not_belong_to_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b" secret \r\n")
    assert password_of(Broker(url="mqtt://localhost", password_file=file)) == " secret "
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="password"):
        password_of(Broker(url="mqtt://localhost", password_file=file))
