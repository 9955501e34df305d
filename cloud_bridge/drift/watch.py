"""Looks at drift on schedule: takes new measures, compares, writes down what changed, and proposes to train again.

What a look has done is committed as it goes, so a bridge that is killed between two steps goes on where it was; several
bridges on one database take each measure once.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from cloud_bridge.config import Config, Drift
from cloud_bridge.drift import book
from cloud_bridge.drift.baselines import Baselines, drift_directory
from cloud_bridge.drift.book import Finding, Proposal
from cloud_bridge.drift.evaluation import Known, Look, Window, evaluate
from cloud_bridge.drift.judging import ORDER, Standing
from cloud_bridge.drift.metrics import DriftMetrics
from cloud_bridge.drift.schema import DRIFT, FILE_NAME
from cloud_bridge.drift.slices import fold
from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Database, PostgresDatabase, SqliteDatabase, Transaction
from cloud_bridge.store.base import Reader, RecordFilter
from cloud_bridge.store.opening import password_of, sqlite_path
from cloud_bridge.threads import run_in_thread

log = structlog.get_logger()

_NS_PER_SECOND: Final = 1_000_000_000
_NS_PER_DAY: Final = 86_400 * _NS_PER_SECOND
_PAGE: Final = 500
_SLICES: Final = 24
"""Parts of a window: the blocks by which it is seen how much of the variation is slow."""
_MIN_SLICE_SECONDS: Final = 60
_EVENT_DAYS: Final = 365

Labels = Callable[[], Callable[[str], Mapping[str, str]]]
"""Reads the labels of all gateways; what it returns gives those of one."""
Retrain = Callable[[Proposal, threading.Event], None]
"""Trains a release again as proposed, and settles the proposal; returns early when the event is set. Blocks."""


def open_database(config: Config) -> Database:
    """Return the database of drift: a file of its own, or tables in the store's PostgreSQL database.

    Raises:
        ConfigError: the password file cannot be read.
    """
    if sqlite_path(config.store.url) is not None:
        return SqliteDatabase(drift_directory(config) / FILE_NAME, DRIFT)
    return PostgresDatabase(config.store.url, password_of(config.store.password_file), connections=2, schema=DRIFT)


def window_of(settings: Drift, now_ns: int) -> Window:
    """Return the window that ends now."""
    seconds = int(settings.window_hours * 3600)
    return Window(now_ns // _NS_PER_SECOND, seconds, max(_MIN_SLICE_SECONDS, seconds // _SLICES))


def no_labels() -> Callable[[str], Mapping[str, str]]:
    """Read no labels: all devices are one cohort."""
    return lambda _gateway: {}


class DriftWatch:
    """A component of the bridge; `look` may also be called by itself, from any one thread."""

    def __init__(
        self,
        settings: Drift,
        database: Database,
        reader: Reader,
        baselines: Baselines,
        metrics: DriftMetrics,
        *,
        labels: Labels = no_labels,
        retrain: Retrain | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts; `retrain` is called with each proposal when the setting says `canary`."""
        self._settings = settings
        self._database = database
        self._reader = reader
        self._baselines = baselines
        self._metrics = metrics
        self._labels = labels
        self._retrain = retrain
        self._wall_ns = wall_ns
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._failing = False

    def stop(self) -> None:
        """End after the step in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Look now, and then every so often, until stopped."""
        await run_in_thread("drift", self.work, self.stop)

    def work(self) -> None:
        """Do what `run` does, in this thread."""
        while not self._stopping.is_set():
            try:
                self.look()
                self.act()
            except StoreError as error:
                if not self._failing:
                    log.warning("drift_not_watched", error=str(error), consequence="tried again next time")
                self._failing = True
            else:
                if self._failing:
                    log.info("drift_watched_again")
                self._failing = False
            self._stopping.wait(self._settings.every_seconds)

    def look(self) -> Look:
        """Take what is new, compare everything, and write down what was found.

        Raises:
            StoreError: the store or the database cannot be used now; what was taken stays taken.
        """
        started = self._monotonic()
        now_ns = self._wall_ns()
        window = window_of(self._settings, now_ns)
        self._take(window)
        labels = self._labels()
        with self._database.transaction() as tx:
            if not book.begin_look(tx, now_ns, int(self._settings.every_seconds * _NS_PER_SECOND)):
                return Look()
            look = self._compare(tx, labels, window, now_ns)
            made = self._write(tx, look, now_ns)
            self._forget(tx, window, now_ns)
        self._tell(look, made)
        self._metrics.seconds.observe(self._monotonic() - started)
        self._metrics.last.set(self._wall_ns() / _NS_PER_SECOND)
        return look

    def act(self) -> None:
        """Train what is proposed, where the setting says so.

        Raises:
            StoreError: the database cannot be used now.
        """
        if self._settings.retrain != "canary" or self._retrain is None:
            return
        with self._database.transaction() as tx:
            waiting = [one for one in book.proposals(tx) if one.state in ("open", "running")]
        for proposal in waiting:
            if not self._stopping.is_set():
                self._retrain(proposal, self._stopping)

    def _take(self, window: Window) -> None:
        since_ns = (window.since_s - window.slice_seconds) * _NS_PER_SECOND
        with self._database.transaction() as tx:
            after = book.cursor(tx)
        newest = self._reader.records(RecordFilter(kind="measure"), limit=1)
        if newest and newest[0].id < after:
            # The store was put back from an older copy, or is another one: what it holds will not be counted twice.
            log.warning("drift_begins_anew", last_taken=after, newest=newest[0].id)
            with self._database.transaction() as tx:
                book.move_cursor(tx, after, newest[0].id)
            return
        while not self._stopping.is_set():
            wanted = RecordFilter(kind="measure", since_ns=since_ns, after_id=after)
            page = self._reader.records(wanted, limit=_PAGE)
            if not page:
                return
            slices = fold(page, window.slice_seconds)
            with self._database.transaction() as tx:
                if not book.move_cursor(tx, after, page[-1].id):
                    return  # another bridge is at it
                book.add_slices(tx, slices)
            after = page[-1].id
            self._metrics.measures.inc(len(page))

    def _compare(
        self, tx: Transaction, labels: Callable[[str], Mapping[str, str]], window: Window, now_ns: int
    ) -> Look:
        since_s = window.since_s - window.slice_seconds
        known = Known(self._baselines.find, book.references(tx, since_s), book.findings(tx), labels)
        devices = book.devices_since(tx, since_s)
        return evaluate(devices, known, self._settings, window, now_ns)

    def _write(self, tx: Transaction, look: Look, now_ns: int) -> list[Proposal]:
        book.put_findings(tx, look.findings)
        for reference in look.learned:
            book.put_reference(tx, reference)
        made = []
        for finding, before in look.changed:
            key, level = finding.key, finding.standing.level
            if level == "waiting" or (before.level == "waiting" and level == "ok"):
                continue
            book.note(tx, key, level, told(finding), now_ns)
            if level == "alarm" and self._settings.retrain != "never":
                why = f"{key.scope} {key.subject}: {told(finding)}"
                proposal = book.propose(tx, key.model, key.version, why, now_ns)
                if proposal is not None:
                    book.note(tx, key, "proposal", f"train {key.model} {key.version} again: {proposal.id}", now_ns)
                    made.append(proposal)
        return made

    def _forget(self, tx: Transaction, window: Window, now_ns: int) -> None:
        book.drop_slices(tx, window.since_s - window.seconds)
        book.drop_findings(tx, now_ns - 2 * window.seconds * _NS_PER_SECOND)
        book.drop_references(tx, now_ns - _EVENT_DAYS * _NS_PER_DAY)
        book.drop_events(tx, now_ns - _EVENT_DAYS * _NS_PER_DAY)

    def _tell(self, look: Look, made: list[Proposal]) -> None:
        counts = Counter((one.key.scope, one.standing.level) for one in look.findings)
        for scope in ("device", "cohort"):
            for level in ORDER:
                self._metrics.comparisons.labels(scope, level).set(counts[scope, level])
        for finding, before in look.changed:
            _log(finding, before)
            self._metrics.changes.labels(finding.standing.level).inc()
        for proposal in made:
            self._metrics.proposals.inc()
            log.warning(
                "retraining_proposed",
                model=proposal.model,
                version=proposal.version,
                proposal=proposal.id,
                why=proposal.why,
            )


def told(finding: Finding) -> str:
    """Put a finding for people."""
    one, key = finding.comparison, finding.key
    if one is None:
        return f"{key.statistic}: nothing to compare"
    if key.basis == "range":
        return (
            f"{key.statistic}: {one.outside:.0%} of {one.samples} samples lie outside of what training has seen "
            f"(p = {one.outside_p_value:.2g})"
        )
    against = "the baseline of the release" if key.scope == "cohort" else "what is usual there"
    return (
        f"{key.statistic}: PSI {one.psi:.2f}, KS {one.ks:.2f} against {against}, {one.samples} samples "
        f"(p = {one.p_value:.2g})"
    )


def _log(finding: Finding, before: Standing) -> None:
    level, key = finding.standing.level, finding.key
    if level == "waiting" or (before.level == "waiting" and level == "ok"):
        return
    say = log.info if level == "ok" else log.warning
    say(
        "drift_level_changed",
        model=key.model,
        version=key.version,
        scope=key.scope,
        subject=key.subject,
        statistic=key.statistic,
        basis=key.basis,
        before=before.level,
        level=level,
    )
