from pathlib import Path

import pytest

from gateway.config import Broker
from gateway.errors import ConfigError
from gateway.uplink.endpoint import endpoint_of, is_loopback, password_of, tls_context_of


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
