"""A loaded model: preparation, runtime and the meaning of its outputs, checked against each other and its manifest."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.inference.backend import Backend, ModelFile, Session, SessionInfo, Tensors, TensorSpec, Weights
from gateway.inference.bundle import OpenWeights, Release
from gateway.inference.detection import detection_reader
from gateway.inference.given import describe
from gateway.inference.golden import verify_golden
from gateway.inference.postprocess import PreparedSample, Reader, read_for_vectors, require_finite
from gateway.values import Frame, Inference, Sample
from gateway.wire.manifest import (
    Artefact,
    Detection,
    ImageInput,
    ModelManifest,
    Reconstruction,
    Regression,
    WindowInput,
)
from gateway.wire.messages import ModelRef


class Preparation(Protocol):
    """Turns samples into batches; see `gateway.preprocess.preparation`."""

    def prepare(self, sample: Sample) -> PreparedSample:
        """Return what the runtime gets. Raises InferenceError if the sample cannot be used."""

    def exclude_last(self) -> None:
        """Keep the last sample out of any baseline."""

    def go_on_from(self, other: object) -> None:
        """Take over what another preparation has learnt of the same input, if it is one of the same kind."""


PreparationFor = Callable[[ImageInput | WindowInput, TensorSpec], Preparation]
"""Makes the preparation for a manifest's input and an input tensor; raises ModelError if they do not fit."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the time of one sample went, in nanoseconds."""

    prepare_ns: int = 0
    invoke_ns: int = 0
    read_ns: int = 0


