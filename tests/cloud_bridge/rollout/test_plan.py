"""Where devices stand, and what happens next."""

from dataclasses import replace

import pytest

from cloud_bridge.config import Rollout as Defaults
from cloud_bridge.rollout.gates import Finding, Verdict
from cloud_bridge.rollout.plan import (
    Advance,
    Halt,
    Heard,
    Member,
    Settle,
    Stand,
    Standing,
    Wait,
    next_step,
    stand_of,
)
from cloud_bridge.rollout.releases import Release
from cloud_bridge.rollout.service import plan_from
from cloud_bridge.rollout.waves import waves_of
from gateway.wire.messages import UpdatePhase, UpdateState

NEW, OLD = Release("m", "2.0.0"), Release("m", "1.0.0")
PLAN = plan_from(Defaults(), pipeline="p", release=NEW, waves=waves_of("rest"), soak_seconds=60)
MINUTE, HOUR = 60 * 10**9, 3600 * 10**9
MEMBER = Member("gw", 0, NEW, OLD, assigned_ns=0, due_ns=0, token=7)


def update(phase: UpdatePhase, release: Release = NEW, code: str = "") -> UpdateState:
    return UpdateState(pipeline="p", phase=phase, model=release.ref, at="", code=code, fencing_token=7)


@pytest.mark.parametrize(
    ("heard", "now_ns", "standing", "code"),
    [
        (Heard("online", MINUTE, 7, update("running")), MINUTE, "running", ""),
        (Heard("online", MINUTE, 7, update("fetching")), MINUTE, "updating", "fetching"),
        (Heard("online", MINUTE, 7, update("reverted", code="latency")), MINUTE, "failing", "latency"),
        (Heard("online", MINUTE, 7, update("refused", code="hardware")), MINUTE, "failing", "hardware"),
        (Heard("online", MINUTE, 7, update("blocked")), MINUTE, "failing", "blocked"),
        (Heard("online", MINUTE, 7, update("pinned")), MINUTE, "left", "pinned"),
        (Heard("online", MINUTE, 7, update("refused", code="unknown-pipeline")), MINUTE, "left", "unknown-pipeline"),
        # A word about another release, or under an older token, says nothing of this one.
        (Heard("online", MINUTE, 7, update("running", OLD)), MINUTE, "pending", ""),
        (Heard("online", MINUTE, 6, update("reverted")), MINUTE, "pending", ""),
        # Gone before it took the release: pending, then left; never failing.
        (Heard("offline", 0, 0, None), 2 * HOUR, "pending", "offline"),
        (Heard("offline", 0, 0, None), 25 * HOUR, "left", "offline"),
        (Heard("online", 25 * HOUR, 0, None), 25 * HOUR, "left", "unanswered"),
        # Gone after it took the release, and without good-bye: failing.
        (Heard("offline", MINUTE, 7, None), HOUR, "failing", "silent"),
        (Heard("offline", MINUTE, 7, update("trial")), HOUR, "failing", "silent"),
        (Heard("offline", MINUTE, 7, update("running")), 2 * MINUTE, "running", ""),
        (Heard("stopped", MINUTE, 7, update("running")), HOUR, "running", ""),
        # At it for too long: a wait for a link is nobody's fault, a fetch that never ends is.
        (Heard("online", 25 * HOUR, 7, update("waiting")), 25 * HOUR, "left", "waiting"),
        (Heard("online", 25 * HOUR, 7, update("fetching")), 25 * HOUR, "failing", "stuck"),
    ],
)
def test_a_device_stands_where_its_words_and_its_silence_put_it(
    heard: Heard, now_ns: int, standing: Standing, code: str
) -> None:
    found = stand_of(MEMBER, heard, PLAN, now_ns)
    assert (found.standing, found.code) == (standing, code)


def stands(**counts: int) -> list[Stand]:
    words: dict[str, Standing] = {
        "pending": "pending", "updating": "updating", "running": "running", "failing": "failing", "left": "left"
    }  # fmt: skip
    return [Stand(MEMBER, words[word], "latency") for word, count in counts.items() for _ in range(count)]


