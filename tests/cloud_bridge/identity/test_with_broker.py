"""A real mosquitto with our configuration: who gets in, who can be whom; and what happens without each protection."""

import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Ingest
from cloud_bridge.identity.devices import Device, note_certificate, put_device, revoke_device, revoked_certificates
from cloud_bridge.identity.issuer import BRIDGE_NAME, LocalCa
from cloud_bridge.identity.keeper import Keeper
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.takeover import SessionCutter, Takeover
from cloud_bridge.ingest.consumer import Consumer, Link
from cloud_bridge.metrics import Metrics
from tests.cloud_bridge.identity.brokers import SecuredBroker, same, secured_broker, wait_until, without
from tests.simulators.mosquitto import BINARY
from tests.simulators.raw_mqtt import Credentials, RawMqtt, RefusedByBrokerError
from tests.simulators.waiting import wait_for

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]

NOT_AUTHORIZED = 0x87
TAKEN_OVER = "Client {} already connected, closing old connection"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def everything_allowed(_: str) -> str:
    return "pattern readwrite #\n"


# ---- one device cannot be another --------------------------------------------------------------------


def test_a_device_reaches_the_bridge_and_hears_its_acknowledgements(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker, broker.bridge() as bridge, broker.device("gw-a") as device:
        bridge.subscribe("sluice/v1/+/records/+")
        device.subscribe("sluice/v1/gw-a/ack/+")
        for name in ("records/event", "event/p", "status/p", "measure/p", "availability/gateway", "twin/reported"):
            assert device.publish(f"sluice/v1/gw-a/{name}", b"{}") in {0, 0x10}
        bridge.ping()
        assert [topic for topic, _ in bridge.received] == ["sluice/v1/gw-a/records/event"]
        assert bridge.publish("sluice/v1/gw-a/ack/event", b"mark", retain=True) == 0
        device.ping()
        assert device.received == [("sluice/v1/gw-a/ack/event", b"mark")]


def test_parts_of_releases_reach_the_device_that_asked_and_nobody_else(tmp_path: Path) -> None:
    with (
        secured_broker(tmp_path) as broker,
        broker.bridge() as bridge,
        broker.device("gw-a") as device,
        broker.device("gw-b") as other,
    ):
        bridge.subscribe("sluice/v1/+/ota/request")
        device.subscribe("sluice/v1/gw-a/ota/reply")
        other.subscribe("sluice/v1/+/ota/+")
        assert device.publish("sluice/v1/gw-a/ota/request", b"{}") in {0, 0x10}
        bridge.ping()
        assert bridge.received == [("sluice/v1/gw-a/ota/request", b"{}")]
        assert bridge.publish("sluice/v1/gw-a/ota/reply", b"part") == 0
        device.ping()
        other.ping()
        assert device.received == [("sluice/v1/gw-a/ota/reply", b"part")]
        assert other.received == []
        # Nobody but the bridge answers, and nobody asks in another's name.
        assert other.publish("sluice/v1/gw-a/ota/reply", b"forged") == NOT_AUTHORIZED
        assert other.publish("sluice/v1/gw-a/ota/request", b"{}") == NOT_AUTHORIZED
        assert device.publish("sluice/v1/gw-a/ota/reply", b"forged") == NOT_AUTHORIZED


@pytest.mark.parametrize("protected", [True, False])
def test_a_device_cannot_write_as_another(tmp_path: Path, *, protected: bool) -> None:
    with (
        secured_broker(tmp_path, acl=same if protected else everything_allowed) as broker,
        broker.bridge() as bridge,
        broker.device("gw-a") as attacker,
    ):
        bridge.subscribe("sluice/v1/+/records/+")
        bridge.subscribe("sluice/v1/+/twin/+")
        topics = ("sluice/v1/gw-b/records/event", "sluice/v1/gw-a/twin/desired", "other/gw-a/records/event")
        codes = {attacker.publish(topic, b"{}") for topic in topics}
        bridge.ping()
        if protected:
            assert codes == {NOT_AUTHORIZED}
            assert bridge.received == []
        else:
            assert {topic for topic, _ in bridge.received} == {*topics[:2]}


@pytest.mark.parametrize("protected", [True, False])
def test_a_device_cannot_read_what_is_for_another(tmp_path: Path, *, protected: bool) -> None:
    with (
        secured_broker(tmp_path, acl=same if protected else everything_allowed) as broker,
        broker.bridge() as bridge,
        broker.device("gw-a") as attacker,
        broker.device("gw-b") as victim,
    ):
        bridge.publish("sluice/v1/gw-b/ack/event", b"retained", retain=True)
        for topic_filter in ("#", "sluice/v1/gw-b/#", "sluice/v1/+/records/+", "$share/bridge/sluice/v1/+/records/+"):
            attacker.subscribe(topic_filter)  # mosquitto 2.0 grants it and delivers nothing
        victim.publish("sluice/v1/gw-b/records/event", b"secret")
        bridge.publish("sluice/v1/gw-b/twin/desired", b"secret")
        bridge.publish("sluice/v1/gw-a/ack/event", b"mine")
        attacker.ping()
        topics = {topic for topic, _ in attacker.received}
        assert topics <= {"sluice/v1/gw-a/ack/event"} if protected else "sluice/v1/gw-b/ack/event" in topics


@pytest.mark.parametrize("protected", [True, False])
def test_a_device_cannot_take_anothers_session_over(tmp_path: Path, *, protected: bool) -> None:
    conf = same if protected else without("use_username_as_clientid")
    with (
        secured_broker(tmp_path, conf=conf) as broker,
        broker.device("gw-b", clean=False) as victim,
        broker.device("gw-a", client_id="sluice-gw-b"),
        broker.device("gw-a", client_id="gw-b"),
    ):
        if protected:
            assert victim.is_alive()
        else:
            assert not victim.is_alive()
            assert TAKEN_OVER.format("sluice-gw-b") in broker.log


@pytest.mark.parametrize("protected", [True, False])
def test_a_devices_certificate_is_not_let_in_where_the_bridge_is(tmp_path: Path, *, protected: bool) -> None:
    conf = same if protected else lambda text: text.replace("services-ca.pem", "devices-ca.pem")
    with secured_broker(tmp_path, conf=conf) as broker, broker.device("gw-b") as victim:
        _, credentials = broker.issue("gw-a")
        if protected:
            with pytest.raises(RefusedByBrokerError):
                broker.connect(credentials, "gw-b", port=broker.service_port)
            assert victim.is_alive()
        else:
            with broker.connect(credentials, "gw-b", port=broker.service_port):
                assert not victim.is_alive()


@pytest.mark.parametrize("protected", [True, False])
def test_a_gateway_named_like_the_bridge_does_not_become_it(tmp_path: Path, *, protected: bool) -> None:
    """The bridge's name holds `_`, which no gateway's can; without it, a gateway could be named so."""
    acl = same if protected else lambda text: text.replace(f"user {BRIDGE_NAME}", "user bridge")
    with secured_broker(tmp_path, acl=acl) as broker, broker.device("bridge") as device:
        code = device.publish("sluice/v1/gw-b/ack/event", b"{}")
        assert (code == NOT_AUTHORIZED) is protected


def test_the_brokers_own_certificate_lets_nobody_in_as_a_client(tmp_path: Path) -> None:
    """Who has broken into the broker has its key; it is for a server."""
    with secured_broker(tmp_path) as broker:
        own = Credentials(tmp_path / "broker.pem", tmp_path / "broker-key.pem", tmp_path / "services-ca.pem")
        for port in (broker.device_port, broker.service_port):
            with pytest.raises(RefusedByBrokerError):
                broker.connect(own, "localhost", port=port)
        # The control: the same authority has signed the bridge's, and that is for a client.
        broker.bridge().close()


def test_a_packet_beyond_the_limit_ends_the_connection(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker, broker.device("gw-a") as device:
        assert device.publish("sluice/v1/gw-a/records/event", bytes(60_000)) in {0, 0x10}
        wait_for(lambda: _is_thrown_out(device), what="the broker ends the connection")


def _is_thrown_out(device: RawMqtt) -> bool:
    try:
        device.publish("sluice/v1/gw-a/records/event", bytes(100_000))
    except (OSError, ssl.SSLError):
        return True
    return device.disconnected is not None


# ---- certificates that do not hold ---------------------------------------------------------------------


def test_foreign_expired_early_and_missing_certificates_are_refused(tmp_path: Path) -> None:
    foreign = LocalCa.open(tmp_path / "foreign", "sluice.test", datetime.now(UTC))
    with secured_broker(tmp_path / "broker") as broker:
        for issued in (
            broker.issue("gw-a", ca=foreign),
            broker.issue("gw-a", starts=-7200, seconds=-3600),
            broker.issue("gw-a", starts=3600, seconds=7200),
        ):
            with pytest.raises(RefusedByBrokerError):
                broker.connect(issued[1], "gw-a")
        bare = ssl.create_default_context(cafile=str(broker.directory / "services-ca.pem"))
        with pytest.raises(RefusedByBrokerError):
            RawMqtt.connect(broker.device_port, bare, "gw-a")
        broker.device("gw-a").close()  # a good one is let in


def test_without_the_checks_of_certificates_those_would_be_let_in(tmp_path: Path) -> None:
    foreign = LocalCa.open(tmp_path / "foreign", "sluice.test", datetime.now(UTC))

    def lax(text: str) -> str:
        both = tmp_path / "both.pem"
        own = (tmp_path / "broker" / "devices-ca.pem").read_bytes()
        both.write_bytes(own + foreign.bundle_pem)
        text = text.replace(f"cafile {tmp_path}/broker/devices-ca.pem", f"cafile {both}")
        return without("crlfile")(text)

    with secured_broker(tmp_path / "broker", conf=lax) as broker:
        broker.connect(broker.issue("gw-a", ca=foreign)[1], "gw-a").close()


@pytest.mark.parametrize("protected", [True, False])
def test_a_revoked_certificate_is_refused_once_the_broker_has_read_the_list(tmp_path: Path, *, protected: bool) -> None:
    with secured_broker(tmp_path, conf=same if protected else without("crlfile")) as broker:
        issued, credentials = broker.issue("gw-a")
        broker.connect(credentials, "gw-a").close()
        revoke(broker, "gw-a", issued)
        broker.hang_up()
        if protected:
            with pytest.raises(RefusedByBrokerError):
                broker.connect(credentials, "gw-a")
            broker.device("gw-b").close()
        else:
            broker.connect(credentials, "gw-a").close()


def revoke(broker: SecuredBroker, gateway: str, issued: object) -> None:
    now_ns = time.time_ns()
    with broker.database.transaction() as tx:
        enrol(tx, gateway, now_ns)
        note_certificate(tx, gateway, issued, now_ns)  # type: ignore[arg-type]
        revoke_device(tx, gateway, "a test", now_ns)
        broker.files.write_crl(revoked_certificates(tx, now_ns), datetime.now(UTC))


def enrol(tx: object, gateway: str, now_ns: int, *, until_ns: int | None = None) -> None:
    device = Device(
        gateway=gateway,
        level="tpm",
        ek_digest="",
        ek_trusted=False,
        ak_public=b"",
        recipient=b"",
        state="",
        version="",
        address="",
        enrolled_ns=now_ns,
        attested_ns=now_ns,
        certified_until_ns=until_ns or now_ns + 3600 * 10**9,
    )
    put_device(tx, device)  # type: ignore[arg-type]


def older_tls(text: str) -> str:
    """Let TLS 1.2 in, too: of the configuration of mosquitto, and of OpenSSL's."""
    return text.replace("tls_version tlsv1.3", "tls_version tlsv1.2").replace("TLSv1.3\n", "TLSv1.2\n")


@contextmanager
def a_broker_that_resumes(directory: Path, version: ssl.TLSVersion) -> Iterator[SecuredBroker]:
    """Start one without the protection: with tickets, or, for TLS 1.2, without them but with that version let in."""
    is_old = version is ssl.TLSVersion.TLSv1_2
    with secured_broker(directory, conf=older_tls if is_old else same, openssl=older_tls if is_old else None) as broker:
        yield broker


def made_session(broker: SecuredBroker, context: ssl.SSLContext) -> ssl.SSLSession:
    """Connect, say goodbye, and return what TLS may resume."""
    first = RawMqtt.connect(broker.device_port, context, "gw-a")
    session = first.link.session
    first.say_goodbye()
    assert session is not None
    return session


def test_a_client_of_an_older_tls_is_refused(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker:
        for port, credentials in ((broker.device_port, broker.issue("gw-a")[1]), (broker.service_port, broker.own)):
            with pytest.raises(RefusedByBrokerError, match="version"):
                RawMqtt.connect(port, credentials.context(ssl.TLSVersion.TLSv1_2), "gw-a")
            RawMqtt.connect(port, credentials.context(ssl.TLSVersion.TLSv1_3), "gw-a").close()


def test_an_expired_certificate_is_refused_also_on_resumption(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker:
        issued, credentials = broker.issue("gw-a", seconds=3)
        context = credentials.context()
        session = made_session(broker, context)
        wait_until(issued.not_after)
        for offered in (None, session):
            with pytest.raises(RefusedByBrokerError):
                RawMqtt.connect(broker.device_port, context, "gw-a", session=offered)


@pytest.mark.parametrize("version", VERSIONS)
def test_where_tls_resumes_an_expired_certificate_would_be_let_in(tmp_path: Path, version: ssl.TLSVersion) -> None:
    with a_broker_that_resumes(tmp_path, version) as broker:
        issued, credentials = broker.issue("gw-a", seconds=3)
        context = credentials.context(version)
        session = made_session(broker, context)
        wait_until(issued.not_after)
        with pytest.raises(RefusedByBrokerError):
            RawMqtt.connect(broker.device_port, credentials.context(version), "gw-a")
        with RawMqtt.connect(broker.device_port, context, "gw-a", session=session) as again:
            assert again.link.session_reused


def test_a_revoked_certificate_is_refused_also_on_resumption(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker:
        issued, credentials = broker.issue("gw-a")
        context = credentials.context()
        session = made_session(broker, context)
        revoke(broker, "gw-a", issued)
        broker.hang_up()
        with pytest.raises(RefusedByBrokerError):
            RawMqtt.connect(broker.device_port, context, "gw-a", session=session)


@pytest.mark.parametrize("version", VERSIONS)
def test_where_tls_resumes_the_list_alone_keeps_nobody_out(tmp_path: Path, version: ssl.TLSVersion) -> None:
    with a_broker_that_resumes(tmp_path, version) as broker:
        issued, credentials = broker.issue("gw-a")
        context = credentials.context(version)
        session = made_session(broker, context)
        revoke(broker, "gw-a", issued)  # the broker's memory of sessions goes with SIGHUP, which makes a new context
        with RawMqtt.connect(broker.device_port, context, "gw-a", session=session) as again:
            assert again.link.session_reused


# ---- connections that must end -------------------------------------------------------------------------


def keeper_of(broker: SecuredBroker, *, cuts: bool) -> Keeper:
    return Keeper(
        broker.database,
        IdentityMetrics(CollectorRegistry()),
        root="sluice",
        event_days=1.0,
        files=broker.files,
        broker_pid_file=broker.pid_file,
        cutters=[SessionCutter(broker.broker_settings())] if cuts else [],
    )


@pytest.mark.parametrize("protected", [True, False])
def test_the_connection_of_a_revoked_device_ends_within_a_minute(tmp_path: Path, *, protected: bool) -> None:
    with secured_broker(tmp_path) as broker, broker.bridge() as bridge, broker.device("gw-b") as other:
        bridge.subscribe("sluice/v1/+/availability/gateway")
        issued, credentials = broker.issue("gw-a")
        keeper = keeper_of(broker, cuts=protected)
        keeper.round()
        with broker.connect(credentials, "sluice-gw-a", clean=False) as device:
            now_ns = time.time_ns()
            with broker.database.transaction() as tx:
                enrol(tx, "gw-a", now_ns)
                note_certificate(tx, "gw-a", issued, now_ns)
                revoke_device(tx, "gw-a", "stolen", now_ns)
            started = time.monotonic()
            keeper.round()
            if not protected:
                assert device.publish("sluice/v1/gw-a/records/event", b"still here") in {0, 0x10}
                return
            assert not device.is_alive()
            assert TAKEN_OVER.format("gw-a") in broker.log
            assert time.monotonic() - started < 60
        bridge.ping()
        assert [topic for topic, payload in bridge.received if b"offline" in payload] == [
            "sluice/v1/gw-a/availability/gateway"
        ]
        wait_for(lambda: _is_refused(broker, credentials), seconds=10, what="the list has been read")
        assert other.is_alive()


def _is_refused(broker: SecuredBroker, credentials: object) -> bool:
    try:
        broker.connect(credentials, "gw-a").close()  # type: ignore[arg-type]
    except RefusedByBrokerError:
        return True
    return False


@pytest.mark.parametrize("protected", [True, False])
def test_a_connection_ends_with_the_certificate_it_was_made_with(tmp_path: Path, *, protected: bool) -> None:
    with secured_broker(tmp_path) as broker:
        issued, credentials = broker.issue("gw-a", seconds=3)
        with broker.connect(credentials, "gw-a", clean=False) as device:
            now_ns = time.time_ns()
            with broker.database.transaction() as tx:
                enrol(tx, "gw-a", now_ns, until_ns=int(issued.not_after.timestamp()) * 10**9)
                note_certificate(tx, "gw-a", issued, now_ns)
            keeper = keeper_of(broker, cuts=protected)
            keeper.round()
            assert device.is_alive()
            wait_until(issued.not_after)
            keeper.round()
            assert device.is_alive() is not protected


def test_a_device_that_has_renewed_comes_back_to_its_session(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker, broker.bridge() as bridge:
        device = broker.device("gw-a", clean=False)
        device.subscribe("sluice/v1/gw-a/ack/+")
        cutter = SessionCutter(broker.broker_settings())
        cutter.cut(Takeover("gw-a", banned=False, at="", root="sluice"))
        assert not device.is_alive()
        bridge.publish("sluice/v1/gw-a/ack/event", b"meanwhile")
        with broker.device("gw-a", clean=False) as again:
            again.ping()
            assert again.received == [("sluice/v1/gw-a/ack/event", b"meanwhile")]


def test_ending_the_connection_of_a_device_that_is_not_there_does_no_harm(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker:
        SessionCutter(broker.broker_settings()).cut(Takeover("gw-a", banned=True, at="", root="sluice"))


# ---- the bridge itself ---------------------------------------------------------------------------------


def test_several_connections_of_the_bridge_work_beside_each_other(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker, broker.device("gw-a") as device:
        settings, metrics = Ingest(workers=2), Metrics()
        consumers = [
            Consumer(Link(f"bridge-{number}", broker.broker_settings(), None, watches_fleet=False), settings, metrics)
            for number in range(2)
        ]
        try:
            for consumer in consumers:
                consumer.start()
            wait_for(lambda: all(one.connected for one in consumers), what="both are connected")
            device.subscribe("sluice/v1/gw-a/ack/+")
            taken: list[bytes] = []

            def some_came() -> bool:
                device.publish("sluice/v1/gw-a/records/event", struct.pack(">I", len(taken)))
                for consumer in consumers:
                    taken.extend(one.payload for one in consumer.gather(10, 10_000, 0.05))
                return len(taken) > 3

            wait_for(some_came, seconds=10, what="records arrive")
            assert all(one.connected for one in consumers)
            wait_for(lambda: consumers[1].publish("sluice/v1/gw-a/ack/event", b"mark"), what="an acknowledgement")
            wait_for(lambda: (device.ping(), device.received)[1], what="it arrives")
        finally:
            for consumer in consumers:
                consumer.stop()
