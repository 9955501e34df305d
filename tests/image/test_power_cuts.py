"""The power goes at any moment: the device always boots after that, and what was called durable is there.

The disk has a cache that forgets: of what was not flushed, chance picks what has reached it (`hil.rig.writes`).
The short form cuts a few times; `SLUICE_RIG_CUTS=20 make test-image ARGS="-k power"` is the long one.
"""

import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.outbox.store import Outbox
from hil.loopback.children import RigError
from hil.rig.device import Device
from hil.rig.luks import Volume, decrypt, volume
from hil.rig.machine import Machine, boots, tail
from hil.rig.patience import patient
from hil.rig.writes import VolatileDisk, written_operations
from tests.chaos.storage.cuts import mounted
from tests.image.conftest import BOOT_SECONDS, FirstBoot, device_of
from tests.image.outbox_user import SETTINGS, held

pytestmark = [pytest.mark.image, pytest.mark.timeout(12 * 3600)]

CUTS = int(os.environ.get("SLUICE_RIG_CUTS", "3"))
SEED = int(os.environ.get("SLUICE_RIG_SEED", "1"))
CUTS_OF_A_BOARD = 4
"""Then it comes from the factory again: partitions are made at the first boot alone."""
USER = Path(__file__).with_name("outbox_user.py")
STORES = {"kept": "/data/outbox/rig/outbox.db", "careless": "/data/rig-careless/outbox.db"}
LABELS = {"kept": "outbox", "careless": "data"}
MOUNTS = {"outbox": "/data/outbox", "data": "/data"}
ENOUGH = max(60, 8 * CUTS)
RECEIPTS = re.compile(r"^@(kept|careless) ([0-9a-f]{16})((?: \d+ [0-9a-f]{20})+) \.\r?$", re.MULTILINE)


@pytest.fixture
def chance() -> random.Random:
    print(f"seed {SEED}: SLUICE_RIG_SEED={SEED} repeats it")
    return random.Random(SEED)


# ---- the first boot ------------------------------------------------------------------------------------


def test_power_cuts_during_the_first_boot_leave_a_device_that_boots(
    machine: Machine, first_boot: FirstBoot, chance: random.Random
) -> None:
    first_boot.machine.cut_power()  # the emulated processors are needed
    disk: VolatileDisk | None = None
    for number in range(CUTS):
        if number % CUTS_OF_A_BOARD == 0:
            if disk is not None:
                assert_whole(machine, disk)
                disk.restore()
            machine.flash()
            disk = VolatileDisk(machine, chance)
        assert disk is not None
        disk.power_on()
        # Moments are counted in writes: between two of them a cut is the same as at the first.
        moment = int(chance.uniform(0.0, 1.05) * first_boot.writes)
        told = wait_for_writes(machine, moment)
        cut = disk.cut_power()
        print(f"cut {number + 1} after {told} writes of about {first_boot.writes}: {cut}")
    if disk is not None:
        assert_whole(machine, disk)


def wait_for_writes(machine: Machine, moment: int) -> int:
    """Wait until the guest has written so often, or its boot is finished; returns how often it has."""
    deadline = time.monotonic() + patient(BOOT_SECONDS)
    looks = 0
    while (told := written_operations(machine)) < moment:
        looks += 1
        if looks % 100 == 0 and is_finished(machine):
            break
        if time.monotonic() > deadline:
            raise RigError(f"neither {moment} writes nor a finished boot; the console ends with\n{tail(machine)}")
        time.sleep(0.05)
    return told


def is_finished(machine: Machine) -> bool:
    return machine.agent.answers() and device_of(machine).attempt("systemctl is-active multi-user.target")[2] == 0


def assert_whole(machine: Machine, disk: VolatileDisk) -> None:
    """Switch the device on and see that it is what a first boot makes."""
    disk.power_on_for_good()
    boots(machine, seconds=BOOT_SECONDS)
    device = device_of(machine)
    device.eventually("systemctl is-active -q multi-user.target", "the boot is finished", seconds=BOOT_SECONDS)
    assert device.failed_units() == []
    for mount, label in (("/data", "data"), ("/data/outbox", "outbox")):
        device.run(f"mountpoint -q {mount} && cryptsetup isLuks --type luks2 /dev/disk/by-partlabel/{label}")
        dump = device.run(f"cryptsetup luksDump /dev/disk/by-partlabel/{label}")
        slots = re.findall(r"^\s+(\d+): luks2", dump, re.MULTILINE)
        assert len(slots) == 1, f"encrypted once, for the TPM alone:\n{dump}"
    assert device.booted_slot() == "a"
    device.run("touch /data/rig-written /data/outbox/rig-written && sync")


