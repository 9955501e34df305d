"""The listener itself: TLS, a first contact that trusts a fingerprint alone, renewal without a restart."""

import asyncio
import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config, Identity, Store
from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.approvals import Approval, approve
from cloud_bridge.identity.claims import Claim, add_claim, id_of_token, new_token
from cloud_bridge.identity.component import IdentityComponent, ListenerCertificate, open_identities
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.issuer import key_pem, new_key, utc
from cloud_bridge.identity.states import BootState
from gateway.wire.identity import PATH_TRUST, Trust
from gateway.wire.messages import decode
from hil.loopback.children import free_port
from tests.cloud_bridge.identity.kit import Clock
from tests.simulators.attested_device import AttestedDevice, SoftTpm
from tests.simulators.waiting import wait_for


def config_at(directory: Path, **knobs: object) -> Config:
    port = free_port()
    identity = Identity(trust_domain="sluice.test", directory=directory / "id", port=port)
    return Config(
        store=Store(url=f"sqlite:///{directory}/bridge.db"), identity=msgspec.structs.replace(identity, **knobs)
    )


@dataclass
class Running:
    """A listener in a thread of its own."""

    config: Config
    registry: CollectorRegistry

    @property
    def port(self) -> int:
        assert self.config.identity is not None
        return self.config.identity.port

    def connect(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.port, timeout=10, context=context)

    def post(self, bundle: str) -> "object":
        context = ssl.create_default_context(cadata=bundle)

        def send(path: str, body: bytes) -> bytes:
            connection = self.connect(context)
            try:
                connection.request("POST", path, body)
                return connection.getresponse().read()
            finally:
                connection.close()

        return send


