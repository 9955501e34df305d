"""Level software: for development, and it never lets anybody forget that."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cloud_bridge.identity.attestation import software_key, verify_software
from gateway.config import Vault as VaultSettings
from gateway.vault.attestor import SoftwareAttestor
from gateway.vault.errors import KeyStoreError, VaultConfigError, VaultError
from gateway.vault.software import WARNING, SoftwareKeyStore
from gateway.vault.vault import Vault, open_key_store, tpm_identity
from gateway.wire.identity import Challenge, Credential, software_message
from tests.gateway.vault.device import NEVER

SETTINGS = VaultSettings(level="software")


@pytest.fixture
def store(tmp_path: Path) -> SoftwareKeyStore:
    made = SoftwareKeyStore(tmp_path, appliance_marker=NEVER)
    made.provision()
    return made


def test_a_secret_comes_back(store: SoftwareKeyStore) -> None:
    assert store.unseal(store.seal(b"s" * 32)) == b"s" * 32


def test_every_start_warns_and_so_does_the_status(tmp_path: Path) -> None:
    for _ in range(2):
        with capture_logs() as logs:
            vault = Vault.open(SETTINGS, tmp_path, appliance_marker=NEVER)
            vault.initialise()
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        assert [entry["event"] for entry in warnings] == ["vault_is_not_protected"]
    assert vault.status().store.warnings == (WARNING,)


def test_an_appliance_refuses_it(tmp_path: Path) -> None:
    marker = tmp_path / "appliance"
    marker.touch()
    with pytest.raises(VaultConfigError, match="software is refused on an appliance"):
        Vault.open(SETTINGS, tmp_path, appliance_marker=marker)
    # The control: the same without the marker.
    marker.unlink()
    Vault.open(SETTINGS, tmp_path, appliance_marker=marker)


def test_a_key_file_that_others_can_read_is_refused(store: SoftwareKeyStore, tmp_path: Path) -> None:
    file = tmp_path / "software.key"
    assert file.stat().st_mode & 0o777 == 0o600
    blob = store.seal(b"s" * 32)
    file.chmod(0o640)
    with pytest.raises(KeyStoreError, match="chmod 600"):
        store.unseal(blob)
    assert not store.status().ready


def test_another_key_file_is_told_as_such(store: SoftwareKeyStore, tmp_path: Path) -> None:
    blob = store.seal(b"s" * 32)
    store.forget()
    with pytest.raises(KeyStoreError, match="`gateway vault init`"):
        store.unseal(blob)
    store.provision()
    with pytest.raises(KeyStoreError, match="another one"):
        store.unseal(blob)
    (tmp_path / "software.key").write_bytes(b"short")
    with pytest.raises(KeyStoreError, match="damaged"):
        store.unseal(blob)


def test_nothing_falls_back_to_it(tmp_path: Path) -> None:
    with pytest.raises(VaultConfigError, match=r"needs vault\.policy_key_file"):
        open_key_store(VaultSettings(level="tpm"), tmp_path)
    with pytest.raises(VaultConfigError, match="has no TPM"):
        tpm_identity(SETTINGS)


def test_its_attestor_proves_a_key_and_no_more(tmp_path: Path) -> None:
    vault = Vault.open(SETTINGS, tmp_path, appliance_marker=NEVER)
    vault.initialise()
    attestor = SoftwareAttestor(vault, tmp_path / "vault")
    key = software_key(attestor.enrolment_keys().ak_public)
    challenge = Challenge(session="0" * 32, nonce=b"n" * 32, expires_seconds=60, at="", at_ns=0)
    proof = attestor.prove(challenge, b"csr", attestor.recipient(), "dock-7")
    assert proof.quote == b""
    verify_software(key, proof.signature, software_message(challenge.nonce, b"csr", attestor.recipient(), "dock-7"))
    with pytest.raises(VaultError, match="no TPM"):
        attestor.activate(Credential(blob=b"", encrypted_secret=b""))
    assert attestor.enrolment_keys() == SoftwareAttestor(vault, tmp_path / "vault").enrolment_keys()
