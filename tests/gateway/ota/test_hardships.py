"""Updates when something is lost or full: what protects then, and each time what would happen without it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from gateway.config import Trial
from gateway.ota import slots
from gateway.ota.errors import UnreachableError
from gateway.ota.install import Plan, Stored
from gateway.ota.journal import VERDICTS, Journal
from gateway.wire.messages import Twin, encode
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import Device, digest, installed
from tests.simulators.bad_models import not_a_number
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for


@pytest.fixture
def repository(tmp_path: Path) -> ReleaseRepository:
    return ReleaseRepository(tmp_path / "repository")


@pytest.fixture
def device(tmp_path: Path, repository: ReleaseRepository) -> Iterator[Device]:
    made = Device(tmp_path / "device", repository)
    release(made.releases, "1.0.0", scorer(1.0))
    repository.plain[digest(scorer(1.0))] = scorer(1.0)
    yield made
    made.stop()


def publish(device: Device, version: str, content: bytes, **more: object) -> None:
    folder = release(device.repository.directory / "plain", version, content, **more)  # type: ignore[arg-type]
    device.repository.publish(folder)


def runs(device: Device, version: str) -> None:
    """Have a device run a release from the air."""
    publish(device, version, scorer(1.0))
    device.start()
    device.desire(version, token=1)
    device.reaches("running", version)


def reverted(device: Device) -> None:
    """Have a device that took a release back, and stops then."""
    publish(device, "2.0.0", not_a_number(4), golden=None)
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("reverted", "2.0.0", "not-a-number", seconds=60)
    wait_for(lambda: device.serving == "1.0.0")
    device.stop()


# ---- a journal that is damaged or gone --------------------------------------------------------------


@pytest.mark.parametrize("content", [b"{", None], ids=["damaged", "gone"])
def test_after_the_loss_of_the_journal_a_release_that_was_taken_back_stays_blocked(
    device: Device, content: bytes | None
) -> None:
    reverted(device)
    device.journal_file.unlink() if content is None else device.journal_file.write_bytes(content)
    device.restart()
    assert device.serving == "1.0.0", "not the one from the air, though it has the higher version"
    assert device.agent.status().damage
    device.desire("2.0.0", token=2)
    device.reaches("blocked", "2.0.0", "not-a-number")
    assert set(device.record.versions) == {"1.0.0"}


def test_without_the_copy_of_the_verdicts_it_would_be_tried_again(device: Device) -> None:
    reverted(device)
    device.journal_file.write_bytes(b"{")
    (device.journal_file.parent / VERDICTS).unlink()
    device.restart()
    device.desire("2.0.0", token=2)
    device.reaches("reverted", "2.0.0", "not-a-number", seconds=60)
    wait_for(lambda: device.serving == "1.0.0")


def test_without_the_mark_in_the_store_and_the_verdicts_it_would_run_as_the_newest(device: Device) -> None:
    reverted(device)
    device.journal_file.write_bytes(b"{")
    (device.journal_file.parent / VERDICTS).unlink()
    device.knows_what_came = False
    device._make()
    assert device.agent.run_begins("motor") == "probe@2.0.0"


def test_where_no_other_release_is_left_the_one_from_the_air_runs(device: Device) -> None:
    runs(device, "2.0.0")
    device.stop()
    device.remove("1.0.0")
    device.journal_file.unlink()
    device.restart()
    assert device.serving == "2.0.0"
    wait_for(lambda: device.journal.is_written)
    assert [each.version for each in Journal(device.state).book.installed] == ["2.0.0"]


# ---- giving back ------------------------------------------------------------------------------------


def held_up(device: Device, repository: ReleaseRepository) -> threading.Event:
    """Have a device that runs 2.0.0 over 1.0.0 and whose fetching stands still on 3.0.0, until the event is set."""
    publish(device, "3.0.0", scorer(1.0))
    runs(device, "2.0.0")
    fetching, go_on = threading.Event(), threading.Event()

    def stall(path: str, content: bytes) -> bytes:
        if "3.0.0" in path:
            fetching.set()
            go_on.wait(60)
        return content

    repository.damage = stall
    device.desire("3.0.0", token=2)
    assert fetching.wait(20)
    return go_on


def test_what_is_given_back_does_not_wait_for_a_download(device: Device, repository: ReleaseRepository) -> None:
    go_on = held_up(device, repository)
    try:
        device.desire("1.0.0", token=3)
        device.reaches("running", "1.0.0", seconds=10)
        assert device.serving == "1.0.0"
    finally:
        go_on.set()
    incoming = device.state / "ota/incoming"
    wait_for(lambda: not [*incoming.glob("*/*")], seconds=20, what="what was on its way is thrown away")
    assert device.serving == "1.0.0"
    assert ("probe", "3.0.0") not in device.there()


def test_without_that_it_would_wait(
    device: Device, repository: ReleaseRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.agent, "_give_back_wanted", lambda _pipeline, _bay: None)
    go_on = held_up(device, repository)
    try:
        device.desire("1.0.0", token=3)
        device.reaches("waiting", "1.0.0")
        answers = len(device.record.versions)
        wait_for(lambda: len(device.record.versions) > answers + 100, seconds=20)
        assert device.serving == "2.0.0"
    finally:
        go_on.set()
    device.reaches("running", "1.0.0")


# ---- what is not wanted any more --------------------------------------------------------------------


def withdraw(device: Device, token: int) -> None:
    """Hand over a twin that assigns nothing."""
    device.agent.take_desired(encode(Twin(version=1, fencing_token=token, at="2026-01-01T00:00:00Z")))


def test_what_is_withdrawn_is_fetched_no_further_and_nothing_of_it_is_left(
    device: Device, repository: ReleaseRepository
) -> None:
    go_on = held_up(device, repository)
    try:
        withdraw(device, token=3)
        device.reaches("running", "2.0.0", "withdrawn")
        withdrawn_at = len(repository.fetched)
    finally:
        go_on.set()
    incoming = device.state / "ota/incoming"
    wait_for(lambda: not [*incoming.glob("*/*")], seconds=20, what="what was fetched is thrown away")
    assert len(repository.fetched) == withdrawn_at, "the file that was on its way, and no other"
    assert ("probe", "3.0.0") not in device.there()
    assert (device.serving, device.slot.blocked) == ("2.0.0", ())
    device.desire("3.0.0", token=4)
    device.reaches("running", "3.0.0")


def test_control_what_is_still_assigned_is_fetched_and_swapped_in(
    device: Device, repository: ReleaseRepository
) -> None:
    go_on = held_up(device, repository)
    go_on.set()
    device.reaches("running", "3.0.0")


def test_a_release_that_is_withdrawn_while_it_is_stored_is_removed_and_never_passes_for_our_own(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    install = device.agent._bringing._installer.install

    def slowly(plan: Plan, progress: Callable[[int], None]) -> Stored:
        stored = install(plan, progress)
        withdraw(device, token=2)
        wait_for(lambda: device.slot.wanted is None, seconds=20, what="it is withdrawn")
        device.journal.change(slots.removed([installed("2.0.0")]))  # as the trial of another pipeline does at its end
        return stored

    monkeypatch.setattr(device.agent._bringing._installer, "install", slowly)
    device.desire("2.0.0", token=1)
    wait_for(lambda: device.slot.told is not None and device.slot.told.code == "withdrawn", seconds=20)
    wait_for(lambda: ("probe", "2.0.0") not in device.there(), seconds=20, what="it is removed again")
    assert device.serving == "1.0.0"
    assert device.agent.run_begins("motor") == "probe@1.0.0"


# ---- a full disk ------------------------------------------------------------------------------------


def test_on_a_full_disk_a_bad_release_is_taken_back_and_that_is_written_down_later(device: Device) -> None:
    device.sensor.noise = 0.05
    publish(device, "2.0.0", scorer(1.6), golden=(1.0, 1.6))
    device.start()
    wait_for(lambda: len(device.watch.reference().scores) >= 200, seconds=20)
    device.desire("2.0.0", token=1)
    device.reaches("trial", "2.0.0")
    with structlog.testing.capture_logs() as logs:
        device.fill_disk()
        wait_for(lambda: device.serving == "1.0.0", seconds=60, what="the release before")
        device.reaches("reverted", "2.0.0", "output-drift")
        wait_for(lambda: device.reports[-1].updates[0].phase == "reverted", what="the bridge hears of it")
        assert not device.journal.is_written
        assert device.agent.status().journal_problem
        ticks = len(device.record.versions)
        wait_for(lambda: len(device.record.versions) > ticks + 400, seconds=20)  # more than two looks
        device.free_disk()
        wait_for(lambda: device.journal.is_written)
        wait_for(lambda: not device.agent.status().journal_problem)
    told = [log["event"] for log in logs if log["event"].startswith("ota_journal")]
    assert told == ["ota_journal_not_written", "ota_journal_written_again"]
    device.restart()
    assert device.serving == "1.0.0"


def test_if_taking_back_waited_for_the_disk_the_bad_release_would_stay(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same, with a journal that must be written before anything is done."""
    device.sensor.noise = 0.05
    publish(device, "2.0.0", scorer(1.6), golden=(1.0, 1.6))
    device.start()
    wait_for(lambda: len(device.watch.reference().scores) >= 200, seconds=20)
    device.desire("2.0.0", token=1)
    device.reaches("trial", "2.0.0")
    monkeypatch.setattr(device.journal, "insist", device.journal.change)
    device.fill_disk()
    wait_for(lambda: device.record.versions.count("2.0.0") > 1500, seconds=60)
    assert device.serving == "2.0.0"
    device.free_disk()
    wait_for(lambda: device.serving == "1.0.0", seconds=20)


