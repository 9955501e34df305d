"""A gateway from its claim to sealed models and records that come in over mutual TLS."""

import socket
import ssl

from gateway.vault.store import SealedStore
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.security import BOOT_STATE, TRUST_DOMAIN
from hil.loopback.tally import tally_of
from tests.e2e.flow import arrives, settle, status_of, waits
from tests.e2e.releases import CALM, LOUD
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import enrolled, happened, identity_of, renew, runs, site_of


def is_let_in(rig: Rig, port: int, certificate: str | None) -> bool:
    """Connect over TLS with a certificate of the broker's directory, or without, and say CONNECT as MQTT 3.1.1 does."""
    files = site_of(rig).broker
    context = ssl.create_default_context(cafile=str(files / "services-ca.pem"))
    if certificate is not None:
        context.load_cert_chain(files / f"{certificate}.pem", files / f"{certificate}-key.pem")
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as link,
        ):
            link.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04mole")
            return link.recv(4) == b"\x20\x02\x00\x00"  # CONNACK, accepted
    except OSError:
        return False


def test_a_gateway_with_a_claim_enrols_seals_its_models_and_delivers(secured: Secured) -> None:
    rig = enrolled(secured())
    found = identity_of(rig)
    assert found["level"] == "tpm"
    assert found["spiffe_id"] == f"spiffe://{TRUST_DOMAIN}/gateway/{GATEWAY_ID}"
    assert found["boot_state"] == BOOT_STATE
    assert 3000 < found["expires_in_seconds"] <= 3600
    for pipeline in ("motor", "machine"):
        runs(rig, pipeline)
    sealed = {release.manifest.name for release in SealedStore(rig.state_directory / "models").releases()}
    assert sealed >= {LOUD, CALM}
    assert not [file for file in rig.state_directory.rglob("*.tflite") if file.is_file()]
    assert happened(rig)["enrolled"]["gateway"] == GATEWAY_ID
    assert "used" in site_of(rig).in_cloud("identity", "token", "list")
    devices, services = rig.ports.broker, site_of(rig).ports.services
    assert not is_let_in(rig, devices, None)
    assert not is_let_in(rig, services, None)
    assert not is_let_in(rig, devices, "bridge")
    assert is_let_in(rig, services, "bridge")  # so it is the certificate that decides
    settle(rig)


def test_without_a_claim_nothing_reaches_the_cloud_and_the_status_says_what_to_do(secured: Secured) -> None:
    rig = secured()
    rig.prepare()
    site_of(rig).claim.unlink()
    rig.start_broker()
    rig.start_bridge()
    rig.start_gateway()
    waits(rig, 10)
    eventually(lambda: bool(identity_of(rig)["reason"]), "the identity says what is missing")
    assert tally_of(rig).committed == 0
    site_of(rig).leave_claim(site_of(rig).claim_code())
    arrives(rig)
    settle(rig)


def test_renewals_lose_nothing_and_send_nothing_twice(secured: Secured) -> None:
    rig = enrolled(secured(bridge={"identity": {"certificate_seconds": 60, "requests_per_gateway_per_minute": 100}}))
    by_hand = [renew(rig) for _ in range(4)][-1]
    waits(rig, tally_of(rig).enqueued + 20)
    # The next one comes by itself, half-way through the minute.
    eventually(lambda: int(identity_of(rig)["renewals"]) > by_hand, "half-life renews", 40.0)
    waits(rig, tally_of(rig).enqueued + 10)
    arrives(rig)
    assert status_of(rig)["outbox"]["disk_full"] is False
    settle(rig)


def test_a_bridge_that_restarts_is_asked_again_and_nothing_is_lost(secured: Secured) -> None:
    rig = enrolled(secured())
    rig.bridge.kill()
    waits(rig, tally_of(rig).enqueued + 10)
    rig.start_bridge()
    arrives(rig)
    renew(rig)
    waits(rig, tally_of(rig).enqueued + 5)
    settle(rig)


def test_the_same_gateway_at_level_software_is_let_in_only_where_that_is_allowed(secured: Secured) -> None:
    rig = secured(security="software")
    rig.bridge_settings["identity"]["allow_software"] = False
    rig.write()
    rig.start()
    waits(rig, 10)
    eventually(lambda: "allow_software" in identity_of(rig)["reason"], "the refusal is in the status")
    assert tally_of(rig).committed == 0
    rig.bridge.stop()
    rig.bridge_settings["identity"]["allow_software"] = True
    rig.write()
    rig.start_bridge()
    site_of(rig).on_device("identity", "renew")
    arrives(rig)
    settle(rig)
