"""A release from the air whose content key is over: another one serves, and it comes back with its key."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.public import PublicKey, SealedBox

from gateway.errors import WeightsWithheldError
from gateway.ota.errors import UnreachableError
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import NAME, Device, digest, installed
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device that runs 2.0.0, which came over the air and has proved itself; it is off, and gets no key unasked."""
    made = Device(tmp_path / "device", ReleaseRepository(tmp_path / "repository"))
    release(made.releases, "1.0.0", scorer(1.0))
    made.repository.plain[digest(scorer(1.0))] = scorer(1.0)
    for version in ("2.0.0", "3.0.0"):
        made.repository.publish(release(made.repository.directory / "plain", version, scorer(1.0)))
    made.start()
    made.desire("2.0.0", token=1)
    made.reaches("running", "2.0.0")
    made.stop()
    made.grants = False
    yield made
    made.stop()


def grant(device: Device, version: str, lease_until_ns: int | None = None) -> None:
    """Hand over the content key of one release; without a lease, for as long as is usual."""
    [found] = [each for each, label in device.repository.labels.items() if label.endswith(version)]
    wrapped = bytes(SealedBox(PublicKey(device.vault.recipient())).encrypt(device.repository.keys[found]))
    device.vault.accept_grant(found, wrapped, lease_until_ns, label=device.repository.labels[found])


def end_lease(device: Device, version: str) -> None:
    grant(device, version, lease_until_ns=1)
    with pytest.raises(WeightsWithheldError, match="lease"):
        device.load(f"{NAME}@{version}")


def test_when_the_key_of_what_should_run_is_over_the_way_back_serves_until_it_comes(device: Device) -> None:
    end_lease(device, "2.0.0")
    device.restart()
    assert device.serving == "1.0.0"
    device.reaches("waiting", "2.0.0", "key")
    wait_for(lambda: device.renewals > 0, what="its key is asked for")
    assert device.slot.active == installed("2.0.0"), "it is still what should run"
    assert device.slot.blocked == ()
    grant(device, "2.0.0")
    wait_for(lambda: device.serving == "2.0.0", what="it is back")
    device.reaches("running", "2.0.0")


def test_while_nobody_can_be_asked_the_way_back_serves_too(device: Device) -> None:
    device.repository.failing = UnreachableError("nobody answers")
    end_lease(device, "2.0.0")
    device.restart()
    assert device.serving == "1.0.0"
    grant(device, "2.0.0")  # as from the broker, or a clock that is right again
    wait_for(lambda: device.serving == "2.0.0", what="it is back")


def test_taking_a_pin_away_does_not_stop_what_runs(device: Device) -> None:
    end_lease(device, "2.0.0")
    device.restart()
    device.agent.pin("motor", installed("1.0.0"))
    device.reaches("pinned", "1.0.0", "pinned")
    device.agent.unpin("motor")
    wait_for(lambda: device.slot.pinned is None)
    answers = len(device.record.versions)
    wait_for(lambda: len(device.record.versions) > answers + 200, what="it goes on")
    assert device.serving == "1.0.0"


def test_a_new_release_mends_a_device_on_which_nothing_can_run(device: Device) -> None:
    end_lease(device, "2.0.0")
    (device.releases / NAME / "1.0.0" / "manifest.json").unlink()
    device.vault.remove(NAME, "1.0.0")
    device._make()
    with pytest.raises(WeightsWithheldError):
        device.load(device.agent.run_begins("motor"))
    grant(device, "3.0.0")
    device.desire("3.0.0", token=2)
    device.agent.tick()
    device.agent.fetch_round()
    assert device.slot.active == installed("3.0.0")
    assert device.slot.trial is not None
    device.start()
    assert device.serving == "3.0.0"
    device.reaches("running", "3.0.0")
