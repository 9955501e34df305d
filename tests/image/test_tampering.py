"""One flipped bit anywhere in what boots: it is not run. The same board without the flipped bit boots, each time."""

import re
import time
from collections.abc import Callable

import pytest

from hil.loopback.children import RigError
from hil.rig.device import Device
from hil.rig.disk import find, middle_of, partitions
from hil.rig.flips import flip_below
from hil.rig.machine import Machine, boots, tail
from hil.rig.patience import patient
from tests.image.conftest import BOOT_SECONDS, DISK, device_of

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

BLOCK = 4096
DIGESTS_OF_A_BLOCK = BLOCK // 32  # SHA-256
READ_SECONDS = 60.0
CORRUPTED = re.compile(r"verity: .*block \d+ is corrupted")


def words_of(device: Device) -> dict[str, str]:
    """Return the kernel's command line."""
    words = device.run("cat /proc/cmdline").split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def tree_of(device: Device) -> int:
    """Return where the hash tree begins in the slot: its superblock, then its levels from the top to the leaves."""
    (offset,) = re.findall(r"hash-offset=(\d+)", words_of(device)["systemd.verity_root_options"])
    return int(offset)


def read(device: Device, block: int) -> bool:
    """Tell whether a block of the root can be read from the disk, past all caches."""
    # What dm-verity has checked of the tree it keeps in memory: it has to look again.
    device.run("echo 0 >/sys/module/dm_bufio/parameters/retain_bytes; echo 3 >/proc/sys/vm/drop_caches")
    try:
        command = f"dd if=/dev/mapper/root of=/dev/null bs={BLOCK} count=1 skip={block} iflag=direct"
        return device.attempt(command, seconds=READ_SECONDS)[2] == 0
    except RigError:
        return False  # it does not answer any more


def said(machine: Machine, pattern: str, *, since: int, seconds: float) -> str:
    """Wait until the console says something; returns it. since: how much it had said before, in characters."""
    seconds = patient(seconds)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = machine.console_log.read_text(errors="replace")[since:]
        found = re.search(pattern, text)
        if found is not None:
            return found[0]
        time.sleep(0.5)
    raise RigError(f"the console did not say {pattern!r} within {seconds:.0f} s; it ends with\n{tail(machine)}")


def length_of(machine: Machine) -> int:
    return len(machine.console_log.read_text(errors="replace"))


def a_block_of_the_root(_: Device) -> tuple[int, int]:
    """Return a byte in the middle of the root, relative to the slot, and the block that cannot be read with it."""
    slot = partitions(DISK)["root-a"]
    offset = middle_of(DISK, slot) - slot.offset
    return offset, offset // BLOCK


def a_leaf_of_the_tree(device: Device) -> tuple[int, int]:
    """Return a byte of the last leaf of the hash tree, and a block whose digest is there."""
    tree = tree_of(device)
    blocks = tree // BLOCK
    leaves = -(-blocks // DIGESTS_OF_A_BLOCK)
    inner = 0
    level = leaves
    while level > 1:
        level = -(-level // DIGESTS_OF_A_BLOCK)
        inner += level
    last = tree + BLOCK * (1 + inner + leaves - 1)  # after the superblock
    return last, (leaves - 1) * DIGESTS_OF_A_BLOCK


@pytest.mark.parametrize("place", [a_block_of_the_root, a_leaf_of_the_tree])
def test_a_bit_that_flips_in_a_slot_that_runs_stops_the_system_before_it_is_used(
    booted: Machine, place: Callable[[Device], tuple[int, int]]
) -> None:
    device = device_of(booted)
    offset, block = place(device)
    assert read(device, block), "what is intact can be read"
    begin = length_of(booted)
    flip_below(booted, DISK, partitions(DISK)["root-a"].offset + offset)
    assert not read(device, block)
    assert CORRUPTED.search(said(booted, CORRUPTED.pattern, since=begin, seconds=READ_SECONDS))
    said(booted, "Kernel panic", since=begin, seconds=READ_SECONDS)


def test_a_slot_with_a_flipped_bit_at_the_top_of_its_hash_tree_does_not_boot(booted: Machine) -> None:
    device = device_of(booted)
    begin = length_of(booted)
    top = partitions(DISK)["root-a"].offset + tree_of(device) + BLOCK
    flip_below(booted, DISK, top)
    restart(booted)
    said(booted, CORRUPTED.pattern, since=begin, seconds=BOOT_SECONDS)
    assert not booted.agent.answers()


def test_a_kernel_image_with_a_flipped_bit_cannot_open_the_disk(booted: Machine) -> None:
    """Its measurement differs, so the TPM keeps the key; without Secure Boot that is where it ends."""
    device = device_of(booted)
    assert device.attempt("test -e /dev/mapper/data && mountpoint -q /data")[2] == 0
    # The release that stands in the kernel image: it is measured, and nothing else looks at it.
    word = b"PRETTY_NAME="
    esp = partitions(DISK)["ESP"]
    spots = [at for at in find(DISK, [word])[word] if esp.offset <= at < esp.offset + esp.size]
    assert spots
    for spot in spots:
        flip_below(booted, DISK, spot)
    restart(booted)
    boots(booted, seconds=BOOT_SECONDS)
    # The system's own root is intact and comes up; it tries, and is refused by the TPM.
    device.eventually(
        "journalctl -b -q -u systemd-cryptsetup@data.service | grep -qi 'fail\\|policy'",
        "the TPM keeps the key",
        seconds=BOOT_SECONDS,
    )
    assert device.attempt("test -e /dev/mapper/data || mountpoint -q /data")[2] != 0
    assert device.attempt("systemctl is-active sluice-provision.service gateway.service")[0].split() != ["active"]


def restart(machine: Machine) -> None:
    """Press the reset button: what the guest holds in memory is gone."""
    machine.agent.close()
    machine.qmp.command("system_reset")
