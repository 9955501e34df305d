"""The power goes at any moment of the first boot: the device always boots after that, with its disk encrypted once.

The short form cuts a few times; `SLUICE_RIG_CUTS=20 make test-image ARGS="-k power"` is the long one.
"""

import os
import random
import time

import pytest

from hil.rig.machine import Machine, boots
from tests.image.conftest import BOOT_SECONDS, device_of

pytestmark = [pytest.mark.image, pytest.mark.timeout(6 * 3600)]

CUTS = int(os.environ.get("SLUICE_RIG_CUTS", "3"))
SEED = int(os.environ.get("SLUICE_RIG_SEED", "1"))


def test_power_cuts_during_the_first_boot_leave_a_device_that_boots(machine: Machine) -> None:
    moments = random.Random(SEED)
    machine.power_on()
    whole = boots(machine, seconds=BOOT_SECONDS)
    machine.cut_power()
    told = []
    for number in range(CUTS):
        if number % 4 == 0:
            machine.flash()  # from the factory again: partitions are made at the first boot
        moment = moments.uniform(0.1, 1.1) * whole
        told.append(round(moment, 1))
        machine.power_on()
        time.sleep(moment)  # the moment is what is tested
        machine.cut_power()
    machine.power_on()
    try:
        boots(machine, seconds=BOOT_SECONDS)
    except BaseException:
        print(f"seed {SEED}, cuts after {told} s of {whole:.0f} s")
        raise
    device = device_of(machine)
    device.eventually("systemctl is-active -q multi-user.target", "the boot is finished", seconds=BOOT_SECONDS)
    assert device.failed_units() == []
    for label in ("data", "outbox"):
        assert "LUKS2" in device.run(f"cryptsetup luksDump /dev/disk/by-partlabel/{label} | head -3; echo LUKS2")
    assert device.booted_slot() == "a"
