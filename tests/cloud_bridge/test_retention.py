from cloud_bridge.config import Retention as Settings
from cloud_bridge.errors import StoreError
from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.metrics import Metrics
from cloud_bridge.retention import Retention
from cloud_bridge.store.base import Store
from tests.simulators.samples import batch, record
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
