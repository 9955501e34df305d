"""Where the devices of a wave stand, and what happens next. Pure: the time comes in, a step goes out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from cloud_bridge.rollout.gates import Thresholds, Verdict
from cloud_bridge.rollout.releases import Release, release_from
from cloud_bridge.rollout.waves import Wave
from gateway.wire.messages import UpdateState

Standing = Literal["pending", "updating", "running", "failing", "left"]
Phase = Literal["running", "paused", "halted", "done", "aborted"]
OPEN: Final[frozenset[Phase]] = frozenset({"running", "paused", "halted"})

_FAILED: Final = frozenset({"reverted", "refused", "blocked"})
NO_PIPELINE: Final = "unknown-pipeline"
"""What a device says that does not have the pipeline: it was renamed there, or removed, since it was heard of."""
_NS: Final = 1_000_000_000
LEAST_REACHED: Final = 0.5
"""Share of a wave that must run the release before the next wave begins: who was not reached proves nothing."""


class Arm(msgspec.Struct, frozen=True):
    """Devices with these labels get this release."""

    labels: dict[str, str]
    release: Release


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout is to do; fixed when it is created.

    `release` is for the devices that are in no arm; None: those get nothing. `baseline` is what devices go back to
    and are compared with when they do not say what they ran before. `pending_seconds`: how long a device that is not
    reached is waited for. `silent_seconds`: after so long a device that took the release and then lost its connection
    counts as failing. Twins of a wave go out over `spread_seconds`.
    """

    pipeline: str
    release: Release | None
    baseline: Release | None = None
    arms: tuple[Arm, ...] = ()
    waves: tuple[Wave, ...]
    soak_seconds: float
    pending_seconds: float
    silent_seconds: float
    spread_seconds: float
    on_halt: Literal["wave", "all"] = "wave"
    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class Member:
    """A device of a rollout. `previous` is what it goes back to; `token` fences its latest assignment."""

    gateway: str
    wave: int
    release: Release
    previous: Release | None
    assigned_ns: int
    due_ns: int
    token: int
    returned: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of a device now. `token`: the last it accepted. `seen_ns`: when anything came from it last.

    `offline_since_ns`: when this bridge first saw that it is gone; a bridge that was away itself cannot know more.
    """

    online: Literal["online", "stopped", "offline", "unknown"] = "unknown"
    seen_ns: int = 0
    token: int = 0
    update: UpdateState | None = None
    offline_since_ns: int = 0


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a device stands, and why; `code` is for programs."""

    member: Member
    standing: Standing
    code: str = ""
    reason: str = ""


def stand_of(member: Member, heard: Heard, plan: Plan, now_ns: int) -> Stand:
    """Say where a device stands.

    Failing: it took the release back, refused it or has it blocked; it took it and then went silent without
    saying good-bye (a release that kills its device looks like that); or it has been at it for too long. Left: it was
    not reached in time, or a person keeps another release there, or it does not have the pipeline any more. Who is left
    is no evidence either way, and gets the release when it comes back, for its twin is retained.
    """
    waited = (now_ns - member.due_ns) / _NS
    gone_ns = max(heard.seen_ns, heard.offline_since_ns)
    silent = heard.online == "offline" and (now_ns - gone_ns) / _NS > plan.silent_seconds
    update = heard.update
    if heard.token < member.token or update is None or release_from(update.model) != member.release:
        return _not_answered(member, heard, plan, waited=waited, silent=silent)
    if update.phase == "refused" and update.code == NO_PIPELINE:
        return Stand(member, "left", NO_PIPELINE, update.reason or "does not have the pipeline any more")
    if update.phase in _FAILED:
        return Stand(member, "failing", update.code or update.phase, update.reason or update.phase)
    if update.phase == "pinned":
        return Stand(member, "left", "pinned", update.reason or "a person on the device keeps another release")
    if silent and update.phase in {"trial", "running", "checking"}:
        return Stand(member, "failing", "silent", f"went silent in the phase {update.phase}")
    if update.phase == "running":
        return Stand(member, "running")
    if waited > plan.pending_seconds:
        if update.phase == "waiting" or heard.online != "online":
            return Stand(member, "left", "waiting", update.reason or "still waits for a link, a budget or a key")
        return Stand(member, "failing", "stuck", f"still {update.phase} after {waited / 3600:.1f} h")
    return Stand(member, "updating", update.phase, update.reason)


