"""Window evidence as lines to draw. Pure: a NumPy file in, points out, without NumPy.

The bridge needs no arrays otherwise, and the file comes from a device: what is read is the header of
`numpy.lib.format` (versions 1 to 3) for one plain, C-ordered array of numbers of at most two dimensions.
"""

import ast
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 640
HEIGHT: Final = 72
MAX_CHANNELS: Final = 12
MAX_HEADER_BYTES: Final = 4096
MAX_DATA_BYTES: Final = 8 * 1024 * 1024

_MAGIC: Final = b"\x93NUMPY"
_FORMATS: Final = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I"}
_MARGIN: Final = 3.0


class UnreadableEvidenceError(Exception):
    """The bytes are not an array that can be drawn."""


@dataclass(frozen=True, slots=True)
class Line:
    """One channel: its range, its spread, and the points of an SVG polyline in a box of WIDTH x HEIGHT."""

    channel: int
    minimum: float
    maximum: float
    rms: float
    samples: int
    points: str


def lines_of(data: bytes) -> tuple[Line, ...]:
    """Turn an array of shape (samples, channels) or (samples,) into lines, at most MAX_CHANNELS.

    Raises:
        UnreadableEvidenceError: not such an array, or empty, or too large.
    """
    values, channels = _array(data)
    return tuple(_line(channel, values[channel::channels]) for channel in range(min(channels, MAX_CHANNELS)))


def _array(data: bytes) -> tuple[Sequence[float], int]:
    if len(data) < 12 or data[:6] != _MAGIC or data[6] not in (1, 2, 3):
        raise UnreadableEvidenceError("not a NumPy file of version 1 to 3")
    if data[6] == 1:
        (length,), start = struct.unpack_from("<H", data, 8), 10
    else:
        (length,), start = struct.unpack_from("<I", data, 8), 12
    if length > MAX_HEADER_BYTES or start + length > len(data):
        raise UnreadableEvidenceError("the header is too long")
    code, order, shape = _described(data[start : start + length])
    count = math.prod(shape)
    size = struct.calcsize(f"={code}")
    body = memoryview(data)[start + length :]
    if count == 0 or len(body) > MAX_DATA_BYTES or count * size != len(body):
        raise UnreadableEvidenceError("the length does not fit the shape")
    return struct.unpack(f"{order}{count}{code}", body), shape[1] if len(shape) == 2 else 1


def _described(header: bytes) -> tuple[str, str, tuple[int, ...]]:
    try:
        content = ast.literal_eval(header.decode("latin-1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UnreadableEvidenceError("the header cannot be read") from error
    match content:
        case {"descr": str(descr), "fortran_order": False, "shape": tuple(shape)}:
            pass
        case _:
            raise UnreadableEvidenceError("the header does not describe a plain C-ordered array")
    order, kind = (descr[0], descr[1:]) if descr[:1] in ("<", ">", "|", "=") else ("<", descr)
    if kind not in _FORMATS:
        raise UnreadableEvidenceError(f"arrays of type {descr[:20]!r} are not drawn")
    if len(shape) not in (1, 2) or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise UnreadableEvidenceError("the shape is not (samples,) or (samples, channels)")
    return _FORMATS[kind], ">" if order == ">" else "<", shape


def _line(channel: int, values: Sequence[float]) -> Line:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Line(channel, math.nan, math.nan, math.nan, len(values), "")
    low, high = min(finite), max(finite)
    largest = max(abs(low), abs(high))
    rms = largest * math.sqrt(math.fsum((value / largest) ** 2 for value in finite) / len(finite)) if largest else 0.0
    return Line(channel, low, high, rms, len(values), _points(finite, low, high))


def _points(values: Sequence[float], low: float, high: float) -> str:
    """Draw at most two points a pixel column: its lowest and its highest value, so that no peak is lost."""
    middle, half = low / 2 + high / 2, high / 2 - low / 2

    def y(value: float) -> float:
        share = (value - middle) / half if half else 0.0
        return HEIGHT / 2 - share * (HEIGHT / 2 - _MARGIN)

    step = WIDTH / max(1, len(values) - 1)
    if len(values) <= WIDTH:
        return " ".join(f"{at * step:.1f},{y(value):.1f}" for at, value in enumerate(values))
    points = []
    for column in range(WIDTH):
        part = values[column * len(values) // WIDTH : (column + 1) * len(values) // WIDTH]
        lowest, highest = min(part), max(part)
        pair = (lowest, highest) if part.index(lowest) <= part.index(highest) else (highest, lowest)
        points += [f"{column + shift:.1f},{y(value):.1f}" for shift, value in zip((0.0, 0.5), pair, strict=True)]
    return " ".join(points)
