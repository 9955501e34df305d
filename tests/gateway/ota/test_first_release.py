"""A pipeline whose model is not on the device gets its first release over the air, and waits again if it is no good."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import ModelAwaitedError
from gateway.inference.bundle import ReleaseStore
from gateway.inference.model import Model
from gateway.ota import bringing, slots
from gateway.ota.errors import UnreachableError
from gateway.ota.install import Installer
from gateway.ota.journal import Blocked, Book, Installed, OnTrial, Reference, Slot
from gateway.wire.messages import Twin, encode
from tests.gateway.ota.releases import WINDOW, release, scorer
from tests.gateway.ota.rig import NAME, Device, digest, installed
from tests.simulators.bad_models import not_a_number
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for

pytestmark = pytest.mark.timeout(400)  # a child begins a program of its own for each trial: a busy machine takes long

CONFIGURED = [NAME, f"{NAME}@1.0.0"]


@pytest.fixture(params=CONFIGURED)
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device that has no release at all; it is off."""
    repository = ReleaseRepository(tmp_path / "repository")
    made = Device(tmp_path / "device", repository, model=request.param)
    yield made
    made.stop()


def publish(device: Device, version: str, content: bytes, **more: Any) -> None:
    """Publish a release; where the device is given keys, it has this one already."""
    device.repository.publish(release(device.repository.directory / "plain", version, content, **more))
    if device.grants:
        device.repository.grant(device.vault)


def waits(device: Device) -> None:
    """Wait until everybody is told that the pipeline waits for a release."""
    wait_for(
        lambda: [(each.assignments, each.awaiting) for each in device.reports[-1:]] == [([], ["motor"])],
        what="the twin says that it waits, and runs nothing",
    )
    wait_for(lambda: device.pipeline.status().waits_for == "model", what="the status says it")
    status = device.pipeline.status()
    assert (status.state, status.model, status.backend) == ("starting", None, "")
    assert "waits until a rollout" in (status.last_error or "")
    wait_for(lambda: device.agent.status().awaiting == ("motor",))


def serves_again(device: Device, version: str) -> None:
    wait_for(lambda: device.serving == version, what=f"{version} serves")
    answers = len(device.record.versions)
    wait_for(lambda: len(device.record.versions) > answers, what="answers")


def test_it_is_fetched_proved_and_begun_without_a_restart_and_stays(device: Device) -> None:
    publish(device, "1.0.0", scorer(1.0))
    device.begin()
    waits(device)
    device.desire("1.0.0", token=1)
    device.reaches("trial", "1.0.0")
    device.reaches("running", "1.0.0")
    assert set(device.record.versions) == {"1.0.0"}
    assert device.slot.previous is None
    wait_for(lambda: device.reports[-1].awaiting == [] and device.reports[-1].updates[0].phase == "running")
    assert device.reports[-1].assignments[0].model.version == "1.0.0"
    assert device.pipeline.status().waits_for == ""
    assert not [each for each in device.journal.book.history if each.what == "crashed"], "no run ended badly"
    device.restart()
    assert device.serving == "1.0.0"


def test_the_next_one_is_an_update_like_any_other(device: Device) -> None:
    publish(device, "1.0.0", scorer(1.0))
    publish(device, "2.0.0", not_a_number(4), golden=None)
    device.begin()
    device.desire("1.0.0", token=1)
    device.reaches("running", "1.0.0")
    device.desire("2.0.0", token=2)
    device.reaches("reverted", "2.0.0", "not-a-number")
    serves_again(device, "1.0.0")


def test_one_that_answers_no_numbers_is_taken_away_again_and_the_pipeline_waits(device: Device) -> None:
    publish(device, "1.0.0", not_a_number(4), golden=None)
    publish(device, "1.1.0", scorer(1.0))
    device.begin()
    device.desire("1.0.0", token=1)
    device.reaches("reverted", "1.0.0", "not-a-number")
    waits(device)
    assert device.slot.active is None
    assert device.slot.told is not None
    assert device.slot.told.running_model is None
    (told,) = device.reports[-1].updates
    assert (told.phase, told.code, told.running_model) == ("reverted", "not-a-number", None)
    device.stop()
    device._make()
    device.begin()
    waits(device)  # what was blocked does not begin because it is the only one on the disk
    assert device.record.versions == []
    device.desire("1.0.0", token=2)
    device.reaches("blocked", "1.0.0", "not-a-number")
    device.desire("1.1.0", token=3)
    device.reaches("running", "1.1.0")


def test_one_that_does_not_answer_its_golden_inputs_never_begins(device: Device) -> None:
    publish(device, "1.0.0", scorer(1.0), golden=(1.0, 3.0))
    device.begin()
    waits(device)
    device.desire("1.0.0", token=1)
    device.reaches("refused", "1.0.0", "golden")
    waits(device)
    assert device.record.versions == []
    if "@" not in device.settings.model:  # else it is one that the configuration names
        wait_for(lambda: device.there() == [], what="nothing of it is kept")


