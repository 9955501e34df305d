"""Updates of a running pipeline: fetched, proved, swapped in, kept or taken back, and always told."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.config import Trial
from gateway.inference.model import Model
from gateway.ota import agent as ota_agent
from gateway.ota import slots
from gateway.ota.errors import BudgetError, BudgetSpentError, NoRootError, OtaError, UnreachableError
from gateway.values import Inference, Sample
from gateway.wire.histogram import Histogram
from gateway.wire.manifest import Baseline, Plain
from gateway.wire.messages import Assignment, ModelRef, Twin, UpdatePhase, encode
from tests.gateway.ota.releases import WINDOW, release, scorer
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


def test_a_better_release_is_fetched_swapped_in_and_kept(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("trial", "2.0.0")
    assert device.serving == "2.0.0"
    device.reaches("running", "2.0.0")
    wait_for(lambda: device.reports[-1].updates and device.reports[-1].updates[0].swap_gap_ms is not None)
    wait_for(lambda: device.reports[-1].updates[0].phase == "running")
    (update,) = device.reports[-1].updates
    assert (update.phase, update.fencing_token, update.attempt) == ("running", 1, 2)  # once without its key
    assert 0 < update.fetched_bytes <= update.full_bytes
    assert device.renewals == 1  # for its key, once
    assert ("model_proven", "pipeline motor keeps probe@2.0.0") in device.notices
    assert device.metric("model_updates_total", pipeline="motor", outcome="proven") == 1
    windows = device.record.sequences
    assert windows == [*range(windows[0], windows[0] + len(windows))], "every window has exactly one answer"


def test_without_the_first_root_updates_are_off_and_said_to_be_and_the_pipeline_runs(device: Device) -> None:
    device.repository.failing = NoRootError("ota.root_file /nowhere: No such file or directory")
    device.start()
    wait_for(lambda: device.agent.status().repository_problem == "no-root")
    assert [code for code, _ in device.notices] == ["ota_disabled"]
    assert device.serving == "1.0.0"
    publish(device, "2.0.0", scorer(1.0))
    device.repository.failing = None
    device.agent.refresh_soon()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")


def test_a_repository_that_fails_is_asked_again_soon_and_less_and_less_often(device: Device) -> None:
    clock = [0.0]
    device.monotonic = lambda: clock[0]
    device.repository.failing = UnreachableError("nobody answers")

    def asked_until(end: float) -> list[float]:
        times = []
        while clock[0] < end:
            before = device.repository.refreshes
            device.agent.fetch_round()
            if device.repository.refreshes != before:
                times.append(clock[0])
            clock[0] += 5.0
        return times

    # The rig draws the shortest pauses: half of 10 s, 20 s, 40 s, up to the usual pause.
    assert asked_until(400.0) == [0.0, 5.0, 15.0, 35.0, 75.0, 155.0, 315.0]
    assert len(asked_until(36_000.0)) <= 24
    device.repository.failing = None
    device.agent.refresh_soon()
    begin = clock[0]
    assert asked_until(begin + 7200.0) == [begin, begin + 2700.0, begin + 5400.0]


def test_after_a_restart_it_is_still_the_new_one_though_the_configuration_names_the_old(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    device.restart()
    assert device.serving == "2.0.0"


def test_one_that_answers_no_numbers_is_taken_back_within_a_minute_blocked_and_told(device: Device) -> None:
    publish(device, "2.0.0", not_a_number(4), golden=None)
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("reverted", "2.0.0", "not-a-number", seconds=60)
    wait_for(lambda: device.serving == "1.0.0")
    wait_for(lambda: device.reports[-1].updates[0].phase == "reverted")
    assert device.reports[-1].assignments[0].model.version == "1.0.0"
    answers = len(device.record.versions)
    wait_for(lambda: len(device.record.versions) > answers, what="answers of the old release")
    device.desire("2.0.0", token=2)
    device.reaches("blocked", "2.0.0", "not-a-number")
    device.restart()
    assert device.serving == "1.0.0"
    assert device.slot.blocked


def test_one_that_is_given_what_it_was_not_trained_on_is_taken_back_though_it_answers_well(
    device: Device,
) -> None:
    """Its manifest says another scale than its training had; its weights make up for that here."""
    trained = Baseline(tensor={"level": Histogram(edges=(0.5, 0.8, 1.2, 2.0), counts=(0, 1, 998, 1, 0))})
    wrong = msgspec.structs.replace(WINDOW, features=Plain(scale=(0.001,)))
    # Long enough for several looks: at one of them samples may by chance pass for other ones, which excuses a release.
    device.stop()
    device.trial = Trial(seconds=8.0, min_inferences=60)
    device._make()
    device.sensor.noise = 0.05
    publish(device, "2.0.0", scorer(0.001), golden=(1.0, 0.001), spec=wrong, baseline=trained)
    publish(device, "3.0.0", scorer(1.0), baseline=trained)
    device.start()
    wait_for(lambda: len(device.record.versions) >= 100, seconds=30, what="a reference")
    device.desire("2.0.0", token=1)
    device.reaches("reverted", "2.0.0", "input-drift", seconds=60)
    told = device.slot.told
    assert told is not None
    assert "outside of what it was trained on" in told.reason
    assert "distributed" not in told.reason
    wait_for(lambda: device.serving == "1.0.0")
    device.desire("3.0.0", token=2)  # the control: the same training, and the scale it had
    device.reaches("running", "3.0.0", seconds=60)


def test_without_the_trial_it_would_stay(device: Device) -> None:
    """The control: the same release, with nothing that could take it back, serves and answers nothing."""
    device.stop()
    device.trial = Trial(seconds=0.0, min_inferences=0, max_error_share=1.0)
    device._make()
    publish(device, "2.0.0", not_a_number(4), golden=None)
    device.start()
    device.sensor.every_seconds = 30.0  # not three samples before the trial is over
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    assert device.serving == "2.0.0"


def test_wrong_answers_to_golden_inputs_never_serve(device: Device) -> None:
    publish(device, "2.0.0", scorer(3.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("refused", "2.0.0", "golden")
    assert device.serving == "1.0.0"
    assert set(device.record.versions) == {"1.0.0"}
    assert device.slot.blocked


def test_scores_that_are_distributed_otherwise_take_it_back(device: Device) -> None:
    device.sensor.noise = 0.05
    publish(device, "2.0.0", scorer(1.6), golden=(1.0, 1.6))
    device.start()
    wait_for(lambda: len(device.watch.reference().scores) >= 200, seconds=20)
    device.desire("2.0.0", token=1)
    device.reaches("reverted", "2.0.0", "output-drift")
    wait_for(lambda: device.serving == "1.0.0")


def test_a_shadow_compares_both_before_the_swap(device: Device) -> None:
    device.stop()
    device.trial = Trial(seconds=0.5, min_inferences=10, shadow_samples=20)
    device._make()
    publish(device, "2.0.0", scorer(1.01), golden=(1.0, 1.01))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    told = device.slot.told
    assert told is not None
    assert told.comparison["samples"] == 20
    assert told.comparison["agreement"] == 1.0
    assert told.comparison["errors"] == 0


def test_a_shadow_that_the_bridge_has_switched_off_is_left_out_and_the_update_goes_on(device: Device) -> None:
    device.stop()
    device.trial = Trial(seconds=0.5, min_inferences=10, shadow_samples=20)
    device._make()
    publish(device, "2.0.0", scorer(1.01), golden=(1.0, 1.01))
    device.start()
    given = Assignment(pipeline="motor", model=ModelRef(name="probe", version="2.0.0"))
    off = {"shadow": False, "snapshots": False, "elsewhere": True}
    twin = Twin(version=1, fencing_token=1, at="2026-01-01T00:00:00Z", assignments=[given], features=off)
    device.agent.take_desired(encode(twin))
    device.reaches("running", "2.0.0")
    told = device.slot.told
    assert told is not None
    assert told.comparison == {}
    assert not device.agent.has("snapshots")
    wait_for(lambda: device.reports[-1].features == off, what="it says so")
    device.restart()
    assert not device.agent.has("snapshots"), "over restarts"
    device.agent.take_desired(encode(msgspec.structs.replace(twin, version=2, features={"snapshots": True})))
    wait_for(lambda: device.agent.has("snapshots") and device.agent.has("shadow"), what="both are on again")


def test_an_unreachable_repository_is_waited_for_and_told(device: Device, repository: ReleaseRepository) -> None:
    publish(device, "2.0.0", scorer(1.0))
    repository.failing = UnreachableError("nobody answers")
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("waiting", "2.0.0", "unreachable")
    repository.failing = None
    device.connects += 1
    device.reaches("running", "2.0.0")


def test_a_release_that_is_not_offered_is_refused_and_asked_for_again_later(device: Device) -> None:
    device.start()
    device.desire("9.0.0", token=1)
    device.reaches("refused", "9.0.0", "not-offered")
    assert device.slot.wanted is not None
    publish(device, "9.0.0", scorer(1.0))
    device.connects += 1
    device.reaches("running", "9.0.0")


def test_a_budget_that_cannot_carry_it_is_told_and_nothing_is_fetched(
    device: Device, repository: ReleaseRepository
) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.room = 100
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("waiting", "2.0.0", "budget")
    assert repository.fetched == []
    assert device.slot.told is not None
    assert "left until 1970-01-01T01:00:00" in device.slot.told.reason
    device.room = None
    device.connects += 1
    device.reaches("running", "2.0.0")


@pytest.mark.parametrize("is_begun", [False, True])
def test_what_waits_for_the_budget_asks_nothing_before_its_next_period(
    device: Device, repository: ReleaseRepository, *, is_begun: bool
) -> None:
    clock = [0.0]
    device.monotonic = lambda: clock[0]
    publish(device, "2.0.0", scorer(1.0))
    device.repository.grant(device.vault)
    device.room = 20
    device.budget = 100 if is_begun else 1 << 20  # what no period carries whole comes in pieces
    if is_begun:
        repository.fetching = BudgetSpentError("no more of it now")
    device.desire("2.0.0", token=1)
    device.agent.tick()
    device.agent.fetch_round()
    assert device.phase() == ("waiting", "2.0.0", "budget")
    asked, fetched = repository.refreshes, len(repository.fetched)
    for _ in range(100):
        clock[0] += 60.0
        device.connects += 1  # a link that comes and goes brings no bytes
        device.agent.tick()
        device.agent.fetch_round()
    assert (repository.refreshes, len(repository.fetched)) == (asked, fetched)
    device.period, device.room = 1, device.budget
    device.agent.fetch_round()
    assert repository.refreshes == asked + 1
    assert len(repository.fetched) > fetched


def test_what_a_person_has_brought_takes_nothing_of_a_spent_budget(
    device: Device, repository: ReleaseRepository
) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.repository.grant(device.vault)
    device.room = 0
    repository.failing = BudgetSpentError("the lists are not looked at either")
    device.agent.install("motor", installed("2.0.0"))
    device.agent.tick()
    device.agent.fetch_round()
    assert device.phase() == ("waiting", "2.0.0", "budget"), "the control: nothing was brought yet"
    repository.brought.update(file.path for file in repository.offers["probe", "2.0.0"].files)
    device.agent.install("motor", installed("2.0.0"))
    device.agent.tick()
    device.agent.fetch_round()
    assert device.phase() == ("waiting", "2.0.0", "later"), "it is stored; the pipeline of this test does not run"
    assert installed("2.0.0") in device.journal.book.installed


def test_a_full_file_that_a_person_has_brought_is_taken_instead_of_a_patch_over_the_link(
    device: Device, repository: ReleaseRepository
) -> None:
    device.vault.import_release(device.releases / "probe/1.0.0")
    folder = release(repository.directory / "plain", "2.0.0", scorer(1.1))
    offer = repository.publish(folder, bases=(digest(scorer(1.0)),))
    installer = device.agent._bringing._installer
    plan = installer.plan(offer, device.settings)
    assert plan.patch is not None, "the control"
    assert installer.bytes_to_fetch(plan) >= plan.patch.size_bytes
    repository.brought.add(plan.full.path)
    assert installer.plan(offer, device.settings).patch is None


def test_weights_that_are_here_already_come_as_a_patch_of_themselves(
    device: Device, repository: ReleaseRepository
) -> None:
    device.vault.import_release(device.releases / "probe/1.0.0")
    publish(device, "1.0.1", scorer(1.0))  # so that there is something to make it from
    folder = release(repository.directory / "plain", "2.0.0", scorer(1.0))
    repository.publish(folder, bases=(digest(scorer(1.0)),))
    device.repository.grant(device.vault)
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    assert any(path.endswith(".patch.sealed") for path in repository.fetched)


def test_a_closed_window_is_no_spent_budget_and_is_tried_again(device: Device, repository: ReleaseRepository) -> None:
    clock = [0.0]
    device.monotonic = lambda: clock[0]
    publish(device, "2.0.0", scorer(1.0))
    device.repository.grant(device.vault)
    device.room = device.budget
    repository.fetching = BudgetError("the window is closed")
    device.desire("2.0.0", token=1)
    device.agent.tick()
    device.agent.fetch_round()
    assert device.phase() == ("waiting", "2.0.0", "budget")
    asked, clock[0] = len(repository.fetched), 60.0
    device.agent.fetch_round()
    assert len(repository.fetched) > asked


def test_a_window_that_opens_for_minutes_is_not_slept_through(device: Device, repository: ReleaseRepository) -> None:
    clock = [0.0]
    device.monotonic = lambda: clock[0]
    publish(device, "2.0.0", scorer(1.0))
    device.repository.grant(device.vault)
    repository.fetching = BudgetError("the window is closed")
    device.closed = True
    device.desire("2.0.0", token=1)
    device.agent.tick()
    device.agent.fetch_round()
    asked = repository.refreshes
    for _ in range(1000):  # most of a day
        clock[0] += 60.0
        device.agent.fetch_round()
    assert len(repository.fetched) == 1, "nothing is tried while it is closed"
    assert repository.refreshes - asked <= 25, "but the list is looked at, as every hour"
    device.closed = False
    device.agent.fetch_round()
    assert len(repository.fetched) == 2, "and at once when it opens"


def test_looking_at_the_repository_leaves_a_part_of_the_budget_to_updates(device: Device) -> None:
    device.budget, device.room = 1000, 249
    device.agent.fetch_round()
    assert device.repository.refreshes == 0
    assert device.agent.status().repository_problem == "budget"
    device.agent.refresh_soon()
    device.agent.fetch_round()
    assert device.repository.refreshes == 1, "somebody asked for it"
    device.agent._bringing._refresh_at, device.room = 0.0, 250
    device.agent.fetch_round()
    assert device.repository.refreshes == 2
    assert device.agent.status().repository_problem == ""


def test_what_is_larger_than_the_budget_of_a_whole_period_is_begun_all_the_same(
    device: Device, repository: ReleaseRepository
) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.room = device.budget = 100  # the control is the test above, where a later period could carry it
    device.start()
    device.desire("2.0.0", token=1)
    wait_for(lambda: repository.fetched != [])


@pytest.mark.parametrize("is_busy", [True, False])
def test_what_an_answer_waits_for_a_processor_is_not_held_against_a_release(
    device: Device, monkeypatch: pytest.MonkeyPatch, *, is_busy: bool
) -> None:
    infer = Model.infer

    def late(model: Model, sample: Sample) -> Inference:
        if model.ref.version == "2.0.0":
            began = time.monotonic_ns()
            time.sleep(0.03)
            device.waited_ns += time.monotonic_ns() - began if is_busy else 0
        return infer(model, sample)

    monkeypatch.setattr(Model, "infer", late)
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    wait_for(lambda: len(device.record.versions) > 60, what="something to compare with")
    device.desire("2.0.0", token=1)
    if is_busy:
        device.reaches("running", "2.0.0")
    else:
        device.reaches("reverted", "2.0.0", "latency")


@pytest.mark.parametrize("stalls", [True, False])
def test_what_stalls_some_answers_is_not_held_against_a_release_and_what_they_compute_is(
    device: Device, monkeypatch: pytest.MonkeyPatch, *, stalls: bool
) -> None:
    infer = Model.infer

    def late(model: Model, sample: Sample) -> Inference:
        if model.ref.version == "2.0.0" and sample.sequence % 5 == 0:
            until = time.thread_time() + 0.2
            time.sleep(0.2 if stalls else 0.0)  # as where another thread has the interpreter, and no processor
            while not stalls and time.thread_time() < until:
                pass
        return infer(model, sample)

    monkeypatch.setattr(Model, "infer", late)
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    wait_for(lambda: len(device.record.versions) > 60, what="something to compare with")
    device.desire("2.0.0", token=1)
    if stalls:
        device.reaches("running", "2.0.0")
    else:
        device.reaches("reverted", "2.0.0", "latency")


@pytest.mark.parametrize(("runs_on", "ends"), [("cpu", "running"), ("edgetpu", "reverted")])
def test_what_waits_now_and_then_is_the_machines_but_on_an_accelerator(
    device: Device, monkeypatch: pytest.MonkeyPatch, runs_on: str, ends: UpdatePhase
) -> None:
    infer, count = Model.infer, [0]
    info = vars(Model)["info"].fget

    def late(model: Model, sample: Sample) -> Inference:
        if model.ref.version == "2.0.0":
            count[0] += 1
            if count[0] % 6 == 0:
                time.sleep(0.05)  # off the processor, and the kernel does not count it as a wait for one
        return infer(model, sample)

    monkeypatch.setattr(Model, "infer", late)
    monkeypatch.setattr(Model, "info", property(lambda model: dataclasses.replace(info(model), device=runs_on)))
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    wait_for(lambda: len(device.record.versions) > 60, what="something to compare with")
    device.desire("2.0.0", token=1)
    device.reaches(ends, "2.0.0", "latency" if ends == "reverted" else "")


def test_a_key_that_does_not_come_is_waited_for(device: Device) -> None:
    device.grants = False
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("waiting", "2.0.0", "key")
    assert device.serving == "1.0.0"
    device.grants = True
    device.connects += 1
    device.reaches("running", "2.0.0")


def test_an_older_release_is_given_again_at_once_with_a_higher_token(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    device.desire("1.0.0", token=2)
    device.reaches("running", "1.0.0")
    assert device.serving == "1.0.0"
    device.desire("2.0.0", token=1, number=9)
    wait_for(lambda: any(code == "twin_refused" for code, _ in device.notices))
    assert device.serving == "1.0.0"
    wait_for(lambda: device.reports[-1].fencing_token == 2)


POISON = (
    b'{"version":-1,"fencing_token":9223372036854775807,"at":"2026-11-22T08:39:09.254Z","assignments":[],'
    b'"features":{},"updates":[],"os":null}'
)


@pytest.mark.parametrize("payload", [POISON, POISON.replace(b"-1", b"9")], ids=["the message", "with a version"])
def test_no_message_shuts_a_device_off_from_the_twins_of_its_bridge(device: Device, payload: bytes) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    token = time.time_ns() // 10**6
    device.desire("1.0.0", token=token)
    wait_for(lambda: device.reports and device.reports[-1].fencing_token == token)
    device.agent.take_desired(payload)
    wait_for(lambda: device.reports[-1].refused == "token-ahead", what="the refusal")
    assert "twin_refused" in [code for code, _ in device.notices]
    assert (device.journal.book.fencing_token, device.floor.read().fencing_token) == (token, token)
    device.desire("2.0.0", token=token + 1, number=2)
    device.reaches("running", "2.0.0")
    wait_for(lambda: (device.reports[-1].refused, device.reports[-1].fencing_token) == ("", token + 1))


def test_what_an_older_program_has_believed_is_forgotten_at_the_next_start(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.journal.change(lambda book: msgspec.structs.replace(book, fencing_token=2**63 - 1, twin_version=-1))
    device.floor.raise_to(fencing_token=2**63 - 1)
    before = time.time_ns() // 10**6
    device.restart()
    wait_for(lambda: device.reports and device.reports[-1].fencing_token < 2**63 - 1, what="a report")
    token = device.reports[-1].fencing_token
    assert before <= token <= time.time_ns() // 10**6, "no twin that the bridge gave before counts"
    wait_for(lambda: device.floor.read().fencing_token == token, seconds=30, what="the floor")
    device.desire("2.0.0", token=token + 1)  # as the bridge overtakes what is reported
    device.reaches("running", "2.0.0")
    assert device.floor.read().fencing_token == token + 1


def test_people_pin_go_back_and_unpin(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    device.agent.pin("motor", installed("1.0.0"))
    device.reaches("pinned", "1.0.0", "pinned")
    assert device.serving == "1.0.0"
    device.agent.unpin("motor")
    wait_for(lambda: device.serving == "2.0.0")
    device.agent.rollback("motor")
    device.reaches("reverted", "2.0.0", "by-hand")
    wait_for(lambda: device.serving == "1.0.0")


def test_a_person_may_have_what_was_given_up_tried_once_more(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    device.agent.rollback("motor")
    device.reaches("reverted", "2.0.0", "by-hand")
    with pytest.raises(OtaError, match=r"was given up on pipeline motor.*`--again`"):
        device.agent.install("motor", installed("2.0.0"))
    device.agent.install("motor", installed("2.0.0"), again=True)
    device.reaches("running", "2.0.0")
    assert device.slot.is_blocked(installed("2.0.0")) is None


def test_what_a_person_pins_is_given_up_no_more(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    device.agent.rollback("motor")
    device.reaches("reverted", "2.0.0", "by-hand")
    device.agent.pin("motor", installed("1.0.0"))
    device.reaches("pinned", "1.0.0", "pinned")
    assert device.slot.is_blocked(installed("2.0.0")) is not None, "the control: another one"
    device.journal.change(slots.pin("motor", installed("2.0.0"), "now"))
    assert device.slot.is_blocked(installed("2.0.0")) is None


def test_after_a_trial_was_taken_back_a_person_still_goes_back_to_what_was_before(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    publish(device, "3.0.0", not_a_number(4), golden=None)
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    device.desire("3.0.0", token=2)
    device.reaches("reverted", "3.0.0", "not-a-number", seconds=60)
    wait_for(lambda: device.serving == "2.0.0")
    device.agent.rollback("motor")
    device.reaches("reverted", "2.0.0", "by-hand")
    wait_for(lambda: device.serving == "1.0.0")


def test_a_person_may_have_a_release_of_the_list_tried_without_a_bridge(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.agent.install("motor", installed("2.0.0"))
    device.reaches("trial", "2.0.0")
    device.reaches("running", "2.0.0")
    device.desire("1.0.0", token=1)
    device.reaches("running", "1.0.0")
    assert device.serving == "1.0.0", "and the bridge decides again"


def test_what_a_person_wants_needs_no_repository_that_answers_and_what_a_twin_wants_does(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.agent.refresh_soon()
    wait_for(lambda: device.repository.refreshes > 0)
    device.repository.failing = UnreachableError("nobody answers")
    device.desire("2.0.0", token=1)
    device.reaches("waiting", "2.0.0", "unreachable")
    device.agent.install("motor", installed("2.0.0"))
    device.reaches("running", "2.0.0")


def test_what_a_person_wants_and_the_list_has_not_is_given_up_and_what_a_twin_wants_waits(device: Device) -> None:
    device.start()
    device.agent.install("motor", installed("9.9.9"))  # as if the list had changed since the person looked
    wait_for(lambda: [each.what for each in device.agent.status().history] == ["accepted", "withdrawn"])
    given_up = device.agent.status().history[-1]
    assert (given_up.model, given_up.code) == ("probe@9.9.9", "not-offered")
    assert given_up.detail == "probe 9.9.9 is not offered"
    assert device.agent.status().repository_problem == ""
    assert device.slot.wanted is None
    assert device.slot.blocked == (), "published later, it may be asked for again"
    device.desire("9.9.9", token=1)
    device.reaches("refused", "9.9.9", "not-offered")
    assert device.slot.wanted is not None, "the control: a bridge may know of it before the list does"


def test_a_person_is_told_why_a_release_cannot_be_tried(device: Device) -> None:
    publish(device, "2.0.0", not_a_number(4), golden=None)
    device.start()
    with pytest.raises(OtaError, match="no pipeline 'other'"):
        device.agent.install("other", installed("2.0.0"))
    device.agent.install("motor", installed("2.0.0"))
    device.reaches("reverted", "2.0.0", "not-a-number", seconds=60)
    with pytest.raises(OtaError, match=r"probe@2\.0\.0 was given up on pipeline motor: .*publish it anew"):
        device.agent.install("motor", installed("2.0.0"))
    device.agent.pin("motor", installed("1.0.0"))
    device.reaches("pinned", "1.0.0", "pinned")
    with pytest.raises(OtaError, match=r"keeps probe@1\.0\.0: `gateway ota unpin motor` first"):
        device.agent.install("motor", installed("3.0.0"))


def test_how_the_present_run_ends_is_counted_for_what_serves_in_it(device: Device) -> None:
    device.trial = Trial(seconds=600.0)
    device._make()
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("trial", "2.0.0")
    device.agent.pin("motor", installed("1.0.0"))
    wait_for(lambda: device.serving == "1.0.0")
    assert device.slot.trial is not None
    assert not device.slot.trial.running, "a crash now is none of the release on trial"
    device.agent.unpin("motor")
    wait_for(lambda: device.serving == "2.0.0")
    assert device.slot.trial is not None
    assert device.slot.trial.running, "and now it is"


def test_going_back_twice_at_once_goes_back_once(device: Device) -> None:
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    with device.bay.lock:  # both are asked for before one is carried out
        device.agent.rollback("motor")
        device.agent.rollback("motor")
    wait_for(lambda: device.serving == "1.0.0")
    wait_for(lambda: not device.agent._requests, what="both are carried out")
    device.reaches("reverted", "2.0.0", "by-hand")
    assert [each.model.version for each in device.slot.blocked] == ["2.0.0"]
    assert device.slot.active == installed("1.0.0")


def test_without_another_look_the_good_one_would_be_blocked_too(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the second is carried out as it was asked for."""
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("running", "2.0.0")
    with device.bay.lock:
        device.agent.rollback("motor")
        device.agent.rollback("motor")
        monkeypatch.setattr(ota_agent, "check_rollback", lambda _book, _pipeline: None)
    wait_for(lambda: len(device.slot.blocked) == 2, seconds=20, what="both are blocked")


