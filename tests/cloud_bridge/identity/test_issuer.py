"""Certificates as SPIFFE wants them, and authorities that are made once and kept."""

import os
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.files import write_file
from cloud_bridge.identity.issuer import LocalCa, Revoked, key_pem, life_from, new_key, pem

NOW = datetime(2026, 9, 21, 12, tzinfo=UTC)
HOUR = life_from(NOW, seconds=3600, backdate_seconds=120)


@pytest.fixture
def ca(tmp_path: Path) -> LocalCa:
    return LocalCa.open(tmp_path, "sluice.test", NOW)


def certificate_of(ca: LocalCa, gateway: str = "dock-7") -> x509.Certificate:
    return x509.load_pem_x509_certificate(ca.device(gateway, new_key().public_key(), HOUR).chain_pem)


def test_a_devices_certificate_is_an_x509_svid_that_brokers_understand(ca: LocalCa) -> None:
    certificate = certificate_of(ca)
    assert certificate.subject.rfc4514_string() == "CN=dock-7"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://sluice.test/gateway/dock-7")]
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(seconds=3720)


def test_every_certificate_has_a_serial_number_of_its_own(ca: LocalCa) -> None:
    key = new_key().public_key()
    assert len({ca.device("dock-7", key, HOUR).serial for _ in range(50)}) == 50


def test_the_spiffe_library_takes_our_certificates(ca: LocalCa) -> None:
    spiffe = pytest.importorskip("spiffe", reason="spiffe is not installed: pip install spiffe")
    key = new_key()
    issued = ca.device("dock-7", key.public_key(), HOUR)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    svid = spiffe.X509Svid.parse(issued.chain_pem, private)
    assert str(svid.spiffe_id) == "spiffe://sluice.test/gateway/dock-7"


@pytest.mark.parametrize("fault", ["authority", "two names", "no signature use", "certificate signing"])
def test_the_spiffe_library_refuses_what_is_none(ca: LocalCa, fault: str) -> None:
    spiffe = pytest.importorskip("spiffe", reason="spiffe is not installed: pip install spiffe")
    key = new_key()
    uris = ["spiffe://sluice.test/gateway/dock-7"] + ["spiffe://sluice.test/bridge"] * (fault == "two names")
    signing = fault == "certificate signing"
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dock-7")]))
        .issuer_name(ca.devices.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=fault == "authority", path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=fault != "no signature use",
                key_cert_sign=signing,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
                **usage,
            ),
            critical=True,
        )
        .sign(ca.devices.key, hashes.SHA256())
    )
    with pytest.raises(Exception, match=r"(?i)certificate|leaf|key|san|uri"):
        spiffe.X509Svid.parse(pem(certificate), key_pem(key))


def test_authorities_are_made_once_privately_and_found_again(tmp_path: Path) -> None:
    first = LocalCa.open(tmp_path, "sluice.test", NOW)
    second = LocalCa.open(tmp_path, "sluice.test", NOW + timedelta(days=300))
    assert first.bundle_pem == second.bundle_pem
    assert first.services_fingerprint == second.services_fingerprint
    assert first.bundle_pem != first.services_pem
    for file in tmp_path.glob("*-key.pem"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_an_authority_that_others_may_read_or_of_another_domain_is_refused(tmp_path: Path) -> None:
    LocalCa.open(tmp_path, "sluice.test", NOW)
    with pytest.raises(IdentityError, match="trust domain"):
        LocalCa.open(tmp_path, "other.test", NOW)
    with pytest.raises(IdentityError, match="expired"):
        LocalCa.open(tmp_path, "sluice.test", NOW + timedelta(days=5000))
    key = tmp_path / "devices-ca-key.pem"
    key.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        LocalCa.open(tmp_path, "sluice.test", NOW)
    key.chmod(0o600)
    key.write_bytes(key_pem(new_key()))
    with pytest.raises(IdentityError, match="does not begin with"):
        LocalCa.open(tmp_path, "sluice.test", NOW)
    key.write_bytes(b"junk")
    with pytest.raises(IdentityError, match="PEM key"):
        LocalCa.open(tmp_path, "sluice.test", NOW)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to read as somebody else")
def test_control_a_key_that_is_not_private_is_read_by_any_user_of_the_machine() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"]
    with tempfile.TemporaryDirectory() as name:  # not below the test's own, which nobody else may enter
        home = Path(name)
        home.chmod(0o755)
        LocalCa.open(home, "sluice.test", NOW)
        key = home / "devices-ca-key.pem"
        home.chmod(0o755)
        assert subprocess.run([*command, key], capture_output=True, check=False).returncode != 0
        key.chmod(0o644)
        assert b"PRIVATE KEY" in subprocess.run([*command, key], capture_output=True, check=True).stdout


def test_an_intermediate_of_an_organisation_can_take_the_place(tmp_path: Path) -> None:
    root = LocalCa.open(tmp_path / "root", "sluice.test", NOW)
    own = LocalCa.open(tmp_path / "own", "sluice.test", NOW)
    key = own.devices.key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Factory intermediate")])
    intermediate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(root.devices.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root.devices.key, hashes.SHA256())
    )
    (tmp_path / "own" / "devices-ca.pem").write_bytes(pem(intermediate) + root.bundle_pem)
    again = LocalCa.open(tmp_path / "own", "sluice.test", NOW)
    chain = x509.load_pem_x509_certificates(again.device("dock-7", new_key().public_key(), HOUR).chain_pem)
    assert [one.subject.rfc4514_string() for one in chain] == ["CN=dock-7", "CN=Factory intermediate"]
    assert again.bundle_pem == root.bundle_pem


