"""What the doctor says of brokers: scripted ones with every fault, and a real one."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Broker, Cloud, Config, Gateway, Vault
from gateway.doctor.diagnosis import Diagnosis
from gateway.doctor.network import check_broker, check_brokers, connect_packet

SOFTWARE = Vault(level="software")

ACCEPTED = b"\x20\x03\x00\x00\x00"


@contextmanager
def answering(answer: bytes | None, context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A broker that reads one packet and sends one answer; None: it says nothing and hangs up."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    stream = context.wrap_socket(connection, server_side=True) if context else connection
                    stream.settimeout(10)
                    heard.append(stream.recv(4096))
                    if answer:
                        stream.sendall(answer)
                        if not context:
                            stream.shutdown(socket.SHUT_WR)
                        heard.append(stream.recv(4096))
            except OSError:
                return  # the doctor hung up, as it should with a certificate it does not trust

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], heard
        thread.join(10)


def check(port: int, scheme: str = "mqtt", host: str = "127.0.0.1", **more: Any) -> Diagnosis:
    return check_broker("cloud.brokers[0]", Broker(url=f"{scheme}://{host}:{port}", **more), "doctor")


def test_a_broker_that_accepts_is_left_politely() -> None:
    with answering(ACCEPTED) as (port, heard):
        found = check(port)
    assert found.verdict == "ok"
    assert "MQTT 5 accepted" in found.found
    assert heard[1] == b"\xe0\x00"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"\x20\x03\x00\x87\x00", "may not connect"),
        (b"\x20\x03\x00\x86\x00", "password is wrong"),
        (b"\x20\x02\x00\x05", "may not connect"),
        (b"\x20\x03\x00\xf0\x00", "reason code 0xf0"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not MQTT"),
        (b"\x20", "not MQTT"),
        (None, "not MQTT"),
    ],
)
def test_a_broker_that_refuses_is_explained(answer: bytes | None, says: str) -> None:
    with answering(answer) as (port, _):
        found = check(port)
    assert found.verdict == "failed"
    assert says in found.found
    assert found.remedy


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_a_port_that_says_nothing_is_told(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        broker = Broker(url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
        found = check_broker("local.broker", broker, "doctor", timeout_seconds=0.1)
    assert found.verdict == "failed"
    assert "TLS" in found.remedy


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = check(port)
    assert (found.verdict, found.remedy) == ("failed", "check that a broker listens there")


def test_an_unknown_name_is_told() -> None:
    assert "DNS" in check(1883, host="broker.invalid").remedy


def test_a_password_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with answering(ACCEPTED) as (port, _):
        found = check(port, username="me", password_file=tmp_path / "gone")
        with socket.create_connection(("127.0.0.1", port)):
            pass
    assert found.verdict == "failed"
    assert "password_file" in found.found


def test_the_connect_packet_follows_the_standards(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("pw\n")
    broker = Broker(url="mqtt://localhost", username="me", password_file=tmp_path / "p")
    assert connect_packet(broker, "id") == b"\x10\x17\x00\x04MQTT\x05\xc2\x00\x0a\x00\x00\x02id\x00\x02me\x00\x02pw"
    plain = Broker(url="mqtt://localhost", protocol="3.1.1")
    assert connect_packet(plain, "id") == b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x0a\x00\x02id"
    (tmp_path / "p").write_text("x" * 300)
    assert connect_packet(broker, "id")[:3] == b"\x10\xc1\x02"


# ---- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return cert, key


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_a_broker_with_a_trusted_certificate_is_accepted(certificate: tuple[Path, Path]) -> None:
    with answering(ACCEPTED, server_context(certificate)) as (port, _):
        found = check(port, "mqtts", "localhost", ca_file=certificate[0])
    assert found.verdict == "ok", found
    assert "TLSv1.3" in found.found


@pytest.mark.parametrize(("host", "trusted"), [("localhost", False), ("127.0.0.1", True)])
def test_a_strange_certificate_or_name_is_not_accepted(
    certificate: tuple[Path, Path], host: str, trusted: bool
) -> None:
    ca = {"ca_file": certificate[0]} if trusted else {}
    with answering(ACCEPTED, server_context(certificate)) as (port, heard):
        found = check(port, "mqtts", host, **ca)
    assert found.verdict == "failed"
    assert "certificate is not accepted" in found.found
    assert heard == []


def test_tls_to_a_plain_port_is_explained() -> None:
    with answering(b"\x20\x02\x00\x01") as (port, _):
        found = check(port, "mqtts", "localhost")
    assert found.verdict == "failed"
    assert "TLS" in found.remedy


# ---- a real broker -------------------------------------------------------------------------------


@pytest.mark.net
@pytest.mark.skipif(shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="mosquitto is not installed")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_mosquitto_agrees_with_the_scripted_broker(tmp_path: Path, protocol: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = tmp_path / "m.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
    assert program is not None
    with subprocess.Popen([program, "-c", str(settings)], stderr=subprocess.DEVNULL) as broker:
        try:
            deadline = time.monotonic() + 10
            while (found := check(port, protocol=protocol)).verdict != "ok" and time.monotonic() < deadline:
                time.sleep(0.02)
            assert found.verdict == "ok", found
        finally:
            broker.terminate()


def test_all_brokers_are_tried() -> None:
    cloud = Cloud(brokers=[Broker(url="mqtts://a.invalid"), Broker(url="mqtts://b.invalid")])
    config = Config(gateway=Gateway(id="a"), sources={}, pipelines={}, vault=SOFTWARE, cloud=cloud)
    assert [found.check for found in check_brokers(config)] == ["cloud.brokers[0]", "cloud.brokers[1]"]
    (none,) = check_brokers(Config(gateway=Gateway(id="a"), sources={}, pipelines={}, vault=SOFTWARE))
    assert none.verdict == "skipped"
