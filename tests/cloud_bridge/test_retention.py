from collections.abc import Callable

import pytest
import structlog

from cloud_bridge.config import Retention as Settings
from cloud_bridge.config import Rollups
from cloud_bridge.errors import StoreError
from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.metrics import Metrics
from cloud_bridge.retention import Retention
from cloud_bridge.store.base import RollupFilter, Store
from cloud_bridge.store.rolling import DAY_SECONDS
from tests.simulators.samples import batch, event, record
from tests.simulators.waiting import wait_for

DAY = 86_400 * 10**9


def fill(store: Store, name: str, count: int, at_ns: int) -> None:
    payload = batch(*(record(n) for n in range(1, count + 1)))
    message = Incoming(f"sluice/v1/dock/records/{name}", payload, 1, 1, 1, 0)
    store.ingest(intake_of([message], root="sluice", received_at_ns=at_ns))


def test_everything_due_goes_in_slices_and_nothing_else(store: Store) -> None:
    fill(store, "bulk", 70, at_ns=1 * DAY)
    fill(store, "event", 20, at_ns=1 * DAY)
    metrics = Metrics()
    settings = Settings(bulk_days=5, event_days=None, slice_rows=30)
    retention = Retention(store, settings, metrics, wall_ns=lambda: 7 * DAY)
    assert retention.sweep().records == 70
    assert store.counts().records == 20
    assert metrics.registry.get_sample_value("bridge_retention_removed_total", {"what": "records"}) == 70
    retention.measure()
    assert (metrics.registry.get_sample_value("bridge_store_bytes") or 0) > 0


def test_a_store_that_is_away_is_left_alone_until_the_next_time(store: Store) -> None:
    class Away:
        def __getattr__(self, name: str) -> object:
            raise StoreError("away")

    retention = Retention(Away(), Settings(), Metrics())  # type: ignore[arg-type]  # it only fails
    assert retention.sweep().total == 0
    retention.measure()


def test_it_sweeps_when_it_starts_and_stops_at_once(store: Store) -> None:
    fill(store, "bulk", 10, at_ns=1)
    retention = Retention(store, Settings(), Metrics())
    retention.start()
    wait_for(lambda: store.counts().records == 0)
    retention.stop()


def test_rollups_are_made_on_schedule_and_before_anything_is_removed(store: Store) -> None:
    payload = batch(*(record(n, event(f"e{n}")) for n in range(1, 51)))
    message = Incoming("sluice/v1/dock/records/event", payload, 1, 1, 1, 0)
    store.ingest(intake_of([message], root="sluice", received_at_ns=1))
    metrics = Metrics()
    settings = Settings(event_days=1, critical_days=1, every_seconds=0.1)
    retention = Retention(store, settings, metrics, Rollups(every_seconds=0.1, slice_rows=7))
    assert retention.sweep().records == 0, "not rolled up yet"
    retention.start()
    wait_for(lambda: store.counts().records == 0, seconds=20)
    retention.stop()
    assert [day.events for day in store.rollups(RollupFilter(DAY_SECONDS))] == [50]
    assert metrics.registry.get_sample_value("bridge_records_rolled_up_total") == 50
    retention.measure()
    assert (metrics.registry.get_sample_value("bridge_mark_age_seconds", {"gateway": "dock"}) or 0) > 0


class Clocks:
    """A wall clock that can be set, and one that only runs."""

    def __init__(self, day: float) -> None:
        self.wall_ns = int(day * DAY)
        self.monotonic_ns = 5

    def run(self, days: float) -> None:
        self.wall_ns += int(days * DAY)
        self.monotonic_ns += int(days * DAY)

    def retention(self, store: Store) -> Retention:
        settings = Settings(event_days=30, critical_days=30)
        return Retention(
            store, settings, Metrics(), wall_ns=lambda: self.wall_ns, monotonic_ns=lambda: self.monotonic_ns
        )


def test_a_clock_that_jumps_ahead_removes_nothing_until_it_has_stood_for_a_day(store: Store) -> None:
    fill(store, "event", 20, at_ns=20_000 * DAY)
    clocks = Clocks(20_001)
    retention = clocks.retention(store)
    assert retention.sweep().records == 0
    clocks.run(0.1)
    clocks.wall_ns += 3650 * DAY
    with structlog.testing.capture_logs() as logs:
        for _ in range(20):
            assert retention.sweep().records == 0
            clocks.run(0.05)
        clocks.run(0.1)
        assert retention.sweep().records == 0, "it must be right: it has stood for a day; so it was behind before"
        clocks.run(27.0)
        assert retention.sweep().records == 0
        clocks.run(3.0)
        assert retention.sweep().records == 20, "thirty days in which the bridge ran"
        assert retention.sweep().records == 0
    assert [line["event"] for line in logs] == ["clock_not_believed", "clock_believed_again", "retention_done"]


