"""What of a picture may leave the device as evidence. Pure.

What is hidden is gone: pixels are averaged into a few cells before anything is encoded, and blurring only smooths the
cells. A fine Gaussian blur could be undone in part, so there is none.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.config import Privacy
from gateway.values import Box

_CELLS: Final = 8
"""Along the longer side of what is hidden: of a face nobody is told by 8x8 cells."""

Picture = NDArray[np.uint8]


def hidden(image: Picture, privacy: Privacy) -> Picture:
    """Return a picture, (height, width, 3), in which what the filter names cannot be recognised; a copy if need be."""
    if privacy.hide == "nothing":
        return image
    height, width = image.shape[:2]
    shown = image.copy()
    for left, top, right, bottom in privacy.regions or ((0.0, 0.0, 1.0, 1.0),):
        part = shown[_pixels(top, bottom, height), _pixels(left, right, width)]
        if part.size:
            part[:] = _coarse(part, smooth=privacy.hide == "blur")
    return shown


def may_show(box: Box | None, privacy: Privacy) -> bool:
    """Tell whether a picture may be sent at all, given the box that would be cut out of it."""
    return privacy.send == "all" or (privacy.send == "box" and box is not None)


def _pixels(one: float, other: float, length: int) -> slice:
    """Round outwards: half a pixel of what must not be seen is too much. Whichever end is given first."""
    return slice(int(min(one, other) * length), int(np.ceil(max(one, other) * length)))


def _coarse(part: Picture, *, smooth: bool) -> Picture:
    height, width = part.shape[:2]
    longer = max(height, width)
    # In a region of few pixels a cell is still two of them wide at least: one alone would show what it was.
    cells: Sequence[int] = [max(1, min(round(_CELLS * side / longer), side // 2)) for side in (width, height)]
    small = cv2.resize(part, cells, interpolation=cv2.INTER_AREA)
    way = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(small, (width, height), interpolation=way), dtype=np.uint8)
