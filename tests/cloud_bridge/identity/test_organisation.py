"""An organisation's own authority, of OpenSSL, with the real bridge and the real mosquitto: in, renewed, out."""

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import structlog
from cryptography import x509
from prometheus_client import CollectorRegistry

from cloud_bridge.identity.broker import BrokerFiles, BrokerPlan, with_denied
from cloud_bridge.identity.devices import Device, denied_gateways, note_certificate, put_device, revoke_device
from cloud_bridge.identity.foreign import Certificates, ForeignIssuer
from cloud_bridge.identity.issuer import CertificateRequest, Issued, Key, key_pem, life_from, new_key
from cloud_bridge.identity.keeper import Keeper
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.signing_command import CommandSigner
from gateway.wire.identity import Granted, claim_code
from tests.cloud_bridge.identity.brokers import SecuredBroker, secured_broker
from tests.cloud_bridge.identity.test_end_to_end import (
    BRIDGE,
    free_ports,
    listens,
    mqtt_credentials,
    operator,
    process,
    refused,
)
from tests.simulators.attested_device import AttestedDevice, Post, RefusedByBridgeError, SoftTpm, csr_of
from tests.simulators.mosquitto import BINARY
from tests.simulators.organisation_ca import OrganisationCa, missing
from tests.simulators.raw_mqtt import Credentials, RawMqtt, RefusedByBrokerError
from tests.simulators.waiting import wait_for

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

NOT_AUTHORIZED = 0x87
DELIVERED = {0, 0x10}  # 0x10: nobody has subscribed
RECORDS = "sluice/v1/{}/records/event"


@pytest.fixture
def organisation(tmp_path: Path) -> OrganisationCa:
    return OrganisationCa(tmp_path / "organisation")


# ---- openssl signs, the bridge checks ------------------------------------------------------------------------


def asked(gateway: str = "dock-7", key: Key | None = None) -> CertificateRequest:
    key = key or new_key()
    life = life_from(datetime.now(UTC), seconds=3600, backdate_seconds=120)
    name = f"spiffe://sluice.test/gateway/{gateway}"
    return CertificateRequest(gateway, name, csr_of(key, gateway), key.public_key(), life)


def issuer_of(organisation: OrganisationCa, kind: type[ForeignIssuer] = ForeignIssuer) -> ForeignIssuer:
    anchors = Certificates(organisation.anchors, "trust_anchors")
    return kind(CommandSigner(organisation.command, 20.0), anchors, revocations=organisation.list)


def test_what_openssl_signs_by_the_documented_script_is_taken(organisation: OrganisationCa) -> None:
    issued = issuer_of(organisation).certify(asked())
    names = [one.subject.rfc4514_string() for one in x509.load_pem_x509_certificates(issued.chain_pem)]
    assert names == ["CN=dock-7", "CN=Example Devices"]


def test_the_spiffe_library_takes_what_openssl_has_signed(organisation: OrganisationCa) -> None:
    spiffe = pytest.importorskip("spiffe", reason="spiffe is not installed: pip install spiffe")
    key = new_key()
    issued = issuer_of(organisation).certify(asked("dock-7", key))
    svid = spiffe.X509Svid.parse(issued.chain_pem, key_pem(key))
    assert str(svid.spiffe_id) == "spiffe://sluice.test/gateway/dock-7"


# ---- who is revoked, at a broker ---------------------------------------------------------------------------


class Silent(ForeignIssuer):
    """The protection off: the bridge would leave it to the authority to take certificates back."""

    @property
    def lists_revoked(self) -> bool:
        return True


def keeper_of(broker: SecuredBroker) -> Keeper:
    metrics = IdentityMetrics(CollectorRegistry())
    return Keeper(
        broker.database, metrics, root="sluice", event_days=1.0, files=broker.files, broker_pid_file=broker.pid_file
    )


def certified(broker: SecuredBroker, issuer: ForeignIssuer, gateway: str) -> tuple[Issued, Credentials]:
    key = new_key()
    issued = issuer.certify(asked(gateway, key))
    now_ns = time.time_ns()
    with broker.database.transaction() as tx:
        put_device(
            tx, Device(gateway, "tpm", "", False, gateway.encode(), b"", "", "", "", now_ns, now_ns, now_ns + 10**12)
        )
        note_certificate(tx, gateway, issued, now_ns)
    return issued, broker.credentials(issued, key_pem(key))


def says(broker: SecuredBroker, credentials: Credentials, gateway: str) -> int | None:
    with broker.connect(credentials, f"sluice-{gateway}") as link:
        return link.publish(RECORDS.format(gateway), b"{}")