def test_what_came_while_the_clock_was_years_behind_is_kept_as_long_as_anything_else(
    make_store: Callable[[], Store],
) -> None:
    store = make_store()
    clocks = Clocks(0.5)  # a machine without a battery, before the network is there
    retention = clocks.retention(store)
    fill(store, "event", 20, at_ns=clocks.wall_ns)
    assert retention.sweep().records == 0
    clocks.run(0.01)
    clocks.wall_ns += 20_000 * DAY
    for _ in range(2):
        assert retention.sweep().records == 0
        clocks.run(1.01)
    retention.stop()
    store = make_store()
    retention = clocks.retention(store)
    assert retention.sweep().records == 0, "also after a restart"
    for _ in range(27):
        clocks.run(1.0)
        assert retention.sweep().records == 0
    clocks.run(1.5)
    assert retention.sweep().records == 20


def test_the_control_that_does_not_know_how_the_clock_was_set_removes_it_after_a_day(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_bridge.retention.before_ns", lambda now_ns, age_ns, _steps: now_ns - age_ns)
    clocks = Clocks(0.5)
    retention = clocks.retention(store)
    fill(store, "event", 20, at_ns=clocks.wall_ns)
    retention.sweep()
    clocks.wall_ns += 20_000 * DAY
    retention.sweep()
    clocks.run(1.01)
    assert retention.sweep().records == 20


def test_what_was_believed_outlives_a_restart_with_a_wrong_clock(make_store: Callable[[], Store]) -> None:
    """As of a machine whose clock is wrong whenever it was switched on, until the network is there."""
    store = make_store()
    fill(store, "event", 20, at_ns=20_000 * DAY)
    clocks = Clocks(20_001)
    assert clocks.retention(store).sweep().records == 0
    for wrong in (0.0, 23_651.0, 0.0):
        store = make_store()
        clocks = Clocks(wrong)
        retention = clocks.retention(store)
        assert retention.sweep().records == 0
        clocks.wall_ns = int(20_001.5 * DAY)
        assert retention.sweep().records == 0
    store = make_store()
    clocks = Clocks(20_031.5)  # it was off for a month
    retention = clocks.retention(store)
    assert retention.sweep().records == 0
    clocks.run(1.1)
    assert retention.sweep().records == 20


def _runs_of_half_an_hour(store: Store, most: int, *, killed: bool) -> int:
    """Return how many runs, one each day, it takes until what became due in a stop of a month is removed."""
    fill(store, "event", 20, at_ns=20_000 * DAY)
    clocks = Clocks(20_001)
    clocks.retention(store).sweep()
    for run in range(most):
        clocks.wall_ns = (20_040 + run) * DAY
        retention = clocks.retention(store)
        if retention.sweep().records == 20:
            return run
        for _ in range(2):
            clocks.run(0.25 / 24)
            retention.measure()
        if not killed:
            retention.stop()
    return most


@pytest.mark.parametrize("killed", [False, True])
def test_runs_of_half_an_hour_add_up_to_the_day_that_a_clock_must_stand(store: Store, killed: bool) -> None:
    assert _runs_of_half_an_hour(store, 100, killed=killed) == 48


def test_the_control_whose_time_is_kept_at_sweeps_alone_doubts_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retention, "measure", lambda _self: None)
    assert _runs_of_half_an_hour(store, 100, killed=True) == 100


def test_a_clock_that_jumps_on_every_half_day_is_never_believed(store: Store) -> None:
    fill(store, "event", 20, at_ns=20_000 * DAY)
    clocks = Clocks(20_001)
    retention = clocks.retention(store)
    assert retention.sweep().records == 0
    for _ in range(4):
        clocks.wall_ns += 3650 * DAY
        for _ in range(10):
            assert retention.sweep().records == 0
            clocks.run(0.05)


def test_the_control_that_has_never_believed_anything_removes_all_at_such_a_start(store: Store) -> None:
    fill(store, "event", 20, at_ns=20_000 * DAY)
    assert Clocks(23_651).retention(store).sweep().records == 20


def test_trouble_is_told_when_it_begins_and_when_it_ends(store: Store) -> None:
    class Sometimes:
        away = True

        def __getattr__(self, name: str) -> object:
            if self.away:
                raise StoreError("away")
            return getattr(store, name)

    sometimes = Sometimes()
    retention = Retention(sometimes, Settings(), Metrics(), Rollups())  # type: ignore[arg-type]  # it is one, sometimes
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            retention.sweep()
            retention.roll_up()
        sometimes.away = False
        retention.sweep()
        retention.roll_up()
    assert [(entry["event"], entry["job"]) for entry in logs] == [
        ("housekeeping_failing", "retention"),
        ("housekeeping_failing", "rollups"),
        ("housekeeping_works_again", "retention"),
        ("housekeeping_works_again", "rollups"),
    ]
