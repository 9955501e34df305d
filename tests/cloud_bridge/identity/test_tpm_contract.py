"""The same enrolment and attestation against the TPM of software and against a real implementation (swtpm)."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.identity.attestation import attestation_key, endorsement_key
from cloud_bridge.identity.credential import make_credential
from cloud_bridge.identity.endorsement import TrustedRoots
from cloud_bridge.identity.structures import read_quote
from tests.cloud_bridge.identity.kit import Clock, Desk, desk_at
from tests.simulators.attested_device import ActivationError, RefusedByBridgeError, SoftTpm, Tpm
from tests.simulators.swtpm import Swtpm, missing


@pytest.fixture(params=["soft-ecc", "soft-rsa", "swtpm-ecc", "swtpm-rsa"])
def tpm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tpm]:
    maker, kind = request.param.split("-")
    if maker == "soft":
        yield SoftTpm(rsa_ek=kind == "rsa")
        return
    if reason := missing():
        pytest.skip(reason)
    from tests.simulators.swtpm_device import SwTpm  # noqa: PLC0415  # needs the library that may be missing

    with Swtpm(tmp_path) as swtpm:
        yield SwTpm(swtpm, template="EK-RSA2048" if kind == "rsa" else "EK-ECC256")


def test_a_device_enrols_renews_and_is_refused_in_another_boot_state(tpm: Tpm, desk: Desk) -> None:
    key = desk.keys.create("person/1", "ab" * 32)
    device = desk.enrolled(tpm=tpm)
    assert device.open_grants(device.renew()) == {"person/1": key.key}
    tpm.extend(11, secrets.token_bytes(32))
    with pytest.raises(RefusedByBridgeError, match="wrong-pcr"):
        device.renew()


def test_a_credential_made_without_a_tpm_is_opened_by_it_and_by_no_other(tpm: Tpm) -> None:
    ek, ak = endorsement_key(tpm.ek_public), attestation_key(tpm.ak_public)
    secret = secrets.token_bytes(32)
    assert tpm.activate(make_credential(ek, ak.name, secret)) == secret
    with pytest.raises(ActivationError):
        tpm.activate(make_credential(endorsement_key(SoftTpm().ek_public), ak.name, secret))
    with pytest.raises(ActivationError):
        tpm.activate(make_credential(ek, attestation_key(SoftTpm().ak_public).name, secret))


def test_a_quote_tells_the_reboots_and_the_firmware(tpm: Tpm) -> None:
    quote = read_quote(tpm.quote(bytes(32), [4, 7, 11])[0])
    assert quote.firmware_version
    assert quote.reset_count < 1000  # in the endorsement hierarchy it is the real one, not a random mask
    assert quote.selections == ((0x000B, frozenset({4, 7, 11})),)


@pytest.mark.skipif(bool(missing("swtpm_setup")), reason=missing("swtpm_setup"))
def test_the_certificate_that_a_maker_has_put_into_the_tpm_leads_to_its_root(tmp_path: Path) -> None:
    from tests.simulators.swtpm_device import SwTpm, ek_certificate  # noqa: PLC0415

    with Swtpm(tmp_path, ek_certificate=True) as swtpm:
        roots = tmp_path / "roots"
        roots.mkdir()
        for name in ("issuercert.pem", "swtpm-localca-rootca-cert.pem"):
            if (swtpm.ca_directory / name).exists():
                (roots / name).write_bytes((swtpm.ca_directory / name).read_bytes())
        tpm = SwTpm(swtpm, template="EK-RSA2048")
        certificate = ek_certificate(swtpm, 0x01C00002)
        clock = Clock(time.time_ns())  # the certificate was made by the real clock
        with desk_at(tmp_path / "desk", roots=TrustedRoots.load(roots), clock=clock) as desk:
            device = desk.device(tpm=tpm)
            desk.approve_state_of(device)
            token = desk.token("dock-7")
            with pytest.raises(RefusedByBridgeError, match="ek-untrusted"):
                device.enrol(token)
            device.ek_certificates = [certificate]
            device.enrol(token)
