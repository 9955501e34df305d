"""Prometheus metrics of twins."""

from prometheus_client import CollectorRegistry, Counter


class TwinMetrics:
    """All metrics; safe to use from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.published = Counter("bridge_twins_published", "Desired twins handed to brokers", registry=registry)
        self.reports = Counter("bridge_twin_reports", "Reported twins taken", registry=registry)
        self.bad_reports = Counter("bridge_twin_reports_unusable", "Reported twins that are none", registry=registry)
        self.refused = Counter(
            "bridge_twins_refused", "Times that a device began to refuse desired twins", registry=registry
        )
        self.again = Counter(
            "bridge_twins_told_again",
            "Desired twins handed to brokers again because their devices did not have them",
            registry=registry,
        )
        self.overtaken = Counter(
            "bridge_twins_overtaken",
            "Twins issued again because a device had a higher token, or theirs was beyond belief",
            registry=registry,
        )
