"""An update of the system from the wish to the last word, over a simulated RAUC and a real repository."""

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.config import Os
from gateway.osupdate.errors import OsUpdateError
from gateway.osupdate.journal import Stage, reach
from gateway.ota.errors import UnreachableError
from gateway.ota.ways import DirectoryWay
from tests.gateway.osupdate.rig import COMPATIBLE, Device, Vendor
from tests.simulators.os_bundle import Signer


def test_an_assigned_image_is_installed_started_and_kept_once_it_was_marked_good(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0", floor="1.0.0")
    device.want("1.1.0")
    device.install()
    assert device.machine.version == "1.0.0", "nothing runs before the restart"
    assert device.restart() == "b"
    device.tick()
    assert device.phase == "trial"
    for _ in range(5):
        device.tick()
    assert device.phase == "trial", "it has not been marked good"
    device.machine.bless(device.health_file)
    device.tick()
    assert device.told is not None
    assert (device.told.phase, device.told.kind, device.told.fencing_token) == ("running", "os", 1)
    assert device.story == ["wanted", "fetched", "installed", "restarting", "started", "proven"]
    reported = device.reported
    assert reported.os is not None
    assert (reported.os.version, reported.os.slot, reported.os.other_version) == ("1.1.0", "b", "1.0.0")
    assert reported.assignments[0].model.version == "1.1.0"
    assert not [*(device.state / "os" / "bundles").iterdir()], "the bundle is not kept"
    cost = device.told.fetched_bytes
    assert cost > 0
    for _ in range(3):
        device.tick()
    assert device.told.fetched_bytes == cost, "what it has cost goes on being told"


@pytest.mark.parametrize("good_on_trial", [False, True], ids=["as the appliance's boot chooser tells it", "control"])
def test_a_system_that_was_found_healthy_and_not_marked_good_is_still_on_trial(
    device: Device, vendor: Vendor, *, good_on_trial: bool
) -> None:
    """Marking may fail, and a slot without its mark is left by the boots to come. The control tells so too early."""
    device.machine.set(good_on_trial=good_on_trial)
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.install()
    device.restart()
    device.tick()
    device.machine.report(device.health_file)
    for _ in range(5):
        device.tick()
    assert device.told is not None
    assert device.phase == ("running" if good_on_trial else "trial")
    if good_on_trial:
        return
    assert "not marked good" in device.told.reason
    device.machine.bless()
    device.tick()
    assert device.phase == "running"


@pytest.mark.parametrize("fate", ["kept", "left"])
def test_another_image_that_is_wanted_during_a_trial_does_not_go_over_the_last_good_one(
    device: Device, vendor: Vendor, fate: str
) -> None:
    vendor.publish("1.1.0")
    vendor.publish("1.2.0")
    device.want("1.1.0")
    device.install()
    device.restart()
    device.tick()
    assert device.phase == "trial"
    device.want("1.2.0")
    device.until(lambda: device.told is not None and device.told.code == "trial")
    for _ in range(10):
        device.tick()
    assert device.machine.state["slots"]["a"]["version"] == "1.0.0"
    if fate == "kept":
        device.machine.bless(device.health_file)
    else:
        device.machine.give_up()
        assert device.restart() == "a"
    device.update()
    assert device.machine.version == "1.2.0"
    assert device.machine.state["slots"]["a" if fate == "kept" else "b"]["version"] == "1.2.0"


def test_the_device_is_restarted_only_in_a_window_and_with_an_empty_outbox(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0")
    device.window_open = device.flushed = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    for _ in range(30):
        device.tick()
    assert not device.restarting.exists()
    device.window_open = True
    device.tick()
    assert device.told is not None
    assert device.told.code == "outbox"
    device.flushed = True
    device.tick()
    assert device.restarting.exists()


def test_a_restart_does_not_wait_for_ever_for_an_outbox_that_cannot_be_emptied(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0")
    device.flushed = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "outbox")
    device.until(device.restarting.exists, seconds=60.0)


@pytest.mark.parametrize(
    ("fate", "code", "words"),
    [
        ("unhealthy", "health", "gateway.service was restarted 5 times"),
        ("panics", "no-boot", "tries to boot are used up"),
    ],
)
def test_an_image_that_does_not_come_up_ends_on_the_old_slot_with_the_reason(
    device: Device, vendor: Vendor, fate: str, code: str, words: str
) -> None:
    vendor.publish("1.1.0")
    device.machine.fate("1.1.0", fate)  # type: ignore[arg-type]
    device.want("1.1.0")
    device.install()
    assert device.restart() == "a"
    device.tick()
    assert device.told is not None
    assert (device.told.phase, device.told.code) == ("reverted", code)
    assert words in device.told.reason
    assert device.told.running_model is not None
    assert device.told.running_model.version == "1.0.0"
    assert [note for note, _ in device.notes] == ["os_installed", "os_reverted"]
    device.want("1.1.0")
    device.tick()
    assert device.phase == "blocked", "the same image is not tried again by itself"
    assert device.machine.state["installs"] == 1


def test_an_image_that_runs_and_goes_down_before_it_is_marked_good_is_told_as_a_crash(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.install()
    device.restart()
    device.tick()
    assert device.phase == "trial"
    device.machine.give_up()
    device.restart()
    device.tick()
    assert device.told is not None
    assert (device.told.phase, device.told.code) == ("reverted", "crash")


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"signer": Signer.make("somebody")}, "signature"),
        ({"version": "0.9.0"}, "floor"),
        ({"meta": {"counter": "2"}}, "floor"),
    ],
)
def test_a_bundle_that_must_not_be_installed_is_refused_before_a_slot_is_touched(
    tmp_path: Path, vendor: Vendor, parts: dict[str, object], code: str
) -> None:
    device = Device(tmp_path / "guarded", vendor, floor="1.0.0", counter=3)
    version = str(parts.get("version", "1.1.0"))
    vendor.publish(version, **{key: value for key, value in parts.items() if key != "version"})
    device.want(version)
    device.until(lambda: device.phase == "refused")
    assert device.told is not None
    assert device.told.code == code, device.told
    assert "installs" not in device.machine.state
    device.want(version)
    device.tick()
    assert device.phase == "blocked"
    assert device.book.job is None