def test_one_that_wants_what_the_source_does_not_give_is_taken_away_again(device: Device) -> None:
    publish(device, "1.0.0", scorer(1.0, inputs=8), spec=msgspec.structs.replace(WINDOW, channels=2))
    device.begin()
    device.desire("1.0.0", token=1)
    device.reaches("reverted", "1.0.0", "errors")
    waits(device)


def test_one_under_which_runs_end_badly_is_taken_away_again(device: Device) -> None:
    publish(device, "1.0.0", scorer(1.0))
    device.begin()
    device.trial = msgspec.structs.replace(device.trial, seconds=3600.0)
    device.stop()
    device._make()
    device.begin()
    device.desire("1.0.0", token=1)
    device.reaches("trial", "1.0.0")
    serves_again(device, "1.0.0")
    for _ in range(device.trial.max_crashes):
        killed(device)
    waits(device)
    assert device.phase() == ("reverted", "1.0.0", "crash-loop")


def killed(device: Device) -> None:
    """Begin anew from what the journal says when the process is killed in the middle of a run."""
    kept = device.journal_file.read_bytes()
    device.stop()
    device.journal_file.write_bytes(kept)
    device._make()
    device.begin()
    wait_for(lambda: device.serving or device.pipeline.status().waits_for, what="it has begun")


