"""What the gateway counts, in Prometheus form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Lock
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, GCCollector, Histogram, Info, ProcessCollector

from gateway.config import Metrics as MetricsSettings
from gateway.health.exposition import Exposition
from gateway.health.figures import IdentityFigures, LinkUsageFigures, OutboxFigures, UplinkFigures, VaultFigures
from gateway.values import Inference
from gateway.wire.messages import CLASSES, Event, ModelRef, PipelineStatus

LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)

_SOURCE_STATES: Final = ("opening", "streaming", "lost", "ended", "frozen")
_PARTITION: Final = {"healthy": 0, "degraded": 1, "partitioned": 2}


def _now() -> datetime:
    return datetime.now(UTC)


class _Totals:
    """Counters whose totals somebody else keeps; they are raised to each new total."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last: dict[tuple[str, ...], float] = {}

    def raise_to(self, total: float, *labels: str) -> None:
        last = self._last.get(labels, 0.0)
        # A total below the last one means that its keeper began anew.
        grown = total - last if total >= last else total
        child = self._counter.labels(*labels) if labels else self._counter
        child.inc(grown)
        self._last[labels] = total


class Metrics:
    """All metrics of one gateway, in a registry of their own. Safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.url = ""
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._lock = Lock()
        self._released_at: dict[str, float | None] = {}
        self._raw = self._sent = 0
        self._make_pipeline_metrics()
        self._make_delivery_metrics()
        self._make_link_metrics()
        self._make_security_metrics()

    def _make_pipeline_metrics(self) -> None:
        registry, pipeline = self.registry, ["pipeline"]
        self._latency = Histogram(
            "inference_latency_seconds",
            "From the sample to the model's answer: preprocessing, invocation, post-processing.",
            ["pipeline", "model"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._utilisation = Gauge(
            "inference_batch_utilisation", "Share of the model's batch that was in use.", pipeline, registry=registry
        )
        self._inferences = Counter("inferences", "Answers of models.", pipeline, registry=registry)
        self._captures = Counter("captures", "Frames and blocks of samples from sources.", pipeline, registry=registry)
        self._dropped = _Totals(
            Counter("frames_dropped", "Captures that no model saw.", ["pipeline", "reason"], registry=registry)
        )
        self._events = Counter("events", "Events told.", ["pipeline", "type"], registry=registry)
        self._raw_bytes = Counter("raw_bytes", "What sources gave, before preprocessing.", pipeline, registry=registry)
        self._sent_bytes = Counter("sent_bytes", "What was kept for the cloud of it.", pipeline, registry=registry)
        share = Gauge("edge_share", "Share of the raw data that stayed at the edge, 0 to 1.", registry=registry)
        share.set_function(self.edge_share)
        self._source_state = Enum(
            "source_state", "How a source is.", pipeline, states=_SOURCE_STATES, registry=registry
        )
        self._open_events = Gauge("open_events", "Events that have not ended yet.", pipeline, registry=registry)
        self._version = Info("model_version", "Which release answers.", pipeline, registry=registry)
        self._age = Gauge("model_age_seconds", "Time since the release was made.", pipeline, registry=registry)

    def _make_delivery_metrics(self) -> None:
        registry, by_class = self.registry, ["class"]
        self._depth = Gauge("outbox_depth", "Records that wait for the cloud.", by_class, registry=registry)
        self._bytes = Gauge("outbox_bytes", "Their size on disk.", by_class, registry=registry)
        self._oldest = Gauge("outbox_oldest_age_seconds", "Age of the oldest record.", by_class, registry=registry)
        self._full_in = Gauge(
            "outbox_full_in_seconds", "When the quota is full at this rate; +Inf: not.", by_class, registry=registry
        )
        self._empty_in = Gauge(
            "outbox_empty_in_seconds", "When nothing is left at this rate; +Inf: not.", by_class, registry=registry
        )
        by_direction = ["class", "direction"]
        self._row_rate = Gauge(
            "outbox_rows_per_second", "Records in and out, averaged over a minute.", by_direction, registry=registry
        )
        self._byte_rate = Gauge(
            "outbox_bytes_per_second", "The same in bytes on disk.", by_direction, registry=registry
        )
        self._refusing = Gauge("outbox_refusing", "1: full, and producers wait.", by_class, registry=registry)
        self._evicted = _Totals(Counter("outbox_evicted", "Records given up on purpose.", by_class, registry=registry))
        self._enqueued = _Totals(Counter("outbox_enqueued", "Records made durable.", by_class, registry=registry))
        self._confirmed = _Totals(
            Counter("outbox_acknowledged", "Records the cloud has committed.", by_class, registry=registry)
        )
        self._file_bytes = Gauge("outbox_file_bytes", "Size of the database and its log.", registry=registry)
        self._queued = Gauge("outbox_queued_entries", "Decisions that wait for the disk.", registry=registry)
        self._failed = Gauge("outbox_failed", "1: the store cannot be written.", registry=registry)
        self._uplink_bytes = _Totals(Counter("uplink_bytes", "Payload sent to the cloud.", by_class, registry=registry))
        self._uplink_records = _Totals(Counter("uplink_records", "Records sent.", by_class, registry=registry))
        self._resent = _Totals(Counter("uplink_resent_batches", "Batches sent again.", by_class, registry=registry))
        self._withheld = _Totals(
            Counter("uplink_withheld", "Records set aside on the device.", ["class", "reason"], registry=registry)
        )
        self._blocked = Gauge(
            "uplink_blocked",
            "1: a record fits no packet that the broker takes, and there is no room to set it aside.",
            by_class,
            registry=registry,
        )
        self._conflicts = Gauge(
            "uplink_conflicts", "Records that met another's number in the cloud.", by_class, registry=registry
        )
        self._ignored_acks = _Totals(
            Counter("uplink_ignored_acks", "Acknowledgements that nothing here matches.", registry=registry)
        )
        self._uplink_dropped = _Totals(
            Counter("uplink_dropped_messages", "Messages received and not used.", ["reason"], registry=registry)
        )
        self._publish_errors = _Totals(
            Counter("uplink_publish_errors", "Batches not taken by a broker.", ["reason"], registry=registry)
        )
        self._connects = _Totals(Counter("uplink_connects", "Connections made to a broker.", registry=registry))
        self._partition = Gauge(
            "partition_state", "0: healthy, 1: connected and nothing acknowledged, 2: partitioned.", registry=registry
        )

    def _make_link_metrics(self) -> None:
        registry, by_feature = self.registry, ["feature"]
        self._link_bytes = _Totals(
            Counter(
                "sluice_link_bytes",
                "What MQTT carried to and from the cloud, by its use; without TLS, TCP and IP.",
                ["feature", "direction"],
                registry=registry,
            )
        )
        self._network_bytes = _Totals(
            Counter(
                "sluice_link_network_bytes",
                "Estimate of the same in IP packets, with TLS and retransmissions.",
                ["direction"],
                registry=registry,
            )
        )
        self._budget = Gauge("sluice_link_budget_bytes", "Budget of a period.", by_feature, registry=registry)
        self._budget_left = Gauge("sluice_link_budget_left_bytes", "What is left of it.", by_feature, registry=registry)
        self._window_open = Gauge("sluice_link_window_open", "1: may be used now.", by_feature, registry=registry)
        self._held = Gauge("sluice_link_held", "1: waits for a budget or a window.", ["class"], registry=registry)

    def _make_security_metrics(self) -> None:
        registry = self.registry
        self._vault_level = Gauge(
            "sluice_vault_level", "1: where the key lives; software is for development.", ["level"], registry=registry
        )
        self._vault_ready = Gauge("sluice_vault_ready", "1: a key would be given out now.", registry=registry)
        self._vault_releases = Gauge("sluice_vault_sealed_releases", "Releases in the store.", registry=registry)
        self._vault_lease = Gauge(
            "sluice_vault_lease_seconds", "What is left of a key's lease; +Inf: no end.", ["release"], registry=registry
        )
        self._vault_waiting = Gauge(
            "sluice_vault_waiting", "1: the pipeline waits for the key of its model.", ["pipeline"], registry=registry
        )
        self._vault_refusals = _Totals(
            Counter("sluice_vault_refusals", "Times a key was not given out.", registry=registry)
        )
        self._identity_valid = Gauge(
            "sluice_identity_valid", "1: there is a certificate that is not over.", registry=registry
        )
        self._identity_expiry = Gauge(
            "sluice_identity_expiry_seconds", "What is left of the certificate; below 0: over.", registry=registry
        )
        self._identity_renewals = _Totals(
            Counter("sluice_identity_renewals", "Certificates received.", registry=registry)
        )
        self._identity_refusals = _Totals(
            Counter("sluice_identity_refusals", "Times the bridge said no.", registry=registry)
        )
        self._identity_state = Gauge(
            "sluice_identity_state", "1: how the identity stands.", ["state"], registry=registry
        )

    # ---- counted where it happens ----------------------------------------------------------------

    def captured(self, pipeline: str, count: int) -> None:
        """Count captures of a source."""
        self._captures.labels(pipeline).inc(count)

    def inferred(self, pipeline: str, inference: Inference, latency_seconds: float, batch_fill: float) -> None:
        """Count an answer; `batch_fill` is the share of the batch that was in use."""
        model = f"{inference.model.name}@{inference.model.version}"
        self._latency.labels(pipeline, model).observe(latency_seconds)
        self._utilisation.labels(pipeline).set(batch_fill)
        self._inferences.labels(pipeline).inc()

    def sent(self, pipeline: str, raw_bytes: int, sent_bytes: int) -> None:
        """Count what came in, and what of it is kept for the cloud."""
        self._raw_bytes.labels(pipeline).inc(raw_bytes)
        self._sent_bytes.labels(pipeline).inc(sent_bytes)
        with self._lock:
            self._raw += raw_bytes
            self._sent += sent_bytes

    def told(self, pipeline: str, event: Event) -> None:
        """Count an event in one of its phases."""
        self._events.labels(pipeline, event.phase).inc()

    def edge_share(self) -> float:
        """Return the share of the raw bytes that did not travel; 1 when there was nothing yet."""
        with self._lock:
            return max(0.0, 1.0 - self._sent / self._raw) if self._raw else 1.0

    # ---- observed now and then -------------------------------------------------------------------

    def observe_pipeline(self, status: PipelineStatus) -> None:
        """Take over what a pipeline says of itself."""
        name = status.pipeline
        self._source_state.labels(name).state(status.source_state)
        self._open_events.labels(name).set(status.open_events)
        for reason, count in status.dropped.items():
            self._dropped.raise_to(count, name, reason)
        if status.model is not None:
            self._observe_model(name, status.model, status.backend)

    def _observe_model(self, pipeline: str, model: ModelRef, backend: str) -> None:
        self._version.labels(pipeline).info(
            {"name": model.name, "version": model.version, "digest": model.digest, "backend": backend}
        )

    def released(self, pipeline: str, released_at: str, clock: Callable[[], datetime] = _now) -> None:
        """Note when a pipeline's release was made (RFC 3339, from its manifest), so that its age is told."""
        try:
            made = datetime.fromisoformat(released_at)
        except ValueError:
            return  # a manifest need not say
        made = made if made.tzinfo is not None else made.replace(tzinfo=UTC)

        def age() -> float:
            return (clock() - made).total_seconds()

        self._age.labels(pipeline).set_function(age)

    def observe_outbox(self, stats: OutboxFigures) -> None:
        """Take over what the outbox says of itself."""
        for name, figures in stats.classes.items():
            self._depth.labels(name).set(figures.rows)
            self._bytes.labels(name).set(figures.disk_bytes)
            self._oldest.labels(name).set(figures.oldest_age_seconds or 0.0)
            full_in = figures.full_in_seconds
            self._full_in.labels(name).set(float("inf") if full_in is None else full_in)
            empty_in = figures.empty_in_seconds
            self._empty_in.labels(name).set(float("inf") if empty_in is None else empty_in)
            for direction, flow in (("in", figures.incoming), ("out", figures.outgoing)):
                self._row_rate.labels(name, direction).set(flow.rows_per_second)
                self._byte_rate.labels(name, direction).set(flow.bytes_per_second)
            self._refusing.labels(name).set(figures.refusing)
            self._evicted.raise_to(figures.evicted, name)
            self._enqueued.raise_to(figures.enqueued, name)
            self._confirmed.raise_to(figures.acknowledged, name)
        self._file_bytes.set(stats.file_bytes + stats.wal_bytes)
        self._queued.set(stats.queued_entries)
        self._failed.set(stats.failed)

    def observe_uplink(self, status: UplinkFigures) -> None:
        """Take over what the uplink says of itself."""
        self._partition.set(_PARTITION[str(status.partition)])
        self._connects.raise_to(status.connects)
        self._ignored_acks.raise_to(status.ignored_acks)
        self._uplink_dropped.raise_to(status.bad_topics, "bad-topic")
        self._uplink_dropped.raise_to(status.overflows, "overflow")
        for (name, reason), count in status.withheld.items():
            self._withheld.raise_to(count, name, reason)
        for name in status.classes:
            self._conflicts.labels(name).set(status.conflicts.get(name, 0))  # back to 0 with a new store
            self._blocked.labels(name).set(name in status.blocked_classes)
        for reason, count in status.publish_errors.items():
            self._publish_errors.raise_to(count, reason)
        for name, figures in status.classes.items():
            self._uplink_bytes.raise_to(figures.sent_bytes, name)
            self._uplink_records.raise_to(figures.sent_records, name)
            self._resent.raise_to(figures.resent_batches, name)

    def observe_link(self, usage: LinkUsageFigures) -> None:
        """Take over what the meter says."""
        for name, figures in usage.features.items():
            self._link_bytes.raise_to(figures.sent_bytes, name, "out")
            self._link_bytes.raise_to(figures.received_bytes, name, "in")
            self._window_open.labels(name).set(figures.window_open)
            if figures.budget_bytes is not None and figures.left_bytes is not None:
                self._budget.labels(name).set(figures.budget_bytes)
                self._budget_left.labels(name).set(figures.left_bytes)
        for record_class in CLASSES:
            self._held.labels(record_class).set(record_class in usage.held)
        self._network_bytes.raise_to(usage.network_sent_bytes, "out")
        self._network_bytes.raise_to(usage.network_received_bytes, "in")

    def observe_vault(self, vault: VaultFigures) -> None:
        """Take over what the vault says of itself."""
        self._vault_level.clear()
        self._vault_level.labels(vault.level).set(1)
        self._vault_ready.set(vault.ready)
        self._vault_releases.set(len(vault.releases))
        self._vault_lease.clear()
        for key in vault.keys:
            left = key.remaining_seconds
            self._vault_lease.labels(key.label or key.release[:12]).set(float("inf") if left is None else left)
        self._vault_waiting.clear()
        for pipeline in vault.waiting:
            self._vault_waiting.labels(pipeline).set(1)
        self._vault_refusals.raise_to(vault.refusals)

    def observe_identity(self, identity: IdentityFigures) -> None:
        """Take over what the identity says of itself."""
        left = identity.expires_in_seconds
        self._identity_valid.set(left is not None and left > 0)
        self._identity_expiry.set(0.0 if left is None else left)
        self._identity_renewals.raise_to(identity.renewals)
        self._identity_refusals.raise_to(identity.refusals)
        self._identity_state.clear()
        self._identity_state.labels(identity.state).set(1)

    # ---- shown -----------------------------------------------------------------------------------

    @contextmanager
    def serve(self, settings: MetricsSettings, healthy: Callable[[], list[str]] = list) -> Iterator[str]:
        """Serve `/metrics` and `/healthz` in a thread of its own; yields the address, with the actual port.

        Args:
            settings: where to listen, and the file with the token.
            healthy: names what is not well; nothing: all is.

        Raises:
            ConfigError: the address cannot be used, or it is off loopback without a token.
        """
        with Exposition.open(self.registry, settings, healthy) as exposition:
            self.url = exposition.url
            try:
                yield exposition.url
            finally:
                self.url = ""
