"""Prometheus metrics of rollouts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class RolloutMetrics:
    """All metrics; safe to use from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open = Gauge("bridge_rollouts", "Rollouts that are not over", ["phase"], registry=registry)
        self.devices = Gauge(
            "bridge_rollout_devices",
            "Devices of the present waves of running rollouts",
            ["standing"],
            registry=registry,
        )
        self.transitions = Counter(
            "bridge_rollout_transitions", "What happened to rollouts", ["kind"], registry=registry
        )
        self.halts = Counter("bridge_rollout_halts", "Rollouts halted by a gate", ["gate"], registry=registry)
        self.looks = Counter("bridge_rollout_looks", "Evaluations of all gates", registry=registry)
        self.look_seconds = Histogram(
            "bridge_rollout_look_seconds", "Time to evaluate all gates once", buckets=_SECONDS, registry=registry
        )
