"""What operators and programs do with rollouts: create, look, pause, resume, abort. Each is one transaction."""

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from cloud_bridge.config import Rollout as Defaults
from cloud_bridge.identity.database import Database, Transaction
from cloud_bridge.rollout.campaign import BridgeStore
from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.fleet import Fleet
from cloud_bridge.rollout.gates import Thresholds
from cloud_bridge.rollout.plan import Arm, Member, Plan, Stand, stand_of
from cloud_bridge.rollout.records import (
    Rollout,
    Transition,
    add_rollout,
    find_rollout,
    history,
    list_members,
    list_rollouts,
    move,
)
from cloud_bridge.rollout.releases import Release, Releases
from cloud_bridge.rollout.returning import Ways, give_back, ways_back, words_of
from cloud_bridge.rollout.waves import Wave
from gateway.wire.messages import kind_of

Deed = Literal["pause", "resume", "abort"]
DEEDS: Final[tuple[Deed, ...]] = ("pause", "resume", "abort")


def thresholds_from(defaults: Defaults) -> Thresholds:
    """Return the gates as the configuration sets them."""
    return Thresholds(
        max_failing_share=defaults.max_failing_share,
        min_events=defaults.min_events,
        significance=defaults.significance,
        min_effect=defaults.min_effect,
        max_latency_ratio=defaults.max_latency_ratio,
        max_anomaly_ratio=defaults.max_anomaly_ratio,
        max_error_share=defaults.max_error_share,
    )


def plan_from(
    defaults: Defaults,
    *,
    pipeline: str,
    release: Release | None,
    waves: Sequence[Wave],
    baseline: Release | None = None,
    arms: Sequence[Arm] = (),
    soak_seconds: float | None = None,
    on_halt: Literal["wave", "all"] = "wave",
    thresholds: Thresholds | None = None,
) -> Plan:
    """Make a plan; what is not said is as the configuration has it.

    Raises:
        RolloutError: it names no release.
    """
    if release is None and not arms:
        raise RolloutError("a rollout needs a release: --model NAME@VERSION, or --ab KEY=VALUE=NAME@VERSION")
    return Plan(
        pipeline=pipeline,
        release=release,
        baseline=baseline,
        arms=tuple(arms),
        waves=tuple(waves),
        soak_seconds=defaults.soak_minutes * 60 if soak_seconds is None else soak_seconds,
        pending_seconds=defaults.pending_hours * 3600,
        silent_seconds=defaults.silent_minutes * 60,
        spread_seconds=defaults.spread_seconds,
        on_halt=on_halt,
        thresholds=thresholds or thresholds_from(defaults),
    )


@dataclass(frozen=True, slots=True)
class WaveState:
    """A wave, and where its devices stand."""

    name: str
    state: Literal["waiting", "present", "passed", "taken-back"]
    devices: int
    standings: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """A rollout as people see it.

    `recovered` of `returned` devices are as before; `awaiting` of these had no release, and wait for one again.
    """

    rollout: Rollout
    waves: tuple[WaveState, ...]
    stands: tuple[Stand, ...]  # of the devices that have the release
    returned: int
    recovered: int
    history: tuple[Transition, ...]
    awaiting: int = 0


