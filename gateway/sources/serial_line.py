"""Lines of numbers from a serial device."""

import io
import time
from collections.abc import Iterator

import numpy as np
import serial
from numpy.typing import NDArray

from gateway.config import SerialSource
from gateway.errors import SourceLostError
from gateway.sources.base import ClosableSource, WallClock
from gateway.values import SampleBlock

MAX_LINE_BYTES = 4096
_READ_SECONDS = 0.2
_SEPARATORS = bytes.maketrans(b",;\t", b"   ")


class SerialLines(ClosableSource):
    """Reads whatever lines have come at once as one block.

    The first line after opening is thrown away, as its beginning may be missing: half a number is a number, too.
    """

    def __init__(self, name: str, settings: SerialSource, *, wall_clock: WallClock = time.time_ns) -> None:
        super().__init__(name)
        self._settings = settings
        self._wall_clock = wall_clock

    def captures(self) -> Iterator[SampleBlock]:
        """Yield blocks (n, channels)."""
        settings = self._settings
        try:
            port = serial.Serial(str(settings.device), settings.baudrate, timeout=_READ_SECONDS, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            raise self._lost(f"cannot be opened: {error}") from error
        with port:
            good_at = time.monotonic()
            pending = b""
            synchronous = False
            while not self._closing.is_set():
                got = self._received(port)
                first_ns, received_ns = self._wall_clock(), time.monotonic_ns()
                complete, newline, pending = (pending + got).rpartition(b"\n")
                if len(pending) > MAX_LINE_BYTES:
                    self._drops.count("overlong_line")
                    pending, synchronous = b"", False
                if newline and not synchronous:
                    complete, synchronous = complete.partition(b"\n")[2], True
                samples = self.parsed(complete)
                if len(samples):
                    good_at = time.monotonic()
                    yield SampleBlock(self.name, first_ns, received_ns, settings.rate_hz, samples)
                elif time.monotonic() - good_at > settings.silent_after_seconds:
                    raise self._lost(
                        f"sent no line of {settings.channels} numbers for {settings.silent_after_seconds:g} s "
                        f"(dropped: {self.drops}; is the baud rate {settings.baudrate}?)"
                    )

    def _received(self, port: serial.Serial) -> bytes:
        """Wait for bytes a moment; return what is there."""
        try:
            return port.read(max(1, port.in_waiting))
        except (serial.SerialException, OSError, TypeError) as error:
            # pyserial raises TypeError when the port goes away under it.
            raise self._lost(f"stopped answering: {error}") from error

    def parsed(self, lines: bytes) -> NDArray[np.float32]:
        """Return the good lines as (n, channels), and count the others."""
        # Carriage returns go with the white space; a line of zeros (NUL) is noise on the wire.
        text = lines.translate(_SEPARATORS).decode("ascii", "replace")
        channels = self._settings.channels
        if not text.strip():
            return np.empty((0, channels), np.float32)
        try:
            samples = np.loadtxt(io.StringIO(text), np.float32, comments=None, ndmin=2)
        except ValueError:
            samples = self._line_by_line(text)
        if samples.shape[1] != channels:
            detail = f"{samples.shape[1]} numbers instead of {channels}"
            self._drops.count("wrong_channels", len(samples), detail)
            return np.empty((0, channels), np.float32)
        finite = np.isfinite(samples).all(axis=1)
        if not finite.all():
            self._drops.count("not_finite", len(samples) - int(finite.sum()))
            samples = samples[finite]
        return samples

    def _line_by_line(self, text: str) -> NDArray[np.float32]:
        """Sort the good from the bad; only when some line is bad."""
        good: list[list[float]] = []
        for line in text.splitlines():
            try:
                numbers = [float(field) for field in line.split()]
            except ValueError:
                self._drops.count("not_a_number")
                continue
            if len(numbers) == self._settings.channels:
                good.append(numbers)
            elif numbers:
                self._drops.count(
                    "wrong_channels", detail=f"{len(numbers)} numbers instead of {self._settings.channels}"
                )
        return np.array(good, np.float32).reshape(-1, self._settings.channels)

    def _lost(self, what: str) -> SourceLostError:
        return SourceLostError(
            f"source {self.name}: serial device {self._settings.device} {what}; check the cable, "
            "that no other program has it open, and that the user is in the group dialout"
        )