def test_releases_that_nobody_needs_are_removed(device: Device) -> None:
    for number in (2, 3, 4):
        publish(device, f"{number}.0.0", scorer(1.0))
    device.start()
    for number in (2, 3, 4):
        device.desire(f"{number}.0.0", token=number)
        device.reaches("running", f"{number}.0.0")
    wait_for(lambda: {version for _, version in device.there()} == {"1.0.0", "3.0.0", "4.0.0"})


def test_one_from_the_air_that_the_configuration_names_by_now_is_not_removed(device: Device) -> None:
    for number in (2, 3, 4, 5):
        publish(device, f"{number}.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=2)
    device.reaches("running", "2.0.0")
    device.stop()
    device.settings = msgspec.structs.replace(device.settings, model="probe@2.0.0")
    device._make()
    device.start()
    for number in (3, 4, 5):
        device.desire(f"{number}.0.0", token=number)
        device.reaches("running", f"{number}.0.0")
    kept = {"1.0.0", "2.0.0", "4.0.0", "5.0.0"}  # 3.0.0 goes, which is the control
    wait_for(lambda: {version for _, version in device.there()} == kept, seconds=20)


def test_what_was_said_is_said_again_after_a_reconnect(device: Device) -> None:
    device.start()
    wait_for(lambda: device.reports)
    before = len(device.reports)
    device.connects += 1
    wait_for(lambda: len(device.reports) > before)


def test_crashes_are_counted_over_restarts_and_take_it_back(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.trial = Trial(seconds=600.0)
    device.stop()
    device._make()
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("trial", "2.0.0")
    for _ in range(2):  # as a process that dies: nothing says that the run has ended
        monkeypatch.setattr(device.agent, "run_ended", lambda _pipeline: None)
        device.restart()
    assert device.serving == "1.0.0"
    device.reaches("reverted", "2.0.0", "crash-loop")


def test_clean_restarts_in_a_trial_are_no_crashes(device: Device) -> None:
    """The control of the one above."""
    device.trial = Trial(seconds=600.0)
    device.stop()
    device._make()
    publish(device, "2.0.0", scorer(1.0))
    device.start()
    device.desire("2.0.0", token=1)
    device.reaches("trial", "2.0.0")
    for _ in range(3):
        device.restart()
    assert device.serving == "2.0.0"


async def test_a_run_that_begins_anew_does_not_fetch_beside_what_the_one_before_has_left(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ota_agent, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(ota_agent, "TICK_SECONDS", 0.01)
    busy, rounds, free, lock = [0], list[int](), threading.Event(), threading.Lock()

    def fetch_round() -> None:
        with lock:
            busy[0] += 1
            rounds.append(busy[0])
        free.wait(20)  # as a trial inference, which may take half a minute
        with lock:
            busy[0] -= 1

    def fails() -> None:
        wait_for(lambda: rounds)
        raise RuntimeError("one bad tick")

    monkeypatch.setattr(device.agent._bringing, "fetch_round", fetch_round)
    tick = device.agent.tick
    monkeypatch.setattr(device.agent, "tick", fails)
    with pytest.raises(RuntimeError):
        await device.agent.run()
    ticks: list[int] = []
    monkeypatch.setattr(device.agent, "tick", lambda: (ticks.append(1), tick()))
    async with asyncio.TaskGroup() as tasks:
        again = tasks.create_task(device.agent.run())
        while len(ticks) < 5:  # what is on trial is judged meanwhile
            await asyncio.sleep(0.01)
        assert len(rounds) == 1
        free.set()
        while len(rounds) < 3:
            await asyncio.sleep(0.01)
        again.cancel()
    assert max(rounds) == 1, "never two at once"
