"""What is a device's own is nobody else's, and is gone after a factory reset."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig.device import GATEWAY, Device
from hil.rig.disk import find, partitions
from hil.rig.luks import decrypt, volume
from hil.rig.machine import Board, Machine
from tests.image.conftest import BOOT_SECONDS, DISK, device_of, up

pytestmark = [pytest.mark.image, pytest.mark.timeout(5400)]

VOLUMES = ("data", "outbox")
NAMES = {"machine id"} | {f"{what} of {label}" for what in ("file system", "header") for label in VOLUMES}
"""What systemd derives from the board's own number. It names things, and opens none."""


@pytest.fixture(scope="module")
def another(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Another board of the same image that has booted once, with a snapshot `booted` of that; off."""
    made = Machine(Board(image=DISK, directory=tmp_path_factory.mktemp("second") / "board"))
    made.flash()
    try:
        up(made)
        made.save("booted")
        made.cut_power()
        yield made
    finally:
        made.close()


@pytest.fixture
def second(another: Machine) -> Iterator[Machine]:
    """The other board, still off: it gets its power when the first one needs the emulated processors no more."""
    try:
        yield another
    finally:
        another.cut_power()


def running(machine: Machine) -> Device:
    """Bring a board back to where it had booted."""
    machine.power_on()
    machine.restore("booted")
    return device_of(machine)


def own(device: Device) -> dict[str, str]:
    """Return what must be different on each device."""
    found = {
        "machine id": device.run("cat /etc/machine-id").strip(),
        "file system of data": device.run("findmnt -n -o UUID /data").strip(),
        "file system of outbox": device.run("findmnt -n -o UUID /data/outbox").strip(),
    }
    for label in VOLUMES:
        found |= header(device, label)
        found[f"key of {label}"] = volume(device, label).key.hex()
    return found


def header(device: Device, label: str) -> dict[str, str]:
    """Return what the header of an encrypted partition holds of its own, as it stands on the disk."""
    dump = device.run(f"cryptsetup luksDump /dev/disk/by-partlabel/{label}")
    (identity,) = re.findall(r"^UUID:\s+(\S+)", dump, re.MULTILINE)
    salts = [bytes.fromhex("".join(text.split())) for text in re.findall(r"Salt:\s+((?:[0-9a-f]{2}\s+)+)", dump)]
    assert salts
    assert all(len(salt) == 32 for salt in salts), dump
    found = {f"header of {label}": identity}
    found |= {f"salt {number} of {label}": base64.b64encode(salt).decode() for number, salt in enumerate(salts)}
    return found


def files(device: Device) -> dict[str, str]:
    """Return the digest of every file that the device has written, by its name."""
    listed = device.run("find /data -type f -size +15c ! -path '*/journal/*' -exec sha256sum {} +", seconds=300.0)
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in listed.splitlines())}


def test_two_devices_of_one_image_share_no_secret(booted: Machine, second: Machine) -> None:
    first = device_of(booted)
    one, written = own(first), files(first)
    booted.cut_power()  # the emulated processors are needed
    other = running(second)
    same = {name for name, value in own(other).items() if one.get(name) == value}
    assert same == set()
    shared = {name for name, digest in files(other).items() if digest in set(written.values())}
    assert shared == set()


def test_the_disk_of_one_device_does_not_open_on_another(booted: Machine, second: Machine, tmp_path: Path) -> None:
    device = device_of(booted)
    device.run("echo secret-of-the-first >/data/rig && sync")
    stolen = stopped(booted, tmp_path / "stolen.raw")
    # The control: its own TPM gives the key, and with it the secret is there to be read.
    plain = decrypt(stolen, volume(device, "data"), tmp_path / "plain.img")
    assert find(plain, [b"secret-of-the-first"])
    assert not find(stolen, [b"secret-of-the-first"])
    booted.cut_power()
    other = running(second)
    assert volume(other, "data").key
    file = {"driver": "file", "filename": str(stolen)}
    second.qmp.command("blockdev-add", driver="raw", node_name="stolen", file=file)
    second.qmp.command("device_add", driver="usb-storage", id="stolen", drive="stolen", bus="usb.0")
    node = f"/dev/sda{list(partitions(stolen)).index('data') + 1}"
    other.eventually(f"cryptsetup isLuks --type luks2 {node}", "the stolen disk is plugged in", seconds=120.0)
    with pytest.raises(RigError, match="assert"):
        volume(other, "data", node)


def test_a_factory_reset_leaves_nothing_that_could_be_found(booted: Machine, tmp_path: Path) -> None:
    device = device_of(booted)
    canary = b"canary-" + tmp_path.name.encode() + b"-0123456789abcdef"
    device.put(canary * 64, "/data/rig-canary")
    device.put(canary * 64, "/data/outbox/rig-canary")
    device.run("sync")
    before = own(device)
    # The control: the search finds what was not erased.
    salts = [text.encode() for name, text in before.items() if name.startswith("salt ")]
    assert find(stopped(booted, tmp_path / "before.raw"), [*salts, canary]).keys() == set(salts)
    boot = device.boot_id()
    device.run(f"{GATEWAY} appliance reset --yes", seconds=BOOT_SECONDS)
    device.attempt("systemctl reboot --no-block")
    device.eventually(
        f"test $(cat /proc/sys/kernel/random/boot_id) != {boot} && mountpoint -q /data/outbox && "
        "test ! -e /data/lib-sluice/reset-request.json && systemctl is-active -q multi-user.target",
        "the device is as new",
        seconds=3 * BOOT_SECONDS,
    )
    assert device.attempt("test -e /data/rig-canary || test -e /data/outbox/rig-canary")[2] != 0
    after = own(device)
    assert {name for name in before if before[name] == after.get(name)} == NAMES
    device.run("sync")
    # What was written is encrypted, so what must be gone is what opens it: the headers with their salts.
    assert find(stopped(booted, tmp_path / "after.raw"), [*salts, canary]) == {}


def stopped(machine: Machine, target: Path) -> Path:
    """Read the disk of a machine that stands still meanwhile."""
    machine.qmp.command("stop")  # QEMU writes down what it had held back
    try:
        return machine.raw_disk(target)
    finally:
        machine.qmp.command("cont")
