"""Windows from the field, as gateways send them: events with evidence, in a store."""

import io

import numpy as np

from cloud_bridge.store.base import Store
from cloud_bridge.training.features import windows_of
from cloud_bridge.training.synth import machine
from cloud_bridge.values import Arrival, Intake, Row, StreamKey
from gateway.wire.messages import Event, Evidence, EvidenceLink, ModelRef, encode

AT_NS = 1_800_000_000 * 1_000_000_000
NPY = "application/x-npy"


def vibration_windows(seconds: int, seed: int, *, gain: float = 1.0, fault: float = 0.0) -> np.ndarray:
    """(windows, 3200, 3) of one machine, with another gain of its sensor, or with a race defect."""
    random = np.random.default_rng([79, seed])
    schedule = np.zeros((seconds, len(machine.FAULTS)))
    schedule[:, machine.FAULTS.index("outer-race")] = fault
    samples = machine.run(machine.build_machine(random), seconds, random, schedule if fault else None)
    return windows_of(samples * gain, 3200, 3200)


def npy(window: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, window.astype(np.float16), allow_pickle=False)
    return buffer.getvalue()


class FieldGateway:
    """Sends events with evidence into a store."""

    def __init__(self, store: Store, gateway: str = "gw", model: str = "vibration-anomaly") -> None:
        self._store = store
        self._gateway = gateway
        self._model = ModelRef(name=model, version="1.0.0")
        self._seq = 0

    def send(self, blob: bytes, score: float, *, low_confidence: bool = False, channel: int | None = None) -> str:
        """Send one event with its evidence; returns the id of the event."""
        self._seq += 1
        event_id, evidence_id = f"{self._gateway}-e{self._seq}", f"{self._gateway}-v{self._seq}"
        event = Event(
            phase="end",
            event_id=event_id,
            gateway=self._gateway,
            pipeline="motor",
            source="acc",
            rule="low-confidence" if low_confidence else "alarm",
            label="anomaly",
            score=score,
            peak_score=score,
            model=self._model,
            at="2027-01-15T08:00:00.000Z",
            started_at="2027-01-15T08:00:00.000Z",
            captured_at_ns=AT_NS,
            channel=channel,
            reason="low-confidence" if low_confidence else "rule",
            evidence=EvidenceLink(evidence_id=evidence_id, content_type=NPY, size_bytes=len(blob)),
        )
        proof = Evidence(
            evidence_id=evidence_id, event_id=event_id, pipeline="motor", content_type=NPY, captured_at_ns=AT_NS
        )
        rows = (Row(self._seq, "event", "motor", AT_NS, encode(event), index=event),)
        proofs = (Row(self._seq, "evidence", "motor", AT_NS, encode(proof), blob, proof),)
        key = (self._gateway, "0123456789abcdef")
        self._store.ingest(
            Intake(
                AT_NS,
                (Arrival(StreamKey(*key, "event"), 1, rows), Arrival(StreamKey(*key, "bulk"), 1, proofs)),
                seen=frozenset({self._gateway}),
            )
        )
        return event_id
