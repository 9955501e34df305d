"""An Industrial I/O device: a tree as in sysfs, and a pipe in place of /dev/iio:deviceN."""

import os
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

CHANNELS = ("in_accel_x", "in_accel_y", "in_accel_z")


class IioDevice:
    """A three-axis accelerometer with a shared scale. A scan is three le:s16/16>>0 and an le:s64/64>>0 time stamp."""

    def __init__(self, root: Path, *, name: str = "adxl345", scale: float = 0.5, offset: float = 2.0) -> None:
        self.devices = root / "devices"
        self.dev = root / "dev"
        self.device = self.devices / "iio:device0"
        self.file = self.dev / "iio:device0"
        self.rate_hz = 400.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.dev.mkdir(parents=True)
        os.mkfifo(self.file)
        for directory in ("scan_elements", "buffer", "trigger"):
            (self.device / directory).mkdir(parents=True)
        self.set("name", name)
        self.set("in_accel_scale", str(scale))
        self.set("in_accel_offset", str(offset))
        self.set("sampling_frequency", "100")
        self.set("in_temp_input", "42500")
        for index, channel in enumerate(CHANNELS):
            self.set(f"{channel}_raw", str(100 * (index + 1)))
            self.element(channel, index, "le:s16/16>>0")
        self.element("in_timestamp", len(CHANNELS), "le:s64/64>>0")
        self.set("buffer/enable", "0")
        self.set("buffer/length", "0")
        self.set("buffer/watermark", "1")
        self.set("trigger/current_trigger", "")
        trigger = self.devices / "trigger0"
        trigger.mkdir()
        (trigger / "name").write_text(f"{name}-dev0\n")

    def set(self, attribute: str, value: str) -> None:
        """Write an attribute, as the driver would show it."""
        (self.device / attribute).write_text(value + "\n")

    def get(self, attribute: str) -> str:
        """Read an attribute."""
        return (self.device / attribute).read_text().strip()

    def element(self, channel: str, index: int, kind: str) -> None:
        """Describe a channel of the buffer."""
        self.set(f"scan_elements/{channel}_en", "0")
        self.set(f"scan_elements/{channel}_index", str(index))
        self.set(f"scan_elements/{channel}_type", kind)

    def stream(self, *, skip_every: int = 0) -> None:
        """Write scans at `rate_hz`: the number of the scan on x, its negative on y, 7 on z. Leave some out."""

        def run() -> None:
            with suppress(OSError):
                self._write_scans(skip_every)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _write_scans(self, skip_every: int) -> None:
        period_ns = round(1e9 / self.rate_hz)
        pipe = os.open(self.file, os.O_RDWR)  # both ways, so that opening does not wait for a reader
        try:
            begin_ns = time.time_ns()
            number = 0
            while not self._stop.wait(0.01):
                while begin_ns + number * period_ns <= time.time_ns():
                    number += 1
                    if skip_every and number % skip_every == 0:
                        continue
                    value = number % 30_000
                    os.write(pipe, struct.pack("<hhh2xq", value, -value, 7, begin_ns + number * period_ns))
        finally:
            os.close(pipe)

    def unplug(self) -> None:
        """Take the device away."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.device.exists():
            for attribute in self.device.glob("in_*_raw"):
                attribute.write_text("")  # a file that is still open has nothing more to say
            self.device.rename(self.devices / "gone")
