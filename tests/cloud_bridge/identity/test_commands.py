"""The command line of identities, as an operator uses it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry

from cloud_bridge.cli import main
from cloud_bridge.configload import load
from cloud_bridge.identity.app import create_app
from cloud_bridge.identity.component import open_identities
from cloud_bridge.identity.issuer import utc
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.service import IdentityService
from gateway.wire.identity import claim_code
from tests.cloud_bridge.identity.kit import poster
from tests.simulators.attested_device import AttestedDevice, RefusedByBridgeError, SoftTpm
from tests.simulators.endorsement_ca import EndorsementCa


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "bridge.yaml"
    file.write_text(
        f"store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}\nidentity: {{trust_domain: sluice.test, directory: id}}\n"
    )
    return file


def run(file: Path, *words: str) -> Result:
    group, *rest = words
    at = [group, *rest, "--config", str(file)]
    return CliRunner().invoke(main, at)


def lines(file: Path, *words: str) -> list[dict[str, Any]]:
    result = run(file, *words, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def device_at(file: Path, gateway: str = "dock-7") -> AttestedDevice:
    """A device that talks to a bridge with this configuration."""
    identities = open_identities(load(file), time.time_ns)
    metrics = IdentityMetrics(CollectorRegistry())
    service = IdentityService(
        identities.settings,
        identities.database,
        metrics,
        issuer=identities.ca,
        anchors=identities.anchors,
        keys=identities.keys,
    )
    return AttestedDevice(gateway, poster(create_app(service, identities.settings, metrics)), SoftTpm())


def test_an_operator_brings_a_device_in_and_throws_it_out(file: Path, tmp_path: Path) -> None:
    device = device_at(file)
    (made,) = lines(file, "identity", "token", "create", "dock-7", "--valid", "12h")
    code = claim_code(made["code"])
    assert code is not None
    assert code.fingerprint == made["fingerprint"] == lines(file, "identity", "status")[0]["fingerprint"]
    with pytest.raises(RefusedByBridgeError, match="no-approved-state") as caught:
        device.enrol(code.token)
    refusal = caught.value.refusal
    assert refusal.refusal_id in run(file, "identity", "events").stdout
    assert "add NAME --from-refusal" in refusal.message
    added = run(file, "identity", "states", "add", "appliance-1", "--from-refusal", refusal.refusal_id)
    assert "PCR 4, 7, 11" in added.stdout, added.output
    created = run(
        file, "identity", "grants", "create", "person/1", "--digest", "ab" * 32, "--key-out", f"{tmp_path}/key"
    )
    assert created.exit_code == 0, created.output
    granted = device.enrol(code.token)
    assert device.open_grants(granted) == {"person/1": (tmp_path / "key").read_bytes()}
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600

    (listed,) = lines(file, "identity", "devices")
    assert (listed["gateway"], listed["state"], listed["revoked_at"]) == ("dock-7", "appliance-1", None)
    (shown,) = lines(file, "identity", "show", "dock-7")
    assert {event["kind"] for event in shown["events"]} == {"claim-created", "no-approved-state", "enrolled"}
    assert [claim["state"] for claim in lines(file, "identity", "token", "list")] == ["used"]

    (revoked,) = lines(file, "identity", "revoke", "dock-7", "--why", "stolen from the dock")
    assert revoked == {"gateway": "dock-7", "certificates": 1, "claims": 0}
    with pytest.raises(RefusedByBridgeError, match="stolen from the dock"):
        device.renew()
    assert "revoked" in run(file, "identity", "devices").stdout
    again = run(file, "identity", "token", "create", "dock-7")
    assert again.exit_code == 1
    assert "--replace" in again.output
    (claim,) = lines(file, "identity", "token", "create", "dock-7", "--replace")
    found = claim_code(claim["code"])
    assert found is not None
    device.enrol(found.token)


def test_a_tpm_is_announced_by_its_certificate(file: Path, tmp_path: Path) -> None:
    maker, device = EndorsementCa(utc(time.time_ns())), SoftTpm()
    certificate = tmp_path / "ek.der"
    certificate.write_bytes(maker.certify(device.ek_key)[0])
    refused = run(file, "identity", "token", "create", "dock-7", "--ek-certificate", str(certificate))
    assert refused.exit_code == 1
    assert "ek_roots" in refused.output
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "root.der").write_bytes(maker.root.public_bytes(serialization.Encoding.DER))
    file.write_text(file.read_text().replace("directory: id", "directory: id, ek_roots: roots"))
    (made,) = lines(file, "identity", "token", "create", "dock-7", "--ek-certificate", str(certificate))
    assert made["kind"] == "ek"
    assert "code" not in made


def test_states_are_added_from_a_file_listed_and_removed(file: Path, tmp_path: Path) -> None:
    values = tmp_path / "pcrs.json"
    values.write_text(json.dumps({"pcrs": {"7": "07" * 32, "11": "0b" * 32}}))
    assert run(file, "identity", "states", "add", "v1", str(values)).exit_code == 0
    twice = run(file, "identity", "states", "add", "v1", str(values))
    assert twice.exit_code == 1
    (state,) = lines(file, "identity", "states", "list")
    assert state["pcrs"] == {"7": "07" * 32, "11": "0b" * 32}
    assert run(file, "identity", "states", "remove", "v1").exit_code == 0
    assert lines(file, "identity", "states", "list") == []
    assert run(file, "identity", "states", "remove", "v1").exit_code == 1
    values.write_text(json.dumps({"23": "00" * 32}))
    unasked = run(file, "identity", "states", "add", "v2", str(values))
    assert "not asked of devices" in unasked.output
    assert run(file, "identity", "states", "add", "v2").exit_code == 2
    unknown = run(file, "identity", "states", "add", "v2", "--from-refusal", "0" * 16)
    assert "no refusal" in unknown.output


def test_a_key_is_never_written_over_another_file(file: Path, tmp_path: Path) -> None:
    run(file, "identity", "grants", "create", "person/1", "--digest", "ab" * 32)
    (tmp_path / "precious").write_bytes(b"precious")
    refused = run(file, "identity", "grants", "key", "person/1", "--out", str(tmp_path / "precious"))
    assert refused.exit_code == 1
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert run(file, "identity", "grants", "key", "person/1", "--out", str(tmp_path / "key")).exit_code == 0
    assert len((tmp_path / "key").read_bytes()) == 32
    assert run(file, "identity", "grants", "revoke", "person/1").exit_code == 0
    (key,) = lines(file, "identity", "grants", "list")
    assert key["revoked_at"]
    assert (tmp_path / "key").read_bytes().hex() not in json.dumps(key)


def test_status_is_loud_about_what_is_lax(file: Path) -> None:
    assert "WARNING" not in run(file, "identity", "status").stdout
    file.write_text(file.read_text().replace("directory: id", "directory: id, allow_software: true"))
    text = run(file, "identity", "status").stdout
    assert "WARNING: devices without a TPM are let in" in text
    assert "ek_roots" in text


def test_without_the_section_the_commands_say_what_to_add(tmp_path: Path) -> None:
    empty = tmp_path / "bridge.yaml"
    empty.write_text(f"store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}\n")
    result = run(empty, "identity", "status")
    assert result.exit_code == 2
    assert "trust_domain" in result.output


@pytest.mark.parametrize("name", ["Dock", "dock_7", "_bridge", "a/b", "x" * 64, "+", "#"])
def test_a_name_that_a_broker_could_misread_is_refused(file: Path, name: str) -> None:
    assert run(file, "identity", "token", "create", name).exit_code == 2


def test_the_broker_gets_its_files_and_the_operator_the_next_steps(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "broker"
    result = run(file, "broker-config", "--out", str(out), "--name", "broker.example", "--device-port", "8883")
    assert result.exit_code == 0, result.output
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {
        "acl",
        "bridge-key.pem",
        "bridge.pem",
        "broker-key.pem",
        "broker.pem",
        "crl.pem",
        "devices-ca.pem",
        "mosquitto.conf",
        "openssl.cnf",
        "services-ca.pem",
        "systemd/sluice-broker-reload.path",
        "systemd/sluice-broker-reload.service",
        "systemd/sluice-broker-restart.path",
        "systemd/sluice-broker-restart.service",
        "systemd/sluice.conf",
    }
    assert f"broker_directory: {out}" in result.stdout
    for key in out.glob("*-key.pem"):
        assert key.stat().st_mode & 0o077 == 0
    missing = run(file, "broker-config", "--out", str(out), "--group", "no-such-group")
    assert "no group" in missing.output
