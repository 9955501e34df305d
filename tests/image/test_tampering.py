"""One flipped bit anywhere in what boots: it is not run. The same board without the flipped bit boots, each time."""

from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig.disk import corrupt, find, partitions
from hil.rig.machine import Machine, boots, tail
from tests.image.conftest import BOOT_SECONDS, device_of, up

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]


def flip(machine: Machine, partition: str, *, near: bytes | None = None, from_end: int | None = None) -> int:
    raw = machine.raw_disk(machine.directory / "disk.raw")
    offset = corrupt(raw, partition, near=near, from_end=from_end)
    machine.replace_disk(raw)
    raw.unlink()
    return offset


def test_a_bit_in_the_root_is_noticed_when_it_is_read_and_not_before(booted: Machine) -> None:
    """The control is in the same boot: what is intact is read."""
    booted.power_off()
    flip(booted, "root-a")
    booted.power_on()
    came_up = True
    try:
        boots(booted, seconds=BOOT_SECONDS)
    except RigError:
        came_up = False
    if came_up:
        # Nothing has read that block yet; reading everything must fail, and the kernel restarts on it.
        device = device_of(booted)
        before = device.boot_id()
        try:
            _, _, code = device.attempt("cat /dev/mapper/root >/dev/null", seconds=600.0)
        except RigError:
            code = 1  # gone before it could answer
        assert code != 0
        assert "corrupt" in tail(booted, 400) or device_of(booted).boot_id() != before
    else:
        assert "corrupt" in tail(booted, 400)


def test_a_bit_in_the_hash_tree_is_noticed(booted: Machine) -> None:
    booted.power_off()
    # The tree is at the end of the slot; its superblock names itself.
    raw = booted.raw_disk(booted.directory / "disk.raw")
    slot = partitions(raw)["root-a"]
    (at,) = [at for at in find(raw, [b"verity\0\0"])[b"verity\0\0"] if slot.offset <= at < slot.offset + slot.size][-1:]
    raw.unlink()
    assert at > slot.offset
    flip(booted, "root-a", from_end=100)
    booted.power_on()
    try:
        boots(booted, seconds=BOOT_SECONDS)
        device = device_of(booted)
        try:
            code = device.attempt("cat /dev/mapper/root >/dev/null", seconds=600.0)[2]
        except RigError:
            code = 1
        assert code != 0
    except RigError:
        pass
    assert "corrupt" in tail(booted, 400)


def test_a_kernel_image_with_a_flipped_bit_cannot_open_the_disk(machine: Machine, tmp_path: Path) -> None:
    """Its measurement differs, so the TPM keeps the key; without Secure Boot that is where it ends."""
    device = up(machine)
    device.run("sync")
    slot = device.booted_slot()
    machine.power_off()
    # In the text of the embedded release, which is measured and which nothing else checks.
    flip(machine, "ESP", near=b"PRETTY_NAME=")
    machine.power_on()
    with pytest.raises(RigError, match="did not come up"):
        boots(machine, seconds=240.0)
    assert slot == "a"
