"""A board whose clock stops without power: its time goes on where it was, and certificates of an hour stay valid."""

from collections.abc import Iterator

import pytest

from hil.rig.machine import NIC, Machine, boots
from tests.image.conftest import BOOT_SECONDS, device_of

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

LONG_AGO = "2015-01-01"
KEPT = "/var/lib/systemd/timesync/clock"


@pytest.fixture
def clockless(booted: Machine) -> Iterator[Machine]:
    """The board that has booted once; its clock is wrong from the next start on."""
    booted.extra = ["-rtc", f"base={LONG_AGO}"]
    try:
        yield booted
    finally:
        booted.extra = []


def test_a_device_whose_clock_stopped_with_the_power_goes_on_with_the_last_time_that_it_knew(
    clockless: Machine,
) -> None:
    device = device_of(clockless)
    known = int(device.run("date +%s"))
    device.eventually(f"test $(stat -c %Y {KEPT}) -ge {known} && sync", "the time is kept", seconds=300.0)
    clockless.cut_power()
    clockless.power_on()
    clockless.qmp.command("set_link", name=NIC, up=False)  # nobody tells it the time
    boots(clockless, seconds=BOOT_SECONDS)
    device.eventually("systemctl is-active -q multi-user.target", "the boot is finished", seconds=BOOT_SECONDS)
    assert device.run("cut -d- -f1 /sys/class/rtc/rtc0/date") == LONG_AGO[:4], "its clock knows nothing"
    assert int(device.run("date +%s")) >= known