def test_openssl_verifies_what_was_issued_and_sees_what_was_revoked(ca: LocalCa, tmp_path: Path) -> None:
    issued = ca.device("dock-7", new_key().public_key(), HOUR)
    (tmp_path / "leaf.pem").write_bytes(issued.chain_pem)
    (tmp_path / "ca.pem").write_bytes(ca.bundle_pem)
    at = str(int(NOW.timestamp()))

    def verify(*revoked: Revoked) -> subprocess.CompletedProcess[str]:
        (tmp_path / "crl.pem").write_bytes(ca.crl(revoked, life_from(NOW, seconds=60, backdate_seconds=60)))
        command = ["openssl", "verify", "-attime", at, "-x509_strict", "-crl_check", "-CAfile", "ca.pem"]
        command += ["-CRLfile", "crl.pem", "leaf.pem"]
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)

    assert verify().returncode == 0, verify().stderr
    refused = verify(Revoked(issued.serial, NOW))
    assert "certificate revoked" in refused.stderr


def test_a_server_needs_names_that_can_be_in_a_certificate(ca: LocalCa) -> None:
    key = new_key().public_key()
    issued = ca.server(["broker.example", "192.0.2.1", "::1"], key, HOUR)
    certificate = x509.load_pem_x509_certificate(issued.chain_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert len(names.get_values_for_type(x509.IPAddress)) == 2
    for wrong in ([], ["bröker"]):
        with pytest.raises(IdentityError):
            ca.server(wrong, key, HOUR)


def test_the_bridges_name_can_be_no_gateways(ca: LocalCa) -> None:
    certificate = x509.load_pem_x509_certificate(ca.bridge(new_key().public_key(), HOUR).chain_pem)
    assert certificate.subject.rfc4514_string() == "CN=_bridge"
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def test_of_several_first_starts_at_once_all_have_the_same_authorities(tmp_path: Path) -> None:
    """The bridge and `broker-config`, say: what one of them has told in a claim code must be what stays on the disk."""
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        together = threading.Barrier(6)

        def first(directory: Path = directory, together: threading.Barrier = together) -> tuple[str, bytes]:
            together.wait()
            found = LocalCa.open(directory, "sluice.test", NOW)
            return found.services_fingerprint, found.bundle_pem

        with ThreadPoolExecutor(6) as pool:
            starts = [pool.submit(first) for _ in range(6)]
            seen = {each.result() for each in starts}
        after = LocalCa.open(directory, "sluice.test", NOW)
        assert seen == {(after.services_fingerprint, after.bundle_pem)}


def test_a_chain_that_another_process_has_just_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, at the very moment; the control is a file that is replaced, as others are."""
    LocalCa.open(tmp_path, "sluice.test", NOW)
    made = (tmp_path / "services-ca.pem").read_bytes()
    exists = Path.exists

    def not_yet(path: Path) -> bool:
        return exists(path) and not path.name.endswith("-ca.pem")

    monkeypatch.setattr(Path, "exists", not_yet)
    assert LocalCa.open(tmp_path, "sluice.test", NOW).services_pem == made
    monkeypatch.setattr("cloud_bridge.identity.issuer.create_file", write_file)
    assert LocalCa.open(tmp_path, "sluice.test", NOW).services_pem != made