# ---- a device that works -------------------------------------------------------------------------------


@dataclass
class Promises:
    """What one store has called durable: the digest of each record, by its number."""

    epoch: str = ""
    records: dict[int, str] = field(default_factory=dict)


def heard(console: str) -> dict[str, Promises]:
    """Return what the stores have promised on the console."""
    found = {name: Promises() for name in STORES}
    for name, epoch, pairs in RECEIPTS.findall(console):
        words = pairs.split()
        found[name].epoch = epoch
        found[name].records |= dict(zip(map(int, words[::2]), words[1::2], strict=True))
    return found


def produce(device: Device, name: str) -> None:
    """Let a store be used from now on; each receipt goes to the console."""
    device.run(f"install -d -o sluice -g sluice $(dirname {STORES[name]})")
    device.run(
        f"systemd-run --quiet --unit=rig-{name} --uid=sluice --property=StandardOutput=file:/dev/ttyS0 "
        f"--property=StandardError=journal /opt/sluice/bin/python /run/rig-user.py {name} {STORES[name]}"
    )


def left(raw: Path, volume: Volume, name: str, scratch: Path) -> Promises:
    """Return what a store holds, on a disk whose board is off: mounted as the device would, opened as the gateway does.

    The file system replays its journal, the store its log.
    """
    image = decrypt(raw, volume, scratch / "volume.img")
    inside = Path(STORES[name]).relative_to(MOUNTS[volume.label])
    try:
        with mounted(image, scratch / "mounted") as place:
            outbox = Outbox.open(place / inside, SETTINGS)
            try:
                return Promises(outbox.epoch, held(outbox))
            finally:
                outbox.close()
    finally:
        image.unlink()


def lost(promised: Promises, there: Promises) -> set[int]:
    return {number for number, digest in promised.records.items() if there.records.get(number) != digest}


@pytest.fixture
def forgetful(booted: Machine, chance: random.Random) -> Iterator[VolatileDisk]:
    """The board that has booted once, now with a cache that forgets."""
    booted.qmp.command("stop")
    booted.restore("booted")
    disk = VolatileDisk(booted, chance, snapshot="booted")
    disk.insert()
    booted.qmp.command("cont")
    try:
        yield disk
    finally:
        disk.restore()


def test_no_record_that_was_acknowledged_is_lost_with_the_power(
    booted: Machine, forgetful: VolatileDisk, chance: random.Random, tmp_path: Path
) -> None:
    """The control dies in the same cut: a store that does not wait for the disk loses what it has acknowledged."""
    device = device_of(booted)
    volumes = {name: volume(device, label) for name, label in LABELS.items()}
    device.put(USER.read_bytes(), "/run/rig-user.py", mode="644")
    begin = len(booted.console_log.read_text(errors="replace"))
    for name in STORES:
        produce(device, name)
    # What was promised first, then the length of the log: what was promised is on the disk within that length.
    moments: list[tuple[dict[str, Promises], int]] = []
    deadline = time.monotonic() + patient(BOOT_SECONDS)
    while not moments or any(len(each.records) < ENOUGH for each in moments[-1][0].values()):
        if time.monotonic() > deadline:
            raise RigError(f"nothing is stored: {device.journal('-u', 'rig-kept', '-u', 'rig-careless')}")
        promised = heard(booted.console_log.read_text(errors="replace")[begin:])
        moments.append((promised, forgetful.logged))
        time.sleep(0.1)
    booted.cut_power()
    ends = [*(size for _, size in moments), forgetful.logged]
    worth = [at for at, (promised, _) in enumerate(moments) if promised["kept"].records]
    chosen = sorted({*chance.sample(worth, min(CUTS, len(worth)) - 1), len(moments) - 1})
    sizes = [chance.randint(ends[at], ends[at + 1]) for at in chosen]
    careless_lost = 0
    for at, (raw, cut) in zip(chosen, forgetful.left_at(sizes), strict=True):
        for name, of in volumes.items():
            promised_then = moments[at][0][name]
            there = left(raw, of, name, tmp_path)
            gone = lost(promised_then, there)
            print(f"moment {at}, {name}: {len(promised_then.records)} acknowledged, {len(gone)} of them gone; {cut}")
            if name == "careless":
                careless_lost += len(gone)
            else:
                assert there.epoch == promised_then.epoch
                assert gone == set()
    assert careless_lost > 0, "the oracle sees a loss where there is one"
