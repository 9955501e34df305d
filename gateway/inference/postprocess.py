"""What a model's raw outputs mean: labels with scores, boxes, anomaly scores. Pure.

Readers get all rows of one sample at once. Where each sensor channel is answered for itself, the rows of a channel
stand together; several rows of one answer (stacked spectrogram frames) are averaged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.inference.backend import Tensors, TensorSpec
from gateway.values import Finding
from gateway.wire.manifest import Classification, Reconstruction, Regression

Reals = NDArray[np.float32]
Figures = NDArray[np.float64]


class PreparedSample(Protocol):
    """What a reader must know of the prepared sample; `gateway.preprocess` makes it."""

    @property
    def tensor(self) -> NDArray[Any]:
        """(rows, …), in the dtype of the input."""

    @property
    def reals(self) -> Callable[[], Reals]:
        """Gives (rows, values), what was there before quantization."""

    @property
    def channels(self) -> int | None:
        """How many sensor channels are answered each for itself; None: one answer for all rows."""

    def to_frame(self, boxes: Reals) -> Reals:
        """Map boxes (n, 4), left, top, right, bottom, from fractions of the input to fractions of the frame."""


class Reader(Protocol):
    """Reads the outputs of one model."""

    def read(self, outputs: Tensors, prepared: PreparedSample) -> tuple[Finding, ...]:
        """Return the findings, the best first.

        Raises:
            InferenceError: the outputs make no sense.
        """


def squash(raw: float, threshold: float) -> float:
    """Map an anomaly score 0..∞ to 0..1 so that `threshold` becomes 0.5: `1 - 2 ** (-raw / threshold)`.

    Twice the threshold is 0.75, three times 0.875; below zero counts as zero.
    """
    return 1.0 - float(2.0 ** (-max(0.0, raw) / threshold))


def dequantize(tensor: NDArray[Any], spec: TensorSpec) -> Reals:
    """Return what an output means, as float32."""
    values = tensor.astype(np.float32)
    if spec.scale and tensor.dtype.kind in "iu":
        values -= np.float32(spec.zero_point)
        values *= np.float32(spec.scale)
    return values


class NotFiniteError(InferenceError):
    """The answer of a model is no number."""


def require_finite(outputs: Tensors) -> None:
    """Refuse outputs with NaN or infinity.

    Raises:
        NotFiniteError: there are some; the message says in which output.
    """
    for number, output in enumerate(outputs):
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise NotFiniteError(f"output {number} of the model is not finite")


def grouped(values: Figures, channels: int | None) -> Figures:
    """Average the rows of each answer: (rows, k) to (channels or 1, k)."""
    groups = channels or 1
    if len(values) % groups:
        raise InferenceError(f"{len(values)} rows cannot be shared among {groups} channels")
    if len(values) == groups:
        return values
    averaged: Figures = values.reshape(groups, -1, values.shape[1]).mean(axis=1)
    return averaged


@dataclass(frozen=True, slots=True)
class ClassificationReader:
    """The best labels of each answer."""

    output: Classification
    spec: TensorSpec

    def read(self, outputs: Tensors, prepared: PreparedSample) -> tuple[Finding, ...]:
        """Dequantize, activate, average, and take the best; labels that are "" are left out."""
        logits = dequantize(outputs[0], self.spec).reshape(len(prepared.tensor), -1).astype(np.float64)
        scores = np.clip(grouped(activate(logits, self.output.activation), prepared.channels), 0.0, 1.0)
        findings: list[Finding] = []
        for channel, row in enumerate(scores):
            best = [int(index) for index in np.argsort(-row, kind="stable") if self.output.labels[index]]
            findings.extend(
                Finding(self.output.labels[index], float(row[index]), channel=_channel(channel, prepared))
                for index in best[: self.output.top]
            )
        return best_first(findings)


def activate(values: Figures, activation: str) -> Figures:
    """Apply `softmax` over each row, `sigmoid`, or nothing."""
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        shares: Figures = powers / powers.sum(axis=1, keepdims=True)
        return shares
    if activation == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), dtype=np.float64)
    return values


@dataclass(frozen=True, slots=True)
class ReconstructionReader:
    """How far an autoencoder's answer is from its input."""

    output: Reconstruction
    spec: TensorSpec

    def read(self, outputs: Tensors, prepared: PreparedSample) -> tuple[Finding, ...]:
        """Compare with the input before quantization, in feature units."""
        reals = prepared.reals()
        difference = np.abs(dequantize(outputs[0], self.spec).reshape(reals.shape).astype(np.float64) - reals)
        if self.output.error == "mse":
            errors = (difference**2).mean(axis=1, keepdims=True)
        elif self.output.error == "mae":
            errors = difference.mean(axis=1, keepdims=True)
        else:
            errors = difference.max(axis=1, keepdims=True)
        return _anomalies(errors, self.output.label, self.output.threshold, prepared)


@dataclass(frozen=True, slots=True)
class RegressionReader:
    """A model that answers the anomaly score itself."""

    output: Regression
    spec: TensorSpec

    def read(self, outputs: Tensors, prepared: PreparedSample) -> tuple[Finding, ...]:
        """Dequantize and squash."""
        scores = dequantize(outputs[0], self.spec).reshape(len(prepared.tensor), 1).astype(np.float64)
        return _anomalies(scores, self.output.label, self.output.threshold, prepared)


def read_for_vectors(
    output: Classification | Reconstruction | Regression, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Reader:
    """Return the reader for everything but boxes.

    Raises:
        ModelError: the outputs are not what the manifest says.
    """
    if len(outputs) != 1:
        raise ModelError(f"output: a {_kind(output)} model has one output tensor, this one has {len(outputs)}")
    spec = outputs[0]
    found = prod(spec.shape[1:])
    if isinstance(output, Classification):
        _expect(found, len(output.labels), "labels of the manifest", spec)
        return ClassificationReader(output, spec)
    if not (isfinite(output.threshold) and output.threshold > 0):
        raise ModelError(f"output.threshold: must be greater than 0, is {output.threshold:g}")
    if isinstance(output, Reconstruction):
        _expect(found, prod(inputs[0].shape[1:]), "values of the input", spec)
        return ReconstructionReader(output, spec)
    _expect(found, 1, "score", spec)
    return RegressionReader(output, spec)


def best_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Order findings by falling score."""
    return tuple(sorted(findings, key=lambda finding: -finding.score))


def _anomalies(scores: Figures, label: str, threshold: float, prepared: PreparedSample) -> tuple[Finding, ...]:
    raw_scores = grouped(scores, prepared.channels)[:, 0]
    return best_first(
        [
            Finding(
                label,
                squash(float(raw), threshold),
                raw_score=float(raw),
                threshold=threshold,
                channel=_channel(channel, prepared),
            )
            for channel, raw in enumerate(raw_scores)
        ]
    )


def _channel(index: int, prepared: PreparedSample) -> int | None:
    return None if prepared.channels is None else index


def _kind(output: Classification | Reconstruction | Regression) -> str:
    return type(output).__name__.lower()


def _expect(found: int, expected: int, what: str, spec: TensorSpec) -> None:
    if found != expected:
        raise ModelError(
            f"output tensor: expected (1, {expected}) for the {expected} {what}, the model has {spec.shape}"
        )
