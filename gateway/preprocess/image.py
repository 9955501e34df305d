"""Pictures to tensors: size, colour, normalisation and quantization, in that order.

The picture is made small first: converting colours of 270,000 bytes costs a twentieth of doing it at 1080p.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.preprocess.quantize import pixel_table
from gateway.wire.manifest import ImageInput

Pixels = NDArray[np.uint8]

_CHANNELS = {"rgb": 3, "bgr": 3, "grey": 1}
_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
_SIGN_BIT = np.uint8(0x80)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the model's picture lies in the frame, for one size of frame.

    `source` and `target` are (top, bottom, left, right) in pixels: the part of the frame that is used and the part of
    the model's picture that it fills. A point at the fraction `x` of the model's picture is at `left + gain_x * x` of
    the frame.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    left: float
    top: float
    gain_x: float
    gain_y: float

    def to_frame(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes (n, 4) as left, top, right, bottom from fractions of the model's picture to those of the frame.

        What lies outside the frame is cut off.
        """
        gain = np.array([self.gain_x, self.gain_y, self.gain_x, self.gain_y], dtype=np.float32)
        offset = np.array([self.left, self.top, self.left, self.top], dtype=np.float32)
        mapped: NDArray[np.float32] = np.clip(boxes * gain + offset, 0.0, 1.0)
        return mapped


def geometry_for(spec: ImageInput, height: int, width: int) -> Geometry:
    """Work out how a frame of a size fits into the model's picture."""
    if spec.fit == "letterbox":
        shrink = min(spec.width / width, spec.height / height)
        inner_w, inner_h = max(1, round(width * shrink)), max(1, round(height * shrink))
        left, top = (spec.width - inner_w) // 2, (spec.height - inner_h) // 2
        return Geometry(
            source=(0, height, 0, width),
            target=(top, top + inner_h, left, left + inner_w),
            left=-left / inner_w,
            top=-top / inner_h,
            gain_x=spec.width / inner_w,
            gain_y=spec.height / inner_h,
        )
    used_h, used_w = height, width
    if spec.fit == "crop":
        grow = max(spec.width / width, spec.height / height)
        used_w, used_h = min(width, max(1, round(spec.width / grow))), min(height, max(1, round(spec.height / grow)))
    left, top = (width - used_w) // 2, (height - used_h) // 2
    return Geometry(
        source=(top, top + used_h, left, left + used_w),
        target=(0, spec.height, 0, spec.width),
        left=left / width,
        top=top / height,
        gain_x=used_w / width,
        gain_y=used_h / height,
    )


class ImageShaper:
    """Fills one tensor, again and again. One thread owns it; what it returns is valid until the next call.

    `mean` and `scale` of the manifest are in the order of the tensor's channels (`colour`). A pixel has only 256
    values, so normalisation and quantization together are one table look-up, whatever the tensor's type; where the
    table is the identity or flips the sign bit, not even that.
    """

    def __init__(self, spec: ImageInput, dtype: str, scale: float, zero_point: int) -> None:
        """Make the buffers and the table.

        Raises:
            ModelError: `mean` or `scale` do not fit the number of channels.
        """
        self._spec = spec
        self._channels = _CHANNELS[spec.colour]
        for name, values in (("mean", spec.mean), ("scale", spec.scale)):
            if len(values) not in (1, self._channels):
                raise ModelError(f"input.{name}: expected 1 or {self._channels} values, found {len(values)}")
        if not all(spec.scale):
            raise ModelError("input.scale: holds a zero")
        self._canvas: Pixels = np.full((spec.height, spec.width, 3), spec.pad, dtype=np.uint8)
        self._picture: Pixels = np.empty((spec.height, spec.width, self._channels), dtype=np.uint8)
        self._table = pixel_table(spec.mean, spec.scale, dtype, scale, zero_point)
        self._reals = pixel_table(spec.mean, spec.scale, "float32", 0.0, 0)
        self._way = _fast_way(self._table)
        self._out = np.empty((1, *self._picture.shape), dtype=dtype)
        self._frame_size: tuple[int, int] | None = None
        self._geometry: Geometry | None = None

    def fill(self, image: Pixels) -> tuple[NDArray[np.generic], Geometry]:
        """Return the tensor (1, height, width, channels) for a frame (h, w, 3) BGR, and where it lies in the frame.

        Raises:
            InferenceError: not a picture.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InferenceError(f"a frame must be (height, width, 3) of uint8; got {image.shape} of {image.dtype}")
        geometry = self._fit(image.shape[0], image.shape[1])
        top, bottom, left, right = geometry.source
        y0, y1, x0, x1 = geometry.target
        cv2.resize(
            image[top:bottom, left:right],
            (x1 - x0, y1 - y0),
            dst=self._canvas[y0:y1, x0:x1],
            interpolation=_INTERPOLATION[self._spec.interpolation],
        )
        self._recolour()
        return self._normalise(), geometry

    def reals(self) -> NDArray[np.float32]:
        """Return the last picture as `(pixel - mean) / scale`, before quantization, shape (1, h * w * channels)."""
        return _look_up(self._picture, self._reals).reshape(1, -1).astype(np.float32, copy=False)

    def _fit(self, height: int, width: int) -> Geometry:
        if self._geometry is None or self._frame_size != (height, width):
            self._geometry = geometry_for(self._spec, height, width)
            self._frame_size = (height, width)
            self._canvas[:] = self._spec.pad  # another aspect ratio leaves other margins
        return self._geometry

    def _recolour(self) -> None:
        if self._spec.colour == "rgb":
            cv2.cvtColor(self._canvas, cv2.COLOR_BGR2RGB, dst=self._picture)
        elif self._spec.colour == "grey":
            cv2.cvtColor(self._canvas, cv2.COLOR_BGR2GRAY, dst=self._picture[:, :, 0])
        else:
            self._picture = self._canvas

    def _normalise(self) -> NDArray[np.generic]:
        if self._way == "identity":
            return self._picture[None]
        if self._way == "flip":
            np.bitwise_xor(self._picture, _SIGN_BIT, out=self._out[0].view(np.uint8))
        else:
            self._out[0] = _look_up(self._picture, self._table)
        return self._out


def _fast_way(table: NDArray[np.generic]) -> str:
    pixels = np.arange(256)[:, None]
    if table.dtype == np.uint8 and (table == pixels).all():
        return "identity"
    if table.dtype == np.int8 and (table.astype(np.int64) == pixels - 128).all():
        return "flip"
    return "table"


def _look_up(picture: Pixels, table: NDArray[np.generic]) -> NDArray[np.generic]:
    """Replace each pixel by its entry, per channel or one column for all; shape as the picture."""
    entries = np.ascontiguousarray(table).reshape(1, 256, -1)
    return np.asarray(cv2.LUT(picture, entries)).reshape(picture.shape)
