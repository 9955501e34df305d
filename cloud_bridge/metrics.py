"""Prometheus metrics of the bridge, in a registry of their own."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LAG: Final = (*_SECONDS, 10.0, 30.0, 60.0, 300.0)
_MESSAGES: Final = (1, 2, 5, 10, 20, 50, 100, 200)


class Metrics:
    """All metrics; safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.records = Counter("bridge_records_ingested", "Records committed for the first time", registry=registry)
        self.duplicates = Counter("bridge_duplicates", "Records received again and absorbed", registry=registry)
        self.gap_numbers = Counter(
            "bridge_gap_numbers", "Sequence numbers that devices have given up", registry=registry
        )
        self.dead_letters = Counter(
            "bridge_dead_letters", "Messages and bodies that could not be used", ["reason"], registry=registry
        )
        self.messages = Counter("bridge_messages", "Messages taken from the brokers", registry=registry)
        self.acknowledged = Counter(
            "bridge_messages_acknowledged", "PUBACKs sent, all after a commit", registry=registry
        )
        self.stale = Counter(
            "bridge_messages_stale", "Messages committed whose connection was gone before the PUBACK", registry=registry
        )
        self.marks = Counter("bridge_marks_published", "High-water marks published", registry=registry)
        self.batch_seconds = Histogram(
            "bridge_batch_seconds", "Time to decode and commit one batch", buckets=_SECONDS, registry=registry
        )
        self.batch_messages = Histogram(
            "bridge_batch_messages", "Messages in one transaction", buckets=_MESSAGES, registry=registry
        )
        self.ack_lag = Histogram(
            "bridge_ack_lag_seconds", "Time from receiving a message to its PUBACK", buckets=_LAG, registry=registry
        )
        self.store_failures = Counter("bridge_store_failures", "Transactions that failed", registry=registry)
        self.store_available = Gauge("bridge_store_available", "1 while transactions succeed", registry=registry)
        self.store_bytes = Gauge("bridge_store_bytes", "Size of the store", registry=registry)
        self.connected = Gauge("bridge_broker_connected", "1 while connected", ["link"], registry=registry)
        self.connections = Counter("bridge_broker_connections", "Connections made", ["link"], registry=registry)
        self.removed = Counter("bridge_retention_removed", "Rows removed by retention", ["what"], registry=registry)
        self.records_kept = Gauge("bridge_records_kept", "Records in the store", registry=registry)
        self.letters_kept = Gauge(
            "bridge_dead_letters_kept", "Dead letters, each counted as often as it came", ["reason"], registry=registry
        )
        self.mark_age = Gauge(
            "bridge_mark_age_seconds", "Age of the newest mark of each gateway", ["gateway"], registry=registry
        )
        self.beyond_holes = Gauge(
            "bridge_records_beyond_holes", "Numbers beyond the first that is missing", ["gateway"], registry=registry
        )
        self.rolled = Counter("bridge_records_rolled_up", "Records folded into rollups", registry=registry)
        self.rollup_backlog = Gauge("bridge_rollup_backlog", "Records that wait to be rolled up", registry=registry)
        self.component_failures = Counter(
            "bridge_component_failures", "Components that failed and were restarted", ["component"], registry=registry
        )
        self.store_available.set(1)