@contextmanager
def running(config: Config) -> Iterator[Running]:
    registry = CollectorRegistry()
    started = threading.Event()
    stop: list[object] = []
    failures: list[BaseException] = []

    def serve() -> None:
        async def main() -> None:
            component = IdentityComponent(config, registry, time.time_ns)
            loop = asyncio.get_running_loop()
            stop.append(lambda: loop.call_soon_threadsafe(component.stop))
            started.set()
            await component.run()

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001  # is raised below, in the test's thread
            failures.append(error)
            started.set()

    thread = threading.Thread(target=serve, name="identity-under-test")
    thread.start()
    try:
        started.wait(10)
        found = Running(config, registry)
        wait_for(lambda: failures or _listens(found.port), seconds=10, what="the listener listens")
        yield found
    finally:
        for each in stop:
            assert callable(each)
            each()
        thread.join(15)
        assert not thread.is_alive()
        if failures:
            raise failures[0]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def first_contact(bridge: Running, fingerprint: str) -> str:
    """What a device does that knows no more than its claim code."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    connection = bridge.connect(blind)
    connection.request("GET", PATH_TRUST)
    trust = decode(connection.getresponse().read(), Trust)
    connection.close()
    first = ssl.PEM_cert_to_DER_cert(trust.bundle[: trust.bundle.index("-----END") + 26])
    assert hashlib.sha256(first).hexdigest() == fingerprint, "not the bridge that made the claim code"
    return trust.bundle


def test_a_device_enrols_over_tls_knowing_only_its_claim_code(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    tpm = SoftTpm()
    identities = open_identities(config, time.time_ns)
    token = new_token()
    now_ns = time.time_ns()
    with identities.database.transaction() as tx:
        approve(tx, Approval(BootState("one", tpm.pcrs([4, 7, 11])), now_ns, "a test"))
        add_claim(tx, Claim(id_of_token(token), "dock-7", "token", False, now_ns, now_ns + 10**12, None))
    with running(config) as bridge:
        bundle = first_contact(bridge, identities.ca.services_fingerprint)
        with pytest.raises(AssertionError, match="not the bridge"):
            first_contact(bridge, "0" * 64)
        device = AttestedDevice("dock-7", bridge.post(bundle), tpm)  # type: ignore[arg-type]
        granted = device.enrol(token)
        assert granted.bundle == bundle
        assert bridge.registry.get_sample_value("bridge_identity_attested_total", {"level": "tpm"}) == 1
    identities.database.close()


def test_nobody_connects_who_trusts_another_authority_or_speaks_old_tls(tmp_path: Path) -> None:
    with running(config_at(tmp_path)) as bridge:
        with pytest.raises(ssl.SSLCertVerificationError):
            bridge.connect(ssl.create_default_context()).request("GET", PATH_TRUST)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        old.verify_mode = ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)):
            bridge.connect(old).request("GET", PATH_TRUST)


def test_silent_and_half_open_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    with running(config) as bridge:
        idle = [socket.create_connection(("127.0.0.1", bridge.port)) for _ in range(50)]
        for one in idle[:25]:
            one.sendall(b"\x16\x03\x01\x02\x00half a hello")
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        connection = bridge.connect(blind)
        connection.request("GET", PATH_TRUST)
        assert json.loads(connection.getresponse().read())["trust_domain"] == "sluice.test"
        for one in idle:
            one.close()


def test_the_listeners_certificate_is_renewed_without_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    identities = open_identities(config_at(tmp_path, names=["bridge.example"]), clock)
    certificate = ListenerCertificate(identities)
    file = tmp_path / "id" / "listener.pem"
    first = x509.load_pem_x509_certificate(file.read_bytes())
    certificate.renew(utc(clock()) + timedelta(days=14))
    assert x509.load_pem_x509_certificate(file.read_bytes()) == first
    certificate.renew(utc(clock()) + timedelta(days=16))
    second = x509.load_pem_x509_certificate(file.read_bytes())
    assert second.not_valid_after_utc > first.not_valid_after_utc
    (shown,) = {one["serialNumber"] for one in [_served(certificate.context, identities.ca.services_pem)]}
    assert int(str(shown), 16) == second.serial_number
    identities.database.close()


def _served(context: ssl.SSLContext, authority: bytes, name: str = "bridge.example") -> dict[str, object]:
    """Shake hands in memory; return the certificate that was shown. Times are not looked at."""
    trusting = ssl.create_default_context(cadata=authority.decode())
    trusting.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME: the clock of the test is another
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(5):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = client.getpeercert()
    assert found is not None
    return dict(found)


def test_a_key_that_was_renewed_without_its_certificate_is_made_anew_with_it(tmp_path: Path) -> None:
    identities = open_identities(config_at(tmp_path), Clock())
    ListenerCertificate(identities)
    # As after a power cut between the two files.
    (tmp_path / "id" / "listener-key.pem").write_bytes(key_pem(new_key()))
    certificate = ListenerCertificate(identities)
    assert _served(certificate.context, identities.ca.services_pem, "localhost")
    identities.database.close()


def test_a_changed_name_makes_a_new_certificate_at_the_next_start(tmp_path: Path) -> None:
    clock = Clock()
    config = config_at(tmp_path)
    identities = open_identities(config, clock)
    ListenerCertificate(identities)
    first = (tmp_path / "id" / "listener.pem").read_bytes()
    ListenerCertificate(identities)
    assert (tmp_path / "id" / "listener.pem").read_bytes() == first
    identities.database.close()
    assert config.identity is not None
    renamed = msgspec.structs.replace(
        config, identity=msgspec.structs.replace(config.identity, names=["bridge.example"])
    )
    again = open_identities(renamed, clock)
    ListenerCertificate(again)
    assert (tmp_path / "id" / "listener.pem").read_bytes() != first
    again.database.close()


def test_a_bridge_with_other_authorities_on_the_same_database_is_refused(tmp_path: Path) -> None:
    clock = Clock()
    config = config_at(tmp_path)
    open_identities(config, clock).database.close()
    for name in ("devices-ca-key.pem", "devices-ca.pem"):
        (tmp_path / "id" / name).unlink()
    with pytest.raises(IdentityError, match="copy the files"):
        open_identities(config, clock)


def test_control_without_that_look_devices_would_get_certificates_of_two_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_bridge.identity.component._agree", lambda *_: None)
    clock = Clock()
    config = config_at(tmp_path)
    first = open_identities(config, clock)
    first.database.close()
    for name in ("devices-ca-key.pem", "devices-ca.pem"):
        (tmp_path / "id" / name).unlink()
    second = open_identities(config, clock)
    second.database.close()
    assert first.ca.bundle_pem != second.ca.bundle_pem


def test_without_the_section_there_is_nothing_to_open() -> None:
    with pytest.raises(ConfigError, match="trust_domain"):
        open_identities(Config(), Clock())


def test_roots_that_are_no_certificates_are_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ek_roots"):
        IdentityComponent(config_at(tmp_path, ek_roots=tmp_path / "nowhere"), CollectorRegistry(), Clock())
    (tmp_path / "root.pem").write_text("-----BEGIN CERTIFICATE-----\njunk\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match=r"root\.pem"):
        IdentityComponent(config_at(tmp_path, ek_roots=tmp_path), CollectorRegistry(), Clock())
