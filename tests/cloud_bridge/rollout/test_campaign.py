"""Rollouts from the first wave to the last, and back: the bridge's code on one side, the device's on the other."""

import itertools
import random

import msgspec
import pytest
from structlog.testing import capture_logs

from cloud_bridge.commands.rollout_words import device_line, device_plain, report_lines
from cloud_bridge.errors import BridgeError, StoreError
from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.fleet import Fleet
from cloud_bridge.rollout.plan import Arm
from cloud_bridge.rollout.records import Rollout
from cloud_bridge.rollout.releases import Release, ReleaseState, release_of
from cloud_bridge.rollout.service import RolloutDesk
from cloud_bridge.rollout.waves import labels_of
from cloud_bridge.twins.desired import find_desired, one_desired
from cloud_bridge.twins.forgotten import forget_device
from cloud_bridge.twins.labels import set_labels
from cloud_bridge.twins.reported import put_report
from gateway.ota.journal import Installed
from gateway.wire.messages import Assignment, ModelRef, Twin, UpdateState, decode, encode
from tests.cloud_bridge.rollout.kit import MINUTE_NS, NEW, OLD, Registered, Stage
from tests.simulators.ota_device import OtaDevice, slow


def kinds(stage: Stage, rollout_id: str) -> list[str]:
    return [one.kind for one in stage.desk.report(rollout_id).history]


def test_a_good_release_goes_from_one_device_to_all(database: Database) -> None:
    stage = Stage(database)
    stage.add(20)
    made = stage.desk.create(stage.plan("1, 25%, rest"))
    stage.turn()
    assert len(stage.running(NEW)) == 1
    for _ in range(60):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert len(stage.running(NEW)) == 20
    assert kinds(stage, made.id) == [
        "created", "wave-started", "settled", "wave-passed", "wave-started", "settled", "wave-passed",
        "wave-started", "settled", "done",
    ]  # fmt: skip
    assert [wave.devices for wave in stage.desk.report(made.id).waves] == [1, 4, 15]


def test_a_wave_soaks_before_the_next_begins(stage: Stage) -> None:
    stage.add(4)
    stage.desk.create(stage.plan("1, rest", soak_seconds=1800))
    for _ in range(29):
        stage.turn()
    assert len(stage.running(NEW)) == 1
    for _ in range(5):
        stage.turn()
    assert len(stage.running(NEW)) == 4


UNFIT = ["1.0", "1.0.0+build7", "v1.0.0", "", "1.0.0\0", "1.0.0@2.0.0"]


@pytest.mark.parametrize("version", UNFIT)
def test_a_device_that_runs_what_no_release_is_called_stops_nothing(database: Database, version: str) -> None:
    stage = Stage(database)
    device = stage.add(6)[0]
    report(stage, device.name, ModelRef(name="detector", version=version))
    stage.store.models[device.name] = ModelRef(name="detector", version=version)
    made = stage.desk.create(stage.plan("rest", soak_seconds=0))
    for _ in range(5):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert len(stage.running(NEW)) == 6


@pytest.mark.parametrize(("baseline", "gets"), [(None, NEW), (OLD, OLD)])
def test_what_no_release_is_called_is_not_given_back(stage: Stage, baseline: Release | None, gets: Release) -> None:
    device = stage.add(6)[0]
    report(stage, device.name, ModelRef(name="detector", version="1.0"))
    made = stage.desk.create(stage.plan("rest", baseline=baseline))
    for _ in range(3):
        stage.turn()
    stage.desk.act(made.id, "abort")
    stage.turn()
    assert device.model == gets.ref
    assert len(stage.running(OLD)) == 5 + (gets == OLD)


def test_devices_whose_pipeline_was_renamed_halt_nothing(database: Database) -> None:
    """The broker has a retained status of the pipeline as it was called before, so they are given the release."""
    stage = Stage(database)
    for device in stage.add(10)[:6]:
        device.pipeline = "door"
    made = stage.desk.create(stage.plan("rest", soak_seconds=0))
    for _ in range(5):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert len(stage.running(NEW)) == 4
    stands = stage.desk.report(made.id).stands
    assert sorted(one.code for one in stands if one.standing == "left") == ["unknown-pipeline"] * 6