def test_a_device_that_is_killed_between_storing_and_trial_goes_on_with_the_proof(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the store and is still to be proved must not begin by itself, though it is all there is."""

    publish(device, "1.0.0", not_a_number(4), golden=None)
    with monkeypatch.context() as patched:
        patched.setattr(bringing.Bringing, "_swap_in", dies)
        device.begin()
        device.desire("1.0.0", token=1)
        wait_for(lambda: device.there() == [(NAME, "1.0.0")], what="it is stored")
        device.reaches("waiting", "1.0.0", "unreachable")
        device.bay.beckon()
        device.bay.beckon()
        device.stop()
    device._make()
    with pytest.raises(ModelAwaitedError):
        device._load_to_run()
    device.begin()
    device.reaches("reverted", "1.0.0", "not-a-number")
    waits(device)


@pytest.fixture
def stored(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that is off, and was killed when 1.0.0 lay in its store and was still to be proved."""
    with monkeypatch.context() as patched:
        patched.setattr(bringing.Bringing, "_swap_in", dies)
        publish(device, "1.0.0", not_a_number(4), golden=None)
        device.begin()
        device.desire("1.0.0", token=1)
        device.reaches("waiting", "1.0.0", "unreachable")
        device.stop()
    return device


def dies(*_arguments: object, **_more: object) -> None:
    raise UnreachableError("killed here")


@pytest.mark.parametrize("content", [b"{", None], ids=["damaged", "gone"])
def test_what_is_still_to_be_proved_does_not_begin_because_the_journal_is_lost(
    stored: Device, content: bytes | None
) -> None:
    stored.journal_file.unlink() if content is None else stored.journal_file.write_bytes(content)
    stored._make()
    assert stored.agent.status().damage
    assert stored.there() == [(NAME, "1.0.0")]
    with pytest.raises(ModelAwaitedError):
        stored._load_to_run()


def test_what_was_stored_after_it_was_given_up_does_not_begin_after_a_kill(stored: Device) -> None:
    """Who tidies up while it is stored takes it out of the journal; it is entered again, unless a kill comes first."""
    stored.journal.change(slots.withdraw("motor", "now"))
    stored.journal.change(slots.removed([installed("1.0.0")]))
    stored._make()
    assert stored.there() == [(NAME, "1.0.0")]
    with pytest.raises(ModelAwaitedError):
        stored._load_to_run()


def test_what_waits_for_its_key_and_was_never_proved_is_no_way_back(
    stored: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Installer, "withholds", lambda _self, _name, version: version == "1.0.0")
    publish(stored, "1.1.0", not_a_number(4), golden=None)
    stored._make()
    stored.begin()
    stored.desire("1.1.0", token=2)
    stored.reaches("reverted", "1.1.0", "not-a-number")
    assert stored.slot.active is None
    waits(stored)


def test_what_was_given_up_or_is_to_be_tried_itself_is_no_way_back() -> None:
    one, two, three = installed("1.0.0"), installed("2.0.0"), installed("3.0.0")

    def way_back(slot: Slot, now: Installed, model: Installed = three) -> Installed | None:
        return bringing._way_back(Book(pipelines={"motor": slot}), "motor", now, model)

    given_up = Slot(active=one, blocked=(Blocked(model=two, code="latency", reason="slow", at="now"),))
    assert way_back(given_up, two) == one, "it answers until the pipeline lets it go"
    assert way_back(Slot(active=one), two) == two, "the control"
    assert way_back(Slot(active=one), two, two) == one
    assert way_back(Slot(active=two, previous=one, trial=OnTrial(since_ns=1)), two) == one
    assert way_back(Slot(active=two, previous=one, trial=OnTrial(since_ns=1)), two, one) is None, "it was gone"


def test_one_that_is_taken_back_while_it_is_loaded_does_not_stay(device: Device) -> None:
    """What the run before did may be judged when the next one has its model already, and does not answer yet."""
    publish(device, "1.0.0", scorer(1.0))
    device.trial = msgspec.structs.replace(device.trial, seconds=3600.0)
    device._make()
    device.begin()
    device.desire("1.0.0", token=1)
    device.reaches("trial", "1.0.0")
    serves_again(device, "1.0.0")
    device.stop()
    device._make()
    load = device.load

    def taken_back_meanwhile(label: str) -> Model:
        loaded = load(label)
        if device.slot.active is not None:
            device.agent._serving.take_back("motor", "errors", "of the run before")
        return loaded

    device.load = taken_back_meanwhile  # type: ignore[method-assign]  # stands for what the other thread does then
    device.begin()
    waits(device)
    assert device.phase() == ("reverted", "1.0.0", "errors")


def test_what_is_stored_and_not_assigned_any_more_does_not_begin(device: Device) -> None:
    device.journal.change(slots.installed(installed("1.0.0")))
    folder = release(device.releases, "1.0.0", scorer(1.0))
    assert folder.is_dir()
    device.begin()
    waits(device)
    assert device.record.versions == []


def test_a_rollout_that_is_given_up_before_it_came_leaves_it_waiting(device: Device) -> None:
    device.grants = False
    publish(device, "1.0.0", scorer(1.0))
    device.begin()
    device.desire("1.0.0", token=1)
    wait_for(lambda: device.phase()[0] == "waiting" and device.phase()[2], what="it waits for its key")
    device.agent.take_desired(encode(Twin(version=2, fencing_token=2, at="2026-01-01T00:00:00Z")))
    wait_for(lambda: device.slot.wanted is None, what="it is withdrawn")
    waits(device)
    assert device.reports[-1].updates == []


def test_another_one_that_is_assigned_during_the_first_trial_has_nothing_to_go_back_to(device: Device) -> None:
    """What is on trial itself is no way back, and what it did is no measure."""
    device.trial = msgspec.structs.replace(device.trial, seconds=3600.0)
    device._make()
    publish(device, "1.0.0", scorer(1.0))
    publish(device, "1.1.0", not_a_number(4), golden=None)
    device.begin()
    device.desire("1.0.0", token=1)
    device.reaches("trial", "1.0.0")
    serves_again(device, "1.0.0")
    device.desire("1.1.0", token=2)
    device.reaches("reverted", "1.1.0", "not-a-number")
    waits(device)


def test_a_release_that_a_person_puts_there_ends_the_waiting_too(device: Device) -> None:
    device.begin()
    waits(device)
    device.repository.plain[digest(scorer(1.0))] = scorer(1.0)
    release(device.releases, "1.0.0", scorer(1.0))
    device.bay.beckon()  # the program looks at the directories each second
    serves_again(device, "1.0.0")
    wait_for(lambda: device.reports[-1].awaiting == [])


def test_who_judges_does_not_look_at_a_medium_for_a_pipeline_that_waits(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs() -> ReleaseStore:
        raise AssertionError("the directories of models are looked at")

    with pytest.raises(ModelAwaitedError):
        device._load_to_run()
    with monkeypatch.context() as medium:
        medium.setattr(device, "store", hangs)
        device.agent.tick()
        assert device.agent.status().awaiting == ("motor",)
    release(device.releases, "1.0.0", scorer(1.0))
    device._load_to_run().close()
    device.agent.tick()
    assert device.agent.status().awaiting == ()


def test_a_pipeline_that_begins_while_its_medium_hangs_stops_no_wish(device: Device) -> None:
    device.desire("1.0.0", token=1)
    ticks = threading.Thread(target=device.agent.tick, name="test-tick", daemon=True)
    with device.bay.lock:  # as `run_begins` holds it while it reads
        ticks.start()
        ticks.join(20)
        assert not ticks.is_alive()
    assert device.slot.wanted is not None


def test_the_first_trial_counts_no_run_before_it() -> None:
    book = slots.begin_trial(
        "motor", installed("1.0.0"), None, Reference(), now_ns=1, at="now", boot_id="a", is_running=False
    )(Book())
    begun = slots.run_begins("motor", "now", "a")(book).slot("motor").trial
    assert isinstance(begun, OnTrial)
    assert (begun.crashes, begun.running) == (0, True)