class RolloutDesk:
    """The rollouts of a bridge, for whoever may act. Safe to use from any thread; every method may raise StoreError."""

    def __init__(
        self,
        database: Database,
        store: BridgeStore,
        clock: Callable[[], int],
        releases: Releases | None = None,
        revoked: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._revoked = revoked
        self._database = database
        self._store = store
        self._clock = clock
        self._releases = releases

    def create(self, plan: Plan, *, who: str = "operator", allow_candidate: bool = False) -> Rollout:
        """Begin a rollout; the bridge gives out its first wave at its next look.

        Raises:
            RolloutError: another one is open for the pipeline, no device has the pipeline, a release may not be given.
        """
        self._check_releases(plan, allow_candidate=allow_candidate)
        fleet = Fleet.read(self._store, self._database, self._revoked())
        self._check_baseline(plan, fleet)
        meant = fleet.meant(plan)
        if not meant:
            raise RolloutError(
                f"no gateway has told of a pipeline {plan.pipeline!r} that this rollout is for; see `cloud-bridge"
                " fleet list`"
            )
        now_ns = self._clock()
        with self._database.transaction() as tx:
            _one_at_a_time(tx)
            for other in list_rollouts(tx, only_open=True, limit=10_000):
                if other.plan.pipeline == plan.pipeline:
                    raise RolloutError(
                        f"rollout {other.id} is still {other.phase} for pipeline {plan.pipeline}; let it end, or"
                        f" `cloud-bridge rollout abort {other.id}`"
                    )
            waiting = sum(1 for name in meant if fleet.awaits(name, plan.pipeline))
            reason = f"{len(meant)} devices have the pipeline"
            reason += f"; {waiting} of them have no release for it yet" if waiting else ""
            rollout = Rollout(secrets.token_hex(6), now_ns, now_ns, "running", reason, 1, plan)
            add_rollout(tx, rollout, who)
        return rollout

    def act(self, rollout_id: str, deed: Deed, *, who: str = "operator", reason: str = "") -> Rollout:
        """Pause, resume or abort.

        Pausing stops giving out, not watching: a gate still halts. Resuming a halted rollout gives its wave out again.
        Aborting gives every device back what it ran before.

        Raises:
            RolloutError: there is no such rollout, or it is not in a state for that.
        """
        now_ns = self._clock()
        ways = self._ways_back(rollout_id) if deed == "abort" else {}
        with self._database.transaction() as tx:
            before = find_rollout(tx, rollout_id)
            known = list_members(tx, before.id)
            if deed == "pause" and before.phase == "running":
                after = replace(before, phase="paused", updated_ns=now_ns, reason=reason or "paused")
                return move(tx, before, after, "paused", who=who)
            if deed == "resume" and before.phase in {"paused", "halted"}:
                after = replace(before, phase="running", updated_ns=now_ns, reason=reason or "resumed")
                if before.phase == "halted":
                    after = replace(after, wave_ns=None, settled_ns=None, findings=())
                return move(tx, before, after, "resumed", who=who)
            if deed == "abort" and before.phase in {"running", "paused", "halted"}:
                back = [one for one in known if not one.returned]
                returned = give_back(tx, before, back, ways, now_ns)
                after = replace(before, phase="aborted", updated_ns=now_ns, reason=reason or "aborted")
                detail = f"{after.reason}; {words_of(back, returned)}"
                return move(tx, before, after, "aborted", who=who, detail=detail)
        remedy = f"; {_instead(before, known)}" if deed == "abort" and before.phase == "done" else ""
        raise RolloutError(f"rollout {before.id} is {before.phase}; it cannot be {_PAST[deed]}{remedy}")

    def _ways_back(self, rollout_id: str) -> Ways:
        """Ask the registry before the transaction: nobody waits there for another database."""
        with self._database.transaction(durable=False) as tx:
            known = list_members(tx, find_rollout(tx, rollout_id).id)
        return ways_back(self._releases, [one for one in known if not one.returned])

    def list(self, limit: int = 100) -> list[Rollout]:
        """Return rollouts, the latest first."""
        with self._database.transaction(durable=False) as tx:
            return list_rollouts(tx, limit=limit)

    def report(self, rollout_id: str) -> Report:
        """Return a rollout with where its devices stand.

        Raises:
            RolloutError: there is no such rollout.
        """
        now_ns = self._clock()
        with self._database.transaction(durable=False) as tx:
            rollout = find_rollout(tx, rollout_id)
            all_members = list_members(tx, rollout.id)
            told = history(tx, rollout.id)
        fleet = Fleet.read(self._store, self._database, self._revoked())
        plan = rollout.plan
        stands = tuple(
            Stand(one, "left", "gone", "was revoked or forgotten, and is not counted")
            if one.gateway in fleet.gone
            else stand_of(one, fleet.heard(one.gateway, plan.pipeline), plan, now_ns)
            for one in all_members
            if not one.returned
        )
        back = [one for one in all_members if one.returned]
        recovered = sum(1 for one in back if _has_recovered(one, fleet, plan.pipeline))
        awaiting = sum(1 for one in back if one.previous is None and fleet.awaits(one.gateway, plan.pipeline))
        waves = tuple(_wave(at, wave, rollout, all_members, stands) for at, wave in enumerate(plan.waves))
        return Report(rollout, waves, stands, len(back), recovered + awaiting, tuple(told), awaiting)

    def _check_baseline(self, plan: Plan, fleet: Fleet) -> None:
        """Make sure that somebody knows what devices would go back to: the registry, or a device that runs it."""
        if plan.baseline is None or self._releases is None or self._releases.state_of(plan.baseline) != "unknown":
            return
        if plan.baseline not in {fleet.running(name, plan.pipeline) for name in fleet.names()}:
            raise RolloutError(
                f"baseline {plan.baseline} is not in the registry, and no device runs it; see `cloud-bridge model list`"
            )

    def _check_releases(self, plan: Plan, *, allow_candidate: bool) -> None:
        if self._releases is None:
            return
        for release in sorted({arm.release for arm in plan.arms} | ({plan.release} if plan.release else set())):
            match self._releases.state_of(release):
                case "unknown":
                    raise RolloutError(f"release {release} is not in the registry; see `cloud-bridge model list`")
                case "yanked":
                    raise RolloutError(f"release {release} was taken out of the registry; publish a new version")
                case "candidate" if not allow_candidate:
                    raise RolloutError(
                        f"release {release} is a candidate that nobody has approved; approve it, or give --candidate"
                    )
                case _:
                    pass


_PAST: Final[dict[Deed, str]] = {"pause": "paused", "resume": "resumed", "abort": "aborted"}


def _instead(rollout: Rollout, members: Sequence[Member]) -> str:
    """Say what gives the devices of a rollout that is done the release before."""
    pipeline = rollout.plan.pipeline
    if kind_of(pipeline) == "os":
        return "another image comes by another rollout"
    before = {one.previous for one in members if one.previous is not None}
    older = str(before.pop()) if len(before) == 1 else "NAME@OLDER"
    return (
        f"`cloud-bridge rollout create --pipeline {pipeline} --model {older} --waves rest --no-gates` gives every "
        "device the release before"
    )


def _one_at_a_time(tx: Transaction) -> None:
    """Wait for others who are creating one: both would find that none is open. The row is held until the end."""
    tx.change(
        "INSERT INTO fleet_facts (name, value) VALUES ('creating', 1)"
        " ON CONFLICT (name) DO UPDATE SET value = fleet_facts.value + 1"
    )


def _has_recovered(member: Member, fleet: Fleet, pipeline: str) -> bool:
    """Tell whether a device runs what it ran before, as it says itself; a pinned one never ran anything else."""
    running = fleet.running(member.gateway, pipeline)
    if fleet.is_pinned(member.gateway, pipeline) and running not in {None, member.release}:
        return True
    return member.previous is not None and running == member.previous


def _wave(at: int, wave: Wave, rollout: Rollout, all_members: Sequence[Member], stands: Sequence[Stand]) -> WaveState:
    there = [one for one in all_members if one.wave == at]
    standings: dict[str, int] = {**Counter(one.standing for one in stands if one.member.wave == at)}
    if there and all(one.returned for one in there):
        return WaveState(str(wave), "taken-back", len(there), {})
    if at < rollout.wave or (rollout.phase == "done" and there):
        return WaveState(str(wave), "passed", len(there), standings)
    return WaveState(str(wave), "present" if there else "waiting", len(there), standings)