@pytest.mark.parametrize("previous", [OLD, None], ids=["given back", "nothing to give back"])
def test_what_is_aborted_while_devices_wait_for_it_is_taken_by_none_of_them(
    database: Database, previous: Release | None
) -> None:
    stage = Stage(database)
    device = stage.add(1)[0]
    if previous is None:
        stage.store.models[device.name] = ModelRef(name="detector", version="1.0")
        report(stage, device.name, ModelRef(name="detector", version="1.0"))
    device.waits = True  # as for a budget, or a key
    made = stage.desk.create(stage.plan("rest"))
    stage.turn()
    assert device.book.slot("camera").wanted is not None
    stage.desk.act(made.id, "abort")
    device.waits = False
    for _ in range(3):
        stage.turn()
    assert device.book.slot("camera").wanted is None
    assert str(NEW) not in device.ran
    assert device.model != NEW.ref


def test_a_rollout_that_was_kept_with_such_a_version_is_read_and_aborted(database: Database) -> None:
    stage = Stage(database)
    stage.add(4)
    made = stage.desk.create(stage.plan("rest"))
    stage.turn()
    with database.transaction() as tx:
        assert tx.change("UPDATE rollout_members SET previous = 'detector@1.0' WHERE gateway = 'gw-000'") == 1
    with pytest.raises(RolloutError):
        release_of("detector@1.0")  # how such a row was read before: nothing of the rollout could be
    stage.turn()
    assert len(stage.desk.report(made.id).stands) == 4
    stage.desk.act(made.id, "abort")
    stage.turn()
    assert stage.running(NEW) == ["gw-000"]


def report(stage: Stage, gateway: str, model: ModelRef, pipeline: str = "camera") -> None:
    """Let a device say what it runs."""
    twin = Twin(version=0, fencing_token=0, at="", assignments=[Assignment(pipeline=pipeline, model=model)])
    with stage.database.transaction() as tx:
        put_report(tx, gateway, encode(twin), twin, stage.now_ns)


def says_that_it_waits(stage: Stage, gateway: str, token: int = 0, *updates: UpdateState) -> None:
    twin = Twin(version=1, fencing_token=token, at="", updates=[*updates], awaiting=["camera"])
    with stage.database.transaction() as tx:
        put_report(tx, gateway, encode(twin), twin, stage.now_ns)


def test_a_device_without_any_release_is_given_its_first_and_counted_as_waiting_when_it_took_it_back(
    database: Database,
) -> None:
    """Also where its status still names what it ran once: what it has not got is nothing to go back to."""
    stage = Stage(database)
    stage.store.add("new", OLD.ref, seen_ns=stage.now_ns)
    says_that_it_waits(stage, "new")
    made = stage.desk.create(stage.plan("rest"))
    assert made.reason == "1 devices have the pipeline; 1 of them have no release for it yet"
    stage.now_ns += MINUTE_NS
    stage.campaign.tick()
    with database.transaction() as tx:
        desired = one_desired(tx, "new")
    assert desired is not None
    assert desired.model_of("camera") == NEW.ref
    (stand,) = stage.desk.report(made.id).stands
    assert stand.member.previous is None
    told = UpdateState(pipeline="camera", phase="reverted", model=NEW.ref, at="", code="not-a-number", reason="NaN")
    says_that_it_waits(stage, "new", desired.token, told)
    stage.now_ns += MINUTE_NS
    stage.campaign.tick()
    report = stage.desk.report(made.id)
    assert (report.rollout.phase, report.returned, report.recovered, report.awaiting) == ("halted", 1, 1, 1)
    assert "not-a-number" in report.rollout.reason
    assert "what serves there stays" in report.history[-1].detail
    assert "1 of these had nothing, and wait for a release again" in "\n".join(report_lines(report))


def test_a_device_that_only_says_that_it_waits_has_the_pipeline_and_is_listed_so(database: Database) -> None:
    stage = Stage(database)
    says_that_it_waits(stage, "new")
    fleet = Fleet.read(stage.store, database)
    assert [*fleet.meant(stage.plan())] == ["new"]
    assert device_line(device_plain(fleet, "new")) == "new unknown [] camera: waits for a release"


class Unreadable(Registered):
    """Knows releases, but for those of one name: asking for them is an error."""

    error: BridgeError = BridgeError("the entry of sensor cannot be read")

    def state_of(self, release: Release) -> ReleaseState:
        if release.name == "sensor":
            raise self.error
        return super().state_of(release)


