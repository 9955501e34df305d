"""What is on the disk, read without booting it."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import zstandard

from hil.rig.disk import find, partitions
from image.builder import uki
from tests.image.conftest import DISK, REPO

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

LIMIT_BYTES = 600 * 1000 * 1000
KERNEL_IMAGE_LIMIT_BYTES = 30 * 1000 * 1000
"""Every update fetches one whole; nothing of it is taken from what the device has."""


def manifest(image: Path) -> dict[str, dict[str, dict[str, int]]]:
    content: dict[str, dict[str, dict[str, int]]] = json.loads((image / "manifest.json").read_text())
    return content


def test_the_disk_has_a_boot_partition_and_two_slots_and_nothing_of_a_device(image: Path) -> None:
    assert set(partitions(DISK)) == {"ESP", "root-a", "root-b"}


def test_the_compressed_image_is_not_larger_than_what_was_promised(image: Path) -> None:
    assert (image / "disk.raw.zst").stat().st_size <= LIMIT_BYTES


def kernel_image(disk: Path) -> bytes:
    """Read the kernel image of slot a from the boot partition."""
    at = f"{disk}@@{partitions(disk)['ESP'].offset}"
    return subprocess.run(["mcopy", "-i", at, "::EFI/sluice/a.efi", "-"], capture_output=True, check=True).stdout


def test_the_initrd_drives_the_disks_of_gateways_and_has_little_else(image: Path) -> None:
    whole = kernel_image(image / "disk.raw")
    archive = zstandard.ZstdDecompressor().stream_reader(uki.sections(whole)[".initrd"]).read()
    # Each entry of a cpio archive: a magic number, thirteen figures, a name.
    names = {match.decode() for match in re.findall(rb"070701[0-9A-Fa-f]{104}([^\0]+)\0", archive)}
    modules = {Path(name).name.partition(".ko")[0] for name in names if "/kernel/" in name and ".ko" in name}
    root = {"erofs", "dm-verity", "libcrc32c", "crc32c_generic"}
    disks = {"virtio_blk", "virtio_scsi", "nvme", "ahci", "sd_mod", "mmc_block", "sdhci-pci", "usb-storage", "uas"}
    # Without the variables of the firmware systemd takes the boot for one that is not measured: the disk stays shut.
    assert root | disks | {"xhci-pci", "efivarfs"} <= modules
    assert modules.isdisjoint({"ext4", "hid", "raid456", "qed", "libceph", "pata_via"})
    assert not any(name.endswith("hwdb.bin") for name in names)
    assert len(whole) <= KERNEL_IMAGE_LIMIT_BYTES


@pytest.mark.parametrize("disk", ["disk.raw", "disk-rig.raw"])
def test_no_private_key_is_in_the_image(image: Path, disk: str) -> None:
    keys = REPO / "var" / "image" / "keys"
    needles = []
    for file in keys.glob("*.key"):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("-")]
        needles += [lines[0].encode(), lines[len(lines) // 2].encode()]
    assert len(needles) >= 8
    public = (keys / "pcr.pub").read_text().splitlines()[1].encode()
    found = find(image / disk, [*needles, public])
    # The search can find a key that is there: the public one lies unpacked in the kernel images.
    assert public in found
    assert set(found) == {public}


def test_the_bill_of_materials_names_debian_and_python_packages(image: Path) -> None:
    bill = json.loads((image / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    kinds = {component["purl"].split("/")[0] for component in bill["components"] if "purl" in component}
    assert {"pkg:deb", "pkg:pypi"} <= kinds


def test_what_is_shipped_takes_no_orders_from_the_strings_of_its_firmware(image: Path) -> None:
    """The rig's variant does: so the rig starts its agent, and whoever could write them there would be root."""
    word = b"systemd.import_credentials=no"
    assert word in find(image / "disk.raw", [word])
    assert word not in find(DISK, [word])


def test_the_root_shell_of_the_rig_is_in_no_image_that_is_shipped(image: Path) -> None:
    shipped, rig = (
        json.loads((image / "manifest.json").read_text())["variants"][name]["root_hash"] for name in ("shipping", "rig")
    )
    assert shipped != rig
    assert shipped.encode() in find(image / "disk.raw", [shipped.encode()])
    assert rig.encode() not in find(image / "disk.raw", [rig.encode()])