class Model:
    """One model, ready. One thread uses it at a time."""

    def __init__(
        self,
        release: Release,
        artefact: Artefact,
        session: Session,
        preparation: Preparation,
        reader: Reader,
        *,
        weights: Weights,
    ) -> None:
        """Take parts that fit together; `open_model` makes sure of that. Session and weights are closed with it."""
        self.manifest: ModelManifest = release.manifest
        self.ref = ModelRef(name=release.manifest.name, version=release.manifest.version, digest=artefact.sha256)
        self.latency = Latency()  # of the last sample
        self._session = session
        self._preparation = preparation
        self._reader = reader
        self._weights = weights
        self._anomaly = isinstance(release.manifest.output, Reconstruction | Regression)
        self._capacity = capacity_of(session.info, release.manifest)
        self._fill = 1.0

    @property
    def info(self) -> SessionInfo:
        """What it really runs on."""
        return self._session.info

    def infer(self, sample: Sample) -> Inference:
        """Look at one sample.

        Raises:
            InferenceError: the sample cannot be used, the runtime failed, or its answer is not finite.
        """
        started_ns = time.monotonic_ns()
        prepared = self._preparation.prepare(sample)
        prepared_ns = time.monotonic_ns()
        outputs = self._run(prepared.tensor)
        invoked_ns = time.monotonic_ns()
        require_finite(outputs)
        findings = self._reader.read(outputs, prepared)
        self.latency = Latency(prepared_ns - started_ns, invoked_ns - prepared_ns, time.monotonic_ns() - invoked_ns)
        return Inference(
            source=sample.source,
            sequence=sample.sequence,
            captured_at_ns=sample.captured_at_ns,
            received_ns=sample.received_ns,
            model=self.ref,
            findings=findings,
            invoke_ns=invoked_ns - prepared_ns,
            raw_bytes=self._raw_bytes(sample),
            anomaly=self._anomaly,
            given=describe(prepared.tensor, self._session.info.inputs[0]),
        )

    def batch_fill(self, sample: Sample) -> float:
        """Return which share of the rows that ran for the last sample of this kind were its own, the rest padding."""
        return 1.0 if isinstance(sample, Frame) else self._fill

    def exclude_last(self) -> None:
        """Keep the last sample out of the baseline of the features, because it was no example of what is normal."""
        self._preparation.exclude_last()

    def go_on_from(self, before: "Model") -> None:
        """Take over the baseline of the model that answered until now; on the thread that uses both."""
        self._preparation.go_on_from(before._preparation)

    def close(self) -> None:
        """Let the session go, then the weights that it has mapped."""
        self._session.close()
        self._weights.close()

    def _run(self, tensor: NDArray[Any]) -> Tensors:
        """Run all rows, in as few and as full batches as the release allows."""
        rows = len(tensor)
        if rows <= self._capacity:
            self._fill = 1.0
            return self._session.run(tensor)
        runs = -(-rows // self._capacity)
        batch = -(-rows // runs)
        self._fill = rows / (runs * batch)
        # A last batch of another size would make the runtime allocate its tensors anew, twice a sample.
        padding = np.repeat(tensor[-1:], runs * batch - rows, axis=0)
        padded = np.concatenate((tensor, padding)) if len(padding) else tensor
        parts = [self._session.run(padded[start : start + batch]) for start in range(0, runs * batch, batch)]
        return tuple(np.concatenate(output)[:rows] for output in zip(*parts, strict=True))

    def _raw_bytes(self, sample: Sample) -> int:
        """Return the size of what is new in the sample: windows overlap, and no byte should count twice."""
        if isinstance(sample, Frame):
            return sample.image.nbytes
        spec = self.manifest.input
        if not isinstance(spec, WindowInput) or sample.sequence == 1:
            return sample.samples.nbytes
        return sample.samples[-min(spec.hop_samples, spec.samples) :].nbytes


def open_model(
    release: Release,
    artefact: Artefact,
    backend: Backend,
    preparation_for: PreparationFor,
    *,
    open_weights: OpenWeights,
    threads: int = 1,
    min_score: float | None = None,
) -> Model:
    """Open, load, check and warm up a model.

    Args:
        release: the release.
        artefact: which of its files.
        backend: what runs it.
        preparation_for: `gateway.preprocess.preparation.preparation_for`.
        open_weights: hands over the artefact, verified.
        threads: for the runtime.
        min_score: of detections, instead of the manifest's.

    Raises:
        WeightsWithheldError: the key of the weights is not given out now.
        ModelError: the release cannot be run; the message names it, what was expected and what was found.
        BackendUnavailableError: the backend is not there.
    """
    with contextlib.ExitStack() as undo:
        weights = open_weights(release, artefact)
        undo.callback(weights.close)
        file = ModelFile(release.label, artefact.file, artefact.target, artefact.sha256, weights)
        session = backend.load(file, threads)
        undo.callback(session.close)  # before the weights, which it has mapped
        preparation, reader = _checked(release, artefact, session, preparation_for, min_score)
        undo.pop_all()
    return Model(release, artefact, session, preparation, reader, weights=weights)


def capacity_of(info: SessionInfo, manifest: ModelManifest) -> int:
    """Return how many rows one invocation may have."""
    return 1 if info.fixed_batch else manifest.constraints.max_batch


def _checked(
    release: Release,
    artefact: Artefact,
    session: Session,
    preparation_for: PreparationFor,
    min_score: float | None,
) -> tuple[Preparation, Reader]:
    """Find what turns samples into inputs and outputs into findings, and let the session prove itself."""
    where = f"model {release.label}, {artefact.file}"
    manifest, info = release.manifest, session.info
    if len(info.inputs) != 1:
        raise ModelError(f"{where}: expected one input tensor, found {len(info.inputs)}")
    try:
        preparation = preparation_for(manifest.input, info.inputs[0])
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    outputs = verify_golden(release, session, artefact.target)
    if outputs is None:
        outputs = _warm_up(where, session, 1)  # the first run takes up to twice as long as the others
    # Only a run tells the shapes of outputs that the graph calls dynamic.
    specs = [replace(spec, shape=tuple(output.shape)) for spec, output in zip(info.outputs, outputs, strict=True)]
    try:
        reader = _reader_for(manifest, info, specs, min_score)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    if isinstance(manifest.input, WindowInput) and capacity_of(info, manifest) > 1:
        _warm_up(f"{where}: max_batch {manifest.constraints.max_batch}", session, capacity_of(info, manifest))
    return preparation, reader


def _warm_up(where: str, session: Session, rows: int) -> Tensors:
    spec = session.info.inputs[0]
    try:
        outputs = session.run(np.zeros((rows, *spec.shape[1:]), dtype=spec.dtype))
    except InferenceError as error:
        raise ModelError(f"{where}: {error}") from error
    if rows > 1 and any(len(output) != rows for output in outputs):
        raise ModelError(f"{where}: {rows} rows gave outputs of {', '.join(str(output.shape) for output in outputs)}")
    return outputs


def _reader_for(
    manifest: ModelManifest, info: SessionInfo, outputs: list[TensorSpec], min_score: float | None
) -> Reader:
    if isinstance(manifest.output, Detection):
        return detection_reader(manifest.output, outputs, min_score)
    return read_for_vectors(manifest.output, info.inputs, outputs)