@pytest.mark.parametrize(
    ("error", "phase"), [(BridgeError("cannot be read"), "halted"), (StoreError("is away"), "running")]
)
def test_what_is_wrong_with_one_rollout_stops_no_other(database: Database, error: BridgeError, phase: str) -> None:
    releases = Unreadable({OLD: "approved", NEW: "approved", Release("sensor", "2.0.0"): "approved"})
    stage = Stage(database, releases)
    stage.add(4)
    report(stage, "gw-000", ModelRef(name="sensor", version="1.0.0"), "hall")
    good = stage.desk.create(stage.plan("rest", soak_seconds=0))
    bad_plan = msgspec.structs.replace(stage.plan("rest", release="sensor@2.0.0"), pipeline="hall")
    bad = RolloutDesk(database, stage.store, lambda: stage.now_ns).create(bad_plan)
    releases.error = error
    for _ in range(5):
        stage.turn()
    assert stage.rollout(good.id).phase == "done"
    assert stage.rollout(bad.id).phase == phase
    if phase == "halted":
        assert str(error) in stage.rollout(bad.id).reason


def mostly_away(stage: Stage) -> tuple[str, list[str]]:
    """Begin a rollout to ten devices, six of which never come; return it with their names."""
    away = [device.name for device in stage.add(10)[:6]]
    for name in away:
        stage.store.see(name, state="offline", seen_ns=0)
    stage.delivers = lambda name: name not in away
    made = stage.desk.create(stage.plan("rest", soak_seconds=0))
    for _ in range(4):
        stage.turn(24 * 60)
    return made.id, away


def test_a_wave_of_which_too_few_are_there_says_what_it_waits_for(database: Database) -> None:
    stage = Stage(database)
    with capture_logs() as logs:
        rollout, _ = mostly_away(stage)
        waits = stage.rollout(rollout)
        assert waits.phase == "running"
        assert "only 4 of 10 devices were reached" in waits.reason
        assert "fleet forget" in waits.reason
        stage.delivers = lambda name: True
        for _ in range(4):
            stage.turn()
    assert stage.rollout(rollout).phase == "done"
    told = [one["event"] for one in logs if one["event"].startswith("rollout_waits")]
    assert told == ["rollout_waits", "rollout_waits_no_more"]


@pytest.mark.parametrize("how", ["revoked", "forgotten"])
def test_devices_that_are_gone_for_good_hold_no_wave_up(database: Database, how: str) -> None:
    stage = Stage(database)
    rollout, away = mostly_away(stage)
    assert stage.rollout(rollout).phase == "running"  # the control: they do, while nobody has said that they are gone
    if how == "revoked":
        stage.revoked.update(away)
    else:
        with database.transaction() as tx:
            for name in away:
                forget_device(tx, name, stage.now_ns)
    for _ in range(3):
        stage.turn()
    report = stage.desk.report(rollout)
    assert report.rollout.phase == "done"
    assert {one.member.gateway for one in report.stands if one.code == "gone"} == set(away)
    again = stage.desk.create(stage.plan("rest", release=str(OLD), soak_seconds=0))
    for _ in range(3):
        stage.turn()
    assert len(stage.desk.report(again.id).stands) == 4


def bad_on_some(stage: Stage, every: int) -> list[OtaDevice]:
    devices = stage.add(40)
    bad = devices[::every]
    for device in bad:
        device.trials = slow
    return bad


def test_a_rollout_halts_at_the_failing_share_and_gives_the_wave_back(database: Database) -> None:
    stage = Stage(database)
    bad = bad_on_some(stage, 4)
    made = stage.desk.create(stage.plan("50%, rest"))
    for _ in range(30):
        stage.turn()
    report = stage.desk.report(made.id)
    assert report.rollout.phase == "halted"
    assert "failing-share" in report.rollout.reason
    assert "latency" in report.rollout.reason
    assert stage.running(NEW) == []
    assert (report.returned, report.recovered) == (20, 20)
    assert max(len(device.fetched) for device in bad) == 1
    assert sum(device.received for device in stage.devices.values()) == 40  # one twin there and one back, for twenty


def test_without_gates_the_same_release_goes_on_to_all(stage: Stage) -> None:
    bad = bad_on_some(stage, 4)
    made = stage.desk.create(stage.plan("50%, rest", gates=False))
    for _ in range(40):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert len(stage.running(NEW)) == 40 - len(bad)