@pytest.mark.parametrize("protected", [True, False])
def test_a_revoked_device_may_say_nothing_also_where_no_list_names_it(
    organisation: OrganisationCa, tmp_path: Path, protected: bool
) -> None:
    issuer = issuer_of(organisation, ForeignIssuer if protected else Silent)
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        keeper = keeper_of(broker)
        keeper.round()
        _, thief = certified(broker, issuer, "gw-a")
        _, other = certified(broker, issuer, "gw-b")
        with broker.connect(thief, "sluice-gw-a", clean=False) as connected:
            assert connected.publish(RECORDS.format("gw-a"), b"{}") in DELIVERED
            with broker.database.transaction() as tx:
                revoke_device(tx, "gw-a", "stolen", time.time_ns())
            keeper.round()
            if not protected:
                assert says(broker, thief, "gw-a") in DELIVERED
                return
            wait_for(
                lambda: connected.publish(RECORDS.format("gw-a"), b"{}") == NOT_AUTHORIZED,
                what="the connection it has is worth nothing",
            )
        assert says(broker, thief, "gw-a") == NOT_AUTHORIZED
        with broker.bridge() as bridge, broker.connect(thief, "sluice-gw-a") as link:
            link.subscribe("sluice/v1/gw-a/ack/+")
            bridge.publish("sluice/v1/gw-a/ack/event", b"secret")
            link.ping()
            assert link.received == []
        assert says(broker, other, "gw-b") in DELIVERED


def test_a_name_is_free_again_when_what_was_revoked_has_expired(organisation: OrganisationCa, tmp_path: Path) -> None:
    issuer = issuer_of(organisation)
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        own = (broker.directory / "acl").read_text() + "user monitoring\ntopic read sluice/#\n"
        (broker.directory / "acl").write_text(own)
        certified(broker, issuer, "gw-a")
        with broker.database.transaction() as tx:
            revoke_device(tx, "gw-a", "stolen", time.time_ns())
        keeper_of(broker).round()
        assert "user gw-a\ntopic deny #\n" in (broker.directory / "acl").read_text()
        later = time.time_ns() + 2 * 3600 * 10**9
        metrics = IdentityMetrics(CollectorRegistry())
        Keeper(broker.database, metrics, root="sluice", event_days=1.0, files=broker.files, clock=lambda: later).round()
        assert (broker.directory / "acl").read_text() == own  # what an operator has added is still there


def test_a_bridge_that_was_killed_before_it_could_tell_the_broker_tells_it_at_its_start(
    organisation: OrganisationCa, tmp_path: Path
) -> None:
    issuer = issuer_of(organisation)
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        keeper_of(broker).round()
        _, thief = certified(broker, issuer, "gw-a")
        broker.files.write_denied(["gw-a"])  # and there the bridge ends, and with it what it knew
        with broker.database.transaction() as tx:
            revoke_device(tx, "gw-a", "stolen", time.time_ns())
        assert says(broker, thief, "gw-a") in DELIVERED
        keeper_of(broker).round()
        wait_for(lambda: says(broker, thief, "gw-a") == NOT_AUTHORIZED, what="the broker has read its rules")


def test_files_that_are_written_anew_deny_whom_the_old_ones_denied(
    organisation: OrganisationCa, tmp_path: Path
) -> None:
    """`broker-config` run again, with the bridge away: nobody would put the names back before it is there."""
    issuer, now = issuer_of(organisation), datetime.now(UTC)
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        certified(broker, issuer, "gw-a")
        with broker.database.transaction() as tx:
            revoke_device(tx, "gw-a", "stolen", time.time_ns())
            denied = denied_gateways(tx, time.time_ns())
        plan = BrokerPlan(broker.directory, ("localhost",))
        broker.files.write_all(plan, [], now, denied)
        assert "user gw-a\ntopic deny #\n" in (broker.directory / "acl").read_text()
        # The control, and where a list tells of them: no names.
        broker.files.write_all(plan, [], now)
        assert "deny" not in (broker.directory / "acl").read_text()
        BrokerFiles(broker.directory, broker.ca, broker.ca, server_seconds=86_400).write_all(plan, [], now, denied)
        assert "deny" not in (broker.directory / "acl").read_text()


def test_rules_that_deny_go_when_the_bridge_signs_devices_itself_again(tmp_path: Path) -> None:
    with secured_broker(tmp_path / "broker") as broker:
        acl = broker.directory / "acl"
        before = acl.read_text()
        acl.write_text(with_denied(before, ["gw-a"]))
        assert broker.files.write_denied(["gw-a"])
        assert acl.read_text() == before