@pytest.mark.parametrize("parts", [{}, {"version": "0.9.0"}, {"meta": {"counter": "2"}}])
def test_without_floor_and_with_a_known_signer_the_same_bundles_are_installed(
    device: Device, vendor: Vendor, parts: dict[str, object]
) -> None:
    version = str(parts.get("version", "1.1.0"))
    vendor.publish(version, **{key: value for key, value in parts.items() if key != "version"})
    device.want(version)
    device.install()


def test_an_image_for_other_devices_is_refused(device: Device) -> None:
    device.want("1.1.0", compatible="sluice-jetson")
    device.tick()
    assert device.told is not None
    assert (device.told.phase, device.told.code) == ("refused", "compatible")


def test_a_bundle_with_one_flipped_bit_never_becomes_the_slot_that_is_started(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0", damaged=True)
    device.want("1.1.0")
    device.until(lambda: device.phase == "refused", seconds=4000.0)
    assert device.told is not None
    assert "dm-verity" in device.told.reason
    assert device.machine.state["primary"] == "a"


def test_the_streaming_that_fails_after_a_boot_is_tried_again_at_once(tmp_path: Path, vendor: Vendor) -> None:
    device = Device(tmp_path / "streaming", vendor, settings=Os(media="off", delivery="stream"))
    device.machine.set(stream_fails=2)
    vendor.publish("1.1.0", adaptive=True)
    device.want("1.1.0")
    device.until(device.restarting.exists, seconds=2.0)
    assert device.machine.state["stream_fails"] == 0
    assert "streaming" in [each.code for each in device.heard]
    assert not (device.state / "os" / "bundles").exists() or not [*(device.state / "os" / "bundles").iterdir()]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_bundle_whose_damage_crashes_the_installer_each_time_is_not_tried_for_ever(
    tmp_path: Path, vendor: Vendor, *, adaptive: bool
) -> None:
    device = Device(tmp_path / "crashing", vendor)
    device.machine.set(crashes_on_damage=True)
    vendor.publish("1.1.0", damaged=True, adaptive=adaptive)
    device.want("1.1.0")
    device.until(lambda: device.phase == "refused", seconds=120.0)
    assert device.told is not None
    assert "RAUC service disappeared" in device.told.reason
    assert device.book.is_blocked(COMPATIBLE, "1.1.0") is not None
    assert device.machine.state["booted"] == device.machine.state["primary"] == "a"


def test_streaming_that_keeps_failing_gives_way_to_a_download(tmp_path: Path, vendor: Vendor) -> None:
    device = Device(tmp_path / "streaming", vendor)
    device.machine.set(stream_fails=99)
    vendor.publish("1.1.0", adaptive=True)
    device.want("1.1.0")
    device.until(device.restarting.exists, seconds=60.0)
    assert device.machine.state["stream_fails"] == 96


def test_an_image_that_is_taken_back_before_the_restart_leaves_the_old_slot_in_charge(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0")
    device.window_open = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    assert device.machine.state["primary"] == "b"
    device.want("1.0.0")
    device.tick()
    assert device.machine.state["primary"] == "a"
    assert device.told is not None
    assert (device.phase, device.told.model.version) == ("running", "1.0.0")
    assert device.book.job is None


def test_an_image_that_is_taken_back_when_it_runs_returns_by_the_other_slot_without_a_download(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.update()
    assert device.machine.version == "1.1.0"
    device.want("1.0.0")
    device.update()
    assert device.machine.version == "1.0.0"
    assert device.phase == "running"
    assert device.machine.state["installs"] == 1


def test_an_image_whose_floor_is_above_the_old_one_stays_when_it_is_taken_back(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0", floor="1.1.0")
    device.want("1.1.0")
    device.update()
    device.want("1.0.0")
    device.until(lambda: device.phase == "refused")
    assert device.told is not None
    assert device.told.code == "floor"
    assert device.machine.version == "1.1.0"


def test_an_image_stays_when_the_one_before_it_could_not_open_the_vault_any_more(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.update()
    device.outgrown = {"a": "the image in slot a gets the vault's key up to counter 1; this device is at 2"}
    device.want("1.0.0")
    device.until(lambda: device.phase == "refused")
    assert device.told is not None
    assert device.told.code == "floor"
    assert "counter 1" in device.told.reason
    assert device.machine.version == "1.1.0"
    # Where it can still open it, it is started: the control.
    device.outgrown = {}
    device.want("1.1.0")
    device.update()
    device.agent._journal.change(lambda book: msgspec.structs.replace(book, blocked=()))
    device.want("1.0.0")
    device.update()
    assert device.machine.version == "1.0.0"


def test_a_rollout_that_is_given_up_during_the_download_is_not_carried_on(device: Device, vendor: Vendor) -> None:
    device.want("1.1.0")  # not published: it waits
    device.tick()
    device.tick()
    assert device.told is not None
    assert (device.told.phase, device.told.code) == ("refused", "not-offered")
    device.want(None)
    device.tick()
    assert device.book.job is None
    assert device.story[-1] == "withdrawn"


class SilentWay(DirectoryWay):
    """A repository that does not answer while it is told not to."""

    is_silent = False

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        if self.is_silent:
            raise UnreachableError("nobody answers")
        return super().read(path, offset, limit)


def test_a_release_that_is_newer_than_the_list_is_waited_for_and_not_refused_while_the_repository_is_silent(
    device: Device, vendor: Vendor
) -> None:
    """Control: where the repository answers, and does not offer it, that is told (the test before)."""
    way = SilentWay(Path(vendor.site.settings.url))
    device.way = way
    device.start()
    vendor.publish("1.0.1")
    device.want("1.0.1")
    device.install()  # the device has a list
    device.want(None)
    device.tick()
    way.is_silent = True
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.tick()
    assert device.told is not None
    assert (device.told.phase, device.told.code) == ("waiting", "unreachable")
    way.is_silent = False
    device.until(lambda: device.story.count("installed") == 2, seconds=100.0)


def test_a_twin_that_is_handed_over_again_changes_nothing(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.update()
    device.want("1.0.0", token=device.token)
    device.tick()
    assert device.book.job is None
    assert device.machine.version == "1.1.0"


def test_another_slot_that_runs_without_an_update_is_told_once_and_what_was_lost_is_installed_anew(
    device: Device, vendor: Vendor
) -> None:
    """A kernel image with a flipped bit opens no disk, so the slot that had it says nothing ; the other does."""
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.update()
    assert device.machine.state["booted"] == "b"
    assert "os_other_slot" not in dict(device.notes), "an update says what it does by itself"
    slots = device.machine.state["slots"]
    slots["a"]["blessed"] = False  # on trial, as image/overlay/usr/lib/sluice/emergency leaves it
    device.machine.set(slots=slots, primary="a")
    assert device.restart() == "a"
    device.until(lambda: device.told is not None and device.told.code == "trial")
    words = [words for code, words in device.notes if code == "os_other_slot"]
    assert words == [
        "version 1.0.0 in slot a was started, without an update, and not 1.1.0 in slot b, which ran before: that one "
        "could not start any more, or somebody has chosen this one"
    ]
    assert device.story.count("other-slot") == 1
    device.start()
    device.tick()
    device.machine.bless(device.health_file)
    device.update()
    assert (device.machine.state["booted"], device.machine.version, device.phase) == ("b", "1.1.0", "running")
    assert [code for code, _ in device.notes].count("os_other_slot") == 1


def test_a_slot_that_is_left_during_its_trial_is_told_by_the_update_alone(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.install()
    device.restart()
    device.until(lambda: device.phase == "trial")
    device.machine.give_up()
    device.restart()
    device.update()
    assert device.phase == "reverted"
    assert "os_other_slot" not in dict(device.notes)


def test_nobody_who_restarts_the_device_is_told_and_asked_again(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0")
    device.restarts_work = False
    device.want("1.1.0")
    device.until(lambda: "restarting" in device.story)
    device.tick()
    assert not device.restarting.exists()
    device.restarts_work = True
    device.until(device.restarting.exists, seconds=100.0)


def test_rauc_that_refuses_to_be_asked_is_told_with_its_words(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0")
    device.machine.set(denied=True)
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "rauc")
    assert device.told is not None
    assert "AccessDenied" in device.told.reason
    device.machine.set(denied=False)
    device.until(device.restarting.exists, seconds=60.0)


def test_a_person_may_install_what_was_blocked(device: Device, vendor: Vendor) -> None:
    file = vendor.publish("1.1.0")
    device.machine.fate("1.1.0", "panics")
    device.want("1.1.0")
    device.update()
    assert device.phase == "reverted"
    device.machine.fate("1.1.0", "healthy")
    device.agent.install(str(file), COMPATIBLE, "1.1.0")
    device.update()
    assert device.machine.version == "1.1.0"
    assert device.phase == "running"


def test_a_second_bundle_waits_for_the_restart_of_the_first(device: Device, vendor: Vendor) -> None:
    file = vendor.publish("1.1.0")
    device.window_open = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    with pytest.raises(OsUpdateError, match="comes to an end first"):
        device.agent.install(str(file), COMPATIBLE, "1.1.0")


@pytest.mark.parametrize("what", ["offer", "install"])
def test_a_bundle_on_a_stick_is_offered_or_installed_as_configured(tmp_path: Path, vendor: Vendor, what: str) -> None:
    media = tmp_path / "media"
    (media / "stick").mkdir(parents=True)
    settings = Os(media=what, media_directories=[media])  # type: ignore[arg-type]
    device = Device(tmp_path / "with-stick", vendor, settings=settings)
    vendor.build("1.2.0").rename(media / "stick" / "image.raucb")
    vendor.build("0.9.0").rename(media / "stick" / "older.raucb")
    vendor.build("9.0.0", signer=Signer.make("somebody")).rename(media / "stick" / "forged.raucb")
    device.tick()
    assert device.book.offered is not None
    assert device.book.offered.version == "1.2.0"
    assert "os_offered" in [note for note, _ in device.notes]
    if what == "install":
        device.update()
        assert device.machine.version == "1.2.0"
        return
    assert device.book.job is None
    (media / "stick" / "image.raucb").unlink()
    device.tick()
    assert device.book.offered is None


def with_stick(directory: Path, vendor: Vendor, what: Literal["offer", "install"]) -> tuple[Device, Path]:
    """Return a device, and the folder of a stick that has a newer image."""
    stick = directory / "media" / "stick"
    stick.mkdir(parents=True)
    # Nothing changes in the slots by itself; looking at them takes a test long.
    settings = Os(media=what, media_directories=[stick.parent], refresh_seconds=86400.0)
    device = Device(directory / "device", vendor, settings=settings)
    vendor.build("1.2.0").rename(stick / "image.raucb")
    return device, stick


def test_a_bundle_that_was_on_offer_before_it_was_allowed_is_installed_from_then_on(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, _ = with_stick(tmp_path, vendor, "offer")
    device.tick()
    assert device.book.offered is not None
    assert device.book.job is None
    device.settings = msgspec.structs.replace(device.settings, media="install")
    device.start()
    device.tick()
    assert device.book.job is not None
    assert device.book.job.origin == "medium"


def test_a_bundle_on_a_stick_that_came_during_another_update_is_installed_after_it(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, _ = with_stick(tmp_path, vendor, "install")
    vendor.publish("1.1.0")
    device.want("1.1.0")
    device.tick()
    assert device.book.offered is not None
    assert device.book.job is not None
    assert device.book.job.origin == "cloud"
    device.want(None)
    device.update()
    device.update()
    assert device.machine.version == "1.2.0"


def test_a_stick_that_stays_plugged_in_does_not_undo_for_ever_what_the_bridge_wants(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, _ = with_stick(tmp_path, vendor, "install")
    device.update()
    assert device.machine.version == "1.2.0"
    vendor.publish("1.1.0")
    device.want("1.1.0")
    for _ in range(3):
        device.update()
    assert device.machine.version == "1.1.0"
    assert device.book.offered is not None
    assert device.story.count("started") == 2


def test_what_a_person_has_taken_back_from_a_stick_is_not_begun_again_while_it_is_plugged_in(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, _ = with_stick(tmp_path, vendor, "install")
    device.window_open = False
    device.until(lambda: device.told is not None and device.told.code == "window")
    device.agent.cancel()
    device.until(lambda: device.book.job is None)
    device.start()
    for _ in range(5):
        device.tick()
    assert device.book.job is None
    assert device.book.offered is not None, "a person may still have it installed"


def test_a_stick_that_was_pulled_out_too_early_is_taken_when_it_is_back(tmp_path: Path, vendor: Vendor) -> None:
    device, stick = with_stick(tmp_path, vendor, "install")
    device.machine.set(busy=True)
    device.until(lambda: device.told is not None and device.told.code == "busy")
    away = (stick / "image.raucb").rename(tmp_path / "image.raucb")
    device.machine.set(busy=False)
    device.until(lambda: device.book.job is None, seconds=200.0)
    assert device.story[-1] == "given-up"
    away.rename(stick / "image.raucb")
    device.update()
    assert device.machine.version == "1.2.0"


def test_a_stick_that_gives_nothing_at_first_is_looked_at_again(tmp_path: Path, vendor: Vendor) -> None:
    device, _ = with_stick(tmp_path, vendor, "offer")
    device.machine.set(unreadable=2)
    device.tick()
    assert device.book.offered is None
    assert device.book.blocked == ()
    device.until(lambda: device.book.offered is not None, most=5)


def looks(device: Device) -> int:
    return int(device.machine.state.get("looks", 0))


def test_a_bundle_that_cannot_be_read_is_looked_at_less_and_less_often_and_at_once_when_it_is_plugged_in_anew(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, stick = with_stick(tmp_path, vendor, "offer")
    device.machine.set(unreadable=1000)
    with capture_logs() as said:
        for _ in range(360):  # an hour
            device.tick()
    assert 5 <= looks(device) <= 10
    assert [each["event"] for each in said].count("os_bundle_on_medium_unread") == 1
    device.machine.set(unreadable=0)
    away = stick.rename(tmp_path / "away")
    device.tick(1.0)
    away.rename(stick)
    device.until(lambda: device.book.offered is not None, most=2)


def test_a_stick_that_is_listed_and_cannot_be_read_is_begun_once_and_again_when_it_is_plugged_in_anew(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, stick = with_stick(tmp_path, vendor, "offer")
    device.tick()
    device.settings = msgspec.structs.replace(device.settings, media="install")
    device.start()
    device.tick()
    device.machine.set(unreadable_below=str(stick))
    device.until(lambda: "given-up" in device.story, seconds=200.0)
    for _ in range(20):
        device.tick(60.0)
    assert device.story.count("wanted") == 1
    assert [code for code, _ in device.notes].count("os_given_up") == 1
    assert device.book.job is None
    assert device.book.is_blocked(COMPATIBLE, "1.2.0") is None, "nobody has seen anything bad of it"
    device.machine.set(unreadable_below="")
    away = stick.rename(tmp_path / "away")
    device.tick(1.0)
    away.rename(stick)
    device.update()
    assert device.machine.version == "1.2.0"


def test_of_two_sticks_with_the_same_version_the_one_that_can_be_read_is_installed(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, stick = with_stick(tmp_path, vendor, "offer")
    other = stick.with_name("with-another-name")
    shutil.copytree(stick, other)
    device.tick()
    assert device.book.offered is not None
    first = Path(device.book.offered.path).parent
    device.settings = msgspec.structs.replace(device.settings, media="install")
    device.start()
    device.tick()
    device.machine.set(unreadable_below=str(first / "image.raucb"))
    device.until(lambda: device.machine.state["primary"] == "b", seconds=20.0)
    assert device.story.count("wanted") == 2
    assert "given-up" in device.story


def test_a_stick_that_fails_during_each_installation_blocks_nothing_that_the_bridge_may_want(
    tmp_path: Path, vendor: Vendor
) -> None:
    device, _ = with_stick(tmp_path, vendor, "install")
    device.machine.set(install_fails=1000)
    device.until(lambda: "given-up" in device.story, seconds=60.0)
    for _ in range(5):
        device.tick(60.0)
    assert device.story.count("wanted") == 1
    assert device.book.is_blocked(COMPATIBLE, "1.2.0") is None
    device.machine.set(install_fails=0)
    vendor.publish("1.2.0")
    device.want("1.2.0")
    device.update()
    assert device.machine.version == "1.2.0"


def test_a_bundle_on_a_stick_that_is_never_installed_here_is_told_once(tmp_path: Path, vendor: Vendor) -> None:
    device, stick = with_stick(tmp_path, vendor, "offer")
    (stick / "image.raucb").unlink()
    vendor.build("9.0.0", signer=Signer.make("somebody")).rename(stick / "forged.raucb")
    for _ in range(5):
        device.tick()
    told = [words for code, words in device.notes if code == "os_medium_unusable"]
    assert len(told) == 1
    assert "forged.raucb" in told[0]


def test_what_the_handler_of_the_image_refuses_is_refused_with_its_meaning(device: Device, vendor: Vendor) -> None:
    file = vendor.build("1.1.0")
    device.machine.set(refused_by_handler=20)
    device.agent.install(str(file), COMPATIBLE, "1.1.0")
    device.until(lambda: device.phase == "refused")
    assert device.told is not None
    assert device.told.code == "floor"
    assert "journalctl -u rauc" in device.told.reason


def test_an_approval_that_is_not_there_is_told(device: Device, vendor: Vendor) -> None:
    vendor.publish("1.1.0", meta={"pcr11-b": "ab" * 32})
    device.approval = "no approval is for the image in slot b"
    device.want("1.1.0")
    device.install()
    assert "os_approval_missing" in [note for note, _ in device.notes]


@pytest.mark.parametrize("stage", ["installing", "installed", "restarting"])
def test_an_image_that_nobody_wants_any_more_is_not_started(device: Device, vendor: Vendor, stage: Stage) -> None:
    vendor.publish("1.1.0")
    device.window_open = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    assert device.machine.state["primary"] == "b", "the control: it would be started"
    device.agent._journal.change(reach(stage, device.machine.boot_id, "now"))
    device.want(None)
    device.tick()
    assert device.machine.state["primary"] == "a"
    assert (device.book.job, device.story[-1]) == (None, "withdrawn")
    device.window_open = True
    for _ in range(5):
        device.tick()
    assert not device.restarting.exists()


def test_nothing_is_restarted_while_the_slot_of_an_image_that_nobody_wants_cannot_be_changed(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0")
    device.window_open = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    device.machine.set(gone=True)
    device.window_open = True
    device.want(None)
    for _ in range(5):
        device.tick()
    assert device.told is not None
    assert (device.phase, device.told.code) == ("waiting", "restart")
    assert not device.restarting.exists()
    device.machine.set(gone=False)
    device.until(lambda: device.book.job is None)
    assert device.machine.state["primary"] == "a"


def test_another_image_in_its_place_does_not_leave_the_first_to_be_started_by_a_power_cut(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0")
    device.window_open = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    device.want("1.2.0")  # not published yet
    device.until(lambda: device.book.job is not None and device.book.job.version == "1.2.0")
    assert device.machine.state["primary"] == "a"


def test_an_image_that_failed_is_known_to_be_bad_though_nobody_wants_it_any_more(
    device: Device, vendor: Vendor
) -> None:
    vendor.publish("1.1.0")
    device.machine.fate("1.1.0", "panics")
    device.want("1.1.0")
    device.install()
    device.restart()
    device.want(None)
    device.until(lambda: device.book.job is None)
    assert device.story[-1] == "reverted"
    assert device.book.is_blocked(COMPATIBLE, "1.1.0") is not None


@pytest.mark.parametrize("version", ["1.1.0", "1.2.0"])
def test_a_stick_that_was_pulled_does_not_shut_out_the_bridge(device: Device, vendor: Vendor, version: str) -> None:
    vendor.publish("1.2.0")
    device.agent.install("/media/gone/x.raucb", COMPATIBLE, version)
    device.tick()
    device.want("1.2.0")
    device.until(lambda: device.book.job is not None and device.book.job.origin == "cloud", seconds=60.0)
    assert "given-up" in device.story
    assert device.book.is_blocked(COMPATIBLE, version) is None, "nobody has seen anything bad of it"
    assert "os_given_up" in [code for code, _ in device.notes]
    device.install()
    assert device.restart() == "b"
    assert device.machine.version == "1.2.0"


def test_a_stick_that_is_pulled_before_it_was_installed_blocks_nothing(device: Device, vendor: Vendor) -> None:
    stick = vendor.build("1.1.0")
    device.agent.install(str(stick), COMPATIBLE, "1.1.0")
    device.tick()
    device.agent._journal.change(reach("ready", device.machine.boot_id, "now"))
    stick.unlink()
    device.until(lambda: device.book.job is None, seconds=60.0)
    assert device.story[-1] == "given-up"
    assert device.book.is_blocked(COMPATIBLE, "1.1.0") is None


def test_a_bundle_where_the_service_does_not_see_it_is_given_up_with_the_remedy(device: Device) -> None:
    device.agent.install("/root/image.raucb", COMPATIBLE, "1.1.0")
    device.until(lambda: "given-up" in device.story, seconds=60.0)
    assert "put it on a medium, or below /data" in dict(device.notes)["os_given_up"]


def test_a_person_takes_back_what_a_person_has_installed(device: Device, vendor: Vendor) -> None:
    device.window_open = False
    device.agent.install(str(vendor.build("1.1.0")), COMPATIBLE, "1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    device.agent.cancel()
    device.tick()
    assert device.machine.state["primary"] == "a"
    assert (device.book.job, device.story[-1]) == (None, "withdrawn")


def test_what_the_bridge_has_assigned_is_taken_back_at_the_bridge(device: Device, vendor: Vendor) -> None:
    with pytest.raises(OsUpdateError, match="nothing is under way"):
        device.agent.cancel()
    vendor.publish("1.1.0")
    device.window_open = False
    device.want("1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    with pytest.raises(OsUpdateError, match="assigned by the bridge"):
        device.agent.cancel()
    device.tick()
    assert device.book.job is not None


def test_what_a_person_has_taken_back_stays_so_over_a_restart_of_the_gateway(device: Device, vendor: Vendor) -> None:
    device.window_open = False
    device.agent.install(str(vendor.build("1.1.0")), COMPATIBLE, "1.1.0")
    device.until(lambda: device.told is not None and device.told.code == "window")
    device.machine.set(gone=True)
    device.agent.cancel()
    device.tick()
    assert device.book.job is not None
    device.start()
    device.machine.set(gone=False)
    device.window_open = True
    device.until(lambda: device.book.job is None)
    assert device.machine.state["primary"] == "a"
    assert not device.restarting.exists()