def test_waves_before_the_failing_one_stay_unless_all_is_to_be_taken_back(stage: Stage) -> None:
    devices = stage.add(10)
    made = stage.desk.create(stage.plan("5, rest"))
    stage.turn()
    first = set(stage.running(NEW))
    for device in devices:
        if device.name not in first:
            device.trials = slow
    for _ in range(30):
        stage.turn()
    assert stage.rollout(made.id).phase == "halted"
    assert set(stage.running(NEW)) == first
    stage.desk.act(made.id, "abort")
    stage.turn()
    assert stage.running(NEW) == []


def test_on_halt_all_takes_everything_back(stage: Stage) -> None:
    devices = stage.add(10)
    made = stage.desk.create(stage.plan("5, rest", on_halt="all"))
    stage.turn()
    first = set(stage.running(NEW))
    for device in devices:
        if device.name not in first:
            device.trials = slow
    for _ in range(30):
        stage.turn()
    assert stage.rollout(made.id).phase == "halted"
    assert stage.running(NEW) == []


def test_a_restarted_bridge_goes_on_where_the_last_one_stopped(stage: Stage) -> None:
    stage.add(10)
    made = stage.desk.create(stage.plan("1, 50%, rest"))
    for _ in range(60):
        stage.restarted()
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert len(stage.running(NEW)) == 10
    assert all(device.received == 1 for device in stage.devices.values())


def test_two_bridges_on_one_database_do_everything_once(stage: Stage) -> None:
    stage.add(10)
    made = stage.desk.create(stage.plan("1, rest"))
    other = stage.restarted()
    stage.restarted()
    for _ in range(40):
        other.tick()
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert all(device.received == 1 for device in stage.devices.values())


def test_an_offline_device_is_pending_and_catches_up_later(stage: Stage) -> None:
    stage.add(4)
    gone = "gw-002"
    stage.store.see(gone, state="offline", seen_ns=stage.now_ns - 1)
    stage.delivers = lambda name: name != gone
    made = stage.desk.create(stage.plan("rest", pending_hours=2.0))
    for _ in range(30):
        stage.turn()
    stands = {one.member.gateway: one for one in stage.desk.report(made.id).stands}
    assert (stands[gone].standing, stands[gone].code) == ("pending", "offline")
    assert stage.rollout(made.id).phase == "done"  # the three others are enough
    for _ in range(120):
        stage.turn()
    stands = {one.member.gateway: one for one in stage.desk.report(made.id).stands}
    assert (stands[gone].standing, stands[gone].code) == ("left", "offline")
    stage.delivers = lambda name: True
    stage.deliver()
    assert gone in stage.running(NEW)


def test_a_wave_that_is_offline_holds_the_rollout_up(stage: Stage) -> None:
    stage.add(3)
    for name in stage.devices:
        stage.store.see(name, state="offline", seen_ns=stage.now_ns)
    stage.delivers = lambda name: False
    made = stage.desk.create(stage.plan("1, rest"))
    for _ in range(60):
        stage.turn()
    assert (stage.rollout(made.id).phase, stage.rollout(made.id).wave) == ("running", 0)
    stage.delivers = lambda name: True
    for _ in range(60):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"


def test_a_release_that_fails_late_halts_although_its_wave_has_passed(stage: Stage) -> None:
    stage.add(10)
    made = stage.desk.create(stage.plan("4, rest", soak_seconds=600, silent_minutes=5.0))
    for _ in range(15):
        stage.turn()
    assert stage.rollout(made.id).wave == 1
    first = {one.member.gateway for one in stage.desk.report(made.id).stands if one.member.wave == 0}
    for name in first:
        stage.store.see(name, state="offline", seen_ns=stage.now_ns)
    for _ in range(9):
        stage.turn()
    assert stage.rollout(made.id).phase == "halted"
    assert "4 of 10 devices fail (silent 4)" in stage.rollout(made.id).reason


def test_a_bridge_that_was_away_does_not_take_its_own_silence_for_that_of_devices(stage: Stage) -> None:
    stage.add(3)
    made = stage.desk.create(stage.plan("rest", soak_seconds=7200, silent_minutes=5.0))
    stage.turn()
    stage.now_ns += 60 * 60_000_000_000  # nobody looks for an hour
    stage.store.see("gw-001", state="offline", seen_ns=stage.now_ns - 59 * 60_000_000_000)
    stage.restarted()
    stage.turn()
    assert stage.rollout(made.id).phase == "running"
    for _ in range(6):
        stage.turn()
    assert stage.rollout(made.id).phase == "halted"