def test_the_organisations_list_reaches_the_broker(organisation: OrganisationCa, tmp_path: Path) -> None:
    issuer = issuer_of(organisation)
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        keeper = keeper_of(broker)
        issued, stolen = certified(broker, issuer, "gw-a")
        _, other = certified(broker, issuer, "gw-b")
        keeper.round()
        assert says(broker, stolen, "gw-a") in DELIVERED
        organisation.revoke(issued.serial)
        assert says(broker, stolen, "gw-a") in DELIVERED  # the control: before the bridge has handed the list on
        keeper.round()
        wait_for(lambda: is_refused(broker, stolen), what="the broker has read the list")
        assert says(broker, other, "gw-b") in DELIVERED


def is_refused(broker: SecuredBroker, credentials: Credentials) -> bool:
    try:
        broker.connect(credentials, "gw-a").close()
    except RefusedByBrokerError:
        return True
    return False


def test_a_list_that_has_run_out_leaves_the_broker_with_the_one_it_has(
    organisation: OrganisationCa, tmp_path: Path
) -> None:
    issuer = issuer_of(organisation)
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        keeper = keeper_of(broker)
        _, device = certified(broker, issuer, "gw-a")
        keeper.round()
        organisation.write_list(seconds=1)
        until = x509.load_pem_x509_crl(organisation.list.read_bytes()).next_update_utc
        assert until is not None
        wait_for(lambda: datetime.now(UTC) > until, what="the list has run out")
        keeper.round()
        broker.hang_up()
        assert says(broker, device, "gw-a") in DELIVERED


def test_control_a_list_that_has_run_out_would_lock_everybody_out(organisation: OrganisationCa, tmp_path: Path) -> None:
    issuer = issuer_of(organisation)
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        _, device = certified(broker, issuer, "gw-a")
        organisation.write_list(seconds=1)
        until = x509.load_pem_x509_crl(organisation.list.read_bytes()).next_update_utc
        assert until is not None
        (broker.directory / "crl.pem").write_bytes(organisation.list.read_bytes())
        wait_for(lambda: datetime.now(UTC) > until, what="the list has run out")
        broker.hang_up()
        wait_for(lambda: is_refused(broker, device), what="it is locked out")


def test_a_broker_believes_new_roots_when_it_is_started_again(organisation: OrganisationCa, tmp_path: Path) -> None:
    newer = OrganisationCa(tmp_path / "newer")
    issuer = ForeignIssuer(CommandSigner(newer.command, 20.0), Certificates(organisation.anchors, "trust_anchors"))
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        keeper = keeper_of(broker)
        organisation.anchors.write_bytes(organisation.anchors.read_bytes() + newer.anchors.read_bytes())
        _, device = certified(broker, issuer, "gw-a")
        with structlog.testing.capture_logs() as told:
            keeper.round()
            keeper.round()
        assert [one["event"] for one in told if one["event"] == "authority_changed"] == ["authority_changed"]
        broker.hang_up()
        assert is_refused(broker, device)  # the control: SIGHUP does not do it, which is why it is told
        broker.restart()
        assert says(broker, device, "gw-a") in DELIVERED


def test_a_broker_learns_of_new_intermediates_from_the_devices(organisation: OrganisationCa, tmp_path: Path) -> None:
    issuer = ForeignIssuer(
        CommandSigner(organisation.command, 20.0), Certificates(organisation.anchors, "trust_anchors")
    )
    with secured_broker(tmp_path / "broker", issuer=issuer) as broker:
        organisation.renew_intermediate()
        _, device = certified(broker, issuer, "gw-a")
        keeper_of(broker).round()
        assert says(broker, device, "gw-a") in DELIVERED


# ---- everything together -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """The bridge and the broker as an operator sets them up."""

    config: Path
    devices: int
    post: Post
    directory: Path

    def device(self, name: str) -> AttestedDevice:
        return AttestedDevice(name, self.post, SoftTpm())

    def enrolled(self, name: str) -> tuple[AttestedDevice, Credentials]:
        code = claim_code(json.loads(operator(self.config, "identity", "token", "create", name, "--json"))["code"])
        assert code is not None
        device = self.device(name)
        with pytest.raises(RefusedByBridgeError) as caught:
            device.enrol(code.token)
        assert caught.value.refusal.code in {"no-approved-state", "wrong-pcr"}
        refusal = caught.value.refusal.refusal_id
        operator(self.config, "identity", "states", "add", f"of-{name}", "--from-refusal", refusal)
        return device, self.credentials(device, device.enrol(code.token))

    def credentials(self, device: AttestedDevice, granted: Granted) -> Credentials:
        place = self.directory / f"{device.gateway}-{granted.not_after_ns}-{time.monotonic_ns()}"
        place.mkdir()
        return mqtt_credentials(device, granted, place)


