"""The metrics of updates."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

GAP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class OtaMetrics:
    """What updates did on this device since the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register them."""
        self._updates = Counter(
            "model_updates",
            "Releases from the air by what became of them: swapped, proven, reverted, refused.",
            ["pipeline", "outcome"],
            registry=registry,
        )
        self._gap = Histogram(
            "model_swap_gap_seconds",
            "By how much the first answer of a new release came later than answers usually follow each other.",
            ["pipeline"],
            buckets=GAP_BUCKETS,
            registry=registry,
        )
        self._fetched = Counter("model_fetched_bytes", "Bytes of releases that were fetched.", registry=registry)
        self._saved = Counter(
            "model_saved_bytes", "Bytes that patches cost less than compressed full files.", registry=registry
        )
        self._trial = Gauge(
            "model_on_trial", "1: a new release has not proved itself yet.", ["pipeline"], registry=registry
        )

    def outcome(self, pipeline: str, outcome: str) -> None:
        """Count what became of a release."""
        self._updates.labels(pipeline, outcome).inc()

    def gap(self, pipeline: str, seconds: float) -> None:
        """Note the gap of a swap."""
        self._gap.labels(pipeline).observe(seconds)

    def fetched(self, fetched_bytes: int, full_bytes: int) -> None:
        """Count what a release cost, and what the full files would have cost."""
        self._fetched.inc(fetched_bytes)
        self._saved.inc(max(0, full_bytes - fetched_bytes))

    def on_trial(self, pipeline: str, *, is_on_trial: bool) -> None:
        """Tell whether a release is on trial."""
        self._trial.labels(pipeline).set(is_on_trial)