def test_a_device_that_goes_silent_with_the_release_counts_as_failing(stage: Stage) -> None:
    stage.add(3)
    made = stage.desk.create(stage.plan("1, rest", soak_seconds=3600, silent_minutes=5.0))
    stage.turn()
    (canary,) = stage.running(NEW)
    stage.store.see(canary, state="offline", seen_ns=stage.now_ns)
    for _ in range(8):
        stage.turn()
    assert stage.rollout(made.id).phase == "halted"
    assert "silent" in stage.rollout(made.id).reason


def test_a_device_that_says_good_bye_is_no_failure(stage: Stage) -> None:
    stage.add(3)
    made = stage.desk.create(stage.plan("1, rest", silent_minutes=5.0))
    stage.turn()
    (canary,) = stage.running(NEW)
    stage.store.see(canary, state="stopped", seen_ns=stage.now_ns)
    for _ in range(40):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"


def test_a_shift_in_confidence_halts_in_the_first_wave(stage: Stage) -> None:
    stage.add(5)
    chance = random.Random(3)
    stage.play(60)
    made = stage.desk.create(stage.plan("1, rest", soak_seconds=7200))
    stage.play(60, scores=lambda device: chance.betavariate(8, 2) * (0.8 if device.model == NEW.ref else 1.0))
    rollout = stage.rollout(made.id)
    assert rollout.phase == "halted"
    assert rollout.reason.startswith("drift: scores lower")
    assert rollout.wave == 0
    assert stage.running(NEW) == []


def test_the_same_confidence_passes(stage: Stage) -> None:
    stage.add(5)
    stage.play(60)
    made = stage.desk.create(stage.plan("1, rest", soak_seconds=1800))
    stage.play(90)
    assert stage.rollout(made.id).phase == "done"
    assert stage.rollout(made.id).seen.looks > 3


def test_looks_that_were_spent_stay_spent_over_a_restart(stage: Stage) -> None:
    stage.add(2)
    stage.play(30)
    made = stage.desk.create(stage.plan("1, rest", soak_seconds=7200))
    stage.play(30)
    before = stage.rollout(made.id).seen
    assert before.looks > 0
    stage.restarted()
    stage.turn(0.1)
    after = stage.rollout(made.id).seen
    assert after.looks in {before.looks, before.looks + 1}
    assert after.events >= before.events


def test_a_slower_release_halts(stage: Stage) -> None:
    stage.add(3)
    for minute in range(30):
        for name in stage.devices:
            at_ns = stage.now_ns - (60 - minute) * 60_000_000_000
            stage.store.add_measure(name, OLD.ref, at_ns, at_ns + 60_000_000_000, latency_ms=5.0)
    made = stage.desk.create(stage.plan("1, rest", soak_seconds=7200))
    for _ in range(30):
        stage.turn()
        for name in stage.running(NEW):
            stage.store.add_measure(name, NEW.ref, stage.now_ns, stage.now_ns + 60_000_000_000, latency_ms=40.0)
    assert stage.rollout(made.id).reason.startswith("latency")


def test_labels_choose_waves_and_arms(stage: Stage) -> None:
    stage.add(6)
    with stage.database.transaction() as tx:
        for number in range(6):
            set_labels(tx, f"gw-{number:03}", {"site": "a" if number < 3 else "b", "arm": "x" if number % 2 else "y"})
    other = Release("detector", "2.0.0")
    made = stage.desk.create(
        stage.plan(
            "site=b, rest", release=None, arms=[Arm(labels_of(["arm=x"]), NEW), Arm(labels_of(["arm=y"]), other)]
        )
    )
    stage.turn()
    assert stage.running(NEW) == ["gw-003", "gw-005"]
    assert stage.running(other) == ["gw-004"]
    for _ in range(40):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert (len(stage.running(NEW)), len(stage.running(other))) == (3, 3)


