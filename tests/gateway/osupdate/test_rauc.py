"""What RAUC says, and what it means; the simulated one, and the real one where it is installed."""

import shutil
from pathlib import Path

import pytest

from gateway.osupdate import errors
from gateway.osupdate.rauc import RaucCli, facts_of, meaning_of, status_of
from gateway.ota.errors import StorageError
from tests.simulators.os_bundle import Signer, bundle
from tests.simulators.rauc import Machine

REAL = shutil.which("rauc")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("signature verification failed: Verify error: self-signed certificate", errors.BadSignatureError),
        ("LastError: Compatible mismatch: Expected 'a' but bundle manifest has 'b'", errors.IncompatibleError),
        ("LastError: Pre-install handler error: Child process exited with code 20", errors.BelowFloorError),
        ("LastError: Pre-install handler error: Child process exited with code 21", errors.NotAsAnnouncedError),
        ("LastError: Pre-install handler error: Child process exited with code 22", errors.OnTrialError),
        ("LastError: Pre-install handler error: Child process exited with code 23", errors.IncompatibleError),
        ("LastError: Pre-install handler error: Child process exited with code 1", errors.InstallFailedError),
        (
            "LastError: Version mismatch: Expected at least '1.0.0' but bundle manifest has '0.9.0'",
            errors.BelowFloorError,
        ),
        ("LastError: Invalid bundle format: Signature size is 0", errors.BadSignatureError),
        (
            "Invalid bundle format: Failed to read signature size from bundle: Error reading from file: "
            "Input/output error",
            errors.InstallFailedError,
        ),
        (
            "Invalid bundle format: Failed to open bundle for reading: Error opening file /run/media/sda/signature size"
            ".raucb: No such file or directory",
            errors.InstallFailedError,
        ),
        (
            "Failed to load dm table: Argument list too long, verity: Hash device is too small",
            errors.StreamingFailedError,
        ),
        ("Failed to contact rauc service: Already processing a different method", errors.RaucBusyError),
        ("GDBus.Error:org.freedesktop.DBus.Error.AccessDenied: Rejected send message", errors.RaucUnavailableError),
        ("Error creating proxy: Could not connect: No such file or directory", errors.RaucUnavailableError),
        ("LastError: Installation error: Failed updating slot rootfs.1: No space left on device", StorageError),
        ("LastError: Installation error: Input/output error", errors.InstallFailedError),
        ("RAUC service disappeared\nD-Bus error while installing `/b.raucb`", errors.InstallFailedError),
        ("", errors.InstallFailedError),
    ],
)
def test_words_of_rauc_become_the_error_that_says_who_can_act(words: str, kind: type[Exception]) -> None:
    noise = "rauc-Message: 01:28:23.658: Using system config file /etc/rauc/system.conf"
    error = meaning_of(f"{noise}\ninstalling\n 20% Determining slot states\n{words}", errors.InstallFailedError)
    assert type(error) is kind
    assert "20%" not in str(error)
    assert "system.conf" not in str(error)


def test_an_answer_that_is_none_is_an_error_and_not_a_crash() -> None:
    for answer in ({}, {"compatible": "x", "slots": [{"rootfs.0": None}]}, {"compatible": "x", "slots": 7}):
        with pytest.raises(errors.RaucUnavailableError):
            status_of(answer)
    for said in ({}, {"update": {"compatible": "x"}}):
        with pytest.raises(errors.BadSignatureError):
            facts_of(said)


def test_a_rauc_that_is_not_installed_is_told_as_such(tmp_path: Path) -> None:
    rauc = RaucCli([str(tmp_path / "rauc")])
    with pytest.raises(errors.RaucUnavailableError, match="is RAUC installed"):
        rauc.status()
    with pytest.raises(errors.RaucUnavailableError, match="is RAUC installed"):
        rauc.install("x", lambda _percent, _words: None)


def test_an_installation_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    signer = Signer.make()
    machine = Machine.make(tmp_path / "m", compatible="c", version="1.0.0", keyring=signer.keyring(tmp_path / "k"))
    machine.set(silent_seconds=30)
    with pytest.raises(errors.InstallFailedError, match="said nothing"):
        RaucCli(machine.command, silent_seconds=0.5).install("x", lambda _percent, _words: None)


def test_the_simulated_command_reports_progress_and_the_new_slot(tmp_path: Path) -> None:
    signer = Signer.make()
    keyring = signer.keyring(tmp_path / "k")
    machine = Machine.make(tmp_path / "m", compatible="sluice-uefi-amd64", version="1.0.0", keyring=keyring)
    rauc, heard = RaucCli(machine.command), []
    rauc.install(str(bundle(tmp_path / "b", signer, version="1.1.0")), lambda percent, _words: heard.append(percent))
    assert heard[0] == 0
    assert heard[-1] == 100
    status = rauc.status()
    assert (status.booted, status.primary) == ("a", "b")
    assert status.other is not None
    assert status.other.version == "1.1.0"


@pytest.mark.skipif(REAL is None, reason="rauc is not installed: apt-get install rauc")
def test_the_real_rauc_reads_the_bundles_of_these_tests(tmp_path: Path) -> None:
    signer = Signer.make()
    keyring = signer.keyring(tmp_path / "k")
    rauc = RaucCli([str(REAL), f"--keyring={keyring}"])
    facts = rauc.info(str(bundle(tmp_path / "b.raucb", signer, version="1.1.0", adaptive=True)))
    assert (facts.compatible, facts.version, facts.adaptive) == ("sluice-uefi-amd64", "1.1.0", True)
    with pytest.raises(errors.BadSignatureError):
        rauc.info(str(bundle(tmp_path / "f.raucb", Signer.make("x"), version="1.1.0")))