def step(found: list[Stand], settled_ns: int | None = None, verdict: Verdict | None = None, now_ns: int = 0) -> object:
    return next_step(PLAN, found, settled_ns=settled_ns, verdict=verdict, now_ns=now_ns)


def test_one_of_a_wave_of_one_is_all_of_it() -> None:
    assert isinstance(step(stands(failing=1)), Halt)


def test_the_failing_share_is_of_the_whole_wave() -> None:
    assert isinstance(step(stands(failing=2, running=1, pending=97)), Wait)
    assert isinstance(step(stands(failing=3, running=1, pending=96)), Halt)


def test_who_was_left_does_not_dilute_the_share() -> None:
    assert isinstance(step(stands(failing=2, running=48, left=50)), Halt)


def test_a_wave_settles_soaks_and_passes() -> None:
    assert isinstance(step(stands(running=10, pending=1)), Wait)
    assert isinstance(step(stands(running=10)), Settle)
    assert isinstance(step(stands(running=10), settled_ns=0, now_ns=59 * 10**9), Wait)
    assert isinstance(step(stands(running=10), settled_ns=0, now_ns=60 * 10**9), Advance)


def test_a_wave_that_reached_nearly_nobody_proves_nothing() -> None:
    assert isinstance(step(stands(running=4, left=6), settled_ns=0, now_ns=HOUR), Wait)
    assert isinstance(step(stands(running=5, left=5), settled_ns=0, now_ns=HOUR), Advance)


def test_who_does_not_have_the_pipeline_any_more_neither_fails_nor_holds_a_wave_up() -> None:
    renamed = [Stand(MEMBER, "left", "unknown-pipeline")] * 10
    assert isinstance(step([*stands(running=2), *renamed]), Settle)
    assert isinstance(step([*stands(running=2, left=10)]), Wait), "the control: others that are not reached do"
    assert isinstance(step(renamed), Settle), "nobody is left to whom it could be given"


def test_a_canary_that_has_not_the_pipeline_proves_nothing() -> None:
    plan = plan_from(Defaults(), pipeline="p", release=NEW, waves=waves_of("1, rest"), soak_seconds=60)
    stand = [Stand(MEMBER, "left", "unknown-pipeline")]
    waits = next_step(plan, stand, [], settled_ns=None, verdict=None, now_ns=MINUTE)
    assert isinstance(waits, Wait)
    assert waits.is_stuck
    last = [Stand(replace(MEMBER, wave=1), "left", "unknown-pipeline")]
    assert isinstance(next_step(plan, last, [], settled_ns=None, verdict=None, now_ns=MINUTE), Settle), "the control"


def test_who_is_offline_holds_up_no_wave_that_has_reached_enough() -> None:
    offline = [Stand(MEMBER, "pending", "offline")] * 3
    assert isinstance(step([*stands(running=7), *offline]), Settle)
    assert isinstance(step([*stands(running=2), *offline]), Wait)


def test_who_fails_after_its_wave_has_passed_counts_among_all() -> None:
    found = next_step(PLAN, stands(running=50), stands(failing=3, running=47), settled_ns=0, verdict=None, now_ns=0)
    assert isinstance(found, Halt)


def test_a_failed_gate_halts_and_says_why() -> None:
    verdict = Verdict(3, (Finding("drift", "failed", 0.4, 0.1, 1e-9, "scores lower"),))
    assert step(stands(running=1), verdict=verdict) == Halt("drift", "scores lower")


def test_nobody_is_told_to_forget_a_device_on_which_a_release_is_pinned() -> None:
    pinned = next_step(PLAN, [Stand(MEMBER, "left", "pinned", "")], [], settled_ns=None, verdict=None, now_ns=MINUTE)
    assert isinstance(pinned, Wait)
    assert "gw keeps another release until `gateway ota unpin`" in pinned.reason
    assert "forget" not in pinned.reason
    gone = next_step(PLAN, [Stand(MEMBER, "left", "offline", "")], [], settled_ns=None, verdict=None, now_ns=MINUTE)
    assert isinstance(gone, Wait)
    assert "forget" in gone.reason  # the control