def test_a_wave_whose_labels_no_device_has_halts_instead_of_leaving_out_the_canary(stage: Stage) -> None:
    stage.add(6)
    made = stage.desk.create(stage.plan("ring=canray, rest", soak_seconds=0))
    for _ in range(5):
        stage.turn()
    halted = stage.rollout(made.id)
    assert halted.phase == "halted"
    assert "no device of this rollout has the labels of wave ring=canray" in halted.reason
    assert stage.running(NEW) == []
    with stage.database.transaction() as tx:
        set_labels(tx, "gw-003", {"ring": "canray"})
    stage.desk.act(made.id, "resume")
    stage.turn()
    assert stage.running(NEW) == ["gw-003"]
    for _ in range(10):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert len(stage.running(NEW)) == 6


def test_a_later_wave_that_nobody_is_in_any_more_is_passed_over(stage: Stage) -> None:
    stage.add(6)
    made = stage.desk.create(stage.plan("1, site=gone, rest", soak_seconds=0))
    for _ in range(20):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert "wave-empty" in kinds(stage, made.id)


def test_the_devices_of_a_wave_are_told_one_after_the_other(stage: Stage) -> None:
    stage.add(40)
    stage.desk.create(stage.plan("rest", spread_seconds=600.0))
    counts = []
    for _ in range(12):
        stage.turn()
        counts.append(len(stage.running(NEW)))
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert counts[-1] == 40
    assert max(steps) <= 12
    assert sum(1 for step in steps if step) >= 7


def test_a_token_of_a_device_that_is_ahead_is_overtaken_by_the_wave(stage: Stage) -> None:
    (device,) = stage.add(1)
    ahead = stage.now_ns // 10**6 + 10**6
    twin = Twin(version=1, fencing_token=ahead, at="")
    device.take(encode(twin))
    with stage.database.transaction() as tx:
        put_report(tx, device.name, encode(twin), twin, stage.now_ns)
    stage.desk.create(stage.plan("rest"))
    stage.turn()
    assert (device.refused, stage.running(NEW)) == (0, [device.name])


@pytest.mark.parametrize("baseline", [None, OLD])
def test_a_device_that_told_of_no_release_before_goes_back_to_the_baseline_if_there_is_one(
    stage: Stage, baseline: Release | None
) -> None:
    stage.add(1)
    stage.store.models["gw-000"] = None
    made = stage.desk.create(stage.plan("rest", baseline=baseline))
    stage.turn()
    assert stage.running(NEW) == ["gw-000"]
    stage.desk.act(made.id, "abort")
    stage.turn()
    detail = stage.desk.report(made.id).history[-1].detail
    assert stage.running(NEW) == ([] if baseline else ["gw-000"])
    assert ("give --baseline): gw-000" in detail) == (baseline is None)


def test_pause_gives_out_nothing_more_and_resume_goes_on(stage: Stage) -> None:
    stage.add(4)
    made = stage.desk.create(stage.plan("1, rest"))
    stage.turn()
    stage.desk.act(made.id, "pause")
    for _ in range(40):
        stage.turn()
    assert len(stage.running(NEW)) == 1
    stage.desk.act(made.id, "resume")
    for _ in range(40):
        stage.turn()
    assert len(stage.running(NEW)) == 4


def test_a_halted_rollout_can_be_resumed_when_the_cause_is_gone(stage: Stage) -> None:
    devices = stage.add(2)
    for device in devices:
        device.trials = slow
    made = stage.desk.create(stage.plan("1, rest"))
    for _ in range(5):
        stage.turn()
    assert stage.rollout(made.id).phase == "halted"
    stage.desk.act(made.id, "resume")
    for _ in range(5):
        stage.turn()
    # The device blocks what it has taken back, and says so again: the rollout halts at once, and fetches nothing.
    assert stage.rollout(made.id).phase == "halted"
    assert max(len(device.fetched) for device in devices) == 1


def test_what_is_over_cannot_be_moved(stage: Stage) -> None:
    stage.add(1)
    made = stage.desk.create(stage.plan("rest"))
    stage.desk.act(made.id, "abort")
    with pytest.raises(RolloutError, match="is aborted; it cannot be paused"):
        stage.desk.act(made.id, "pause")


