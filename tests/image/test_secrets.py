"""What is a device's own is nobody else's, and is gone after a factory reset."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig.device import GATEWAY, Device
from hil.rig.disk import find
from hil.rig.machine import Board, Machine, boots
from tests.image.conftest import BOOT_SECONDS, DISK, device_of, up

pytestmark = [pytest.mark.image, pytest.mark.timeout(5400)]


@pytest.fixture
def second(image: Path, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(Board(image=DISK, directory=tmp_path / "second"))
    made.flash()
    try:
        yield made
    finally:
        made.close()


def own(device: Device) -> dict[str, str]:
    """Return what must be different on each device."""
    found = {
        "machine id": device.run("cat /etc/machine-id").strip(),
        "boot id": device.boot_id(),
        "file system of data": device.run("findmnt -n -o UUID /data").strip(),
        "file system of outbox": device.run("findmnt -n -o UUID /data/outbox").strip(),
    }
    for label in ("data", "outbox"):
        dump = device.run(f"cryptsetup luksDump /dev/disk/by-partlabel/{label}")
        found[f"header of {label}"] = re.findall(r"UUID:\s+(\S+)", dump)[0]
        found[f"salts of {label}"] = " ".join(re.findall(r"Salt:\s+((?:[0-9a-f]{2} ?)+)", dump))
        key = device.run(f"dmsetup table --showkeys {label} | cut -d' ' -f5").strip()
        found[f"key of {label}"] = key if not key.startswith(":") else found[f"header of {label}"]
    return found


def test_two_devices_of_one_image_share_no_secret(booted: Machine, second: Machine) -> None:
    one = own(device_of(booted))
    booted.cut_power()  # the emulated processors are needed
    other = own(up(second))
    same = {name for name in one if one[name] == other[name]}
    assert same == set()


def test_the_disk_of_one_device_does_not_open_on_another(machine: Machine, second: Machine, tmp_path: Path) -> None:
    device = up(machine)
    device.run("echo secret-of-the-first >/data/rig && sync")
    machine.power_off()
    second.replace_disk(machine.raw_disk(tmp_path / "stolen.raw"))
    second.power_on()
    try:
        boots(second, seconds=300.0)
        opened = "secret" in device_of(second).attempt("cat /data/rig")[0]
    except RigError:  # it may come up in a rescue mode, or not at all: it must not show the secret
        opened = False
    assert not opened


def test_a_factory_reset_leaves_nothing_that_could_be_found(booted: Machine, tmp_path: Path) -> None:
    device = device_of(booted)
    canary = b"canary-" + tmp_path.name.encode() + b"-0123456789abcdef"
    device.put(canary * 64, "/data/rig-canary")
    device.put(canary * 64, "/data/outbox/rig-canary")
    device.run("sync")
    before = own(device)
    # The content is encrypted, so what must be gone is what opens it: the headers with their salts.
    needles = [canary, before["header of data"].encode(), before["header of outbox"].encode()]
    needles += [bytes.fromhex(before[f"salts of {label}"].split("  ")[0][:23]) for label in ("data", "outbox")]
    assert find(booted.raw_disk(tmp_path / "before.raw"), needles[1:]).keys() == set(needles[1:])
    boot = device.boot_id()
    said = device.run(f"{GATEWAY} appliance reset --yes 2>&1")
    device.attempt("systemctl reboot --no-block")
    device.eventually(
        f"test $(cat /proc/sys/kernel/random/boot_id) != {boot} && test -d /data/etc-sluice && "
        "test ! -e /data/lib-sluice/reset-request.json && systemctl is-active -q multi-user.target",
        "the device is as new",
        seconds=2 * BOOT_SECONDS,
    )
    after = own(device)
    assert device.attempt("test -e /data/rig-canary")[2] != 0, said
    for name in before:
        assert before[name] != after[name] or name == "machine id", name
    booted.power_off()
    assert find(booted.raw_disk(tmp_path / "after.raw"), needles) == {}
