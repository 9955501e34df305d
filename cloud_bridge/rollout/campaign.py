"""Moves rollouts on: reads, decides with pure code, and writes what follows in one transaction with its reason.

Everything that decides is in the database, so that a bridge that starts again goes on where the last one stopped; two
bridges on one database come to the same decision, and one of them writes it.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from cloud_bridge.errors import BridgeError, StoreError
from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.fleet import Fleet, FleetStates
from cloud_bridge.rollout.gates import Seen, is_due, judge, seen_now
from cloud_bridge.rollout.metrics import RolloutMetrics
from cloud_bridge.rollout.plan import (
    Advance,
    Halt,
    Member,
    Plan,
    Settle,
    Stand,
    Standing,
    Wait,
    next_step,
    stand_of,
)
from cloud_bridge.rollout.records import (
    ChangedMeanwhileError,
    Rollout,
    keep_look,
    keep_reason,
    list_members,
    list_rollouts,
    move,
    put_members,
)
from cloud_bridge.rollout.releases import Release, Releases
from cloud_bridge.rollout.returning import give_back, ways_back, words_of
from cloud_bridge.rollout.telemetry import Records, Watch, last_id
from cloud_bridge.rollout.waves import Labels, Wave, arms_cover, jitter, matches, members
from cloud_bridge.twins.desired import Change, apply_changes
from gateway.wire import tokens

log = structlog.get_logger()

_NS: Final = 1_000_000_000
_STANDINGS: Final[tuple[Standing, ...]] = ("pending", "updating", "running", "failing", "left")


class BridgeStore(Records, FleetStates, Protocol):
    """The part of the store that rollouts read."""


@dataclass(slots=True)
class _Watched:
    wave: int
    wave_ns: int
    watch: Watch


class Campaign:
    """All rollouts of a bridge. One thread calls `tick`, again and again."""

    def __init__(
        self,
        database: Database,
        store: BridgeStore,
        metrics: RolloutMetrics,
        *,
        past_hours: float,
        releases: Releases | None = None,
        revoked: Callable[[], Collection[str]] = tuple,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._database = database
        self._store = store
        self._metrics = metrics
        self._past_hours = past_hours
        self._releases = releases
        self._revoked = revoked
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._watched: dict[str, _Watched] = {}
        self._gone: dict[str, int] = {}  # devices that are offline, and since when this has been seen
        self._waiting: set[str] = set()  # rollouts of which it was told that they wait
        self._stuck: set[str] = set()  # rollouts that can neither be moved on nor halted
        self._failing = False

    def tick(self) -> None:
        """Look at every rollout that is not over, once. What cannot be read or written now waits for the next time."""
        try:
            self._tick()
        except StoreError as error:
            if not self._failing:
                log.error("rollouts_wait_for_store", error=str(error), consequence="no rollout moves until it works")
            self._failing = True
            return
        if self._failing:
            log.info("rollouts_go_on")
        self._failing = False

    def _tick(self) -> None:
        with self._database.transaction(durable=False) as tx:
            rollouts = list_rollouts(tx, only_open=True, limit=10_000)
        active = [one for one in rollouts if one.phase in {"running", "paused"}]
        fleet = Fleet.read(self._store, self._database, self._revoked()) if active else None
        if fleet is not None:
            gone = [name for name, state in fleet.gateways.items() if state.state == "offline"]
            self._gone = {name: self._gone.get(name, self._wall_ns()) for name in gone}
        phases = Counter(one.phase for one in rollouts)
        for phase in ("running", "paused", "halted"):
            self._metrics.open.labels(phase).set(phases[phase])
        for ended in self._watched.keys() - {one.id for one in active}:
            del self._watched[ended]
        self._stuck &= {one.id for one in active}
        self._waiting &= {one.id for one in active}
        standings: Counter[Standing] = Counter()
        unread: StoreError | None = None
        for rollout in active:
            try:
                if fleet is not None:
                    standings.update(self._moved(rollout, fleet))
            except StoreError as error:
                unread = unread or error  # the others have their turn: it may be about this one alone
        for standing in _STANDINGS:
            self._metrics.devices.labels(standing).set(standings[standing])
        if unread is not None:
            raise unread

    def _moved(self, rollout: Rollout, fleet: Fleet) -> list[Standing]:
        """Move a rollout on; what is wrong with it alone does not leave here.

        Raises:
            StoreError: something cannot be read or written now.
        """
        try:
            return self._step(rollout, fleet)
        except ChangedMeanwhileError:
            log.info("rollout_changed_meanwhile", rollout=rollout.id)  # by an operator or another bridge
        except StoreError:
            raise
        except BridgeError as error:
            self._give_up(rollout, error)
        return []

    def _give_up(self, rollout: Rollout, error: BridgeError) -> None:
        """Halt a rollout that cannot be moved on; it takes no other one with it.

        Raises:
            StoreError: it cannot be written now.
        """
        with self._database.transaction(durable=False) as tx:
            all_members = list_members(tx, rollout.id)
        try:
            self._halt(rollout, all_members, [], Halt("error", f"it cannot be moved on: {error}"))
        except ChangedMeanwhileError:
            log.info("rollout_changed_meanwhile", rollout=rollout.id)
        except StoreError:
            raise
        except BridgeError as again:
            if rollout.id not in self._stuck:
                log.error("rollout_stuck", rollout=rollout.id, error=str(again), remedy="cloud-bridge rollout abort")
            self._stuck.add(rollout.id)

    def _step(self, rollout: Rollout, fleet: Fleet) -> list[Standing]:
        if rollout.wave_ns is None:
            if rollout.phase == "running":
                self._begin_wave(rollout, fleet)
            return []
        with self._database.transaction(durable=False) as tx:
            all_members = list_members(tx, rollout.id)
        given = [one for one in all_members if not one.returned and one.gateway not in fleet.gone]
        wave = [one for one in given if one.wave == rollout.wave]
        now_ns = self._wall_ns()
        plan = rollout.plan

        def stand(one: Member) -> Stand:
            heard = fleet.heard(one.gateway, plan.pipeline, self._gone.get(one.gateway, 0))
            return stand_of(one, heard, plan, now_ns)

        stands = [stand(one) for one in wave]
        earlier = [stand(one) for one in given if one.wave != rollout.wave]
        rollout = self._look(rollout, wave)
        step = next_step(plan, stands, earlier, settled_ns=rollout.settled_ns, verdict=rollout.verdict, now_ns=now_ns)
        match step:
            case Halt():
                self._halt(rollout, all_members, [*stands, *earlier], step)
            case Settle():
                detail = f"{sum(1 for one in stands if one.standing == 'running')} of {len(stands)} devices run it"
                with self._database.transaction() as tx:
                    after = replace(rollout, settled_ns=now_ns, updated_ns=now_ns, reason=detail)
                    move(tx, rollout, after, "settled", detail=detail)
                self._tell("settled", rollout, detail=detail)
            case Advance() if rollout.phase == "running":
                self._advance(rollout, f"wave {rollout.plan.waves[rollout.wave]} has passed", "wave-passed")
            case Wait():
                self._wait(rollout, step)
            case Advance():
                pass
        if rollout.id in self._waiting and not (isinstance(step, Wait) and step.is_stuck):
            log.info("rollout_waits_no_more", rollout=rollout.id, wave=rollout.wave)
            self._waiting.discard(rollout.id)
        return [one.standing for one in stands]

    def _wait(self, rollout: Rollout, wait: Wait) -> None:
        """Say what is waited for where that may last: a person must see it who only looks at the rollout."""
        if not wait.is_stuck:
            if rollout.id in self._waiting:
                with self._database.transaction(durable=False) as tx:
                    keep_reason(tx, rollout, wait.reason)
            return
        if rollout.id not in self._waiting:
            log.warning("rollout_waits", rollout=rollout.id, wave=rollout.wave, reason=wait.reason)
        self._waiting.add(rollout.id)
        if rollout.phase == "running" and rollout.reason != wait.reason:
            with self._database.transaction(durable=False) as tx:
                keep_reason(tx, rollout, wait.reason)

    def _begin_wave(self, rollout: Rollout, fleet: Fleet) -> None:
        """Give the wave out. Its devices are chosen now, so that those that came meanwhile are among them."""
        plan, now_ns = rollout.plan, self._wall_ns()
        gate, refusal = "release", self._refusal(plan)
        if refusal is None and not self._has_given(rollout):
            gate, refusal = "wave", self._nobody_in(plan.waves[rollout.wave], fleet.meant(plan))
        if refusal is not None:
            with self._database.transaction() as tx:
                after = replace(rollout, phase="halted", updated_ns=now_ns, reason=refusal)
                move(tx, rollout, after, "halted", detail=refusal)
            self._metrics.halts.labels(gate).inc()
            self._tell("halted", rollout, gate=gate, reason=refusal)
            return
        cursor = last_id(self._store)
        with self._database.transaction() as tx:
            known = list_members(tx, rollout.id)
            taken = {one.gateway for one in known if not one.returned}
            before = {one.gateway: one.previous for one in known}  # of those that were given back in an earlier try
            meant = fleet.meant(plan)
            chosen = members(plan.waves[rollout.wave], meant, taken, rollout.id)
            if chosen:
                wave = self._members(rollout, fleet, chosen, now_ns, before)
                changes = [Change(one.gateway, plan.pipeline, one.release.ref, one.due_ns) for one in wave]
                token = apply_changes(tx, changes, now_ns, _highest_reported(fleet, chosen, now_ns))
                put_members(tx, rollout, [replace(one, token=token) for one in wave])
                reason = f"wave {plan.waves[rollout.wave]} is given to {len(chosen)} of {len(meant)} devices"
                after = replace(
                    rollout,
                    wave_ns=now_ns,
                    cursor=cursor,
                    settled_ns=None,
                    seen=Seen(looks=rollout.seen.looks),
                    findings=(),
                    updated_ns=now_ns,
                    reason=reason,
                )
                move(tx, rollout, after, "wave-started")
        if chosen:
            self._tell("wave-started", rollout, devices=len(chosen), first=chosen[0])
        else:
            self._advance(rollout, f"wave {plan.waves[rollout.wave]} has no device", "wave-empty")

    def _members(
        self,
        rollout: Rollout,
        fleet: Fleet,
        chosen: Sequence[str],
        now_ns: int,
        before: Mapping[str, Release | None],
    ) -> list[Member]:
        plan = rollout.plan
        spread_ns = int(plan.spread_seconds * _NS) if len(chosen) > 1 else 0
        found = []
        for name in chosen:
            release = release_for(plan, fleet, name)
            previous = fleet.way_back(name, plan.pipeline)
            if previous is None or previous == release:
                previous = before.get(name) or plan.baseline
            due_ns = now_ns + int(jitter(rollout.id, name) * spread_ns)
            found.append(Member(name, rollout.wave, release, previous, now_ns, due_ns, 0))
        return found

    def _refusal(self, plan: Plan) -> str | None:
        if self._releases is None:
            return None
        for release in sorted({arm.release for arm in plan.arms} | ({plan.release} if plan.release else set())):
            state = self._releases.state_of(release)
            if state in {"yanked", "unknown"}:
                word = "was taken out of the registry" if state == "yanked" else "is not in the registry"
                return f"release {release} {word}"
        return None

    def _has_given(self, rollout: Rollout) -> bool:
        """Whether some device has the release: then an empty wave, as of one that is gone, leaves nothing untried."""
        with self._database.transaction(durable=False) as tx:
            return any(not one.returned for one in list_members(tx, rollout.id))

    def _nobody_in(self, wave: Wave, meant: Mapping[str, Labels]) -> str | None:
        """Say what is wrong with labels that no device has: going on, a typing error would leave out the canaries."""
        if not wave.labels or any(matches(wave.labels, labels) for labels in meant.values()):
            return None
        return (
            f"no device of this rollout has the labels of wave {wave}; label one (`cloud-bridge fleet label`) and "
            "resume, or abort and create it with other waves"
        )

    def _look(self, rollout: Rollout, wave: Sequence[Member]) -> Rollout:
        watched = self._watched.get(rollout.id)
        if watched is None or (watched.wave, watched.wave_ns) != (rollout.wave, rollout.wave_ns):
            watch = Watch.over(self._store, rollout.plan.pipeline, wave, rollout.cursor, self._past_hours)
            watched = self._watched[rollout.id] = _Watched(rollout.wave, rollout.wave_ns or 0, watch)
        complete = watched.watch.read()
        now = seen_now(watched.watch.figures.values(), rollout.seen)
        if not complete or not is_due(rollout.seen, now):
            return rollout
        started_ns = self._monotonic_ns()
        look = rollout.seen.looks + 1
        verdict = judge(watched.watch.figures, rollout.plan.thresholds, look=look, pool=watched.watch.pool)
        self._metrics.looks.inc()
        self._metrics.look_seconds.observe((self._monotonic_ns() - started_ns) / _NS)
        with self._database.transaction() as tx:
            return keep_look(tx, rollout, replace(now, looks=look), verdict.findings)

    def _halt(self, rollout: Rollout, all_members: Sequence[Member], stands: Sequence[Stand], halt: Halt) -> None:
        now_ns = self._wall_ns()
        back = [
            one
            for one in all_members
            if not one.returned and (rollout.plan.on_halt == "all" or one.wave == rollout.wave)
        ]
        reason = f"{halt.code}: {halt.reason}"
        ways = ways_back(self._releases, back)
        with self._database.transaction() as tx:
            returned = give_back(tx, rollout, back, ways, now_ns)
            after = replace(rollout, phase="halted", updated_ns=now_ns, reason=reason)
            move(tx, rollout, after, "halted", detail=f"{reason}; {words_of(back, returned)}")
        self._metrics.halts.labels(halt.code).inc()
        failing = [one.member.gateway for one in stands if one.standing == "failing"]
        self._tell("halted", rollout, gate=halt.code, reason=halt.reason, taken_back=len(back), failing=failing[:10])

    def _advance(self, rollout: Rollout, reason: str, kind: str) -> None:
        now_ns = self._wall_ns()
        is_last = rollout.wave + 1 >= len(rollout.plan.waves)
        after = replace(rollout, updated_ns=now_ns, reason=reason)
        if is_last:
            after = replace(after, phase="done")
        else:
            after = replace(after, wave=rollout.wave + 1, wave_ns=None, settled_ns=None)
        with self._database.transaction() as tx:
            move(tx, rollout, after, "done" if is_last else kind, detail=reason)
        self._tell("done" if is_last else kind, rollout, reason=reason)

    def _tell(self, kind: str, rollout: Rollout, **keys: object) -> None:
        self._metrics.transitions.labels(kind).inc()
        say = log.warning if kind == "halted" else log.info
        say("rollout_moved", kind=kind, rollout=rollout.id, wave=rollout.wave, pipeline=rollout.plan.pipeline, **keys)


def release_for(plan: Plan, fleet: Fleet, gateway: str) -> Release:
    """Return what a device of a rollout gets. `Fleet.meant` leaves out those that get nothing."""
    at = arms_cover([arm.labels for arm in plan.arms], fleet.labels_of(gateway))
    release = plan.release if at is None else plan.arms[at].release
    assert release is not None
    return release


def _highest_reported(fleet: Fleet, gateways: Sequence[str], now_ns: int) -> int:
    reports = [fleet.reported[name].twin.fencing_token for name in gateways if name in fleet.reported]
    return max((token for token in reports if token <= tokens.of_fleet_ms(now_ns)), default=0)