def test_who_aborts_what_is_done_is_told_what_gives_back_the_release_before(stage: Stage) -> None:
    stage.add(3)
    made = stage.desk.create(stage.plan("rest", soak_seconds=0))
    for _ in range(5):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    words = "`cloud-bridge rollout create --pipeline camera --model detector@1.0.0 --waves rest --no-gates`"
    with pytest.raises(RolloutError, match=f"is done; it cannot be aborted; {words} gives every device"):
        stage.desk.act(made.id, "abort")
    with pytest.raises(RolloutError, match=r"is done; it cannot be paused$"):
        stage.desk.act(made.id, "pause")
    stage.desk.create(stage.plan("rest", soak_seconds=0, release=str(OLD), gates=False))
    for _ in range(5):
        stage.turn()
    assert len(stage.running(OLD)) == 3


def test_a_pipeline_has_one_rollout_at_a_time(stage: Stage) -> None:
    stage.add(1)
    stage.desk.create(stage.plan("rest"))
    with pytest.raises(RolloutError, match="still running"):
        stage.desk.create(stage.plan("rest"))


def test_a_rollout_for_nobody_is_refused(stage: Stage) -> None:
    with pytest.raises(RolloutError, match="no gateway has told"):
        stage.desk.create(stage.plan("rest"))


@pytest.mark.parametrize(
    ("state", "words"),
    [("unknown", "not in the registry"), ("yanked", "taken out"), ("candidate", "nobody has approved")],
)
def test_only_released_releases_are_given_out(stage: Stage, state: str, words: str) -> None:
    stage.add(1)
    releases = Registered()
    if state != "unknown":
        releases.states[NEW] = "yanked" if state == "yanked" else "candidate"
    refusing = Stage(stage.database, releases)
    refusing.add(1)
    with pytest.raises(RolloutError, match=words):
        refusing.desk.create(refusing.plan("rest"))
    if state == "candidate":
        assert refusing.desk.create(refusing.plan("rest"), allow_candidate=True).phase == "running"


def test_a_release_that_is_yanked_meanwhile_halts_before_the_next_wave(stage: Stage) -> None:
    releases = Registered({NEW: "approved"})
    registered = Stage(stage.database, releases)
    registered.add(4)
    made = registered.desk.create(registered.plan("1, rest"))
    registered.turn()
    releases.states[NEW] = "yanked"
    for _ in range(30):
        registered.turn()
    assert registered.rollout(made.id).phase == "halted"
    assert "taken out" in registered.rollout(made.id).reason
    assert len(registered.running(NEW)) == 1


def test_a_store_that_is_away_stops_nothing_for_good(stage: Stage) -> None:
    stage.add(4)
    made = stage.desk.create(stage.plan("1, rest"))
    stage.turn()
    stage.store.away = True
    for _ in range(20):
        stage.turn()
    assert stage.rollout(made.id).phase == "running"
    stage.store.away = False
    for _ in range(30):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"


def test_tokens_only_rise_and_a_rollback_has_a_higher_one(stage: Stage) -> None:
    stage.add(1)
    made = stage.desk.create(stage.plan("rest"))
    stage.turn()
    with stage.database.transaction() as tx:
        there = one_desired(tx, "gw-000")
    stage.desk.act(made.id, "abort")
    with stage.database.transaction() as tx:
        back = find_desired(tx)["gw-000"]
    assert there is not None
    assert back.token > there.token
    assert back.version > there.version
    assert back.model_of("camera") == OLD.ref


OLDER = Release("detector", "0.9.0")


def given(stage: Stage, *, halt: bool) -> Rollout:
    """Give a release to a fleet and take it back again: the rollout is aborted, or halts."""
    devices = stage.add(4)
    made = stage.desk.create(stage.plan("rest", soak_seconds=7200, silent_minutes=5.0))
    stage.turn()
    assert len(stage.running(NEW)) == 4
    assert isinstance(stage.releases, Registered)
    stage.releases.states[OLD] = "yanked"
    if halt:
        for device in devices:
            stage.store.see(device.name, state="offline", seen_ns=stage.now_ns)
        for _ in range(20):
            stage.turn()
        assert stage.rollout(made.id).phase == "halted"
    else:
        stage.desk.act(made.id, "abort")
        stage.turn()
    return stage.rollout(made.id)


