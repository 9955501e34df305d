"""The layout of samples in an Industrial I/O buffer. Pure.

Source: the kernel's `Documentation/ABI/testing/sysfs-bus-iio` (`scan_elements/*_type`) and `iio_compute_scan_bytes`.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.errors import ConfigError

TIMESTAMP = "in_timestamp"

_TYPE = re.compile(
    r"(?P<order>[bl]e):(?P<sign>[su])(?P<bits>\d+)/(?P<storage>\d+)(?:X(?P<repeat>\d+))?>>(?P<shift>\d+)"
)


@dataclass(frozen=True, slots=True)
class Element:
    """One channel in a scan."""

    name: str
    index: int  # its place in the scan
    big_endian: bool
    signed: bool
    bits: int  # valid bits
    storage_bits: int  # 8, 16, 32 or 64
    shift: int  # to the right, before masking


@dataclass(frozen=True, slots=True)
class Layout:
    """All channels of a scan, in the order of the buffer."""

    elements: tuple[Element, ...]
    dtype: np.dtype[np.void]  # one scan, one unsigned field for each element

    def raw(self, scans: NDArray[np.void], name: str) -> NDArray[np.int64]:
        """Return the values of a channel, (n,), as the device's registers held them."""
        element = next(element for element in self.elements if element.name == name)
        stored = scans[name].astype(np.uint64) >> np.uint64(element.shift)
        unused = np.uint64(64 - element.bits)
        # Up to the top and back down: clears what is not valid, and spreads the sign.
        top = stored << unused
        if element.signed:
            return top.view(np.int64) >> np.int64(unused)
        return (top >> unused).view(np.int64)


def parse_type(name: str, index: int, text: str) -> Element:
    """Read a `*_type` file, e.g. `le:s12/16>>4`."""
    match = _TYPE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"channel {name}: cannot read its layout {text.strip()!r}; expected one like le:s12/16>>4")
    bits, storage, shift = (int(match[key]) for key in ("bits", "storage", "shift"))
    if storage not in (8, 16, 32, 64) or not 0 < bits <= storage - shift or int(match["repeat"] or 1) != 1:
        raise ConfigError(f"channel {name}: its layout {text.strip()} is not one that can be read; leave it out")
    return Element(name, index, match["order"] == "be", match["sign"] == "s", bits, storage, shift)


def layout_of(elements: list[Element]) -> Layout:
    """Place enabled elements as the kernel does: by index, each aligned to its size, the whole to the largest."""
    ordered = sorted(elements, key=lambda element: element.index)
    at = 0
    offsets = []
    for element in ordered:
        size = element.storage_bits // 8
        at = -(-at // size) * size
        offsets.append(at)
        at += size
    largest = max(element.storage_bits // 8 for element in ordered)
    return Layout(
        tuple(ordered),
        np.dtype(
            {
                "names": [element.name for element in ordered],
                "formats": [f"{'>' if element.big_endian else '<'}u{element.storage_bits // 8}" for element in ordered],
                "offsets": offsets,
                "itemsize": -(-at // largest) * largest,
            }
        ),
    )
