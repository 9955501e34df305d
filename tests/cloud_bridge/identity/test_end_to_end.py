"""The real programs together, set up as the documentation says: a device from its claim to its end."""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from cloud_bridge.identity.issuer import key_pem
from gateway.wire.identity import Granted, claim_code
from hil.loopback.children import free_port
from tests.simulators.attested_device import AttestedDevice, RefusedByBridgeError, SoftTpm
from tests.simulators.mosquitto import BINARY
from tests.simulators.raw_mqtt import Credentials, RawMqtt, RefusedByBrokerError
from tests.simulators.waiting import wait_for

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]

BRIDGE = [sys.executable, "-m", "cloud_bridge"]


def free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("ab") as out:
        started = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *command], stdout=out, stderr=out, env={**os.environ, **environment}
        )
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def operator(file: Path, *words: str) -> str:
    command = [*BRIDGE, *words, "--config", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mqtt_credentials(device: AttestedDevice, granted: Granted, directory: Path) -> Credentials:
    found = Credentials(directory / "device.pem", directory / "device.key", directory / "trusted.pem")
    found.certificate.write_text(granted.certificate_chain)
    found.key.write_bytes(key_pem(device.key))
    found.trusted.write_text(granted.bundle)
    return found


@pytest.mark.slow
def test_a_device_comes_in_delivers_is_revoked_and_is_out(tmp_path: Path) -> None:
    https, devices, services = free_ports(3)
    broker, file = tmp_path / "broker", tmp_path / "bridge.yaml"
    file.write_text(
        f"""
store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}
console: {{enabled: false}}
brokers:
  - {{url: 'mqtts://localhost:{services}', ca_file: {broker}/services-ca.pem,
     certificate_file: {broker}/bridge.pem, key_file: {broker}/bridge-key.pem}}
identity: {{trust_domain: sluice.test, directory: {tmp_path}/id, port: {https}, broker_directory: {broker},
            broker_pid_file: {tmp_path}/pid}}
"""
    )
    ports = ("--device-port", str(devices), "--device-address", "127.0.0.1", "--service-port", str(services))
    operator(file, "broker-config", "--out", str(broker), *ports, "--state-directory", str(tmp_path))
    conf = broker / "mosquitto.conf"
    conf.write_text(f"user root\npid_file {tmp_path}/pid\n" + conf.read_text())
    mosquitto = [BINARY or "mosquitto", "-c", str(conf)]
    tls = {"OPENSSL_CONF": str(broker / "openssl.cnf")}
    with (
        process(mosquitto, tmp_path / "mosquitto.log", tls),
        process([*BRIDGE, "run", "--config", str(file)], tmp_path / "bridge.log", {}),
    ):
        wait_for(lambda: listens(https) and listens(devices), seconds=30, what="bridge and broker listen")
        code = claim_code(json.loads(operator(file, "identity", "token", "create", "dock-7", "--json"))["code"])
        assert code is not None
        context = ssl.create_default_context(cadata=operator(file, "identity", "ca"))

        def post(path: str, body: bytes) -> bytes:
            request = Request(f"https://localhost:{https}{path}", data=body)
            try:
                with urlopen(request, context=context, timeout=20) as answer:
                    return bytes(answer.read())
            except OSError as error:
                read = getattr(error, "read", None)  # HTTPError: an answer all the same
                if read is None:
                    raise
                return bytes(read())

        device = AttestedDevice("dock-7", post, SoftTpm())
        with pytest.raises(RefusedByBridgeError, match="no-approved-state") as caught:
            device.enrol(code.token)
        operator(file, "identity", "states", "add", "v1", "--from-refusal", caught.value.refusal.refusal_id)
        credentials = mqtt_credentials(device, device.enrol(code.token), tmp_path)

        with RawMqtt.connect(devices, credentials.context(), "sluice-dock-7") as link:
            link.subscribe("sluice/v1/dock-7/ack/+")
            batch = {"epoch": "9f86d081884c7d65", "base": 1, "records": []}
            assert link.publish("sluice/v1/dock-7/availability/gateway", b'{"state":"online","at":"now"}') == 0
            link.publish("sluice/v1/dock-7/records/event", json.dumps(batch).encode())
            operator(file, "identity", "revoke", "dock-7", "--why", "stolen")
            wait_for(lambda: not link.is_alive(), seconds=60, what="the connection is cut")
        wait_for(lambda: refused(devices, credentials), seconds=60, what="the certificate is refused")
        with pytest.raises(RefusedByBridgeError, match="stolen"):
            device.renew()
        kinds = {json.loads(line)["kind"] for line in operator(file, "identity", "events", "--json").splitlines()}
        assert kinds >= {
            "claim-created",
            "no-approved-state",
            "state-approved",
            "enrolled",
            "revoked",
            "revoked-device",
        }


def refused(port: int, credentials: Credentials) -> bool:
    try:
        RawMqtt.connect(port, credentials.context(), "dock-7").close()
    except RefusedByBrokerError:
        return True
    return False
