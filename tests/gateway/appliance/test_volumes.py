"""Only what is plugged in or meant for us is read, and of that only named regular files, up to a size."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.appliance.errors import ApplianceError
from gateway.appliance.finders import VolumeFinder, is_claim_name
from gateway.appliance.places import Places
from gateway.appliance.volumes import (
    KernelMounter,
    Volume,
    erase_file,
    named_files,
    options,
    superblock,
    volumes,
)
from tests.gateway.appliance.claims import device, text
from tests.gateway.appliance.disks import ext_head, fat_head, plug


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return device(tmp_path)


@pytest.mark.parametrize(
    ("head", "known"),
    [
        (fat_head(b"SLUICE"), ("vfat", "SLUICE")),
        (fat_head(b"STICK", wide=False), ("vfat", "STICK")),
        (fat_head(), ("vfat", "")),
        (ext_head(b"SLUICE"), ("ext4", "SLUICE")),
        (b"\xeb\x76\x90EXFAT   ".ljust(4096, b"\0"), ("exfat", "")),
        (b"LUKS\xba\xbe".ljust(4096, b"\0"), None),
        (b"", None),
        (bytes(4096), None),
    ],
)
def test_a_volume_is_known_by_its_first_bytes(head: bytes, known: tuple[str, str] | None) -> None:
    assert superblock(head) == known


def test_a_partition_table_alone_is_no_volume() -> None:
    head = bytearray(4096)
    head[0x1FE:0x200] = b"\x55\xaa"
    assert superblock(bytes(head)) is None


def test_sticks_and_labelled_disks_are_looked_at_and_built_in_ones_are_not(places: Places) -> None:
    plug(places, "sda1", fat_head())
    plug(places, "sdb1", ext_head(), bus="ata1")
    plug(places, "sdc1", ext_head(b"SLUICE"), bus="ata2")
    plug(places, "mmcblk1", fat_head(), bus="mmc1", removable="1")
    found = [volume.device.name for volume in volumes(places.devices, places.sysfs)]
    assert found == ["mmcblk1", "sda1", "sdc1"]


def test_a_device_that_was_pulled_out_meanwhile_is_passed_over(places: Places) -> None:
    plug(places, "sda1", fat_head()).unlink()
    assert volumes(places.devices, places.sysfs) == []


def test_only_named_regular_files_of_the_top_folder_are_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the device")
    top = tmp_path / "stick"
    (top / "sluice-claim-folder.yaml").mkdir(parents=True)
    (top / "sluice-claim.yaml").write_bytes(b"x" * 100)
    (top / "sluice-claim-link.yaml").symlink_to(secret)
    os.mkfifo(top / "sluice-claim-pipe.yaml")
    (top / "other.yaml").write_text("not ours")
    assert list(named_files(top, is_claim_name, 10)) == [("sluice-claim.yaml", b"x" * 11)]


def test_a_link_would_be_followed_without_that(tmp_path: Path) -> None:
    """The control: what an ordinary reading of the same folder would take in."""
    secret = tmp_path / "secret"
    secret.write_text("of the device")
    (tmp_path / "sluice-claim-link.yaml").symlink_to(secret)
    assert (tmp_path / "sluice-claim-link.yaml").read_text() == "of the device"


def test_strangers_volumes_are_mounted_without_rights() -> None:
    for kind in ("vfat", "exfat", "ext4"):
        words = options(kind, writable=False).split(",")
        assert {"ro", "nosuid", "nodev", "noexec", "nosymfollow"} <= set(words)
    assert "noload" in options("ext4", writable=False)


def test_a_volume_that_cannot_be_mounted_is_told_once_and_offers_nothing(places: Places, tmp_path: Path) -> None:
    plug(places, "sda1", fat_head())
    finder = VolumeFinder(places.devices, places.sysfs, KernelMounter(tmp_path / "mounts"))
    assert list(finder.offers()) == []
    assert list(finder.offers()) == []


def test_an_erased_file_is_overwritten_before_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "sluice-claim.yaml"
    file.write_bytes(text())
    twin = tmp_path / "same-blocks"
    os.link(file, twin)
    erase_file(file, "taken\n")
    assert not file.exists()
    assert set(twin.read_bytes()) == {ord("\n")}
    assert (tmp_path / "sluice-claim.used.txt").read_text() == "taken\n"


@pytest.mark.parametrize("words", [["-F", "32"], ["-F", "16"], ["-F", "12"]])
def test_volumes_that_mkfs_makes_are_known(tmp_path: Path, words: list[str]) -> None:
    if shutil.which("mkfs.vfat", path="/usr/sbin:/usr/bin:/sbin") is None:
        pytest.skip("mkfs.vfat is not installed: apt-get install dosfstools")
    image = tmp_path / "stick.img"
    with image.open("wb") as out:
        out.truncate(64 * 1024 * 1024 if words[1] != "12" else 4 * 1024 * 1024)
    subprocess.run(["/usr/sbin/mkfs.vfat", *words, "-n", "SLUICE", str(image)], check=True, capture_output=True)
    assert superblock(image.read_bytes()[:4096]) == ("vfat", "SLUICE")


# ---- the real mount ------------------------------------------------------------------------------


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Volume]:
    """A real ext4 volume on a loop device."""
    image = tmp_path / f"stick-{uuid.uuid4().hex}.img"
    content = tmp_path / "content"
    content.mkdir()
    (content / "sluice-claim.yaml").write_bytes(text())
    with image.open("wb") as out:
        out.truncate(8 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-L", "SLUICE", "-d", str(content), str(image)], check=True)
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    loop = made.stdout.strip()
    try:
        yield Volume(Path(loop), "ext4", "SLUICE")
    finally:
        subprocess.run(["losetup", "--detach", loop], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_real_volume_is_read_and_its_claim_erased(ext4: Volume, tmp_path: Path) -> None:
    mounter = KernelMounter(tmp_path / "mounts")
    with mounter.mounted(ext4, writable=False) as top:
        assert [name for name, _ in named_files(top, is_claim_name, 4096)] == ["sluice-claim.yaml"]
        with pytest.raises(OSError, match="Read-only"):
            erase_file(top / "sluice-claim.yaml", "")
    with mounter.mounted(ext4, writable=True) as top:
        erase_file(top / "sluice-claim.yaml", "taken\n")
    with mounter.mounted(ext4, writable=False) as top:
        assert list(named_files(top, is_claim_name, 4096)) == []
    assert not (tmp_path / "mounts" / ext4.device.name).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_is_no_volume_cannot_be_mounted(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_bytes(bytes(4096))
    with (
        pytest.raises(ApplianceError, match="mount"),
        KernelMounter(tmp_path / "mounts").mounted(Volume(nothing, "ext4", ""), writable=False),
    ):
        pass
