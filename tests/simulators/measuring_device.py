"""Devices that measure, for the bridge: the device's own code behind a simulated sensor, or scores drawn at random.

Both hand their measures to a store as the ingest would, with increasing sequence numbers.
"""

from collections.abc import Sequence

import numpy as np

from cloud_bridge.store.base import Store
from cloud_bridge.training.features import windows_of
from cloud_bridge.training.synth import machine
from cloud_bridge.values import Arrival, Intake, Row, StreamKey
from gateway.decide.measures import MeasureAggregator
from gateway.inference.model import Model
from gateway.preprocess.statistics import statistics_of
from gateway.values import Entry, Finding, Inference, Window
from gateway.wire.messages import Measure, ModelRef, encode

SECOND = 1_000_000_000
EPOCH = "0123456789abcdef"


class Outlet:
    """Writes what one gateway tells into a store, as if it had come over the broker at the time of its capture."""

    def __init__(self, store: Store, gateway: str) -> None:
        self.gateway = gateway
        self._store = store
        self._seq = 0

    def put(self, measures: Sequence[Measure]) -> None:
        """Commit measures, one record each, in one transaction."""
        rows = []
        for measure in measures:
            self._seq += 1
            rows.append(Row(self._seq, "measure", measure.pipeline, measure.captured_to_ns, encode(measure)))
        arrival = Arrival(StreamKey(self.gateway, EPOCH, "measure"), 1, tuple(rows))
        self._store.ingest(Intake(measures[-1].captured_to_ns, (arrival,), seen=frozenset({self.gateway})))


class VibrationDevice:
    """A rotating machine, its sensor, a model, and the device's sums. Knobs: `gain` of the sensor, `faults`."""

    def __init__(self, model: Model, gateway: str, seed: int, start_ns: int, every_seconds: float = 60.0) -> None:
        self.gain = 1.0
        self.now_ns = start_ns
        self._model = model
        self._random = np.random.default_rng([77, seed])
        self._machine = machine.build_machine(self._random)
        self._sums = MeasureAggregator(gateway, "motor", every_seconds)

    def run(self, windows: int, seconds_apart: float) -> list[Measure]:
        """Look at so many windows, evenly in time; return the measures that became due."""
        entries: list[Entry | None] = []
        samples = machine.run(self._machine, windows, self._random) * self.gain
        for at, cut in enumerate(windows_of(samples, 3200, 3200), start=1):
            self.now_ns += int(seconds_apart * SECOND)
            window = Window("acc", at, self.now_ns, self.now_ns, machine.RATE_HZ, cut.astype(np.float32))
            inference = self._model.infer(window)
            self._sums.add(inference, 0, answered_ns=self.now_ns + 1_000_000, inputs=statistics_of(window))
            entries.append(self._sums.take(self.now_ns, {}))
        return [entry.body for entry in entries if entry is not None and isinstance(entry.body, Measure)]


class ScoringDevice:
    """Scores drawn from a distribution, correlated over time if wanted, through the device's own sums.

    Knobs: `shift` moves the distribution, `memory` 0..1 is the correlation from one score to the next.
    """

    def __init__(self, gateway: str, seed: int, start_ns: int, *, memory: float = 0.0) -> None:
        self.shift = 0.0
        self.memory = memory
        self.now_ns = start_ns
        self._random = np.random.default_rng([78, seed])
        self._state = float(self._random.normal())
        self._sums = MeasureAggregator(gateway, "camera", 60.0)
        self._model = ModelRef(name="person", version="1.0.0")

    def run(self, scores: int, seconds_apart: float) -> list[Measure]:
        """Answer so often, evenly in time; return the measures that became due."""
        measures = []
        for noise in self._random.normal(0, 1, scores):
            self.now_ns += int(seconds_apart * SECOND)
            self._state = self.memory * self._state + float(np.sqrt(1 - self.memory**2) * noise)
            score = float(1 / (1 + np.exp(-(self._state + self.shift))))
            findings = (Finding("person", score),)
            self._sums.add(Inference("s", 1, self.now_ns, self.now_ns, self._model, findings, 1, 1), 0)
            entry = self._sums.take(self.now_ns, {})
            if entry is not None and isinstance(entry.body, Measure):
                measures.append(entry.body)
        return measures