@contextmanager
def running(organisation: OrganisationCa, tmp_path: Path) -> Iterator[Running]:
    https, devices, services = free_ports(3)
    broker, file = tmp_path / "broker", tmp_path / "bridge.yaml"
    file.write_text(
        f"""
store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}
console: {{enabled: false}}
brokers:
  - {{url: 'mqtts://localhost:{services}', ca_file: {broker}/services-ca.pem,
     certificate_file: {broker}/bridge.pem, key_file: {broker}/bridge-key.pem}}
identity:
  trust_domain: sluice.test
  directory: {tmp_path}/id
  port: {https}
  broker_directory: {broker}
  broker_pid_file: {tmp_path}/pid
  issuer: {{type: command, command: {json.dumps(organisation.command)}, trust_anchors: {organisation.anchors}}}
"""
    )
    ports = ("--device-port", str(devices), "--device-address", "127.0.0.1", "--service-port", str(services))
    operator(file, "broker-config", "--out", str(broker), *ports, "--state-directory", str(tmp_path))
    conf = broker / "mosquitto.conf"
    assert "\ncrlfile" not in conf.read_text()
    conf.write_text(f"user root\npid_file {tmp_path}/pid\n" + conf.read_text())
    tls = {"OPENSSL_CONF": str(broker / "openssl.cnf")}
    with (
        process([BINARY or "mosquitto", "-c", str(conf)], tmp_path / "mosquitto.log", tls),
        process([*BRIDGE, "run", "--config", str(file)], tmp_path / "bridge.log", {}),
    ):
        wait_for(lambda: listens(https) and listens(devices), seconds=60, what="bridge and broker listen")
        context = ssl.create_default_context(cadata=operator(file, "identity", "ca"))

        def post(path: str, body: bytes) -> bytes:
            request = Request(f"https://localhost:{https}{path}", data=body)
            try:
                with urlopen(request, context=context, timeout=30) as answer:
                    return bytes(answer.read())
            except OSError as error:
                read = getattr(error, "read", None)  # HTTPError: an answer all the same
                if read is None:
                    raise
                return bytes(read())

        yield Running(file, devices, post, tmp_path)


@pytest.mark.slow
def test_devices_of_an_organisations_authority_come_in_go_on_without_it_and_are_put_out(
    organisation: OrganisationCa, tmp_path: Path
) -> None:
    with running(organisation, tmp_path) as site:
        device, credentials = site.enrolled("dock-7")
        leaf = x509.load_pem_x509_certificate(credentials.certificate.read_bytes())
        assert leaf.issuer.rfc4514_string() == "CN=Example Devices"
        assert "signed by: command" in operator(site.config, "identity", "status")
        with RawMqtt.connect(site.devices, credentials.context(), "sluice-dock-7") as link:
            assert link.publish(RECORDS.format("dock-7"), b"{}") in DELIVERED

            # The authority is away: what is there goes on, and nothing is lost by having asked.
            organisation.config.rename(organisation.home / "away")
            with pytest.raises(RefusedByBridgeError, match="unavailable") as caught:
                device.renew()
            told = operator(site.config, "identity", "events", "--gateway", "dock-7", "--json")
            assert caught.value.refusal.refusal_id in told
            assert "openssl-ca.sh ended with exit status" in told
            assert link.publish(RECORDS.format("dock-7"), b"{}") in DELIVERED
            (organisation.home / "away").rename(organisation.config)
            renewed = site.credentials(device, device.renew())
            RawMqtt.connect(site.devices, renewed.context(), "sluice-dock-7").close()
            assert "authority_works_again" in (tmp_path / "bridge.log").read_text()

        with RawMqtt.connect(site.devices, renewed.context(), "sluice-dock-7") as link:
            assert link.publish(RECORDS.format("dock-7"), b"{}") in DELIVERED
            operator(site.config, "identity", "revoke", "dock-7", "--why", "stolen")
            wait_for(lambda: not link.is_alive(), seconds=60, what="the connection is cut")
        wait_for(lambda: is_denied(site.devices, renewed), seconds=60, what="it may say nothing any more")
        assert not refused(site.devices, renewed)  # TLS alone would still let it in: there is no list
        with pytest.raises(RefusedByBridgeError, match="stolen"):
            device.renew()


def is_denied(port: int, credentials: Credentials) -> bool:
    with RawMqtt.connect(port, credentials.context(), "sluice-dock-7") as link:
        return link.publish(RECORDS.format("dock-7"), b"{}") == NOT_AUTHORIZED
