"""Prometheus metrics of the identity service."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class IdentityMetrics:
    """All metrics; safe to use from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.refused = Counter(
            "bridge_identity_refused", "Requests of devices that were refused", ["code"], registry=registry
        )
        self.enrolled = Counter("bridge_identity_enrolled", "Devices enrolled", ["level"], registry=registry)
        self.attested = Counter(
            "bridge_identity_attested", "Attestations that earned a certificate", ["level"], registry=registry
        )
        self.attest_seconds = Histogram(
            "bridge_identity_attest_seconds", "Time to judge an attestation", buckets=_SECONDS, registry=registry
        )
        self.authority_failed = Counter(
            "bridge_identity_authority_failed",
            "Certificates that an authority outside of the bridge did not give, by fault",
            ["fault"],
            registry=registry,
        )
        self.cut = Counter("bridge_identity_sessions_cut", "MQTT connections ended", ["why"], registry=registry)
        self.cuts_waiting = Gauge(
            "bridge_identity_cuts_waiting", "MQTT connections that should have ended already", registry=registry
        )
        self.revoked = Gauge(
            "bridge_identity_revoked_certificates", "Certificates in the revocation list", registry=registry
        )
        self.crl_until = Gauge(
            "bridge_identity_crl_not_after_seconds", "When the revocation list expires, Unix time", registry=registry
        )
        self.software_allowed = Gauge(
            "bridge_identity_software_allowed", "1 while devices without a TPM are let in", registry=registry
        )