def _not_answered(member: Member, heard: Heard, plan: Plan, *, waited: float, silent: bool) -> Stand:
    heard_since = heard.seen_ns > member.due_ns
    if silent and heard.token >= member.token > 0:
        return Stand(member, "failing", "silent", "took the assignment and went silent")
    if waited > plan.pending_seconds:
        reason = "does not take its twin" if heard_since else "was not there"
        return Stand(member, "left", "unanswered" if heard_since else "offline", reason)
    return Stand(member, "pending", "offline" if heard.online in {"offline", "stopped"} else "")


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop here and take the wave back."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Everybody of the wave who is there has come to an end: the soak begins."""


@dataclass(frozen=True, slots=True)
class Advance:
    """The wave is passed."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do yet, for this reason. `is_stuck`: it may last for ever unless somebody does something."""

    reason: str
    is_stuck: bool = False


Step = Halt | Settle | Advance | Wait


def next_step(
    plan: Plan,
    stands: Sequence[Stand],
    earlier: Sequence[Stand] = (),
    *,
    settled_ns: int | None,
    verdict: Verdict | None,
    now_ns: int,
) -> Step:
    """Decide what happens to the present wave. `earlier` are the devices of the waves before.

    The failing are held against the whole wave as it was given out, less those that are left, so that the first device
    to answer does not speak for all; one of a wave of one is all of it. A release that fails late, when its wave has
    long passed, halts by the share of all that have it. Who is offline does not hold a wave up, as long as it has
    reached enough of the others.
    """
    count = Counter(one.standing for one in stands)
    if plan.thresholds.enabled:
        for some in (stands, [*earlier, *stands]):
            failing = [one for one in some if one.standing == "failing"]
            judged = sum(1 for one in some if one.standing != "left")
            if judged and len(failing) / judged > plan.thresholds.max_failing_share:
                return Halt("failing-share", _failing_reason(failing, judged))
        if verdict is not None and verdict.failed:
            first = verdict.failed[0]
            return Halt(first.gate, first.text)
    unsettled = count["updating"] + sum(1 for one in stands if one.standing == "pending" and one.code != "offline")
    if unsettled:
        return Wait(f"{unsettled} of {len(stands)} devices have not come to an end")
    meant = [one for one in stands if one.code != NO_PIPELINE]
    if stands and not meant and stands[0].member.wave + 1 < len(plan.waves):
        return Wait(
            f"none of the {len(stands)} devices of this wave has the pipeline any more, so it proves nothing: "
            "abort, and create the rollout anew",
            is_stuck=True,
        )
    if meant and (count["running"] + count["failing"]) / len(meant) < LEAST_REACHED:
        return Wait(
            f"only {count['running']} of {len(meant)} devices were reached, and {LEAST_REACHED:.0%} are needed: "
            + _what_helps([one for one in meant if one.standing in {"left", "pending"}]),
            is_stuck=True,
        )
    if settled_ns is None:
        return Settle()
    left = settled_ns + int(plan.soak_seconds * _NS) - now_ns
    if left > 0:
        return Wait(f"soaks for another {left / _NS / 60:.0f} min")
    return Advance()


def _what_helps(away: Sequence[Stand]) -> str:
    pinned = [one.member.gateway for one in away if one.code == "pinned"]
    if pinned:  # there, and asked: somebody at the device has to let it go
        who = f"{pinned[0]} and others keep" if len(pinned) > 1 else f"{pinned[0]} keeps"
        return f"{who} another release until `gateway ota unpin` there"
    others = " and others" if len(away) > 1 else ""
    return f"wait for {away[0].member.gateway}{others}, or `cloud-bridge fleet forget` those that are gone"


def _failing_reason(failing: Sequence[Stand], judged: int) -> str:
    codes = Counter(one.code for one in failing)
    named = ", ".join(f"{code} {number}" for code, number in codes.most_common(5))
    return f"{len(failing)} of {judged} devices fail ({named}); {failing[0].member.gateway}: {failing[0].reason}"
