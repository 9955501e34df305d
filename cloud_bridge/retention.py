"""Keeps the store in shape on schedule: rolls up, removes what is old, and measures.

Everything goes in slices, so that ingest never waits long, and what a slice has done is committed with it: a bridge
that is stopped or killed between two goes on where it was. What is old goes by a time that a wrong clock does not reach
at once; see `cloud_bridge.believing`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from cloud_bridge.believing import Belief, Step, before_ns, believe
from cloud_bridge.config import Retention as Settings
from cloud_bridge.config import Rollups
from cloud_bridge.errors import BridgeError
from cloud_bridge.metrics import Metrics
from cloud_bridge.store.base import Limits, Rolled, Store, Swept
from cloud_bridge.store.rolling import DAY_SECONDS, HOUR_SECONDS
from cloud_bridge.values import Stream
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_NS_PER_SECOND: Final = 1_000_000_000
_NS_PER_DAY: Final = 86_400 * _NS_PER_SECOND
_MEASURE_SECONDS: Final = 15
_KEEP_NS: Final = 300 * _NS_PER_SECOND
"""So much of a run may be missing from what is kept of it: a doubt ends by a day of running, in however many runs."""
_REST_SECONDS: Final = 0.05
"""Between two slices: ingest goes first."""


class Retention:
    """Works on schedule, in threads of the scheduler."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        rollups: Rollups | None = None,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._store = store
        self._settings = settings
        self._rollups = rollups or Rollups(enabled=False)
        self._metrics = metrics
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._clock = threading.Lock()  # guards the four below: jobs have threads of their own
        self._believed: Belief | None = None  # not asked for yet
        self._believed_at_ns = 0  # monotonic
        self._kept_at_ns: int | None = None  # monotonic
        self._doubts = False
        self._stopping = threading.Event()
        self._failing: set[str] = set()
        self._scheduler = BackgroundScheduler(timezone="UTC")

    def start(self) -> None:
        """Do everything now, and then every so often."""
        jobs: list[tuple[Callable[[], object], float]] = [
            (self.sweep, self._settings.every_seconds),
            (self.measure, _MEASURE_SECONDS),
        ]
        if self._rollups.enabled:
            jobs.append((self.roll_up, self._rollups.every_seconds))
        for job, every in jobs:
            self._scheduler.add_job(
                job, "interval", seconds=every, next_run_time=datetime.now(UTC), max_instances=1, coalesce=True
            )
        self._scheduler.start()

    def stop(self) -> None:
        """End after the slice in hand."""
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        if self._believed is None:
            return
        try:
            self._due_ns()
        except BridgeError as error:
            log.debug("time_not_kept", error=str(error), consequence="a doubt of the clock lasts a little longer")

    def sweep(self) -> Swept:
        """Remove everything that is due. A store that is away is left alone until the next time."""
        total = Swept()
        try:
            self._store.tidy()
            due_ns = self._due_ns()
            limits = self._limits(due_ns, self._believed.steps if self._believed is not None else ())
            while not self._stopping.is_set():
                swept = self._store.sweep(limits, self._settings.slice_rows)
                self._count(swept)
                total += swept
                if swept.total == 0:
                    break
                self._store.tidy()
                self._stopping.wait(_REST_SECONDS)
        except BridgeError as error:
            self._fails("retention", error)
        else:
            self._works("retention")
        if total.total:
            log.info(
                "retention_done",
                records=total.records,
                events=total.events,
                dead_letters=total.dead_letters,
                rollups=total.rollups,
            )
        return total

    def roll_up(self) -> Rolled:
        """Roll up everything that waits."""
        records = buckets = 0
        try:
            while not self._stopping.is_set():
                rolled = self._store.roll_up(self._rollups.slice_rows)
                records, buckets = records + rolled.records, buckets + rolled.buckets
                self._metrics.rolled.inc(rolled.records)
                if rolled.records == 0:
                    break
                self._stopping.wait(_REST_SECONDS if rolled.records < self._rollups.slice_rows else 0)
        except BridgeError as error:
            self._fails("rollups", error)
        else:
            self._works("rollups")
        return Rolled(records, buckets)

    def measure(self) -> None:
        """Look how large the store is, what waits in it, and how far each gateway has come."""
        try:
            self._due_ns(keep=False)
            self._metrics.store_bytes.set(self._store.size_bytes())
            counts, streams = self._store.counts(), self._store.streams()
            backlog = self._store.rollup_backlog() if self._rollups.enabled else 0
        except BridgeError as error:
            log.debug("store_size_unknown", error=str(error))
            return
        self._metrics.records_kept.set(counts.records)
        self._metrics.rollup_backlog.set(backlog)
        self._metrics.letters_kept.clear()
        for reason, count in counts.dead_letters.items():
            self._metrics.letters_kept.labels(reason).set(count)
        self._measure_gateways(streams)

    def _measure_gateways(self, streams: list[Stream]) -> None:
        now_ns = self._wall_ns()
        newest: dict[str, int] = {}
        beyond: dict[str, int] = {}
        for stream in streams:
            name = stream.key.gateway
            newest[name] = max(newest.get(name, 0), stream.marked_at_ns)
            beyond[name] = beyond.get(name, 0) + max(0, stream.last - stream.mark)
        for name, at_ns in newest.items():
            if at_ns:
                self._metrics.mark_age.labels(name).set(max(0, now_ns - at_ns) / _NS_PER_SECOND)
            self._metrics.beyond_holes.labels(name).set(beyond[name])

    def _due_ns(self, *, keep: bool = True) -> int:
        """Return the time by which something is due, and keep it for the next start: at once, or every few minutes.

        Raises:
            StoreError: the store is away.
        """
        with self._clock:
            wall_ns, now_ns = self._wall_ns(), self._monotonic_ns()
            if self._believed is None:
                self._believed = believe(self._store.believed(), None, wall_ns)
            else:
                self._believed = believe(self._believed, now_ns - self._believed_at_ns, wall_ns)
            self._believed_at_ns = now_ns
            self._tell_of_doubts(self._believed, wall_ns)
            if keep or self._kept_at_ns is None or now_ns - self._kept_at_ns >= _KEEP_NS:
                self._store.keep_belief(self._believed)
                self._kept_at_ns = now_ns
            return self._believed.due_ns(wall_ns)

    def _tell_of_doubts(self, believed: Belief, wall_ns: int) -> None:
        doubts = believed.doubted_since_ns is not None
        if doubts and not self._doubts:
            log.warning(
                "clock_not_believed",
                clock=rfc3339(wall_ns),
                expected=rfc3339(believed.at_ns),
                consequence="what is old goes by the earlier of the two until the clock has stood for a day",
                remedy="set the clock, if it is wrong",
            )
        elif self._doubts and not doubts:
            log.info("clock_believed_again", clock=rfc3339(wall_ns))
        self._doubts = doubts

    def _limits(self, now_ns: int, steps: Sequence[Step]) -> Limits:
        def before(days: float) -> int:
            return before_ns(now_ns, int(days * _NS_PER_DAY), steps)

        rollup_days = {HOUR_SECONDS: self._settings.rollup_hourly_days, DAY_SECONDS: self._settings.rollup_daily_days}
        letters = self._settings.dead_letter_days
        return Limits(
            before_ns={name: before(days) for name, days in self._settings.days().items() if days is not None},
            dead_letters_before_ns=before(letters) if letters is not None else 0,
            rollups_before_s={
                grain: before(days) // _NS_PER_SECOND for grain, days in rollup_days.items() if days is not None
            },
            only_rolled=self._rollups.enabled,
        )

    def _count(self, swept: Swept) -> None:
        for what in ("records", "events", "dead_letters", "rollups"):
            self._metrics.removed.labels(what).inc(getattr(swept, what))

    def _fails(self, what: str, error: BridgeError) -> None:
        if what not in self._failing:
            log.warning("housekeeping_failing", job=what, error=str(error), consequence="tried again next time")
        self._failing.add(what)

    def _works(self, what: str) -> None:
        if what in self._failing:
            log.info("housekeeping_works_again", job=what)
        self._failing.discard(what)
