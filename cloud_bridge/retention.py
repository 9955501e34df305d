"""Removes what is older than it should be, in slices, so that ingest never waits long."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from cloud_bridge.config import Retention as Settings
from cloud_bridge.errors import BridgeError
from cloud_bridge.metrics import Metrics
from cloud_bridge.store.base import Store, Swept

log = structlog.get_logger()

_NS_PER_DAY: Final = 86_400 * 1_000_000_000
_MEASURE_SECONDS: Final = 15
_REST_SECONDS: Final = 0.05
"""Between two slices: ingest goes first."""


class Retention:
    """Sweeps on schedule, in a thread of the scheduler."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._wall_ns = wall_ns
        self._stopping = threading.Event()
        self._scheduler = BackgroundScheduler(timezone="UTC")

    def start(self) -> None:
        """Sweep now, and then every so often."""
        every = self._settings.every_seconds
        now = datetime.now(UTC)
        self._scheduler.add_job(
            self.sweep, "interval", seconds=every, next_run_time=now, max_instances=1, coalesce=True
        )
        self._scheduler.add_job(self.measure, "interval", seconds=_MEASURE_SECONDS, max_instances=1, coalesce=True)
        self._scheduler.start()

    def stop(self) -> None:
        """End after the slice in hand."""
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def sweep(self) -> Swept:
        """Remove everything that is due. A store that is away is left alone until the next time."""
        total = Swept()
        try:
            while not self._stopping.is_set():
                swept = self._slice()
                total = Swept(
                    total.records + swept.records, total.events + swept.events, total.dead_letters + swept.dead_letters
                )
                if swept.total == 0:
                    break
                self._store.tidy()
                self._stopping.wait(_REST_SECONDS)
        except BridgeError as error:
            log.warning("retention_failed", error=str(error))
        if total.total:
            log.info("retention_done", records=total.records, events=total.events, dead_letters=total.dead_letters)
        return total

    def measure(self) -> None:
        """Look how large the store is."""
        try:
            self._metrics.store_bytes.set(self._store.size_bytes())
        except BridgeError as error:
            log.debug("store_size_unknown", error=str(error))

    def _slice(self) -> Swept:
        now_ns = self._wall_ns()
        before_ns: dict[str, int] = {}
        for name, days in self._settings.days().items():
            if days is not None:
                before_ns[name] = now_ns - int(days * _NS_PER_DAY)
        letters = self._settings.dead_letter_days
        letters_before_ns = now_ns - int(letters * _NS_PER_DAY) if letters is not None else 0
        swept = self._store.sweep(before_ns, letters_before_ns, self._settings.slice_rows)
        self._metrics.removed.labels("records").inc(swept.records)
        self._metrics.removed.labels("events").inc(swept.events)
        self._metrics.removed.labels("dead_letters").inc(swept.dead_letters)
        return swept
