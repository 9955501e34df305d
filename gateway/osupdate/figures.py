"""The metrics of updates of the system."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class OsMetrics:
    """What updates of the system did since the start of the program."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register them."""
        self._updates = Counter(
            "os_updates",
            "Updates of the system by what became of them: installed, proven, reverted, refused, withdrawn, given-up.",
            ["outcome"],
            registry=registry,
        )
        self._failures = Counter(
            "os_update_failures", "Steps that failed and are tried again, by code.", ["code"], registry=registry
        )
        self._fetched = Counter("os_update_fetched_bytes", "Bytes of bundles that were fetched.", registry=registry)
        self._pending = Gauge("os_update_under_way", "1 while an update of the system is under way.", registry=registry)

    def outcome(self, outcome: str) -> None:
        """Count an end."""
        self._updates.labels(outcome).inc()

    def failed(self, code: str) -> None:
        """Count a step that failed."""
        self._failures.labels(code).inc()

    def fetched(self, size_bytes: int) -> None:
        """Count bytes."""
        self._fetched.inc(size_bytes)

    def under_way(self, *, is_under_way: bool) -> None:
        """Tell whether one is."""
        self._pending.set(int(is_under_way))
