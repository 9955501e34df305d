"""Prometheus metrics of the registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0)


class RegistryMetrics:
    """All metrics; safe to use from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.releases = Gauge("bridge_registry_releases", "Releases by state", ["state"], registry=registry)
        self.expires = Gauge(
            "bridge_registry_metadata_expires_seconds",
            "When signed metadata ends, Unix time",
            ["role"],
            registry=registry,
        )
        self.version = Gauge(
            "bridge_registry_metadata_version", "Version of signed metadata", ["role"], registry=registry
        )
        self.healthy = Gauge(
            "bridge_registry_healthy", "1 while the repository is there, ours, and can be signed", registry=registry
        )
        self.renewals = Counter("bridge_registry_renewals", "Times that metadata was signed anew", registry=registry)
        self.requests = Counter("bridge_registry_requests", "Requests by answer", ["status"], registry=registry)
        self.sent = Counter("bridge_registry_sent_bytes", "Bytes of the repository sent", registry=registry)
        self.seconds = Histogram(
            "bridge_registry_request_seconds", "Time to answer, sending included", buckets=_SECONDS, registry=registry
        )
