"""The gateway is killed before and after each entry of the journal; the device ends where it would have ended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.osupdate.journal import Book, Journal, Step
from tests.gateway.osupdate.rig import Device, Vendor


class KilledError(BaseException):
    """The process is gone at this point."""


class DyingJournal(Journal):
    """Knobs: `dies_at`, the number of the write; `after`, whether it still reaches the disk; `forgets`: none does."""

    dies_at = 0
    after = False
    forgets = False
    written = 0

    def change(self, step: Step) -> Book:
        """Write, or die."""
        if step(self._book) == self._book:
            return self._book
        type(self).written += 1
        dies = self.written == self.dies_at
        if dies and not self.after:
            raise KilledError
        if self.forgets:
            self._book = step(self._book)
        else:
            super().change(step)
        if dies:
            raise KilledError
        return self._book


def journal_of(**knobs: object) -> Callable[[Path], Journal]:
    return type("Dying", (DyingJournal,), knobs)


def live(device: Device, *, power_cuts: bool) -> int:
    """Let the device live until nothing is left to do; return how often it was killed."""
    deaths = 0
    for _ in range(20):
        try:
            if device.token == 0 or device.book.token == 0:
                device.want("1.1.0", token=1)
            device.update()
        except KilledError:
            deaths += 1
            if power_cuts:
                device.restart()
            else:
                device.start()
            continue
        if device.book.job is None:
            return deaths
    raise AssertionError(f"it comes to no end: {device.book.job}")


WRITES = 26


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("after", "fate"), [(False, "panics"), (True, "healthy")])
def test_wherever_it_is_killed_the_update_ends_as_it_would_have(
    tmp_path: Path,
    vendor: Vendor,
    after: bool,
    fate: str,
) -> None:
    vendor.publish("1.1.0")
    deaths = 0
    for at in range(1, WRITES):
        device = Device(tmp_path / f"device-{at}", vendor, journal_of=journal_of(dies_at=at, after=after))
        device.machine.fate("1.1.0", fate)  # type: ignore[arg-type]
        died = live(device, power_cuts=at % 2 == 0)
        deaths += died
        assert device.machine.version == ("1.1.0" if fate == "healthy" else "1.0.0"), at
        assert device.phase == ("running" if fate == "healthy" else "reverted"), (at, device.told)
        assert device.machine.state.get("installs", 0) <= 2, "an installation is at most repeated once"
        if not died:
            break
    else:
        pytest.fail("more writes than were looked at")
    assert deaths >= 10


def test_control_without_a_journal_nobody_knows_that_the_image_failed(tmp_path: Path, vendor: Vendor) -> None:
    vendor.publish("1.1.0")
    device = Device(tmp_path / "device", vendor, journal_of=journal_of(forgets=True))
    device.machine.fate("1.1.0", "panics")
    device.want("1.1.0")
    device.install()
    device.restart()
    for _ in range(5):
        device.tick()
    assert device.told is None
    assert device.book.is_blocked("sluice-uefi-amd64", "1.1.0") is None
