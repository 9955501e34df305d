"""A release from the air that is damaged on the disk, or gone from it, is fetched again by itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.errors import ModelError
from gateway.ota.errors import UnreachableError
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import NAME, Device, digest, installed
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for

Damage = Callable[[Path], object]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device that runs 2.0.0, which came over the air and has proved itself; it is off."""
    made = Device(tmp_path / "device", ReleaseRepository(tmp_path / "repository"))
    release(made.releases, "1.0.0", scorer(1.0))
    made.repository.plain[digest(scorer(1.0))] = scorer(1.0)
    made.repository.publish(release(made.repository.directory / "plain", "2.0.0", scorer(1.0)))
    made.start()
    made.desire("2.0.0", token=1)
    made.reaches("running", "2.0.0")
    made.stop()
    yield made
    made.stop()


def flip(directory: Path) -> None:
    (container,) = directory.glob("*.sealed")
    content = bytearray(container.read_bytes())
    content[-10] ^= 1
    container.write_bytes(content)


def stored(device: Device) -> Path:
    return device.models.directory / NAME / "2.0.0"


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / "manifest.json").write_bytes(b""),
        lambda directory: [each.unlink() for each in directory.glob("*.sealed")],
        lambda directory: [each.unlink() for each in directory.glob("in*.bin")],
    ],
    ids=["an empty manifest", "no weights", "no golden inputs"],
)
def test_a_damaged_release_is_put_aside_fetched_again_and_runs_without_another_trial(
    device: Device, damage: Damage
) -> None:
    damage(stored(device))
    device.restart()
    wait_for(lambda: "1.0.0" in device.record.versions or device.serving == "2.0.0", what="the way back answers")
    wait_for(lambda: device.serving == "2.0.0", seconds=30, what="it is back")
    assert "release_damaged" in [code for code, _ in device.notices]
    assert [each.name for each in (device.state / "models-damaged").iterdir()] == [f"{NAME}-2.0.0"]
    wait_for(lambda: device.slot.wanted is None, what="nothing is wanted any more")
    assert (device.slot.active, device.slot.trial) == (installed("2.0.0"), None)
    device.reaches("running", "2.0.0")
    assert [each.what for each in device.journal.book.history].count("swapped") == 1
    windows = device.record.sequences
    assert windows == [*range(windows[0], windows[0] + len(windows))], "every window has exactly one answer"


def test_weights_that_do_not_decrypt_are_fetched_again(device: Device) -> None:
    flip(stored(device))
    with pytest.raises(ModelError, match="assign it again"):
        device.load(device.agent.run_begins("motor"))
    assert not stored(device).exists()
    device.restart()
    wait_for(lambda: device.serving == "2.0.0", seconds=30, what="it is back")


def test_while_the_repository_is_out_of_reach_the_way_back_serves_and_what_is_gone_stays_wanted(device: Device) -> None:
    device.repository.failing = UnreachableError("nobody answers")
    device.vault.remove(NAME, "2.0.0")
    device.restart()
    wait_for(lambda: device.slot.wanted is not None, what="it is wanted")
    wait_for(lambda: device.phase() == ("waiting", "2.0.0", "unreachable"), what="that is said")
    assert device.serving == "1.0.0"
    device.repository.failing = None
    device.connects += 1
    wait_for(lambda: device.serving == "2.0.0", seconds=30, what="it is back")


def test_a_release_that_was_taken_back_is_not_fetched_when_it_is_gone(device: Device) -> None:
    device.restart()
    device.agent.rollback("motor")
    wait_for(lambda: device.serving == "1.0.0")
    device.stop()
    device.vault.remove(NAME, "2.0.0")
    device.restart()
    answers = len(device.record.versions)
    wait_for(lambda: len(device.record.versions) > answers + 400, seconds=30)  # more than two looks
    assert device.slot.wanted is None
    assert device.serving == "1.0.0"
