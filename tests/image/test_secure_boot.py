"""Secure Boot with the vendor's own keys, enrolled from the files of a build: what they signed starts, and no more."""

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.rig.disk import partitions
from hil.rig.machine import Board, Machine, boots
from tests.image.conftest import BOOT_SECONDS, device_of
from tests.image.test_tampering import said

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
_ENROLLING = "timeout 0\nsecure-boot-enroll force\n"
_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def into_esp(disk: Path, files: dict[str, bytes]) -> None:
    """Put files into the boot partition of a raw disk, as somebody does who sets devices up."""
    at = f"{disk}@@{partitions(disk)['ESP'].offset}"
    for path, content in files.items():
        for folder in reversed(Path(path).parents[:-1]):
            subprocess.run(["mmd", "-i", at, "-D", "s", f"::{folder}"], capture_output=True, check=False)
        subprocess.run(["mcopy", "-o", "-i", at, "-", f"::{path}"], input=content, capture_output=True, check=True)


def secure(image: Path, directory: Path, files: dict[str, bytes]) -> Machine:
    """A board whose firmware can do Secure Boot and has no keys yet, with a disk that brings them."""
    disk = directory / "disk.raw"
    directory.mkdir()
    subprocess.run(["cp", "--sparse=always", image, disk], check=True)
    into_esp(disk, files)
    machine = Machine(Board(image=disk, directory=directory / "board"))
    machine.model = dataclasses.replace(machine.model, machine="q35,smm=on", code=(FIRMWARE.name,))
    machine.extra = ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    machine.flash()
    return machine


@pytest.fixture
def keys(image: Path) -> dict[str, bytes]:
    if not FIRMWARE.is_file() or shutil.which("mcopy") is None:
        pytest.skip(f"needs {FIRMWARE} and mtools: apt-get install ovmf mtools")
    folder = image / "secure-boot"
    if not (folder / "PK.auth").is_file():
        pytest.skip(f"{folder} has no files to enrol: this image was built before there were, or without PK and KEK")
    made = {f"loader/keys/auto/{name}.auth": (folder / f"{name}.auth").read_bytes() for name in ("PK", "KEK", "db")}
    return {**made, "loader/loader.conf": _ENROLLING.encode()}


@pytest.fixture
def boards() -> Iterator[list[Machine]]:
    made: list[Machine] = []
    yield made
    for each in made:
        each.close()


def test_what_the_vendor_signed_boots_after_the_keys_are_enrolled(
    keys: dict[str, bytes], boards: list[Machine], image: Path, tmp_path: Path
) -> None:
    machine = secure(image / "disk-rig.raw", tmp_path / "signed", keys)
    boards.append(machine)
    machine.power_on()
    boots(machine, seconds=BOOT_SECONDS)
    # Four bytes of attributes, then the value.
    assert device_of(machine).run(f"od -An -tu1 -j4 {_SECURE_BOOT}").strip() == "1"


def test_a_kernel_image_that_was_changed_does_not_start(
    keys: dict[str, bytes], boards: list[Machine], image: Path, tmp_path: Path
) -> None:
    """One byte of its command line, which without Secure Boot nobody but the TPM would notice."""
    at = f"{image / 'disk-rig.raw'}@@{partitions(image / 'disk-rig.raw')['ESP'].offset}"
    whole = subprocess.run(["mcopy", "-i", at, "::EFI/sluice/a.efi", "-"], capture_output=True, check=True).stdout
    changed = bytearray(whole)
    changed[whole.index(b"rauc.slot=a") + len(b"rauc.slot=")] = ord("b")
    machine = secure(image / "disk-rig.raw", tmp_path / "changed", {**keys, "EFI/sluice/a.efi": bytes(changed)})
    boards.append(machine)
    machine.power_on()
    said(machine, "Access [Dd]enied|Security [Vv]iolation", since=0, seconds=600.0)
    assert not machine.agent.answers()
