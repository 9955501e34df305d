"""Prometheus metrics of drift."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)


class DriftMetrics:
    """All metrics of drift; safe to use from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.comparisons = Gauge(
            "bridge_drift_comparisons", "Comparisons by their level now", ["scope", "level"], registry=registry
        )
        self.changes = Counter("bridge_drift_changes", "Levels that were reached", ["level"], registry=registry)
        self.proposals = Counter("bridge_drift_proposals", "Proposals to train a release again", registry=registry)
        self.measures = Counter("bridge_drift_measures", "Measures taken into the statistics", registry=registry)
        self.seconds = Histogram(
            "bridge_drift_look_seconds", "Time of one look at everything", buckets=_SECONDS, registry=registry
        )
        self.last = Gauge("bridge_drift_last_look_seconds", "When the last look ended, UNIX time", registry=registry)