def test_a_wish_that_the_disk_does_not_take_is_carried_out_later(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    wait_for(lambda: device.journal.is_written)
    device.fill_disk()
    device.desire("2.0.0", token=1)
    wait_for(lambda: device.agent.status().journal_problem)
    assert device.slot.wanted is None
    device.free_disk()
    device.reaches("running", "2.0.0")


def test_a_crash_that_the_disk_cannot_count_takes_it_back(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.trial = Trial(seconds=600.0)
    device.stop()
    device._make()
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("trial", "2.0.0")
    monkeypatch.setattr(device.agent, "run_ended", lambda _pipeline: None)  # as a process that dies
    device.stop()
    device._make()
    device.fill_disk()
    assert device.agent.run_begins("motor") == "probe@1.0.0"
    device.free_disk()
    device._make()
    assert device.agent.run_begins("motor") == "probe@2.0.0", "the control: the first of three, on a disk with room"


# ---- telling ----------------------------------------------------------------------------------------


def test_every_twin_that_is_refused_is_answered_with_a_report(device: Device) -> None:
    runs(device, "2.0.0")
    device.desire("1.0.0", token=5)
    device.reaches("running", "1.0.0")
    wait_for(lambda: device.reports[-1].fencing_token == 5 and device.reports[-1].updates[0].phase == "running")
    for number in (7, 8, 9):
        before = len(device.reports)
        device.desire("2.0.0", token=4, number=number)
        wait_for(lambda before=before: len(device.reports) > before, what="a report")  # type: ignore[misc]
        assert device.reports[-1].fencing_token == 5


def test_a_release_that_is_missing_is_told_once(device: Device) -> None:
    runs(device, "2.0.0")
    device.stop()
    device.vault.remove("probe", "2.0.0")
    device.repository.failing = UnreachableError("nobody answers")  # else it would be fetched again
    with structlog.testing.capture_logs() as logs:
        device.restart()
        answers = len(device.record.versions)
        wait_for(lambda: len(device.record.versions) > answers + 700, seconds=30)  # more than three looks
        assert device.serving == "1.0.0"
    assert [log["event"] for log in logs].count("ota_release_missing") == 1
