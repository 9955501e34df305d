"""Preparation as a manifest and an input tensor ask for it: a sample goes in, a batch of rows comes out."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.preprocess.features import extractor_for
from gateway.preprocess.image import Geometry, ImageShaper
from gateway.preprocess.quantize import TENSOR_DTYPES, quantize
from gateway.values import Frame, Sample, Window
from gateway.wire.manifest import ImageInput, LogBands, LogMel, WindowInput

_RATE_TOLERANCE = 0.05
"""How far a source's rate may be off where features depend on frequencies."""


class InputTensor(Protocol):
    """What a preparation must know of the tensor it fills."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The batch first."""

    @property
    def dtype(self) -> str:
        """As numpy names it."""

    @property
    def scale(self) -> float:
        """Of the quantization; 0 if there is none."""

    @property
    def zero_point(self) -> int:
        """Of the quantization."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sample ready for the runtime.

    `tensor` is (rows, *shape of the input), valid until the next sample is prepared. With `channels`, each sensor
    channel has its own answer and as many consecutive rows as the others.
    """

    tensor: NDArray[Any]
    reals: Callable[[], NDArray[np.float32]]  # (rows, values of a row), what was there before quantization
    channels: int | None = None
    geometry: Geometry | None = None

    def to_frame(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes (n, 4), left, top, right, bottom, from fractions of the input to fractions of the frame."""
        return boxes if self.geometry is None else self.geometry.to_frame(boxes)


class Preparation(Protocol):
    """Turns samples into batches. One thread owns it."""

    def prepare(self, sample: Sample) -> Prepared:
        """Return what the runtime gets.

        Raises:
            InferenceError: the sample cannot be used; the next may be.
        """

    def exclude_last(self) -> None:
        """Keep the last sample out of any baseline."""

    def go_on_from(self, other: object) -> None:
        """Take over what another preparation has learnt of the same input, if it is one of the same kind."""


def preparation_for(spec: ImageInput | WindowInput, tensor: InputTensor) -> Preparation:
    """Return the preparation for a manifest's input and the tensor that it must fill.

    Raises:
        ModelError: the two do not fit together; the message says what was expected and what was found.
    """
    if tensor.dtype not in TENSOR_DTYPES:
        raise ModelError(f"input tensor: expected {', '.join(sorted(TENSOR_DTYPES))}, found {tensor.dtype}")
    return ImagePreparation(spec, tensor) if isinstance(spec, ImageInput) else WindowPreparation(spec, tensor)


class ImagePreparation:
    """Frames to a batch of one picture."""

    def __init__(self, spec: ImageInput, tensor: InputTensor) -> None:
        expected = (1, spec.height, spec.width, 1 if spec.colour == "grey" else 3)
        if tuple(tensor.shape) != expected:
            raise ModelError(f"input tensor: the manifest says {expected}, the model has {tuple(tensor.shape)}")
        self._shaper = ImageShaper(spec, tensor.dtype, tensor.scale, tensor.zero_point)

    def prepare(self, sample: Sample) -> Prepared:
        """Resize, recolour, normalise and quantize a frame."""
        if not isinstance(sample, Frame):
            raise InferenceError(f"source {sample.source}: the model wants pictures, but the source gives samples")
        tensor, geometry = self._shaper.fill(sample.image)
        return Prepared(tensor, self._shaper.reals, geometry=geometry)

    def exclude_last(self) -> None:
        """Pictures have no baseline."""

    def go_on_from(self, other: object) -> None:
        """Pictures have no baseline."""


class WindowPreparation:
    """Windows to rows of features."""

    def __init__(self, spec: WindowInput, tensor: InputTensor) -> None:
        self._spec = spec
        self._tensor = tensor
        self._extractor = extractor_for(spec)
        self._row_shape = tuple(tensor.shape[1:])
        expected = self._extractor.row_length()
        if tensor.shape[:1] != (1,) or prod(self._row_shape) != expected:
            raise ModelError(
                f"input tensor: the manifest's features make (1, {expected}), the model has {tuple(tensor.shape)}"
            )
        self._frequencies_matter = isinstance(spec.features, LogBands | LogMel)

    def prepare(self, sample: Sample) -> Prepared:
        """Extract and quantize the features of a window (samples, channels).

        With `per_channel` any number of channels is taken.
        """
        samples = self._checked(sample)
        rows = self._extractor.rows(samples)
        tensor = quantize(rows, self._tensor.dtype, self._tensor.scale, self._tensor.zero_point)
        return Prepared(
            tensor.reshape(len(rows), *self._row_shape),
            lambda: rows,
            channels=samples.shape[1] if self._spec.per_channel else None,
        )

    def exclude_last(self) -> None:
        """Keep the last window out of the baseline."""
        self._extractor.exclude_last()

    def go_on_from(self, other: object) -> None:
        """Share the baseline of a preparation of the same windows, so that the first answers need not find one."""
        if isinstance(other, WindowPreparation) and other._spec == self._spec:
            self._extractor = other._extractor

    def _checked(self, sample: Sample) -> NDArray[np.float32]:
        spec = self._spec
        if not isinstance(sample, Window):
            raise InferenceError(f"source {sample.source}: the model wants samples, but the source gives pictures")
        samples = sample.samples
        channels_fit = samples.ndim == 2 and (spec.per_channel or samples.shape[1] == spec.channels)
        if not channels_fit or samples.shape[0] != spec.samples or not samples.size:
            raise InferenceError(
                f"source {sample.source}: the model wants windows of ({spec.samples}, {spec.channels}), got "
                f"{samples.shape}"
            )
        if self._frequencies_matter and abs(sample.rate_hz - spec.rate_hz) > _RATE_TOLERANCE * spec.rate_hz:
            raise InferenceError(
                f"source {sample.source}: gives {sample.rate_hz:g} samples a second, the model was made for "
                f"{spec.rate_hz:g}; set the rate_hz of the source"
            )
        # Before any state is touched: one NaN must not spoil a baseline.
        if not np.isfinite(samples).all():
            raise InferenceError(f"source {sample.source}: a window holds values that are not finite")
        return samples
