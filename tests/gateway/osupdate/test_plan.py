"""What is next, decided without a device."""

from dataclasses import replace

import msgspec
import pytest

from gateway.osupdate.journal import Job
from gateway.osupdate.plan import (
    Bring,
    FellBack,
    Health,
    Hold,
    Install,
    OnTrial,
    Proven,
    Restart,
    Seen,
    Started,
    next_step,
)
from gateway.osupdate.rauc import Slot
from gateway.osupdate.versions import is_below, version_key

A = Slot("rootfs.0", "a", booted=True, good=True, version="1.0.0")
B = Slot("rootfs.1", "b", booted=False, good=True, version="1.1.0")
BAD_B = Slot("rootfs.1", "b", booted=False, good=False, version="1.1.0")
JOB = Job(compatible="c", version="1.1.0", stage="restarting", boot_id="1", from_slot="a", to_slot="b", restarts=1)
OLD = Seen(boot_id="2", version="1.0.0", slot="a", running=A, other=B)
NEW = Seen(boot_id="2", version="1.1.0", slot="b", running=B, other=A)


def at(stage: str, **changes: object) -> Job:
    return msgspec.structs.replace(JOB, stage=stage, **changes)


def health(verdict: str, *reasons: str, boot: str = "2", version: str = "1.1.0", when: str = "now") -> Health:
    return Health(boot, version, verdict, reasons, when)


@pytest.mark.parametrize(
    ("job", "seen", "expected"),
    [
        (at("wanted"), OLD, Bring()),
        (at("ready"), OLD, Install()),
        (at("installing"), OLD, Install()),
        (at("ready"), replace(OLD, running=replace(A, good=None)), Install()),  # a boot loader that does not say
        (at("installing"), NEW, Started()),
        (at("installed"), NEW, Started()),
        (at("restarting"), NEW, Started()),
        (at("installed", boot_id="2"), OLD, Restart()),
    ],
)
def test_each_stage_leads_to_the_next(job: Job, seen: Seen, expected: object) -> None:
    assert next_step(job, seen) == expected


@pytest.mark.parametrize("stage", ["ready", "installing"])
def test_nothing_goes_over_the_last_good_system_while_what_runs_is_on_trial(stage: str) -> None:
    held = next_step(at(stage, version="1.2.0"), replace(OLD, running=replace(A, good=False)))
    assert isinstance(held, Hold)
    assert held.code == "trial"


def test_a_restart_is_held_by_a_window_first_and_then_by_the_outbox() -> None:
    job = at("installed", boot_id="2")
    held = next_step(job, replace(OLD, window_open=False, flushed=False))
    assert isinstance(held, Hold)
    assert held.code == "window"
    held = next_step(job, replace(OLD, flushed=False))
    assert isinstance(held, Hold)
    assert held.code == "outbox"


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (NEW, OnTrial),
        (replace(NEW, health=health("healthy", boot="1")), OnTrial),  # of the boot before
        (replace(NEW, health=health("unhealthy", "no camera")), OnTrial),
        (replace(NEW, health=health("healthy")), Proven),
        (replace(NEW, health=health("unprovisioned")), Proven),
        (replace(NEW, health=health("healthy"), running=BAD_B), OnTrial),
    ],
)
def test_only_health_of_this_very_boot_ends_a_trial(seen: Seen, expected: type) -> None:
    assert isinstance(next_step(at("trial"), seen), expected)


@pytest.mark.parametrize(
    ("job", "seen", "code"),
    [
        (at("restarting"), replace(OLD, other=BAD_B), "no-boot"),
        (at("restarting", boot_id="2"), replace(OLD, other=BAD_B), "no-boot"),
        (at("restarting"), replace(OLD, other=BAD_B, health=health("unhealthy", "no camera")), "health"),
        (at("trial"), OLD, "crash"),
        (at("trial"), replace(OLD, health=health("unhealthy", "no camera")), "health"),
        (at("restarting", restarts=2), OLD, "not-started"),
    ],
)
def test_why_the_old_system_runs_again_is_told_as_exactly_as_can_be_known(job: Job, seen: Seen, code: str) -> None:
    fell = next_step(job, seen)
    assert isinstance(fell, FellBack)
    assert fell.code == code
    assert fell.reason


def test_a_slot_that_is_not_the_one_that_starts_any_more_is_told_as_such() -> None:
    """Such as one that was good before: the device went back to it, it panicked three times, and was left."""
    fell = next_step(at("restarting", restarts=2), replace(OLD, primary="a"))
    assert isinstance(fell, FellBack)
    assert "slot b is not the one that starts any more" in fell.reason
    fell = next_step(at("restarting", restarts=2), replace(OLD, primary="b"))
    assert isinstance(fell, FellBack)
    assert "after 2 restarts" in fell.reason


def test_a_report_on_health_from_before_the_restart_convicts_nobody() -> None:
    seen = replace(OLD, health=health("unhealthy", "an older try of the same version", when="then"))
    assert next_step(at("restarting", health_at="then"), seen) == Restart()


def test_versions_are_ordered_as_semantic_versions_and_numbers_count_too() -> None:
    ordered = ["1.0.0-rc.1", "1.0.0-rc.2", "1.0.0", "1.0.1", "1.10.0", "2", "2.0.1"]
    assert sorted(ordered, key=version_key) == ordered
    assert is_below("1.9.9", "1.10.0")
    assert not is_below("1.10.0", "1.10.0")
    assert not is_below("0.0.1", "")
    with pytest.raises(ValueError, match="is no version"):
        version_key("latest")