@pytest.mark.parametrize("halt", [False, True], ids=["aborted", "halted"])
def test_what_was_taken_out_of_the_registry_since_is_not_given_back_but_the_newest_before_it(
    database: Database, *, halt: bool
) -> None:
    states = {NEW: "approved", OLD: "approved", OLDER: "approved", Release("detector", "0.8.0"): "approved"}
    stage = Stage(database, Registered({**states, Release("detector", "0.9.5"): "candidate"}))  # type: ignore[dict-item]
    made = given(stage, halt=halt)
    stage.turn()
    assert len(stage.running(OLDER)) == 4
    told = stage.desk.report(made.id).history[-1].detail
    assert "4 had detector@1.0.0, which was taken out of the registry: they get detector@0.9.0" in told
    assert stage.desk.report(made.id).recovered == 4


def test_where_nothing_before_it_is_left_devices_keep_what_they_have_and_that_is_said(stage: Stage) -> None:
    stage = Stage(stage.database, Registered({NEW: "approved", OLD: "approved"}))
    made = given(stage, halt=False)
    assert len(stage.running(NEW)) == 4
    assert "there is none before it, so they keep this one" in stage.desk.report(made.id).history[-1].detail


def test_without_a_registry_that_is_asked_the_yanked_release_would_come_back(stage: Stage) -> None:
    """The control."""
    stage = Stage(stage.database, Registered({NEW: "approved", OLD: "approved", OLDER: "approved"}))
    stage.desk = RolloutDesk(stage.database, stage.store, lambda: stage.now_ns)
    given(stage, halt=False)
    assert len(stage.running(OLD)) == 4


def test_a_baseline_that_nobody_knows_is_refused(database: Database) -> None:
    stage = Stage(database, Registered({NEW: "approved"}))
    stage.add(1)
    with pytest.raises(RolloutError, match=r"baseline nope@1\.0\.0 is not in the registry, and no device runs it"):
        stage.desk.create(stage.plan("rest", baseline=Release("nope", "1.0.0")))
    made = stage.desk.create(stage.plan("rest", baseline=OLD))
    assert made.plan.baseline == OLD, "not of the registry either, but devices came with it"


def test_an_empty_id_names_no_rollout_where_there_is_only_one(database: Database) -> None:
    stage = Stage(database)
    stage.add(2)
    made = stage.desk.create(stage.plan("1, rest"))
    with pytest.raises(RolloutError, match="no rollout is named"):
        stage.desk.act("", "abort")
    assert stage.desk.act(made.id[:8], "abort").id == made.id


def test_a_pinned_device_gets_its_assignment_back_and_not_what_it_keeps(stage: Stage) -> None:
    """It took nothing of the rollout, and what a person keeps there was never assigned."""
    stage.add(3)
    kept, newer = Installed(name="detector", version="1.0.5"), Release("detector", "1.2.0")
    stage.desk.create(stage.plan("rest", soak_seconds=0))
    for _ in range(4):
        stage.turn()
    assert stage.running(NEW) == ["gw-000", "gw-001", "gw-002"]
    pinned = stage.devices["gw-000"]
    said = pinned.pin(kept)
    with stage.database.transaction() as tx:
        put_report(tx, pinned.name, said, decode(said, Twin), stage.now_ns)
    made = stage.desk.create(stage.plan("rest", release=str(newer)))
    for _ in range(2):
        stage.turn()
    assert stage.running(newer) == ["gw-001", "gw-002"]
    stands = {one.member.gateway: one.code for one in stage.desk.report(made.id).stands}
    assert stands["gw-000"] == "pinned"
    stage.desk.act(made.id, "abort")
    stage.turn()
    with stage.database.transaction() as tx:
        wanted = {name: desired.model_of("camera") for name, desired in find_desired(tx).items()}
    assert wanted == dict.fromkeys(stage.devices, NEW.ref)
    report = stage.desk.report(made.id)
    assert (report.returned, report.recovered) == (3, 3)
    pinned.unpin()
    assert stage.running(NEW) == [*stage.devices]
    assert not pinned.book.slot("camera").blocked


def test_a_device_that_was_pinned_on_the_aborted_release_is_not_as_before(stage: Stage) -> None:
    """The control: that a person keeps something there is not enough."""
    stage.add(1)
    made = stage.desk.create(stage.plan("rest"))
    for _ in range(2):
        stage.turn()
    device = stage.devices["gw-000"]
    device.pin(Installed(name=NEW.name, version=NEW.version))
    stage.desk.act(made.id, "abort")
    stage.turn()
    report = stage.desk.report(made.id)
    assert (report.returned, report.recovered) == (1, 0)
